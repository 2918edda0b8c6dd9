"""A run folder: where each step finds and leaves its files."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mergeforget import distributed
from mergeforget.console import logged_to
from mergeforget.distributed import is_main, on_main
from mergeforget.errors import InputError, ResourceError
from mergeforget.files import explained, read_json, sha256, write_json

RUNS = Path("runs")
PAIR = ("over", "under")
ANCHORS = ("base", *PAIR)  # the models with which candidates are compared
PACKAGES = ("mergeforget", "torch", "transformers", "peft", "safetensors", "numpy", "mergekit")


@dataclass(frozen=True)
class Run:
    """The paths of one run; nothing is read or made until a method is called."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def recipe(self) -> Path:
        """The recipe as it was run, written back whole."""
        return self.root / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, seeds, hashes of data and model, commands."""
        return self.root / "manifest.json"

    @property
    def status(self) -> Path:
        """What is done: ``{stage: {"state": "running" | "done" | "failed", ...}}``."""
        return self.root / "status.json"

    @property
    def history(self) -> Path:
        """One line an optimiser step: stage, step, epoch, loss and its terms, norms, rate."""
        return self.root / "history.jsonl"

    @property
    def log(self) -> Path:
        """Every message of the commands that wrote here, with the time."""
        return self.root / "log.txt"

    @property
    def data(self) -> Path:
        """forget.jsonl, retain.jsonl, holdout.jsonl as they were used."""
        return self.root / "data"

    @property
    def over(self) -> Path:
        return self.root / "over"

    @property
    def under(self) -> Path:
        return self.root / "under"

    @property
    def snapshots(self) -> Path:
        """``over-step00010`` ...: the adapter at set steps, as PEFT folders."""
        return self.root / "snapshots"

    @property
    def candidates(self) -> Path:
        """One PEFT folder a merge, with ``candidate.json``."""
        return self.root / "candidates"

    @property
    def scores(self) -> Path:
        """One line a score: ``{"model": "ties-factors-d0.70", ...Score}``."""
        return self.root / "scores.jsonl"

    @property
    def answers(self) -> Path:
        """``MODEL.jsonl``: what each evaluated model answered; ``MODEL.losses.jsonl``: NLLs."""
        return self.root / "answers"

    @property
    def search(self) -> Path:
        """``chosen.json`` and what a search keeps to go on after an interruption."""
        return self.root / "search"

    @property
    def analysis(self) -> Path:
        return self.root / "analysis"

    @property
    def attacks(self) -> Path:
        """NAME.json, NAME.csv and a figure of each attack; what was measured in ``kept``."""
        return self.root / "attacks"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    def base(self) -> str:
        """The model that forgets: the recipe's, or the one that memorised the data first."""
        base = read_json(self.manifest).get("base") if self.manifest.exists() else None
        if base:
            return str(base["path"])
        from mergeforget.recipe import load_recipe

        return load_recipe(self.recipe).model.name

    def state(self, stage: str) -> str:
        """``running``, ``done``, ``failed``, or empty where the stage never began."""
        every = read_json(self.status) if self.status.exists() else {}
        return str(every.get(stage, {}).get("state", ""))

    def set_state(self, stage: str, state: str, **more: Any) -> None:
        """Note in status.json how far a stage is; of several processes the main one writes."""
        if not is_main():
            return
        every = read_json(self.status) if self.status.exists() else {}
        every[stage] = {"state": state, "time": now(), **more}
        write_json(self.status, every)

    def record(self, stage: str, **facts: Any) -> None:
        """Add to manifest.json how a stage was run, with versions, command and processes."""
        if not is_main():
            return
        manifest = read_json(self.manifest) if self.manifest.exists() else {"stages": {}}
        manifest["versions"] = versions()
        manifest["machine"] = machine()
        several = {"processes": distributed.count()} if distributed.count() > 1 else {}
        several |= {"sharded": True} if distributed.sharded() else {}
        manifest["stages"][stage] = {"time": now(), "command": sys.argv[1:], **several, **facts}
        write_json(self.manifest, manifest)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer of this folder; of several processes the main one holds the lock.

        The lock belongs to the process, so one that was killed leaves none behind.

        Raises:
            ResourceError: another process is writing here.
        """
        from filelock import FileLock, Timeout

        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        held = FileLock(self.root / ".lock", timeout=0)

        def acquire() -> None:
            try:
                held.acquire()
            except Timeout as error:
                raise ResourceError(
                    f"{self.root} is in use: another mergeforget is writing there. Wait for it, "
                    "stop it, or choose another folder with --out."
                ) from error

        on_main(acquire)
        try:
            with logged_to(self.log):
                yield
        finally:
            held.release()


def new_run(folder: Path | None, name: str, *, resume: bool = False) -> Run:
    """The folder of a run that begins, or goes on with ``resume``.

    Args:
        folder: what the user named; None makes ``runs/NAME-<time>``.

    Raises:
        InputError: the folder holds a run already and is not resumed.
    """
    chosen = folder or RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"

    def free() -> Run:
        if Run(chosen).recipe.exists() and not resume:
            raise InputError(
                f"{chosen} holds a run already. Go on with it by --resume, or choose another "
                "folder with --out."
            )
        return Run(chosen)

    return on_main(free)


def open_run(folder: Path | None) -> Run:
    """A run that exists: the named one, or the newest under ``runs/``.

    Raises:
        InputError: it is not there; the message names those that are.
    """
    runs = sorted(RUNS.glob("*/recipe.yaml"), key=lambda p: p.stat().st_mtime)
    if folder is None:
        if not runs:
            raise InputError(
                "There is no run under runs/ yet. Make one with `mergeforget train-pair`, or try "
                "`mergeforget demo`."
            )
        return Run(runs[-1].parent)
    if not (folder / "recipe.yaml").exists():
        known = ", ".join(str(p.parent) for p in runs[-5:]) or "none yet"
        raise InputError(f"{folder} is not a run folder (no recipe.yaml there). Runs: {known}.")
    return Run(folder)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on, without its name."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and hash of an input file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def now() -> str:
    """The time, ISO 8601, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
