"""Rows longer than the model's positions are cut and reported; unknown token ids are refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.attack.calibration import observe
from mergeforget.attack.methods.logit_lens import lens_logps
from mergeforget.attack.methods.probe import _pooled, hidden_states
from mergeforget.attack.methods.sampling import sample
from mergeforget.attack.tuning import Tuning, tune
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW
from mergeforget.data.tokens import position_limit
from mergeforget.errors import InputError
from mergeforget.evaluate.generate import generate_ids
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.evaluate.membership import gradient_norms
from mergeforget.evaluate.mmlu import choose
from mergeforget.files import append_jsonl, read_json, write_jsonl
from mergeforget.recipe import Term, Training, change, load_recipe
from mergeforget.run import Run
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.run_rows import measure_difficulty, prepare
from mergeforget.train_config import Lora

LIMIT = 32


def learned(kind: str) -> Any:
    """A tiny model with a table of 32 positions."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=LIMIT
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.OPTConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        word_embed_proj_dim=16, max_position_embeddings=LIMIT,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_long_rows_are_truncated_at_the_beginning_with_a_message(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = learned(kind)
    assert position_limit(model) == LIMIT
    long = [5 + i % 200 for i in range(LIMIT + 9)]
    new = generate_ids(model, [long, long[:30], long[:4]], stop=[], max_new_tokens=12)
    assert "2 of 3 rows are longer than 24 tokens and were truncated" in capsys.readouterr().err
    assert [len(x) for x in new] == [8, 8, 12]  # a quarter of the positions is kept free
    (cut,) = generate_ids(model, [long[-24:]], stop=[], max_new_tokens=8)
    assert new[0] == cut

    whole, short = likelihoods(model, [long, long[-LIMIT:]], starts=[LIMIT, LIMIT - 9])
    assert whole.logps.tolist() == pytest.approx(short.logps.tolist(), abs=1e-5)
    assert len(whole.after(LIMIT + 4).logps) == 5  # token indices refer to the whole text
    assert "1 of 2 rows are longer" in capsys.readouterr().err
    norms = gradient_norms(model, [(long, LIMIT), (long[-LIMIT:], LIMIT - 9)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert len(choose(model, [long, long[:8]], [10, 11, 12, 13], None)) == 2


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_every_attack_truncates_rows_to_the_positions(kind: str, tiny_tokenizer: Any) -> None:
    model, tokenizer = learned(kind), tiny_tokenizer
    long = [5 + i % 200 for i in range(LIMIT + 9)]
    whole, cut, part = lens_logps(model, [long, long[9:], long], [LIMIT, LIMIT - 9, LIMIT + 4], [1])
    assert whole == pytest.approx(cut, abs=1e-5) and whole != part
    (all_cut,) = lens_logps(model, [long], [4], [1])  # a part of the answer is lost as well
    assert all_cut == pytest.approx(lens_logps(model, [long[9:]], [1], [1])[0], abs=1e-5)

    texts = ["x" * 60 + "Who is it?", "y" * 60 + "Who is it?"]
    ids = [RAW.prompt_ids(tokenizer, text)[-LIMIT:] for text in texts]
    for pool in ("last", "mean"):
        states = hidden_states(model, tokenizer, texts, pool)  # (layers + 1, texts, width)
        assert states[1] == pytest.approx(np.stack([s[1] for s in _pooled(model, ids, pool)]))

    new = sample(model, long, 2, 12, [], 1.0, seed=0)
    assert [len(x) for x in new] == [8, 8]  # a quarter of the positions is kept free
    assert new == sample(model, long[-24:], 2, 8, [], 1.0, seed=0)
    assert [len(x) for x in sample(model, long[:30], 2, 12, [], 1.0, seed=0)] == [8, 8]
    assert [len(x) for x in sample(model, long[:4], 2, 12, [], 1.0, seed=0)] == [12, 12]

    linear = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D")][:1]
    assert [one.count for one in observe(model, linear, [long])] == [LIMIT]


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_relearning_truncates_rows_to_the_positions(kind: str, tiny_tokenizer: Any) -> None:
    rows = [Row("a", "x" * 50, "a long answer " * 9), Row("b", "x" * 50, "yes")]
    steps: list[int] = []

    def note(policy: Any, step: int) -> dict[str, Any]:
        steps.append(step)
        return {}

    tune(learned(kind), tiny_tokenizer, rows, Tuning(1, 1e-3, 2, 2, False, 0), note, label="x")
    assert steps == [0, 1]


def test_training_lowers_max_length_to_the_positions(
    tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("a", "Who is it? " * 9, "nobody", "", "forget")]
    training = Training(
        objective=[Term(loss="gd", on="forget")], epochs=1, warmup_epochs=0.0, lora=Lora(r=2)
    )
    sets = {"forget": rows, "retain": rows}
    job = TrainingJob(Run(tmp_path), "under")
    assert train_adapter(learned("gpt2"), tiny_tokenizer, sets, training, job).is_dir()
    said = capsys.readouterr().err
    assert "to the model's 32 positions" in said and "were truncated" in said


def test_rotary_positions_set_no_limit(make_model: Callable[..., Any]) -> None:
    assert position_limit(make_model()) is None


def test_token_ids_beyond_the_embedding_are_refused_by_name(make_model: Any) -> None:
    model = make_model()
    for ask in (
        lambda: generate_ids(model, [[5, 400]], stop=[], max_new_tokens=2),
        lambda: likelihoods(model, [[5, 6], [5, 400]]),
        lambda: choose(model, [[5, 400]], [1, 2, 3, 4], None),
        lambda: gradient_norms(model, [([5, 400], 1)]),
    ):
        with pytest.raises(InputError, match="token id 400, and the model's embedding has 259"):
            ask()


def test_a_row_of_ten_megabytes_is_refused_and_a_long_one_is_cut(
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mergeforget.data import tokens
    from mergeforget.data.templating import RAW
    from mergeforget.evaluate.measure import tokenize_documents

    row = Row("a", "Who is it? ", "x" * 10_000_000)
    with pytest.raises(InputError, match="characters; at most 4,000,000"):
        tokenize_documents(tiny_tokenizer, [row])
    with pytest.raises(InputError, match="characters; at most 4,000,000"):
        RAW.prompt_ids(tiny_tokenizer, row.output)
    assert tokens.LONGEST == 32_768
    monkeypatch.setattr(tokens, "LONGEST", 40)
    model, long = make_model(), [5 + i % 20 for i in range(3_000_000)]
    (cut,) = generate_ids(model, [long], stop=[], max_new_tokens=3)
    (same,) = generate_ids(model, [long[-40:]], stop=[], max_new_tokens=3)
    assert cut == same and len(cut) == 3
    (found,) = likelihoods(model, [long])
    assert len(found.logps) == 39
    assert capsys.readouterr().err.count("truncated at the beginning by up to 2999960") == 2


def test_the_difficulty_of_long_nonmembers_is_measured_within_the_positions(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = learned("gpt2")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    answers = {"forget": "lives in Rome", "retain": "works in Oslo", "holdout": "sings in Bonn"}
    for name, answer in answers.items():
        rows = [{"id": f"{name}{i}", "input": f"Who is {name} {i}?",
                 "output": f"{name} {i} {answer}, " * 4} for i in range(4)]  # fmt: skip
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in answers}
    recipe = change(load_recipe("level"), model={"name": str(tmp_path / "model")}, data=files)
    run, training = Run(tmp_path / "run"), recipe.training("over")
    assert training.until and training.max_length > LIMIT
    sets = prepare(recipe, run, resume=False)
    loaded = SimpleNamespace(model=model, tokenizer=tiny_tokenizer)
    measure_difficulty(run, recipe, sets, training, loaded, RAW)
    known = read_json(run.difficulty)
    assert sorted(known) == [f"holdout{i}" for i in range(4)]
    assert all(value > 0 for value in known.values())

    run.difficulty.unlink()
    run.set_state("over", "done")  # such as an adapter given with --over: no check used the rows
    measure_difficulty(run, recipe, sets, training, loaded, RAW)
    assert read_json(run.difficulty) == known
    run.difficulty.unlink()
    append_jsonl(run.history, [{"stage": "over", "step": 1, "until": {"step": 1}}])
    measure_difficulty(run, recipe, sets, training, loaded, RAW)
    assert not run.difficulty.exists()  # its checks used the rows of a random split
