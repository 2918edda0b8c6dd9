"""MUSE: its published files, and its scores on given answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import tokenizers
import transformers

from mergeforget.benchmarks import BENCHMARKS
from mergeforget.benchmarks.muse import first_answer, muse, read_folder
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, DocumentLoss, Measured, Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import InputError
from mergeforget.evaluate.rows import EvaluationRows, read_documents, rows_of_files
from mergeforget.metrics.leak_rate import leak_rate
from mergeforget.metrics.rouge_l_f1 import f1
from mergeforget.recipe import EvaluationSpec
from mergeforget.score import find


def corpus(folder: Path) -> Path:
    files: dict[str, Any] = {
        "verbmem/forget.json": [{"prompt": "Once upon", "gt": "a time there was"}],
        "knowmem/forget_qa.json": [{"question": "Who?", "answer": "Ada"}],
        "knowmem/forget_qa_icl.json": [{"question": "When?", "answer": "Today"}],
        "knowmem/retain_qa.json": [{"question": "Where?", "answer": "Paris"}],
        "privleak/forget.json": ["seen text"],
        "privleak/holdout.json": [{"text": "unseen text"}],
    }
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return folder


def test_the_published_folder_becomes_rows_with_examples_before_each_question(
    tmp_path: Path,
) -> None:
    rows = read_folder(corpus(tmp_path))
    assert rows["forget"] == [Row("forget-0", "Once upon", "a time there was", split="forget")]
    asked = rows["forget_qa"][0]
    assert asked.input == "Question: When?\nAnswer: Today\n\nQuestion: Who?\nAnswer: "
    assert asked.output == "Ada"
    assert rows["retain_qa"][0].input == "Question: Where?\nAnswer: "
    assert [r.document for r in rows["members"] + rows["nonmembers"]] == [
        "seen text", "unseen text"
    ]  # fmt: skip


def test_texts_to_train_on_are_read_from_the_files_of_the_hub(tmp_path: Path) -> None:
    for name, texts in {
        "raw/forget": ["first. " * 200, "second"], "raw/retain1": ["kept"],
        "scal/forget_2": ["one", "two"], "sust/forget_1": ["one"], "sust/forget_2": ["two"],
    }.items():  # fmt: skip
        place = tmp_path / f"{name}-00000-of-00001.parquet"
        place.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"text": texts}), place)
    rows = read_folder(tmp_path)
    assert list(rows) == ["train_forget", "train_retain", "scal_2", "sust_1", "sust_2"]
    assert len({r.subject for r in rows["train_forget"]}) == 2 < len(rows["train_forget"])
    assert [r.document for r in rows["scal_2"]] == ["one", "two"]
    assert rows["sust_2"][0].window == "whole"


def test_texts_to_train_on_are_read_from_the_files_of_the_authors_script(tmp_path: Path) -> None:
    """It writes a list of texts (.json), and the same texts as one (.txt)."""
    for name, texts in {
        "raw/forget": ["first", "second"], "raw/retain1": ["kept"], "scal/forget_1": ["one", "two"],
        "sust/forget_1": ["one"], "sust/forget_2": ["three"],
    }.items():  # fmt: skip
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.with_suffix(".txt").write_text("\n\n".join(texts))
        if name != "sust/forget_2":
            place.with_suffix(".json").write_text(json.dumps(texts))
    rows = read_folder(tmp_path)
    found = {split: [r.document for r in some] for split, some in rows.items()}
    assert found == {
        "train_forget": ["first", "second"], "train_retain": ["kept"], "scal_1": ["one", "two"],
        "sust_1": ["one"], "sust_2": ["three"],
    }  # fmt: skip
    (tmp_path / "raw/forget.json").write_text('["first", 2]')
    with pytest.raises(InputError, match="line 1: not an object"):
        read_folder(tmp_path)


def test_prompts_keep_their_final_space_only_in_the_published_splits(tmp_path: Path) -> None:
    """The published code generates after the tokens of ``Answer: ``, space included."""
    tokenizer = space_joiner()
    raw = PromptTemplate()
    muse_prompts = replace(raw, as_written=BENCHMARKS.get("muse").traits["as_written"])
    row = Row("a", "Answer: ", "Ada", split="forget_qa")
    assert tokenizer.convert_ids_to_tokens(raw.prompt_ids(tokenizer, row)) == ["▁Answer:"]
    written = muse_prompts.prompt_ids(tokenizer, row)
    assert tokenizer.convert_ids_to_tokens(written) == ["▁Answer:", "▁"]
    assert muse_prompts.prompt_ids(tokenizer, replace(row, split="retain")) == written[:1]
    assert muse_prompts.key != raw.key == "none"


def space_joiner() -> Any:
    """A tokenizer that joins a space to the next word, as Llama's does."""
    words = {"[UNK]": 0, "▁": 1, "▁Answer:": 2, "▁Ada": 3}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


