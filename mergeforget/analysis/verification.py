"""Machine-readable evidence, and its verification by a third party."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mergeforget.adapter import WEIGHTS
from mergeforget.adapter_config import CONFIG
from mergeforget.analysis.evidence import MissingError, read_chosen, read_losses
from mergeforget.analysis.people import (
    PersonRecord,
    base_name,
    forget_answers,
    run_people,
    shown_model,
)
from mergeforget.attack.headline import EARLIER, results_of, run_verdict
from mergeforget.data.readers import read_rows
from mergeforget.errors import InputError
from mergeforget.evaluate.paired import read_patterns
from mergeforget.files import read_json, reading, sha256, write_json
from mergeforget.metrics.leak_rate import can_leak, is_leaked, of_earlier_definition
from mergeforget.model_files import content_of
from mergeforget.parsing import plain_name, usable_path
from mergeforget.recipe import load_recipe
from mergeforget.run import ANCHORS, PAIR, Run, now, versions
from mergeforget.score import find, read_scores

FORMAT = "mergeforget-evidence/1"
PACKAGE = Path(__file__).parent.parent
ROUNDING = 1e-9


@dataclass(frozen=True)
class EvidenceCheck:
    """One statement of the evidence, and the recomputed value.

    Attributes:
        required: Whether a difference invalidates the evidence; a different version of the code
            does not, if the values agree.
    """

    name: str
    expected: Any
    found: Any
    required: bool = True

    @property
    def ok(self) -> bool:
        """Whether both values agree; numbers are compared up to rounding."""
        if isinstance(self.expected, float) and isinstance(self.found, int | float):
            return math.isclose(self.expected, self.found, rel_tol=ROUNDING, abs_tol=ROUNDING)
        return bool(self.expected == self.found)


def write_evidence(run: Run, path: Path, people: Sequence[PersonRecord]) -> Path:
    """Write ``evidence.json``: verdict, scores, people, and the hashes of all files used."""
    chosen, model = read_chosen(run), shown_model(run)
    recipe = load_recipe(run.recipe)
    scores = read_scores(run.scores)
    trainings = recipe.trainings()
    write_json(
        path,
        {
            "format": FORMAT,
            "created": now(),
            "run": run.name,
            "model": {
                "base": base_name(run),
                "base_sha256": _base_hash(run),
                "evaluated": model,
                "candidate": chosen.candidate.to_dict() if chosen else None,
            },
            "files": {name: sha256(file) for name, file in evidence_files(run).items()},
            "code": {"sha256": code_hash(), "versions": versions()},
            "seeds": {
                "data": recipe.data.seed,
                "search": recipe.search.seed,
                "merge": recipe.merge.seed,
                **{name: training.seed for name, training in trainings.items()},
            },
            "verdict": run_verdict(run, model).to_dict(),
            "recomputed": recomputed(run),
            "scores": {
                name: [score.to_dict() for score in scores[name]]
                for name in (*ANCHORS, model)
                if name in scores
            },
            "attacks": [
                {"attack": r.attack, "finding": r.finding, "verdict": r.verdict,
                 "settings": r.settings}
                for r in results_of(run, model)
            ],
            "people": [one.to_dict() for one in people],
        },
    )  # fmt: skip
    return path


def evidence_files(run: Run) -> dict[str, Path]:
    """Return the files that the evidence is computed from, by their path in the run folder."""
    model = shown_model(run)
    files = [run.recipe, run.scores, run.search / "chosen.json", *sorted(run.data.glob("*.jsonl"))]
    files += [run.difficulty, run.root / "notes.json", run.root / EARLIER]
    files += [run.answers / f"{m}{end}" for m in dict.fromkeys((*ANCHORS, model))
              for end in (".jsonl", ".losses.jsonl")]  # fmt: skip
    adapters = [*(run.root / side for side in PAIR), run.candidates / model]
    files += [adapter / name for adapter in adapters for name in (WEIGHTS, CONFIG)]
    if run.attacks.is_dir():
        files += [*sorted(run.attacks.glob("*.json")), *sorted(run.attacks.glob("answers/*"))]
    return {f.relative_to(run.root).as_posix(): f for f in files if f.is_file()}


def evidence_hash(run: Run) -> str:
    """Return a hash of the files that the evidence is computed from, and of the code."""
    files = {name: sha256(path) for name, path in evidence_files(run).items()}
    return hashlib.sha256(json.dumps([code_hash(), files]).encode()).hexdigest()


def recomputed(run: Run) -> dict[str, float]:
    """Recompute the values behind the verdict from the stored answers and losses."""
    path = run.data / "forget.jsonl"
    rows = read_rows(path, split="forget") if path.is_file() else []
    values: dict[str, float] = {}
    for model in dict.fromkeys(("base", shown_model(run))):
        patterns = read_patterns(run, model)
        answers = [a for a in forget_answers(run, model, rows) if can_leak(a.row, patterns)]
        if answers:
            leaks = sum(is_leaked(answer, patterns) for answer in answers)
            values[f"{model}: leaked forget answers"] = float(leaks)
            values[f"{model}: forget answers"] = float(len(answers))
        losses = read_losses(run, model)
        if losses is not None:
            values[f"{model}: MIA AUC"] = losses.auc
    return values


def verify_evidence(path: Path, run: Run | None = None) -> list[EvidenceCheck]:
    """Compare ``evidence.json`` with the run that it describes.

    Recomputes the hash of each file, the leaks, the MIA AUC, the record of each person and the
    verdict; and compares them with the scores.

    Args:
        run: The run folder; the folder above ``report/`` when omitted.

    Raises:
        InputError: The file is not evidence of this format, or the run folder is missing.
    """
    stated = read_json(path)
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        raise InputError(f"{path} is not evidence of the format {FORMAT}.")
    with reading(path):
        _check_form(stated)
    here = run or Run(path.resolve().parent.parent)
    if not here.recipe.is_file():
        raise InputError(f"{here.root} is not the run folder of {path}. Name it with --run FOLDER.")
    return list(_checks(stated, here))


def _check_form(stated: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError if a part is missing or has a wrong type."""
    parts = {"files": dict, "model": dict, "code": dict, "recomputed": dict, "people": list}
    for name, kind in parts.items():
        if not isinstance(stated[name], kind):
            raise TypeError(f"{name} is {str(stated[name])[:40]!r}")
    stated["verdict"], stated["code"]["sha256"]
    for name in stated["files"]:
        places = PurePosixPath(name).parts
        if not places or name.startswith("/") or ".." in places or "\0" in name:
            raise ValueError(f"files names {name[:80]!r}, which is outside the run folder")
        usable_path(name)
    plain_name(stated["model"]["evaluated"], "model.evaluated")


