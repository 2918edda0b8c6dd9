"""The definition of a study: parts with steps (commands of the tool), tables, figures, claims."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError, model_validator

from mergeforget.errors import RecipeError, UsageError, suggest
from mergeforget.recipe import read_yaml
from mergeforget.train_config import RecipeSection

STUDIES = Path(__file__).parent  # the definitions are next to the modules
PLACE = re.compile(r"\{([a-z0-9-]+(?:\.base)?)\}")
OWN = ("here", "data", "study")  # this step's folder, the data sets, the study file's folder
Threads = Annotated[int | None, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class StudyStep(RecipeSection):
    """Commands that belong together; their files are written to a folder with the step's name.

    In a command, ``{here}`` is that folder, ``{NAME}`` the folder of an earlier step,
    ``{NAME.base}`` the model before unlearning in that step, ``{data}`` the folder of the data
    sets, ``{study}`` the folder of the study file, and any other name one of the ``values``.
    """

    name: Name
    commands: Annotated[list[str], Field(min_length=1)]
    at: Name | None = None  # earlier step in whose folder it runs
    minutes: Annotated[float, Field(gt=0)] = (
        1.0  # expected duration, to estimate the remaining time
    )
    after: list[Name] = []  # required steps, besides those that a command names


class Column(RecipeSection):
    """One value per row, from one source.

    Attributes:
        score: Score of the row's model: ``mia_auc``, ``knowledge/retain``,
            ``knowledge/retain/Task1``.
        candidate: Setting of the row's candidate.
        mean: Labels of columns to the left, whose values are averaged.
        reads: Path in the results of the step: ``history.over.grad_norm_max``.
        over: With ``reads``: path of the divisor.
    """

    label: str
    score: str = ""
    candidate: Literal["", "density"] = ""
    mean: list[str] = []
    reads: str = ""
    over: str = ""
    decimals: Annotated[int, Field(ge=0, le=6)] = 3

    @model_validator(mode="after")
    def _one_source(self) -> Column:
        if sum(map(bool, (self.score, self.candidate, self.mean, self.reads))) != 1:
            raise ValueError("give one of score, candidate, mean and reads")
        return self


class TableRow(RecipeSection):
    """One row of a table.

    Attributes:
        step: Step whose results are shown; several are averaged, with their standard deviation.
        model: ``over``, ``base``, a candidate, ``chosen``, or ``best METHOD``: the candidate of a
            method with the largest aggregate on the selection split.
        published: Published value by column label.
    """

    label: str
    step: Name | list[Name]
    model: str = Field("", validation_alias=AliasChoices("model", "subject"))  # the earlier key
    published: dict[str, float] = {}

    @property
    def steps(self) -> list[str]:
        """Names of the steps that the row reads."""
        return [self.step] if isinstance(self.step, str) else list(self.step)


class Claim(RecipeSection):
    """A statement about a table, judged on the published and on the measured values.

    ``largest`` and ``smallest`` compare ``row`` with ``of`` (all others if omitted); ``nearest``
    compares the distances to ``target``; ``within`` requires ``low <= row <= high``, where None is
    no bound; ``order`` requires the rows ``of`` in descending order.
    """

    text: str
    kind: Literal["largest", "smallest", "nearest", "within", "order"]
    column: str
    row: str = ""
    of: list[str] = []
    target: float = 0.5
    low: float | None = 0.0
    high: float = 1.0


class Table(RecipeSection):
    """A table of measured and published numbers, with claims about them."""

    title: str
    text: str = ""
    source: str = ""  # of the published values
    part: Literal["all", "choose", "report"] = "all"  # split of the scores
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[TableRow], Field(min_length=1)]
    claims: list[Claim] = []

    @model_validator(mode="after")
    def _labels_are_known(self) -> Table:
        columns, rows = [c.label for c in self.columns], [r.label for r in self.rows]
        for labels in (columns, rows):
            if twice := [x for x in labels if labels.count(x) > 1]:
                raise ValueError(f"the label {twice[0]!r} is given twice")
        for row in self.rows:
            _known("column", row.published, columns)
        for i, column in enumerate(self.columns):
            _known("column to the left", column.mean, columns[:i])
        for claim in self.claims:
            _known("column", [claim.column], columns)
            _known("row", [*claim.of, *([claim.row] if claim.row else [])], rows)
            if not claim.row and claim.kind != "order":
                raise ValueError(f"a claim of kind {claim.kind} needs a row")
        return self


class StudyFigure(RecipeSection):
    """A figure that ``analyze`` or ``attack`` wrote to the folder of a step."""

    step: Name
    name: str  # file name without suffix
    caption: str


class Quote(RecipeSection):
    """A sentence that the tool wrote about a step."""

    step: Name
    reads: str  # path in its results, for example chosen.sentence


class StudySection(RecipeSection):
    """One part of a study, which can be run separately."""

    name: Name
    title: str
    text: str = ""
    needs: list[str] = []  # files below the data folder; without them the part is skipped
    steps: list[StudyStep] = []
    tables: list[Table] = []
    quotes: list[Quote] = []
    figures: list[StudyFigure] = []


class StudyFile(RecipeSection):
    """The content of a study file.

    Attributes:
        like: Another study, whose parts come first and whose values are the defaults.
        pace: Expected duration relative to the steps of the other study.
        threads: See ``StudyDefinition``.
    """

    name: Name
    title: str
    text: str = ""
    threads: Threads = None
    like: str = ""
    pace: Annotated[float, Field(gt=0)] = 1.0
    values: dict[str, str] = {}
    parts: list[StudySection] = []


class StudyDefinition(RecipeSection):
    """A list of commands, and the tables and figures made from their results.

    Attributes:
        threads: Number of threads of one command; the default of the libraries when omitted. Sums
            differ in the last bits with the number of threads, so set it in a study that must give
            equal results on every machine.
    """

    name: Name
    title: str
    text: str = ""
    threads: Threads = None
    values: dict[str, str] = {}
    parts: Annotated[list[StudySection], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_fit(self) -> StudyDefinition:
        seen: list[str] = []
        for _, step in self.steps():
            if step.name in seen or step.name in (*OWN, *self.values):
                raise ValueError(f"the name {step.name!r} is given twice")
            _known("earlier step", self.used_by(step), seen)
            if step.at and self.step(step.at).at:
                raise ValueError(f"{step.name} works at {step.at}, which works at another itself")
            seen.append(step.name)
        for section in self.parts:
            _known("step", [figure.step for figure in section.figures], seen)
            _known("step", [quote.step for quote in section.quotes], seen)
            _known("step", [s for t in section.tables for r in t.rows for s in r.steps], seen)
        return self

    def steps(self) -> Iterator[tuple[StudySection, StudyStep]]:
        """Every step with its part, in order."""
        return ((section, step) for section in self.parts for step in section.steps)

    def step(self, name: str) -> StudyStep:
        """Return the step with this name."""
        return next(step for _, step in self.steps() if step.name == name)

    def commands(self, step: StudyStep) -> list[str]:
        """Return the commands of a step with the study's values; placeholders of folders remain."""
        return [self._filled(command) for command in step.commands]

    def used_by(self, step: StudyStep) -> list[str]:
        """Return the steps whose results a step reads."""
        words = [w for command in self.commands(step) for w in PLACE.findall(command)]
        named = [w.removesuffix(".base") for w in words if w not in OWN]
        return list(dict.fromkeys([*([step.at] if step.at else []), *step.after, *named]))

    def fingerprint(self, step: StudyStep) -> str:
        """Return a hash of the commands of a step and of the steps that it reads."""
        before = [self.fingerprint(self.step(name)) for name in self.used_by(step)]
        text = json.dumps([self.commands(step), before])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _filled(self, text: str) -> str:
        for _ in range(8):  # values may refer to other values
            filled = PLACE.sub(lambda m: self.values.get(m[1], m[0]), text)
            if filled == text:
                return text
            text = filled
        raise ValueError("the study's values name each other in a ring")


