"""Generation with vLLM instead of transformers; needs the extra ``serve`` and a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import UsageError
from mergeforget.evaluate.completion import Completion
from mergeforget.evaluate.generate import ends_of

INSTALL = "pip install 'mergeforget[serve]'"
MEMORY = 0.45  # share of the GPU memory; the transformers model needs the rest
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for max_lora_rank


@dataclass
class Server:
    """A base model in vLLM, with LoRA adapters loaded from their folders.

    Has the signature of ``generate`` and returns the same texts, except for near ties between two
    tokens, because its kernels round in a different order.

    Attributes:
        path: Folder of the base.
        dtype: Data type as named by transformers, for example ``bfloat16``.
        rank: Largest rank of the adapters; 0 if there are none.
        adapter: Folder of the adapter in use; None for the base alone.
        at_once: Largest number of adapters in one batch.
    """

    path: Path
    dtype: str
    rank: int = 0
    trust_remote_code: bool = False
    adapter: Path | None = None
    at_once: int = 1
    _engine: Any = None

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str | Row],
        *,
        template: PromptTemplate = RAW,
        max_new_tokens: int = 256,
        batch_tokens: int | None = None,
        label: str = "Generate",
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[str]:
        """Generate greedily; ``model`` supplies the stop tokens, and vLLM forms the batches."""
        lora = self._lora(self.adapter)
        found = self._generated(model, tokenizer, prompts, lora, template, max_new_tokens)
        for place, one in enumerate(found):
            if on_done is not None:
                on_done(place, one)
        return [
            one.answer(tokenizer, template, prompt)
            for prompt, one in zip(prompts, found, strict=True)
        ]

    def together(
        self,
        model: Any,
        tokenizer: Any,
        adapters: Sequence[Path | None],
        prompts: Sequence[Sequence[str | Row]],
        *,
        template: PromptTemplate = RAW,
        max_new_tokens: int = 256,
        on_done: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[str]]:
        """Generate greedily with several adapters in the same batches, as ``generate_together``.

        Args:
            adapters: Folders of the adapters; None for the base alone.
            prompts: Prompts of each adapter.
            on_done: Called with the index of an adapter, the index of a prompt, and the completion.

        Returns:
            Answers of each adapter, in the order of its prompts.
        """
        places = [(i, j) for i, own in enumerate(prompts) for j in range(len(own))]
        requests = [self._lora(adapter) for adapter in adapters]
        found = self._generated(
            model, tokenizer, [prompts[i][j] for i, j in places],
            [requests[i] for i, _ in places], template, max_new_tokens,
        )  # fmt: skip
        for (i, j), one in zip(places, found, strict=True):
            if on_done is not None:
                on_done(i, j, one)
        following = iter(found)
        return [
            [next(following).answer(tokenizer, template, prompt) for prompt in own]
            for own in prompts
        ]

    def _generated(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str | Row],
        lora: Any,
        template: PromptTemplate,
        max_new_tokens: int,
    ) -> list[Completion]:
        """Generate with one adapter, or with one per prompt if ``lora`` is a list."""
        vllm = imported_vllm()
        stop, text_stops = ends_of(model, tokenizer, template, prompts)
        engine = self._started(vllm)
        settings = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=stop,
            skip_special_tokens=True,
        )
        asked = [{"prompt_token_ids": template.prompt_ids(tokenizer, p)} for p in prompts]
        found = engine.generate(asked, settings, lora_request=lora, use_tqdm=False)
        return [Completion.of(list(one.outputs[0].token_ids), stop, text_stops) for one in found]

    def _started(self, vllm: Any) -> Any:
        if self._engine is None:
            lora = {"enable_lora": True, "max_lora_rank": _fitting(self.rank),
                    "max_loras": self.at_once} if self.rank else {}  # fmt: skip
            self._engine = vllm.LLM(
                model=str(self.path),
                dtype=self.dtype,
                gpu_memory_utilization=MEMORY,
                trust_remote_code=self.trust_remote_code,
                seed=0,
                **lora,
            )
        return self._engine

    def _lora(self, adapter: Path | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        from mergeforget.model_files import content_of

        number = int(content_of(adapter)[:7], 16) + 1  # vLLM identifies adapters by number
        return LoRARequest(adapter.name, number, str(adapter))


def imported_vllm() -> Any:
    """Import vLLM, or raise UsageError with the way to install it."""
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            f"The backend vllm needs the package vllm ({error}). Install it: {INSTALL}; or omit "
            "--backend (evaluation.backend in a recipe) to generate with transformers."
        ) from error
    return vllm


def _fitting(rank: int) -> int:
    """Return the smallest rank that vLLM accepts and that is at least the adapter's."""
    return next((r for r in RANKS if r >= rank), rank)
