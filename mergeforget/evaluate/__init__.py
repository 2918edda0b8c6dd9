"""Evaluation: batched generation and likelihoods of one model, for many metrics at once."""
