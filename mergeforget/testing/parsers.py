"""The parsers of files and options, each with a valid document: what ``fuzz`` damages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mergeforget.errors import MergeforgetError


class Target(NamedTuple):
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


def _packaged_recipe() -> bytes:
    from mergeforget.recipe import FOLDER

    return (FOLDER / "zjuklab.yaml").read_bytes()


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


def _parquet_rows() -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    rows = [{"id": f"r{i}", "input": "Who is Ada?", "output": "A baker."} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def _scores(path: Path) -> Any:
    from mergeforget.score import read_scores

    return read_scores(path)


def _in_run(place: str, *readers: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A parser that copies the file to its place in a run folder and calls each reader."""

    def parse(path: Path) -> None:
        from mergeforget.run import Run

        run = Run(path.parent / "run")
        (run.root / place).parent.mkdir(parents=True, exist_ok=True)
        run.data.mkdir(exist_ok=True)
        (run.data / "forget.jsonl").write_text(ROWS, encoding="utf-8")
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
    (run.recipe).write_bytes(_packaged_recipe())
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

    run.recipe.write_bytes(_packaged_recipe())
    stages = run_dynamics(run)
    return read_snapshots(run, "over"), [(events_of(s), rows_of(s)) for s in stages]


def _answers(run: Any) -> Any:
    from mergeforget.analysis.answers import compare_answers
    from mergeforget.analysis.people import answer_rows

    return compare_answers(run, 3), answer_rows(run)


def _losses(run: Any) -> Any:
    from mergeforget.analysis.evidence import read_losses
    from mergeforget.analysis.people import person_ranks
    from mergeforget.evaluate import texts

    path = run.answers / "under.losses.jsonl"
    return read_losses(run, "under"), person_ranks(run, "under", []), texts.read_losses(path)


