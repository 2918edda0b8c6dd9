"""The parsers of files and options, each with a valid document for ``fuzz`` to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mergeforget.errors import MergeforgetError
from mergeforget.testing import documents as valid


class FuzzedParser(NamedTuple):
    """A parser under test.

    Attributes:
        parse: Reads the file.
        file: Name of the file.
        content: A valid document, or a function that makes it.
    """

    parse: Callable[[Path], Any]
    file: str
    content: str | bytes | Callable[[], bytes]


def _recipe(path: Path) -> Any:
    from mergeforget.recipe import load_recipe

    return load_recipe(path)


def _assignment(path: Path) -> Any:
    from mergeforget.recipe import load_recipe

    return load_recipe("zjuklab", [path.read_bytes().decode("utf-8", "surrogateescape")])


def _rows(path: Path) -> None:
    from mergeforget.data.readers import read_rows

    for row in read_rows(path, turns="every"):
        json.dumps(row.to_dict(), ensure_ascii=False).encode("utf-8")


def _documents(path: Path) -> Any:
    from mergeforget.evaluate.rows import read_documents

    return read_documents(path)


def _scores(path: Path) -> Any:
    from mergeforget.score import read_scores

    return read_scores(path)


def _in_run(place: str, *readers: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a parser that copies the file into a run folder and calls each reader."""

    def parse(path: Path) -> None:
        from mergeforget.run import Run

        run = Run(path.parent / "run")
        (run.root / place).parent.mkdir(parents=True, exist_ok=True)
        run.data.mkdir(exist_ok=True)
        (run.data / "forget.jsonl").write_text(valid.ROWS, encoding="utf-8")
        (run.root / place).write_bytes(path.read_bytes())
        refused: list[MergeforgetError] = []
        for read in readers:
            try:
                read(run)
            except MergeforgetError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    return parse


def _state(run: Any) -> Any:
    from mergeforget.analysis.report import _collapsed

    return run.state("over"), _collapsed(run)


def _manifest(run: Any) -> Any:
    from mergeforget.analysis.report import flat

    manifest = run.read_manifest()
    return {stage: flat(facts) for stage, facts in manifest["stages"].items()}


def _base(run: Any) -> Any:
    (run.recipe).write_bytes(valid.packaged_recipe())
    return run.base()


def _chosen(run: Any) -> Any:
    from mergeforget.analysis.evidence import read_chosen

    return run.chosen_name(), read_chosen(run)


def _candidate(run: Any) -> Any:
    from mergeforget.analysis.evidence import read_candidates

    found = read_candidates(run, ["ties", "ties-factors-d0.70"])
    return [(one.name, one.family, one.densities, one.to_dict()) for one in found.values()]


def _explored(run: Any) -> Any:
    from mergeforget.search.store import Store

    return Store(run)


def _attack(run: Any) -> Any:
    from mergeforget.analysis.people import attack_leaks
    from mergeforget.attack.headline import results_of
    from mergeforget.attack.result import read_results

    results = [*read_results(run.attacks, "relearn"), *results_of(run, "over")]
    return [attack_leaks(result, {}) for result in results]


def _verdict(run: Any) -> Any:
    from mergeforget.attack.headline import run_verdict

    return run_verdict(run, "over").to_dict()


def _history(run: Any) -> Any:
    from mergeforget.analysis.dynamics import events_of, rows_of, run_dynamics
    from mergeforget.analysis.evidence import read_snapshots

    run.recipe.write_bytes(valid.packaged_recipe())
    stages = run_dynamics(run)
    return read_snapshots(run, "over"), [(events_of(s), rows_of(s)) for s in stages]


def _answers(run: Any) -> Any:
    from mergeforget.analysis.people import answer_rows
    from mergeforget.analysis.sections import compare_answers

    return compare_answers(run, 3), answer_rows(run)


def _losses(run: Any) -> Any:
    from mergeforget.analysis.evidence import read_losses
    from mergeforget.analysis.people import person_ranks
    from mergeforget.evaluate import texts

    path = run.answers / "under.losses.jsonl"
    return read_losses(run, "under"), person_ranks(run, "under", []), texts.read_losses(path)


def _until(run: Any) -> Any:
    from mergeforget.search.split import _levels
    from mergeforget.train.run_rows import end_of

    return end_of(run, "over"), _levels(run.root / "until" / "over.json")


