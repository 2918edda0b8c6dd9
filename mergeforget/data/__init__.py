"""Data: readers, formats, prompt templates, tokenisation, batching, and made-up people."""
