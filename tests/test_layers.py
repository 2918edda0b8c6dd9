"""Imports point one way: see "How the code is laid out" in the README."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "registry", "parsing", "replace", "files", "console", "distributed"},
    {
        "tensors",
        "adapter",
        "adapter_config",
        "expert_factors",
        "outputs",
        "chunked_logprobs",
        "recipe",
        "recipe_sections",
        "train_config",
        "candidate",
        "score",
        "run",
        "embedded_model",
        "models",
        "model_adapters",
        "model_files",
        "fsdp",
        "data",
    },
    {"losses", "merge", "metrics", "benchmarks"},
    {"train", "search", "evaluate", "attack"},
    {"analysis"},
    {"api", "testing"},
    {"commands", "cli", "__main__"},
]
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}
APART = {("train", "analysis"), ("analysis", "train"), ("analysis", "search")}
HEAVY = ["torch", "transformers", "peft", "matplotlib", "numpy", "pydantic", "mergekit", "scipy"]


def part(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[1]


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("mergeforget.")}
    return found & RANK.keys()


FILES = [
    p
    for p in sorted((ROOT / "mergeforget").rglob("*.py"))
    if p.name != "__init__.py" or p.parent.name != "mergeforget"
]


def test_every_module_has_a_layer() -> None:
    assert {part(p) for p in FILES} <= RANK.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    for there in imported_parts(path):
        assert RANK[there] <= RANK[here], f"{path}: {here} may not import {there}"
        assert (here, there) not in APART, f"{path}: {here} and {there} meet in files only"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mergeforget.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_quick(tmp_path: Path) -> None:
    """Processor time, the least of up to ten calls: other work on the machine only ever adds to it.

    The first call compiles the sources, also where the environment switches that off.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    times = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mergeforget", "--help"]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if times[-1] < 0.3:
            break
    assert min(times) < 0.3
