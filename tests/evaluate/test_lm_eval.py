"""lm-eval's tasks on a loaded model: a task whose data is local, and what is said without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError
from mergeforget.evaluate.cache import EvaluationCache
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.lm_eval import run_task, task_key
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.run_models import evaluate_any
from mergeforget.recipe import EvaluationSpec, ModelSpec
from mergeforget.score import Score

QUESTIONS = [
    ("a", "xyz", "b", 0),
    ("Who?", "Ann", "Bob", 1),
    ("q", "aa", "bb", 0),
    ("d", "e", "f", 1),
]
TASK = """
task: two_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3}}
"""


WMDP = """
task: wmdp_bio
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The following are multiple choice questions (with answers) about biology.\\n\\n\\
  {{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\n\\
  C. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra eval)")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "rows.jsonl"
    rows = [{"question": q, "choices": [a, b], "label": n} for q, a, b, n in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "two_choices.yaml").write_text(TASK.format(data=data))
    return tmp_path


def choice(model: Any, tokenizer: Any, question: str, answers: tuple[str, str]) -> int:
    """The answer of the larger log-likelihood, after a blank as lm-eval joins them."""
    found = []
    for answer in answers:
        prompt, rest = tokenizer(question)["input_ids"], tokenizer(f" {answer}")["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + rest])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(rest) - 1)
        found.append(sum(float(logps[p, t]) for p, t in zip(places, rest, strict=True)))
    return int(found[1] > found[0])


def test_a_local_task_scores_as_worked_out_by_hand(
    tasks: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    (score,) = run_task(tiny_model, tiny_tokenizer, "two_choices", folder=tasks)
    right = [choice(tiny_model, tiny_tokenizer, q, (a, b)) == n for q, a, b, n in QUESTIONS]
    assert score.value == pytest.approx(sum(right) / 4)
    assert (score.metric, score.split, score.task, score.n) == (
        "lm_eval_acc", "lm_eval", "two_choices", 4)  # fmt: skip
    assert score.better == "higher" and score.definition.startswith("lm-eval/two_choices/acc@3")
    (few,) = run_task(tiny_model, tiny_tokenizer, "two_choices", folder=tasks, limit=2)
    assert few.n == 2


def test_a_task_of_the_form_of_wmdp_is_scored(
    tasks: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Made-up questions in the form of lm-eval's wmdp_bio: four choices, compared by letter."""
    folder, letters = tmp_path / "wmdp", "ABCD"
    folder.mkdir()
    rows = [{"question": f"Which is {i}?", "choices": ["p", "q", "r", "s"], "answer": i % 4}
            for i in range(8)]  # fmt: skip
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wmdp_bio.yaml").write_text(WMDP.format(data=data))
    right = 0
    for row in rows:
        prompt = (
            "The following are multiple choice questions (with answers) about biology.\n\n"
            f"{row['question']}\nA. p\nB. q\nC. r\nD. s\nAnswer:"
        )
        ids = tiny_tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logps = tiny_model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        first = [float(logps[tiny_tokenizer(f" {x}")["input_ids"][0]]) for x in letters]
        right += first.index(max(first)) == row["answer"]
    (score,) = run_task(tiny_model, tiny_tokenizer, "wmdp_bio", folder=folder)
    assert (score.task, score.n, score.metric) == ("wmdp_bio", 8, "lm_eval_acc")
    assert score.value == pytest.approx(right / 8)


def test_scores_are_cached_and_read_back(
    tasks: Path, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    scores = run_task(tiny_model, tiny_tokenizer, "two_choices", folder=tasks)
    key = task_key("two_choices", tasks, None)
    EvaluationCache(tmp_path / "kept.jsonl").save_task(key, scores)
    assert EvaluationCache(tmp_path / "kept.jsonl").tasks == {key: scores}
    assert task_key("two_choices", tasks, 2) != key


def test_an_evaluation_runs_its_tasks_once(
    tasks: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tiny_folder)
    spec = EvaluationSpec(
        benchmark="custom", max_new_tokens=2, lm_eval=["two_choices"], lm_eval_folder=str(tasks)
    )
    rows = EvaluationRows([Row("a-qa0", "Who?", "Ann", "", "forget")])

    def scored() -> list[Score]:
        evaluation = Evaluation(name, ModelSpec(name=name), spec, rows, tmp_path / "kept")
        return evaluate_any(evaluation, None, "m")[1]

    first = scored()
    assert [s.task for s in first if s.metric == "lm_eval_acc"] == ["two_choices"]
    monkeypatch.setattr("mergeforget.evaluate.evaluation.run_task", None)
    assert scored() == first


@pytest.mark.slow  # lm-eval indexes thousands of tasks before it rejects an unknown one
def test_an_unknown_task_names_the_nearest(
    tasks: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(UsageError, match="Did you mean 'two_choices'"):
        run_task(tiny_model, tiny_tokenizer, "two_choice", folder=tasks)


def test_a_task_without_its_data_is_named(
    tasks: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="could not run its task 'two_choices'"):
        run_task(tiny_model, tiny_tokenizer, "two_choices", folder=tasks)


def test_a_missing_package_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'mergeforget\[eval\]'"):
        run_task(tiny_model, tiny_tokenizer, "hellaswag")
