"""The scorer of ATWU and the efforts of EGUP, against plain arithmetic and in a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW
from mergeforget.errors import RecipeError
from mergeforget.files import read_jsonl
from mergeforget.outputs import ANSWER, PROMPT, TokenOutputs
from mergeforget.recipe import Recipe
from mergeforget.run import Run
from mergeforget.train import callbacks
from mergeforget.train.fit import TrainingJob, train_adapter
from mergeforget.train.objective import check_recipe
from mergeforget.train.tokenize import encode_sets
from mergeforget.train.weighting import Entanglement, TokenScorer, entanglement_of
from mergeforget.train_config import Lora, Reinforce, Scorer, Term, Tokens, Training

KIND = torch.tensor([PROMPT, ANSWER, ANSWER, ANSWER, ANSWER])
ROW = torch.tensor([0, 0, 0, 1, 1])
SETS = {
    n: [Row(f"{n}{i}-qa0", f"Who is {i}?", f"Ada {i}.", "", n) for i in range(4)]
    for n in ("forget", "retain")
}
RETAIN = Term(loss="gd", on="retain")
ATWU = Term(loss="atwu", on="forget", **{"beta": 2.0})


def outputs(seed: int = 0) -> TokenOutputs:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 6, generator=generator)
    hidden = torch.randn(5, 3, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4])
    return TokenOutputs(logits, labels, ROW, 2, KIND, hidden={-1: hidden})


def test_a_step_of_the_scorer_is_sgd_on_its_published_objective() -> None:
    said, spec = outputs(), Scorer(rate=0.1, budget=0.25, entropy=0.5, population=2.0, l2=0.1)
    scorer = TokenScorer(3, spec, ATWU)
    start = torch.tensor([0.5, -1.0, 0.25])
    scorer.weight.data.copy_(start)
    w, b = start.double().requires_grad_(), torch.zeros(1).double().requires_grad_()
    assert said.hidden is not None
    h = said.hidden[-1].double()
    nll = -said.token_logps.double()
    g = (1 + (-(h @ w + b)).exp()) ** -1
    at = [1, 2, 3, 4]  # the answers
    forget = torch.stack([-g[i] * nll[i] * torch.exp(-2 * (g[i] * nll[i]).detach()) for i in at])
    entropy = torch.stack([-g[i] * g[i].log() - (1 - g[i]) * (1 - g[i]).log() for i in at])
    hard = (g > 0.5).double() - g.detach() + g
    shares = torch.stack([hard[1:3].mean(), hard[3:5].mean()])
    loss = (
        forget.mean()
        + 0.5 * entropy.mean()
        + 2 * ((shares - 0.25) ** 2).mean()
        + 0.1 * ((w**2).sum() + (b**2).sum())
    )
    slopes = torch.autograd.grad(loss, [w, b])
    length = torch.cat([s.flatten() for s in slopes]).norm()
    factor = min(1.0, 1.0 / float(length))
    scorer.accumulate(said)
    scorer.update()
    for ours, old, slope in zip((scorer.weight, scorer.bias), (w, b), slopes, strict=True):
        theirs = old - 0.1 * (factor * slope + 1e-4 * old)
        torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=1e-4, atol=1e-6)


def test_the_scorer_starts_at_one_half_and_resumes_bit_for_bit() -> None:
    one, other = (TokenScorer(3, Scorer(), ATWU) for _ in range(2))
    assert one.score(outputs()).tolist() == [0.5] * 5
    for seed in range(2):
        one.accumulate(outputs(seed))
        one.update()
    other.load(one.state())
    for scorer in (one, other):
        scorer.accumulate(outputs(3))
        scorer.update()
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert one.due(9) and not one.due(8)


def test_efforts_match_a_hand_calculation() -> None:
    forget = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    retain = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # largest cosines: 1 and 1 / sqrt 2; divided by their mean 0.853553
    found = Entanglement(forget, retain)
    torch.testing.assert_close(found.inter, torch.tensor([1.171573, 0.828427]))
    said = outputs()
    said.hidden = {-1: torch.tensor([[9.0, 9.0], [5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
    # row 0 has not moved: cosine 1; the states of row 1 have the mean (1, 1): cosine 1 / sqrt 2
    efforts = found.efforts(said, torch.tensor([0, 1]))
    torch.testing.assert_close(efforts, torch.tensor([1.171573, 0.585786]))


def test_efforts_leave_out_forget_rows_among_the_retain_rows(
    make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """Layered unlearning retains later folds of the forget set, which resemble themselves."""
    plain = Training(objective=[Term(loss="egup", on="forget"), RETAIN])
    rows = [Row(f"{n}-qa0", f"Who is {n}?", f"{n} {n}.") for n in ("Ada", "Bo", "Cy", "Di")]
    sets = {"forget": rows, "retain": SETS["retain"]}
    policy = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    layered = encode_sets(tiny_tokenizer, sets, plain.model_copy(update={"folds": 2}), RAW, rows)
    assert len(layered["retain"]) == 4 + 2
    whole = entanglement_of(policy, encode_sets(tiny_tokenizer, sets, plain, RAW, rows))
    found = entanglement_of(policy, layered, folds=2)
    assert torch.equal(found.inter, whole.inter) and torch.equal(found.forget, whole.forget)


def test_whp_has_the_same_values_with_padding_as_without(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    values = {}
    for padding, mask in (("none", "tokens"), ("left", "all"), ("right", "all")):
        terms = [Term(loss="whp", on="forget"),
                 Term.model_validate({"loss": "kl", "on": "retain", "mask": mask})]  # fmt: skip
        trained(tmp_path / padding, make_model(), tiny_tokenizer, objective=terms, scorer=None,
                epochs=1, reinforce=Reinforce(epochs=1, learning_rate=0.05), batch_size=2,
                tokens=Tokens(padding=padding),  # type: ignore[arg-type]
                lora=Lora(r=2, lora_alpha=4, lora_dropout=0.0))  # fmt: skip
        lines = read_jsonl(tmp_path / padding / "history.jsonl")
        values[padding] = [x["terms"]["whp_forget"] for x in lines if x["stage"] == "adapter"][0]
    assert values["left"] == pytest.approx(values["none"], rel=1e-4)
    assert values["right"] == pytest.approx(values["none"], rel=1e-4)


def trained(
    folder: Path,
    model: Any,
    tokenizer: Any,
    *,
    seconds: float = 1e9,
    resume: bool = False,
    **more: Any,
) -> dict[str, Tensor]:
    settings: dict[str, Any] = {
        "objective": [ATWU, RETAIN], "epochs": 2, "batch_size": 1,
        "gradient_accumulation": 2, "learning_rate": 1e-2, "snapshots": 1,
        "scorer": Scorer(rate=0.5, every=1), "lora": Lora(r=2, lora_alpha=4),
    }  # fmt: skip
    job = TrainingJob(Run(folder), "adapter", resume, checkpoint_seconds=seconds)
    train_adapter(model, tokenizer, SETS, Training(**settings | more), job)
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_accumulation_equals_the_larger_batch_with_a_scorer(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    lora = Lora(r=2, lora_alpha=4, lora_dropout=0.0)
    small = trained(tmp_path / "a", make_model(), tiny_tokenizer, lora=lora)
    large = trained(tmp_path / "b", make_model(), tiny_tokenizer, lora=lora, batch_size=2,
                    gradient_accumulation=1)  # fmt: skip
    for key, value in large.items():
        torch.testing.assert_close(small[key], value, rtol=1e-4, atol=1e-5)
    scores = [x["notes"]["score_forget"] for x in read_jsonl(tmp_path / "a" / "history.jsonl")]
    assert scores[0] == pytest.approx(0.5) and len(set(scores)) == len(scores)


class Killed(Exception):
    pass


def test_a_training_with_every_helper_resumes_bit_for_bit_after_a_kill(
    tmp_path: Path,
    make_model: Callable[..., Any],
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more: dict[str, Any] = {
        "objective": [ATWU, *(Term(loss=n, on="forget") for n in ("whp", "egup")), RETAIN],
        "epochs": 1, "gradient_accumulation": 1, "reinforce": Reinforce(epochs=1),
        "scorer": Scorer(rate=0.5, every=2), "snapshots": 1,
    }  # fmt: skip
    whole = trained(tmp_path / "whole", make_model(), tiny_tokenizer, seconds=0, **more)
    plain = callbacks.ProgressBar.on_step_end

    def die(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3 and self.label == "adapter":
            raise Killed

    monkeypatch.setattr(callbacks.ProgressBar, "on_step_end", die)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", make_model(), tiny_tokenizer, seconds=0, **more)
    monkeypatch.setattr(callbacks.ProgressBar, "on_step_end", plain)
    again = trained(tmp_path / "cut", make_model(), tiny_tokenizer, seconds=0, resume=True, **more)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    one, other = (read_jsonl(tmp_path / n / "history.jsonl") for n in ("whole", "cut"))
    assert one == other and {x["stage"] for x in one} == {"adapter", "adapter-reinforced"}
    assert {"score_forget", "effort_forget"} <= one[-1]["notes"].keys()


def test_helpers_of_other_losses_are_refused() -> None:
    def check(*terms: Term, **more: Any) -> None:
        check_recipe(Recipe(name="x", train=Training(objective=list(terms), **more)))

    gd, npo = Term(loss="gd", on="retain"), Term(loss="npo", on="forget")
    altpo, idk = Term(loss="altpo", on="forget"), Term(loss="idk", on="forget")
    for key, value in {"alternates": "file", "scorer": {}, "reinforce": {}}.items():
        with pytest.raises(RecipeError, match=f"{key} belongs to"):
            check(npo, gd, **{key: value})
    with pytest.raises(RecipeError, match="one replacement answer"):
        check(altpo, idk, gd)
    with pytest.raises(RecipeError, match="resegment"):
        check(altpo, gd, transforms=[{"transform": "resegment", "on": "forget"}])
    with pytest.raises(RecipeError, match="direction: sum"):
        check(ATWU, gd, direction="gru")
    with pytest.raises(RecipeError, match="leave out full"):
        check(Term(loss="whp", on="forget"), full={"last_layers": 1})
    with pytest.raises(RecipeError, match="npo and whp may not leave out the same rows"):
        check(Term(loss="whp", on="forget"), npo, tokens=Tokens(truncate="end"))
    check(Term(loss="whp", on="forget"), gd, tokens=Tokens(truncate="end"))
    with pytest.raises(RecipeError, match="layer counts from 0, so -1 names no layer"):
        check(Term.model_validate({"loss": "rmu", "on": "forget", "layer": -1}), gd)
    with pytest.raises(RecipeError, match="forget set only"):
        check(npo, Term(loss="atwu", on="retain"))
