"""Run the steps of a study: each once, in order, resumed where it was interrupted."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from benchmarks.study.definition import StudyDefinition, StudySection, StudyStep
from benchmarks.study.places import Clock, Places
from benchmarks.study.steps import run_step, state_of
from benchmarks.study.tool import circumstances, end_all
from mergeforget.console import duration, say
from mergeforget.errors import Interrupted, UnknownNameError
from mergeforget.files import write_json
from mergeforget.run import Run


def run_study(
    study: StudyDefinition,
    places: Places,
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    again: Sequence[str] = (),
    given: Mapping[str, str] | None = None,
    jobs: int = 1,
) -> dict[str, str]:
    """Run the steps of a study that are not done yet.

    Args:
        only: Parts to run, with the steps of other parts that they read or show; all by default.
        minutes: Stop after this many minutes; the next call resumes interrupted steps.
        again: Steps whose results are discarded and measured again, with the steps that read them.
        given: Values of the study that were replaced; the document states them.
        jobs: Number of steps that run in parallel, in separate folders.

    Returns:
        The state of each step: ``done``, ``failed`` (its training diverged), ``waiting``, or the
        reason for which it is skipped.

    Raises:
        UnknownNameError: There is no such part or step.
        MergeforgetError: A command failed, and the user has to correct something.
        Interrupted: SIGTERM was received; finished work is kept.
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
        clock = Clock(None if minutes is None else 60 * minutes)
        return _run_steps(study, places, wanted_steps(study, only), clock, jobs)


def wanted_steps(
    study: StudyDefinition, only: Sequence[str]
) -> list[tuple[StudySection, StudyStep]]:
    """Return the steps of the parts, and those that they show or read, in order."""
    every = list(study.steps())
    names = {s.name for section, s in every if not only or section.name in only}
    asked = [section for section in study.parts if section.name in only]
    names |= {s for part in asked for table in part.tables for r in table.rows for s in r.steps}
    for _, step in reversed(every):
        names |= set(study.used_by(step)) if step.name in names else set()
    return [(section, step) for section, step in every if step.name in names]


def _readings(study: StudyDefinition, name: str) -> set[str]:
    """Return every step that a step reads, directly or through other steps."""
    direct = study.used_by(study.step(name))
    return {*direct, *(inner for one in direct for inner in _readings(study, one))}


def _run_steps(
    study: StudyDefinition,
    places: Places,
    steps: Sequence[tuple[StudySection, StudyStep]],
    clock: Clock,
    jobs: int,
) -> dict[str, str]:
    """Run each step as soon as the steps that it reads are done, ``jobs`` at a time."""
    states = {step.name: state_of(study, places, section, step) for section, step in steps}
    facts = circumstances(study.threads) if "waiting" in states.values() else {}
    running: dict[Future[float | None], StudyStep] = {}
    stopped = False
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                while not stopped and len(running) < jobs:
                    busy = {places.folder(step) for step in running.values()}
                    step = next_step(study, places, [s for _, s in steps], states, busy)
                    if step is None or not clock.allows():
                        break
                    states[step.name] = "running"
                    _tell(step, [s for _, s in steps], states, clock, jobs)
                    running[pool.submit(run_step, study, places, step, clock, facts)] = step
                if not running:
                    return states
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step, seconds = running.pop(future), future.result()
                    states[step.name] = state_of(study, places, None, step)
                    stopped = stopped or seconds is None
                    if seconds is not None:
                        clock.ended(step, seconds)
        except BaseException:
            end_all()
            raise


def next_step(
    study: StudyDefinition,
    places: Places,
    steps: Sequence[StudyStep],
    states: dict[str, str],
    busy: Collection[Path],
) -> StudyStep | None:
    """Return the first step that can start; record in ``states`` those that never can.

    Args:
        busy: Folders in which a step is running.
    """
    for step in steps:
        if states[step.name] != "waiting":
            continue
        before = {name: states[name] for name in study.used_by(step)}
        never = [n for n, state in before.items() if state not in ("done", "waiting", "running")]
        if never:
            states[step.name] = f"skipped: it reads {never[0]}"
        elif set(before.values()) <= {"done"} and places.folder(step) not in busy:
            return step
    return None


def _tell(
    step: StudyStep, steps: Sequence[StudyStep], states: Mapping[str, str], clock: Clock, jobs: int
) -> None:
    """Print the step that starts and the remaining time."""
    todo = [s for s in steps if states[s.name] in ("waiting", "running")]
    say(f"[{steps.index(step) + 1}/{len(steps)}] {step.name}; {duration(clock.elapsed)} so far, "
        f"about {duration(clock.estimate(todo, jobs))} left")  # fmt: skip


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Turn SIGTERM into an error, so that running commands are stopped too."""

    def stop(*_: object) -> None:
        raise Interrupted("Stopped by a signal. Results are saved; rerun the command to resume.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
