"""Build the wheel and the sdist, install each in a new environment, and run the demo there.

    python tools/dist.py                 results in dist/; the environments are removed
    python tools/dist.py --no-demo       install, and run doctor only

The environments are outside of the checkout, with an empty home and cache, so that nothing of the
checkout or of an earlier run can make up for a missing file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from matrix import ROOT, checkout

DEMO = ["demo", "--people", "2", "--quick"]
NEEDED = ("py.typed", "recipes/zjuklab.yaml", "analysis/page.css", "LICENSE", "entry_points.txt")


def build(folder: Path) -> list[Path]:
    """The wheel and the sdist, built from a copy of the tracked files into dist/."""
    source, dist = folder / "source", ROOT / "dist"
    source.mkdir()
    checkout(source)
    shutil.rmtree(dist, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--quiet", "--outdir", str(dist), str(source)]
    subprocess.run(command, check=True)
    return sorted(dist.iterdir(), reverse=True)  # the sdist first


def missing(archive: Path) -> list[str]:
    """Files that a distribution must hold and does not."""
    if archive.suffix == ".whl":
        names = zipfile.ZipFile(archive).namelist()
    else:
        with tarfile.open(archive) as tar:
            names = tar.getnames()
    return [one for one in NEEDED if not any(name.endswith(one) for name in names)]


def try_out(archive: Path, folder: Path, demo: bool) -> str:
    """Install a distribution and run it; a row of the table."""
    home, work, venv = folder / "home", folder / "work", folder / "venv"
    for one in (home, work):
        one.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XDG_"))}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("MERGEFORGET_CACHE", None)
    start = time.time()
    subprocess.run(
        ["sh", str(ROOT / "tools/install.sh"), str(venv)],
        env=environment | {"PYTHON": sys.executable, "PACKAGE": str(archive), "GROUP": ""},
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    installed = time.time() - start
    program = venv / "bin/mergeforget"
    for words in (["--help"], ["recipes", "list"], ["doctor"]):
        subprocess.run(
            [program, *words], cwd=work, env=environment, check=True, capture_output=True
        )
    start = time.time()
    if demo:
        subprocess.run([program, *DEMO], cwd=work, env=environment, check=True)
        if not list(work.glob("runs/*/report/index.html")):
            sys.exit(f"The demo of {archive.name} wrote no report.")
    took = time.time() - start
    size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and not p.is_symlink())
    shutil.rmtree(folder, ignore_errors=True)
    kind = "wheel" if archive.suffix == ".whl" else "sdist"
    return (
        f"| {kind} | {archive.stat().st_size / 1e6:.1f} | {size / 1e6:.0f} | {installed:.0f} | "
        f"{f'{took:.0f}' if demo else 'not run'} |"
    )


def main() -> None:
    """Build, check the content, and try each distribution."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--no-demo", action="store_true", help="do not run the demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dist-") as folder:
        archives = build(Path(folder))
        for archive in archives:
            if lacks := missing(archive):
                sys.exit(f"{archive.name} lacks {', '.join(lacks)}.")
        rows = [try_out(a, Path(folder) / a.name, not options.no_demo) for a in archives]
    print(
        "| distribution | MB | MB installed | s to install | s of the demo |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
