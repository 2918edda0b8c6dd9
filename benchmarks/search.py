"""Compare the cost of the cheaper search strategies with that of a grid search.

    python benchmarks/search.py RUN [--densities 0.1:1.0:0.1] [--objective mia] [--out search.json]

RUN is a trained pair (`mergeforget demo`, or `train-pair`); it is copied, not changed. The cost is
the processor time from the measurement of base, over and under to the choice: predicting, merging
and measuring. Other work on the machine changes it little. Base, over and under are measured once
and excluded from the cost, or taken from RUN if a search has measured them. Prints one table and
writes JSON; a search that is already in the JSON file is not run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergeforget.files import read_json_object, read_jsonl, write_json, write_jsonl
from mergeforget.recipe import SearchSpec, change, load_recipe
from mergeforget.run import ANCHORS, Run, machine, versions
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, Searching, search
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.store import Store

NEEDED = ("recipe.yaml", "manifest.json", "data", "over", "under")


def main() -> None:
    """Run the whole grid, then each cheaper search, on copies of one run."""
    options = arguments()
    before = read_json_object(options.out).get("results", {}) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        source = Run(copied(options.run, Path(folder) / "source", NEEDED))
        if (options.run / "search" / "settings.json").exists():
            keep_ends(Run(options.run), source)
        results = dict(before)
        for number, (name, (how, allowed)) in enumerate(ways(options).items()):
            if name in before or (options.only and name not in (*options.only, "grid")):
                continue
            run = Run(copied(source.root, Path(folder) / str(number), None))
            results[name] = measured(run, how, allowed)
            if not source.search.exists():
                keep_ends(run, source)
            write_json(options.out, {"results": results})
    report(results, options)


def ways(options: argparse.Namespace) -> dict[str, tuple[SearchSpec, SearchBudget]]:
    """Return the searches to compare; the whole grid comes first."""
    spec = search_spec(options)
    budget = SearchBudget(candidates=max(3, len(spec.densities) // 2))
    return {
        "grid": (spec, SearchBudget()),
        "grid, finalists by likelihood": (spec.model_copy(update={"finalists": 1}), SearchBudget()),
        "tpe, finalists by likelihood": (spec.model_copy(update={"strategy": "tpe"}), budget),
        "refine": (spec.model_copy(update={"strategy": "refine"}), SearchBudget()),
    }


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--densities", default=None)
    parser.add_argument("--objective", default=None, help="[the recipe's]")
    parser.add_argument("--only", action="append", help="Search to compare with the grid.")
    parser.add_argument("--out", type=Path, default=Path("search.json"))
    return parser.parse_args()


def search_spec(options: argparse.Namespace) -> SearchSpec:
    """Return the recipe's section with the options of the command line."""
    changes: dict[str, Any] = {"strategy": "grid", "finalists": None, "groups": 1}
    if options.objective:
        changes["objective"] = options.objective
    if options.densities:
        changes["densities"] = options.densities
    return change(load_recipe(options.run / "recipe.yaml"), search=changes).search


def copied(root: Path, to: Path, names: tuple[str, ...] | None) -> Path:
    """Copy a run folder, or some of its files."""
    to.mkdir(parents=True)
    for path in root.iterdir():
        if (names is None or path.name in names) and not path.name.startswith("."):
            copy: Callable[..., Any] = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, to / path.name)
    return to


def keep_ends(run: Run, source: Run) -> None:
    """Copy the measurements of base, over and under to the other searches."""
    write_jsonl(source.scores, [r for r in read_jsonl(run.scores) if r["model"] in ANCHORS])
    source.answers.mkdir()
    for name in ANCHORS:
        for path in (f"{name}.jsonl", f"{name}.losses.jsonl"):
            shutil.copy(run.answers / path, source.answers)
    source.search.mkdir()
    shutil.copy(run.search / "settings.json", source.search)


def measured(run: Run, spec: SearchSpec, budget: SearchBudget) -> dict[str, Any]:
    """Run one search; return its choice and its cost after base, over and under were measured."""
    calls: dict[str, int] = {"measure_proxy": 0, "measure": 0}
    start: list[float] = []
    with counted("measure_proxy", calls, start), counted("measure", calls, start):
        choice = search(run, spec, Options(budget))
    base = Store(run).scores["base"]
    rank = choice.objective.rank(choice.scored.scores, base, "choose")
    return {
        "objective": spec.objective,
        "chosen": choice.scored.name,
        "value": rank.value,
        "floors_kept": not rank.shortfall,
        "glances": calls["measure_proxy"],
        "generations": calls["measure"],
        "seconds": time.process_time() - start[0],
    }


@contextmanager
def counted(method: str, calls: dict[str, int], start: list[float]) -> Iterator[None]:
    """Count the measured candidates, and record when the first measurement began."""
    original = getattr(Evaluator, method)
    ends = Searching.measure_anchors

    def counting(self: Evaluator, adapter: Any, label: str, *more: Any) -> Any:
        calls[method] += label not in ANCHORS
        return original(self, adapter, label, *more)

    def ending(self: Searching) -> None:
        ends(self)
        self.explorer.evaluator()  # loads the model, which every search needs
        start[:] = [time.process_time()]

    setattr(Evaluator, method, counting)
    Searching.measure_anchors = ending  # type: ignore[method-assign]
    try:
        yield
    finally:
        setattr(Evaluator, method, original)
        Searching.measure_anchors = ends  # type: ignore[method-assign]


def report(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and write the numbers."""
    grid = results["grid"]
    print(f"{'search':32}{'looked at':>10}{'generated':>10}{'CPU s':>8}{'cost':>7}  chosen")
    for name, r in results.items():
        r["share"] = r["seconds"] / grid["seconds"]
        r["same_best"] = r["value"] == grid["value"]
        same = "" if r["same_best"] else f"  (grid: {grid['value']:.3f})"
        looked = r["glances"] or r["generations"]
        print(
            f"{name:32}{looked:10}{r['generations']:10}{r['seconds']:8.1f}{r['share']:7.0%}"
            f"  {r['chosen']} {r['value']:.3f}{same}"
        )
    facts = {"machine": machine(), "versions": versions(), "load": os.getloadavg()}
    write_json(options.out, {"results": results, **facts})


if __name__ == "__main__":
    main()
