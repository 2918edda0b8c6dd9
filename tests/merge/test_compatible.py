"""Models and adapters that look alike but differ are merged, refused or reported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergeforget.adapter import PREFIX, read_adapter, write_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError
from mergeforget.merge.checkpoint.adapter_deltas import changes_of
from mergeforget.merge.checkpoint.full import _checkpoint_id, fold_adapters, merge_models
from mergeforget.merge.checkpoint.reader import open_checkpoint
from mergeforget.merge.engine import MergeSettings, merge_adapters
from mergeforget.tensors import read_safetensors, write_safetensors

HALVES = Candidate("linear", weights=(0.5, 0.5))


def save(folder: Path, tokenizer: bytes = b"", **config: Any) -> Path:
    """A model of one tensor."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", {"x.weight": np.ones((2, 3), np.float32)})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


def test_other_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", b"pieces"), save(tmp_path / "other", b"seceip")
    with pytest.raises(InputError, match="Tokenizer.model differs between"):
        merge_models([one, other], None, HALVES, tmp_path / "out")
    merge_models([one, other], None, HALVES, tmp_path / "out", same_base=True)
    same = save(tmp_path / "same", b"pieces")
    merge_models([one, same], None, HALVES, tmp_path / "again")


@pytest.mark.parametrize("order", [1, -1])
def test_a_setting_that_only_one_model_has_is_reported(
    order: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A long-context copy has rope_scaling, the original has no such key."""
    one = save(tmp_path / "one", attention_bias=False)
    other = save(tmp_path / "other", rope_scaling={"factor": 8.0}, pretraining_tp=None)
    merge_models([one, other][::order], None, HALVES, tmp_path / "out")
    told = capsys.readouterr().err
    assert "rope_scaling" in told and "not set" in told
    assert "attention_bias" not in told and "pretraining_tp" not in told


def test_a_base_changed_with_equal_time_and_size_is_detected(tmp_path: Path) -> None:
    """As by ``cp -p`` or ``rsync -t``: an interrupted merge must not be resumed with it."""
    folder = save(tmp_path / "one")
    weights = folder / "model.safetensors"
    times = os.stat(weights)
    with open_checkpoint(folder) as before:
        known = _checkpoint_id(before)
    write_safetensors(weights, {"x.weight": np.full((2, 3), 7, np.float32)})
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(weights).st_size == times.st_size
    with open_checkpoint(folder) as after:
        assert _checkpoint_id(after) != known


def test_keys_of_a_state_dict_equal_those_of_peft(write_lora: Callable[..., Path]) -> None:
    """Trainers that save a state dict leave the adapter's name and frozen copies in its keys."""
    path = write_lora("one") / "adapter_model.safetensors"
    factors, _ = read_safetensors(path)
    module = next(iter(factors)).removeprefix(PREFIX).partition(".lora_")[0]
    rows = factors[f"{PREFIX}{module}.lora_B.weight"].shape[0]
    draw = np.random.default_rng(0)
    magnitude, head = (draw.random(shape).astype("f4") for shape in ((rows,), (7, 3)))
    plain = {f"{module}.lora_magnitude_vector": magnitude, "lm_head.weight": head}
    named = {
        f"{module}.lora_magnitude_vector.default.weight": magnitude,
        "lm_head.modules_to_save.default.weight": head,
        "lm_head.original_module.weight": head * 2,
    }
    found = []
    for extras in (plain, named):
        write_safetensors(path, factors | {PREFIX + key: x for key, x in extras.items()})
        found.append(read_adapter(path.parent).extras)
    assert found[0].keys() == found[1].keys() == {PREFIX + key for key in plain}
    assert all(np.array_equal(found[1][key], x) for key, x in found[0].items())


PARAMETERS: dict[str, Any] = {
    "target_modules": [],
    "target_parameters": ["c_proj.weight", "c_fc.weight"],
}
CONV1D = {"h.0.attn.c_proj": (4, 4), "h.0.mlp.c_fc": (4, 16)}


def peft_scaling(config: dict[str, Any], key: str) -> float:
    """The scaling that PEFT's ``get_pattern_key`` finds for a module or parameter."""

    def find(name: str, default: float) -> float:
        matches = (v for k, v in config[name].items() if re.match(rf"(.*\.)?({k})$", key))
        return float(next(matches, default))

    return find("alpha_pattern", config["lora_alpha"]) / find("rank_pattern", config["r"])


def test_patterns_match_the_name_of_an_adapted_parameter(
    write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT looks up ``c_proj.weight``, so that a pattern ``c_fc`` has no effect."""
    patterns = {"alpha_pattern": {"c_proj.weight": 30, "c_fc": 99}, "rank_pattern": {"c_fc": 5}}
    one = read_adapter(write_lora("one", modules=CONV1D, **PARAMETERS, **patterns))
    assert {m: d.scaling for m, d in one.deltas.items()} == {
        "h.0.attn.c_proj": 10.0, "h.0.mlp.c_fc": 2.0,
    }  # fmt: skip
    write_adapter(one, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    for module, delta in one.deltas.items():
        assert peft_scaling(config, f"{module}.weight") == delta.scaling


def test_a_merge_of_different_modules_keeps_adapted_parameters(
    write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """As LoRA on a square Conv1D, the factors would be applied transposed."""
    one = read_adapter(write_lora("one", modules=CONV1D, **PARAMETERS))
    few = {"h.0.attn.c_proj": (4, 4)}
    other = read_adapter(write_lora("other", 1, modules=few, **PARAMETERS))
    merged = merge_adapters([one, other], Candidate("cat"), MergeSettings(modules="all"))
    write_adapter(merged.adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["target_modules"] == []
    assert config["target_parameters"] == [f"{module}.weight" for module in CONV1D]
    for module in CONV1D:
        assert peft_scaling(config, f"{module}.weight") == 1.0
    of_module = read_adapter(write_lora("module", modules=few, target_modules=["c_proj"]))
    for pair in ([one, of_module], [of_module, one]):
        with pytest.raises(InputError, match="'one' adapts the parameter of h.0.attn.c_proj"):
            merge_adapters(pair, Candidate("cat"), MergeSettings(modules="all"))


def test_a_module_whose_name_ends_another_name_keeps_its_own_scaling(
    write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT also matches a pattern with the end of a longer name."""
    shapes = {"lm_head": (9, 4), "decoder.lm_head": (9, 4)}
    one = read_adapter(write_lora("one", modules=shapes, alpha_pattern={"decoder.lm_head": 30}))
    write_adapter(one, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {m: peft_scaling(config, m) for m in shapes} == {"lm_head": 2, "decoder.lm_head": 10}
    again = read_adapter(tmp_path / "again")
    assert {m: d.scaling for m, d in again.deltas.items()} == {"lm_head": 2, "decoder.lm_head": 10}


@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True)])
def test_a_merge_stores_tied_factors_as_two_modules(
    tied: tuple[bool, bool], write_lora: Callable[..., Path]
) -> None:
    """PEFT writes the output layer's factors over the embedding's with ``ensure_weight_tying``,
    and leaves the output layer out of ``target_modules``."""
    shapes = {"lm_head": (9, 4), "model.q_proj": (4, 4)}
    pair = [
        read_adapter(write_lora(f"lora{i}", i, modules=shapes, ensure_weight_tying=tied[i]))
        for i in range(2)
    ]
    config = merge_adapters(pair, Candidate("linear")).adapter.config
    assert config["ensure_weight_tying"] is False
    assert config["target_modules"] == ["lm_head", "model.q_proj"]


