"""Measures one base model with any adapter, and caches measurements by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeforget.adapter import read_adapter
from mergeforget.benchmarks import BENCHMARKS
from mergeforget.console import say
from mergeforget.data.prompt_variants import variants_to_ask
from mergeforget.data.schema import Measured
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.distributed import ALONE, RankShare
from mergeforget.evaluate.cache import EvaluationCache, document_key, prompt_key, rank_files
from mergeforget.evaluate.lm_eval import run_task, task_key
from mergeforget.evaluate.measure import Generator, measure
from mergeforget.evaluate.mmlu import ask_mmlu, mmlu_key
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.serve import Server
from mergeforget.recipe import DataSpec, EvaluationSpec, ModelSpec

TOKENS = 3  # version of how rows become tokens; measurements of an earlier one are not reused


@dataclass
class Evaluation:
    """A base model, the rows and the settings of an evaluation; loads the model when needed.

    Attributes:
        base: Name or folder of the model.
        folder: Folder of the cached measurements.
        rank: Largest rank of the adapters to be evaluated.
        data: Selects how prompts are rendered: ``template`` and ``system_prompt``.
        sharing: The processes that share the rows.
        chat_from: Adapter folder whose chat template is used, if it has one.
    """

    base: str
    spec: ModelSpec
    settings: EvaluationSpec
    rows: EvaluationRows
    folder: Path
    device: str | None = None
    batch_tokens: int | None = None
    rank: int = 0
    sharing: RankShare = ALONE
    data: DataSpec = DataSpec()
    chat_from: Path | None = None
    _variants: list[PromptTemplate] = field(default_factory=list)
    _loaded: Any = None
    _server: Server | None = None
    _loaded_tokenizer: Any = field(default=None, init=False)
    _template_from: Path | None = field(default=None, init=False)  # ``chat_from`` at that time
    _hashes: dict[Path, str] = field(default_factory=dict)

    def varied(
        self, rows: EvaluationRows, settings: EvaluationSpec, base: str | None = None
    ) -> Evaluation:
        """Return a copy with other rows and settings, or with another base."""
        changed = replace(self, rows=rows, settings=settings, base=base or self.base)
        if base is not None:
            changed._loaded = changed._server = None
            changed._variants = []
        else:
            changed._loaded_tokenizer = self._loaded_tokenizer
            changed._template_from = self._template_from
        return changed

    def variants(self) -> list[PromptTemplate]:
        """Return the prompt variants, the configured one first; see ``variants_to_ask``.

        Only the configured one is returned for ``ask: own``, or if all rows are windows of
        documents, which are never rendered with a template.
        """
        if not self._variants:
            tokenizer = self._tokenizer()
            rows = [*self.rows.forget, *self.rows.retain, *self.rows.further]
            rows += [*self.rows.members, *self.rows.nonmembers]
            variants = variants_to_ask(
                tokenizer, self.data, rows, self.settings.ask, self.settings.system_prompts
            )
            as_written = self._traits.get("as_written", ())
            self._variants = [replace(variant, as_written=as_written) for variant in variants]
        return self._variants

    def run_variants(
        self, adapter: Path | None, label: str, *, again: bool = False
    ) -> dict[str, Measured]:
        """Call ``run`` for every prompt variant, by its name; MMLU and lm-eval run once."""
        first, *others = self.variants()
        by_variant = {first.name: self.run(adapter, label, again=again, variant=first)}
        settings = self.settings.model_copy(update={"mmlu": None, "lm_eval": []})
        for variant in others:
            one = self.varied(self.rows, settings)
            by_variant[variant.name] = one.run(
                adapter, f"{label} ({variant.name})", again=again, variant=variant
            )
            self._loaded, self._server = one._loaded, one._server
        return by_variant

    def run(
        self,
        adapter: Path | None,
        label: str,
        *,
        again: bool = False,
        variant: PromptTemplate | None = None,
    ) -> Measured:
        """Measure the base with or without an adapter; measurements are cached.

        Args:
            again: Ignore cached measurements.
            variant: Prompt variant; the configured template by default.
        """
        variant = variant or self.variants()[0]
        path = self.folder / f"{self.fingerprint(adapter, variant)}.jsonl"
        if again:
            self.sharing.wait()
            for file in (path, *rank_files(path)):
                file.unlink(missing_ok=True)
        cache = EvaluationCache(path, self.sharing)
        if self._complete(cache):
            if self.sharing.main:
                say(f"{label}: using cached measurements; --again measures again.")
            return self._measure(None, cache, label, variant)
        loaded = self.loaded()
        with self._applied(adapter):
            if self.settings.mmlu and cache.mmlu is None:
                counts = self._mmlu()
                if self.sharing.main:
                    cache.save_mmlu(counts)
            self._run_tasks(cache)
            return self._measure(loaded.model, cache, label, variant, adapter)

    def fingerprint(self, adapter: Path | None, variant: PromptTemplate = RAW) -> str:
        """Return a hash of the weights and of every setting that affects the measurements."""
        from mergeforget.model_files import locate
        from mergeforget.models import main_device

        facts = {
            "base": self._hash(locate(self.base, trust_remote_code=self.spec.trust_remote_code)),
            "adapter": self._hash(adapter) if adapter else "",
            "dtype": self.spec.dtype,
            "device": main_device(self.device).split(":")[0],
            "membership": self.settings.membership,
            "max_new_tokens": self.settings.max_new_tokens,
            "mmlu": mmlu_key(self.settings),
            "tokens": TOKENS,
        }
        if variant.key != RAW.key:
            facts["template"] = variant.key
        if self.settings.backend != "transformers":
            facts["backend"] = self.settings.backend
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def loaded(self) -> Any:
        """Return the base model and its tokenizer, loaded once."""
        if self._loaded is None:
            from mergeforget.model_adapters import adopt_template
            from mergeforget.models import load_model

            spec = self.spec.model_copy(update={"name": self.base})
            self._loaded = load_model(spec, device=self.device)
            adopt_template(self._loaded.tokenizer, self.chat_from)
        return self._loaded

    @contextmanager
    def _applied(self, adapter: Path | None) -> Iterator[None]:
        from mergeforget.merge.apply import applied

        read = read_adapter(adapter) if adapter else None
        with applied(self.loaded().model, read) if read else nullcontext():
            yield

    def _tokenizer(self) -> Any:
        if self._loaded is not None:
            return self._loaded.tokenizer
        if self._loaded_tokenizer is None or self._template_from != self.chat_from:
            from mergeforget.model_adapters import adopt_template
            from mergeforget.models import load_tokenizer

            tokenizer = load_tokenizer(self.spec.model_copy(update={"name": self.base}))
            adopt_template(tokenizer, self.chat_from)
            self._loaded_tokenizer, self._template_from = tokenizer, self.chat_from
        return self._loaded_tokenizer

    def _mmlu(self) -> dict[str, tuple[int, int]]:
        loaded, more = self.loaded(), {"batch_tokens": self.batch_tokens, "sharing": self.sharing}
        return ask_mmlu(loaded.model, loaded.tokenizer, self.settings, **more)

    def _run_tasks(self, cache: EvaluationCache) -> None:
        """Run the lm-eval tasks in the main process only; lm-eval distributes rows differently."""
        loaded = self.loaded()
        for task, key in self._task_keys().items():
            if self.sharing.main and key not in cache.tasks:
                scores = run_task(
                    loaded.model,
                    loaded.tokenizer,
                    task,
                    folder=self._task_folder(),
                    limit=self.settings.limit,
                )
                cache.save_task(key, scores)
        cache.gather()  # includes the MMLU counts

    def _task_keys(self) -> dict[str, str]:
        folder, limit = self._task_folder(), self.settings.limit
        return {task: task_key(task, folder, limit) for task in self.settings.lm_eval}

    def _task_folder(self) -> Path | None:
        return Path(self.settings.lm_eval_folder) if self.settings.lm_eval_folder else None

    def _measure(
        self,
        model: Any,
        cache: EvaluationCache,
        label: str,
        variant: PromptTemplate,
        adapter: Path | None = None,
    ) -> Measured:
        measured = measure(
            model,
            self._tokenizer(),
            forget=self.rows.forget,
            retain=self.rows.retain,
            members=self.rows.members,
            nonmembers=self.rows.nonmembers,
            further=self.rows.further,
            max_new_tokens=self.settings.max_new_tokens,
            batch_tokens=self.batch_tokens,
            membership=self.settings.membership,
            template=variant,
            gradient_norm=self.settings.gradient_norm,
            generator=self._generator(adapter),
            mmlu=cache.mmlu,
            truncated=self._traits.get("truncated", ()),
            label=label,
            cache=cache,
        )
        known = [score for key in self._task_keys().values() for score in cache.tasks[key]]
        return replace(measured, known=known, mmlu_shots=self.settings.mmlu_shots)

    @property
    def _traits(self) -> Mapping[str, Any]:
        """Statements of the benchmark's decorator about the published code."""
        return BENCHMARKS.get(self.settings.benchmark).traits

    def _generator(self, adapter: Path | None) -> Generator | None:
        """Return the generation backend; None means transformers."""
        if self.settings.backend != "vllm":
            return None
        if self._server is None:
            from mergeforget.model_files import locate
            from mergeforget.models import dtype_for, main_device

            path = locate(self.base, trust_remote_code=self.spec.trust_remote_code)
            dtype = str(dtype_for(self.spec, main_device(self.device)))
            self._server = Server(
                path, dtype.removeprefix("torch."), self.rank, self.spec.trust_remote_code
            )
        self._server.adapter = adapter
        return self._server

    def _complete(self, cache: EvaluationCache) -> bool:
        asked = [*self.rows.forget, *self.rows.retain, *self.rows.further]
        documents = [*self.rows.members, *self.rows.nonmembers]
        needed = [*asked, *(other for row in asked for other in row.alternatives), *documents]
        return (
            all(prompt_key(row) in cache.completions for row in asked)
            and all(document_key(row) in cache.documents for row in needed)
            and not (
                self.settings.gradient_norm
                and any(document_key(row) not in cache.gradients for row in documents)
            )
            and all(key in cache.tasks for key in self._task_keys().values())
            and (not self.settings.mmlu or cache.mmlu is not None)
        )

    def _hash(self, folder: Path) -> str:
        """Return the content hash of a model or adapter folder, computed once."""
        if folder not in self._hashes:
            from mergeforget.model_files import content_of

            self._hashes[folder] = content_of(folder)
        return self._hashes[folder]
