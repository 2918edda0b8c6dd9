"""A run folder: the paths of the files that each step reads and writes."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget import distributed
from mergeforget.console import LOGGER, logged_to
from mergeforget.distributed import is_main, on_main
from mergeforget.errors import InputError
from mergeforget.files import read_json_object, sha256, write_json
from mergeforget.parsing import plain_name, usable_path
from mergeforget.replace import full_disk_explained, locked, tidy

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe

RUNS = Path("runs")
PAIR = ("over", "under")
ANCHORS = ("base", *PAIR)  # reference models of a search
PACKAGES = ("mergeforget", "torch", "transformers", "peft", "safetensors", "numpy", "mergekit")


@dataclass(frozen=True)
class Run:
    """The paths of a run. Creating the object reads and writes no files."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.root.name

    @property
    def recipe(self) -> Path:
        """Complete recipe of the run."""
        return self.root / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, seeds, hashes of data and model, commands."""
        return self.root / "manifest.json"

    @property
    def status(self) -> Path:
        """State of each stage: ``{stage: {"state": "running" | "done" | "failed", ...}}``."""
        return self.root / "status.json"

    @property
    def history(self) -> Path:
        """One line per optimizer step: stage, step, epoch, loss and its terms, norms, rate."""
        return self.root / "history.jsonl"

    @property
    def data(self) -> Path:
        """Rows of the run: forget.jsonl, retain.jsonl, holdout.jsonl."""
        return self.root / "data"

    @property
    def has_holdout(self) -> bool:
        """Whether the run has rows that were never trained on."""
        path = self.data / "holdout.jsonl"
        return path.is_file() and path.stat().st_size > 0

    @property
    def difficulty(self) -> Path:
        """NLL of each non-member under the base, by subject; see ``search.split``."""
        return self.data / "difficulty.json"

    @property
    def over(self) -> Path:
        """PEFT folder of the over-forgetting adapter."""
        return self.root / "over"

    @property
    def under(self) -> Path:
        """PEFT folder of the under-forgetting adapter."""
        return self.root / "under"

    @property
    def snapshots(self) -> Path:
        """Adapters at some steps, for example ``over-step00010``, as PEFT folders."""
        return self.root / "snapshots"

    @property
    def candidates(self) -> Path:
        """One PEFT folder per merge, with ``candidate.json``."""
        return self.root / "candidates"

    @property
    def scores(self) -> Path:
        """One line per score: ``{"model": "ties-factors-d0.70", ...Score}``."""
        return self.root / "scores.jsonl"

    @property
    def answers(self) -> Path:
        """``MODEL.jsonl``: answers of each evaluated model; ``MODEL.losses.jsonl``: NLLs."""
        return self.root / "answers"

    @property
    def search(self) -> Path:
        """``chosen.json`` and the state of the search."""
        return self.root / "search"

    @property
    def analysis(self) -> Path:
        """Numbers and figures of `mergeforget analyze`."""
        return self.root / "analysis"

    @property
    def attacks(self) -> Path:
        """NAME.json, NAME.csv and a figure of each attack; cached measurements in ``cache``."""
        return self.root / "attacks"

    @property
    def report(self) -> Path:
        """The HTML page of `mergeforget report`."""
        return self.root / "report" / "index.html"

    @property
    def log(self) -> Path:
        """Messages with times of the commands that wrote to this run."""
        return self.root / "log.txt"

    def base(self) -> str:
        """Return the model before unlearning: the recipe's, or the one that memorised the data."""
        base = self.read_manifest().get("base")
        if isinstance(base, dict) and isinstance(base.get("path"), str):
            return str(base["path"])
        return self.named_model()

    def named_model(self) -> str:
        """Return the model that the recipe names.

        The path of a folder is relative to the directory where the run was started.
        """
        from mergeforget.recipe import load_recipe

        name, started = load_recipe(self.recipe).model.name, self.read_manifest().get("directory")
        if isinstance(started, str) and started != os.getcwd():
            return str(folder) if (folder := Path(started, name)).is_dir() else name
        return name

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe, and to which directory its relative paths belong."""
        from mergeforget.recipe import save_recipe

        save_recipe(recipe, self.recipe)
        write_json(self.manifest, self.read_manifest() | {"directory": os.getcwd()})

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, in which ``stages`` is always an object of objects.

        Raises:
            InputError: The file is damaged.
        """
        manifest = read_json_object(self.manifest) if self.manifest.exists() else {}
        stages = manifest.setdefault("stages", {})
        parts = {key: manifest[key] for key in ("base", "versions", "machine") if manifest.get(key)}
        parts |= {"stages": stages} | (stages if isinstance(stages, dict) else {})
        for name, value in parts.items():
            if not isinstance(value, dict):
                raise InputError(f"{self.manifest} is damaged: {name!r} is not an object.")
        return manifest

    def read_status(self) -> dict[str, dict[str, Any]]:
        """Return the state of each stage.

        Raises:
            InputError: The file is damaged.
        """
        status = read_json_object(self.status) if self.status.exists() else {}
        for stage, value in status.items():
            if not isinstance(value, dict):
                raise InputError(f"{self.status} is damaged: {stage!r} is not an object.")
        return status

    def chosen_name(self) -> str | None:
        """Return the name of the candidate that the search chose; None before a search.

        Raises:
            InputError: The file is damaged, or the name is not a plain file name.
        """
        path = self.search / "chosen.json"
        return plain_name(read_json_object(path).get("name"), path) if path.exists() else None

    def state(self, stage: str) -> str:
        """Return ``running``, ``done``, ``failed``, or an empty string before the start."""
        return str(self.read_status().get(stage, {}).get("state", ""))

    def set_state(self, stage: str, state: str, **more: Any) -> None:
        """Record the state of a stage in status.json; only the main process writes."""
        if is_main():
            status = self.read_status() | {stage: {"state": state, "time": now(), **more}}
            write_json(self.status, status)

    def record(self, stage: str, **facts: Any) -> None:
        """Record in manifest.json how a stage was run, with versions, command and processes."""
        if not is_main():
            return
        manifest = self.read_manifest()
        manifest["versions"] = versions()
        manifest["machine"] = machine()
        several = {"processes": distributed.world_size()} if distributed.world_size() > 1 else {}
        several |= {"sharded": True} if distributed.sharded() else {}
        manifest["stages"][stage] = {"time": now(), "command": sys.argv[1:], **several, **facts}
        write_json(self.manifest, manifest)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for writing; the main process holds the lock.

        The lock ends with the process. Under the lock, files of
        killed writers are removed and messages are appended to ``log.txt``.

        Raises:
            ResourceError: Another process is writing to the folder, or the disk is full.
            InputError: The folder cannot be written.
        """
        in_use = (
            f"{self.root} is in use: another mergeforget is writing there. Wait for it, stop it, "
            "or choose another folder with --out."
        )
        with (
            full_disk_explained(self.root),
            locked(self.root / ".lock", in_use, on_main),
            ExitStack() as stack,
        ):
            if is_main():
                tidy(self.root)
                stack.enter_context(logged_to(self.log))
                LOGGER.debug("mergeforget %s", " ".join(sys.argv[1:]))
            yield


def new_run(folder: Path | None, name: str, *, resume: bool = False) -> Run:
    """Return the folder of a new or resumed run.

    Args:
        folder: Folder given by the user; None creates ``runs/NAME-<time>``.

    Raises:
        InputError: The folder contains a run that has started a stage, and ``resume`` is false.
    """
    chosen = usable_path(folder) if folder else RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"

    def free() -> Run:
        run = Run(chosen)
        if run.recipe.exists() and not resume and run.read_status():
            raise InputError(
                f"{chosen} already contains a run. Continue it with --resume, or choose another "
                "folder with --out."
            )
        return run

    return on_main(free)


def open_run(folder: Path | None) -> Run:
    """Return an existing run: the one in ``folder``, or the newest under ``runs/``.

    Raises:
        InputError: There is no run; the message names existing ones.
    """
    runs = sorted(RUNS.glob("*/recipe.yaml"), key=lambda p: p.stat().st_mtime)
    if folder is None:
        if not runs:
            raise InputError(
                "There is no run under runs/ yet. Make one with `mergeforget unlearn`, or try "
                "`mergeforget demo`."
            )
        return Run(runs[-1].parent)
    if not (usable_path(folder) / "recipe.yaml").exists():
        if (usable_path(folder) / "adapter_config.json").exists():
            raise InputError(
                f"{folder} is an adapter, not a run folder. To merge adapters, give each with "
                "--adapter."
            )
        inside = sorted(usable_path(folder).glob("*/recipe.yaml"))  # of several requests
        known = ", ".join(str(p.parent) for p in inside or runs[-5:])
        known = (
            f"{'It contains the runs' if inside else 'Runs:'} {known}."
            if known
            else "Make one with `mergeforget unlearn` or `mergeforget train-pair --out RUN`."
        )
        raise InputError(f"{folder} is not a run folder: it has no recipe.yaml. {known}")
    return Run(folder)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    versions_by_name = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_by_name[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions_by_name


def machine() -> dict[str, Any]:
    """Return the hardware, without the name of the machine."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}


def file_facts(path: Path) -> dict[str, Any]:
    """Return name, size and hash of an input file or of all files of a folder."""
    size = sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))
    return {"name": path.name, "bytes": size, "sha256": sha256(path)}


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
