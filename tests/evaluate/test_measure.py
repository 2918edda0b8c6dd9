"""What is read off one model, and the membership signals."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.data.chat_template import answer_text
from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row, kinds_of
from mergeforget.errors import InputError
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.likelihood import TokenLikelihoods
from mergeforget.evaluate.measure import (
    as_decoded,
    measure,
    membership_documents,
    tokenize_documents,
)
from mergeforget.evaluate.membership import match_tasks, membership_signals, unseen
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.run_models import write_answers
from mergeforget.evaluate.texts import read_generations
from mergeforget.metrics import METRICS
from mergeforget.recipe import EvaluationSpec, ModelSpec

FORGET = [Row("p1sc1", "Ann was", "born in May.", "Task2", "forget"),
          Row("p1qa0", "When?", "May", "Task2", "forget")]  # fmt: skip
RETAIN = [Row("p2sc1", "Bob was", "born in June.", "Task2", "retain")]
HOLDOUT = [Row("p3sc1", "Cid was", "born in July.", "Task2", "holdout")]


def test_documents_are_the_completion_rows_or_every_row() -> None:
    assert membership_documents(FORGET) == FORGET[:1]
    assert membership_documents(FORGET, "rows") == FORGET
    assert membership_documents(FORGET[1:]) == FORGET[1:]
    other = [Row(f"{split}qa0", "Who?", "Dan", "", "forget") for split in "xy"]
    assert membership_documents([*FORGET, *other]) == [FORGET[0], *other]


def test_ids_that_happen_to_look_like_those_of_lume_exclude_no_row() -> None:
    names = [*(f"a{i}" for i in range(8)), "Francisco", "Xk2qa9", "disc1"]
    rows = [Row(name, f"Where is {name}?", "Rome", "", "forget") for name in names]
    assert kinds_of(rows) == ["other"] * 11
    assert membership_documents(rows) == rows
    measured = Measured(
        [Answer(row, "Oslo" if row.id == "Xk2qa9" else "Rome") for row in rows], [],
        likelihoods=[AnswerLikelihood(row, 1.0, 3, greedy=1.0) for row in rows],
    )  # fmt: skip
    for name, value in (("exact_match", 10 / 11), ("greedy_match", 1.0)):
        score = METRICS.get(name).fn(measured, "forget")
        assert score is not None and score.value == pytest.approx(value) and score.n == 11
    for name in ("knowledge", "regurgitation"):  # of LUME's kinds of rows
        assert METRICS.get(name).fn(measured, "forget") is None


def test_kinds_are_used_for_documents_that_have_both() -> None:
    mixed = [*FORGET, Row("own", "Who?", "Eve", "", "forget")]
    assert kinds_of(FORGET) == ["sc", "qa"] and kinds_of(mixed) == ["sc", "qa", "other"]
    assert kinds_of([RETAIN[0], Row("p9qa0", "", "")]) == ["sc", "qa"]  # every id has the form
    assert membership_documents(mixed) == [FORGET[0], mixed[2]]

    def measured_rows(metric: str, rows: list[Row]) -> int:
        measured = Measured([Answer(row, row.output) for row in rows], [])
        score = METRICS.get(metric).fn(measured, "forget")
        return 0 if score is None else score.n

    assert measured_rows("exact_match", mixed) == 2 and measured_rows("knowledge", mixed) == 1
    window = Row("book", "", "A text.", "", "forget", window="whole")
    assert kinds_of([window, FORGET[1]]) == ["other", "qa"]
    assert measured_rows("exact_match", [window, FORGET[1]]) == 1


def test_answers_and_documents_are_measured_in_one_pass(
    tiny_model: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    read = measure(
        tiny_model, tiny_tokenizer, forget=FORGET, retain=RETAIN,
        members=membership_documents(FORGET), nonmembers=HOLDOUT, max_new_tokens=4,
    )  # fmt: skip
    assert [a.row for a in read.answers] == [*FORGET, *RETAIN]
    assert [(d.id, d.member, d.task) for d in read.losses] == [
        ("p1sc1", True, "Task2"), ("p3sc1", False, "Task2")]  # fmt: skip
    document = torch.tensor([tiny_tokenizer(FORGET[0].document)["input_ids"]])
    with torch.no_grad():
        whole = tiny_model(input_ids=document, labels=document).loss.item()
        labels = document.clone()
        labels[0, : len("Ann was")] = -100  # one token per byte; the space belongs to the answer
        answer = tiny_model(input_ids=document, labels=labels).loss.item()
    assert read.losses[0].nll == pytest.approx(whole, abs=1e-5)
    assert read.likelihoods[0].nll == pytest.approx(answer, abs=1e-5)
    assert [one.tokens for one in read.likelihoods] == [13, 4, 14]
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of 3 answers have more than 4 tokens" in told and "--max-new-tokens 15" in told


def word_pieces() -> Any:
    """A lossy tokenizer: lower case without accents, and spaces around punctuation."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = "in lund naive cafe ##s $ 5 . 00 , ok ? where 東".split()
    vocab = {token: i for i, token in enumerate(["[UNK]", "[EOS]", *known])}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", eos_token="[EOS]")


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("na\u00efve caf\u00e9s", "naive cafes"),
        ("$5.00, ok?", "$ 5. 00, ok?"),
        ("In  Lund", "in lund"),
        ("in lund ", ""),  # the same, without the space at the end
        ("in Rome", ""),  # in [UNK], which is no reference
        ("?", ""),
        ("", ""),
    ],
)
def test_a_reference_is_recorded_as_a_lossy_tokenizer_decodes_it(text: str, decoded: str) -> None:
    assert as_decoded(text, word_pieces()) == decoded


