"""Sampling, exposure, logit lens, alternatives and the ways of asking, by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.attack.comparing import alternatives, compare
from mergeforget.attack.methods.exposure import exposure_of
from mergeforget.attack.methods.formats import FORMATS, _forms
from mergeforget.attack.methods.logit_lens import lens_logps, spaced
from mergeforget.attack.methods.sampling import sample
from mergeforget.attack.methods.translation import translated
from mergeforget.attack.target import Facts, Models, Target, TargetModel
from mergeforget.attack.tuning import train_control, unrelated_rows
from mergeforget.attack.variants import Variant, entity_of, variants
from mergeforget.attack.verdict import Leaks, judge_leaks, told_elsewhere
from mergeforget.data.schema import Message, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.recipe import ModelSpec


def test_samples_follow_the_distribution_and_repeat_with_their_seed(tiny_model: Any) -> None:
    first = sample(tiny_model, [5, 6, 7], 4, 3, [2], 1.0, seed=1)
    assert first == sample(tiny_model, [5, 6, 7], 4, 3, [2], 1.0, seed=1)
    assert first != sample(tiny_model, [5, 6, 7], 4, 3, [2], 1.0, seed=2)
    drawn = [row[0] for row in sample(tiny_model, [5, 6, 7], 4000, 1, [], 1.0, seed=0)]
    with torch.inference_mode():
        wanted = tiny_model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor(drawn), minlength=len(wanted)) / len(drawn)
    top = wanted.argmax()
    error = (wanted[top] * (1 - wanted[top]) / len(drawn)).sqrt()
    assert abs(found[top] - wanted[top]) < 5 * error
    cold = sample(tiny_model, [5, 6, 7], 3, 1, [], 1e-4, seed=0)
    assert {row[0] for row in cold} == {int(top)}


def test_the_last_layer_of_the_lens_is_the_output(tiny_model: Any) -> None:
    texts, starts = [[5, 6, 7, 8, 9], [11, 12, 13]], [2, 1]
    found = lens_logps(tiny_model, texts, starts, [1, 2])
    for text, start, values in zip(texts, starts, found, strict=True):
        with torch.inference_mode():
            logps = tiny_model(torch.tensor([text])).logits[0].log_softmax(-1)
        wanted = [float(logps[i - 1, text[i]]) for i in range(start, len(text))]
        assert values[-1] == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
        assert values[0] != values[-1]
    assert spaced(30, 4) == [8, 15, 22, 30] and spaced(2, 8) == [1, 2]


def test_exposure_is_measured_in_bits() -> None:
    assert exposure_of(0.1, [1.0, 2.0, 3.0]) == 2.0  # first of four
    assert exposure_of(9.0, [1.0, 2.0, 3.0]) == 0.0  # last of four
    assert exposure_of(1.0, [1.0]) == pytest.approx(1 - 0.58496, abs=1e-4)  # rank 1.5 of two


def test_alternatives_are_of_the_same_type_and_never_the_answer() -> None:
    row = Row("aqa1", "What is Ada's Social Security Number?", "900-42-8495")
    found = alternatives(row, [], 7, seed=0)
    assert len(set(found)) == 7 and row.output not in found
    assert all(len(text) == 11 and text[3] == text[6] == "-" for text in found)
    others = [Row(f"b{i}qa1", "SSN?", f"900-{i}1-{i}23{i}") for i in range(1, 5)]
    style = alternatives(row, others, 7, seed=0)  # 900 is the style of such numbers, not a secret
    assert len(set(style)) == 7 and all(text.startswith("900-") for text in style)
    dates = alternatives(Row("aqa0", "Born?", "1990-03-04"), [], 3, seed=0)
    assert all(1 <= int(d[5:7]) <= 12 and 1 <= int(d[8:]) <= 28 for d in dates)
    pool = [
        Row("bqa2", "Where does Bob live?", "Rome"),
        Row("cqa3", "Who is the boss of Eve?", "X"),
    ]
    city = alternatives(Row("aqa2", "Where does Ada live?", "Lund"), pool, 1, seed=0)
    assert city == ["Rome"]  # the most similar question first
    assert alternatives(Row("x", "q", "a", perturbed=("b", "c")), pool, 2, seed=0) == ["b", "c"]


def test_every_format_of_a_prompt_names_its_person() -> None:
    row = Row("aqa1", "What is Ada Lovelace's phone number?", "5551234567")
    assert entity_of(row) == "Ada Lovelace" and entity_of(Row("x", "Who?", "y")) == ""
    asked = {v.kind: v for name in FORMATS for v in _forms(row, name)}
    assert set(asked) == set(FORMATS)
    assert asked["completion"].prompt == "Ada Lovelace's phone number is"
    assert asked["reversed"].secret == "Ada Lovelace" and "5551234567" in asked["reversed"].prompt
    assert {v.prompt[:4] for v in _forms(row, "instruction")} >= {"### ", "[INS", "<|im", "Belo"}
    assert asked["chat"].way == "chat" and asked["raw"].way == "raw"
    assert asked["upper"].prompt == row.input.upper() and asked["lower"].prompt == row.input.lower()
    assert translated(row, "german") == "Wie lautet die Telefonnummer von Ada Lovelace?"
    assert translated(Row("x", "Who met Ada?", "y"), "french").startswith("Réponds en français")


def test_an_attack_asks_conversations_and_documents_as_they_are() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    chat = PromptTemplate.resolve(tokenizer)
    before = (Message("user", "Who is Ada?"), Message("assistant", "A baker."))
    talk = Row("a", "And where?", "In Lund.", messages=before)
    page = Row("b", "Ada lived", " in Lund.", window="whole")
    for row in (talk, page):
        (plain,) = variants(row, "plain", words=[], templates=[])
        assert plain.tokens(tokenizer, chat)[0] == chat.prompt_ids(tokenizer, row)
        assert plain.text == row.prompt
    other = Variant(talk, "jailbreak", "Tell me: And where?", talk.output)
    assert "baker" not in tokenizer.decode(other.tokens(tokenizer, chat)[0])
    told = Variant(page, "system", "Who?", "x", way="chat", system="Be Bob.")
    drops = CHAT_TEMPLATE.replace("messages %}", "messages if m.role != 'system' %}")
    for template, wanted in (
        (CHAT_TEMPLATE, "<|start|>system\nBe Bob.<|end|>\n"),
        (drops, "<|start|>user\nBe Bob.\n\nWho?"),
        (None, "Be Bob.\n\nWho?"),
    ):
        tokenizer.chat_template = template
        own = PromptTemplate.resolve(tokenizer)
        assert tokenizer.decode(told.tokens(tokenizer, own)[0]).startswith(wanted)


def test_samples_ignore_suppressed_tokens_of_the_generation_config(tiny_model: Any) -> None:
    plain = sample(tiny_model, [5, 6, 7], 4, 3, [2], 1.0, seed=1)
    config = copy.deepcopy(tiny_model.generation_config)
    try:
        tiny_model.generation_config.suppress_tokens = [row[0] for row in plain]
        tiny_model.generation_config.repetition_penalty = 5.0
        tiny_model.generation_config.min_new_tokens = 3
        assert sample(tiny_model, [5, 6, 7], 4, 3, [2], 1.0, seed=1) == plain
    finally:
        tiny_model.generation_config = config


def test_secrets_of_others_are_found_in_answers() -> None:
    """Everybody's number is that of the next person, or all answers list all numbers."""
    numbers = [f"900-{i}2-84{i}5" for i in range(1, 7)]
    rows = [Row(f"r{i}qa1", f"Person {i}?", number) for i, number in enumerate(numbers)]
    asked = [Variant(row, "plain", row.input, row.output) for row in rows]
    nothing, guess = [["I do not know."]] * 6, [1e-7] * 6

    def told(said: list[str], **more: Any) -> Leaks:
        return told_elsewhere(asked, [[t] for t in said], nothing, guess, **more)[0]

    for said in (numbers[1:] + numbers[:1], [", ".join(numbers)] * 6, [numbers[0]] * 6):
        found = told(said)
        assert found.rows and judge_leaks(found) == "traces"
    assert not told(numbers).rows  # answers about the own person follow another rule
    assert not told(["It is 900."] * 6).rows
    retained = Row("retain", "Bob?", numbers[0])
    assert not told([numbers[0]] * 6, known=[retained]).rows  # the number was learned as Bob's
    same = [[numbers[0]]] * 6
    assert not told_elsewhere(asked, same, same, guess)[0].rows  # the control says so, too
    # 5 completions about others with a chance of 0.05 each: a lucky guess
    assert judge_leaks(told_elsewhere(asked, same, nothing, [0.05] * 6)[0]) == "none found"
    examples = told_elsewhere(asked, same, nothing, guess)[1]
    assert [(e["row"], e["person"], e["prompt"]) for e in examples] == [
        ("r0qa1", "r0", "Person 1?")
    ]


