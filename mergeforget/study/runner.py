"""Runs the steps of a study: each once, in order, resumed where it was stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.console import duration, say
from mergeforget.errors import InputError, Interrupted, NumericError, UnknownNameError
from mergeforget.files import read_json, write_json, write_text
from mergeforget.run import Run, now
from mergeforget.study.definition import Section, Step, Study
from mergeforget.study.gather import gather
from mergeforget.study.tool import call, circumstances, failed, words_of

RESUMABLE = ("train", "train-pair")  # these want --resume; the others go on by themselves
LISTS = re.compile(r"\[[-+0-9.eE,\s]+\]")


@dataclass(frozen=True)
class Places:
    """Where a study finds and leaves its files.

    Attributes:
        out: ``runs/STEP`` and ``steps/STEP.json``, which says how far a step is.
        results: ``STEP.json`` with its figures, and the pictures: what the document is made of.
        data: the data sets' folder.
        file: the study's file.
    """

    out: Path
    results: Path
    data: Path
    file: Path

    def folder(self, step: Step) -> Path:
        """Where a step works: in the folder of its name, or of the step it is at."""
        return self.out / "runs" / (step.at or step.name)

    def folders(self, study: Study, step: Step) -> dict[str, Path]:
        """What the names in a step's commands stand for."""
        steps = {other.name: self.folder(other) for _, other in study.steps()}
        own = {"here": self.folder(step), "data": self.data, "study": self.file.parent}
        return steps | own

    def mark(self, step: str) -> Path:
        return self.out / "steps" / f"{step}.json"


@dataclass
class Clock:
    """What was spent and what is left, from the minutes that each step is expected to take."""

    limit: float | None = None  # seconds
    began: float = field(default_factory=time.monotonic)
    expected: float = 0.0  # of what ended, in seconds
    spent: float = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def ended(self, step: Step, seconds: float) -> None:
        self.expected += 60 * step.minutes
        self.spent += seconds

    def estimate(self, steps: Sequence[Step]) -> float:
        """Seconds for these steps, at the speed seen so far."""
        pace = self.spent / self.expected if self.expected else 1.0
        return pace * sum(60 * step.minutes for step in steps)

    def left(self) -> float | None:
        return None if self.limit is None else max(0.0, self.limit - self.elapsed)


