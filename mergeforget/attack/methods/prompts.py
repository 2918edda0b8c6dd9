"""Prompts: paraphrases, answer prefixes and jailbreaks."""

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
    strength={"kinds": "all of", "words": "all of", "templates": "any"},
)
def prompts(
    target: Target,
    *,
    kinds: Sequence[str] = KINDS,
    words: Sequence[int] = (1, 3, 5),
    templates: Path | None = None,
) -> Result:
    """Ask for each answer with paraphrases, with its first words, and with jailbreak templates.

    Args:
        kinds: plain, paraphrase, prefix, jailbreak.
        words: Numbers of answer words in a prefix; one prompt each.
        templates: File of jailbreaks, one per line with ``{prompt}``; None uses the built-in ones.

    Raises:
        InputError: There is no prompt of these kinds.
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
