"""Merges of whole checkpoints, streamed tensor by tensor between safetensors files."""
