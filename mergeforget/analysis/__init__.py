"""Angles between weight changes, dynamics of the losses, figures and the report.

Everything here reads files of a run folder and writes files beside them.
"""
