"""Declared packages, the set-up script, and work without the optional packages."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mergeforget.api import doctor

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = {  # modules whose name differs from the distribution's
    "PIL": "pillow",
    "build": "build",
    "faker": "faker",
    "lm_eval": "lm-eval",
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
LOADED_BY_NAME = {  # declared packages that another library imports, with the file that asks for it
    "bitsandbytes": "mergeforget/models.py",
    "gguf": "mergeforget/embedded_model.py",
    "sqlalchemy": "mergeforget/search/optuna_study.py",
    "tensorboard": "mergeforget/train_config.py",
    "trackio": "mergeforget/train_config.py",
    "wandb": "mergeforget/train_config.py",
}
TOOLS = {"build", "mypy", "pytest-cov", "pytest-xdist", "ruff", "types-pyyaml"}  # run, not imported
WANTED_BY_A_DEPENDENCY = {"hub": {"datasets", "huggingface-hub"}}


def distribution(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


CORE = {distribution(r) for r in PROJECT["project"]["dependencies"]}
EXTRAS = {
    extra: {distribution(r) for r in every}
    for extra, every in PROJECT["project"]["optional-dependencies"].items()
}
DEV = {distribution(r) for r in PROJECT["dependency-groups"]["dev"]}
OWN = {p.stem for f in ("tests", "benchmarks", "tools") for p in ROOT.glob(f"{f}/**/*.py")}
OWN |= {"mergeforget", "tests", "benchmarks"}


def imported(folder: str) -> dict[str, set[str]]:
    """Distributions that the files of a folder import, with whether one does so at module level."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OWN:
                    one = MODULES.get(top, top).lower().replace("_", "-")
                    where = "module" if node in tree.body else "function"
                    found.setdefault(one, set()).add(where)
    return found


def test_each_package_that_is_imported_is_declared() -> None:
    undeclared = imported("mergeforget").keys() - CORE - set().union(*EXTRAS.values())
    assert not undeclared


def test_each_package_that_is_declared_is_imported() -> None:
    found = imported("mergeforget").keys()
    for one, file in LOADED_BY_NAME.items():
        words = (ROOT / file).read_text(encoding="utf-8").lower()
        assert one in words or one == "sqlalchemy" and "storage" in words, (one, file)
    declared = CORE | set().union(*EXTRAS.values())
    unused = declared - found - LOADED_BY_NAME.keys() - WANTED_BY_A_DEPENDENCY["hub"]
    assert not unused


def test_tests_and_benchmarks_import_declared_packages_alone() -> None:
    declared = CORE | DEV | set().union(*EXTRAS.values())
    found = imported("tests") | imported("benchmarks")
    assert not found.keys() - declared
    assert not DEV - found.keys() - imported("mergeforget").keys() - TOOLS


def test_mergekit_is_left_out_where_its_dependencies_have_no_wheel() -> None:
    (mergekit,) = [r for r in PROJECT["project"]["dependencies"] if r.startswith("mergekit")]
    assert "python_version" in mergekit


def test_metadata_names_authors_licence_and_python_versions() -> None:
    project = PROJECT["project"]
    assert project["authors"] and project["keywords"] and "urls" not in project
    assert all((ROOT / name).is_file() for name in project["license-files"])
    versions = [c for c in project["classifiers"] if re.search(r":: 3\.1\d$", c)]
    assert len(versions) == 4


