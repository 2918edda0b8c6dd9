"""What an attack found, and where it is kept: NAME.json and NAME.csv, a result a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergeforget.errors import InputError
from mergeforget.files import read_json_object, write_json, write_text

Finding = Literal["traces", "none found", "undecided"]


@dataclass(frozen=True)
class Result:
    """What one attack found in one model.

    Attributes:
        attack: its name.
        model: the model that was attacked.
        finding: ``traces`` of the data, ``none found``, or too little to say.
        verdict: what the figures mean for the claim that the data is gone, in words.
        rows: the figures, flat; ``model`` is the attacked one, ``before`` or ``control``.
        figures: those that the verdict rests on, with the thresholds.
        settings: arguments of the attack, seed and names of the models compared.
        examples: what a reader may want to see, such as the prompts that leaked.
    """

    attack: str
    model: str
    finding: Finding
    verdict: str
    rows: list[dict[str, Any]]
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def write_result(folder: Path, result: Result) -> list[Result]:
    """Put a result into ``folder/NAME.json``, in the place of an older one of the same model.

    Returns:
        Every result of that attack, this one among them.
    """
    path = folder / f"{result.attack}.json"
    others = [r for r in read_results(folder, result.attack) if r.model != result.model]
    every = [*others, result]
    write_json(path, {"attack": result.attack, "results": [r.to_dict() for r in every]})
    write_text(path.with_suffix(".csv"), _csv(every))
    return every


def read_results(folder: Path, attack: str) -> list[Result]:
    """Every result of an attack, a model each; none before the first.

    Raises:
        InputError: the file is no JSON.
    """
    path = folder / f"{attack}.json"
    if not path.is_file():
        return []
    try:
        return [Result(**_renamed(values)) for values in read_json_object(path)["results"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}. Delete it and attack again.") from error


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a result; files of earlier versions call the model "subject"."""
    found = dict(values)
    if "subject" in found:
        found["model"] = found.pop("subject")
    return found


def _csv(results: Sequence[Result]) -> str:
    rows = [{"attacked": r.model, **row} for r in results for row in r.rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
