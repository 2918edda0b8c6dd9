"""A step on fake tensors of another device: no operation mixes devices, and no value is read.

A fake tensor has a device, a shape and a dtype but no values. An operation on tensors of two
devices raises an error, and so does one that needs a value (item, nonzero, a boolean index). The
device is ``cuda`` where there is a GPU, else ``meta``: a CPU build cannot slice a fake CUDA tensor,
and the backward pass needs a CUDA context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from mergeforget.data.batches import pack
from mergeforget.data.schema import Row
from mergeforget.data.tokens import encode_rows
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, PROMPT
from mergeforget.recipe import Term
from mergeforget.train.dataset import REFUSAL, Share
from mergeforget.train.forward import output_matrix
from mergeforget.train.joined_adapters import sharing_weights
from mergeforget.train.objective import any_needs, reads_of
from mergeforget.train.packing_check import rows_leak
from mergeforget.train.reference import Reference, StoredOutputs, _compute
from mergeforget.train.together import Partners
from mergeforget.train.together import _GlobalState as GlobalState
from mergeforget.train.together import _Pass as joint_pass
from mergeforget.train.trainer import UnlearningTrainer
from mergeforget.train.weighting import Entanglement, TokenScorer
from mergeforget.train_config import Scorer

DEVICE = "cuda" if torch.cuda.is_available() else "meta"
KINDS = (ANSWER, PROMPT)
SETS = {
    name: [Row(f"{name}{i}", f"Who is {name} {i}?", f"Person {i * 7}.") for i in range(4)]
    for name in ("forget", "retain")
} | {REFUSAL: [Row(f"forget{i}", f"Who is forget {i}?", "I do not know.") for i in range(4)]}
ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in UNLEARNING_LOSSES.names()),
    ("npo", {"reduction": "batch_mean"}),
    ("gd", {"reduction": "batch_mean"}),
    ("kl", {"mask": "tokens"}),
]


@contextmanager
def fake_device() -> Iterator[None]:
    """Fake tensors; pinning memory is not implemented for them, and does not change a tensor."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(torch.Tensor, "pin_memory", lambda self: self),
    ):
        yield


def onto_fake_device(model: nn.Module) -> None:
    """Replace every weight and buffer by a fake one on the GPU; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in made:
                    fake = torch.empty(p.shape, dtype=p.dtype, device=DEVICE)
                    made[id(p)] = nn.Parameter(fake, requires_grad=p.requires_grad)
                module._parameters[name] = made[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device=DEVICE)


def trainer_of(term: Term, make_model: Callable[..., Any], tokenizer: Any) -> tuple[Any, Any, Any]:
    """A trainer without its loop, its model on fake tensors, and the shares of a step."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], lora_dropout=0.1)
    model: Any = get_peft_model(make_model(), config).train()
    assert not rows_leak(model)  # checked once for each model, which reads values
    reads = reads_of([term])
    rows = {n: encode_rows(tokenizer, SETS[n], max_length=64) for n in reads}
    head = output_matrix(model)
    known = {
        name: StoredOutputs(**_compute(read.kept, model, rows[name], KINDS, head, None),
                    head=head if read.kept == "hidden" else None)
        for name, read in reads.items()
        if read.kept
    }  # fmt: skip
    made: Any = UnlearningTrainer.__new__(UnlearningTrainer)
    made.terms, made.levels, made.budget, made.robust = [term], {}, 4096, None
    made.profiles, made.doubts = {}, {}
    made._pending, made._pending_notes = {}, {}
    made.args = SimpleNamespace(device=torch.device(DEVICE))
    made.accelerator = SimpleNamespace(backward=lambda loss: loss.backward())
    batches = [{n: pack([r], KINDS) for n, r in zip(rows, group, strict=True)}
               for group in zip(*rows.values(), strict=True)]  # fmt: skip
    totals = {n: {k: sum(b[n].count()[k] for b in batches) for k in KINDS} for n in rows}
    shares = made._fused([Share(b, dict.fromkeys(rows, 4.0), totals) for b in batches])
    with fake_device():
        onto_fake_device(model)
    weight = model.get_output_embeddings().weight
    for one in known.values():
        one.head = None if one.head is None else weight
    made.reference = Reference(known, head=weight, old_head=weight)
    made.levels = {"forget": torch.zeros(4)}
    made.state = SimpleNamespace(global_step=0)
    if any_needs([term], "reinforced"):
        made.reference.reinforced = known["forget"]
    with fake_device():
        if any_needs([term], "scores"):
            made.scorer = TokenScorer(32, Scorer(every=1), term, DEVICE)
        if any_needs([term], "efforts"):
            made.entanglement = Entanglement.__new__(Entanglement)
            made.entanglement.forget = torch.empty(4, 32, device=DEVICE)
            made.entanglement.inter = torch.empty(4, device=DEVICE)
    return made, model, shares


@pytest.mark.parametrize(("loss", "arguments"), ARGUMENTS, ids=str)
def test_a_step_runs_on_one_device_and_reads_no_value(
    loss: str, arguments: dict[str, Any], make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    layer = {"layer": 0} if "layer" in UNLEARNING_LOSSES.get(loss).parameters else {}
    term = Term.model_validate({"loss": loss, "on": "forget", **layer, **arguments})
    trainer, model, shares = trainer_of(term, make_model, tiny_tokenizer)
    assert [bool(s.batches) for s in shares] == [False, False, False, True]
    with fake_device():
        loss_value = trainer.loss_of(model, trainer._prepare_inputs(shares[-1]), [term])
        loss_value.backward()
        assert loss_value.device.type == DEVICE
        moved = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert moved and all(g.device.type == DEVICE for g in moved)


def test_a_joint_pass_runs_on_one_device_and_reads_no_value(
    make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    terms = Term(loss="npo", on="forget"), Term(loss="kl", on="retain")
    partners, base = Partners(("over", "under"), required=True), make_model()
    both: dict[str, Any] = {}
    for stage, model, term in zip(
        partners.stages, (base, sharing_weights(base)), terms, strict=True
    ):
        trainer, policy, shares = trainer_of(term, lambda own=model: own, tiny_tokenizer)
        both[stage] = joint_pass(trainer, policy, shares[-1])
    partners._states = {stage: GlobalState.current() for stage in partners.stages}
    with fake_device():
        partners._join(both)
    for one in both.values():
        assert one.loss.device.type == DEVICE
        moved = [p.grad for p in one.model.parameters() if p.requires_grad and p.grad is not None]
        assert moved and all(g.device.type == DEVICE for g in moved)


def test_the_check_finds_two_devices_and_values_that_are_read() -> None:
    with fake_device():
        on_gpu = torch.empty(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            on_gpu.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            on_gpu[on_gpu > 0]