def run_study(
    study: Study,
    places: Places,
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    again: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Run what is not done yet.

    Args:
        only: parts to run, with the steps of others that they read; all by default.
        minutes: stop after so many; what was begun goes on with the next call.
        again: steps to throw away and run anew, with those that read them.
        given: values of the study that were replaced, to be told in the document.

    Returns:
        Step -> ``done``, ``failed`` (its training diverged), ``waiting``, or why it is left out.

    Raises:
        UnknownNameError: there is no such part or step.
        MergeforgetError: a command failed in a way that must be mended.
        Interrupted: told to end; what was done is kept.
    """
    names = [step.name for _, step in study.steps()]
    for kind, asked, known in (
        ("part", only, [p.name for p in study.parts]),
        ("step", again, names),
    ):
        for name in asked:
            if name not in known:
                raise UnknownNameError(kind, name, known)
    with Run(places.out).lock(), _told_to_end():
        for name in [n for n in names if {n, *_readings(study, n)} & set(again)]:
            places.mark(name).unlink(missing_ok=True)
            (places.results / f"{name}.json").unlink(missing_ok=True)
            if study.step(name).at is None:
                shutil.rmtree(places.folder(study.step(name)), ignore_errors=True)
        write_json(
            places.results / "study.json",
            {"given": dict(given or {}), "study": study.model_dump(mode="json")},
        )
        return _run_steps(study, places, only, Clock(None if minutes is None else 60 * minutes))


def wanted_steps(study: Study, only: Sequence[str]) -> list[tuple[Section, Step]]:
    """Steps of these parts and those they read, in order."""
    every = list(study.steps())
    names = {s.name for section, s in every if not only or section.name in only}
    for _, step in reversed(every):
        names |= set(study.used_by(step)) if step.name in names else set()
    return [(section, step) for section, step in every if step.name in names]


def _readings(study: Study, name: str) -> set[str]:
    """Every step that a step reads, and those that they read."""
    direct = study.used_by(study.step(name))
    return {*direct, *(inner for one in direct for inner in _readings(study, one))}


def _run_steps(study: Study, places: Places, only: Sequence[str], clock: Clock) -> dict[str, str]:
    steps = wanted_steps(study, only)
    states = {step.name: state_of(study, places, section, step) for section, step in steps}
    facts = None
    for i, (_, step) in enumerate(steps):
        if states[step.name] != "waiting":
            continue
        missing = [n for n in study.used_by(step) if states[n] != "done"]
        if missing:
            states[step.name] = f"left out: it reads {missing[0]}"
            continue
        todo = [s for _, s in steps[i:] if states[s.name] == "waiting"]
        left = clock.left()
        if left is not None and left < 1:
            break
        say(f"[{i + 1}/{len(steps)}] {step.name}; {duration(clock.elapsed)} so far, "
            f"about {duration(clock.estimate(todo))} left")  # fmt: skip
        facts = facts or circumstances()
        if not _run_step(study, places, step, clock, facts):
            say("The time is spent. The same command goes on.")
            break
        states[step.name] = state_of(study, places, None, step)
    return states


def state_of(study: Study, places: Places, section: Section | None, step: Step) -> str:
    """``done``, ``failed``, ``waiting``, or why the step is left out."""
    mark = _mark(places, step)
    if mark.get("fingerprint") == study.fingerprint(step) and mark["state"] != "running":
        return str(mark["state"])
    absent = [n for n in section.needs if not (places.data / n).exists()] if section else []
    return f"left out: there is no {places.data / absent[0]}" if absent else "waiting"


def _run_step(
    study: Study, places: Places, step: Step, clock: Clock, facts: dict[str, Any]
) -> bool:
    """Run the commands that are not done; False where the time did not suffice."""
    mark = begin(study, places, step)
    commands = study.commands(step)
    folders = places.folders(study, step)
    for i in range(len(mark["printed"]), len(commands)):
        words = words_of(commands[i], folders)
        if words[0] in RESUMABLE and (places.folder(step) / "recipe.yaml").exists():
            words.append("--resume")
        start = time.monotonic()
        code, printed = call(words, clock.left())
        mark["seconds"] += time.monotonic() - start
        write_json(places.mark(step.name), mark)
        if code is None:
            return False
        if code == NumericError.exit_code:  # a finding: the training diverged
            mark["state"] = "failed"
            break
        if code:
            raise failed(step, commands[i], code)
        mark["printed"].append(printed)
        write_json(places.mark(step.name), mark)
    else:
        mark["state"] = "done"
    clock.ended(step, mark["seconds"])
    write_result(study, places, step, mark, facts)
    write_json(places.mark(step.name), mark)
    return True


def begin(study: Study, places: Places, step: Step) -> dict[str, Any]:
    """The mark of a step: the one it was stopped with, or a new one."""
    known = study.fingerprint(step)
    mark = _mark(places, step)
    if mark.get("fingerprint") == known and mark["state"] == "running":
        return mark
    folder = places.folder(step)
    if mark and step.at is None:  # what other commands made
        shutil.rmtree(folder, ignore_errors=True)
    elif step.at is None and folder.exists():
        raise InputError(
            f"{folder} is there already and was not made by this study. Move it away, or choose "
            "another folder with --out."
        )
    mark = {"fingerprint": known, "state": "running", "seconds": 0.0, "printed": []}
    write_json(places.mark(step.name), mark)
    return mark


def write_result(
    study: Study, places: Places, step: Step, mark: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Keep a step's figures, and copy its pictures."""
    folder = places.folder(step)
    commands = study.commands(step)
    run = {"time": now(), "seconds": round(mark["seconds"], 1), "load": os.getloadavg()[0]}
    result = {
        "step": step.name,
        "state": mark["state"],
        "fingerprint": mark["fingerprint"],
        "commands": commands,
        "measured": gather(folder, list(zip(commands, mark["printed"], strict=False))),
        "run": {**run, **facts},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(places.results / f"{step.name}.json", LISTS.sub(on_one_line, text) + "\n")
    for section in study.parts:
        for figure in section.figures:
            picture = folder / "analysis" / f"{figure.name}.svg"
            if figure.step == step.name and picture.exists():
                shutil.copyfile(picture, places.results / f"{step.name}-{figure.name}.svg")


def on_one_line(numbers: re.Match[str]) -> str:
    """A list of numbers as JSON writes it without indents."""
    return " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]")


def _mark(places: Places, step: Step) -> dict[str, Any]:
    path = places.mark(step.name)
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Turn SIGTERM into an error, so that the command in flight is ended too."""

    def stop(*_: object) -> None:
        raise Interrupted("Told to end. What was done is kept; the same command goes on.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
