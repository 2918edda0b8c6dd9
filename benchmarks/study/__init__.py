"""A study: commands of the tool, run in order and resumed, and the document their figures make."""
