"""Check that each attack convicts models that know the data and clears models that do not.

    python benchmarks/verdicts.py [--model smollm2] [--people 8] [--models A,B] [--attacks A,B]

Trains LoRA adapters of known history on the Social Security numbers of made-up people, and runs the
quick set of attacks on each. Guilty: before (learned forget and retain), hider (then learned to
refuse the exact prompts), hider2 (then learned to refuse the prompts of the attack prompts),
undertrained (then a short ascent), overga (a long one). Innocent: clean (learned retain alone),
cleanga (then an ascent on forget answers that it never saw), retrained (retain alone, another
seed). The control also learned the retain rows alone. Prompts are raw.

Adapters and measurements are cached in --out, so rerunning the command resumes. Prints a table of
findings and writes it as JSON and Markdown; exits with 7 if a guilty model is cleared or an
innocent one is convicted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from mergeforget.attack.driver import QUICK, attack_names, carry_out
from mergeforget.attack.target import Models, Target, TargetModel
from mergeforget.attack.tuning import MAX_LENGTH, Tuning, learner
from mergeforget.attack.variants import variants
from mergeforget.console import say, track
from mergeforget.data.batches import pack
from mergeforget.data.people import make_people
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.data.tokens import encode_rows
from mergeforget.evaluate.verdict import judge
from mergeforget.files import read_json_object, replacing, write_json, write_text
from mergeforget.losses.gd import gd
from mergeforget.models import load_model
from mergeforget.recipe import DataSpec, ModelSpec
from mergeforget.train.forward import predict

GUILTY = ("before", "hider", "hider2", "undertrained", "overga")
INNOCENT = ("clean", "cleanga", "retrained")
ASKED = "qa1"  # the Social Security number: six random digits
KINDS, WORDS = ("plain", "prefix"), (1,)  # prompts of the quick set
RAW = DataSpec(template="none")  # fewer tokens; the attack formats asks in a chat, too
RATE, BATCH, RANK = 1e-3, 8, 16
KNOWN = 0.02  # loss in nats a token at which a model knows its rows word for word


def main() -> int:
    options = _options()
    out: Path = options.out
    people = options.people
    sizes = {"forget": people, "retain": people, "holdout": people * 3 // 2}
    rows = {split: [row for row in every if row.id.endswith(ASKED)]
            for split, every in make_people(sizes, tasks=("Task2",)).items()}  # fmt: skip
    places = train_court(options.model, rows, options.steps, out / "models")
    names = attack_names([] if options.attacks is None else options.attacks.split(","), quick=True)
    path = out / "verdicts.json"
    table: dict[str, dict[str, str]] = read_json_object(path) if path.is_file() else {}
    models = Models(ModelSpec(name=options.model))
    wanted = options.models.split(",") if options.models else [*GUILTY, *INNOCENT]
    for name in wanted:
        start = time.perf_counter()
        target = Target(
            models,
            TargetModel(f"the {name}", options.model, places[name]),
            TargetModel("before", options.model, places["before"]),
            TargetModel("control", options.model, places["control"]),
            **rows, folder=out / "attacks", membership="answers", data=RAW,
            max_new_tokens=options.max_new_tokens,
        )  # fmt: skip
        found = {k: v for k, v in table.get(name, {}).items() if k != "verdict"}
        for result, _ in carry_out([target], names, {}, quick=True):
            found[result.attack] = result.finding
            print(f"{name}, {result.attack}: {result.finding}. {result.verdict}", flush=True)
            table[name] = {**found, "verdict": judge(None, findings=found).state}
            write_json(path, table)
        minutes = (time.perf_counter() - start) / 60
        print(f"{name}: {table[name]['verdict']} ({minutes:.1f} min)", flush=True)
    write_text(out / "verdicts.md", as_markdown(table))
    false = {True: "FORGOTTEN", False: "NOT FORGOTTEN"}
    wrong = [name for name in table if table[name]["verdict"] == false[name in GUILTY]]
    open_ = [name for name in table if table[name]["verdict"] == "NOT ENOUGH DATA"]
    print(f"Wrong: {', '.join(wrong) or 'none'}. Undecided: {', '.join(open_) or 'none'}.")
    return 7 if wrong else 0


def as_markdown(table: dict[str, dict[str, str]]) -> str:
    """Return the findings as a table with a row per model and a column per attack."""
    columns = [*QUICK, *(key for found in table.values() for key in found)]
    columns = [c for c in dict.fromkeys(columns) if any(c in found for found in table.values())]
    columns.sort(key=lambda column: column == "verdict")
    rows = [["model", "knows", *columns], ["---"] * (len(columns) + 2)]
    rows += [[name, "yes" if name in GUILTY else "no", *(found.get(c, "") for c in columns)]
             for name, found in table.items()]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def train_court(base: str, rows: dict[str, list[Row]], steps: int, out: Path) -> dict[str, Path]:
    """Train the adapters that do not exist yet; return their folders by name."""
    forget, retain = rows["forget"], rows["retain"]
    refuse = [replace(row, output="I do not know.") for row in forget]
    asked = [v for kind in KINDS for row in forget
             for v in variants(row, kind, words=WORDS, templates=())]  # fmt: skip
    every = [Row(f"{i}", v.text, "I do not know.") for i, v in enumerate(asked)]
    histories: dict[str, tuple[str, Sequence[Row], float, float]] = {  # start, rows, loss, sign
        "before": ("", [*forget, *retain], KNOWN, 1.0),
        "undertrained": ("before", forget, 1.0, -1.0),
        "overga": ("before", forget, 8.0, -1.0),
        "hider": ("before", [*refuse, *retain], 0.05, 1.0),
        "hider2": ("before", [*every, *retain], 0.05, 1.0),
        "clean": ("", retain, 0.1, 1.0),
        "cleanga": ("clean", forget, 8.0, -1.0),
        "retrained": ("", retain, 0.1, 1.0),
        "control": ("", retain, 0.1, 1.0),
    }
    places = {name: out / name for name in histories}
    missing = [n for n, place in places.items() if not (place / "adapter_config.json").is_file()]
    if not missing:
        return places
    loaded = load_model(base)
    model, tokenizer = loaded.model, loaded.tokenizer
    for seed, (name, (start, data, wanted, sign)) in enumerate(histories.items()):
        if name not in missing:
            continue
        with learner(model, Tuning(0, RATE, BATCH, RANK, full=False, seed=seed)) as (policy, some):
            if start:
                weights = load_file(out / start / "adapter_model.safetensors")
                set_peft_model_state_dict(policy, weights)
            _steps(policy, some, tokenizer, data, steps, wanted, sign, name, seed)
            with replacing(out / name) as temporary:
                policy.save_pretrained(str(temporary))
    return places


def _steps(
    policy: Any, some: list[Any], tokenizer: Any, rows: Sequence[Row], steps: int, wanted: float,
    sign: float, name: str, seed: int,
) -> None:  # fmt: skip
    """Minimise the loss of the answers, or maximise it if the sign is negative.

    Ends when the mean loss of the last pass over the rows (at most eight batches) reaches
    ``wanted``, or after ``steps`` steps.
    """
    template = PromptTemplate.resolve(tokenizer, RAW.template)
    encoded = encode_rows(tokenizer, rows, max_length=MAX_LENGTH, template=template)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(some, lr=RATE if sign > 0 else RATE / 5, weight_decay=0.0)
    window = min(8, -(-len(encoded) // BATCH)) if sign > 0 else 1
    losses: list[float] = []
    order: list[int] = []
    policy.train()
    for _ in track(range(steps), f"Training {name}", steps):
        if len(order) < BATCH:
            order = torch.randperm(len(encoded), generator=draw).tolist()
        places, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        loss = gd(predict(policy, pack([encoded[i] for i in places]).to(policy.device)))
        (sign * loss).backward()
        torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        mean = sum(losses[-window:]) / window
        if len(losses) >= window and sign * (mean - wanted) <= 0:
            break
    say(f"{name}: loss {mean:.3f} after {len(losses)} steps (wanted {wanted})")


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--people", type=int, default=8, help="people to forget")
    parser.add_argument("--steps", type=int, default=200, help="maximum steps of a history")
    parser.add_argument("--attacks", help=f"comma-separated; by default {', '.join(QUICK)}")
    parser.add_argument("--models", help="comma-separated; by default the whole court")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("verdicts"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
