"""Answers written by vLLM instead of transformers; needs the extra ``serve`` and a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.errors import UsageError
from mergeforget.evaluate.generate import stop_ids

INSTALL = "pip install 'mergeforget[serve]'"
MEMORY = 0.45  # of the GPU: the model that reads likelihoods lies there as well
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for the largest LoRA


@dataclass
class Server:
    """One base model in vLLM; adapters are put on it by their folder.

    Called as ``generate`` is, and gives the same text but for near ties between two tokens, since
    its kernels round in another order.

    Attributes:
        path: folder of the base.
        dtype: as transformers has it, for example ``bfloat16``.
        rank: the largest rank of the adapters; 0 where there are none.
        adapter: folder of the adapter in use; None is the base alone.
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
        """Greedy completions; ``model`` tells what ends a text, and batches are vLLM's own."""
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
        texts = [str(tokenizer.decode(new, skip_special_tokens=True)) for new in ids]
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

        from mergeforget.models import content_of

        number = int(content_of(self.adapter)[:7], 16) + 1  # vLLM keeps adapters by number
        return LoRARequest(self.adapter.name, number, str(self.adapter))


def _imported() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            f"The backend vllm needs the package vllm ({error}). Install it: {INSTALL}; or leave "
            "--backend out, and transformers writes the answers."
        ) from error
    return vllm


def _fitting(rank: int) -> int:
    """The smallest rank that vLLM takes and that the adapter fits into."""
    return next((r for r in RANKS if r >= rank), rank)
