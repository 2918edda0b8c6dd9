"""Attacks, one file each.

An attack is a function from a Target to a Result: ``fn(target, *, ...)``. It measures the models of
the target through ``target.measured``, which caches measurements, and judges them with
``mergeforget.attack.verdict``. To add one, write ``<name>.py`` here with a function decorated by
``@attack("<name>", source=...)``. Keyword-only arguments can be set with ``--set`` on the command
line.
"""

from __future__ import annotations

from collections.abc import Callable

from mergeforget.attack.result import Result
from mergeforget.registry import Registry

ATTACKS: Registry[Callable[..., Result]] = Registry("attack", __name__, "mergeforget.attacks")
attack = ATTACKS.register
