"""Arithmetic on stacks of deltas, for numpy arrays and torch tensors alike; no files."""
