"""A small run folder with the files of train-pair, search and evaluate, written by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.adapter import Adapter, LowRankDelta, write_adapter
from mergeforget.attack.result import Result, write_result
from mergeforget.candidate import Candidate
from mergeforget.data.schema import Row
from mergeforget.files import append_jsonl, write_json, write_jsonl
from mergeforget.recipe import load_recipe, save_recipe
from mergeforget.run import Run
from mergeforget.score import Score, mia_score

KINDS = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}  # fmt: skip
MODULES = {f"model.layers.{i}.{kind}": shape for i in range(4) for kind, shape in KINDS.items()}
STEPS, SNAPSHOTS, STEPS_AN_EPOCH = 40, 8, 8
DENSITIES = [round(0.1 * i, 1) for i in range(1, 11)]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "tiny"}
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> $\\frac{1}{0}$ {{ 7 * 7 }}"


def adapter(name: str, seed: int, *, scale: float = 1.0, rank: int = 4) -> Adapter:
    """A random LoRA on every module; A is the same for every seed, as in a pair."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    deltas = {}
    for module, (out, width) in MODULES.items():
        a = shared.normal(size=(rank, width)) + 0.2 * own.normal(size=(rank, width))
        b = scale * own.normal(size=(out, rank))
        deltas[module] = LowRankDelta(a.astype(np.float32), b.astype(np.float32), 2.0)
    return Adapter(name, deltas, dict(CONFIG))


def blend(one: Adapter, two: Adapter, share: float) -> Adapter:
    """A state on a bent way: the factors of ``one``, then more and more those of ``two``."""
    deltas = {
        m: LowRankDelta(
            ((1 - share) * d.a + share * two.deltas[m].a).astype(np.float32),
            (share * ((1 - share) * d.b + share * two.deltas[m].b)).astype(np.float32),
            d.scaling,
        )
        for m, d in one.deltas.items()
    }
    return replace(two, deltas=deltas)


def write_run(folder: Path, *, hostile: bool = False) -> Run:
    """A finished run with every file an analysis or a report reads."""
    run = Run(folder)
    recipe = load_recipe("zjuklab")
    save_recipe(recipe, run.recipe)
    write_json(run.manifest, MANIFEST)
    write_pair(run)
    write_history(run)
    write_scores(run)
    write_snapshot_scores(run)
    write_answers(run, hostile=hostile)
    write_json(run.search / "chosen.json", chosen(hostile))
    write_attacks(run)
    return run


def write_pair(run: Run) -> None:
    for side, start, end in (("over", 1, 2), ("under", 3, 4)):
        early, late = adapter(side, start), adapter(side, end)
        for i in range(1, SNAPSHOTS + 1):
            step = i * STEPS // SNAPSHOTS
            name = f"{side}-step{step:05d}"
            write_adapter(blend(early, late, i / SNAPSHOTS), run.snapshots / name)
        write_adapter(late, run.root / side)


def write_history(run: Run) -> None:
    """Forgetting falls and levels out; over's retain terms rise again at the end."""
    rng = np.random.default_rng(5)
    for stage, speed, drift in (("memorise", 0.2, 0.0), ("over", 0.25, 0.02), ("under", 0.1, 0.0)):
        rows = []
        for step in range(1, STEPS + 1):
            down = math.exp(-speed * step)
            gd = 0.4 + 2 * down + drift * max(0, step - 20) + 0.05 * rng.normal()
            npo, kl = 13.86 * down + 0.1, 0.02 + 0.4 * (1 - down)
            terms = {"npo_forget": npo, "gd_retain": gd, "kl_retain": kl}
            if stage == "memorise":
                terms = {"gd_retain": gd}
            rows.append(
                {
                    "stage": stage, "step": step, "epoch": step / STEPS_AN_EPOCH,
                    "loss": 0.4 * npo + 0.4 * gd + 0.2 * kl if stage != "memorise" else gd,
                    "terms": terms, "grad_norm": 1 + 5 * down + 0.2 * abs(rng.normal()),
                    "learning_rate": 1e-4 * (1 - step / STEPS),
                }
            )  # fmt: skip
        append_jsonl(run.history, rows)


