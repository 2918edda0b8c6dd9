"""Scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeforget.evaluate.paired import PairedDifference
from mergeforget.evaluate.worst_case import prompt_dependence
from mergeforget.recipe import EvaluationSpec
from mergeforget.score import Score, find


def render(scores: Mapping[str, Sequence[Score]]) -> str:
    """Return a table with a row per score and a column per model, with intervals for one model."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("metric", "split", "task"):
        table.add_column(heading)
    for model in scores:
        table.add_column(model, justify="right")
    alone = len(scores) == 1
    for heading in ["95 % interval", "chance", "n"] if alone else []:
        table.add_column(heading, justify="right")
    table.add_column("better")
    found = {model: {key_of(s): s for s in every} for model, every in scores.items()}
    for key in dict.fromkeys(k for every in found.values() for k in every):
        cells = [every.get(key) for every in found.values()]
        one = next(s for s in cells if s is not None)
        texts = ["" if s is None else f"{s.value:.4f}" for s in cells]
        table.add_row(*key[:3], *texts, *(_details(one) if alone else []), _better(one))
    return as_text(table)


def render_differences(first: str, differences: Mapping[str, Sequence[PairedDifference]]) -> str:
    """Return a table of differences from the first model, with a row per model and score."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"Difference from {first} on the same rows",
                  title_justify="left")  # fmt: skip
    for heading in ("model", "metric", "split"):
        table.add_column(heading)
    for heading in ("difference", "95 % interval", "n"):
        table.add_column(heading, justify="right")
    table.add_column("distinguishable")
    for model, every in differences.items():
        for one in every:
            interval = "{:+.3f} to {:+.3f}".format(*one.interval)
            word = "yes" if one.distinguishable else "no"
            table.add_row(model, one.metric, one.split, f"{one.value:+.4f}", interval,
                          str(one.n), word)  # fmt: skip
    return as_text(table)


def key_of(score: Score) -> tuple[str, str, str, str]:
    """Return the key under which scores of different models are compared."""
    return score.metric, score.split, score.task, score.part


def _details(score: Score) -> list[str]:
    interval = "" if score.interval is None else "{:.3f} to {:.3f}".format(*score.interval)
    chance = "" if score.chance is None else f"{score.chance:.3f}"
    return [interval, chance, str(score.n) if score.n else ""]


def _better(score: Score) -> str:
    return score.better if score.target is None else f"nearer to {score.target:g}"


def as_text(table: object) -> str:
    """Render a rich table as plain text with the width of the terminal."""
    import io
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(table)
    return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined,no-any-return]


RETRAINED = (
    "Forget quality and PrivLeak are not computed: they need a model that was trained without the "
    "forget set. Pass it with --retrained MODEL; or measure it once with `mergeforget evaluate "
    "--model MODEL --benchmark tofu --forget FILE --holdout FILE --out DIR`, and pass --retrained "
    "DIR/answers/NAME.likelihoods.jsonl."
)
UTILITY = (
    "Model utility is not computed: it needs retain rows with perturbed answers (--rows "
    "retain=retain_perturbed.jsonl), --rows real_authors=real_authors_perturbed.jsonl and --rows "
    "world_facts=world_facts_perturbed.jsonl."
)


def notes(spec: EvaluationSpec, scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """Return warnings and remarks on scores, without duplicates."""
    found = []
    for name, every in scores.items():
        found += prompt_dependence(name, every)
        ratio = find(every, "utility_ratio", "all")
        if ratio is not None:
            found.append(below_floor(name, ratio, spec.floor))
        if spec.benchmark.replace("-", "_") == "tofu":
            found.append("" if find(every, "forget_quality", "forget") else RETRAINED)
            found.append("" if find(every, "model_utility", "all") else UTILITY)
    return list(dict.fromkeys(filter(None, found)))


def below_floor(name: str, ratio: Score, floor: float) -> str:
    """Return a warning if the utility ratio is below the floor, or an empty string."""
    if ratio.value >= floor:
        return ""
    what = ratio.definition.split("/", 1)[1].rpartition("@")[0]
    return (
        f"{name} keeps {ratio.value:.1%} of the utility ({what}) of the model before unlearning, "
        f"below the floor of {floor:.0%}: it has lost more than the forget set."
    )