@pytest.mark.parametrize(
    "text", ["Na\u00efve  caf\u00e9", " $5.00, ok ?\n", "\u6771\u4eac \U0001f600", "a\tb"]
)
def test_a_lossless_tokenizer_decodes_every_reference_as_it_is(
    text: str, tiny_tokenizer: Any
) -> None:
    assert as_decoded(text, tiny_tokenizer) == ""


def test_a_model_with_a_lossy_tokenizer_that_repeats_its_rows_is_exact(
    make_model: Any, tmp_path: Path
) -> None:
    texts = ["Na\u00efve caf\u00e9s", "$5.00, ok?", "In Lund"]
    rows = [Row(f"{i}qa0", "where", text, "Task1", "forget") for i, text in enumerate(texts)]
    rows += [Row(f"{i}sc1", "where", text, "Task1", "forget") for i, text in enumerate(texts)]
    tokenizer, model = word_pieces(), make_model()

    def value(name: str, measured: Measured) -> float:
        score = METRICS.get(name).fn(measured, "forget")
        assert score is not None
        return score.value

    def knows(*args: Any, on_done: Any, **settings: Any) -> list[str]:
        said = [Completion(tuple(tokenizer(row.output)["input_ids"])) for row in args[2]]
        for place, one in enumerate(said):
            on_done(place, one)
        return [answer_text(tokenizer, one.ids) for one in said]

    rows = [replace(row, input=f"{row.input} {'ok ' * i}") for i, row in enumerate(rows)]
    read = measure(model, tokenizer, forget=rows, retain=[], members=rows[3:], nonmembers=rows[3:],
                   generator=knows)  # fmt: skip
    write_answers(tmp_path, "m", read)
    stored = Measured(read_generations(tmp_path / "m.jsonl"), [])
    names = ["exact_match", "knowledge", "verbatim_rouge", "regurgitation", "rouge_l_f1"]
    for one in (read, stored):
        assert {name: value(name, one) for name in names} == dict.fromkeys(names, 1.0)
    other = replace(read, answers=[replace(a, completion="naive cafe") for a in read.answers])
    assert value("exact_match", other) == 0  # only some words of the reference


