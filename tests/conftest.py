"""A tiny random model and its tokenizer, built here: nothing is downloaded."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("mergeforget", deadline=None)  # no deadline: the machine may be busy
settings.load_profile("mergeforget")

LORA_MODULES = {  # (out, in) of the modules that write_lora adapts
    "model.layers.0.mlp.up_proj": (16, 10),
    "model.layers.0.self_attn.q_proj": (12, 10),
    "model.layers.1.mlp.up_proj": (16, 10),
}
CHAT_TEMPLATE = (  # as SmolLM2's, without a default system message
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|unk|>", "<|start|>", "<|end|>"]  # ids 0, 1, 2


def build_tokenizer() -> Any:
    """One token per byte, so every text is decoded unchanged; no BOS is added, as in SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    unk, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=eos
    )


def build_model(seed: int = 0, layers: int = 2) -> Any:
    """A Llama of 2 layers and 32 dimensions with grouped-query attention, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", autouse=True)
def skip_imported_modules_in_garbage_collections() -> None:
    """Move the objects alive at the start of a test module to the permanent generation.

    The imported libraries hold about 450 000 objects. A garbage collection that visits them takes
    0.5 s, and accelerate calls `gc.collect` twice per training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model and its tokenizer as a plain folder with safetensors; do not write there."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Builds a tiny model: ``make_model(seed=0, layers=2)``."""
    return build_model


@pytest.fixture(scope="session")
def knowing(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Path]:
    """A tiny model that has memorised forget and retain rows, and the files of the rows."""
    from memorising import write_knowing

    return write_knowing(tmp_path_factory.mktemp("knowing"), build_model(), tiny_tokenizer)


@pytest.fixture(scope="session")
def result(knowing: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of `unlearn` on the rows of ``knowing``, with one attack."""
    from unlearning import call

    return call(knowing, tmp_path_factory.mktemp("unlearned") / "run", attacks=["quantise"])


@pytest.fixture
def train(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> Callable[..., Any]:
    """Trains an adapter of the tiny model: ``train(name="a", sets=TWO, **settings)``.

    Returns the weights of the adapter and the history of the training.
    """
    from short_training import TWO, train_short

    def run(name: str = "a", sets: Any = TWO, **more: Any) -> Any:
        return train_short(tmp_path / name, make_model(), tiny_tokenizer, sets, **more)

    return run


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """Writes a random LoRA of the tiny model: ``save_adapter(folder, seed=1, layers=2)``."""

    def save(folder: Path, seed: int = 1, layers: int = 2, scale: float = 1.0) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
        model = get_peft_model(build_model(layers=layers), config)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        model.save_pretrained(str(folder))
        return folder

    return save


@pytest.fixture(scope="session")
def save_models() -> Callable[..., list[Path]]:
    """Writes the tiny model and two that differ: ``save_models(folder, apart=.02, dtype=None)``."""

    def save(folder: Path, apart: float = 0.02, dtype: Any = None) -> list[Path]:
        import torch

        for seed, name in enumerate(("base", "one", "two")):
            model = build_model()
            torch.manual_seed(seed)
            for parameter in model.parameters() if seed else ():
                parameter.data += apart * torch.randn_like(parameter)
            model.to(dtype).save_pretrained(folder / name)
        return [folder / name for name in ("base", "one", "two")]

    return save


@pytest.fixture
def write_lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes random factors as PEFT would, without a model or torch.

    ``write_lora(name, seed=0, rank=3, modules={name: (out, in)}, tensors={...}, **config)``:
    ``tensors`` are added to the file, ``config`` to ``adapter_config.json``.
    """
    import numpy as np

    from mergeforget.adapter import PREFIX
    from mergeforget.tensors import write_safetensors

    def write(
        name: str,
        seed: int = 0,
        *,
        rank: int = 3,
        modules: dict[str, tuple[int, int]] | None = None,
        tensors: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        draw = np.random.default_rng(seed)
        every: dict[str, Any] = {}
        for module, (rows, columns) in (modules or LORA_MODULES).items():
            a = draw.standard_normal((rank, columns)).astype(np.float32)
            b = draw.standard_normal((rows, rank)).astype(np.float32)
            every |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        folder = tmp_path / name
        folder.mkdir()
        write_safetensors(folder / "adapter_model.safetensors", every | (tensors or {}))
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": "base",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": ["q_proj", "up_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings | config))
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def tiny_model() -> Any:
    """A fresh tiny model, the same weights for every test."""
    return build_model()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("MERGEFORGET_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; name their folder in MERGEFORGET_DATA")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run folder with every file an analysis or a report reads; tests must not change it."""
    from finished_run import write_run

    return write_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run whose texts attack the page, analysed and reported; not to be changed."""
    from finished_run import write_run

    from mergeforget.analysis.report import write_report

    run = write_run(tmp_path_factory.mktemp("runs") / "hostile", hostile=True)
    write_report(run)
    return run


def short_rows(split: str, documents: int = 4) -> list[dict[str, str]]:
    """Documents of a few words, each a completion and a question."""
    from mergeforget.data.schema import Row

    made = []
    for i in range(documents):
        made.append(Row(f"{split}{i}-sc1", f"{split} {i} lives", f"in house {i * i}", "T", split))
        made.append(Row(f"{split}{i}-qa0", f"Where is {split} {i}?", f"{i * i}", "T", split))
    return [row.to_dict() for row in made]


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, save_adapter: Callable[..., Any]
) -> Any:
    """A run of the tiny model with data and a pair, made without training; do not write there."""
    from mergeforget.files import write_jsonl
    from mergeforget.recipe import change, load_recipe, save_recipe
    from mergeforget.run import Run

    run = Run(tmp_path_factory.mktemp("runs") / "tiny")
    recipe = change(
        load_recipe("zjuklab"),
        model={"name": str(tiny_folder)},
        evaluation={"max_new_tokens": 3},
        search={"densities": [0.2, 0.5, 0.8]},
    )
    save_recipe(recipe, run.recipe)
    for split in ("forget", "retain", "holdout"):
        write_jsonl(run.data / f"{split}.jsonl", short_rows(split))
    save_adapter(run.over, seed=1, scale=0.05)
    save_adapter(run.under, seed=2, scale=0.02)
    return run