def load_study(name: str, values: Mapping[str, str] | None = None) -> tuple[StudyDefinition, Path]:
    """Load a packaged study or a file, with some of its values replaced.

    Returns:
        The study, and its file.

    Raises:
        RecipeError: an unknown study, key, step or value.
    """
    path = study_path(name)
    file = read_file(path)
    known = sorted(file.values)
    for key in values or {}:
        if key not in known:
            raise UsageError(
                f"The study has no value {key!r}.{suggest(key, known)} Known: {', '.join(known)}."
            )
    given = file.model_dump(exclude={"like", "pace"})
    given["values"] |= dict(values or {})
    try:
        return StudyDefinition.model_validate(given), path
    except ValidationError as error:
        faults = "\n".join(f"  {fault['msg']}" for fault in error.errors())
        raise RecipeError(f"{path} is not a valid study:\n{faults}") from error


def read_file(path: Path) -> StudyFile:
    """Read a study file, with the parts and values of the study named by ``like``."""
    file = read_yaml(path, StudyFile, what="study")
    if not file.like:
        return file
    other = read_file(study_path(file.like))
    parts = [slowed(section, file.pace) for section in other.parts]
    values = other.values | file.values
    return file.model_copy(update={"values": values, "parts": [*parts, *file.parts]})


def slowed(section: StudySection, pace: float) -> StudySection:
    """Return a part whose steps are expected to take ``pace`` times as long."""
    steps = [s.model_copy(update={"minutes": round(pace * s.minutes, 2)}) for s in section.steps]
    return section.model_copy(update={"steps": steps})


def study_path(name: str) -> Path:
    """Return the file of a study, given as a path or as the name of a packaged one."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = sorted(p.stem for p in STUDIES.glob("*.yaml"))
    if name not in known:
        raise RecipeError(
            f"There is no study {name!r}.{suggest(name, known)} Known: {', '.join(known)}. Give a "
            "file by its path, ending in .yaml."
        )
    return STUDIES / f"{name}.yaml"


def _known(what: str, names: Any, known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"there is no {what} {name!r}.{suggest(name, known)} Known: {', '.join(known)}"
            )
