"""Angles between weight changes, dynamics of the losses, figures and the report."""
