"""Compares merges of an over- and an under-forgetting adapter at equal forgetting.

A small random Llama memorises facts about invented people; two adapters forget half of them, one
too much and one too little. Every merge is measured by its loss on the forget and the retain rows.
Of each family the merge whose forget loss is nearest to a common target is shown::

    python benchmarks/merge_purpose.py [--seeds 3]
    python benchmarks/merge_purpose.py --run RUN [--rows 8]

With ``--run`` the pair, the base and the rows are those of a run of `mergeforget train-pair`,
`unlearn` or `demo`. ``purpose`` chooses its weights on the first ``--rows`` rows of each kind, and
every merge is measured on the next ``--rows``, so that no merge has seen what it is judged by.
"""

from __future__ import annotations

import argparse
import random
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

DENSITIES = [round(0.1 * i, 1) for i in range(1, 11)]
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
    """Gradient difference for some steps; the base is left as it was."""
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


def compare(seed: int) -> list[tuple[str, float, float]]:
    """(merge, forget loss, retain loss) of each merge nearest to the target."""
    forget, retain = rows(seed, 24)
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    known = {
        "forget": encode_answers(tokenizer, forget),
        "retain": encode_answers(tokenizer, retain),
    }
    every = known["forget"] + known["retain"]
    train(model, lambda: mean_loss(model, every), 150, 3e-3)
    model.eval()
    over = forgetting_adapter(model, "over", known["forget"], known["retain"], 24)
    under = forgetting_adapter(model, "under", known["forget"], known["retain"], 8)
    return families(model, tokenizer, [over, under], forget, retain, known)


def of_run(folder: Path, count: int) -> list[tuple[str, float, float]]:
    """The same for the pair of a run, measured on rows that ``purpose`` does not see."""
    from mergeforget.adapter import read_adapter
    from mergeforget.data.readers import read_rows
    from mergeforget.models import load_model
    from mergeforget.run import Run

    run = Run(folder)
    loaded = load_model(run.base())
    pair = [read_adapter(place, place.name) for place in (run.over, run.under)]
    forget, retain = (read_rows(run.data / f"{n}.jsonl") for n in ("forget", "retain"))
    if min(len(forget), len(retain)) < 2 * count:
        raise SystemExit(f"{folder} has fewer than {2 * count} rows of a kind: lower --rows.")
    known = {
        "forget": encode_answers(loaded.tokenizer, forget[count : 2 * count]),
        "retain": encode_answers(loaded.tokenizer, retain[count : 2 * count]),
    }
    first = forget[:count], retain[:count]
    return families(loaded.model, loaded.tokenizer, pair, *first, known, rank=None)


def families(
    model: Any,
    tokenizer: Any,
    pair: list[Adapter],
    forget: list[Row],
    retain: list[Row],
    known: dict[str, Any],
    rank: int | None = 2 * RANK,
) -> list[tuple[str, float, float]]:
    """The merge of each family whose forget loss on ``known`` is nearest to the target."""

    def measured(adapter: Adapter) -> tuple[float, float]:
        with torch.no_grad(), applied(model, adapter):
            return float(mean_loss(model, known["forget"])), float(
                mean_loss(model, known["retain"])
            )

    over, under = pair
    chosen = choose_weights(model, tokenizer, pair, forget, retain, rows=12)
    alone = [measured(over), measured(under)]
    target = (alone[0][0] + alone[1][0]) / 2
    every = {
        "ties, best density (factors)": [Candidate("ties", d) for d in DENSITIES],
        "ties, best density (delta)": [
            Candidate("ties", d, space="delta", rank=rank) for d in DENSITIES
        ],
        "linear, best common weight": [
            Candidate("linear", None, (w, 1 - w), "delta", rank) for w in np.linspace(0, 1, 11)
        ],
        "purpose": [chosen.candidate()],
    }
    found = [("target", target, float("nan")), ("over alone", *alone[0]),
             ("under alone", *alone[1])]  # fmt: skip
    for name, candidates in every.items():
        results = [measured(merge_adapters(pair, one).adapter) for one in candidates]
        found.append((name, *min(results, key=lambda fr: abs(fr[0] - target))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | merge | forget loss | retain loss |\n|---|---|---|---|")
    if arguments.run:
        for name, forgotten, kept in of_run(arguments.run, arguments.rows):
            print(f"| run | {name} | {forgotten:.3f} | {kept:.3f} |", flush=True)
        return
    for seed in range(arguments.seeds):
        for name, forgotten, kept in compare(seed):
            print(f"| {seed} | {name} | {forgotten:.3f} | {kept:.3f} |", flush=True)


if __name__ == "__main__":
    main()
