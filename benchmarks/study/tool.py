"""Run commands of the tool in separate processes, and record their environment."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.definition import PLACE, StudyStep
from mergeforget.errors import Interrupted, MergeforgetError
from mergeforget.run import Run

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 120.0  # seconds that a command has to save its work
CHILDREN: set[subprocess.Popen[str]] = set()  # running commands
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def words_of(command: str, folders: Mapping[str, Path]) -> list[str]:
    """Return the words of a command, with placeholders replaced by folders.

    Args:
        folders: Folder by name; ``NAME.base`` is the model before unlearning of a run folder.
    """

    def folder(name: str) -> str:
        path = folders[name.removesuffix(".base")]
        return Run(path).base() if name.endswith(".base") else str(path)

    return [PLACE.sub(lambda m: folder(m[1]), word) for word in shlex.split(command)]


def call(
    words: Sequence[str], seconds: float | None, threads: int | None = None
) -> tuple[int | None, Any]:
    """Run one command of the tool in a separate process.

    Args:
        seconds: Time limit.
        threads: Number of threads; the default of the libraries when omitted.

    Returns:
        The exit code, None if the time limit was exceeded, and the JSON object that was printed.
    """
    command = [sys.executable, "-m", "mergeforget", *words, "--json"]
    given = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    environment = os.environ | given
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        CHILDREN.add(child)
        try:
            out, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(child)
            return None, None
        finally:
            CHILDREN.discard(child)
    if child.returncode:
        return child.returncode, None
    return 0, json.loads(out) if out.strip() else None


def failed(step: StudyStep, command: str, code: int) -> MergeforgetError:
    """Return the error for a command that failed with an exit code."""
    if code in STOPPED:
        return Interrupted(f"Interrupted in {step.name}. Rerun the command to resume.")
    error = MergeforgetError(
        f"The step {step.name} failed (exit code {code}, its message is above):\n"
        f"  mergeforget {command}\nFinished work is kept. Correct the problem and run the same "
        f"command again, or restart the step with --again {step.name}."
    )
    error.exit_code = code if code > 0 else 1
    return error


def circumstances(threads: int | None = None) -> dict[str, Any]:
    """Return versions, machine and commit for a command with this number of threads."""
    import psutil

    _, facts = call(["doctor"], None, threads)
    left_out = ("extra", "cache", "embed", "memory", "hub", "links", "problems")
    shown = {
        k: v for k, v in (facts or {}).items()
        if not k.startswith(left_out) and not k.endswith("folder")  # no path is published
    }  # fmt: skip
    memory = f"{psutil.virtual_memory().total / 1e9:.0f} GB"
    return {**shown, "memory": memory, "processor": processor(), "commit": commit()}


def processor() -> str:
    """Return the name of the processor, if the system states it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the checkout that contains the package; empty without a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        if not subprocess.run([*git, "ls-files", here.name], capture_output=True).stdout:
            return ""  # installed inside another repository
        done = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True)
    except OSError:
        return ""
    return done.stdout.decode().strip()


def end_all() -> None:
    """Ask every running command to save and stop, and wait for it."""
    for child in list(CHILDREN):
        child.terminate()
    for child in list(CHILDREN):
        _wait(child)


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    _wait(child)
    child.communicate()


def _wait(child: subprocess.Popen[str]) -> None:
    """Wait until a process has ended; kill it if it does not."""
    try:
        child.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
