"""The public Python API: light to import, typed, with short reprs and tables."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from finished_run import adapter, write_run

import mergeforget as mf
from mergeforget.adapter import read_adapter, write_adapter
from mergeforget.errors import InputError, ResourceError, UsageError
from mergeforget.run import Run

HEAVY = ("torch", "transformers", "peft", "numpy", "pydantic", "yaml", "click", "matplotlib")


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    return write_run(tmp_path / "run")


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "over", tmp_path / "under"]
    for seed, folder in enumerate(folders):
        write_adapter(adapter(folder.name, seed + 1), folder)
    return folders


def test_importing_the_package_loads_nothing_heavy_within_a_tenth_of_a_second() -> None:
    code = (
        "import sys, time; start = time.process_time(); import mergeforget\n"
        "spent = time.process_time() - start; dir(mergeforget)\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else f'{spent} s' if spent > 0.1 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [n for n in mf.__all__ if n not in ("__version__", "search")])
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(mf, name)
    assert callable(found)
    assert name in dir(mf)
    assert inspect.getdoc(found)


def test_a_function_can_be_called_after_the_subpackage_of_its_name_was_imported(
    pair: list[Path],
) -> None:
    import mergeforget.merge.engine

    assert isinstance(mf.merge, types.ModuleType)
    assert mf.merge(pair, density=0.5).candidate.name == "ties-factors-d0.50"
    assert "density" in inspect.signature(mf.merge).parameters
    assert mergeforget.merge.engine.merge_adapters is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="mergeforgot"):
        _ = mf.mergeforgot


def test_merge_takes_paths_texts_and_loaded_adapters(pair: list[Path], tmp_path: Path) -> None:
    from mergeforget.api.merging import merge

    loaded = [mf.load_adapter(str(folder)) for folder in pair]
    results = [
        merge(source, method="ties", density=0.7, weights=[1, 0.5])
        for source in (pair, [str(p) for p in pair], loaded)
    ]
    deltas = [one.adapter.deltas for one in results]
    for module, delta in deltas[0].items():
        assert all((other[module].b == delta.b).all() for other in deltas)
    folder = results[0].save(tmp_path / "merged")
    assert read_adapter(folder).deltas.keys() == deltas[0].keys()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no merge wrote"):
        results[0].save(tmp_path / "other")


def test_merge_needs_no_options(pair: list[Path]) -> None:
    from mergeforget.api.merging import merge
    from mergeforget.candidate import DEFAULT
    from mergeforget.recipe import MergeSpec, SearchSpec

    assert merge(pair).candidate == DEFAULT == merge(pair, method="ties").candidate
    assert merge(pair[:1], rank=1).candidate.space == "delta"
    spec, searched = MergeSpec(), SearchSpec()
    assert (spec.method, spec.density, spec.space) == ("ties", DEFAULT.density, DEFAULT.space)
    assert searched.methods == [DEFAULT.method] and DEFAULT.density in searched.densities


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "ties", "seed": 0}, "--seed does not apply to ties"),
        ({"svd": "exact"}, "--svd does not apply to ties in factors space"),
        ({"base": "elsewhere"}, "--base does not apply"),
        ({"space": "delta", "compare": True}, "--compare does not apply"),
        ({"method": "sce", "space": "factors"}, "--space factors does not apply to sce"),
        ({"method": "ties_svd", "space": "factors"}, "--space factors does not apply to ties_svd"),
        ({"method": "purpose", "density": 0.5}, "leave density out"),
    ],
)
def test_an_option_that_a_merge_does_not_use_is_refused(
    pair: list[Path], options: dict[str, Any], named: str
) -> None:
    from mergeforget.api.merging import merge

    with pytest.raises(UsageError, match=named):
        merge(pair, **options)


def test_signatures_list_every_option_and_unknown_ones_are_refused(pair: list[Path]) -> None:
    from mergeforget.api.merging import merge, merge_full, merge_models

    for function in (merge, merge_full, merge_models):
        parameters = inspect.signature(function).parameters
        assert parameters["density"].default is None and parameters["threads"].default == 0
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
        documented = inspect.getdoc(function) or ""
        assert all(name in documented for name in parameters)
    with pytest.raises(TypeError, match="Did you mean 'density'"):
        merge(pair, densty=0.5)  # type: ignore[call-arg]


COMMANDS = {  # command -> its function, and options of one of them alone
    "train": ("train", set()),
    "train-pair": ("train_pair", set()),
    "merge-models": ("merge_models", {"print_mergekit"}),
    "extract-lora": ("extract_lora", set()),
    "search": ("search", {"worker"}),
    "evaluate": ("evaluate", set()),
    "export": ("export", set()),
    "plan": ("plan", set()),
    "score": ("score", set()),
    "list": ("available", set()),
    "doctor": ("doctor", set()),
    "report": ("report", {"open_it"}),
    "verify": ("verify", set()),
    "data make": ("make_data", set()),
    "data check": ("check_data", set()),
    "data show": ("read_data", {"rows"}),
    "data convert": ("convert_data", set()),
    "recipes copy": ("copy_recipe", set()),
    "recipes show": ("explain_recipe", set()),
    "merge": ("merge_full", {"adapters", "run", "source", "full", "compare"}),
    "unlearn": ("unlearn", {"yes", "approve", "attacks", "merge"}),
}
SHARED = {"plugins", "verbose", "quiet", "trust_remote_code", "help", "as_json"}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_and_its_function_have_the_same_options_and_defaults(words: str) -> None:
    from importlib import import_module

    import click

    from mergeforget.cli import main

    name, apart = COMMANDS[words]
    parameters = inspect.signature(getattr(import_module(mf._MODULES[name]), name)).parameters
    command: Any = main
    context = click.Context(main)
    for word in words.split():
        command = command.get_command(context, word)
    options = {o.name: o for o in command.params if o.name not in SHARED}
    assert options.keys() ^ parameters.keys() == apart
    for key, option in options.items():
        default = option.get_default(context)
        if isinstance(default, int | float) and default is not False and key not in apart:
            assert default == parameters[key].default


def test_merge_settings_by_module_are_given_as_a_mapping_or_as_texts(pair: list[Path]) -> None:
    from mergeforget.api.merging import merge

    one = merge(pair, density=0.5, density_by={"q_proj": 0.2}, weights_by={"up_proj": [1, 0.5]})
    two = merge(pair, density=0.5, density_by=["q_proj=0.2"], weights_by=["up_proj=1,0.5"])
    assert one.candidate == two.candidate
    with pytest.raises(UsageError, match="2 are needed"):
        merge(pair, density=0.5, weights_by={"up_proj": 1})


def test_reprs_fit_on_a_line(finished: Run, pair: list[Path]) -> None:
    from mergeforget.api.merging import merge

    run = mf.load_run(finished.root)
    shown: list[Any] = [run, run.over, run.scores, merge(pair, density=0.5)]
    shown += [run.over.deltas[next(iter(run.over.deltas))], run.scores_of_search()]
    for one in shown:
        assert len(repr(one)) < 400, repr(one)
        assert "\n" not in repr(one)


def test_a_run_gives_recipe_adapters_scores_and_history(finished: Run) -> None:
    run = mf.load_run(str(finished.root))
    assert run.recipe.name == "zjuklab"
    assert run.over.deltas.keys() == run.under.deltas.keys()
    assert run.chosen in run.candidates
    assert run.history[0]["step"] >= 0
    searched = run.scores_of_search()
    assert searched.value("mia_auc", "mia", model="over", part="report") >= 0
    with pytest.raises(UsageError, match="Did you mean 'mia_auc'"):
        searched.value("mia_auk", "mia", model="over")


def test_scores_become_a_table_or_say_that_pandas_is_missing(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = mf.load_run(finished.root).scores_of_search()
    records = scores.to_dicts()
    assert {"model", "metric", "split", "value", "low", "high", "part"} <= records[0].keys()
    seen: dict[str, Any] = {}
    table = types.SimpleNamespace(DataFrame=lambda rows: seen.update(rows=rows) or "a table")
    monkeypatch.setitem(sys.modules, "pandas", table)
    assert scores.to_pandas() == "a table"
    assert seen["rows"] == records
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ResourceError, match="pip install pandas"):
        scores.to_pandas()
    assert scores.save(tmp_path / "scores.jsonl").read_text().count("\n") == len(records)


def test_report_and_compare_and_analyze_take_a_folder_or_a_run(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    writer = "mergeforget.analysis.report.write_report"  # slow; tests/analysis has its own tests

    def write(run: Run, path: Path) -> Path:
        written.append((run, path))
        return path

    monkeypatch.setattr(writer, write)
    assert mf.report(str(finished.root), out=tmp_path / "page.html") == tmp_path / "page.html"
    assert written == [(finished, tmp_path / "page.html")]
    found = mf.analyze(mf.load_run(finished.root), ["prediction"], out=str(tmp_path / "analysis"))
    assert [one.name for one in found] == ["prediction"]
    assert (tmp_path / "analysis" / "prediction.json").is_file()
    with pytest.raises(UsageError, match="dynamics"):
        mf.analyze(finished.root, ["angles"], against=finished.root)
    scores = mf.compare([finished.root], run_model="over", part="report")
    assert list(scores) == ["run: over"]


OTHERWISE = {  # options of the command line that have another form in Python, or none
    "as_json", "assignments", "arguments", "open_it", "worker", "trust_remote_code", "runs", "yes",
    "person",  # of report: printed instead of the page
    "merge",  # of unlearn: an argument of unlearn_sequence
}  # fmt: skip
SAME = {"subject": "run_model", "model": "run_model"}  # in compare


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("unlearn", "unlearn"),
        ("train-pair", "train_pair"),
        ("train", "train"),
        ("search", "search"),
        ("evaluate", "evaluate"),
        ("export", "export"),
        ("report", "report"),
        ("analyze", "analyze"),
        ("compare", "compare"),
    ],
)
def test_a_function_takes_the_options_of_its_command_with_the_same_defaults(
    command: str, function: str
) -> None:
    import click

    from mergeforget.cli import main

    options = main.get_command(click.Context(main), command)
    assert options is not None
    parameters = inspect.signature(getattr(mf, function)).parameters
    for option in options.params:
        if not option.expose_value or option.name in OTHERWISE:
            continue
        name = SAME.get(str(option.name), option.name) if command == "compare" else option.name
        assert name in parameters, f"{function} has no argument {name!r}"
        theirs, ours = option.default, parameters[str(name)].default
        if isinstance(theirs, str | int | float) and not isinstance(theirs, bool):
            assert ours == theirs or option.required, f"{function}: {name}={ours!r}, not {theirs!r}"


PACKAGE = Path(mf.__file__).parent
EXAMPLES = [".".join(("mergeforget", *p.relative_to(PACKAGE).with_suffix("").parts))
            for p in sorted(PACKAGE.rglob("*.py")) if ">>> " in p.read_text("utf-8")]  # fmt: skip


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings_run(module: str) -> None:
    import doctest

    example = pytest.importorskip(module.removesuffix(".__init__"), exc_type=ImportError)
    found = doctest.testmod(example, optionflags=doctest.ELLIPSIS)
    assert not found.failed
