"""Training: the Trainer, the pair, and the model that has memorised."""