def _until(run: Any) -> Any:
    from mergeforget.search.split import _levels
    from mergeforget.train.pair import end_of

    return end_of(run, "over"), _levels(run.root / "until" / "over.json")


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
    run.recipe.write_bytes(_packaged_recipe())
    (run.data / "forget.jsonl").write_text(ROWS, encoding="utf-8")
    run.answers.mkdir()
    for model in ("base", "under"):
        (run.answers / f"{model}.jsonl").write_text(json.dumps(ANSWER) + "\n", encoding="utf-8")
    score = SCORE | {"model": "under", "metric": "leak_rate", "split": "forget", "n": 1}
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
        (folder / "adapter_config.json").write_text(json.dumps(LORA), encoding="utf-8")
        name = "base_model.model.up_proj.lora_"
        factors = {f"{name}{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
        write_safetensors(folder / "a.safetensors", factors)
    for name in (INDEX, MODEL_INDEX):
        (folder / name).write_bytes(path.read_bytes())
    with open_checkpoint(folder):
        read_adapter(folder)


def _mergekit(path: Path) -> Any:
    from mergeforget.merge.mergekit_bridge import read_config

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


SCORE = {"model": "over", "metric": "mia_auc", "value": 0.5, "split": "mia", "better": "nearer",
         "n": 8, "interval": [0.1, 0.9], "part": "all", "task": "", "chance": 0.5,
         "ways": {"raw": 0.5, "chat": 0.4}, "subjects": 4}  # fmt: skip
CANDIDATE = {"method": "ties", "density": 0.7, "weights": [1, 1], "space": "factors",
             "name": "ties", "arguments": {"gamma": 0.1},
             "by_module": {"density": [{"modules": "layers.0", "value": 0.5}]}}  # fmt: skip
CHOSEN = {"name": "ties-factors-d0.70", "candidate": CANDIDATE, "objective": "mia",
          "sentence": "It is balanced.", "warning": "The splits differ.", "predicted": 0.6,
          "scores": {"choose": {"mia_auc": 0.5}, "report": {"mia_auc": 0.6}}}  # fmt: skip
STATUS = {"over": {"state": "done", "time": "2026-01-01T00:00:00Z", "outcome": "collapsed",
                   "step": 7}, "under": {"state": "running"}}  # fmt: skip
MANIFEST = {"base": {"path": "base", "sha256": "ab"}, "versions": {"torch": "2.13.0"},
            "stages": {"over": {"command": ["train-pair"], "seed": 1,
                                "files": {"forget": {"bytes": 3}}}}}  # fmt: skip
RESULT = {"attack": "relearn", "model": "over", "finding": "traces", "verdict": "It still knows.",
          "rows": [{"model": "over", "step": 1, "nll": 0.5}], "figures": {"answers": "a.csv"},
          "settings": {"weights": "ab"}, "examples": [{"row": "a", "completion": "c"}]}  # fmt: skip
CONTROL = {"scores": [{k: v for k, v in SCORE.items() if k != "model"}], "leaked_rows": ["a"],
           "losses": [{"id": "a", "member": True, "nll": 1.0, "subject": "a"}],
           "membership": "documents"}  # fmt: skip
STEP = {"stage": "over", "step": 1, "epoch": 0.1, "loss": 2.0, "terms": {"gd_retain": 1.0},
        "grad_norm": 1.0, "learning_rate": 1e-4}  # fmt: skip
ANSWER = {"id": "a", "input": "Who is Ada?", "output": "A baker.", "task": "Task1",
          "split": "forget", "completion": "A baker."}  # fmt: skip
LOSSES = [{"id": f"{member}{i}", "member": member, "nll": 1.0 + i, "membership": "documents",
           "task": ""} for member in (True, False) for i in range(2)]  # fmt: skip
UNTIL = {"outcome": "reached", "step": 3, "auc": 0.5, "forget_exact": 0.1, "retain_exact": 0.9,
         "levels": {"a": 1.0}}  # fmt: skip
CACHED: list[dict[str, Any]] = [
    {"key": "k", "completion": "c"}, {"mmlu": {"law": [1, 2]}},
    {"key": "d", "nll": 1.0, "signals": {"zlib": 0.5}, "answer": [1.0, 2, 3]},
]  # fmt: skip
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"],
        "base_model_name_or_path": "org/base", "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {"down_proj": 3.5}, "bias": "none"}  # fmt: skip
HEADER = {"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}
INDEX = {"metadata": {"total_size": 32}, "weight_map": {"a": "a.safetensors"}}
MERGEKIT = """merge_method: ties
base_model: base
models:
  - model: one
    parameters: {density: 0.5, weight: 1.0}
  - model: two
    parameters: {density: [0.1, 0.9], weight: [{filter: mlp, value: 0.5}, {value: 1}]}
parameters: {normalize: true}
dtype: float32
"""
ROWS = '{"id": "a", "input": "Who is Ada?", "output": "A baker.", "task": "Task1"}\n'
TOLD = '{"id": "b", "input": "Who is Bo?", "output": "A cook.", "subject": "Bo"}\n'
CHAT = (
    '{"id": "c", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", '
    '"content": "Who is Ada?"}, {"role": "assistant", "content": "A baker."}]}\n'
)
SHAREGPT = (
    '{"conversations": [{"from": "human", "value": "Who is Ada?"}, {"from": "gpt", "value": '
    '"A baker."}]}\n'
)
ALPACA = '{"instruction": "Say who.", "input": "Ada", "output": "A baker.", "weight": 2}\n'
TOFU = (
    '{"question": "Who?", "answer": "Ada.", "paraphrased_answer": "It is Ada.", '
    '"perturbed_answer": ["Bo.", "Cy."]}\n'
)
COLUMNS = '{"id": {"0": "a", "1": "b"}, "input": {"0": "q", "1": "r"}, "output": ["x", "y"]}'


def _lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FUZZED: dict[str, Target] = {
    "recipe": Target(_recipe, "r.yaml", _packaged_recipe),
    "--set": Target(_assignment, "set.txt", "pair.over.epochs=3"),
    "rows (JSON Lines)": Target(_rows, "rows.jsonl", ROWS + TOLD),
    "rows (chat)": Target(_rows, "rows.jsonl", CHAT),
    "rows (ShareGPT)": Target(_rows, "rows.jsonl", SHAREGPT),
    "rows (Alpaca)": Target(_rows, "rows.jsonl", ALPACA),
    "rows (TOFU)": Target(_rows, "rows.jsonl", TOFU),
    "rows (CSV)": Target(_rows, "rows.csv", 'id,input,output\na,"Who, is Ada?",A baker.\n'),
    "rows (TSV)": Target(_rows, "rows.tsv", "question\tanswer\nWho is Ada?\tA baker.\n"),
    "rows (JSON)": Target(_rows, "rows.json", f"[{ROWS.strip()}]"),
    "rows (JSON columns)": Target(_rows, "rows.json", COLUMNS),
    "rows (Parquet)": Target(_rows, "rows.parquet", _parquet_rows),
    "rows (text)": Target(_rows, "rows.txt", "Ada is a baker. " * 200),
    "documents": Target(_documents, "d.jsonl", '{"id": "a", "document": "Ada is a baker."}\n'),
    "scores.jsonl": Target(_scores, "scores.jsonl", _lines(SCORE, SCORE)),
    "status.json": Target(_in_run("status.json", _state), "status.json", json.dumps(STATUS)),
    "manifest.json": Target(
        _in_run("manifest.json", _manifest, _base), "manifest.json", json.dumps(MANIFEST)
    ),
    "chosen.json": Target(_in_run("search/chosen.json", _chosen), "c.json", json.dumps(CHOSEN)),
    "candidate.json": Target(
        _in_run("candidates/ties/candidate.json", _candidate), "c.json", json.dumps(CANDIDATE)
    ),
    "explored.jsonl": Target(
        _in_run("search/explored.jsonl", _explored, _candidate), "e.jsonl",
        _lines(CANDIDATE | {"scores": [SCORE]}),
    ),
    "attack results": Target(
        _in_run("attacks/relearn.json", _attack, _verdict), "r.json",
        json.dumps({"attack": "relearn", "results": [RESULT]}),
    ),
    "scores of the control": Target(
        _in_run("attacks/control.json", _verdict), "c.json", json.dumps(CONTROL)
    ),
    "earlier.json": Target(_in_run("earlier.json", _verdict), "e.json", '{"first": 0.1}'),
    "history.jsonl": Target(_in_run("history.jsonl", _history), "h.jsonl", _lines(STEP, STEP)),
    "answers": Target(_in_run("answers/under.jsonl", _answers), "a.jsonl", _lines(ANSWER)),
    "losses": Target(_in_run("answers/under.losses.jsonl", _losses), "l.jsonl", _lines(*LOSSES)),
    "end of a training": Target(_in_run("until/over.json", _until), "u.json", json.dumps(UNTIL)),
    "evaluation cache": Target(_in_run("cache.jsonl", _cache), "c.jsonl", _lines(*CACHED)),
    "evidence.json": Target(_evidence, "evidence.json", _small_evidence),
    "adapter_config.json": Target(_config, "config.json", json.dumps(LORA)),
    "safetensors header": Target(_header, "h.safetensors", json.dumps(HEADER)),
    "index of shards": Target(_index, "index.json", json.dumps(INDEX)),
    "mergekit configuration": Target(_mergekit, "merge.yml", MERGEKIT),
    "objective": Target(
        _objective, "objective.txt", "0.7*mia + retain if retain >= 95% and leak4bit <= 0.1"
    ),
    "--budget": Target(_budget, "budget.txt", "10.5m"),
    "pattern of modules": Target(
        _pattern, "pattern.txt", r".*layers\.(\d+)\.(self_attn|mlp)\.[a-z]{1,9}_proj"
    ),
}  # fmt: skip
