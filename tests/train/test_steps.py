"""What one optimiser step contains: one set or several, chunks, references, two gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mergeforget.data.schema import Row
from mergeforget.errors import NumericError, RecipeError
from mergeforget.files import read_json, read_jsonl
from mergeforget.run import Run
from mergeforget.train import directions, ngdiff_trainer, trainer
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.forward import predict
from mergeforget.train.pair import choose_trained, train_model
from mergeforget.train.samplers import AlternatingSampler, BySetSampler, ChunkedSampler
from mergeforget.train_config import (
    AutoRate,
    Average,
    Dual,
    Full,
    Lora,
    Term,
    Training,
    Watch,
)

SETS = {
    name: [Row(f"{name}{i}-qa0", f"Who is {i}?", f"Ada {i} {name}.", "", name) for i in range(5)]
    for name in ("forget", "retain", "holdout")
}
TWO = {n: SETS[n] for n in ("forget", "retain")}
NPO, GD = Term(loss="npo", on="forget"), Term(loss="gd", on="retain")
GA = Term(loss="ga", on="forget")


def training(**more: Any) -> Training:
    settings: dict[str, Any] = {
        "objective": [NPO, GD], "epochs": 2, "batch_size": 2, "gradient_accumulation": 1,
        "learning_rate": 1e-2, "snapshots": 1, "lora": Lora(r=2, lora_alpha=4, lora_dropout=0.0),
    }  # fmt: skip
    return Training(**settings | more)


@pytest.fixture
def train(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> Callable[..., tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]:
    """Trains an adapter; gives its weights and its history."""

    def run(
        name: str = "a", sets: Any = TWO, **more: Any
    ) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        job = TrainingJob(Run(tmp_path / name), "over", checkpoint_seconds=1e9)
        folder = train_adapter(make_model(), tiny_tokenizer, sets, training(**more), job)
        weights = load_file(folder / "adapter_model.safetensors")
        return weights, read_jsonl(job.run.history)

    return run


def test_alternating_steps_contain_one_set_each(train: Callable[..., Any]) -> None:
    _, lines = train(batches="alternating", batch_size=1, gradient_accumulation=2, epochs=1)
    terms = [list(x["terms"]) for x in lines]
    assert terms == [["npo_forget"], ["gd_retain"]] * 3  # five rows, at most two per step


def test_alternating_samples_every_row_once_per_epoch() -> None:
    order = AlternatingSampler(rows=11, batch_size=2, accumulation=2, seed=0)
    parts = list(order)
    assert len(parts) == len(order) and all(1 <= len(p) <= 2 for p in parts)
    for name in ("forget", "retain"):
        assert sorted(place.row for p in parts for place in p if place.only == name) == list(
            range(11)
        )
    assert all(len({place.only for place in p}) == 1 for p in parts)
    order.set_epoch(1)
    assert list(order) != parts


def test_by_set_samples_every_row_once_per_epoch() -> None:
    sizes = {"forget": 5, "retain": 7, "refusal": 5}
    order = BySetSampler(sizes, batch_size=2, accumulation=2, seed=0)
    for epoch in range(2):
        order.set_epoch(epoch)
        parts = list(order)
        assert len(parts) == len(order) == 2 * (2 + 2 + 2)
        assert all(len({place.only for place in part}) == 1 for part in parts)
        counted = sorted((p.only, p.row) for part in parts for p in part if p.counts)
        assert counted == sorted((name, i) for name, size in sizes.items() for i in range(size))
    names = [part[0].only for part in parts[::2]]
    assert names != sorted(names)


def test_by_set_trains_each_term_on_steps_of_its_set(train: Callable[..., Any]) -> None:
    terms = [GA, Term(loss="idk", on="forget"), GD]
    _, lines = train(objective=terms, batches="by_set")
    assert all(len(line["terms"]) == 1 for line in lines)
    assert {name for line in lines for name in line["terms"]} == {
        "ga_forget", "idk_forget", "gd_retain"
    }  # fmt: skip


def test_chunks_are_trained_in_sequence() -> None:
    order = ChunkedSampler(rows=5, chunk=2, epochs=3, batch_size=1, accumulation=1, seed=0)
    rows = [p[0].row for p in order]
    assert order.chunk_steps == [6, 6, 3] and order.beginnings == {0, 6, 12}
    assert sorted(rows[:6]) == [0, 0, 0, 1, 1, 1] and rows[12:] == [4, 4, 4]


def test_each_chunk_begins_with_a_fresh_optimiser_and_schedule(train: Callable[..., Any]) -> None:
    _, lines = train(chunk_rows=2, epochs=2, batch_size=1, retain_per_forget=3)
    rates = [x["learning_rate"] for x in lines]
    assert len(lines) == 10 and rates[:4] == pytest.approx(rates[4:8])
    assert rates[:4] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert lines[-1]["epoch"] == pytest.approx(2)


def test_each_chunk_has_a_separate_warm_up(train: Callable[..., Any]) -> None:
    _, lines = train(chunk_rows=2, epochs=3, batch_size=1, warmup_epochs=1.0)
    rates = [x["learning_rate"] for x in lines]
    chunk = [0, 0.5, 1, 0.75, 0.5, 0.25]  # two steps up, four down; the last chunk has one row
    assert rates == pytest.approx([1e-2 * f for f in [*chunk, *chunk, 0, 1, 0.5]])


@pytest.mark.parametrize("mask", ["answer", "tokens"])
def test_stored_references_equal_a_forward_pass(
    mask: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terms = [NPO, GD, Term.model_validate({"loss": "kl", "on": "retain", "mask": mask})]
    kept, _ = train("kept", objective=terms)
    names = {p.name.split("-")[0] for p in (tmp_path / "kept" / "reference").iterdir()}
    assert names == {"logps", "hidden"}
    from mergeforget.train.objective import Reads

    monkeypatch.setattr(Reads, "kept", property(lambda self: None))
    live, _ = train("live", objective=terms)
    assert not (tmp_path / "live" / "reference").exists()
    for key, value in live.items():
        torch.testing.assert_close(kept[key], value, rtol=1e-3, atol=1e-5)


def test_chunked_logits_equal_those_of_the_model(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = [NPO, GD, Term.model_validate({"loss": "kl", "on": "retain", "mask": "tokens"})]
    chunks, _ = train("chunks", objective=terms)
    for place in ("mergeforget.train.fit", "mergeforget.train.reference"):
        monkeypatch.setattr(f"{place}.output_matrix", lambda model: None)
    plain, _ = train("plain", objective=terms)
    for key, value in plain.items():
        torch.testing.assert_close(chunks[key], value, rtol=1e-3, atol=1e-5)


def test_ngdiff_steps_along_its_direction(train: Callable[..., Any]) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
        "max_grad_norm": 0.0, "weight_decay": 0.0, "epochs": 1,
    }  # fmt: skip
    small, lines = train("small", batch_size=1, gradient_accumulation=5, **settings)
    large, _ = train("large", batch_size=5, **settings)
    # lora_B is 0 at first, so lora_A has no gradient and the first step moves lora_B alone
    moved = torch.cat([v.flatten() for k, v in large.items() if "lora_B" in k])
    assert lines[0]["grad_norm"] <= 2 and moved.norm() == pytest.approx(
        1e-2 * lines[0]["grad_norm"], rel=1e-3
    )
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-3, atol=1e-6)


def test_gru_never_steps_against_the_smoothed_retain_gradient(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def spied(objective: Any, retain: Any) -> list[torch.Tensor]:
        step = directions.rectified(objective, retain)
        size = directions.norm(step) * directions.norm(retain)
        seen.append(directions.inner(step, retain) / size)
        return step

    monkeypatch.setattr(ngdiff_trainer, "rectified", spied)
    train(objective=[GA, GD], direction="gru")
    assert len(seen) == 6 and min(seen) > -1e-5


def test_sam_takes_the_forget_gradient_at_the_perturbed_weights(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = train("plain", objective=[NPO, GD], optimizer="sgd", max_grad_norm=0.0)
    tiny, lines = train("tiny", direction="sam", sam_radius=1e-7, objective=[NPO, GD],
                        optimizer="sgd", max_grad_norm=0.0)  # fmt: skip
    for name, weight in plain.items():
        torch.testing.assert_close(tiny[name], weight, rtol=1e-4, atol=1e-6)
    assert set(lines[0]["terms"]) == {"npo_forget", "gd_retain"}
    wide, _ = train("wide", direction="sam", sam_radius=0.5, objective=[NPO, GD],
                    optimizer="sgd", max_grad_norm=0.0)  # fmt: skip
    assert any(not torch.allclose(wide[name], plain[name], atol=1e-5) for name in plain)


RATE, RADIUS, SMOOTHING = 0.05, 0.3, 0.9
FAR = 5.0  # a step after which the retain gradient differs
TRAINED = "model.layers.1.mlp.down_proj.weight"


def weights_after(
    folder: Path, make_model: Callable[..., Any], tokenizer: Any, **more: Any
) -> torch.Tensor:
    """The trained matrix after SGD steps over all rows of both sets at once."""
    model = make_model()
    settings: dict[str, Any] = {
        "objective": [GA, GD], "optimizer": "sgd", "schedule": "constant", "learning_rate": RATE,
        "max_grad_norm": 0.0, "weight_decay": 0.0, "batch_size": 5,
        "full": Full(layers=[1], modules=["down_proj"]),
    }  # fmt: skip
    job = TrainingJob(Run(folder), "over", checkpoint_seconds=1e9)
    train_model(model, tokenizer, TWO, training(**settings | more), job)
    found: torch.Tensor = dict(model.named_parameters())[TRAINED].detach().double()
    return found


class Twin:
    """The same model in float64: gradients of the mean NLL of the answers of a set."""

    def __init__(self, make_model: Callable[..., Any], tokenizer: Any) -> None:
        self.model = make_model().double().eval()
        self.weight = dict(self.model.named_parameters())[TRAINED]
        self.tokenizer = tokenizer

    def slope(self, name: str, theta: torch.Tensor, graph: bool = False) -> torch.Tensor:
        with torch.no_grad():
            self.weight.copy_(theta)
        losses = []
        for row in TWO[name]:
            prompt = self.tokenizer(row.input)["input_ids"]
            answer = [*self.tokenizer(" " + row.output)["input_ids"], self.tokenizer.eos_token_id]
            logits = self.model(input_ids=torch.tensor([prompt + answer])).logits[0]
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            losses += [-logps[i, token] for i, token in enumerate(answer)]
        mean = torch.stack(losses).mean()
        (found,) = torch.autograd.grad(mean, self.weight, create_graph=graph)
        return found


def test_a_step_of_sam_equals_its_equation_in_float64(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction="sam", sam_radius=RADIUS, epochs=1
    )
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()
    rise = -twin.slope("forget", start)  # gradient of ga
    retain = twin.slope("retain", start)

    def after(radius: float) -> torch.Tensor:
        sharp = -twin.slope("forget", start + radius * rise / rise.norm())
        stepped: torch.Tensor = start - RATE * (retain + sharp)
        return stepped

    right = after(RADIUS)
    size = (right - start).norm()
    assert (ours - right).norm() < 1e-4 * size
    for wrong in (after(-RADIUS), after(0.0)):
        assert (ours - wrong).norm() > 1e-2 * size


def test_two_steps_of_gru_equal_their_equation_in_float64(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction="gru", gru_smoothing=SMOOTHING, epochs=2,
        learning_rate=FAR,
    )  # fmt: skip
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()

    def after(new: float, old: float) -> torch.Tensor:
        """Weights if the smoothed gradient is new times the new and old times the previous one."""
        theta, smoothed = start, torch.zeros(0)
        for _ in range(2):
            rise, retain = -twin.slope("forget", theta), twin.slope("retain", theta)
            smoothed = new * retain + old * smoothed if len(smoothed) else retain
            conflict = (rise * smoothed).sum()
            assert conflict < 0
            theta = theta - FAR * (rise - conflict / (smoothed**2).sum() * smoothed)
        last: torch.Tensor = theta
        return last

    right = after(SMOOTHING, 1 - SMOOTHING)
    size = (right - start).norm()
    assert (ours - right).norm() < 1e-4 * size
    assert (ours - after(1 - SMOOTHING, SMOOTHING)).norm() > 1e-3 * size


@pytest.mark.parametrize(("direction", "penalty"), [("gp", 2.0), ("cr", 1000.0)])
def test_a_step_with_a_penalty_equals_its_equation_in_float64(
    direction: str,
    penalty: float,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> None:
    """The finite differences of float32 gradients equal derivatives by autograd."""
    radius = 0.05
    ours = weights_after(
        tmp_path, make_model, tiny_tokenizer, direction=direction, sam_radius=radius,
        penalty=penalty,
        epochs=1,
    )  # fmt: skip
    twin = Twin(make_model, tiny_tokenizer)
    start = twin.weight.detach().clone()
    rise = -twin.slope("forget", start)
    plain = start - RATE * (twin.slope("retain", start) + rise)

    def product(theta: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian of the forget term times a vector."""
        slope = -twin.slope("forget", theta, graph=True)
        (found,) = torch.autograd.grad((slope * vector).sum(), twin.weight)
        return found

    ahead = start + radius * rise / rise.norm()
    change = -twin.slope("forget", ahead) - rise
    unit = change / change.norm()
    bends = {
        "gp": product(start, rise / rise.norm()),
        "cr": product(ahead, unit) - product(start, unit),
    }
    right = plain - RATE * penalty * bends[direction]
    size = (right - plain).norm()
    assert size > 1e-2 * (plain - start).norm()
    assert (ours - right).norm() < 0.1 * size
    for wrong in (plain, 2 * plain - right):
        assert (ours - wrong).norm() > 0.9 * size


