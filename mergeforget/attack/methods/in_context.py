"""In-context examples: retained rows before the question."""

from __future__ import annotations

from mergeforget.attack.asking import ask
from mergeforget.attack.guessing import examples_of
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target
from mergeforget.attack.variants import Variant


@attack(
    "in_context",
    source="Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, arXiv:2402.16835, "
    "in-context relearning",
)
def in_context(target: Target, *, shots: int = 3) -> Result:
    """Put retained rows of other people before the prompt of the forget row.

    Args:
        shots: Number of retained rows before each prompt, each about another person or document.
    """
    target.need("forget", "retain")
    front = examples_of(target, shots)
    asked = [Variant(r, f"{shots} examples", front + r.input, r.output) for r in target.forget]
    settings = {"shots": shots, "max_new_tokens": target.max_new_tokens}
    return ask(target, "in_context", asked, settings, what="prompts after retained examples")
