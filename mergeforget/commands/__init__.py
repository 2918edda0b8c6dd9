"""The commands, one file each.

To add one, write ``<name>.py`` here with a click command called ``command``. No other module needs
an edit. Heavy imports go inside the function, so that ``mergeforget --help`` remains fast.
"""