def test_the_result_is_the_mean_of_the_weights_that_count(train: Callable[..., Any]) -> None:
    settings = {"optimizer": "sgd", "schedule": "constant", "objective": [GA, GD]}
    each = [train(str(epochs), epochs=epochs, **settings)[0] for epochs in (1, 2, 3)]
    mean, _ = train("mean", epochs=3, average=Average(start=1 / 3, every=3), **settings)  # 9 steps
    for name, weight in mean.items():
        torch.testing.assert_close(weight, sum(one[name] for one in each) / 3)
    assert max(float((mean[n] - each[2][n]).abs().max()) for n in mean) > 1e-3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"direction": "gru", "objective": [GA]}, "needs terms on forget and on retain"),
        ({"gru_smoothing": 0.5}, "applies only to direction gru"),
        ({"sam_radius": 0.5}, "applies only to the directions sam, gp and cr"),
        ({"direction": "sam", "penalty": 0.5}, "applies only to the directions gp and cr"),
        ({"direction": "gp", "objective": [GD]}, "direction gp perturbs .* add a forget term"),
        ({"average": Average(), "watch": Watch(every=2)}, "leave out average"),
        ({"clip_each": 1.0}, "applies only to direction ngdiff"),
    ],
)
def test_settings_of_another_direction_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(**more)