def _nonmembers(run: Any) -> Any:
    from mergeforget.search.split import _difficulty

    return _difficulty(run.difficulty)


def _cache(run: Any) -> Any:
    from mergeforget.evaluate.cache import EvaluationCache

    return EvaluationCache(run.root / "cache.jsonl")


def _evidence(path: Path) -> None:
    """Verify damaged evidence of an intact run, which is written the first time."""
    from mergeforget.analysis.verification import verify_evidence
    from mergeforget.run import Run

    run = Run(path.parent / "verified")
    if not run.recipe.exists():
        _write_small_run(run)
    for check in verify_evidence(path, run):
        str((check.name, check.expected, check.found, check.ok))


def _write_small_run(run: Any) -> None:
    run.data.mkdir(parents=True)
    run.recipe.write_bytes(valid.packaged_recipe())
    (run.data / "forget.jsonl").write_text(valid.ROWS, encoding="utf-8")
    run.answers.mkdir()
    for model in ("base", "under"):
        (run.answers / f"{model}.jsonl").write_text(
            json.dumps(valid.ANSWER) + "\n", encoding="utf-8"
        )
    score = valid.SCORE | {"model": "under", "metric": "leak_rate", "split": "forget", "n": 1}
    run.scores.write_text(json.dumps(score) + "\n", encoding="utf-8")


def _small_evidence() -> bytes:
    import tempfile

    from mergeforget.analysis.people import run_people
    from mergeforget.analysis.verification import write_evidence
    from mergeforget.run import Run

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "verified")
        _write_small_run(run)
        return write_evidence(run, run.root / "evidence.json", run_people(run)).read_bytes()


def _config(path: Path) -> None:
    from mergeforget.adapter_config import CONFIG, read_config, scaling_of

    folder = path.parent / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(path.read_bytes())
    scaling_of(read_config(folder), "model.layers.0.mlp.up_proj", 2)


def _header(path: Path) -> Any:
    from mergeforget.merge.checkpoint.reader import read_header
    from mergeforget.tensors import read_safetensors

    text = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    for read in (read_header, read_safetensors):
        try:
            read(path)
        except MergeforgetError:
            continue


