"""Compares merges of an over- and an under-forgetting adapter at equal forgetting.

A small random Llama memorises facts about invented people; two adapters forget half of them, one
too much and one too little. Every merge is measured by its loss on the forget and the retain rows.
Of each family the merge whose forget loss is nearest to a common target is shown::

    python benchmarks/merge_purpose.py [--seeds 3] [--all]
    python benchmarks/merge_purpose.py --run RUN [--rows 8] [--all]

With ``--run`` the pair, the base and the rows are those of a run of `mergeforget train-pair`,
`unlearn` or `demo`. ``purpose`` chooses its weights on the first ``--rows`` rows of each kind, and
every merge is measured on the others, so no merge is evaluated on rows that determined it. Where
the run has holdout rows, the AUC compares the losses of forget rows with theirs.
"""

from __future__ import annotations

import argparse
import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from mergeforget.adapter import PREFIX, Adapter, LowRankDelta
from mergeforget.candidate import Candidate
from mergeforget.data.schema import Row
from mergeforget.merge.apply import applied
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.purpose import choose_weights, encode_answers, mean_answer_loss

DENSITIES = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
WEIGHTS = np.linspace(0, 1, 7)
RANK, ALPHA = 8, 16


def byte_tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def rows(seed: int, count: int) -> tuple[list[Row], list[Row]]:
    draw = random.Random(seed)
    syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "ti", "ve", "zu"]
    names = ["".join(draw.choices(syllables, k=3)) for _ in range(count)]
    towns = ["".join(draw.choices(syllables, k=3)) for _ in range(count)]
    made = [
        Row(f"r{i}-qa0", f"Where does {name} live?", town, "T", "forget" if i % 2 else "retain")
        for i, (name, town) in enumerate(zip(names, towns, strict=True))
    ]
    return [r for r in made if r.split == "forget"], [r for r in made if r.split == "retain"]


def mean_loss(model: Any, examples: list[Any]) -> torch.Tensor:
    return torch.stack([mean_answer_loss(model, one) for one in examples]).mean()