def test_values_of_clipped_micro_batches_are_averaged(train: Callable[..., Any]) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
        "batch_size": 1, "gradient_accumulation": "epoch", "max_grad_norm": 0.0, "epochs": 1,
    }  # fmt: skip
    _, (clipped,) = train("clipped", clip_each=1.0, **settings)
    _, (plain,) = train("plain", **settings)  # five answers of nearly one length
    assert clipped["loss"] == pytest.approx(plain["loss"], abs=0.02)
    for label in ("ga_forget", "gd_retain"):
        assert clipped["terms"][label] == pytest.approx(plain["terms"][label], rel=0.01)
    assert clipped["loss"] == pytest.approx(sum(clipped["terms"].values()), abs=1e-5)


@pytest.mark.parametrize("method", ["probe", "fit"])
def test_fitted_rates_are_used_and_recorded(method: str, train: Callable[..., Any]) -> None:
    rate = AutoRate(method=method, every=2)  # type: ignore[arg-type]
    _, lines = train(
        objective=[GA, GD], direction="ngdiff", optimizer="sgd", schedule="constant",
        auto_rate=rate, max_grad_norm=0.0, clip_each=1.0 if method == "fit" else 0.0,
        weight_decay=0.0,
    )  # fmt: skip
    fits = [x.get("auto_rate") for x in lines]
    assert [f is not None for f in fits] == [True, False, True, False, True, False]
    for i in (0, 2, 4):
        assert lines[i]["learning_rate"] == lines[i + 1]["learning_rate"] == fits[i]["rate"]
        assert set(fits[i]) == {"rate", "fitted", "curvature", "accepted"}