def test_published_rows_that_repeat_count_in_the_mean_and_once_in_the_intervals(
    tmp_path: Path,
) -> None:
    """The questions about books contain one three times."""
    path = tmp_path / "forget_qa.jsonl"
    rows = [("Who?", "Ada"), ("Where?", "Lund"), ("Who?", "Ada"), ("who? ", "Ada")]
    path.write_text("".join(json.dumps({"id": f"q{i}", "input": q, "output": a}) + "\n"
                            for i, (q, a) in enumerate(rows)))  # fmt: skip

    def read(benchmark: str) -> EvaluationRows:
        spec = EvaluationSpec(benchmark=benchmark, rows={"forget": str(path)})
        return rows_of_files(forget=None, retain=None, holdout=None, spec=spec)

    assert [row.id for row in read("custom").forget] == ["q0", "q1"]
    found = read("muse")
    assert [(row.id, row.subject) for row in found.forget] == [
        ("q0", "q0"), ("q1", "q1"), ("q2", "q0"), ("q3", "q0"),
    ]  # fmt: skip
    assert [row.id for row in found.members] == ["q0", "q1"]  # not a published membership set
    answers = [Answer(row, "Ada") for row in found.forget]
    mean = find(muse(Measured(answers, [])), "rouge_l_f1", "forget")
    assert mean is not None and (mean.value, mean.n, mean.subjects) == (0.75, 4, 2)
    leaks = leak_rate(Measured(answers, []), "forget")
    assert leaks is not None and (leaks.value, leaks.n) == (0.5, 2)


def test_convert_writes_rows_that_evaluate_reads(tmp_path: Path) -> None:
    source, out = corpus(tmp_path / "news"), tmp_path / "rows"
    with pytest.raises(SystemExit) as ended:
        main(["data", "convert", "muse", str(source), "--out", str(out)])
    assert ended.value.code == 0
    (row,) = read_rows(out / "forget_qa.jsonl", split="forget_qa")
    assert row.output == "Ada" and row.input.endswith("Question: Who?\nAnswer: ")
    assert len(read_documents(out / "members.jsonl")) == 1
    with pytest.raises(SystemExit) as refused:
        main(["data", "convert", "tofu", str(source), "--out", str(out)])
    assert refused.value.code == 2


def test_other_folders_and_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no MUSE corpus"):
        read_folder(tmp_path)
    corpus(tmp_path)
    (tmp_path / "knowmem/retain_qa.json").write_text('[{"q": 1, "answer": "x"}]')
    with pytest.raises(InputError, match="no 'question'"):
        read_folder(tmp_path)


def test_scores_match_a_hand_calculation() -> None:
    rows = [
        Row("a", "p", "the cat sat on the mat", split="forget"),
        Row("b", "p", "Ada Lovelace", split="forget_qa"),
        Row("c", "p", "Paris", split="retain_qa"),
    ]
    said = ["the cat sat", "Ada\n\nQuestion: Who? Ada Lovelace", "in Paris"]
    answers = [Answer(row, text) for row, text in zip(rows, said, strict=True)]
    losses = [
        DocumentLoss(str(i), i < 2, 1.0 + i, signals={"min_k_40": -1.0 - i}) for i in range(4)
    ]
    retrained = [
        DocumentLoss(str(i), i < 2, 1.0, signals={"min_k_40": float(i % 2)}) for i in range(4)
    ]
    measured = Measured(answers, losses, retrained=Measured([], retrained))
    scores = muse(measured)
    # 3 common words of 6 and 3: 2 * 3 / 9
    assert find(scores, "rouge_l_f1", "forget").value == pytest.approx(2 / 3)  # type: ignore[union-attr]
    # the second question is cut off: 1 common word of 2 and 1: 2 / 3
    assert find(scores, "rouge_l_f1", "forget_qa").value == pytest.approx(2 / 3)  # type: ignore[union-attr]
    assert find(scores, "rouge_l_f1", "retain_qa").value == pytest.approx(2 / 3)  # type: ignore[union-attr]
    # members are told apart (AUC 1, in MUSE's convention 0), the retrained model's AUC is 0.5
    assert find(scores, "privleak", "mia").value == pytest.approx(-100)  # type: ignore[union-attr]


def test_rouge_equals_the_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rougeL"], use_stemmer=False
    )
    texts = ["The cats sat, on 2 mats.", "a cat sat on mats", "", "Running runs run", "cat cat cat"]
    for target in texts:
        for prediction in texts:
            theirs = scorer.score(target, prediction)["rougeL"].fmeasure
            assert f1(target, prediction) == pytest.approx(theirs, abs=1e-12)


def test_an_answer_ends_before_the_next_question() -> None:
    assert first_answer("Ada\nQuestion: Who?") == "Ada"
    assert first_answer("Ada") == "Ada"
