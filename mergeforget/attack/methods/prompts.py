"""Prompts: does another way of asking bring the answer out?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergeforget.attack.asking import ask
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target
from mergeforget.attack.variants import KINDS, read_templates, variants
from mergeforget.errors import UnknownNameError


@attack(
    "prompts",
    source="Jin et al., RWKU, arXiv:2406.10890, adversarial probes; prefixes: Carlini et al., "
    "arXiv:2202.07646",
)
def prompts(
    target: Target,
    *,
    kinds: Sequence[str] = KINDS,
    words: Sequence[int] = (1, 3, 5),
    templates: Path | None = None,
) -> Result:
    """Ask for each answer in other words, by its beginning, and through jailbreak templates.

    Args:
        kinds: plain, paraphrase, prefix, jailbreak.
        words: number of words of the answer that a prefix gives; one prompt each.
        templates: file of jailbreaks, one a line with ``{prompt}``; None uses the built-in ones.

    Raises:
        InputError: no prompt of these kinds is left to ask.
    """
    target.need("forget")
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of prompt", kind, KINDS)
    lines = read_templates(templates) if "jailbreak" in kinds else []
    asked = [
        v for kind in kinds for row in target.forget
        for v in variants(row, kind, words=words, templates=lines)
    ]  # fmt: skip
    settings = {"kinds": list(kinds), "words": list(words), "templates": len(lines),
                "max_new_tokens": target.max_new_tokens}  # fmt: skip
    return ask(target, "prompts", asked, settings, what=f"{', '.join(kinds)} prompts")
