"""Results of attacks, stored in NAME.json and NAME.csv with one result per model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mergeforget.errors import InputError
from mergeforget.files import read_json_object, replacing, write_json, write_text

Finding = Literal["traces", "none found", "undecided", "no power", "no control"]


@dataclass(frozen=True)
class Result:
    """The result of one attack on one model.

    Attributes:
        attack: Name of the attack.
        model: Name of the attacked model.
        finding: ``traces`` of the data; ``none found``; ``undecided``; ``no power`` if the attack
            does not find the data in the model before unlearning either; ``no control``.
        verdict: Sentence on the consequences for the claim that the data is gone.
        rows: Measured values, flat; ``model`` is the attacked one, ``before`` or ``control``.
        figures: Evidence for the verdict: values, intervals, p-values.
        settings: Arguments of the attack, seed, and names of the compared models.
        examples: Every leak, with its row.
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
    """Write a result to ``folder/NAME.json``, replacing an earlier one of the same model.

    An earlier result on the same weights and data is kept if it found traces and this one did not,
    or if it is undecided and this one is weaker or has no power or no control.

    Returns:
        All results of that attack; the last one is of this model.
    """
    path = folder / f"{result.attack}.json"
    every = read_results(folder, result.attack)
    others = [r for r in every if r.model != result.model]
    earlier = [r for r in every if r.model == result.model and _outweighs(r, result)]
    results = [*others, *(earlier[-1:] or [result])]
    write_json(path, {"attack": result.attack, "results": [r.to_dict() for r in results]})
    write_text(path.with_suffix(".csv"), _csv(results))
    return results


def _outweighs(earlier: Result, later: Result) -> bool:
    """Return whether an earlier result of the same attack and model remains the stronger evidence.

    Files of earlier versions do not record the base and the data.
    """
    from mergeforget.attack.methods import weaker_arguments

    one, other = earlier.settings, later.settings
    if any(one.get(key, "") != other.get(key, "") for key in ("weights", "base", "data")):
        return False
    if earlier.finding == "traces":
        return later.finding != "traces"
    if earlier.finding != "undecided" or later.finding in ("traces", "undecided"):
        return False
    fewer = (other.get("forget_rows") or [0])[0] < (one.get("forget_rows") or [0])[0]
    given, before = (settings.get("given") or {} for settings in (other, one))
    weaker = fewer or weaker_arguments(earlier.attack, given, before)
    return bool(weaker) or later.finding in ("no power", "no control")


def write_answers(folder: Path, attack: str, model: str, rows: list[dict[str, Any]]) -> str:
    """Write every prompt and completion of an attack as CSV and Parquet.

    Args:
        rows: One row per model, prompt and sample.

    Returns:
        Path of the CSV file relative to ``folder``; the Parquet file differs in its suffix.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "answers" / f"{attack}-{model}.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    with replacing(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return f"answers/{path.name}"


def write_verdict(folder: Path, model: str, verdict: dict[str, Any]) -> None:
    """Write the verdict on one model to ``folder/verdict.json``."""
    path = folder / "verdict.json"
    verdicts = read_json_object(path) if path.is_file() else {}
    write_json(path, verdicts | {model: verdict})


def read_results(folder: Path, attack: str) -> list[Result]:
    """Read all results of an attack, one per model; empty if it has not been run.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / f"{attack}.json"
    if not path.is_file():
        return []
    try:
        results = [Result(**_renamed(values)) for values in read_json_object(path)["results"]]
        for one in results:
            _check_types(one)
        return results
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: {error!r}. Delete it and run the attack again."
        ) from error


def _check_types(result: Result) -> None:
    texts = (result.attack, result.model, result.finding, result.verdict)
    lists = (result.rows, result.examples)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("attack, model, finding and verdict are texts")
    if result.finding not in get_args(Finding):
        raise ValueError(f"finding is {result.finding!r}")
    if not all(isinstance(x, list) and all(isinstance(r, dict) for r in x) for x in lists):
        raise TypeError("rows and examples are lists of objects")
    if not isinstance(result.figures, dict) or not isinstance(result.settings, dict):
        raise TypeError("figures and settings are objects")
    if not isinstance(result.settings.get("weights", ""), str):
        raise TypeError("the hash of the attacked weights is not text")
    for row in result.rows:
        if not isinstance(row.get("model"), str):
            raise TypeError("a row has no model")
        if not all(isinstance(value, str | int | float | None) for value in row.values()):
            raise TypeError("a row has a value that is neither text nor a number")


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Rename a key: files of earlier versions call the model "subject"."""
    renamed = dict(values)
    if "subject" in renamed:
        renamed["model"] = renamed.pop("subject")
    return renamed


def _csv(results: Sequence[Result]) -> str:
    rows = [{"attacked": r.model, **row} for r in results for row in r.rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
