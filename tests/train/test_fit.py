"""Training: accumulation equals the larger batch, resume is bit-identical, faults stop it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from mergeforget.data.schema import Row
from mergeforget.errors import InputError, Interrupted, NumericError, ResourceError
from mergeforget.files import read_jsonl
from mergeforget.recipe import Lora, Term, Tokens, Training
from mergeforget.run import Run
from mergeforget.train import arguments, callbacks
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.forward import compiled_layers
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Watch

SETS = {
    "forget": [Row(f"f{i}-qa0", f"Who is {i * 'x'}?", f"Ada {i}.", "", "forget") for i in range(6)],
    "retain": [Row(f"r{i}-qa0", f"What is {i}?", f"Number {i}.", "", "retain") for i in range(5)],
}
TERMS = [
    Term(loss="npo", on="forget", weight=0.4),
    Term(loss="gd", on="retain", weight=0.4),
    Term(loss="kl", on="retain", weight=0.2),
]


def training(**more: Any) -> Training:
    settings: dict[str, Any] = {
        "objective": TERMS, "epochs": 2, "batch_size": 1, "gradient_accumulation": 2,
        "learning_rate": 1e-2, "snapshots": 2,
        "lora": Lora(r=4, lora_alpha=4, lora_dropout=0.1),
    }  # fmt: skip
    return Training(**settings | more)


def run_one(
    folder: Path, make_model: Callable[..., Any], tokenizer: Any, resume: bool = False, **more: Any
) -> dict[str, torch.Tensor]:
    job = TrainingJob(Run(folder), "over", resume, checkpoint_seconds=0)
    train_adapter(make_model(), tokenizer, SETS, training(**more), job)
    return load_file(folder / "over" / "adapter_model.safetensors")


def test_the_base_is_restored_after_training(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    job = TrainingJob(Run(tmp_path), "over")
    train_adapter(tiny_model, tiny_tokenizer, SETS, training(), job)
    before = make_model().state_dict()
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_accumulation_equals_the_larger_batch(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    lora = Lora(r=4, lora_alpha=4, lora_dropout=0.0)
    small = run_one(
        tmp_path / "a", make_model, tiny_tokenizer, lora=lora, batch_size=1, gradient_accumulation=4
    )
    large = run_one(
        tmp_path / "b", make_model, tiny_tokenizer, lora=lora, batch_size=4, gradient_accumulation=1
    )
    for key, value in large.items():  # six rows: the second step of an epoch is a part of two
        torch.testing.assert_close(small[key], value, rtol=1e-4, atol=1e-5)
    one, other = (read_jsonl(tmp_path / n / "history.jsonl") for n in "ab")
    assert [x["loss"] for x in one] == pytest.approx([x["loss"] for x in other], rel=1e-4)


def test_history_records_terms_that_add_up_to_the_loss(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    run_one(tmp_path, make_model, tiny_tokenizer)
    lines = read_jsonl(tmp_path / "history.jsonl")
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        weighted = sum(t.weight * line["terms"][t.label] for t in TERMS)
        assert weighted == pytest.approx(line["loss"], rel=1e-5)
        assert line["grad_norm"] > 0 and line["learning_rate"] >= 0
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == [
        "over-step00002", "over-step00004",
    ]  # fmt: skip


def test_a_row_of_weight_two_trains_like_two_copies(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    one, two, three = SETS["forget"][:3]
    sets = {
        "weights": [one, replace(two, weight=2.0), replace(three, weight=0.0)],
        "copies": [one, two, replace(two, id="again")],
    }
    found = {}
    for name, rows in sets.items():
        settings = training(
            objective=[TERMS[0], Term(loss="eul", on="forget")], epochs=1, warmup_epochs=0.0,
            gradient_accumulation=1, batch_size=3, lora=Lora(r=4, lora_alpha=4, lora_dropout=0.0),
        )  # fmt: skip
        job = TrainingJob(Run(tmp_path / name), "over")
        both = {"forget": rows, "retain": SETS["retain"]}
        train_adapter(make_model(), tiny_tokenizer, both, settings, job)
        found[name] = load_file(tmp_path / name / "over" / "adapter_model.safetensors")
    for key, value in found["copies"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["eul", "npo", "adaptive_rmu"])
def test_a_micro_batch_of_rows_with_weight_zero_has_no_effect(
    loss: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    known: dict[str, Any] = {"eul": {"floor": 0.0}, "adaptive_rmu": {"layer": 1}}
    arguments = known.get(loss, {})
    term = Term.model_validate({"loss": loss, "on": "forget", **arguments})
    sets = dict(SETS) | {"forget": [replace(r, weight=float(i > 0)) for i, r in
                                    enumerate(SETS["forget"][:2])]}  # fmt: skip
    job = TrainingJob(Run(tmp_path), "over")
    settings = training(objective=[term, TERMS[1]], epochs=1)
    train_adapter(make_model(), tiny_tokenizer, sets, settings, job)
    (line,) = read_jsonl(tmp_path / "history.jsonl")
    weighted = sum(t.weight * line["terms"][t.label] for t in settings.objective)
    assert line["loss"] == pytest.approx(weighted, rel=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_training_resumes_bit_for_bit_after_a_kill(
    step: int,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_one(tmp_path / "whole", make_model, tiny_tokenizer)
    plain = callbacks.ProgressBar.on_step_end

    def die(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == step + 1:
            raise Killed

    monkeypatch.setattr(callbacks.ProgressBar, "on_step_end", die)
    with pytest.raises(Killed):
        run_one(tmp_path / "cut", make_model, tiny_tokenizer)
    monkeypatch.setattr(callbacks.ProgressBar, "on_step_end", plain)
    torch.rand(100)  # other work draws from the global generator in between
    again = run_one(tmp_path / "cut", make_model, tiny_tokenizer, resume=True)
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    one, other = (read_jsonl(tmp_path / n / "history.jsonl") for n in ("whole", "cut"))
    assert one == other


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_its_handlers_are_restored(
    signum: signal.Signals,
    code: int,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tell(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(callbacks.Epochs, "on_step_end", tell)
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="--resume") as told:
        run_one(tmp_path, make_model, tiny_tokenizer)
    assert told.value.exit_code == code
    after = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert after == before  # SIGINT may be ignored, as in a job of a shell's background
    assert callbacks.last_checkpoint(tmp_path / "checkpoints" / "over") is not None


def test_a_truncated_checkpoint_is_not_used(tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (4, '{"half'), (6, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert callbacks.last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_an_unchanged_adapter_stops_the_training(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    still = [t.model_copy(update={"weight": 0.0}) for t in TERMS]
    with pytest.raises(NumericError, match="did not change"):
        run_one(tmp_path, make_model, tiny_tokenizer, objective=still, weight_decay=0.0)


def test_a_warm_up_from_zero_does_not_stop_the_training(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    run_one(tmp_path, make_model, tiny_tokenizer, warmup_epochs=1.0)
    rates = [x["learning_rate"] for x in read_jsonl(tmp_path / "history.jsonl")]
    assert rates[0] < rates[2] and max(rates) == pytest.approx(1e-2)


def test_a_constant_rate_warms_up_too(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    run_one(tmp_path, make_model, tiny_tokenizer, warmup_epochs=1.0, schedule="constant")
    rates = [x["learning_rate"] for x in read_jsonl(tmp_path / "history.jsonl")]
    assert rates == pytest.approx([0, 1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-2])


def test_a_gradient_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    steep = [TERMS[0].model_copy(update={"weight": 1e30}), TERMS[1]]
    watch = Watch(every=1, sample=2)
    with pytest.raises(NumericError, match="gradient is not finite in step 1"):
        run_one(tmp_path, make_model, tiny_tokenizer, objective=steep, watch=watch)
    assert read_jsonl(tmp_path / "history.jsonl") == []
    assert [x["step"] for x in read_jsonl(tmp_path / "proxies.jsonl")] == [0]


class TwoGpus(TrainingArguments):
    """As where two GPUs are visible: the Trainer would wrap the model for both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._n_gpu = max(2, self.n_gpu)  # the first read initialises the devices


