"""A training step does not wait for the device: counted on the CPU with a dispatch mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from mergeforget.data.schema import Row
from mergeforget.errors import NumericError
from mergeforget.files import read_jsonl
from mergeforget.recipe import Lora, Term, Training
from mergeforget.run import Run
from mergeforget.train import forward, ngdiff_trainer, trainer
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.joined_adapters import sharing_weights
from mergeforget.train.together import Partners

SETS = {
    name: [Row(f"{name}{i}", f"Who is {name} {i}?", f"Person {i * 7}.") for i in range(4)]
    for name in ("forget", "retain")
}
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2"}
OBJECTIVES = {
    "npo": [Term(loss="npo", on="forget"), Term(loss="gd", on="retain"),
            Term(loss="kl", on="retain")],
    "eul": [Term(loss="eul", on="forget"), Term(loss="gd", on="retain")],
    "undial": [Term(loss="undial", on="forget"), Term(loss="jensun_retain", on="retain")],
    "rmu": [Term.model_validate({"loss": "rmu", "on": "forget", "layer": 0}),
            Term.model_validate({"loss": "rmu_retain", "on": "retain", "layer": 0})],
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts operations that read a value off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if name in WAITING or masks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_micro_batch_transfers_nothing_from_the_device(
    name: str,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[Counter[str]] = []
    passed: list[int] = []  # passes through the model, of each micro-batch
    whole = trainer.UnlearningTrainer.training_step

    def step(self: Any, *args: Any, **more: Any) -> Any:
        passed.append(0)
        with Waits() as waits:
            loss = whole(self, *args, **more)
        counted.append(waits.found)
        return loss

    def count_pass(module: Any, _: Any) -> None:
        if passed and type(module).__name__ == "LlamaModel":
            passed[-1] += 1

    monkeypatch.setattr(trainer.UnlearningTrainer, "training_step", step)
    monkeypatch.setattr(forward, "_shares_prefixes", lambda *_: False)  # on a CPU only
    plan = Training(
        objective=OBJECTIVES[name], epochs=2, batch_size=1, gradient_accumulation=2, snapshots=1,
        learning_rate=1e-3, lora=Lora(r=2, lora_dropout=0.0),
    )  # fmt: skip
    job = TrainingJob(Run(tmp_path), "over", checkpoint_seconds=1e9)
    hook = register_module_forward_pre_hook(count_pass)
    try:
        train_adapter(make_model(), tiny_tokenizer, SETS, plan, job)
    finally:
        hook.remove()
    assert len(counted) == 8 and max(passed) <= 3
    # the first micro-batch of a step joins the second
    assert passed[::2] == [0] * 4 and passed[3::2] == [passed[3]] * 3
    for found in counted[2:]:  # the first step checks the model once
        assert not found
    lines = read_jsonl(job.run.history)
    assert all(
        line["loss"] == pytest.approx(sum(line["terms"].values()), abs=1e-6) for line in lines
    )


def test_a_joint_pass_of_two_trainings_reads_nothing_off_the_device(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[Counter[str]] = []
    join = Partners._join

    def joined(self: Partners, both: Any) -> None:
        with Waits() as waits:
            join(self, both)
        counted.append(waits.found)

    monkeypatch.setattr(Partners, "_join", joined)
    monkeypatch.setattr(forward, "_shares_prefixes", lambda *_: False)  # on a CPU alone
    partners = Partners(("over", "under"), required=True)
    base = make_model()
    trainings = {}
    for stage, model, terms in (("over", base, "npo"), ("under", sharing_weights(base), "rmu")):
        plan = Training(
            objective=OBJECTIVES[terms], epochs=2, gradient_accumulation=2, snapshots=1,
            lora=Lora(r=2, lora_dropout=0.1),
        )  # fmt: skip
        job = TrainingJob(Run(tmp_path), stage, checkpoint_seconds=1e9, partners=partners)
        trainings[stage] = partial(train_adapter, model, tiny_tokenizer, SETS, plan, job)
    partners.run(trainings)  # type: ignore[arg-type]
    assert partners.passes == len(counted) == 4
    assert not any(counted[1:])  # the first pass checks the models once


def test_a_term_that_is_not_finite_is_named_before_the_step(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: steps.append(1))

    def broken(terms: Any, policy: Any, reference: Any) -> Any:
        value = torch.tensor(float("nan"), requires_grad=True) * sum(
            said.token_logps.sum() for said in policy.values()
        )
        return value, {"npo_forget": value.detach()}

    monkeypatch.setattr(trainer, "compute", broken)
    plan = Training(objective=OBJECTIVES["npo"], epochs=1, snapshots=1, lora=Lora(r=2))
    job = TrainingJob(Run(tmp_path), "over", checkpoint_seconds=1e9)
    with pytest.raises(NumericError, match="npo_forget = nan"):
        train_adapter(make_model(), tiny_tokenizer, SETS, plan, job)
    assert not steps


def test_both_trainers_share_the_one_transfer_of_a_step() -> None:
    assert ngdiff_trainer.NGDiffTrainer._get_grad_norm is trainer.UnlearningTrainer._get_grad_norm
