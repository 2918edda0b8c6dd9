"""Micro-batches fused into one pass give the gradient of separate passes, in fewer passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from mergeforget.data.batches import Batch, fuse, pack
from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.files import read_jsonl
from mergeforget.losses import UNLEARNING_LOSSES
from mergeforget.outputs import ANSWER, PROMPT, TokenOutputs
from mergeforget.recipe import Lora, Term, Training
from mergeforget.run import Run
from mergeforget.train.dataset import REFUSAL, Share
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.forward import as_reference, output_matrix, predict_sets
from mergeforget.train.objective import compute, reads_of
from mergeforget.train.trainer import UnlearningTrainer

SETS = {
    name: [
        Row(f"{name}{i}", f"Who is {name} {i}?", f"Person {i * 7}." + " He is known." * i)
        for i in range(5)
    ]
    for name in ("forget", "retain")
}
CUTS = [[0, 1], [2], [3, 4]]  # rows of each micro-batch: uneven, so that means of means differ
REDUCED: list[tuple[str, dict[str, Any]]] = [
    ("gd", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "batch_mean"}),
    ("npo", {"reduction": "per_token"}),
    ("eul", {"reduction": "rows"}),
    ("ga", {"reduction": "batch_mean"}),
    ("kl", {"mask": "tokens"}),
]
EVERY: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in UNLEARNING_LOSSES.names()),
    *REDUCED,
]


def gradients(
    model: Any, encoded: dict[str, list[Encoded]], term: Term, groups: Sequence[Sequence[list[int]]]
) -> tuple[list[Tensor], float, dict[str, float]]:
    """Gradient, value and notes of a step whose micro-batches are passed group by group."""
    reads = reads_of([term])
    micro = {
        name: [pack([encoded[name][i] for i in rows], (ANSWER, PROMPT)) for rows in CUTS]
        for name in reads
    }
    kinds = (ANSWER, PROMPT)
    totals = {
        name: {
            "row_total": sum(b.total for b in batches),
            "token_total": {k: sum(b.count()[k] for b in batches) for k in kinds},
        }
        for name, batches in micro.items()
    }
    head = output_matrix(model)
    layers = sorted(set().union(*(r.layers for r in reads.values())))
    model.zero_grad()
    value, notes = 0.0, dict[str, float]()
    for group in groups:
        places = [CUTS.index(rows) for rows in group]
        batches: dict[str, Batch] = {
            name: fuse([each[p] for p in places]) for name, each in micro.items()
        }
        with as_reference(model):
            before = predict_sets(model, batches, totals, head=head, layers=layers)
        policy = predict_sets(model, batches, totals, head=head, layers=layers)
        for name, said in policy.items():
            aims = torch.tensor([float(i % 3) for i in batches[name].index.tolist()])
            said.levels = said.efforts = aims
            said.scores = (said.labels % 5).double() / 4
        with torch.no_grad():  # the adapted model serves as the reinforced one
            strong = predict_sets(model, batches, totals, head=head)
        for name, said in before.items():
            said.reinforced = strong[name]
        loss, values = compute([term], policy, before)
        loss.backward()
        value += float(values[term.label])
        for said in policy.values():
            for note, noted in said.notes.items():
                notes[note] = notes.get(note, 0.0) + float(noted)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found, value, notes


@pytest.fixture(scope="module")
def trained(make_model: Callable[..., Any]) -> Any:
    """A LoRA model whose outputs differ from its base's."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    model: Any = get_peft_model(make_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize(("loss", "arguments"), EVERY, ids=str)
def test_a_fused_pass_computes_the_gradient_of_accumulation(
    loss: str, arguments: dict[str, Any], trained: Any, tiny_tokenizer: Any
) -> None:
    term = Term.model_validate({"loss": loss, "on": "forget", **_layer(loss), **arguments})
    rows = {name: encode_rows(tiny_tokenizer, each, max_length=64) for name, each in SETS.items()}
    rows[REFUSAL] = encode_rows(
        tiny_tokenizer, [Row(r.id, r.input, "I do not know.") for r in SETS["forget"]],
        max_length=64,
    )  # fmt: skip
    apart = gradients(trained, rows, term, [[rows_] for rows_ in CUTS])
    fused = gradients(trained, rows, term, [CUTS])
    assert apart[0] and max(float(g.abs().max()) for g in apart[0]) > 0
    # log-probabilities are float32 or wider; the model computes in float64 here
    torch.testing.assert_close(fused[0], apart[0], rtol=1e-6, atol=1e-9)
    assert fused[1] == pytest.approx(apart[1], rel=1e-6)
    assert fused[2] == pytest.approx(apart[2], rel=1e-6)


def _layer(loss: str) -> dict[str, int]:
    return {"layer": 0} if "layer" in UNLEARNING_LOSSES.get(loss).parameters else {}


