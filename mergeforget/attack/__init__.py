"""Attacks that try to recover the forgotten data.

``methods`` contains the attacks, one file each. Each attack compares the attacked model with the
model before unlearning and with a control that never saw the data, and states what the result means
for the claim that the data is gone.
"""
