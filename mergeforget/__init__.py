"""Unlearn by merging an over-forgetting and an under-forgetting adapter."""

__version__ = "0.1.0"