def test_a_rate_probe_restores_the_weights_bit_for_bit(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "objective": [GA, GD], "direction": "ngdiff", "optimizer": "sgd", "schedule": "constant",
    }  # fmt: skip
    without, _ = train("without", **settings)
    monkeypatch.setattr(ngdiff_trainer.NGDiffTrainer, "_set_rate", lambda self, fit: None)
    probed, _ = train("probed", auto_rate=AutoRate(every=1), **settings)
    assert all(torch.equal(without[k], probed[k]) for k in without)


def test_eul_records_the_share_of_clamped_values(train: Callable[..., Any]) -> None:
    eul = Term.model_validate({"loss": "eul", "on": "forget", "floor": 100.0})
    _, lines = train(objective=[eul, GD])
    assert all(x["notes"] == {"clamped_forget": pytest.approx(1)} for x in lines)


def test_dual_weight_rises_while_the_term_is_above_its_limit(train: Callable[..., Any]) -> None:
    _, lines = train(objective=[GA, GD], dual=Dual(limit=3.0, step=0.5))
    weight = 1.0
    for line in lines:
        assert line["dual_weight"] == pytest.approx(weight)
        value = line["terms"]["gd_retain"]
        assert line["loss"] == pytest.approx(line["terms"]["ga_forget"] + weight * value, abs=1e-5)
        weight = max(0.0, weight + 0.5 * (value - 3.0))
    assert weight != 1.0


