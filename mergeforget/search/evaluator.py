"""Evaluate candidates on one loaded model, one after the other or several in one batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergeforget.adapter import Adapter, read_adapter, write_adapter
from mergeforget.attack.rounding import rounded
from mergeforget.attack.tuning import Tuning, tune
from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.data.schema import Measured, Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.transforms import limit_rows
from mergeforget.errors import InputError, NumericError, ResourceError
from mergeforget.evaluate.cache import EvaluationCache, prompt_key
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.generate import MOST, adapters_per_batch, generate_together
from mergeforget.evaluate.measure import Membership, measure
from mergeforget.evaluate.mmlu import ask_mmlu
from mergeforget.evaluate.serve import Server, imported_vllm
from mergeforget.files import write_jsonl
from mergeforget.merge.apply import Buffers, applied
from mergeforget.merge.engine import Merged, sweep
from mergeforget.merge.multi_adapter import UnfitError
from mergeforget.recipe import EvaluationSpec, Recipe, SearchSpec
from mergeforget.run import Run
from mergeforget.score import Score
from mergeforget.search.grid import families
from mergeforget.search.scoring import leak_scores, with_level
from mergeforget.search.split import SearchData

RELEARN = Tuning(10, 1e-3, 4, 16, full=False, seed=0)  # steps, rate, batch and rank
KEPT = 16  # merged candidates in memory, over all families


def merge_all(pair: Sequence[Adapter], candidates: Sequence[Candidate]) -> Iterator[Merged]:
    """Merge candidates in order; candidates that differ only in density share one sweep.

    A candidate whose merge is not finite is left out with a message.
    """
    waiting = list(candidates)
    at_once = max(1, KEPT // max(1, len(families(waiting))))
    made: dict[str, Merged] = {}
    for candidate in candidates:
        if candidate.name not in made:
            (family,) = (f for f in families(waiting).values() if candidate in f)
            made |= {m.candidate.name: m for m in _sweep(pair, candidate, family[:at_once])}
        waiting.remove(candidate)
        if candidate.name in made:
            yield made.pop(candidate.name)


def _sweep(
    pair: Sequence[Adapter], candidate: Candidate, family: Sequence[Candidate]
) -> list[Merged]:
    """Merge a family; if the merge of one is not finite, merge only the candidate."""
    try:
        return sweep(pair, candidate, [one.density for one in family])
    except NumericError as error:
        if len(family) > 1:
            return _sweep(pair, candidate, [candidate])
        say(f"Skipped {candidate.name}: {error}")
        return []


def rows_to_relearn(forget: Sequence[Row]) -> list[Row]:
    """Return the forget rows that ``relearn`` trains on: a quarter, but at least one subject.

    Subjects are shown as a whole. Rows that are all about one subject count as a subject each. Of
    a single row none is returned, since it could not be measured.
    """
    sizes = Counter(row.subject for row in forget)
    if len(sizes) == 1:
        forget = [replace(row, subject=row.id) for row in forget]
        sizes = Counter(row.subject for row in forget)
    if len(sizes) < 2:
        return []
    shown = limit_rows(forget, max(len(forget) // 4, min(sizes.values())), 0)[0]
    return list(shown)


def read_pair(run: Run) -> list[Adapter]:
    """Read the adapters over and under of a run.

    Raises:
        InputError: An adapter is missing.
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
    """The base model, its tokenizer and the rows for the evaluation of candidates.

    Attributes:
        model: The base model, without an adapter.
        buffers: Memory of merged weights, reused for each candidate.
        cache_folder: Folder of cached likelihoods and answers, two files per candidate.
        divisible: Whether rows of one batch may belong to different candidates; set to False if the
            model does not support it.
        mmlu: Settings of MMLU; None if it is not measured.
        variants: The prompt variants, the recipe's first. Candidates are compared by their
            worst case.
        server: vLLM, which generates the answers; None for transformers.
    """

    model: Any
    tokenizer: Any
    data: SearchData
    max_new_tokens: int
    cache_folder: Path
    membership: Membership = "documents"
    buffers: Buffers = field(default_factory=dict)
    divisible: bool = True
    mmlu: EvaluationSpec | None = None
    variants: Sequence[PromptTemplate] = (RAW,)
    server: Server | None = None

    def room(self) -> int:
        """Return the number of candidates whose answers fit one batch."""
        if self.server is not None:
            return self.server.at_once
        rows = {prompt_key(row): row for row in (*self.data.forget, *self.data.retain)}
        prompts = list(rows.values())
        return min(
            adapters_per_batch(self.model, self.tokenizer, prompts, self.max_new_tokens, variant)
            for variant in self.variants
        )

    def answer(self, adapters: Mapping[str, Adapter | None]) -> None:
        """Generate the answers of several candidates in one batch, and cache them for ``measure``.

        Answers are saved after each batch. A candidate whose likelihoods are not finite is skipped;
        ``measure`` raises its error. If the model cannot serve several adapters in one batch, or an
        output of a candidate is not finite, each candidate answers in ``measure``.
        """
        if not self.divisible:
            return
        sound = {one: a for one, a in adapters.items() if self._sound(a, one)}
        try:
            for variant in self.variants:
                self._answer_together(sound, variant)
        except (UnfitError, ResourceError, NumericError) as error:
            say(f"Evaluating candidates one after the other: {error}")
            # of a candidate whose outputs are not finite, the others are not to blame
            self.divisible = isinstance(error, NumericError)

    def _answer_together(
        self, adapters: Mapping[str, Adapter | None], variant: PromptTemplate
    ) -> None:
        rows = {prompt_key(row): row for row in (*self.data.forget, *self.data.retain)}
        caches = [EvaluationCache(self._answers(label, variant)) for label in adapters]
        missing_rows = [
            [row for key, row in rows.items() if key not in k.completions] for k in caches
        ]

        if not any(missing_rows):
            return

        def save(i: int, j: int, completion: Completion) -> None:
            caches[i].save_completion(missing_rows[i][j], completion)

        if self.server is not None:
            with TemporaryDirectory() as folder:
                folders = [_written(adapter, Path(folder) / label)
                           for label, adapter in adapters.items()]  # fmt: skip
                self.server.together(
                    self.model, self.tokenizer, folders, missing_rows, template=variant,
                    max_new_tokens=self.max_new_tokens, on_done=save,
                )  # fmt: skip
            return
        generate_together(
            self.model,
            self.tokenizer,
            [adapter or Adapter(label, {}, {}) for label, adapter in adapters.items()],
            missing_rows,
            template=variant,
            max_new_tokens=self.max_new_tokens,
            label=self._label(f"answers of {len(adapters)} candidates", variant),
            on_done=save,
        )

    def measure_proxy(
        self, adapter: Adapter | None, label: str, data: SearchData
    ) -> dict[str, Measured]:
        """Measure likelihoods on some of the data with every prompt variant, without generation.

        The likelihoods are cached for ``measure``.
        """
        return {
            variant.name: self._read(adapter, label, data, variant) for variant in self.variants
        }

    def measure(self, adapter: Adapter | None, label: str) -> dict[str, Measured]:
        """Measure likelihoods and answers with every prompt variant, by the name of the variant.

        Cached likelihoods of a proxy evaluation and cached answers of a batch are reused. MMLU has
        its own prompts and is measured once.
        """
        if self.server is not None:
            self.answer({label: adapter})
        measured = {}
        for index, variant in enumerate(self.variants):
            cache = EvaluationCache(
                documents=EvaluationCache(self._likelihoods(label, variant)).documents,
                completions=EvaluationCache(self._answers(label, variant)).completions,
            )
            one = self if index == 0 else replace(self, mmlu=None)
            measured[variant.name] = one._measure(
                adapter, label, self.data, self.max_new_tokens, cache, variant
            )
        return measured

    def measure_leaks(
        self, adapter: Adapter | None, label: str, names: Collection[str], spec: SearchSpec
    ) -> list[Score]:
        """Measure cheap proxies of the attacks ``quantise`` and ``relearn`` on the forget rows.

        ``leak4bit`` is the share of answers that greedy decoding reproduces with weights rounded to
        4 bits; ``relearn`` is the same share after ``RELEARN`` steps on the retain rows and those
        of ``rows_to_relearn``, for the other forget rows. Both are the worst case over the prompt
        variants.

        Args:
            names: Names from ``objective.ATTACKED`` to measure.

        Returns:
            Scores on all rows and on both splits.
        """
        scores: list[Score] = []
        change = nullcontext() if adapter is None else applied(self.model, adapter, self.buffers)
        with change:
            if "leak4bit" in names:
                with rounded(self.model, 4, 64):
                    read = self._forget_read(self.model, f"{label}, 4 bits")
                scores += leak_scores("leak4bit", read, frozenset(), spec)
            if "relearn" in names:
                shown = rows_to_relearn(self.data.forget)
                points = tune(
                    self.model, self.tokenizer, [*shown, *self.data.retain], RELEARN,
                    lambda policy, step: {"measured": {} if step < RELEARN.steps else
                                          self._forget_read(policy, f"{label} relearned")},
                    label=f"{label} relearns", template=self.variants[0],
                )  # fmt: skip
                ids = frozenset(row.id for row in shown)
                scores += leak_scores("relearn", points[-1]["measured"], ids, spec)
        return scores

    def _forget_read(self, model: Any, label: str) -> dict[str, Measured]:
        """Read the likelihoods of the forget answers of the model as it is, by prompt variant."""
        return {
            variant.name: measure(
                model, self.tokenizer, forget=self.data.forget, retain=[], members=[],
                nonmembers=[], max_new_tokens=0, template=variant, label=label,
            )
            for variant in self.variants
        }  # fmt: skip

    def _sound(self, adapter: Adapter | None, label: str) -> bool:
        """Measure the likelihoods, and return whether they are finite."""
        try:
            for variant in self.variants:
                self._read(adapter, label, self.data, variant)
        except NumericError:
            return False
        return True

    def _read(
        self, adapter: Adapter | None, label: str, data: SearchData, variant: PromptTemplate
    ) -> Measured:
        path = self._likelihoods(label, variant)
        cache = EvaluationCache(documents=EvaluationCache(path).documents)
        measured = self._measure(adapter, label, data, 0, cache, variant)
        write_jsonl(path, [{"key": key, **asdict(one)} for key, one in cache.documents.items()])
        return replace(measured, answers=[])

    def _likelihoods(self, label: str, variant: PromptTemplate) -> Path:
        return self.cache_folder / f"{self._file(label, variant)}.jsonl"

    def _answers(self, label: str, variant: PromptTemplate) -> Path:
        return self.cache_folder / f"{self._file(label, variant)}.answers.jsonl"

    def _file(self, label: str, variant: PromptTemplate) -> str:
        if variant is self.variants[0]:
            return label
        return f"{label}.{variant.name}-{hashlib.sha256(variant.key.encode()).hexdigest()[:8]}"

    def _label(self, label: str, variant: PromptTemplate) -> str:
        return label if len(self.variants) == 1 else f"{label} ({variant.name})"

    def _measure(
        self,
        adapter: Adapter | None,
        label: str,
        data: SearchData,
        max_new_tokens: int,
        cache: EvaluationCache,
        variant: PromptTemplate,
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
                template=variant,
                label=self._label(label, variant),
                cache=cache,
            )
        if self.data.levels:
            measured = replace(
                measured, losses=[with_level(x, self.data.levels, variant) for x in measured.losses]
            )
        return replace(measured, mmlu_shots=asks.mmlu_shots) if asks else measured


