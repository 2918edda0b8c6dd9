"""Sections of a recipe for everything but a training: model, data, merge, search, evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mergeforget.candidate import DEFAULT
from mergeforget.train_config import NotNegative, Positive, RecipeSection


def _densities(value: Any) -> Any:
    """Parse ``0.1:1.0:0.1`` (both ends included), ``0.3,0.5`` or a list."""
    if not isinstance(value, str):
        return value
    if ":" not in value:
        return [float(v) for v in value.split(",")]
    low, high, step = (float(v) for v in value.split(":"))
    if step <= 0 or high < low:
        raise ValueError("write LOW:HIGH:STEP with LOW <= HIGH and STEP > 0, e.g. 0.1:1.0:0.1")
    return [round(low + i * step, 10) for i in range(int((high - low) / step + 1e-9) + 1)]


Density = Annotated[float, Field(gt=0, le=1)]
Densities = Annotated[list[Density], BeforeValidator(_densities), Field(min_length=1)]


class ModelSpec(RecipeSection):
    """The model before unlearning, and how it is loaded."""

    name: str = "smollm2"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["4bit"] | None = None  # quantise the frozen base of an adapter (QLoRA)
    trust_remote_code: bool = False
    attention: Literal["auto", "sdpa", "flash", "flex", "eager"] = "auto"  # attention kernel
    cache: Literal["auto", "static", "dynamic"] = "dynamic"  # of decoding; static: of a fixed size


class DataSpec(RecipeSection):
    """Files of rows, and the rendering of prompts.

    Attributes:
        columns: Column names of the files by column (id, input, output, task, weight, subject).
        template: ``chat`` renders prompts with the tokenizer's chat template, ``none`` uses the raw
            text, ``auto`` is ``chat`` if the tokenizer has a template.
        system_prompt: System message of a chat, for rows without their own.
        turns: Assistant turns of a conversation that become rows.
    """

    forget: str | None = None
    retain: str | None = None
    holdout: str | None = None
    columns: dict[str, str] = {}
    template: Literal["auto", "none", "chat"] = "auto"
    system_prompt: str | None = None
    turns: Literal["last", "every"] = "last"
    limit: Positive | None = None
    seed: int = 0


class Memorise(RecipeSection):
    """Full fine-tuning of the base on forget and retain rows, before unlearning.

    Attributes:
        stop_at: End after an epoch whose mean loss is at most this many nats per token; None trains
            every epoch.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    epochs: Positive = 12
    batch_size: Positive = 4
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    max_length: Positive = 512
    seed: int = 42
    trained: Literal["answers", "documents"] = "documents"
    stop_at: Annotated[float, Field(gt=0)] | None = None


class MergeSpec(RecipeSection):
    """Default merge of `mergeforget merge RUN`."""

    method: str = DEFAULT.method
    density: Density | None = DEFAULT.density
    weights: list[float] = list(DEFAULT.weights)
    space: Literal["factors", "delta"] = DEFAULT.space
    rank: Positive | None = DEFAULT.rank
    seed: int = DEFAULT.seed
    precision: Literal["float32", "float64"] = "float32"
    arguments: dict[str, Any] = {}


class SearchSpec(RecipeSection):
    """Search space, strategy and objective of `mergeforget search`."""

    methods: Annotated[list[str], Field(min_length=1)] = [DEFAULT.method]
    densities: Densities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    weights: Annotated[list[list[float]], Field(min_length=1)] = [list(DEFAULT.weights)]
    spaces: Annotated[list[Literal["factors", "delta"]], Field(min_length=1)] = [DEFAULT.space]
    ranks: Annotated[list[Positive | None], Field(min_length=1)] = [DEFAULT.rank]
    groups: Positive = 1  # layer groups with separate densities
    strategy: Literal["grid", "refine", "tpe", "nsga2"] = "grid"
    finalists: Positive | None = None  # None: all of a grid, else a fifth
    together: Positive | None = None  # candidates per batch; None: as many as fit
    objective: str = "mia"
    choose_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    seed: int = 0


NEW_TOKENS = {"tofu": 200, "muse": 128, "rwku": 30}  # tokens per answer by benchmark; otherwise 256
UNITS = {"tofu": "answers"}  # text judged as member by benchmark; otherwise documents


class EvaluationSpec(RecipeSection):
    """Metrics of an evaluation, and the models to compare with.

    Attributes:
        metrics: Additional metrics, each as ``NAME`` or ``NAME/SPLIT``.
        rows: Files of further splits, such as ``real_authors``, or of forget and retain rows that
            replace the trained ones.
        retrained: A model that was trained without the forget set, the folder of its adapter, or
            the file of its measurements.
        reference: Model whose loss per document is subtracted in membership inference.
        utility: Score that the floor applies to; by default MMLU, otherwise TOFU's model utility.
        floor: Minimum ratio of the score to that of the base.
        lm_eval: Names of lm-eval tasks; ``lm_eval_folder`` contains further tasks.
        backend: Library that generates the answers.
        ask: ``all`` asks a model with a chat template raw and in chat, and reports the worst
            case; ``own`` uses only ``data.template``.
        system_prompts: Further system messages to ask with; each is one more prompt variant.
    """

    benchmark: str = "semeval2025-task4"
    metrics: list[str] = []
    max_new_tokens: Positive = 256
    limit: Positive | None = None
    membership: Literal["documents", "rows", "answers"] = "documents"
    mmlu: str | None = None
    mmlu_shots: Annotated[int, Field(ge=0, le=5)] = 5
    mmlu_limit: Positive | None = None  # questions per subject; None: limit
    rows: dict[str, str] = {}
    retrained: str | None = None
    reference: str | None = None
    gradient_norm: bool = False
    utility: str | None = None
    floor: Annotated[float, Field(ge=0, le=1)] = 0.75
    lm_eval: list[str] = []
    lm_eval_folder: str | None = None
    backend: Literal["transformers", "vllm"] = "transformers"
    ask: Literal["all", "own"] = "all"
    system_prompts: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_benchmark(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = (("max_new_tokens", NEW_TOKENS), ("membership", UNITS))
        name = str(values.get("benchmark"))
        return {key: by[name] for key, by in own if name in by} | values