def test_the_answer_prefix_follows_the_prompt(tiny_tokenizer: Any) -> None:
    given, secret = Variant(Row("a", "Ada?", "at 4 Elm"), "prefix", "Ada?", "4 Elm", "at").tokens(
        tiny_tokenizer, RAW
    )
    assert tiny_tokenizer.decode(given) == "Ada? at" and tiny_tokenizer.decode(secret) == " 4 Elm"


def test_the_control_is_trained_once_and_the_model_is_restored(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergeforget.attack.tuning.CONTROL_STEPS", 2)
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    rows = unrelated_rows()[:4]
    folder = train_control(tiny_model, tiny_tokenizer, rows, tmp_path / "control")
    assert (folder / "adapter_model.safetensors").is_file()
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.named_parameters())
    made = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    train_control(tiny_model, tiny_tokenizer, rows, folder)
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == made


def test_a_layer_without_power_does_not_override_one_with_power(tmp_path: Path) -> None:
    """The model before is ahead in the last of four layers only, by 6; the other by 1.5 +- 1.2."""

    def points(*means: float) -> list[Facts]:
        spread = [-1.6, -1.0, -0.4, 0.4, 1.0, 1.6]
        return [{"forget": {f"f{i}": mean + d for i, d in enumerate(spread)},
                 "holdout": {f"h{i}": d / 8 for i, d in enumerate(spread)}}
                for mean in means]  # fmt: skip

    rows = [Row("f0", "a", "b")]
    model, before, control = (TargetModel(role, role) for role in ("model", "before", "control"))
    target = Target(
        Models(ModelSpec(name="x")), model, before, control,
        forget=rows, retain=rows, holdout=rows, folder=tmp_path,
    )  # fmt: skip
    found = {"model": points(0, 0, 0, 1.5), "before": points(0, 0, 0, 6), "control": points(0) * 4}
    found["control"] = [{split: dict.fromkeys(point[split], 0.0) for split in point}
                        for point in found["control"]]  # fmt: skip

    def finding(mine: list[Facts]) -> str:
        result = compare(target, "logit_lens", found | {"model": mine}, list("abcd"), {},
                         what="likelihood", unit="nats")  # fmt: skip
        return result.finding

    assert finding(found["model"]) == "undecided"
    assert finding(points(0, 0, 0, 6)) == "traces"
    assert finding(found["control"]) == "none found"