def test_a_loss_registered_as_not_additive_is_computed_for_each_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def mean_of_rows(policy: TokenOutputs, reference: TokenOutputs | None) -> Tensor:
        """Mean over the rows of the micro-batch."""
        seen.append(policy.rows)
        return policy.nll().mean()

    term = Term(loss="test_mean_of_rows", on="forget")
    labels = torch.tensor([1, 2, 3])
    rows = [Encoded([5, 1], [PROMPT, ANSWER], row) for row in range(3)]
    batch = fuse([pack(rows[:2]), pack(rows[2:])])
    said = TokenOutputs(torch.zeros(3, 8), labels, batch.row, 3, batch.kind, parts=batch.parts)
    monkeypatch.setattr(UNLEARNING_LOSSES, "_entries", dict(UNLEARNING_LOSSES._entries))
    UNLEARNING_LOSSES.register("test_mean_of_rows", source="test", additive=False)(mean_of_rows)
    loss, _ = compute([term], {"forget": said}, {})
    assert seen == [2, 1]
    assert float(loss) == pytest.approx(2 * torch.tensor(8.0).log().item())


@pytest.mark.parametrize("direction", ["sum", "ngdiff", "sam", "cr"])
def test_fusing_saves_passes_without_changing_the_training(
    direction: str,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> None:
    terms = [Term(loss="npo", on="forget"), Term(loss="gd", on="retain"),
             Term(loss="kl", on="retain")]  # fmt: skip
    plan = Training.model_validate(
        {
            "objective": terms, "epochs": 1, "batch_size": 1, "gradient_accumulation": 4,
            "learning_rate": 1e-2, "snapshots": 1, "direction": direction,
            "lora": Lora(r=2, lora_alpha=4, lora_dropout=0.0),
        }
    )  # fmt: skip
    found, passes = [], []
    for budget in (1, 4096):
        seen: list[int] = []

        def count(module: Any, _: Any, seen: list[int] = seen) -> None:
            if type(module).__name__ == "LlamaModel" and torch.is_grad_enabled():
                seen.append(1)

        plan = plan.model_copy(update={"tokens_per_pass": budget})
        job = TrainingJob(Run(tmp_path / str(budget)), "over", checkpoint_seconds=1e9)
        hook = register_module_forward_pre_hook(count)
        try:
            folder = train_adapter(make_model(), tiny_tokenizer, SETS, plan, job)
        finally:
            hook.remove()
        weights = load_file(folder / "adapter_model.safetensors")
        losses = [line["loss"] for line in read_jsonl(job.run.history)]
        found.append((weights, losses))
        passes.append(len(seen))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    check = 1  # the model is checked once for attention between packed rows
    micro_batches, steps = 5, 2
    each = {"sum": 1, "ngdiff": 2, "sam": 3, "cr": 5}[direction]
    assert passes[0] - passes[1] == each * (micro_batches - steps)
    assert passes[1] - each * steps in (0, check)


def test_a_data_worker_does_not_change_the_training(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Training(
        objective=[Term(loss="ga", on="forget"), Term(loss="gd", on="retain")], epochs=2,
        batch_size=2, gradient_accumulation=2, snapshots=1, lora=Lora(r=2, lora_dropout=0.0),
    )  # fmt: skip
    found = []
    for workers in (0, 1):

        class Fixed:
            """An attribute that keeps its value when another one is assigned."""

            value = workers

            def __get__(self, *_: Any) -> int:
                return self.value

            def __set__(self, *_: Any) -> None: ...

        monkeypatch.setattr(UnlearningTrainer, "workers", Fixed(), raising=False)
        job = TrainingJob(Run(tmp_path / str(workers)), "over", checkpoint_seconds=1e9)
        train_adapter(make_model(), tiny_tokenizer, SETS, plan, job)
        found.append([line["terms"] for line in read_jsonl(job.run.history)])
    assert len(found[0]) == 4 and found[0] == found[1]  # partners change with the epoch in both


def test_a_budget_below_a_step_splits_it_into_several_passes(
    tiny_tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    rows = encode_rows(tiny_tokenizer, SETS["forget"], max_length=64)
    sizes = [len(row) for row in rows]
    maker = UnlearningTrainer.__new__(UnlearningTrainer)
    maker.budget = sizes[0] + sizes[1]
    shares = [fit_share([row]) for row in rows]
    fused = maker._fused(shares)
    assert len(fused) == len(shares)
    assert [len(s.batches["forget"].parts) if s.batches else None for s in fused[:2]] == [None, 2]
    kept = torch.cat([s.batches["forget"].input_ids for s in fused if s.batches], 1)
    assert kept[0].tolist() == [i for row in rows for i in row.ids]
    for share in fused:
        tokens = sum(b.tokens for b in share.batches.values())
        assert tokens <= maker.budget or len(share.batches["forget"].parts) <= 1


def fit_share(rows: list[Encoded]) -> Share:
    return Share({"forget": pack(rows)}, {"forget": 5.0}, {"forget": {ANSWER: 1.0}})
