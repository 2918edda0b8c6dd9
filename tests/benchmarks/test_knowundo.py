"""KnowUnDo: its published files, and its scores on given likelihoods."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mergeforget.benchmarks.knowundo import _exp, knowundo, read_folder
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.data.schema import Answer, AnswerLikelihood, Measured, Row
from mergeforget.errors import InputError
from mergeforget.score import find


def corpus(folder: Path, *, listed: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name, who in (("unlearn", "Ada"), ("retention", "Bo")):
        parts: Any = {
            part: [{"text": f"Where does {who} live? ({part})", "labels": f"{who} lives in Lund."}]
            for part in ("train", "val")
        }
        (folder / f"{name}.json").write_text(json.dumps([parts] if listed else parts))
    return folder


@pytest.mark.parametrize("listed", [True, False])
def test_the_published_files_become_rows(listed: bool, tmp_path: Path) -> None:
    rows = read_folder(corpus(tmp_path / "privacy", listed=listed))
    assert list(rows) == ["forget", "forget_val", "retain", "retain_val"]
    assert rows["forget"] == [
        Row("forget-0", "Where does Ada live? (train)\n\n", "Ada lives in Lund.", split="forget")
    ]
    assert rows["retain_val"][0].document == "Where does Bo live? (val)\n\nBo lives in Lund."


def test_convert_writes_rows_that_train_and_evaluate_read(tmp_path: Path) -> None:
    source, out = corpus(tmp_path / "privacy"), tmp_path / "rows"
    with pytest.raises(SystemExit) as ended:
        main(["data", "convert", "knowundo", str(source), "--out", str(out)])
    assert ended.value.code == 0
    (row,) = read_rows(out / "retain_val.jsonl", split="retain")
    assert row.input.endswith("(val)\n\n") and row.output == "Bo lives in Lund."


@pytest.mark.parametrize(
    ("content", "fault"),
    [('{"train": []}', "no list 'val'"), ("[1, 2]", "no list 'train'"),
     ('{"train": [{"text": "x"}], "val": []}', "no 'labels'")],
)  # fmt: skip
def test_other_folders_and_keys_are_refused(content: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no KnowUnDo data"):
        read_folder(tmp_path)
    (tmp_path / "unlearn.json").write_text(content)
    with pytest.raises(InputError, match=fault):
        read_folder(tmp_path)


def test_scores_match_a_hand_calculation() -> None:
    forget = [Row(f"f{i}", "p", "Ada lives in Lund", split="forget") for i in range(2)]
    retain = Row("r", "p", "Bo lives in Lund", split="retain")
    likelihoods = [
        AnswerLikelihood(forget[0], nll=1.0, tokens=4, greedy=0.5),
        AnswerLikelihood(forget[1], nll=3.0, tokens=4, greedy=0.0),
        AnswerLikelihood(retain, nll=0.5, tokens=4, greedy=0.75),
    ]
    said = [Answer(row, "Bo lives") for row in [*forget, retain]]
    scores = knowundo(Measured(said, [], likelihoods=likelihoods))

    def score(metric: str, split: str) -> Any:
        found = find(scores, metric, split)
        assert found is not None
        return found

    assert score("unlearn_success", "forget").value == pytest.approx(0.75)  # 1 - (.5 + 0) / 2
    assert score("unlearn_success", "forget").better == "higher"
    low, high = score("unlearn_success", "forget").interval
    assert 0 <= low <= 0.75 <= high <= 1
    assert score("retention_success", "retain").value == 0.75
    # the mean over rows of the mean log-probability: exp((1 + 3) / 2)
    assert score("perplexity", "forget").value == pytest.approx(math.exp(2))
    assert score("perplexity", "retain").value == pytest.approx(math.exp(0.5))
    assert 1e300 < _exp(1000.0) < math.inf  # a model that was destroyed
    # 2 common words of 4 and 2
    assert score("rouge_l_f1", "retain").value == pytest.approx(2 / 3)
