"""Check versions, devices, memory, disk and extras, with a remedy for each problem."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EXTRAS = {
    "demo": "faker", "hub": "datasets", "search": "optuna", "eval": "lm_eval", "fast": "numba",
    "gpu": "bitsandbytes", "serve": "vllm",
}  # fmt: skip
HUB = ("huggingface.co", 443)
HUB_SECONDS = 2.0
SMALL_DISK, SMALL_MEMORY = 5e9, 4e9  # bytes; the demo needs about 4.2 GB of memory


class Diagnosis(NamedTuple):
    """Result of :func:`doctor`.

    Attributes:
        facts: Versions, devices, memory, disk and extras, by name.
        problems: One sentence per problem, with its remedy.
    """

    facts: dict[str, str]
    problems: list[str]


def doctor() -> Diagnosis:
    """Report versions, devices, memory, disk and extras, and a remedy for each problem.

    Examples:
        >>> import mergeforget as mf
        >>> "torch" in mf.doctor().facts
        True
    """
    import os
    import shutil
    from importlib.util import find_spec

    import psutil
    import torch

    from mergeforget.run import versions

    problems: list[str] = []
    facts = dict(versions())
    facts["cores"] = str(os.cpu_count())
    facts["threads"] = str(torch.get_num_threads())
    available = psutil.virtual_memory().available
    facts["memory"] = f"{available / 1e9:.1f} GB free"
    if available < SMALL_MEMORY:
        problems.append(
            f"Only {available / 1e9:.1f} GB of memory are free. Close other programs, or use a "
            "smaller model or batch size."
        )
    facts["device"] = _device(problems)
    for name, (folder, remedy) in _folders().items():
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        facts[name] = f"{folder}, {free / 1e9:.0f} GB free"
        if free < SMALL_DISK:
            problems.append(
                f"Only {free / 1e9:.1f} GB are free in {existing} ({name}). Delete old runs or "
                f"caches, or {remedy} on another disk."
            )
        if not _writable(existing):
            problems.append(f"{existing} ({name}) cannot be written: {remedy} that you can write.")
    facts["embedded model"] = _embedded()
    facts["hub"] = "reachable" if hub_answers() else "not reachable"
    if _offline():
        facts["hub"] = "not asked (HF_HUB_OFFLINE is set)"
    elif facts["hub"] != "reachable":
        problems.append(
            "The Hugging Face Hub does not answer. Models in local folders, in the hub's cache and "
            "the embedded model work without it; set HF_HUB_OFFLINE=1 to avoid waiting for it."
        )
    facts["links"] = _links(problems)
    for extra, package in EXTRAS.items():
        have = find_spec(package) is not None
        facts[f"extra {extra}"] = "ready" if have else f"pip install 'mergeforget[{extra}]'"
    return Diagnosis(facts, problems)


def _folders() -> dict[str, tuple[Path, str]]:
    """Return the folders that mergeforget writes to, and how to choose others."""
    import os
    import tempfile

    from huggingface_hub.constants import HF_HUB_CACHE

    from mergeforget.embedded_model import cache_folder

    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:  # none can be written
        temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    return {
        "cache": (cache_folder(), "set XDG_CACHE_HOME to a folder"),
        "hub cache": (Path(HF_HUB_CACHE), "set HF_HOME to a folder"),
        "working folder": (Path.cwd(), "change to one"),
        "temporary folder": (temporary, "set TMPDIR to a folder"),
    }


def _offline() -> bool:
    import os

    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "true", "yes")


def hub_answers(address: tuple[str, int] = HUB) -> bool:
    """Return whether the hub accepts a connection within two seconds."""
    import socket
    import threading

    if _offline():
        return False
    answers: list[bool] = []

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout=HUB_SECONDS):
                answers.append(True)
        except OSError:
            pass

    # in a thread, since the name lookup has no timeout
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(answers)


def _device(problems: list[str]) -> str:
    """Return the device in use; add a problem if PyTorch cannot use an existing GPU."""
    import shutil

    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    if shutil.which("nvidia-smi"):
        problems.append(_gpu_remedy(torch.version.cuda, driver_cuda()))
    return "cpu (float32)"


def driver_cuda() -> str:
    """Return the newest CUDA version that the NVIDIA driver supports, or an empty string."""
    import re
    import subprocess

    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    match = re.search(r"CUDA Version: *([0-9]+\.[0-9]+)", done.stdout)
    return match[1] if match else ""


def _gpu_remedy(build: str | None, driver: str) -> str:
    """Return a remedy if there is an NVIDIA driver but PyTorch finds no GPU."""
    if build is None:
        return (
            "There is an NVIDIA driver, but this PyTorch is a CPU build: install PyTorch again "
            "from the default index (pip install --force-reinstall torch)."
        )
    if driver and [int(x) for x in driver.split(".")] < [int(x) for x in build.split(".")]:
        index = f"https://download.pytorch.org/whl/cu{driver.replace('.', '')}"
        return (
            f"PyTorch is built for CUDA {build}, but the driver supports CUDA {driver}: update the "
            f"driver, or install a build of torch for an older CUDA, for example with pip install "
            f"--force-reinstall torch --index-url {index}."
        )
    return (
        f"PyTorch is built for CUDA {build} and finds no usable GPU, although there is a driver"
        f"{f' for CUDA {driver}' if driver else ' that does not answer'}. Check that `nvidia-smi` "
        "lists the GPU and that CUDA_VISIBLE_DEVICES includes it, or restart the machine; "
        "everything works on the CPU with the CPU build of torch."
    )


def _writable(folder: Path) -> bool:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _links(problems: list[str]) -> str:
    """Check that the package has its recipes; return the state of a checkout's links."""
    from mergeforget.recipe import FOLDER, recipe_names

    if not recipe_names():
        problems.append(f"{FOLDER} contains no recipes. Install mergeforget again.")
    link = FOLDER.parent.parent / "recipes"
    if link.is_file():
        return "text files (git without links); only browsing is affected"
    return "ready" if link.exists() else "none needed"


def _embedded() -> str:
    """Return the state of the embedded model; the hash of each file is checked."""
    from mergeforget import embedded_model

    folder = embedded_model.cache_folder() / embedded_model.NAME
    if embedded_model.is_intact(folder):
        return f"ready: {folder}"
    if embedded_model.gguf_file() is None:
        return embedded_model.INSTALL
    return (
        "damaged; the next use converts it again" if folder.exists() else "converted on first use"
    )