# The script that `make` runs

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def index() -> Iterator[str]:
    """The address of a package index that answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def plan(tmp_path: Path, *tools: str, index: str) -> str:
    """The commands that tools/install.sh would run where ``tools`` are installed."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in tools:
        (bin_ / name).write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
        (bin_ / name).chmod(0o755)
    path = os.pathsep.join([str(bin_), "/usr/bin", "/bin"])
    environment = {"PATH": path, "DRY_RUN": "1", "PYTHON": sys.executable, "CPU_INDEX": index}
    done = subprocess.run(
        ["sh", str(ROOT / "tools/install.sh"), str(tmp_path / "venv")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout


def test_without_a_gpu_and_an_index_the_default_index_is_used(tmp_path: Path) -> None:
    text = plan(tmp_path, index=NOWHERE)
    assert "did not answer" in text and "--index-url" not in text
    assert "install --quiet -c constraints.txt torch==" in text


def test_without_a_gpu_the_cpu_build_is_fetched(tmp_path: Path, index: str) -> None:
    text = plan(tmp_path, index=index)
    assert "fetching the CPU build" in text
    assert "--retries 0 --index-url" in text


def test_with_a_gpu_the_default_build_is_fetched(tmp_path: Path, index: str) -> None:
    text = plan(tmp_path, "nvidia-smi", index=index)
    assert "CUDA" in text and "--index-url" not in text
    assert re.search(r"constraints.txt torch$", text, re.MULTILINE)


@pytest.mark.parametrize(("gpu", "backend"), [(False, "cpu"), (True, "auto")])
def test_uv_is_used_where_it_is_installed(
    tmp_path: Path, gpu: bool, backend: str, index: str
) -> None:
    text = plan(tmp_path, "uv", *(["nvidia-smi"] if gpu else []), index=index)
    assert f"--torch-backend={backend}" in text and "-m pip" not in text


# Packages that are not installed

BLOCK = """
import sys
blocked = set({names!r})
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def blocking(names: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that cannot import ``names``."""
    command = [sys.executable, "-c", BLOCK.format(names=names) + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_everything_but_the_bridge_works_without_mergekit(tmp_path: Path) -> None:
    config = tmp_path / "merge.yml"
    config.write_text("merge_method: passthrough\nslices:\n- sources:\n  - model: x\n")
    done = blocking(
        ["mergekit", "immutables"],
        "import importlib, pkgutil, mergeforget\n"
        "for m in pkgutil.walk_packages(mergeforget.__path__, 'mergeforget.'):\n"
        "    if 'numba_loops' not in m.name and '__main__' not in m.name:\n"
        "        importlib.import_module(m.name)\n"
        "from pathlib import Path\n"
        "from mergeforget.errors import MergeforgetError\n"
        "from mergeforget.merge.mergekit_bridge import run_mergekit\n"
        f"try: run_mergekit(Path({str(config)!r}), Path({str(tmp_path / 'out')!r}), 'a test')\n"
        "except MergeforgetError as error: print('said:', error)\n",
    )
    assert done.returncode == 0, done.stderr
    assert "said:" in done.stdout and "pip install mergekit" in done.stdout


def test_the_demo_extra_is_named_where_it_is_missing() -> None:
    done = blocking(
        ["faker"],
        "from mergeforget.errors import MergeforgetError\n"
        "from mergeforget.data.people import _faker\n"
        "try: _faker()\n"
        "except MergeforgetError as error: print('said:', error)\n",
    )
    assert done.returncode == 0, done.stderr
    assert "mergeforget[demo]" in done.stdout


# doctor


@pytest.mark.parametrize(
    ("build", "driver", "remedy"),
    [
        (None, "12.4", "CPU build"),
        ("13.0", "12.4", "whl/cu124"),
        ("13.0", "9.2", "update the driver"),
        ("12.4", "13.0", "CUDA_VISIBLE_DEVICES"),
        ("12.4", "", "does not answer"),
    ],
)
def test_doctor_compares_the_driver_with_the_build(
    build: str | None, driver: str, remedy: str
) -> None:
    assert remedy in doctor._gpu_remedy(build, driver)


def test_the_driver_s_cuda_version_is_read_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program.write_text("#!/bin/sh\necho '| Driver Version: 550.1    CUDA Version: 12.4  |'\n")
    program.chmod(0o755)
    assert doctor.driver_cuda() == "12.4"
    program.write_text("#!/bin/sh\necho 'no devices were found' >&2; exit 9\n")
    assert doctor.driver_cuda() == ""


def test_doctor_reports_links_that_git_wrote_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mergeforget" / "recipes"
    folder.mkdir(parents=True)
    monkeypatch.setattr("mergeforget.recipe.FOLDER", folder)
    problems: list[str] = []
    monkeypatch.setattr("mergeforget.recipe.recipe_names", lambda: ["zjuklab"])
    assert doctor._links(problems) == "none needed"  # a wheel
    (tmp_path / "recipes").write_text("mergeforget/recipes")
    assert "only browsing" in doctor._links(problems) and not problems
    monkeypatch.setattr("mergeforget.recipe.recipe_names", lambda: [])
    doctor._links(problems)
    assert "Install mergeforget again" in problems[0]


# Dockerfile, make dist, make matrix


def test_the_dockerfile_names_files_and_versions_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for source in re.findall(r"^(?:COPY|ADD) (?:--\S+ )*(\S+) ", text, re.MULTILINE):
        assert (ROOT / source).exists(), source
    for used in ("constraints.txt", "pyproject.toml", "mergeforget", "README.md", "LICENSE"):
        assert used not in ignored and (ROOT / used).exists(), used
    (version,) = re.findall(r"^FROM python:(3\.\d+)", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]
    for extra in re.findall(r"\.\[([\w,]+)\]", text)[0].split(","):
        assert extra in EXTRAS, extra
    script = (ROOT / "tools/install.sh").read_text(encoding="utf-8")
    for requirement in re.findall(r"[\w-]+==[\w.]+", text):
        assert requirement in script, requirement
    build = re.search(r'"\$BUILD" = (\w+)', text)
    assert build and f"ARG BUILD={build[1]}" in text
    entry = re.search(r'ENTRYPOINT \["(\w+)"\]', text)
    assert entry and entry[1] in PROJECT["project"]["scripts"]


def tool(name: str, *words: str) -> str:
    """What a script of tools/ prints."""
    command = [sys.executable, str(ROOT / "tools" / name), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_scripts_of_make_matrix_and_make_dist_are_complete() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import dist
        import matrix
    finally:
        sys.path.remove(str(ROOT / "tools"))
    assert "--ends" in tool("matrix.py", "--help") and "--no-demo" in tool("dist.py", "--help")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert here in matrix.interpreters()
    classifiers = [c.split(":: ")[-1] for c in PROJECT["project"]["classifiers"]]
    assert set(matrix.VERSIONS) <= set(classifiers)
    for path in [*matrix.selected("smoke"), *matrix.selected("merge cli")]:
        assert (ROOT / path).exists(), path
    with pytest.raises(SystemExit, match="no tests named 'nothing'"):
        matrix.selected("nothing")
    for name in dist.NEEDED[:3]:
        assert (ROOT / "mergeforget" / name).exists(), name


def test_the_lowest_tested_versions_are_those_of_the_project(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import matrix
    finally:
        sys.path.remove(str(ROOT / "tools"))
    path, torch = matrix.constraints("lowest", tmp_path)
    pins = path.read_text().split()
    assert torch == "torch==2.13.*" and {torch, "transformers==5.23.*", "peft==0.21.2"} <= set(pins)
    path, torch = matrix.constraints("newest", tmp_path)
    assert torch == "torch" and not path.read_text().strip()
