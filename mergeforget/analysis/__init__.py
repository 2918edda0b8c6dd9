"""Analysis of a run: angles between weight changes, training dynamics, figures and the report.

The modules read files of a run folder and write their results to the same folder.
"""
