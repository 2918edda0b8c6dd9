"""Scores, their files, and their aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mergeforget.errors import InputError
from mergeforget.files import read_lines, write_jsonl
from mergeforget.parsing import plain_name

if TYPE_CHECKING:
    import numpy as np

Better = Literal["higher", "lower", "nearer"]  # nearer: to ``target``


@dataclass(frozen=True)
class Score:
    """A measured score.

    Attributes:
        metric: Name, for example ``regurgitation``, ``knowledge``, ``mia_auc``, ``aggregate``.
        split: Data: forget, retain, holdout, mia, mmlu, or all.
        value: Value in the unit of the metric; shares and scores are in [0, 1].
        better: Better direction; ``nearer`` means nearer to ``target``.
        n: Number of rows.
        task: Task, for example Task1; empty for all tasks.
        part: ``choose`` is the selection split, ``report`` the report split, ``all`` both.
        interval: 95 % interval (low, high), if any.
        chance: Expected value of guessing, if defined.
        target: Best value if ``better`` is ``nearer``.
        definition: Versioned name of the exact formula, for example ``truth-ratio@2``.
        by_variant: Value by prompt variant (raw, chat), if there are several; ``value`` is then the
            worst case.
        subjects: Number of people or documents, if counted.
        draws: Values over resampled rows; not stored in files.
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
    by_variant: dict[str, float] | None = field(default=None, compare=False)
    subjects: int = 0
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without defaults."""
        fields = {n: f for n, f in self.__dataclass_fields__.items() if n != "draws"}
        return {n: v for n, f in fields.items() if (v := getattr(self, n)) != f.default}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Score:
        """Create a score from ``to_dict``; other keys are ignored.

        Raises:
            TypeError: A key is missing, or a value has another type.
        """
        if "ways" in values:  # name of ``by_variant`` in files of earlier versions
            values = {"by_variant": values["ways"], **values}
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        if known.get("interval") is not None:
            known["interval"] = tuple(known["interval"])
        score = cls(**known)
        _check_types(score)
        return score


def read_scores(path: Path, part: str | None = None) -> dict[str, list[Score]]:
    """Read ``scores.jsonl``: the scores of each model, in the order of the file.

    If a score occurs twice, the last line wins. A last line that was cut off by a kill is
    ignored; a missing file has no scores.

    Args:
        part: ``choose``, ``report`` or ``all``; None reads every part.

    Raises:
        InputError: Another line is damaged or is not a score; the message names the line.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "scores.jsonl"
    >>> line = '{"model": "over", "metric": "mia_auc", "split": "mia", "better": "nearer", "n": 8, '
    >>> _ = file.write_text(line + '"value": 0.3}\\n' + line + '"value": 0.4}\\n' + line)
    >>> [score.value for score in read_scores(file)["over"]]
    [0.4]
    """
    latest: dict[tuple[str, ...], Score] = {}
    for number, row in read_lines(path):
        model = row.get("model", row.get("subject"))  # "subject" in files of earlier versions
        try:
            score = Score.from_dict(row)
            if not isinstance(model, str):
                raise TypeError("a score needs a model")
            plain_name(model, f"{path}, line {number},")
        except TypeError as error:
            raise InputError(
                f"{path}, line {number} is not a score: {error}. Restore the file, or delete it "
                "and run `mergeforget evaluate` and `mergeforget search` again."
            ) from error
        if part is None or score.part == part:
            latest[model, score.metric, score.split, score.task, score.part] = score
    scores: dict[str, list[Score]] = {}
    for (model, *_), score in latest.items():
        scores.setdefault(model, []).append(score)
    return scores


def _check_types(score: Score) -> None:
    names = (score.metric, score.split, score.task, score.part, score.definition)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("metric, split, task, part and definition are texts")
    if score.better not in get_args(Better):
        raise TypeError(f"better is {str(score.better)[:40]!r}, not one of {get_args(Better)}")
    counts = (score.n, score.subjects)
    if any(isinstance(x, bool) or not isinstance(x, int) for x in counts):
        raise TypeError("n and subjects are integers")
    numbers = [x for x in (score.chance, score.target) if x is not None]
    if not all(map(_is_number, (score.value, *numbers))):
        raise TypeError("value, chance and target are numbers")
    pair, variants = score.interval, score.by_variant
    if pair is not None and (len(pair) != 2 or not all(map(_is_number, pair))):
        raise TypeError("an interval is two numbers")
    if variants is not None and not (
        isinstance(variants, dict) and all(map(_is_number, variants.values()))
    ):
        raise TypeError("by_variant maps names to numbers")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_scores(path: Path, scores: Mapping[str, Sequence[Score]]) -> None:
    """Write the scores of each model atomically, one line per score."""
    write_jsonl(
        path,
        [{"model": model, **score.to_dict()} for model, every in scores.items() for score in every],
    )


def find(
    scores: Iterable[Score], metric: str, split: str, *, task: str = "", part: str = "all"
) -> Score | None:
    """Return the score with a metric, split, task and part, or None."""
    wanted = (metric, split, task, part)
    return next((s for s in scores if (s.metric, s.split, s.task, s.part) == wanted), None)


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean, n / sum(1 / value); 0 if a value is 0 or there are none.

    Source: SemEval-2025 Task 4, which uses scipy.stats.hmean.
    """
    if not values or min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / v for v in values)


def mia_score(auc: float) -> float:
    """Return ``1 - 2 |auc - 0.5|``: 1 at chance, 0 if members and non-members are separable.

    Source: SemEval-2025 Task 4, evaluation script.
    """
    return 1 - 2 * abs(auc - 0.5)
