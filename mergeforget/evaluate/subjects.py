"""Evaluates the models of a run, or any model: measured once, kept by the hash of what decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.adapter import read_adapter
from mergeforget.benchmarks import BENCHMARKS
from mergeforget.console import say
from mergeforget.data.schema import Measured
from mergeforget.embedded import cache_folder
from mergeforget.errors import InputError, suggest
from mergeforget.evaluate.measure import measure
from mergeforget.evaluate.mmlu import run_mmlu
from mergeforget.evaluate.readings import Kept, document_key, prompt_key
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.store import write_subject
from mergeforget.files import read_json, sha256
from mergeforget.recipe import EvaluationSpec, ModelSpec
from mergeforget.run import Run
from mergeforget.score import Score

ENDS = ("base", "over", "under")


@dataclass
class Evaluation:
    """One base model, the rows, and how they are measured; the model is loaded when it is needed.

    Attributes:
        base: the model's name or folder.
        folder: where what is measured is kept by its hash.
    """

    base: str
    spec: ModelSpec
    settings: EvaluationSpec
    rows: EvaluationRows
    folder: Path
    device: str | None = None
    batch_tokens: int | None = None
    _loaded: Any = None
    _hashes: dict[Path, str] = field(default_factory=dict)

    def run(self, adapter: Path | None, label: str, *, again: bool = False) -> Measured:
        """Measure the base with an adapter, or without; what was measured before is kept."""
        path = self.folder / f"{self.fingerprint(adapter)}.jsonl"
        if again:
            path.unlink(missing_ok=True)
        kept = Kept(path)
        if self._complete(kept):
            say(f"{label}: measured before and kept; --again measures anew.")
            return self._measure(None, None, kept, label)
        loaded = self.loaded()
        with self._applied(adapter):
            if self.settings.mmlu and kept.mmlu is None:
                kept.keep_mmlu(self._mmlu())
            return self._measure(loaded.model, loaded.tokenizer, kept, label)

    def fingerprint(self, adapter: Path | None) -> str:
        """Hash of the weights and of every setting that changes what is measured."""
        from mergeforget.models import default_device, locate

        facts = {
            "base": self._hash(locate(self.base, trust_remote_code=self.spec.trust_remote_code)),
            "adapter": self._hash(adapter) if adapter else "",
            "dtype": self.spec.dtype,
            "device": (self.device or default_device()).split(":")[0],
            "membership": self.settings.membership,
            "max_new_tokens": self.settings.max_new_tokens,
            "mmlu": [self.settings.mmlu, self.settings.mmlu_shots, self._mmlu_limit()]
            if self.settings.mmlu
            else None,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def loaded(self) -> Any:
        """The base model and its tokenizer, loaded once."""
        if self._loaded is None:
            from mergeforget.models import load_model

            spec = self.spec.model_copy(update={"name": self.base})
            self._loaded = load_model(spec, device=self.device)
        return self._loaded

    @contextmanager
    def _applied(self, adapter: Path | None) -> Iterator[None]:
        from mergeforget.merge.apply import applied

        read = read_adapter(adapter) if adapter else None
        with applied(self.loaded().model, read) if read else nullcontext():
            yield

    def _mmlu(self) -> dict[str, tuple[int, int]]:
        loaded, spec = self.loaded(), self.settings
        return run_mmlu(
            loaded.model,
            loaded.tokenizer,
            Path(spec.mmlu or ""),
            shots=spec.mmlu_shots,
            limit=self._mmlu_limit(),
            batch_tokens=self.batch_tokens,
        )

    def _mmlu_limit(self) -> int | None:
        return self.settings.mmlu_limit or self.settings.limit

    def _measure(self, model: Any, tokenizer: Any, kept: Kept, label: str) -> Measured:
        return measure(
            model,
            tokenizer,
            forget=self.rows.forget,
            retain=self.rows.retain,
            members=self.rows.members,
            nonmembers=self.rows.nonmembers,
            max_new_tokens=self.settings.max_new_tokens,
            batch_tokens=self.batch_tokens,
            membership=self.settings.membership,
            mmlu=kept.mmlu,
            label=label,
            kept=kept,
        )

    def _complete(self, kept: Kept) -> bool:
        asked = [*self.rows.forget, *self.rows.retain]
        documents = [*asked, *self.rows.members, *self.rows.nonmembers]
        return (
            all(prompt_key(row) in kept.completions for row in asked)
            and all(document_key(row) in kept.readings for row in documents)
            and (not self.settings.mmlu or kept.mmlu is not None)
        )

    def _hash(self, folder: Path) -> str:
        """Of the weights and configuration in a folder."""
        if folder not in self._hashes:
            every = [p for p in sorted(folder.iterdir()) if p.name != "candidate.json"]
            files = [p for p in every if p.suffix in (".safetensors", ".json")]
            text = "".join(f"{p.name} {sha256(p)}\n" for p in files)
            self._hashes[folder] = hashlib.sha256(text.encode()).hexdigest()
        return self._hashes[folder]


def evaluate_run(
    run: Run,
    evaluation: Evaluation,
    names: Sequence[str] = (),
    *,
    again: bool = False,
) -> dict[str, list[Score]]:
    """Measure and score the models of a run, and write scores and answers there.

    Args:
        names: base, over, under, or candidates; by default the pair and the chosen candidate, or
            all candidates where none is chosen.

    Raises:
        InputError: the run has no such model.
    """
    subjects = subjects_of(run)
    unknown = [name for name in names if name not in subjects]
    if unknown:
        raise InputError(
            f"{run.root} has no model {unknown[0]!r}.{suggest(unknown[0], subjects)} It has: "
            f"{', '.join(subjects)}."
        )
    found = {}
    with run.lock():
        for name in names or default_subjects(run):
            measured = evaluation.run(subjects[name], name, again=again)
            found[name] = BENCHMARKS.get(evaluation.settings.benchmark).fn(measured)
            write_subject(run.scores, run.answers, name, measured, found[name])
        run.record("evaluate", settings=asdict_of(evaluation), subjects=list(found))
    return found


def subjects_of(run: Run) -> dict[str, Path | None]:
    """Every model of a run: its name, and its adapter (None for the base)."""
    found: dict[str, Path | None] = {"base": None}
    for name in ("over", "under"):
        if (run.root / name).is_dir():
            found[name] = run.root / name
    if run.candidates.is_dir():
        folders = sorted(p for p in run.candidates.iterdir() if not p.name.startswith("."))
        found |= {p.name: p for p in folders if (p / "adapter_config.json").is_file()}
    return found | snapshots_of(run)


def snapshots_of(run: Run) -> dict[str, Path | None]:
    """The pair at set steps of its training, for example ``over-step00010``."""
    folders = sorted(run.snapshots.glob("*-step*")) if run.snapshots.is_dir() else []
    return {p.name: p for p in folders if (p / "adapter_config.json").is_file()}


def default_subjects(run: Run) -> list[str]:
    """The pair and the chosen candidate, or every candidate where none is chosen."""
    subjects = [name for name in subjects_of(run) if name not in snapshots_of(run)]
    chosen = run.search / "chosen.json"
    if not chosen.exists():
        return subjects
    name = str(read_json(chosen)["name"])
    return [s for s in subjects if s in ENDS or s == name]


def asdict_of(evaluation: Evaluation) -> dict[str, Any]:
    """The settings of an evaluation, as plain values."""
    rows = {name: len(group) for name, group in asdict(evaluation.rows).items()}
    return {**evaluation.settings.model_dump(mode="json"), "rows": rows}


def kept_folder() -> Path:
    """Where evaluations of models that belong to no run are kept."""
    return cache_folder() / "evaluations"