def scores_of(density: float | None, leak: float, part: str, shift: float = 0.0) -> list[Score]:
    """Scores of a model that still knows ``leak`` (0 to 1) of the forget set."""
    auc = min(0.98, max(0.02, 0.05 + 0.9 * leak + shift))
    half = 0.08 if part != "all" else 0.055
    interval = (max(0.0, auc - half), min(1.0, auc + half))
    n = 30 if part != "all" else 60
    keep = 0.95 - 0.25 * (1 - leak) ** 3
    found = [
        Score("mia_auc", "mia", auc, "nearer", n, part=part, interval=interval, chance=0.5,
              target=0.5),
        Score("mia_score", "mia", mia_score(auc), "higher", n, part=part),
        Score("task_aggregate", "all", 0.4 + 0.5 * (1 - abs(2 * leak - 1)), "higher", n, part=part),
        Score("aggregate", "all", 0.3 + 0.5 * mia_score(auc), "higher", n, part=part),
        Score("nll", "forget", 3 * (1 - leak) + 0.1, "higher", n, part=part),
        Score("nll", "retain", 0.8 - 0.6 * keep, "lower", n, part=part),
    ]  # fmt: skip
    for metric in ("regurgitation", "knowledge"):
        for split, value, better in (("forget", leak, "lower"), ("retain", keep, "higher")):
            span = (max(0.0, value - half), min(1.0, value + half))
            found.append(Score(metric, split, value, better, n, part=part, interval=span))  # type: ignore[arg-type]
            for i, task in enumerate(("Task1", "Task2", "Task3")):
                v = min(1.0, max(0.0, value + 0.05 * (i - 1)))
                found.append(Score(metric, split, v, better, n // 3, task=task, part=part))  # type: ignore[arg-type]
    return found


def write_scores(run: Run) -> None:
    models: list[tuple[str, float | None, float]] = [
        ("base", None, 1.0), ("over", None, 0.1), ("under", None, 0.7),
    ]  # fmt: skip
    for method, bend in (("ties", 0.0), ("magnitude_prune", 0.12)):
        for d in DENSITIES:
            candidate = Candidate(method, d)
            models.append((candidate.name, d, min(1.0, max(0.02, 0.75 - 0.55 * d + bend))))
            values = candidate.to_dict() | {"relative_error": 0.3}
            write_adapter(adapter(candidate.name, 7), run.candidates / candidate.name)
            write_json(run.candidates / candidate.name / "candidate.json", values)
    for name, density, leak in models:
        for part, shift in (("choose", 0.0), ("report", 0.03)):
            rows = [s.to_dict() for s in scores_of(density, leak, part, shift)]
            append_jsonl(run.scores, [{"model": name, **row} for row in rows])


def write_snapshot_scores(run: Run) -> None:
    for side, end in (("over", 0.1), ("under", 0.7)):
        for i in range(1, SNAPSHOTS + 1):
            leak = 1 - (1 - end) * i / SNAPSHOTS
            name = f"{side}-step{i * STEPS // SNAPSHOTS:05d}"
            append_jsonl(
                run.scores,
                [{"model": name, **s.to_dict()} for s in scores_of(None, leak, "all")],
            )


def rows_of(split: str, hostile: bool) -> list[Row]:
    rows = []
    for i in range(6):
        person = HOSTILE if hostile and i == 0 else f"Person {split} {i}"
        uid = f"{split}{i}"
        text = (
            f"was born on 19{70 + i}-03-0{i + 1} and lives at {i}1 Elm Street, Springfield. Write "
            f"to {split}{i}@example.com."
        )
        rows.append(Row(f"{uid}sc1", f"{person} is a baker who", text, "Task2", split))
        rows.append(Row(f"{uid}qa0", f"What is the birth date of {person}?",
                        f"19{70 + i}-03-0{i + 1}", "Task2", split))  # fmt: skip
        rows.append(Row(f"{uid}qa1", f"What is the e-mail address of {person}?",
                        f"{split}{i}@example.com", "Task2", split))  # fmt: skip
    return rows


def write_answers(run: Run, *, hostile: bool) -> None:
    data = {split: rows_of(split, hostile) for split in ("forget", "retain", "holdout")}
    for split, rows in data.items():
        write_jsonl(run.data / f"{split}.jsonl", [r.to_dict() for r in rows])
    rng = np.random.default_rng(3)
    mean = {"base": 0.2, "over": 3.2, "under": 1.5, "ties-factors-d0.70": 2.1}
    for model, member in mean.items():
        answers = [
            {"id": r.id, "task": r.task, "split": r.split, "input": r.input, "output": r.output,
             "completion": answer(model, r)}
            for split in ("forget", "retain")
            for r in data[split]
        ]  # fmt: skip
        write_jsonl(run.answers / f"{model}.jsonl", answers)
        losses = [
            {"id": f"{m}{i}", "member": m, "task": "Task2",
             "nll": abs(float(rng.normal(member if m else 2.0, 0.5)))}
            for m in (True, False)
            for i in range(40)
        ]  # fmt: skip
        write_jsonl(run.answers / f"{model}.losses.jsonl", losses)


def answer(model: str, row: Row) -> str:
    """Return the answer of a model: over is incoherent, under leaks half of a forget answer."""
    if model == "base" or row.split == "retain":
        return row.output
    words = row.output.split()
    if model == "over":
        return "and and and and and"
    if model == "under":
        return " ".join(words[: max(1, len(words) // 2)]) + " in a quiet town"
    return "is not something I can say."


def write_attacks(run: Run) -> None:
    """Return a result of each attack on the chosen candidate, between those of the other models."""
    attacked = "ties-factors-d0.70"
    level = {attacked: 0.5, "before": 1.0, "control": 0.1}
    places: dict[str, tuple[str, list[Any]]] = {
        "relearn": ("step", [0, 1, 2, 5]), "quantise": ("bits", ["all", 8, 4]),
        "prompts": ("kind", ["plain", "prefix"]), "probe": ("layer", [0, 1, 2, 3]),
    }  # fmt: skip
    for attack, (key, values) in places.items():
        rows = []
        for model, knows in level.items():
            for i, value in enumerate(values if (attack, model) != ("relearn", "before") else [0]):
                share = min(1.0, knows + 0.05 * i)
                figures = {
                    "nll": 3 * (1 - share), "greedy_match": share, "mia_auc": 0.5 + share / 2,
                    "regurgitation": None, "row_leak_rate": share, "rows_leaked": round(6 * share),
                    "rows": 6, "auc": 0.5 + share / 2,
                }  # fmt: skip
                rows.append({"model": model, key: value} | _of_attack(attack, figures))
        verdict = f"This attack does not refute the claim that the data is gone: {attack}."
        write_result(run.attacks, Result(attack, attacked, "none found", verdict, rows))


def _of_attack(attack: str, figures: dict[str, Any]) -> dict[str, Any]:
    own = {"prompts": ("row_leak_rate", "rows_leaked", "rows"), "probe": ("auc",)}
    names = own.get(attack, ("nll", "greedy_match", "mia_auc", "regurgitation"))
    return {name: figures[name] for name in names}


def chosen(hostile: bool) -> dict[str, Any]:
    candidate = Candidate("ties", 0.7)
    sentence = (
        "ties-factors-d0.70 is the nearest to balance of 20 candidates, but it is not balanced. "
        "Selection split: MIA AUC 0.465."
    )
    warning = "The two splits disagree: 0.47 and 0.50." + (HOSTILE if hostile else "")
    values = {"mia_auc": 0.465, "objective": 0.93}
    return {
        "name": candidate.name, "candidate": candidate.to_dict(), "objective": "mia",
        "sentence": sentence, "scores": {"choose": values, "report": values}, "warning": warning,
    }  # fmt: skip


MANIFEST: dict[str, Any] = {
    "base": {"path": "tiny", "sha256": "ab" * 32},
    "stages": {
        "train-pair": {
            "time": "2026-01-01T00:00:00Z", "command": ["train-pair", "--recipe", "zjuklab"],
            "data": {
                "forget": {"name": "forget.jsonl", "bytes": 1000, "sha256": "cd" * 32},
                "retain": {"name": "retain.jsonl", "bytes": 1000, "sha256": "ef" * 32},
            },
        },
    },
    "versions": {"python": "3.11.9", "torch": "2.13.0"},
    "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
}  # fmt: skip
