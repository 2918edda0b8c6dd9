"""What a study is: parts with steps (commands of the tool), tables, figures and claims."""

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

STUDIES = Path(__file__).parent  # the definitions stand beside the modules
PLACE = re.compile(r"\{([a-z0-9-]+(?:\.base)?)\}")
OWN = ("here", "data", "study")  # this step's folder, the data sets, the study file's folder
Threads = Annotated[int | None, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]


class StudyStep(RecipeSection):
    """Commands that belong together; their files lie in a folder of the step's name.

    In a command ``{here}`` is that folder, ``{NAME}`` the folder of an earlier step,
    ``{NAME.base}`` the model that forgets there, ``{data}`` the data sets' folder, ``{study}`` the
    folder of the study file, and any other word one of the study's ``values``.
    """

    name: Name
    commands: Annotated[list[str], Field(min_length=1)]
    at: Name | None = None  # the earlier step whose folder it works in; it may read what is there
    minutes: Annotated[float, Field(gt=0)] = 1.0  # expected, for the time that is left
    after: list[Name] = []  # steps that must be done before, beside those that a command names


class Column(RecipeSection):
    """One figure of every row, from one source.

    Attributes:
        score: of the row's model: ``mia_auc``, ``knowledge/retain``, ``knowledge/retain/Task1``.
        candidate: a setting of the row's candidate.
        mean: labels of columns to the left, averaged.
        reads: a place in the step's results: ``history.over.grad_norm_max``.
        over: with ``reads``: the place to divide by.
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
    """One line of a table.

    Attributes:
        step: where it was measured; several are averaged, with their deviation.
        model: ``over``, ``base``, a candidate, ``chosen``, or ``best METHOD``: the candidate of a
            method with the largest aggregate on the selection split.
        published: column label -> figure of the source.
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
    """What a table is to show, judged on the published and on the measured figures alike.

    ``largest`` and ``smallest`` compare ``row`` with ``of`` (all others if omitted); ``nearest``
    does so by the distance to ``target``; ``within`` wants ``low <= row <= high``, where a low of
    None bounds nothing; ``order`` wants the rows ``of`` in falling order.
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
    source: str = ""  # of the published figures
    part: Literal["all", "choose", "report"] = "all"  # rows of the data that scores are of
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
    """A figure that ``analyze`` or ``attack`` drew in a step's folder."""

    step: Name
    name: str  # of the file, without its ending
    caption: str


class Quote(RecipeSection):
    """A sentence that the tool itself wrote about a step."""

    step: Name
    reads: str  # a place in its results: chosen.sentence


class StudySection(RecipeSection):
    """One part of a study, which can be run apart."""

    name: Name
    title: str
    text: str = ""
    needs: list[str] = []  # files below the data folder; without them the part is skipped
    steps: list[StudyStep] = []
    tables: list[Table] = []
    quotes: list[Quote] = []
    figures: list[StudyFigure] = []


class StudyFile(RecipeSection):
    """What a study's file holds.

    Attributes:
        like: another study, whose parts come first and whose values are those not given here.
        pace: minutes of this study for one of the other's.
        threads: see ``StudyDefinition``.
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
    """A list of commands, and what is made of their results.

    Attributes:
        threads: processor threads of one command, the libraries' default if omitted.
            Sums differ with their number in the last bits, so a study that is to give the same
            figures anywhere, however many steps run at once, names it.
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
        """The step of a name."""
        return next(step for _, step in self.steps() if step.name == name)

    def commands(self, step: StudyStep) -> list[str]:
        """A step's commands with the study's values put in; folders stay as they are named."""
        return [self._filled(command) for command in step.commands]

    def used_by(self, step: StudyStep) -> list[str]:
        """The steps whose results a step reads."""
        words = [w for command in self.commands(step) for w in PLACE.findall(command)]
        named = [w.removesuffix(".base") for w in words if w not in OWN]
        return list(dict.fromkeys([*([step.at] if step.at else []), *step.after, *named]))

    def fingerprint(self, step: StudyStep) -> str:
        """Hash of a step's commands and of those whose results it reads."""
        before = [self.fingerprint(self.step(name)) for name in self.used_by(step)]
        text = json.dumps([self.commands(step), before])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _filled(self, text: str) -> str:
        for _ in range(8):  # values may name values
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
    """A study's file, with the parts and the values of the study that it is like."""
    file = read_yaml(path, StudyFile, what="study")
    if not file.like:
        return file
    other = read_file(study_path(file.like))
    parts = [slowed(section, file.pace) for section in other.parts]
    values = other.values | file.values
    return file.model_copy(update={"values": values, "parts": [*parts, *file.parts]})


def slowed(section: StudySection, pace: float) -> StudySection:
    """A part whose steps are expected to take ``pace`` times as long."""
    steps = [s.model_copy(update={"minutes": round(pace * s.minutes, 2)}) for s in section.steps]
    return section.model_copy(update={"steps": steps})


def study_path(name: str) -> Path:
    """The file of a study: a path, or the name of a packaged one."""
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
