"""What something scored, and how scores become one number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Better = Literal["higher", "lower", "nearer"]  # nearer: to ``target``


@dataclass(frozen=True)
class Score:
    """One measured figure.

    Attributes:
        metric: for example ``regurgitation``, ``knowledge``, ``mia_auc``, ``aggregate``.
        split: the data it was measured on: forget, retain, holdout, mia, mmlu, or all.
        value: in the metric's unit; shares and scores are in [0, 1].
        better: which direction is better; ``nearer`` means nearer to ``target``.
        n: rows it was computed from.
        task: Task1, ...; empty over all tasks.
        part: ``choose`` and ``report`` are the disjoint halves of a search; ``all`` is both.
        interval: 95 % interval (low, high), where there is one.
        chance: what guessing gives, where that means something.
        target: what is best where better is ``nearer``.
        definition: versioned name of the exact formula, for example ``truth-ratio@2``.
        draws: the value over resampled rows, where it was just computed; not kept in files.
    """

    metric: str
    split: str
    value: float
    better: Better
    n: int
    task: str = ""
    part: str = "all"
    interval: tuple[float, float] | None = None
    chance: float | None = None
    target: float | None = None
    definition: str = ""
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, those at their default left out."""
        fields = {n: f for n, f in self.__dataclass_fields__.items() if n != "draws"}
        return {n: v for n, f in fields.items() if (v := getattr(self, n)) != f.default}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Score:
        """The inverse of ``to_dict``; other keys are left out."""
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        if known.get("interval") is not None:
            known["interval"] = tuple(known["interval"])
        return cls(**known)


def find(
    scores: Iterable[Score], metric: str, split: str, *, task: str = "", part: str = "all"
) -> Score | None:
    """The score with that metric, split, task and part, or None."""
    wanted = (metric, split, task, part)
    return next((s for s in scores if (s.metric, s.split, s.task, s.part) == wanted), None)


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / value); 0 where a value is 0 or there is none.

    Source: SemEval-2025 Task 4, which uses scipy.stats.hmean.
    """
    if not values or min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / v for v in values)


def mia_score(auc: float) -> float:
    """``1 - 2 |auc - 0.5|``: 1 at chance, 0 where members and non-members are told apart.

    Source: SemEval-2025 Task 4, evaluation script.
    """
    return 1 - 2 * abs(auc - 0.5)
