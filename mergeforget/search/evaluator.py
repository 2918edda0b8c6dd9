"""Measures candidates on one loaded model: applied in place one by one, or some side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.benchmarks import score as score_by
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.data.schema import Measured
from mergeforget.data.templating import RAW, PromptTemplate, template_of
from mergeforget.errors import InputError, NumericError, ResourceError
from mergeforget.evaluate.cache import Kept, prompt_key
from mergeforget.evaluate.measure import Membership, measure
from mergeforget.evaluate.mmlu import ask_mmlu
from mergeforget.evaluate.multi_adapter import generate_together, room
from mergeforget.files import write_jsonl
from mergeforget.merge.apply import Buffers, applied
from mergeforget.merge.engine import Merged, sweep
from mergeforget.merge.multi_adapter import UnfitError
from mergeforget.recipe import EvaluationSpec, Recipe, SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.data import SearchData
from mergeforget.search.grid import families
from mergeforget.search.proxy import with_proxy
from mergeforget.search.split import halve

KEPT = 16  # merged candidates in memory, over all families


def merge_all(pair: Sequence[Adapter], candidates: Sequence[Candidate]) -> Iterator[Merged]:
    """Merge candidates in their order; those that differ in density only share their sweeps."""
    waiting = list(candidates)
    at_once = max(1, KEPT // max(1, len(families(waiting))))
    made: dict[str, Merged] = {}
    for candidate in candidates:
        if candidate.name not in made:
            (family,) = (f for f in families(waiting).values() if candidate in f)
            densities = [c.density for c in family[:at_once]]
            made |= {m.candidate.name: m for m in sweep(pair, candidate, densities)}
        waiting.remove(candidate)
        yield made.pop(candidate.name)


def read_pair(run: Run) -> list[Adapter]:
    """Over and under.

    Raises:
        InputError: they are not there.
    """
    for folder in (run.over, run.under):
        if not folder.is_dir():
            raise InputError(
                f"{run.root} has no {folder.name} adapter yet. Train the pair first: "
                f"mergeforget train-pair --out {run.root} --resume"
            )
    return [read_adapter(run.over, "over"), read_adapter(run.under, "under")]


@dataclass
class Evaluator:
    """The model before, its tokenizer, and the rows; what a candidate is measured with.

    Attributes:
        model: plain, without an adapter.
        buffers: memory of merged weights, used again for each candidate.
        readings: folder of what was read and answered before ``measure``, two files a candidate.
        divisible: whether rows of one batch may belong to different candidates, as far as is known.
        mmlu: how MMLU is asked; None where it is not.
        template: how prompts are rendered while candidates are compared.
    """

    model: Any
    tokenizer: Any
    data: SearchData
    max_new_tokens: int
    readings: Path
    membership: Membership = "documents"
    buffers: Buffers = field(default_factory=dict)
    divisible: bool = True
    mmlu: EvaluationSpec | None = None
    template: PromptTemplate = RAW

    def room(self) -> int:
        """How many candidates are worth answering side by side; see ``evaluate.together``."""
        rows = {prompt_key(row): row for row in (*self.data.forget, *self.data.retain)}
        prompts = list(rows.values())
        return room(self.model, self.tokenizer, prompts, self.max_new_tokens, self.template)

    def answer(self, adapters: Mapping[str, Adapter | None]) -> None:
        """Write the answers of several candidates in one batch, and keep them for ``measure``.

        They are kept batch by batch. A candidate whose likelihoods are no numbers is passed over;
        when it is measured, that says why. Where the model cannot answer for several at once, each
        answers when it is measured.
        """
        if not self.divisible:
            return
        sound = [label for label, adapter in adapters.items() if self._sound(adapter, label)]
        kept = [Kept(self._answers(label)) for label in sound]
        rows = {prompt_key(row): row for row in (*self.data.forget, *self.data.retain)}
        asked = [[row for key, row in rows.items() if key not in k.completions] for k in kept]
        try:
            generate_together(
                self.model,
                self.tokenizer,
                [adapters[label] or Adapter(label, {}, {}) for label in sound],
                asked,
                template=self.template,
                max_new_tokens=self.max_new_tokens,
                label=f"answers of {len(sound)} candidates",
                on_done=lambda i, j, text: kept[i].keep_completion(asked[i][j], text),
            )
        except (UnfitError, ResourceError) as error:
            say(f"Candidates answer one after the other: {error}")
            self.divisible = False

    def glance(self, adapter: Adapter | None, label: str, data: SearchData) -> Measured:
        """Likelihoods of some of the data, without a generated answer; kept for ``measure``."""
        return self._read(adapter, label, data)

    def measure(self, adapter: Adapter | None, label: str) -> Measured:
        """Everything that is read off the model with an adapter, or without.

        What a glance has read of the same candidate is not read again, and what was answered side
        by side with others is not answered again.
        """
        kept = Kept(
            readings=Kept(self._readings(label)).readings,
            completions=Kept(self._answers(label)).completions,
        )
        return self._measure(adapter, label, self.data, self.max_new_tokens, kept)

    def measure_ways(self, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        """``measure`` in every way to ask, by the name of the way; MMLU is asked once."""
        rows = [*self.data.forget, *self.data.retain]
        found = {self.template.name: self.measure(adapter, label)}
        for way in self.template.ways(self.tokenizer, rows)[1:]:
            name = hashlib.sha256(way.key.encode()).hexdigest()[:8]
            kept = Kept(self.readings / f"{label}.{way.name}-{name}.jsonl")
            other = replace(self, template=way, mmlu=None)
            new, text = self.max_new_tokens, f"{label} ({way.name})"
            found[way.name] = other._measure(adapter, text, self.data, new, kept)
        return found

    def _sound(self, adapter: Adapter | None, label: str) -> bool:
        """Read the likelihoods, and say whether they are numbers."""
        try:
            self._read(adapter, label, self.data)
        except NumericError:
            return False
        return True

    def _read(self, adapter: Adapter | None, label: str, data: SearchData) -> Measured:
        kept = Kept(readings=Kept(self._readings(label)).readings)
        measured = self._measure(adapter, label, data, 0, kept)
        rows = [{"key": key, **asdict(one)} for key, one in kept.readings.items()]
        write_jsonl(self._readings(label), rows)
        return replace(measured, answers=[])

    def _readings(self, label: str) -> Path:
        return self.readings / f"{label}.jsonl"

    def _answers(self, label: str) -> Path:
        return self.readings / f"{label}.answers.jsonl"

    def _measure(
        self, adapter: Adapter | None, label: str, data: SearchData, max_new_tokens: int, kept: Kept
    ) -> Measured:
        change = nullcontext() if adapter is None else applied(self.model, adapter, self.buffers)
        with change:
            asks = self.mmlu if max_new_tokens else None
            measured = measure(
                self.model,
                self.tokenizer,
                mmlu=ask_mmlu(self.model, self.tokenizer, asks) if asks else None,
                forget=data.forget,
                retain=data.retain,
                members=data.members,
                nonmembers=data.nonmembers,
                max_new_tokens=max_new_tokens,
                membership=self.membership,
                template=self.template,
                label=label,
                kept=kept,
            )
        return replace(measured, mmlu_shots=asks.mmlu_shots) if asks else measured


def score_parts(
    measured: Measured, spec: SearchSpec, benchmark: str, metrics: Sequence[str] = ()
) -> list[Score]:
    """Every score of the whole and of both halves."""
    parts = {"all": measured} | halve(measured, spec.choose_share, spec.seed)
    return [
        replace(score, part=part)
        for part, one in parts.items()
        for score in with_proxy(score_by(benchmark, one, metrics=metrics), one)
    ]


def load_evaluator(
    recipe: Recipe, base: str, data: SearchData, device: str | None, readings: Path, asks: bool
) -> Evaluator:
    """The model that forgets, ready to be changed.

    Args:
        asks: whether the objective reads MMLU, where the recipe names its folder.
    """
    from mergeforget.models import load_model

    loaded = load_model(recipe.model.model_copy(update={"name": base}), device=device)
    spec = recipe.evaluation
    return Evaluator(
        loaded.model,
        loaded.tokenizer,
        data,
        spec.max_new_tokens,
        readings,
        spec.membership,
        mmlu=spec if asks and spec.mmlu else None,
        template=template_of(loaded.tokenizer, recipe.data),
    )
