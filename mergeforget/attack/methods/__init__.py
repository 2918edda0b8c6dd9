"""Attacks, one file each.

An attack is a function from a Target to a Result: ``fn(target, *, ...)``. It measures the models of
the target through ``target.measured``, which caches measurements, and judges them with
``mergeforget.attack.verdict``. To add one, write ``<name>.py`` here with a function decorated by
``@attack("<name>", source=...)``. Keyword-only arguments can be set with ``--set`` on the command
line. An attack with arguments that make it weaker than its defaults may convict a model, but does
not clear it; its trait ``strength`` declares which arguments make it weaker:

- ``more``: a smaller number;
- ``all of``: a list that lacks a value of the default;
- ``any``: none;
- not declared: any other value than the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from mergeforget.attack.result import Result
from mergeforget.registry import Registry

ATTACKS: Registry[Callable[..., Result]] = Registry("attack", __name__, "mergeforget.attacks")
attack = ATTACKS.register
Strength = Literal["more", "all of", "any", ""]
QUICK: dict[str, dict[str, Any]] = {  # attacks of the quick set and their arguments
    "exposure": {"candidates": 7},
    "logit_lens": {"layers": 4},
    "prompts": {"kinds": ["plain", "prefix"], "words": [1]},
    "formats": {"formats": ["chat", "completion", "fill-in", "json"]},
    "in_context": {},
    "quantise": {"bits": [4]},
    "sampling": {"samples": 8},
    "relearn": {"steps": 40},
}


def weaker_arguments(
    name: str, given: Mapping[str, Any], than: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the arguments that make an attack weaker.

    Args:
        given: Arguments that were given; the others have their default.
        than: Arguments to compare with; by default those of the quick set and the defaults of the
            attack, whichever are weaker.
    """
    entry = ATTACKS.get(name)
    strength = entry.traits.get("strength", {})
    defaults = {key: p.default for key, p in entry.parameters.items()}
    quick = defaults | QUICK.get(name, {})
    sets = [defaults, quick] if than is None else [defaults | dict(than)]
    return [
        key
        for key, value in (defaults | dict(given)).items()
        if all(_is_weaker(strength.get(key, ""), value, one.get(key)) for one in sets)
    ]


def _is_weaker(strength: Strength, value: Any, usual: Any) -> bool:
    """Return whether a value is weaker than the usual one, or not known to be as strong."""
    own, other = (list(one) if isinstance(one, list | tuple) else one for one in (value, usual))
    if own == other or strength == "any":
        return False
    if strength == "more" and isinstance(own, int | float) and isinstance(other, int | float):
        return own < other
    if strength == "all of" and isinstance(own, list) and isinstance(other, list):
        return not all(one in own for one in other)
    return True
