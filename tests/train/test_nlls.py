"""Levels of forget rows are those of unseen rows, as their perturbed twins show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergeforget.data.schema import Row
from mergeforget.data.tokens import Encoded, encode_rows
from mergeforget.files import read_jsonl
from mergeforget.models import load_model
from mergeforget.outputs import ANSWER, PROMPT
from mergeforget.train import checks, nlls
from mergeforget.train.checks import PASSAGE, MeasuredSets
from mergeforget.train.forward import predict
from mergeforget.train.nlls import answer_ids, auc_of, read_nlls, read_token_nlls


def test_auc_matches_a_hand_calculation() -> None:
    # pairs (1,2) (1,1) (3,2) (3,1): won, tie, lost, lost -> 1.5 / 4
    assert auc_of(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])) == 0.375


@pytest.mark.parametrize("window", ["", "whole"])
def test_answer_tokens_match_their_nll(knowing: dict[str, Path], window: Any) -> None:
    """Nothing predicts the first token of a document without a prompt."""
    loaded = load_model(str(knowing["model"]))
    prompt = "" if window else "who is it?"
    rows = [
        Row("a", prompt, "it is red and green", window=window),
        Row("b", prompt, "it", window=window),
    ]
    encoded = encode_rows(loaded.tokenizer, rows, max_length=64)
    found, exact = read_token_nlls(loaded.model, encoded)
    assert [len(nll) for nll in found] == [len(answer_ids(row)) for row in encoded]
    assert len(exact) == 2


def test_long_rows_are_read_in_passes_of_a_limited_number_of_tokens(
    knowing: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(knowing["model"]))
    rows = [Row(str(i), "who is it?", "it is red " * (1 + i % 3)) for i in range(20)]
    encoded = encode_rows(loaded.tokenizer, rows, max_length=64)
    whole = read_nlls(loaded.model, encoded)[0]
    lengths: list[int] = []

    def counting(model: Any, batch: Any) -> Any:
        lengths.append(batch.input_ids.numel())
        return predict(model, batch)

    monkeypatch.setattr(nlls, "predict", counting)
    monkeypatch.setattr(nlls, "TOKENS", 100)
    assert read_nlls(loaded.model, encoded)[0] == pytest.approx(whole, abs=1e-5)
    assert max(lengths) <= 100 and sum(lengths) == sum(len(row.ids) for row in encoded)
    lengths.clear()
    monkeypatch.setattr(nlls, "TOKENS", 1)  # a longer row has a pass of its own
    read_nlls(loaded.model, encoded)
    assert len(lengths) == 20


def knowing_rows(knowing: dict[str, Path]) -> tuple[Any, MeasuredSets]:
    """Forget rows that the model knows, "twins" with the same wording, and unseen rows."""
    loaded = load_model(str(knowing["model"]))
    known = [Row(**row) for row in read_jsonl(knowing["forget"])][:4]
    unseen = [Row(**row) for row in read_jsonl(knowing["holdout"])][:4]

    def encoded(rows: list[Row]) -> Any:
        return encode_rows(loaded.tokenizer, rows, max_length=64)

    sets = {"forget": encoded(known), "retain": encoded(known), "held": encoded(known),
            "unseen": encoded(unseen), "imitations": encoded(unseen)}  # fmt: skip
    return loaded.model, MeasuredSets(sets, twins={"held": range(4), "imitations": range(4)})


def test_levels_follow_unseen_rows_if_the_base_knows_the_wording_of_twins(
    knowing: dict[str, Path],
) -> None:
    model, measured = knowing_rows(knowing)
    measured.measure_levels(model)
    nll = {name: read_nlls(model, measured.sets[name])[0] for name in ("forget", "unseen")}
    assert nll["forget"].mean() < 0.5 < nll["unseen"].mean()
    assert measured.known_groups and measured.repeated == 1.0
    tokens = read_token_nlls(model, measured.sets["unseen"])[0]
    same_length = len({len(one) for one in tokens}) == 1
    wanted = float(torch.cat(tokens).mean())
    assert same_length
    assert float(measured.levels["forget"].mean()) == pytest.approx(wanted, rel=0.01)
    assert measured.guessable.isnan().all()  # exact twins do not excuse exact answers
    assert [one.ids for one in measured.to_hold()] == [
        one.ids for one in measured.sets["imitations"]
    ]
    assert (measured.profile.mean(1) - 1).abs().max() < 0.01  # type: ignore[union-attr]


def test_repeated_twins_are_counted_in_each_form_of_prompts(knowing: dict[str, Path]) -> None:
    """A base that repeats its twins in chat alone repeats them."""
    model, measured = knowing_rows(knowing)
    sets = measured.sets
    mixed = {**sets, "held": [*sets["forget"][:2], *sets["unseen"][:2]]}
    forms = {"forget": [0, 0, 1, 1], "unseen": [0, 0, 1, 1]}
    twins = {"held": range(4), "imitations": range(4)}
    measured = MeasuredSets(mixed, twins=twins, forms=forms)
    measured.measure_levels(model)
    assert measured.repeated == 1.0


def test_levels_are_those_of_the_twins_if_both_are_equally_easy(knowing: dict[str, Path]) -> None:
    model, measured = knowing_rows(knowing)
    measured.sets = {**measured.sets, "held": measured.sets["imitations"]}
    measured.measure_levels(model)
    nll = read_nlls(model, measured.sets["imitations"])[0]
    assert not measured.known_groups
    assert measured.levels["forget"].tolist() == pytest.approx(nll.tolist(), rel=1e-5)


def answered(length: int, form: int = 0) -> Encoded:
    """A row with a prompt of two tokens and an answer of ``length`` tokens."""
    return Encoded(list(range(length + 2)), [PROMPT, PROMPT] + [ANSWER] * length, form=form)


def test_passages_and_short_answers_have_levels_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base knows passages, whose low NLL does not stand out among short answers."""
    lengths = [40, 40, 40, 40, 5, 5, 5, 5]
    rows = [answered(n) for n in lengths] + [answered(n, form=1) for n in lengths]
    nlls = {"held": (0.5, 6.0), "imitations": (3.0, 6.0), "unseen": (3.2, 6.0)}

    def read(model: str, examples: list[Encoded]) -> tuple[list[Tensor], Tensor]:
        name = next(n for n, one in measured.sets.items() if one is examples)
        of = [nlls[name][row.kinds.count(ANSWER) < PASSAGE] for row in examples]
        tokens = [torch.full((row.kinds.count(ANSWER),), nll + 0.01 * i)
                  for i, (row, nll) in enumerate(zip(examples, of, strict=True))]  # fmt: skip
        return tokens, torch.tensor([nll < 1 for nll in of])

    def means(model: str, examples: list[Encoded]) -> tuple[Tensor, Tensor]:
        tokens, exact = read(model, examples)
        return torch.stack([nll.mean() for nll in tokens]), exact

    monkeypatch.setattr(checks, "read_token_nlls", read)
    monkeypatch.setattr(checks, "read_nlls", means)
    sets = {"forget": rows, "held": list(rows), "unseen": list(rows), "imitations": list(rows)}
    forms = [one.form for one in rows]
    twins = {"held": range(16), "imitations": range(16)}
    measured = MeasuredSets(sets, twins=twins, forms={"forget": forms, "unseen": forms})
    measured.measure_levels("base")
    passages = [i for i, row in enumerate(rows) if row.kinds.count(ANSWER) == 40]
    others = [i for i in range(16) if i not in passages]
    assert measured.known_groups == {1, 3}
    assert measured.levels["forget"][passages].mean() == pytest.approx(3.055, abs=0.01)
    assert measured.levels["forget"][others].tolist() == pytest.approx(
        [6.0 + 0.01 * i for i in others])  # fmt: skip
    held = measured.to_hold()
    assert [len(one) for one in held] == [7] * 8 + [42] * 8
    assert [one.row for one in held] == list(range(16))  # by which reference outputs are found
    assert measured.guessable.isnan().tolist() == [i in passages for i in range(16)]
    # only short answers have twins
    few = {**sets, "held": [rows[i] for i in others], "imitations": [rows[i] for i in others]}
    twins_of = {"held": others, "imitations": others}
    forms_of = {"forget": forms, "unseen": forms}
    measured = MeasuredSets(few, twins=twins_of, forms=forms_of)
    monkeypatch.setattr(MeasuredSets, "_has_twins", lambda *_: True)
    measured.measure_levels("base")
    assert measured.levels["forget"][passages].mean() == pytest.approx(3.255, abs=0.01)
    assert measured.levels["unseen"][passages].tolist() == pytest.approx(
        [3.2 + 0.01 * i for i in passages])  # fmt: skip
    assert measured.levels["forget"][others].mean() == pytest.approx(6.035, abs=0.01)
    assert measured.known_groups == frozenset()
    monkeypatch.undo()
    monkeypatch.setattr(checks, "read_nlls", means)
    # without twins, each group has the mean of its own unseen rows
    sets = {"forget": rows, "unseen": list(rows)}
    measured = MeasuredSets(sets, forms={"forget": forms, "unseen": forms})
    measured.measure_levels("base")
    assert measured.levels["forget"][passages].mean() == pytest.approx(3.255, abs=0.01)
    assert measured.levels["forget"][others].mean() == pytest.approx(6.095, abs=0.01)


def test_few_passages_share_the_levels_of_short_answers() -> None:
    rows = [answered(40), answered(40), *[answered(5)] * 4]
    measured = MeasuredSets({"forget": rows, "unseen": rows})
    assert measured.groups["forget"].tolist() == [0] * 6