def _written(adapter: Adapter | None, folder: Path) -> Path | None:
    """Write an adapter to a PEFT folder.

    Raises:
        UnfitError: It has tensors besides the factors, which vLLM does not load.
    """
    if adapter is None:
        return None
    if adapter.extras or adapter.embeddings:
        raise UnfitError("vLLM loads LoRA factors only, and the candidates have other tensors.")
    write_adapter(adapter, folder)
    return folder


def load_evaluator(
    recipe: Recipe,
    base: str,
    data: SearchData,
    device: str | None,
    cache_folder: Path,
    asks: bool,
    variants: Sequence[PromptTemplate],
    rank: int = 0,
) -> Evaluator:
    """Load the base model for the evaluation of candidates.

    Args:
        asks: Whether the objective reads MMLU, if the recipe names its folder.
        rank: Largest rank of a candidate, for vLLM.
    """
    from mergeforget.model_files import locate
    from mergeforget.models import load_model

    loaded = load_model(recipe.model.model_copy(update={"name": base}), device=device)
    spec, trust = recipe.evaluation, recipe.model.trust_remote_code
    server = None
    if spec.backend == "vllm":
        imported_vllm()
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        path = locate(base, trust_remote_code=trust)
        server = Server(path, dtype, rank, trust, at_once=MOST)
    return Evaluator(
        loaded.model,
        loaded.tokenizer,
        data,
        spec.max_new_tokens,
        cache_folder,
        spec.membership,
        mmlu=spec if asks and spec.mmlu else None,
        variants=variants,
        server=server,
    )
