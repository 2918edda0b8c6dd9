"""Run one step of a study, record its progress, and write its results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from benchmarks.study.definition import StudyDefinition, StudySection, StudyStep
from benchmarks.study.gather import gather
from benchmarks.study.places import Clock, Places
from benchmarks.study.tool import call, failed, words_of
from mergeforget.errors import InputError, NumericError, RecipeError
from mergeforget.files import read_json_object, write_json, write_text
from mergeforget.recipe import load_recipe
from mergeforget.run import now

RESUMABLE = ("train", "train-pair")  # these need --resume; the others resume by themselves
LISTS = re.compile(r"\[[-+0-9.eE,\s]+\]")
NAMED = re.compile(r"--recipe ([\w-]+)")
NOTES = {"notes", "source", "published"}


def state_of(
    study: StudyDefinition, places: Places, section: StudySection | None, step: StudyStep
) -> str:
    """Return ``done``, ``failed``, ``waiting``, or the reason why the step is skipped."""
    mark = _mark(places, step)
    if (
        mark.get("fingerprint") == study.fingerprint(step)
        and mark["state"] != "running"
        and mark.get("recipes", {}).items() <= recipes_of(study.commands(step)).items()
    ):
        return str(mark["state"])
    absent = [n for n in section.needs if not (places.data / n).exists()] if section else []
    return f"skipped: there is no {places.data / absent[0]}" if absent else "waiting"


def recipes_of(commands: Sequence[str]) -> dict[str, str]:
    """Return hashes of the recipes that commands name, without their notes.

    A step whose recipe changed is run again; a comparison of the commands would not detect that.
    """
    found = {}
    for name in dict.fromkeys(n for command in commands for n in NAMED.findall(command)):
        with suppress(RecipeError):  # the command reports it
            text = load_recipe(name).model_dump_json(exclude=NOTES, exclude_defaults=True)
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def run_step(
    study: StudyDefinition, places: Places, step: StudyStep, clock: Clock, facts: dict[str, Any]
) -> float | None:
    """Run the commands of a step that are not done.

    Args:
        facts: Versions and machine, stored with the result.

    Returns:
        Duration of the step in seconds; None if the time limit was exceeded.
    """
    mark = begin(study, places, step)
    commands = study.commands(step)
    folders = places.folders(study, step)
    for i in range(len(mark["printed"]), len(commands)):
        words = words_of(commands[i], folders)
        if words[0] in RESUMABLE and (places.folder(step) / "recipe.yaml").exists():
            words.append("--resume")
        start = time.monotonic()
        try:
            code, printed = call(words, clock.left(), study.threads)
        finally:  # also for an interrupted command
            mark["seconds"] += time.monotonic() - start
            write_json(places.mark(step.name), mark)
        if code is None:
            return None
        if code == NumericError.exit_code:  # a result: the training diverged
            mark["state"] = "failed"
            break
        if code:
            raise failed(step, commands[i], code)
        mark["printed"].append(printed)
        write_json(places.mark(step.name), mark)
    else:
        mark["state"] = "done"
    write_result(study, places, step, mark, facts)
    write_json(places.mark(step.name), mark)
    return float(mark["seconds"])


def begin(study: StudyDefinition, places: Places, step: StudyStep) -> dict[str, Any]:
    """Return the progress record of an interrupted step, or a new one."""
    known = study.fingerprint(step)
    mark = _mark(places, step)
    if mark.get("fingerprint") == known and mark["state"] == "running":
        return mark
    folder = places.folder(step)
    if mark and step.at is None:  # written by other commands
        shutil.rmtree(folder, ignore_errors=True)
    elif step.at is None and folder.exists():
        raise InputError(
            f"{folder} exists already and was not written by this study. Move it, or choose "
            "another folder with --out."
        )
    mark = {"fingerprint": known, "state": "running", "seconds": 0.0, "printed": [],
            "recipes": recipes_of(study.commands(step))}  # fmt: skip
    write_json(places.mark(step.name), mark)
    return mark


def write_result(
    study: StudyDefinition,
    places: Places,
    step: StudyStep,
    mark: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Save the results of a step, and copy its figures."""
    folder = places.folder(step)
    commands = study.commands(step)
    run = {"time": now(), "seconds": round(mark["seconds"], 1), "load": os.getloadavg()[0]}
    result = {
        "step": step.name,
        "state": mark["state"],
        "fingerprint": mark["fingerprint"],
        "commands": commands,
        "recipes": mark.get("recipes", {}),
        "measured": gather(folder, list(zip(commands, mark["printed"], strict=False))),
        "run": {**run, **facts},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(places.results / f"{step.name}.json", LISTS.sub(on_one_line, text) + "\n")
    for section in study.parts:
        for figure in section.figures:
            for picture in folder.glob(f"*/{figure.name}.svg") if figure.step == step.name else []:
                shutil.copyfile(picture, places.results / f"{step.name}-{figure.name}.svg")


def on_one_line(numbers: re.Match[str]) -> str:
    """Write a list of numbers as JSON on one line."""
    return " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]")


def _mark(places: Places, step: StudyStep) -> dict[str, Any]:
    path = places.mark(step.name)
    return read_json_object(path) if path.exists() else {}