def test_dual_weight_is_constant_during_its_warm_up(train: Callable[..., Any]) -> None:
    """Three steps a pass: as in the published code, the steps of the second pass update it."""
    _, lines = train(objective=[GA, GD], dual=Dual(limit=3.0, step=0.5, warmup_epochs=1))
    weights = [line["dual_weight"] for line in lines]
    assert len(lines) == 6 and weights[:4] == [1.0] * 4
    for i in (4, 5):
        wanted = max(0.0, weights[i - 1] + 0.5 * (lines[i - 1]["terms"]["gd_retain"] - 3.0))
        assert weights[i] == pytest.approx(wanted) and weights[i] != weights[i - 1]


def test_dual_of_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match="dual.term is 'kl_retain'.*npo_forget, gd_retain"):
        training(dual=Dual(term="kl_retain", limit=1.0))


def test_dpo_reads_refusals_with_their_forget_rows(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    own = tmp_path / "refusals.txt"
    own.write_text("No idea.\n")
    dpo = Term.model_validate({"loss": "dpo", "on": "forget", "beta": 1.0})
    _, lines = train(objective=[dpo, GD], refusals=str(own), batches="alternating")
    # at the start policy and reference agree: 2 ln 2 / beta
    assert lines[0]["terms"]["dpo_forget"] == pytest.approx(1.386294, abs=1e-4)


def test_early_stopping_stops_on_collapse_and_keeps_the_best_step(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    up = Term(loss="ga", on="retain")
    _, lines = train(
        "collapse", SETS, objective=[GA, up], epochs=10, learning_rate=0.05,
        watch=Watch(every=2, sample=3, collapse=0.12),
    )  # fmt: skip
    looks = read_jsonl(tmp_path / "collapse" / "proxies.jsonl")
    assert [x["step"] for x in looks[:2]] == [0, 2] and len(lines) < 30
    assert looks[-1]["retain_nll"] - looks[0]["retain_nll"] > 0.05
    assert all(0 <= x["mia_auc"] <= 1 and 0 <= x["forget_exact"] <= 1 for x in looks)
    end = read_json(tmp_path / "collapse" / "until" / "over.json")
    assert end["outcome"] == "collapsed"
    assert looks[-1]["step"] - 2 <= end["step"] < looks[-1]["step"]
    with pytest.raises(NumericError, match="collapsed within"):  # the first step passes it
        train("broken", SETS, objective=[GA, up], epochs=10, learning_rate=0.5,
              watch=Watch(every=2, sample=3, collapse=0.01))  # fmt: skip
    best, _ = train(
        "best", SETS, objective=[GA, up], epochs=2, learning_rate=0.05,
        watch=Watch(every=2, sample=3, best_by="retain_nll"),
    )  # fmt: skip
    first, _ = train("first", SETS, objective=[GA, up], epochs=2, learning_rate=0.05)
    assert any(not torch.equal(best[k], first[k]) for k in best)  # step 2, not the last


@pytest.mark.parametrize("loss", ["npo", "undial"])
def test_full_training_uses_the_initial_weights_as_reference(
    loss: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    terms = [Term(loss=loss, on="forget"), Term(loss="kl", on="retain")]
    plan = training(objective=terms, full=Full(last_layers=1), learning_rate=1e-3)
    model = make_model()
    job = TrainingJob(Run(tmp_path), "model", checkpoint_seconds=1e9)
    train_model(model, tiny_tokenizer, TWO, plan, job)
    lines = read_jsonl(job.run.history)
    assert lines[0]["terms"]["kl_retain"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["terms"]["kl_retain"] > 1e-6
    before, after = make_model().state_dict(), model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.startswith("model.layers.1.") for k in changed)


@pytest.mark.parametrize("loss", ["npo", "undial"])
def test_training_the_output_matrix_does_not_change_the_reference(
    loss: str,
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen, asked = make_model(), trainer.UnlearningTrainer._references
    gaps = []

    def compared(self: Any, model: Any, share: Any, reads: Any) -> Any:
        found = asked(self, model, share, reads)
        for name, said in found.items():
            with torch.no_grad():
                own = predict(frozen, share.batches[name])
            if said.source is not None:
                gaps.append(float((said.logits - own.logits).detach().abs().max()))
        return found

    monkeypatch.setattr(trainer.UnlearningTrainer, "_references", compared)
    terms = [Term(loss=loss, on="forget"), Term(loss="kl", on="retain")]
    job = TrainingJob(Run(tmp_path), "model", checkpoint_seconds=1e9)
    train_model(make_model(), tiny_tokenizer, TWO, training(objective=terms, full=Full()), job)
    assert len(gaps) >= 6 and max(gaps) < 1e-5


def test_full_reports_the_trained_weights(tiny_model: Any) -> None:
    choose_trained(tiny_model, Full(layers=[1], modules=["down_proj"]))
    trained = [n for n, p in tiny_model.named_parameters() if p.requires_grad]
    assert trained == ["model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(RecipeError, match="names no weight"):
        choose_trained(tiny_model, Full(layers=[5]))


def test_gradient_checkpointing_does_not_change_the_training(train: Callable[..., Any]) -> None:
    plain, _ = train("plain")
    saved, _ = train("saved", gradient_checkpointing=True)
    for key, value in plain.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-4, atol=1e-6)
