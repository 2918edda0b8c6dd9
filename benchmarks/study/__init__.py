"""Studies: lists of commands that are run and resumed, and documents of their results."""