def _index(path: Path) -> None:
    import numpy as np

    from mergeforget.adapter import INDEX, read_adapter
    from mergeforget.merge.checkpoint.reader import INDEX as MODEL_INDEX
    from mergeforget.merge.checkpoint.reader import open_checkpoint
    from mergeforget.tensors import write_safetensors

    folder = path.parent / "sharded"
    if not folder.exists():
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(valid.LORA), encoding="utf-8")
        name = "base_model.model.up_proj.lora_"
        factors = {f"{name}{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
        write_safetensors(folder / "a.safetensors", factors)
    for name in (INDEX, MODEL_INDEX):
        (folder / name).write_bytes(path.read_bytes())
    with open_checkpoint(folder):
        read_adapter(folder)


def _mergekit(path: Path) -> Any:
    from mergeforget.merge.mergekit_config import read_config

    return read_config(path)


def _objective(path: Path) -> Any:
    from mergeforget.search.objective import parse_objective

    return parse_objective(path.read_bytes().decode("utf-8", "replace"))


def _budget(path: Path) -> Any:
    from mergeforget.search.budget import parse_budget

    return parse_budget(path.read_bytes().decode("utf-8", "replace"))


def _pattern(path: Path) -> Any:
    """Match a pattern that was accepted with a long name; a slow one makes the test time out."""
    from mergeforget.parsing import safe_pattern

    pattern = safe_pattern(path.read_bytes().decode("utf-8", "replace"), "rank_pattern")
    return pattern.fullmatch("model.layers.10.self_attn." + "a" * 30 + "!")


def _run_file(
    place: str, content: dict[str, Any] | list[dict[str, Any]], *readers: Callable[[Any], Any]
) -> FuzzedParser:
    """Return the entry for a file of a run: one record as JSON, or several as JSON Lines."""
    text = valid.lines(*content) if isinstance(content, list) else json.dumps(content)
    return FuzzedParser(_in_run(place, *readers), Path(place).name, text)


FUZZED: dict[str, FuzzedParser] = {
    "recipe": FuzzedParser(_recipe, "r.yaml", valid.packaged_recipe),
    "--set": FuzzedParser(_assignment, "set.txt", "pair.over.epochs=3"),
    "rows (JSON Lines)": FuzzedParser(_rows, "rows.jsonl", valid.ROWS + valid.SECOND_ROW),
    "rows (chat)": FuzzedParser(_rows, "rows.jsonl", valid.CHAT),
    "rows (ShareGPT)": FuzzedParser(_rows, "rows.jsonl", valid.SHAREGPT),
    "rows (Alpaca)": FuzzedParser(_rows, "rows.jsonl", valid.ALPACA),
    "rows (TOFU)": FuzzedParser(_rows, "rows.jsonl", valid.TOFU),
    "rows (CSV)": FuzzedParser(_rows, "rows.csv", 'id,input,output\na,"Who, is Ada?",A baker.\n'),
    "rows (TSV)": FuzzedParser(_rows, "rows.tsv", "question\tanswer\nWho is Ada?\tA baker.\n"),
    "rows (JSON)": FuzzedParser(_rows, "rows.json", f"[{valid.ROWS.strip()}]"),
    "rows (JSON columns)": FuzzedParser(_rows, "rows.json", valid.COLUMNS),
    "rows (Parquet)": FuzzedParser(_rows, "rows.parquet", valid.parquet_rows),
    "rows (text)": FuzzedParser(_rows, "rows.txt", "Ada is a baker. " * 200),
    "documents": FuzzedParser(
        _documents, "d.jsonl", '{"id": "a", "document": "Ada is a baker."}\n'
    ),
    "scores.jsonl": FuzzedParser(_scores, "scores.jsonl", valid.lines(valid.SCORE, valid.SCORE)),
    "status.json": _run_file("status.json", valid.STATUS, _state),
    "manifest.json": _run_file("manifest.json", valid.MANIFEST, _manifest, _base),
    "chosen.json": _run_file("search/chosen.json", valid.CHOSEN, _chosen),
    "candidate.json": _run_file("candidates/ties/candidate.json", valid.CANDIDATE, _candidate),
    "explored.jsonl": _run_file(
        "search/explored.jsonl",
        [valid.CANDIDATE | {"scores": [valid.SCORE]}],
        _explored,
        _candidate,
    ),
    "attack results": _run_file(
        "attacks/relearn.json", {"attack": "relearn", "results": [valid.RESULT]}, _attack, _verdict
    ),
    "scores of the control": _run_file("attacks/control.json", valid.CONTROL, _verdict),
    "earlier.json": _run_file(
        "earlier.json",
        {"first": 0.1, "second": {"share": 0.1, "asked": 10, "beyond": True}},
        _verdict,
    ),
    "history.jsonl": _run_file("history.jsonl", [valid.STEP, valid.STEP], _history),
    "answers": _run_file("answers/under.jsonl", [valid.ANSWER], _answers),
    "losses": _run_file("answers/under.losses.jsonl", valid.LOSSES, _losses),
    "end of a training": _run_file("until/over.json", valid.UNTIL, _until),
    "difficulty.json": _run_file("data/difficulty.json", {"Ann": 2.5, "Bob": 4.0}, _nonmembers),
    "evaluation cache": _run_file("cache.jsonl", valid.CACHED, _cache),
    "evidence.json": FuzzedParser(_evidence, "evidence.json", _small_evidence),
    "adapter_config.json": FuzzedParser(_config, "config.json", json.dumps(valid.LORA)),
    "safetensors header": FuzzedParser(_header, "h.safetensors", json.dumps(valid.HEADER)),
    "index of shards": FuzzedParser(_index, "index.json", json.dumps(valid.INDEX)),
    "mergekit configuration": FuzzedParser(_mergekit, "merge.yml", valid.MERGEKIT),
    "objective": FuzzedParser(
        _objective, "objective.txt", "0.7*mia + retain if retain >= 95% and leak4bit <= 0.1"
    ),
    "--budget": FuzzedParser(_budget, "budget.txt", "10.5m"),
    "pattern of modules": FuzzedParser(
        _pattern, "pattern.txt", r".*layers\.(\d+)\.(self_attn|mlp)\.[a-z]{1,9}_proj"
    ),
}
