"""Data: readers, rows, tokenising, batching, and made-up people."""
