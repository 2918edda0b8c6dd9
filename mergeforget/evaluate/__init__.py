"""Evaluation: batched generation and likelihoods of a model, shared by all metrics."""