def test_a_parameter_is_changed_as_it_is_stored(write_lora: Callable[..., Path]) -> None:
    """``target_parameters`` of a Conv1D adapt (in, out), ``target_modules`` (out, in)."""
    shapes: list[tuple[int, int]] = []
    for parameters in ({}, {"target_parameters": ["attn.c_proj.weight"]}):
        name = f"lora{len(shapes)}"
        folder = write_lora(name, modules={"h.0.attn.c_proj": (5, 4)}, **parameters)
        change = changes_of(read_adapter(folder), {"model_type": "gpt2"})["h.0.attn.c_proj.weight"]
        shapes.append(change.shape)
    assert shapes == [(4, 5), (5, 4)]


@pytest.mark.parametrize(
    ("embedding", "output"),
    [("backbone.embeddings", "lm_head.weight"), ("model.embed_tokens", "lm_head.weight"),
     ("biogpt.embed_tokens", "output_projection.weight"), ("bert.embeddings.word_embeddings", None),
     ("encoder.embeddings.word_embeddings", None)],
)  # fmt: skip
def test_a_changed_embedding_leaves_the_output_layer_unchanged(
    embedding: str, output: str | None, write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """As in PEFT. Mamba and BioGPT have other names; an encoder has no output layer, or one with a
    bias, which no checkpoint stores."""
    base, draw = tmp_path / "base", np.random.default_rng(0)
    base.mkdir()
    tensors = {f"{embedding}.weight": draw.random((7, 4)).astype("f4")}
    if embedding.startswith("bert"):
        tensors["cls.predictions.bias"] = draw.random(7).astype("f4")
    write_safetensors(base / "model.safetensors", tensors)
    (base / "config.json").write_text("{}")
    a, b = draw.random((3, 7)).astype("f4"), draw.random((4, 3)).astype("f4")
    folder = write_lora("one", modules={"x": (4, 4)})
    factors = {f"{PREFIX}{embedding}.lora_embedding_{n}": x for n, x in (("A", a), ("B", b))}
    write_safetensors(folder / "adapter_model.safetensors", factors)
    alone = Candidate("linear", weights=(1.0,), space="delta")
    if len(tensors) > 1:
        with pytest.raises(InputError, match="cannot be written without the tie"):
            fold_adapters(base, [read_adapter(folder)], alone, tmp_path / "full")
        return
    fold_adapters(base, [read_adapter(folder)], alone, tmp_path / "full")
    found, _ = read_safetensors(tmp_path / "full" / "model.safetensors")
    weight = tensors[f"{embedding}.weight"]
    np.testing.assert_allclose(found.pop(f"{embedding}.weight"), weight + 2 * (b @ a).T, rtol=1e-5)
    assert found.keys() == ({output} if output else set())
    assert all(np.array_equal(x, weight) for x in found.values())
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert config.get("tie_word_embeddings") is (False if output else None)


def test_factors_stored_as_integers_are_refused(write_lora: Callable[..., Path]) -> None:
    path = write_lora("one") / "adapter_model.safetensors"
    tensors, _ = read_safetensors(path)
    write_safetensors(path, {key: np.sign(x).astype(np.int8) for key, x in tensors.items()})
    with pytest.raises(InputError, match="as I8 .quantised"):
        read_adapter(path.parent)
