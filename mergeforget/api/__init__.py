"""The functions behind the commands: what ``import mergeforget`` exports.

Modules of this folder import the layers below inside their functions, so that importing them stays
cheap.
"""