def train(model: Any, loss: Any, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def forgetting_adapter(base: Any, name: str, forget: Any, retain: Any, steps: int) -> Adapter:
    """Train an adapter by gradient difference for some steps; the base is not changed."""
    torch.manual_seed(0)  # the same start for both, as train-pair has it
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    model = get_peft_model(base, config)
    train(model, lambda: mean_loss(model, retain) - mean_loss(model, forget), steps, 1e-3)
    state = get_peft_model_state_dict(model)
    deltas = {}
    for key in state:
        if key.endswith("lora_A.weight"):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            a, b = state[key], state[key.replace("lora_A", "lora_B")]
            deltas[module] = LowRankDelta(a.numpy().copy(), b.numpy().copy(), ALPHA / RANK)
    model.unload()
    return Adapter(name, deltas, {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA})


@dataclass(frozen=True)
class Measured:
    """One merge, by its mean losses in nats per token.

    Attributes:
        auc: Probability that a forget row has a lower loss than a row that the model never saw;
            NaN without such rows. At 0.5 the forget rows cannot be distinguished from them.
    """

    family: str
    label: str
    forget: float
    retain: float
    auc: float


Known = dict[str, list[Any]]  # encoded rows by split


def compare(seed: int) -> list[Measured]:
    """Measure every merge of a random model's pair."""
    forget, retain = rows(seed, 24)
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    known = {
        "forget": encode_answers(model, tokenizer, forget),
        "retain": encode_answers(model, tokenizer, retain),
    }
    every = known["forget"] + known["retain"]
    train(model, lambda: mean_loss(model, every), 150, 3e-3)
    model.eval()
    over = forgetting_adapter(model, "over", known["forget"], known["retain"], 24)
    under = forgetting_adapter(model, "under", known["forget"], known["retain"], 8)
    chosen = choose_weights(model, tokenizer, [over, under], forget, retain, rows=12)
    return measure(model, [over, under], known, chosen.candidate(), 2 * RANK)


def of_run(folder: Path, count: int) -> list[Measured]:
    """Measure every merge of a run's pair, on rows that ``purpose`` does not use."""
    from mergeforget.adapter import read_adapter
    from mergeforget.data.readers import read_rows
    from mergeforget.data.templating import template_of
    from mergeforget.models import load_model
    from mergeforget.recipe import load_recipe
    from mergeforget.run import Run

    run = Run(folder)
    loaded = load_model(run.base())
    template = template_of(loaded.tokenizer, load_recipe(run.recipe).data)
    pair = [read_adapter(place, place.name) for place in (run.over, run.under)]
    forget, retain = (read_rows(run.data / f"{n}.jsonl") for n in ("forget", "retain"))
    if min(len(forget), len(retain)) < 2 * count:
        raise SystemExit(f"{folder} has fewer than {2 * count} rows of a kind: lower --rows.")
    measured = {"forget": forget[count:], "retain": retain[count:]}
    if (run.data / "holdout.jsonl").exists():
        measured["holdout"] = read_rows(run.data / "holdout.jsonl")
    known = {
        n: encode_answers(loaded.model, loaded.tokenizer, x, template) for n, x in measured.items()
    }
    chosen = choose_weights(
        loaded.model, loaded.tokenizer, pair, forget[:count], retain[:count], template=template
    )
    return measure(loaded.model, pair, known, chosen.candidate(), None)


def measure(
    model: Any, pair: list[Adapter], known: Known, chosen: Candidate, rank: int | None
) -> list[Measured]:
    """Measure the base, the adapters alone, and every merge of ``families``."""

    def losses(family: str, label: str, adapter: Adapter | None) -> Measured:
        with torch.no_grad(), applied(model, adapter) if adapter else nullcontext():
            found = {n: [float(mean_answer_loss(model, x)) for x in some]
                     for n, some in known.items()}  # fmt: skip
        unseen = found.get("holdout", [])
        pairs = [(f < u) + (f == u) / 2 for f in found["forget"] for u in unseen]
        means = (float(np.mean(found[n])) for n in ("forget", "retain"))
        return Measured(family, label, *means, float(np.mean(pairs)) if pairs else float("nan"))

    done = [losses("base", "", None)]
    done += [losses(name, "alone", one) for name, one in zip(("over", "under"), pair, strict=True)]
    for family, candidates in families(chosen, rank).items():
        for one in candidates:
            label = f"d {one.density:g}" if one.density else ""
            if family.startswith("linear"):
                label = "weights " + ":".join(f"{w:.2g}" for w in one.weights)
            done.append(losses(family, label, merge_adapters(pair, one).adapter))
    return done


def families(chosen: Candidate, rank: int | None) -> dict[str, list[Candidate]]:
    """Return the merges to compare, by family."""
    delta: dict[str, Any] = {"space": "delta", "rank": rank}
    return {
        "linear (delta)": [Candidate("linear", None, (w, 1 - w), **delta) for w in WEIGHTS],
        "ties (factors)": [Candidate("ties", d) for d in DENSITIES],
        "ties (delta)": [Candidate("ties", d, **delta) for d in DENSITIES],
        "dare_ties (delta)": [Candidate("dare_ties", d, **delta) for d in DENSITIES[1:-1]],
        "magnitude_prune (delta)": [Candidate("magnitude_prune", d, **delta) for d in DENSITIES],
        **{name: [Candidate(name, None, **delta)] for name in ("tsv_m", "iso_c", "wudi")},
        "core_space": [Candidate("core_space", d, **delta) for d in DENSITIES[1:-1:2]],
        "purpose": [chosen],
    }


def nearest(found: list[Measured]) -> list[Measured]:
    """Select the base, the adapters, and the merge of each family nearest to the target."""
    first, target = found[:3], (found[1].forget + found[2].forget) / 2
    best: dict[str, Measured] = {}
    for one in found[3:]:
        known = best.setdefault(one.family, one)
        if abs(one.forget - target) < abs(known.forget - target):
            best[one.family] = one
    return [*first, Measured("target", "", target, float("nan"), float("nan")), *best.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--all", action="store_true", help="Print every merge of a family.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | merge | setting | forget loss | retain loss | AUC |\n|---|---|---|---|---|---|")
    for seed in ["run"] if arguments.run else range(arguments.seeds):
        found = of_run(arguments.run, arguments.rows) if arguments.run else compare(seed)
        for one in found if arguments.all else nearest(found):
            numbers = (f"{x:.3f}" for x in (one.forget, one.retain, one.auc))
            cells = (str(seed), one.family, one.label, *numbers)
            print(f"| {' | '.join(cells)} |".replace("nan", "-"), flush=True)


if __name__ == "__main__":
    main()