def test_one_process_trains_on_one_of_several_gpus(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run_one(tmp_path / "one", make_model, tiny_tokenizer, epochs=1)

    monkeypatch.setattr(arguments, "TrainingArguments", TwoGpus)
    again = run_one(tmp_path / "two", make_model, tiny_tokenizer, epochs=1)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("padding", ["none", "right"])
def test_packed_rows_do_not_attend_to_each_other(
    padding: Literal["none", "right"], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, ffn_dim=64, word_embed_proj_dim=32,
        num_attention_heads=4, init_std=0.3, pad_token_id=2, dropout=0.0,
    )  # fmt: skip
    settings = training(
        batch_size=6, epochs=1, tokens=Tokens(padding=padding), watch=Watch(every=1, sample=6),
        lora=Lora(r=2, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    train_adapter(
        OPTForCausalLM(config).eval(),
        tiny_tokenizer,
        SETS,
        settings,
        TrainingJob(Run(tmp_path), "over"),
    )
    (line,) = read_jsonl(tmp_path / "history.jsonl")
    # at the start policy and reference agree: 2 ln 2 / 0.1, and no divergence
    assert line["terms"]["npo_forget"] == pytest.approx(13.8629436, rel=1e-5)
    assert line["terms"]["kl_retain"] == pytest.approx(0, abs=1e-5)


def test_a_loss_that_is_not_finite_stops(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericError, match=r"not finite: .*npo_forget = nan"):
        train_adapter(
            tiny_model, tiny_tokenizer, SETS, training(), TrainingJob(Run(tmp_path), "over")
        )


def test_a_set_whose_rows_all_have_weight_zero_is_refused(tiny_tokenizer: Any) -> None:
    rows = {"forget": [Row("f", "Who?", "Ada.", weight=0.0)], "retain": [Row("r", "Who?", "Bo.")]}
    plan = Training(objective=[Term(loss="ga", on="forget"), Term(loss="gd", on="retain")])
    with pytest.raises(InputError, match="All 1 rows of the forget set have weight 0"):
        encode_sets(tiny_tokenizer, rows, plan)


def test_layers_are_compiled_for_the_policy_only(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def compiled(function: Any, **settings: Any) -> Any:
        def call(*inputs: Any, **more: Any) -> Any:
            ran.append(settings["backend"])
            return function(*inputs, **more)

        return call

    model = make_model()
    ids = torch.tensor([[5, 6, 7]])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", compiled)
        with compiled_layers(model):
            ran.clear()
            model.eval()(input_ids=ids)
            assert not ran
            model.train()(input_ids=ids)
            assert ran == ["inductor"] * len(model.model.layers)
        ran.clear()
        model(input_ids=ids)
        assert not ran

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ResourceError, match="no compiler"), compiled_layers(model):
        pass


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_training_has_the_same_losses(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    settings: dict[str, Any] = {"lora": Lora(r=4, lora_alpha=4, lora_dropout=0.0), "epochs": 1}
    plain = run_one(tmp_path / "a", make_model, tiny_tokenizer, **settings)
    compiled = run_one(tmp_path / "b", make_model, tiny_tokenizer, compile=True, **settings)
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-5)
    one, other = (read_jsonl(tmp_path / n / "history.jsonl") for n in "ab")
    assert [x["loss"] for x in one] == pytest.approx([x["loss"] for x in other], rel=1e-4)
