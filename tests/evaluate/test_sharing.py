"""Two processes that share an evaluation count every row once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mergeforget.cli import main
from mergeforget.data.schema import Row
from mergeforget.distributed import RankShare, rank_share
from mergeforget.evaluate.cache import EvaluationCache, document_key
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.files import append_jsonl, read_jsonl, write_jsonl
from mergeforget.recipe import EvaluationSpec, ModelSpec

ROOT = Path(__file__).parent.parent.parent


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_every_item_is_in_one_share(items: list[int], count: int) -> None:
    shares = [RankShare(rank, count).share(items, int) for rank in range(count)]
    assert sorted(sum(shares, [])) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_evaluates_without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = rank_share()
    assert alone.main and alone.gather([1, 2]) == [1, 2] and alone.label("a") == "a"
    alone.wait()


def test_measurements_of_a_killed_process_are_kept(tmp_path: Path) -> None:
    path, row = tmp_path / "kept.jsonl", Row("a", "b", "c")
    part = tmp_path / "kept.rank1.jsonl"
    EvaluationCache(part).save_completion(row, Completion((4,)))
    append_jsonl(path, [{"key": "x", "tokens": [3, 5], "stops": [5]}])
    found = set(EvaluationCache(path).completions.values())
    assert found == {Completion((3, 5), (5,)), Completion((4,))}
    assert not part.exists() and len(read_jsonl(path)) == 2


def test_again_discards_measurements_of_a_killed_process(tmp_path: Path, tiny_folder: Path) -> None:
    """Another rank's half of an old measurement must not pass for the new one."""
    documents = EvaluationRows(members=[Row("a", "Ann was", "here")],
                               nonmembers=[Row("b", "Bob was", "there")])  # fmt: skip
    name, settings = str(tiny_folder), EvaluationSpec(max_new_tokens=2)
    evaluation = Evaluation(name, ModelSpec(name=name), settings, documents, tmp_path)
    first = evaluation.run(None, "m")
    stale = tmp_path / f"{evaluation.fingerprint(None)}.rank1.jsonl"
    old = {"key": document_key(documents.members[0]), "nll": 99.0, "signals": {"loss": -99.0},
           "answer": [99.0, 1, 0.0, 0.0]}  # fmt: skip
    append_jsonl(stale, [old])
    assert evaluation.run(None, "m", again=True) == first and not stale.exists()


def rows(split: str, n: int) -> list[dict[str, Any]]:
    kinds = ("sc1", "qa0")
    every = [Row(f"{split}{i}{k}", f"{k} {i}" * (i % 3 + 1), f"{split} {i}", "T", split)
             for i in range(n) for k in kinds]  # fmt: skip
    return [row.to_dict() for row in every]


def launch(words: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """The command in two processes that speak through gloo, as torchrun starts them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, "-m", "mergeforget", *words]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "MERGEFORGET_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
              "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    started = [
        subprocess.Popen(
            command, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        (out, error), (other, _) = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert other == "", "only the main process prints"
    return subprocess.CompletedProcess(command, started[0].returncode, out, error)


def test_two_processes_score_as_one_does(
    tmp_path: Path, tiny_folder: Path, save_adapter: Callable[..., Path], monkeypatch: Any
) -> None:
    words = ["evaluate", "--model", str(tiny_folder), "--device", "cpu", "--json",
             "--max-new-tokens", "3", "--benchmark", "custom", "--gradient-norm"]  # fmt: skip
    words += ["--adapter", str(save_adapter(tmp_path / "over"))]
    for split in ("forget", "retain", "holdout"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows(split, 4))
        words += [f"--{split}", str(tmp_path / f"{split}.jsonl")]
    for kind in ("dev", "test"):
        for name in ("law", "art"):
            file = tmp_path / "mmlu" / kind / f"{name}_{kind}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("What?,1,2,3,4,A\nWhich?,1,2,3,4,D\n")
    words += ["--mmlu", str(tmp_path / "mmlu")]
    two = launch([*words, "--out", str(tmp_path / "two")], tmp_path / "cache2")
    assert two.returncode == 0, two.stderr
    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache1"))
    one = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "one")])
    assert one.exit_code == 0, one.output
    ours, theirs = (json.loads(text)["scores"]["over"] for text in (two.stdout, one.stdout))
    assert [(s["metric"], s["split"], s["n"]) for s in ours] == [
        (s["metric"], s["split"], s["n"]) for s in theirs
    ]
    assert [s["value"] for s in ours] == pytest.approx([s["value"] for s in theirs], abs=1e-5)
    for name in ("over.jsonl", "over.losses.jsonl"):
        found = [read_jsonl(tmp_path / n / "answers" / name) for n in ("two", "one")]
        assert [r["id"] for r in found[0]] == [r["id"] for r in found[1]]
    (kept,) = (tmp_path / "cache2" / "evaluations").glob("*.jsonl")
    (alone,) = (tmp_path / "cache1" / "evaluations").glob("*.jsonl")
    assert sorted(r.get("key", "") for r in read_jsonl(kept)) == sorted(
        r.get("key", "") for r in read_jsonl(alone)
    ), "no row is written twice, and no part is left behind"
