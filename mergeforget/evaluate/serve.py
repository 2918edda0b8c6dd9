"""Generation with vLLM instead of transformers; needs the extra ``serve`` and a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import UsageError
from mergeforget.evaluate.generate import answer_from, stop_ids

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
    """

    path: Path
    dtype: str
    rank: int = 0
    trust_remote_code: bool = False
    adapter: Path | None = None
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
        on_done: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Generate greedily; ``model`` supplies the stop tokens, and vLLM forms the batches."""
        vllm = _imported()
        engine = self._started(vllm)
        settings = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=stop_ids(model, tokenizer, template),
            skip_special_tokens=True,
        )
        asked = [{"prompt_token_ids": template.prompt_ids(tokenizer, p)} for p in prompts]
        found = engine.generate(asked, settings, lora_request=self._lora(), use_tqdm=False)
        ids = [list(one.outputs[0].token_ids) for one in found]
        texts = [
            answer_from(tokenizer, template, prompt, new)
            for prompt, new in zip(prompts, ids, strict=True)
        ]
        for place, text in enumerate(texts):
            if on_done is not None:
                on_done(place, text)
        return texts

    def _started(self, vllm: Any) -> Any:
        if self._engine is None:
            lora = {"enable_lora": True, "max_lora_rank": _fitting(self.rank)} if self.rank else {}
            self._engine = vllm.LLM(
                model=str(self.path),
                dtype=self.dtype,
                gpu_memory_utilization=MEMORY,
                trust_remote_code=self.trust_remote_code,
                seed=0,
                **lora,
            )
        return self._engine

    def _lora(self) -> Any:
        if self.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        from mergeforget.model_files import content_of

        number = int(content_of(self.adapter)[:7], 16) + 1  # vLLM identifies adapters by number
        return LoRARequest(self.adapter.name, number, str(self.adapter))


def _imported() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            f"The backend vllm needs the package vllm ({error}). Install it: {INSTALL}; or omit "
            "--backend to generate with transformers."
        ) from error
    return vllm


def _fitting(rank: int) -> int:
    """Return the smallest rank that vLLM accepts and that is at least the adapter's."""
    return next((r for r in RANKS if r >= rank), rank)
