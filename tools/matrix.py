"""Install the wheel on every Python of this machine, and run the fast tests with each.

Prints a table: Python, torch, transformers, tests passed, failed and skipped, time, size.

    python tools/matrix.py                              every Python found, tested versions
    python tools/matrix.py --subset smoke --ends        also the ends of the declared ranges
    python tools/matrix.py --python 3.12 --subset merge

Interpreters are looked for on PATH, in the folder of pyenv, and in that of uv. Each environment is
new and is removed, unless ``--keep`` names a folder for it. The tests see the installed wheel only:
they run in a copy of the checkout whose folder ``mergeforget`` is a link to the installed package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
SMOKE = ("test_cli.py", "test_api.py", "test_models.py", "test_internals.py",
         "merge/test_engine.py", "train", "evaluate")  # fmt: skip
ENDS = ("lowest", "newest")
HEADER = ("python", "versions", "torch", "transformers", "passed", "failed", "skipped", "tests, s",
          "install, s", "installed, MB")  # fmt: skip
FACTS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps([m.version('torch'), m.version('transformers')]))"
)


@dataclass(frozen=True)
class Cell:
    """One environment: an interpreter, and which versions of the dependencies it gets."""

    python: Path
    version: str
    which: str  # tested, lowest or newest


def interpreters() -> dict[str, Path]:
    """Interpreters by minor version; PATH comes first, then the newest patch release."""
    found: dict[str, Path] = {}
    places = [Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]
    roots = [Path(root) for root in (os.environ.get("PYENV_ROOT"),) if root]
    places += [root / "versions" for root in roots]
    for version in VERSIONS:
        named = shutil.which(f"python{version}")
        paths = [Path(named)] if named else []
        below = [p for place in places for p in place.glob(f"*{version}*/bin/python{version}")]
        paths += sorted(below, key=lambda p: [int(x) for x in re.findall(r"\d+", str(p))])[::-1]
        for path in paths:
            code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:  # a shim of pyenv may exist and not run
                found[version] = path
                break
    return found


def constraints(which: str, folder: Path) -> tuple[Path, str]:
    """The constraints file of a cell and the requirement of torch."""
    if which == "tested":
        return ROOT / "constraints.txt", "torch==2.13.0"
    lines = []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in project["dependencies"]:
        name, lower = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        if which == "lowest" and name != "mergekit":
            lower = lower if "." in lower else f"{lower}.0"
            lines.append(f"{name}=={lower}{'.*' if lower.count('.') < 2 else ''}")
    path = folder / f"{which}.txt"
    path.write_text("\n".join(lines) + "\n")
    torch = [line for line in lines if line.startswith("torch==")]
    return path, torch[0] if torch else "torch"


def checkout(folder: Path, package: Path | None = None) -> None:
    """Copy the tracked files; the package becomes a link to the installed one where it is given."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if package and name.startswith("mergeforget/"):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    if package:
        (folder / "mergeforget").symlink_to(package)


def selected(subset: str) -> list[str]:
    """Test paths of a subset: ``smoke``, or files and folders of tests/ by name."""
    if subset == "smoke":
        return [f"tests/{name}" for name in SMOKE]
    paths: list[str] = []
    for name in subset.split() or ["tests"]:
        tries = [name, f"tests/{name}", f"tests/test_{name}.py"]
        found = [path for path in tries if (ROOT / path.split("::")[0]).exists()]
        if not found:
            sys.exit(f"There are no tests named {name!r}. Name a file or folder of tests/.")
        paths.append(next((path for path in found if path.startswith("tests")), found[0]))
    return paths


def run(cell: Cell, wheel: Path, folder: Path, tests: list[str], workers: int) -> list[str]:
    """Install into a new environment and run the tests; one row of the table."""
    venv, copy = folder / "venv", folder / "checkout"
    pins, torch = constraints(cell.which, folder)
    environment = os.environ | {
        "PYTHON": str(cell.python), "PACKAGE": str(wheel), "CONSTRAINTS": str(pins),
        "TORCH": torch, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    start = time.time()
    again = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    new = ["sh", str(ROOT / "tools/install.sh"), str(venv)]
    command = [*again, "--force-reinstall", str(wheel)] if (folder / "ready").exists() else new
    with open(folder / "install.txt", "w") as log:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
        ).returncode
    installed = time.time() - start
    label = [cell.version, cell.which]
    if code:
        print((folder / "install.txt").read_text()[-2000:], file=sys.stderr)
        return [*label, "not installed", "", "", "", "", "", f"{installed:.0f}", ""]
    (folder / "ready").touch()
    python = venv / "bin/python"
    facts = json.loads(subprocess.check_output([python, "-c", FACTS], text=True))
    code_ = "import mergeforget; print(mergeforget.__path__[0])"
    package = Path(subprocess.check_output([python, "-c", code_], cwd=folder, text=True).strip())
    shutil.rmtree(copy, ignore_errors=True)
    checkout(copy, package)
    command = [str(python), "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-n", str(workers)] if workers > 1 else []
    start = time.time()
    done = subprocess.run(
        [*command, *tests], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    took = time.time() - start
    last = (done.stdout.strip().splitlines() or [""])[-1]
    by_word = {w: int(n) for n, w in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    failed = sum(by_word.get(word, 0) for word in ("failed", "error", "errors"))
    if done.returncode not in (0, 1) and not failed:
        failed = 1
    if failed:
        print(f"\n{cell.version}, {cell.which}:\n{done.stdout[-6000:]}", file=sys.stderr)
    size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and not p.is_symlink())
    passed, skipped = (str(by_word.get(word, 0)) for word in ("passed", "skipped"))
    times = [f"{took:.0f}", f"{installed:.0f}", f"{size / 1e6:.0f}"]
    return [*label, *facts, passed, str(failed), skipped, *times]


def main() -> int:
    """Run every cell and print its row; the number of cells with a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--subset", default=os.environ.get("SUBSET", ""), help="tests to run")
    parser.add_argument("--python", action="append", help="only these versions, such as 3.12")
    parser.add_argument("--ends", action="store_true", help="also both ends of the declared range")
    parser.add_argument("--only-ends", action="store_true", help="only the ends")
    parser.add_argument("--keep", type=Path, help="keep the environments here, and use them again")
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest")
    options = parser.parse_args()
    found = interpreters()
    wanted = options.python or list(VERSIONS)
    tests = selected(options.subset)
    cells = [Cell(found[v], v, "tested") for v in wanted if v in found]
    first = next(iter(cells), None)
    if first is None:
        sys.exit(f"None of Python {', '.join(wanted)} was found.")
    ends = [Cell(first.python, first.version, which) for which in ENDS]
    cells = ends if options.only_ends else cells + (ends if options.ends else [])
    missing = [v for v in wanted if v not in found]
    if missing:
        print(f"Not found on this machine: Python {', '.join(missing)}.", file=sys.stderr)
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        work = Path(folder)
        checkout(work / "source")  # setuptools would leave build/ and *.egg-info in the checkout
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
        subprocess.run([*build, str(work), str(work / "source")], check=True)
        (wheel,) = work.glob("*.whl")
        for cell in cells:
            place = (options.keep or work).absolute() / f"{cell.version}-{cell.which}"
            place.mkdir(parents=True, exist_ok=True)
            row = run(cell, wheel, place, tests, options.workers)
            print("| " + " | ".join(row) + " |", flush=True)
            bad += row[5] != "0"
            if not options.keep:
                shutil.rmtree(place, ignore_errors=True)
    return bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))
