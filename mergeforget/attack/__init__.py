"""Attacks on a model that was made to forget: does the data come back?

``methods`` holds the attacks, one file each. Each looks at the attacked model beside the one before
unlearning and one that never saw the data, and says in words what its figures mean for the claim
that the data is gone.
"""
