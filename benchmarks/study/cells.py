"""Read the values of a study's tables from the results of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from benchmarks.study.definition import Column, StudyDefinition, Table, TableRow
from benchmarks.study.gather import full_key
from mergeforget.analysis.evidence import DENSITY
from mergeforget.errors import InputError
from mergeforget.files import read_json_object, reading

Interval = tuple[float, float]
Results = Mapping[str, dict[str, Any]]  # step -> what steps.write_result wrote
NOT_RUN, DIVERGED, NOTHING = "not run", "diverged", "–"


class Figure(NamedTuple):
    """One value of one step; see ``StudyCell``."""

    value: float
    n: int = 0
    interval: Interval | None = None


@dataclass(frozen=True)
class StudyCell:
    """One value of a table row, from one step or averaged over several.

    Attributes:
        values: Value by step, for the steps that have it.
        n: Number of rows of data behind the value, where the score states it.
        why: Text to show instead of a missing value.
        waiting: Steps of the row that were not run yet.
        interval: 95 % bootstrap interval of the value of a single step.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    n: int = 0
    why: str = NOTHING
    waiting: int = 0
    interval: Interval | None = None

    @property
    def value(self) -> float | None:
        """The value, or the mean over the steps that have it."""
        return fmean(self.values.values()) if self.values else None

    @property
    def whole(self) -> float | None:
        """The value; None until all steps of the row were run, since some of them prove nothing."""
        return None if self.waiting else self.value

    def text(self, decimals: int) -> str:
        """``0.501``, or ``0.501 ± 0.020 (3)``: mean, standard deviation and count.

        While steps are missing, the count is ``(2 of 3)``.
        """
        if self.value is None:
            return self.why
        shown = f"{self.value:.{decimals}f}"
        count = len(self.values)
        if count == 1 and not self.waiting:
            return shown
        spread = f" ± {stdev(self.values.values()):.{decimals}f}" if count > 1 else ""
        of = f" of {count + self.waiting}" if self.waiting else ""
        return f"{shown}{spread} ({count}{of})"


@dataclass(frozen=True)
class Found:
    """A study with its replaced values, and the results of its steps.

    Attributes:
        given: Values that were replaced on the command line.
    """

    study: StudyDefinition
    given: Mapping[str, str]
    results: dict[str, dict[str, Any]]

    @property
    def command(self) -> str:
        """The command that runs the missing steps."""
        values = "".join(f" --value {name}={value}" for name, value in self.given.items())
        return f"python -m benchmarks.study run {self.study.name}{values}"


def read_results(folder: Path) -> Found:
    """Read the results in a folder, except those of commands that are not in the study.

    Raises:
        InputError: The folder contains no study.
    """
    path = folder / "study.json"
    if not path.exists():
        raise InputError(
            f"{folder} contains no results of a study (no study.json). "
            f"`python -m benchmarks.study run NAME --results {folder}` makes them."
        )
    values = read_json_object(path)
    with reading(path):
        study = StudyDefinition.model_validate(values["study"])
        given = values["given"]
    results = {}
    for _, step in study.steps():
        file = folder / f"{step.name}.json"
        result = read_json_object(file) if file.exists() else {}
        if result.get("fingerprint") == study.fingerprint(step):
            results[step.name] = result
    return Found(study, given, results)


def cells_of(table: Table, row: TableRow, results: Results) -> dict[str, StudyCell]:
    """Return the cells of a row by the label of their column."""
    found: dict[str, StudyCell] = {}
    for column in table.columns:
        every = {step: _figure(table, row, column, results.get(step), found) for step in row.steps}
        figures = {step: v for step, v in every.items() if isinstance(v, Figure)}
        values = {step: figure.value for step, figure in figures.items()}
        n = min((figure.n for figure in figures.values()), default=0)
        intervals = [figure.interval for figure in figures.values()]
        words = [v for v in every.values() if isinstance(v, str)]
        why = words[0] if words else NOTHING
        interval = intervals[0] if len(row.steps) == len(intervals) == 1 else None
        found[column.label] = StudyCell(values, n, why, words.count(NOT_RUN), interval)
    return found


def published(table: Table) -> dict[str, dict[str, float | None]]:
    """Return the published values by column label and row label."""
    return {c.label: {r.label: r.published.get(c.label) for r in table.rows} for c in table.columns}


def run_model_of(row: TableRow, measured: Mapping[str, Any]) -> str:
    """Return the scored model of a row; empty if there is none."""
    scores = measured.get("scores", {})
    if row.model == "chosen":
        return str(measured.get("chosen", {}).get("name", ""))
    if row.model.startswith("best "):
        return _best(row.model.removeprefix("best "), scores)
    if not row.model and len(scores) == 1:
        return str(next(iter(scores)))
    return row.model


def _figure(
    table: Table,
    row: TableRow,
    column: Column,
    result: dict[str, Any] | None,
    left: dict[str, StudyCell],
) -> Figure | str:
    """Return the value of one step, or the reason why there is none."""
    if result is None:
        return NOT_RUN
    if result["state"] == "failed" and not column.reads:
        return DIVERGED
    measured = result["measured"]
    if column.mean:
        return _mean([left[label] for label in column.mean], result["step"])
    if column.reads:
        return _ratio(measured, column)
    model = run_model_of(row, measured)
    if column.candidate:
        named = DENSITY.match(model)
        return Figure(float(named["density"])) if named else NOTHING
    key = full_key(column.score)
    part = "all" if key.startswith("mmlu/") else table.part  # its questions are in neither split
    score = measured.get("scores", {}).get(model, {}).get(part, {}).get(key)
    if not score:
        return NOTHING
    value, n, *interval = score
    return Figure(value, n, (interval[0], interval[1]) if interval else None)


def _mean(cells: Sequence[StudyCell], step: str) -> Figure | str:
    """Return the mean of several values of one step.

    Its interval has the means of their bounds as bounds, which covers at least 95 % whether or not
    the values are correlated.
    """
    known = [v for cell in cells if (v := cell.values.get(step)) is not None]
    if len(known) < len(cells):
        return NOTHING
    spans = [cell.interval for cell in cells if cell.interval is not None]
    if len(spans) < len(cells):
        return Figure(fmean(known))
    lows, highs = zip(*spans, strict=True)
    return Figure(fmean(known), interval=(fmean(lows), fmean(highs)))


def _ratio(measured: Mapping[str, Any], column: Column) -> Figure | str:
    value, by = at(measured, column.reads), at(measured, column.over) if column.over else 1.0
    numbers = isinstance(value, int | float) and isinstance(by, int | float)
    return Figure(value / by) if numbers and by else NOTHING


def at(values: Any, place: str) -> Any:
    """Return the value at a path such as ``history.over.steps``; ``printed.0.trained`` indexes a
    list.
    """
    for key in place.split("."):
        if isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        elif isinstance(values, dict):
            values = values.get(key)
        else:
            return None
    return values


def _best(method: str, scores: Mapping[str, Any]) -> str:
    """Return the candidate of a method with the largest aggregate on the selection split."""
    key = full_key("aggregate")
    found = {
        name: parts["choose"][key][0]
        for name, parts in sorted(scores.items())
        if name.split("-")[0] == method and key in parts.get("choose", {})
    }
    return max(found, key=lambda name: found[name]) if found else ""
