"""Relearning on unrelated text: fine-tuning on general knowledge."""

from __future__ import annotations

from mergeforget.attack.methods import attack
from mergeforget.attack.methods.relearn import by_training
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target
from mergeforget.attack.tuning import Tuning


@attack(
    "relearn_unrelated",
    source="Lucki et al., An Adversarial Perspective on Machine Unlearning for AI Safety, "
    "arXiv:2409.18025 (fine-tuning on unrelated data); Hu et al., arXiv:2406.13356",
    strength={"steps": "more", "rank": "more"},
)
def relearn_unrelated(
    target: Target,
    *,
    steps: int = 100,
    learning_rate: float = 2e-4,
    batch: int = 4,
    rank: int = 16,
    full: bool = False,
) -> Result:
    """Fine-tune on general text without forget rows, and measure all forget rows.

    Args:
        rank: Rank of the LoRA; ``full`` trains all weights instead.
    """
    tuning = Tuning(steps, learning_rate, batch, rank, full, target.seed)
    return by_training(target, "relearn_unrelated", "unrelated", None, tuning)
