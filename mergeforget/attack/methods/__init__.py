"""Attacks, one file each.

An attack is a function from a Target to a Result: ``fn(target, *, ...)``. It measures the models of
the target through ``target.measured``, which keeps what was measured, and judges the figures by
``mergeforget.attack.verdict``. To add one, write ``<name>.py`` here with a function decorated by
``@attack("<name>", source=...)``; keyword-only arguments are what the command line may set, for
which ``commands/attack.py`` needs an option of the same name. The folder is the list.
"""

from __future__ import annotations

from collections.abc import Callable

from mergeforget.attack.result import Result
from mergeforget.registry import Registry

ATTACKS: Registry[Callable[..., Result]] = Registry("attack", __name__, "mergeforget.attacks")
attack = ATTACKS.register
