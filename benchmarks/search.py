"""How much of a grid's cost the cheaper searches need to find the grid's best candidate.

    python benchmarks/search.py RUN [--densities 0.1:1.0:0.1] [--objective mia] [--out search.json]

RUN is a trained pair (`mergeforget demo`, or `train-pair`); it is copied, not changed. The cost is
processor time spent on measuring candidates, which other work on the machine does not change; base,
over and under are measured once for all and left out. Prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.recipe import SearchSpec, change, load_recipe
from mergeforget.run import Run, machine, versions
from mergeforget.search.budget import Budget
from mergeforget.search.driver import ENDS, Options, search
from mergeforget.search.evaluator import Evaluator
from mergeforget.search.store import Store

NEEDED = ("recipe.yaml", "manifest.json", "data", "over", "under")


def main() -> None:
    """Run the whole grid, then each cheaper search, on copies of one run."""
    options = arguments()
    spec = search_spec(options)
    budget = max(3, len(spec.densities) // 2)
    ways = {
        "grid": (spec, Budget()),
        "grid, finalists by likelihood": (spec.model_copy(update={"finalists": 1}), Budget()),
        "tpe, finalists by likelihood": (
            spec.model_copy(update={"strategy": "tpe"}),
            Budget(candidates=budget),
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Run(copied(options.run, Path(folder) / "source", NEEDED))
        results = {}
        for number, (name, (how, allowed)) in enumerate(ways.items()):
            run = Run(copied(source.root, Path(folder) / str(number), None))
            results[name] = measured(run, how, allowed)
            if number == 0:
                keep_ends(run, source)
    report(results, options.out)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--densities", default=None)
    parser.add_argument("--objective", default="mia")
    parser.add_argument("--out", type=Path, default=Path("search.json"))
    return parser.parse_args()


def search_spec(options: argparse.Namespace) -> SearchSpec:
    """The recipe's section with what the command line says."""
    changes = {"objective": options.objective, "strategy": "grid", "finalists": None}
    if options.densities:
        changes["densities"] = options.densities
    return change(load_recipe(options.run / "recipe.yaml"), search=changes).search


def copied(root: Path, to: Path, names: tuple[str, ...] | None) -> Path:
    """A copy of a run folder, or of some of it."""
    to.mkdir(parents=True)
    for path in root.iterdir():
        if (names is None or path.name in names) and not path.name.startswith("."):
            copy: Callable[..., Any] = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, to / path.name)
    return to


def keep_ends(run: Run, source: Run) -> None:
    """Give the other searches what is measured of base, over and under."""
    write_jsonl(source.scores, [r for r in read_jsonl(run.scores) if r["subject"] in ENDS])
    source.answers.mkdir()
    for name in ENDS:
        shutil.copy(run.answers / f"{name}.jsonl", source.answers)
    source.search.mkdir()
    shutil.copy(run.search / "settings.json", source.search)


def measured(run: Run, spec: SearchSpec, budget: Budget) -> dict[str, Any]:
    """One search: what it chose and what its candidates cost."""
    costs: dict[str, list[float]] = {"glance": [], "generate": []}
    with timed("glance", costs["glance"]), timed("measure", costs["generate"]):
        choice = search(run, spec, Options(budget))
    chosen = read_json(run.search / "chosen.json")
    base = Store(run).scores["base"]
    rank = choice.objective.rank(choice.scored.scores, base, "choose")
    return {
        "chosen": chosen["name"],
        "value": rank.value,
        "glances": len(costs["glance"]),
        "generations": len(costs["generate"]),
        "seconds": sum(costs["glance"]) + sum(costs["generate"]),
    }


@contextmanager
def timed(method: str, costs: list[float]) -> Iterator[None]:
    """Note the processor time of every candidate that the evaluator measures."""
    original = getattr(Evaluator, method)

    def timing(self: Evaluator, adapter: Any, label: str, *more: Any) -> Any:
        start = time.process_time()
        result = original(self, adapter, label, *more)
        if label not in ENDS:
            costs.append(time.process_time() - start)
        return result

    setattr(Evaluator, method, timing)
    try:
        yield
    finally:
        setattr(Evaluator, method, original)


def report(results: dict[str, dict[str, Any]], out: Path) -> None:
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
    write_json(out, {"results": results, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
