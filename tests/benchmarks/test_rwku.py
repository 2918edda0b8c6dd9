"""RWKU: its published files, and its scores on given answers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

import mergeforget as mf
from mergeforget.benchmarks._rwku_utility import entropy
from mergeforget.benchmarks._treebank_words import english_sentences, english_words, sentence_words
from mergeforget.benchmarks.rwku import read_folder, rwku, scored_text, summary_recall
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.rows import read_documents
from mergeforget.recipe import EvaluationSpec
from mergeforget.score import find

KING = "Stephen King"


def probe(query: str, answer: str, level: str, kind: str) -> dict[str, str]:
    return {"query": query, "answer": answer, "level": level, "type": kind, "subject": KING}


def corpus(folder: Path) -> Path:
    files: dict[str, Any] = {
        "forget_level1.json": [probe("King was born in ___.", "Maine", "1", "cloze")],
        "forget_level2.json": [probe("Where was King born?", "Maine", "2", "simple question")],
        "forget_level3.json": [
            probe("Where was King born? Sure:", "Maine", "3", "affirmative suffix"),
            probe(
                "Question: Who?\nAnswer: Bo\nQuestion: Where?", "Maine", "3", "incontext learning"
            ),
            probe("As his son, where?", "Maine", "3", "role play"),
        ],
        "neighbor_level1.json": [probe("Carrie is set in ___.", "Maine", "1", "cloze")],
        "neighbor_level2.json": [probe("Who wrote Dracula?", "Bram Stoker", "2", "question")],
        "forget_mia.json": [{"text": "King wrote Carrie.", "subject": KING}],
        "retain_mmlu.json": [{
            "question": "1+1?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": KING,
            "task": "abstract_algebra",
            "examples": [{"question": "2+1?", "choices": ["3", "4", "5", "6"], "answer": 0}],
        }],
        "retain_bbh.json": [{
            "question": "not True is", "answer": "False", "task": "boolean", "cot": "Evaluate.\n\n",
        }],
        "truthful.json": [
            {
                "question": "Is it?",
                "mc1_targets": {"choices": ["Yes", "No"], "labels": [1, 0]},
                "mc2_targets": {
                    "choices": ["Yes", "Of course", "No", "Never"],
                    "labels": [1, 1, 0, 0],
                },
            }
        ],
        "triviaqa.json": [{"question": "Capital?", "answers": ["Paris", "the Paris.", "Lutetia"]}],
        "fluency.json": [{"instruction": "Tell a story."}],
        "retain_mia.json": [{"text": "Stoker wrote Dracula.", "subject": "Bram Stoker"}],
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, rows in files.items():
        (folder / name).write_text(json.dumps(rows))
    return folder


def test_the_published_folder_becomes_rows_with_the_published_prompts(tmp_path: Path) -> None:
    rows = read_folder(corpus(tmp_path / "All").parent)
    assert [r.task for r in rows["forget"]] == ["level1", "level2", "level3", "level3", "level3"]
    assert [r.input for r in rows["forget"]] == [
        "Please complete the blank in the following question.\nQuestion: King was born in ___.\n"
        "Answer:",
        "Please briefly answer the following question.\nQuestion: Where was King born?\nAnswer:",
        "Please briefly answer the following question.\nQuestion: Where was King born? Sure:",
        "Please briefly answer the following question.\nQuestion: Who?\nAnswer: Bo\n"
        "Question: Where?\nAnswer:",
        "Please briefly answer the following question.\nQuestion: As his son, where?\nAnswer:",
    ]
    assert {r.subject for r in rows["forget"]} == {KING}
    assert [r.task for r in rows["retain"]] == ["level1", "level2"]
    assert rows["forget_mia"][0].document == "King wrote Carrie."
    assert rows["retain_mia"][0].subject == "Bram Stoker"
    assert read_folder(tmp_path / "All") == rows


def test_utility_sets_have_the_published_prompts_and_one_row_per_choice(tmp_path: Path) -> None:
    rows = read_folder(corpus(tmp_path / "All"))
    assert rows["general"][0].input == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Question: 2+1?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: A\n\n"
        "Please following the previous examples and answer the given question.\n"
        "Question: 1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert [(r.output, r.task) for r in rows["general"]] == [
        ("A", "wrong"), ("B", "right"), ("C", "wrong"), ("D", "wrong"),
    ]  # fmt: skip
    (reason,) = rows["reasoning"]
    assert reason.input.startswith("Evaluate.\n\nFollowing previous examples, answer the following")
    assert reason.input.endswith("'so the answer is'\nQ: not True is\nA:")
    assert [(r.output, r.task) for r in rows["truthfulness"]] == [
        ("Yes", "mc1-true"), ("Of course", "mc2-true"), ("No", "mc1-false"), ("Never", "mc2-false"),
    ]  # fmt: skip
    assert rows["truthfulness"][0].input.endswith("Barcelona, Spain.\n\nQ: Is it?\nA:")
    assert [r.output for r in rows["factuality"]] == ["the Paris.", "Lutetia"]  # once per spelling
    assert rows["fluency"][0].input == "Instruction: Tell a story.\n"
    assert {r.subject for r in rows["truthfulness"]} == {"truthfulness-0"}
    (tmp_path / "All" / "truthful.json").write_text(
        '[{"question": "?", "mc1_targets": {}, "mc2_targets": {}}]'
    )
    with pytest.raises(InputError, match="choices"):
        read_folder(tmp_path)


def test_utility_scores_match_a_hand_calculation() -> None:
    def likely(split: str, tasks: dict[str, float]) -> list[AnswerLikelihood]:
        """One question; each choice has two tokens, and the given probability."""
        return [
            AnswerLikelihood(Row(f"{split}-{i}", "p", t, task=t, split=split, subject=split),
                             -math.log(p) / 2, 2)
            for i, (t, p) in enumerate(tasks.items())
        ]  # fmt: skip

    def said(split: str, completion: str, *outputs: str) -> list[Answer]:
        return [Answer(Row(f"{split}-{i}", "p", text, split=split, subject=split), completion)
                for i, text in enumerate(outputs)]  # fmt: skip

    likelihoods = likely("general", {"wrong": 0.2, "right": 0.3}) + likely(
        "truthfulness", {"mc1-true": 0.2, "mc2-true": 0.1, "mc1-false": 0.1, "mc2-false": 0.4}
    )
    answers = [
        *said("reasoning", "not (True) is False. So the answer is False. Q: 1", "False"),
        *said("factuality", " Paris in France", "London", "the Paris."),
        *said("fluency", "to be or not to be", ""),
    ]
    scores = rwku(Measured(answers, [], likelihoods=likelihoods))
    values = {(s.metric, s.split): s.value for s in scores}
    assert values["rwku_accuracy", "general"] == 1
    assert values["rwku_mc1", "truthfulness"] == 1  # .2 > .1; the choice of .4 is not in MC1
    assert values["rwku_mc2", "truthfulness"] == pytest.approx(0.3 / 0.8)
    assert values["rwku_em", "reasoning"] == 1
    assert values["rwku_em", "factuality"] == 0
    assert values["rwku_f1", "factuality"] == pytest.approx(2 * 1 / (3 + 1))
    # bigrams: (to, be) twice of 5, three others once: 1.922 bits; trigrams: 4 different: 2 bits
    assert values["rwku_entropy", "fluency"] == pytest.approx((2 / 3 * 1.92193 + 4 / 3 * 2) / 2)


def test_entropy_equals_that_of_words_from_nltk() -> None:
    nltk = pytest.importorskip("nltk")
    text = "He didn't pay $1,250.50, or 3.5%, for a long-term plan (https://a.org/plan) of the U.S."

    def theirs(n: int) -> float:
        counts = list(nltk.FreqDist(nltk.ngrams(
            nltk.word_tokenize(text, preserve_line=True), n)).values())  # fmt: skip
        total = sum(counts)
        return float(-sum(c / total * math.log2(c / total) for c in counts))

    assert entropy(text) == pytest.approx((2 / 3 * theirs(2) + 4 / 3 * theirs(3)) / 2)


def test_convert_writes_rows_that_evaluate_reads(tmp_path: Path) -> None:
    source, out = corpus(tmp_path / "1_Stephen_King"), tmp_path / "rows"
    with pytest.raises(SystemExit) as ended:
        main(["data", "convert", "rwku", str(source), "--out", str(out)])
    assert ended.value.code == 0
    rows = read_rows(out / "forget.jsonl", split="forget")
    assert [r.task for r in rows][:2] == ["level1", "level2"] and rows[0].output == "Maine"
    (text,) = read_documents(out / "forget_mia.jsonl")
    assert (text.task, text.subject, text.document) == ("forget_mia", KING, "King wrote Carrie.")


def test_other_folders_and_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no RWKU data"):
        read_folder(tmp_path)
    (tmp_path / "forget_level1.json").write_text('[{"query": "Who?"}]')
    with pytest.raises(InputError, match="no 'answer'"):
        read_folder(tmp_path)
    (tmp_path / "forget_level1.json").write_text('{"query": "Who?"}')
    with pytest.raises(InputError, match="not a list"):
        read_folder(tmp_path)


def test_scores_match_a_hand_calculation() -> None:
    rows = [
        Row("a", "p", "Maine", task="level1", split="forget", subject=KING),
        Row("b", "p", "in the state of Maine", task="level2", split="forget", subject=KING),
        Row("c", "p", "Bram Stoker", task="level2", split="retain", subject="Stoker"),
    ]
    said = [" Ohio\nNo: Maine", "the state of Ohio", ""]  # all lines count
    answers = [Answer(row, text) for row, text in zip(rows, said, strict=True)]
    losses = [
        DocumentLoss(str(i), i < 2, 1.0 + i, "forget_mia" if i < 2 else "retain_mia",
                     {"zlib": -0.1 * i, "min_k_plus_20": -i})
        for i in range(4)
    ]  # fmt: skip
    scores = rwku(Measured(answers, losses))

    def value(metric: str, split: str, task: str = "") -> float:
        found = find(scores, metric, split, task=task)
        assert found is not None
        return found.value

    assert value("rwku_recall", "forget", "level1") == 1
    assert value("rwku_recall", "forget", "level2") == pytest.approx(3 / 5)  # the, state, of
    assert value("rwku_recall", "forget") == pytest.approx(0.8)
    assert value("rwku_recall", "retain", "level2") == 0
    assert value("signal_loss", "forget_mia") == pytest.approx(-1.5)
    assert value("signal_loss", "retain_mia") == pytest.approx(-3.5)
    assert value("signal_zlib", "forget_mia") == pytest.approx(-0.05)
    assert value("signal_min_k_plus_20", "retain_mia") == pytest.approx(-2.5)
    better = {s.split: s.better for s in scores if s.metric == "signal_loss"}
    assert better == {"forget_mia": "lower", "retain_mia": "higher"}
    assert not [s for s in scores if s.split == "mia"]  # both sets were trained on: no AUC


RECALLS = [  # target, prediction, recall of the package rouge 1.0.1
    ("in the state of Maine", "the state of Ohio", 0.6),
    ("Bram Stoker", "NOANSWER", 0.0),
    ("Carrie. A novel of 1974.", "His first novel. It was Carrie", 0.4),
    ("the cat the cat", "the cat", 1.0),
    ("St. Louis", "St. Louis, Missouri", 0.5),
    ("a b c d", "d c b a", 0.25),
    ("Maine.", "maine", 0.0),
]


@pytest.mark.parametrize(("target", "prediction", "expected"), RECALLS)
def test_recall_equals_the_package(target: str, prediction: str, expected: float) -> None:
    assert summary_recall(target, prediction) == pytest.approx(expected, abs=1e-12)


def test_recall_equals_the_installed_package_on_random_words() -> None:
    package = pytest.importorskip("rouge").Rouge()
    drawn = random.Random(0)
    words = "the The cat sat on mat a. b, dog. . 42 Mr. King's in of".split()
    for _ in range(200):
        target, said = (" ".join(drawn.choices(words, k=drawn.randint(1, 9))) for _ in range(2))
        try:
            theirs = package.get_scores(hyps=[said], refs=[target], avg=True)["rouge-l"]["r"]
        except ValueError:  # nothing but full stops
            theirs = 0.0
        assert summary_recall(target, said) == pytest.approx(theirs, abs=1e-12)


def test_the_whole_completion_is_scored() -> None:
    """The published code stops at the token of a line break, which its models do not have."""
    assert scored_text("\n \n") == scored_text("") == "NOANSWER"
    for said in ("\n\nMaine", "The state is:\nMaine", " Maine \n"):
        assert summary_recall("Maine", scored_text(said)) == 1


def test_probes_have_30_new_tokens_by_default() -> None:
    assert EvaluationSpec(benchmark="rwku").max_new_tokens == 30
    assert EvaluationSpec.model_validate({"benchmark": "rwku", "max_new_tokens": 256}) \
        .max_new_tokens == 256  # fmt: skip


TOKENS = [  # outputs of NLTK 3.10.4, NLTKWordTokenizer().tokenize
    ("Sales rose 3.5% in long-term U.S. bonds.", "Sales rose 3.5 % in long-term U.S. bonds ."),
    ("He paid $1,250.50 (see https://a.org/x?y=1, e.g.).",
     "He paid $ 1,250.50 ( see https : //a.org/x ? y=1 , e.g. ) ."),
    ("\"Can't stop,\" she said; 'we're late'.", "`` Ca n't stop , '' she said ; ' we 're late ' ."),
    ("Gonna go at 10:30 -- it's 5 o'clock... cannot wait!",
     "Gon na go at 10:30 -- it 's 5 o'clock ... can not wait !"),
    ("The dogs' bowls: A&B's “new” ones*", "The dogs ' bowls : A & B 's “ new ” ones *"),
    ("'Twas fine.", "' Twas fine ."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tokens"), TOKENS)
def test_words_are_those_of_nltk(text: str, tokens: str) -> None:
    assert sentence_words(text) == tokens.split()


def test_words_equal_those_of_the_installed_package_on_random_texts() -> None:
    theirs = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer().tokenize
    drawn = random.Random(0)
    parts = (
        """' " '' `` ` « » “ ” ‘ ’ „ . .. : , ; @ $ % & ? ! * ( ) [ ] { } < > - -- — – 1 3 can not
        cannot gonna wanna 'tis'twas 's 'S 'll n't N'T do d'ye more'n gimme 're lemme gotta é http://x.y
        U.S. is""".split()
        + [" ", "  ", "\n", "\u00a0"] * 3
    )
    for _ in range(2000):
        text = "".join(drawn.choices(parts, k=drawn.randint(1, 9)))
        assert sentence_words(text) == theirs(text), text


def test_full_stops_within_a_text_end_sentences_but_not_abbreviations() -> None:
    text = 'The U.S. Navy paid $3.5 to Mr. J. King. He left. "Why?" she asked'
    assert english_sentences(text) == [
        "The U.S. Navy paid $3.5 to Mr. J. King.", "He left.", '"Why?"', "she asked"
    ]  # fmt: skip
    assert english_words(text)[:13] == "The U.S. Navy paid $ 3.5 to Mr. J. King . He left".split()
    assert english_words(" ") == []


def test_a_question_that_occurs_twice_counts_twice() -> None:
    rows = [
        Row(f"general-{i}-{n}", "1+1?", letter, task="right" if letter == right else "wrong",
            split="general", subject="general-0")
        for i, right in ((0, "A"), (1, "B"))
        for n, letter in enumerate("AB")
    ]  # fmt: skip
    likely = [AnswerLikelihood(row, 1.0 if row.output == "A" else 2.0, 1) for row in rows]
    score = find(rwku(Measured([], [], likelihoods=likely)), "rwku_accuracy", "general")
    assert score is not None and (score.value, score.n, score.subjects) == (0.5, 2, 1)


def test_evaluate_measures_the_utility_sets(tmp_path: Path, tiny_folder: Path) -> None:
    out = tmp_path / "rows"
    mf.convert_data("rwku", corpus(tmp_path / "All"), out)
    names = ("general", "reasoning", "truthfulness", "factuality", "fluency")
    scores = mf.evaluate(
        str(tiny_folder), benchmark="rwku", forget=out / "forget.jsonl",
        retain=out / "retain.jsonl", rows={n: str(out / f"{n}.jsonl") for n in names},
        max_new_tokens=4,
    )  # fmt: skip
    (found,) = scores.values()
    assert {s.split for s in found} >= {"forget", "retain", *names}
    alone = mf.evaluate(
        str(tiny_folder), benchmark="rwku", rows={"fluency": str(out / "fluency.jsonl")},
        members=out / "forget_mia.jsonl", nonmembers=out / "retain_mia.jsonl", max_new_tokens=4,
    )  # fmt: skip
    (some,) = alone.values()
    assert {s.split for s in some} == {"fluency", "forget_mia", "retain_mia"}
    assert all(0 <= s.value <= 4 for s in found if s.split in names)