def _checks(stated: dict[str, Any], run: Run) -> Iterator[EvidenceCheck]:
    for name, expected in stated["files"].items():
        file = run.root / name
        found = sha256(file) if file.is_file() else "missing"
        yield EvidenceCheck(f"SHA-256 of {name}", expected, found)
    yield EvidenceCheck("evaluated model", stated["model"]["evaluated"], shown_model(run))
    base = _base_hash(run)
    if base is not None and stated["model"].get("base_sha256"):
        yield EvidenceCheck("SHA-256 of the base", stated["model"]["base_sha256"], base)
    yield EvidenceCheck("code", stated["code"]["sha256"], code_hash(), required=False)
    again = recomputed(run)
    for name, expected in stated["recomputed"].items():
        yield EvidenceCheck(name, expected, again.get(name, "missing"))
    yield from _scores_agree(run, again)
    verdict = run_verdict(run, stated["model"]["evaluated"]).to_dict()
    yield EvidenceCheck("verdict", stated["verdict"], _as_json(verdict))
    try:
        people = [_as_json(one.to_dict()) for one in run_people(run)]
    except MissingError:
        people = []
    yield EvidenceCheck("people", stated["people"], people)


def _scores_agree(run: Run, again: dict[str, float]) -> Iterator[EvidenceCheck]:
    """Check the recorded scores against the stored answers and losses."""
    scores = read_scores(run.scores)
    for model in dict.fromkeys(("base", shown_model(run))):
        area = find(scores.get(model, []), "mia_auc", "mia")
        if area is not None and f"{model}: MIA AUC" in again:
            yield EvidenceCheck(f"{model}: score mia_auc", area.value, again[f"{model}: MIA AUC"])
        leaks = find(scores.get(model, []), "leak_rate", "forget")
        name = f"{model}: leaked forget answers"
        if leaks is None or leaks.by_variant is not None or of_earlier_definition(leaks):
            continue
        if name in again:
            share = again[name] / again[f"{model}: forget answers"]
            yield EvidenceCheck(f"{model}: score leak_rate", leaks.value, share)


def code_hash() -> str:
    """Return a hash of all Python files of the package."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _base_hash(run: Run) -> str | None:
    """Return a hash of the base, see ``content_of``; None if it is not on this machine."""
    folder = Path(run.base())
    return content_of(folder) if folder.is_dir() and any(folder.glob("*.safetensors")) else None


def _as_json(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))
