"""Attacks on the claim that the data is gone."""
