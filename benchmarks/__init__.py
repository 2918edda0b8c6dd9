"""Timings of each step (one script each), and the study of the published experiments."""