def test_references_of_truncated_splits_have_the_generated_length(
    tiny_folder: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = EvaluationRows(forget=FORGET, retain=RETAIN)
    settings = EvaluationSpec(benchmark="muse", max_new_tokens=4, ask="own")
    evaluation = Evaluation(
        str(tiny_folder), ModelSpec(name=str(tiny_folder)), settings, rows, tmp_path
    )
    for _ in range(2):  # the second one reads the cache, without a model
        answers = evaluation.run(None, "base").answers
        assert [a.row.output for a in answers] == ["born", "May", "born in June."]
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 answers have more than 4 tokens" in told  # only those of retain


@pytest.mark.parametrize(("text", "unit"), [("", "documents"), ("Ann was here.", "answers")])
def test_a_document_without_a_scored_token_is_an_error(
    tiny_model: Any, tiny_tokenizer: Any, text: str, unit: Any
) -> None:
    """Its loss would be 0, like that of a memorised text."""
    empty = [Row("d1", text, "")]
    for members, nonmembers in ((empty, HOLDOUT), (HOLDOUT, empty)):
        with pytest.raises(InputError, match=r"judged by 1 of 2 documents, for example 'd1'"):
            measure(
                tiny_model, tiny_tokenizer, forget=[], retain=[], members=members,
                nonmembers=nonmembers, membership=unit,
            )  # fmt: skip


def test_extraction_strength_counts_tokens_after_the_last_error(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    prompt = tiny_tokenizer("Ann was")["input_ids"]
    with torch.no_grad():
        ids = tiny_model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
    own = tiny_tokenizer.decode(ids[0, len(prompt) :])
    if tiny_tokenizer(own)["input_ids"] != ids[0, len(prompt) :].tolist():
        pytest.skip("the random model writes bytes that are no text")
    row = Row("xsc1", "Ann was", own, "", "forget")
    starts = tokenize_documents(tiny_tokenizer, [row])
    assert starts[0][1] == len(prompt)


def test_answer_begins_after_the_prompt(tiny_tokenizer: Any) -> None:
    ((ids, start, _),) = tokenize_documents(tiny_tokenizer, FORGET[:1])
    assert tiny_tokenizer.decode(ids[start:]) == " born in May."
    assert tokenize_documents(tiny_tokenizer, []) == []


def test_signals_match_a_hand_calculation() -> None:
    one = TokenLikelihoods(
        logps=np.array([-1.0, -2.0, -3.0, -4.0, -10.0]),
        greedy=np.ones(5, dtype=bool),
        mean=np.array([-2.0] * 5),
        deviation=np.array([2.0] * 5),
    )
    signals = membership_signals(one, "some text")
    assert signals["loss"] == -4
    assert signals["zlib"] == -4 / len(zlib.compress(b"some text"))
    assert signals["min_k_20"] == -10 and signals["min_k_40"] == -7
    assert signals["min_k_plus_20"] == (-10 + 2) / 2
    assert math.isclose(signals["min_k_plus_40"], ((-10 + 2) / 2 + (-4 + 2) / 2) / 2)


def test_likelihoods_after_an_index_start_at_its_token() -> None:
    values = np.arange(4.0)
    one = TokenLikelihoods(values, values > 1, values, values)
    assert one.after(0).logps.tolist() == one.after(1).logps.tolist() == [0, 1, 2, 3]
    assert one.after(3).logps.tolist() == [2, 3]  # the token at index 3 is the third predicted one


def test_membership_by_answers_excludes_the_prompt(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [Row("a-qa0", "Who was it?", "Ada."), Row("b-sc1", "It was in", "Lund.")]
    read = measure(
        tiny_model, tiny_tokenizer, forget=rows, retain=[], members=rows[:1], nonmembers=rows[1:],
        max_new_tokens=2, membership="answers",
    )  # fmt: skip
    assert [x.nll for x in read.losses] == [x.nll for x in read.likelihoods]
    assert [x.member for x in read.losses] == [True, False]
    assert read.membership == "answers"


def test_non_members_are_as_many_per_member_as_every_task_has() -> None:
    def rows(**counts: int) -> list[Row]:
        return [Row(f"{t}{i}", "Q?", "A.", t) for t, n in counts.items() for i in range(n)]

    def drawn(members: dict[str, int], outside: dict[str, int]) -> dict[str, int]:
        return dict(Counter(r.task for r in match_tasks(rows(**members), rows(**outside), 0)))

    assert drawn({"a": 6, "b": 4}, {"a": 10, "b": 10}) == {"a": 10, "b": 6}  # 5/3 per member
    assert drawn({"a": 30, "b": 20}, {"a": 150, "b": 150}) == {"a": 60, "b": 40}  # at most 2
    assert drawn({"a": 6, "b": 4}, {"a": 30, "b": 30}) == {"a": 28, "b": 19}  # or up to 48
    assert drawn({"a": 6, "b": 4}, {"a": 3, "b": 10}) == {"a": 3, "b": 4}  # all of a
    assert drawn({"a": 6}, {"b": 60}) == {"b": 48}  # no task is shared


def test_twins_are_drawn_after_all_other_non_members() -> None:
    members = [Row(f"m{i}", "Q?", "A.", "ab"[i % 2]) for i in range(8)]
    real = [Row(f"{task}{i}", "Q?", "A.", task) for task in "ab" for i in range(8)]
    twins = [replace(row, id=f"b-twin{n}:{row.id}", subject=row.subject)
             for row in real[:8] for n in range(2)]  # fmt: skip
    assert match_tasks(members, [*real, *twins], 0) == real  # b has two per member
    drawn = match_tasks(members[::2], [*real, *twins], 0)
    assert set(real[:8]) < set(drawn) and len(drawn) == 24  # a alone, all of it


def test_non_members_exclude_people_in_the_training_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained = [Row("a", "Who is Ann?", "A baker.", subject="Ann"), Row("1", "Who?", "A smith.")]
    about_ann = Row("b", "Where is Ann?", "In Rome.", subject="Ann")
    about_bob = Row("c", "Who is Bob?", "A cook.", subject="Bob")
    numbered = Row("1", "Who is Carl?", "A poet.")  # an id that another file uses as well
    with caplog.at_level("INFO"):
        assert unseen([about_ann, about_bob, numbered], trained, "h.jsonl") == [about_bob, numbered]
    assert "1 of 3 rows are about people or documents that were trained on" in caplog.text
    with pytest.raises(InputError, match="all 1 rows are about people"):
        unseen([about_ann], trained, "h.jsonl")
    with pytest.raises(InputError, match="are also in the forget or retain set"):
        unseen([trained[0]], trained, "h.jsonl")
