"""Every reader of a run's files explains damaged contents with an InputError that names the file.

Each reader is tried on a valid file, on contents that are not its format, and on the valid record
with each value removed or replaced by one of another type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mergeforget.errors import InputError
from mergeforget.run import Run


class Reader(NamedTuple):
    """How one file is read: its place in the run, a valid content, and its required keys."""

    path: str
    valid: Any
    read: Callable[[Run], Any]
    required: tuple[str, ...] = ()


def _levels(run: Run) -> Any:
    from mergeforget.search.split import _levels as levels

    return levels(run.root / "until" / "over.json")


def _end(run: Run) -> Any:
    from mergeforget.train.run_rows import end_of

    return end_of(run, "over")


def _cache(run: Run) -> Any:
    from mergeforget.evaluate.cache import EvaluationCache

    return EvaluationCache(run.root / "cache.jsonl")


def _predicted(run: Run) -> Any:
    from mergeforget.data.schema import Row
    from mergeforget.search.grid import gap
    from mergeforget.search.split import SearchData

    return gap(run, "over", SearchData([], [], [Row("a", "q", "b")], [Row("b", "q", "b")]))


def _losses(run: Run) -> Any:
    from mergeforget.analysis.evidence import read_losses

    return read_losses(run, "over")


def _ranks(run: Run) -> Any:
    from mergeforget.analysis.people import person_ranks

    return person_ranks(run, "over", [])


def _completions(run: Run) -> Any:
    from mergeforget.analysis.sections import _completions as completions

    return completions(run, "over")


def _leaked(run: Run) -> Any:
    from mergeforget.attack.headline import run_verdict

    return run_verdict(run, "over")


def _forget_answers(run: Run) -> Any:
    from mergeforget.analysis.people import forget_answers

    return forget_answers(run, "over", [])


def _compared(run: Run) -> Any:
    from mergeforget.api.unlearn import answers_of

    (run.answers / "base.jsonl").write_text("")
    return answers_of(run, "over", {"forget": 3})


def _earlier(run: Run) -> Any:
    from mergeforget.attack.headline import EARLIER, read_earlier

    return read_earlier(run.root / EARLIER)


def _sentences(run: Run) -> Any:
    from mergeforget.attack.headline import verdicts_in

    return verdicts_in(run.attacks, ["over"])


def _results(run: Run) -> Any:
    from mergeforget.attack.result import read_results

    return read_results(run.attacks, "relearn")


def _evidence(run: Run) -> Any:
    from mergeforget.analysis.verification import verify_evidence

    run.recipe.unlink()
    try:
        verify_evidence(run.root / "report" / "evidence.json", run)
    except InputError as error:
        if "is not the run folder" not in str(error):
            raise


def _study(run: Run) -> Any:
    from benchmarks.study.cells import read_results

    return read_results(run.root)


def _clock(run: Run) -> Any:
    from mergeforget.api.job import Job

    return Job(run, None)


def _muse(run: Run) -> Any:
    from mergeforget.benchmarks.muse import read_folder

    return read_folder(run.root)


def _journal(run: Run) -> Any:
    from mergeforget.merge.checkpoint.writer import finished

    return finished(run.root / "journal.jsonl")


def _vocabulary(run: Run) -> Any:
    from mergeforget.merge.checkpoint.compatible import read_vocabulary

    return read_vocabulary(run.root)


def _history(run: Run) -> Any:
    from mergeforget.analysis.evidence import read_history

    return read_history(run)


def _status(run: Run) -> Any:
    from mergeforget.analysis.report import _collapsed

    return _collapsed(run)


def _candidates(run: Run) -> Any:
    from mergeforget.analysis.evidence import read_candidates

    return read_candidates(run, ["ties"])


def _proxies(run: Run) -> Any:
    from mergeforget.train.early_stopping import Watcher
    from mergeforget.train_config import Watch

    samples: dict[str, list[Any]] = {"forget": [], "retain": []}
    return Watcher(Watch(every=1), samples, run.root, "over", run.root)._seen()


def _memorised(run: Run) -> Any:
    from mergeforget.train.memorise import is_memorised

    return is_memorised(run.root)


def _explored(run: Run) -> Any:
    from mergeforget.search.store import Store

    return Store(run)


ANSWER = {"id": "a", "input": "q", "output": "b", "task": "", "split": "forget", "completion": "c"}
ANSWERS = tuple(key for key in ANSWER if key != "task")
LOSSES = [{"id": "a", "member": True, "nll": 1.0}, {"id": "b", "member": False, "nll": 2.0}]
END = {"outcome": "reached", "step": 3, "auc": 0.5, "forget_exact": 0.1, "retain_exact": 0.9}
DOCUMENT = {"key": "k", "nll": 1.0, "signals": {"zlib": 0.5}, "answer": [1.0, 2, 3]}
RESULT = {"attack": "relearn", "model": "over", "finding": "traces", "verdict": "v", "rows": []}
CANDIDATE = {"name": "ties", "method": "ties", "density": 0.7, "weights": [1, 1],
             "space": "factors"}  # fmt: skip
QUESTION = [{"question": "q", "answer": "a"}]
STUDY = {
    "study": {"name": "s", "title": "t", "parts": [{"name": "p", "title": "p"}]},
    "given": {},
}
EVIDENCE = {
    "format": "mergeforget-evidence/1", "files": {}, "model": {"evaluated": "under"},
    "code": {"sha256": "0"}, "recomputed": {}, "people": [], "verdict": {},
}  # fmt: skip
READERS = {
    "until levels": Reader("until/over.json", {"levels": {"a": 1.0}}, _levels),
    "until end": Reader("until/over.json", END, _end, tuple(END)),
    "cached completions": Reader(
        "cache.jsonl", [{"key": "k", "tokens": [3]}], _cache, ("key",)
    ),
    "cached documents": Reader("cache.jsonl", [DOCUMENT], _cache, ("key", "nll", "signals")),
    "cached mmlu": Reader("cache.jsonl", [{"mmlu": {"law": [1, 2]}}], _cache),
    "losses of the prior": Reader(
        "answers/over.losses.jsonl", LOSSES, _predicted, ("id", "member", "nll")
    ),
    "losses": Reader("answers/over.losses.jsonl", LOSSES, _losses, ("member", "nll")),
    "ranks": Reader("answers/over.losses.jsonl", LOSSES, _ranks, ("id", "nll")),
    "completions": Reader("answers/over.jsonl", [ANSWER], _completions, ANSWERS),
    "leaked rows": Reader("answers/over.jsonl", [ANSWER], _leaked, ANSWERS),
    "forget answers": Reader("answers/over.jsonl", [ANSWER], _forget_answers, ("id", "split")),
    "compared answers": Reader("answers/over.jsonl", [ANSWER], _compared, ANSWERS),
    "earlier requests": Reader("earlier.json", {"run": 0.0}, _earlier),
    "verdicts": Reader("attacks/verdict.json", {"over": {"sentence": "s"}}, _sentences, ("over",)),
    "attack results": Reader("attacks/relearn.json", {"results": [RESULT]}, _results, ("results",)),
    "evidence": Reader("report/evidence.json", EVIDENCE, _evidence, tuple(EVIDENCE)),
    "study": Reader("study.json", STUDY, _study, ("study", "given")),
    "clock": Reader("clock.json", {"data": 1.0}, _clock),
    "muse corpus": Reader("knowmem/forget_qa.json", QUESTION, _muse, ("question", "answer")),
    "muse examples": Reader(
        "knowmem/forget_qa_icl.json", QUESTION, _muse, ("question", "answer")
    ),
    "merge journal": Reader(
        "journal.jsonl", [{"name": "a", "error": 0.1, "energy": 1.0}], _journal,
        ("name", "error", "energy"),
    ),
    "added tokens": Reader(
        "tokenizer.json",
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<s>", "id": 1}]},
        _vocabulary,
    ),
    "history": Reader("history.jsonl", [{"stage": "over", "step": 1}], _history, ()),
    "early stopping": Reader(
        "proxies.jsonl",
        [{"stage": "over", "step": 1, "retain_nll": 1.0, "forget_exact": 0.1, "retain_exact": 0.9}],
        _proxies, ("step", "retain_nll", "forget_exact", "retain_exact"),
    ),
    "memorised": Reader("memorised.json", {"rows": 1}, _memorised),
    "status": Reader("status.json", {"over": {"outcome": "collapsed", "step": 1}}, _status),
    "explored candidates": Reader("search/explored.jsonl", [CANDIDATE], _candidates),
    "candidate": Reader("candidates/ties/candidate.json", CANDIDATE, _candidates, ("method",)),
    "explored scores": Reader(
        "search/explored.jsonl",
        [{"name": "ties", "scores": [{"metric": "m", "value": 0.5, "split": "forget",
                                      "better": "lower", "n": 3}]}],
        _explored, ("name", "scores"),
    ),
}  # fmt: skip
NOT_A_RECORD = {
    "null": b"null\n", "number": b"3\n", "text": b'"x"\n', "cut": b'{"a": [1,\n',
    "NaN": b'{"a": NaN}\n', "Latin-1": '{"a": "é"}\n'.encode("latin-1"),
    "brackets": b"[" * 100_000 + b"\n", "wrong container": b"",
}  # fmt: skip
WRONG = [None, "x", -1.5, True, [], [None], {}, {"a": None}, [[1, "x"]]]


def prepared(root: Path, reader: Reader, content: bytes | Any) -> Run:
    """A run with one file; an example of MUSE also needs the corpus that it belongs to."""
    run = Run(root)
    path = root / reader.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if reader.path.endswith("_icl.json"):
        (root / "knowmem" / "forget_qa.json").write_text(json.dumps(QUESTION))
    run.recipe.write_text("")
    if not isinstance(content, bytes):
        lines = content if path.suffix == ".jsonl" else [content]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(content)
    return run


def named(reader: Reader, error: InputError) -> bool:
    return error.exit_code == 4 and Path(reader.path).name in str(error)


@pytest.mark.parametrize("name", READERS)
def test_malformed_files_are_input_errors(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    for kind, content in NOT_A_RECORD.items():
        if kind == "wrong container":
            lines = reader.path.endswith(".jsonl") or isinstance(reader.valid, dict)
            content = b"[]\n" if lines else b"{}\n"
            content = content if reader.valid != [] else b"{}\n"
        with pytest.raises(InputError) as raised:
            reader.read(prepared(tmp_path, reader, content))
        assert named(reader, raised.value), (kind, str(raised.value))


@pytest.mark.parametrize("name", READERS)
def test_missing_and_wrongly_typed_values_are_input_errors(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    record = reader.valid[0] if isinstance(reader.valid, list) else reader.valid
    rest = reader.valid[1:] if isinstance(reader.valid, list) else []

    def read(changed: dict[str, Any]) -> InputError | None:
        content = [changed, *rest] if isinstance(reader.valid, list) else changed
        try:
            reader.read(prepared(tmp_path, reader, content))
        except InputError as error:
            assert named(reader, error), str(error)
            return error
        return None

    for key in record:
        found = read({k: v for k, v in record.items() if k != key})
        assert found is not None or key not in reader.required, f"{key} may be missing"
        for value in WRONG:
            read(record | {key: value})
    if name != "evidence":  # a valid one needs a whole run; tests/analysis verifies one
        assert read(record) is None


def test_a_damaged_cache_of_an_attack_is_measured_again(tmp_path: Path) -> None:
    """The file may contain any keys, so its own hash shows whether it was changed."""
    from mergeforget.attack.target import _digest, _unchanged

    path = tmp_path / "kept.json"
    found = {"auc": 0.5, "rows": [1, 2]}
    path.write_text(json.dumps({"sha256": _digest(found), "found": found}))
    assert _unchanged(path) == found
    for damaged in ("null", "[]", "{", json.dumps(found),
                    json.dumps({"sha256": _digest(found), "found": {"auc": None}})):  # fmt: skip
        path.write_text(damaged)
        assert _unchanged(path) is None


def test_questions_of_mmlu_that_are_not_utf_8_or_not_csv_are_named(tmp_path: Path) -> None:
    from mergeforget.evaluate.mmlu import read_questions

    path = tmp_path / "law_test.csv"
    path.write_text("q,1,2,3,4,A\n")
    assert len(read_questions(path)) == 1
    for content in (b"q,\xe9,2,3,4,A\n", b"q,1,2\n", b"q,1,2,3,4,E\n", b"x" * 300_000, b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"law_test\.csv"):
            read_questions(path)
