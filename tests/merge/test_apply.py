"""An adapter is added to a loaded model and removed again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from mergeforget.adapter import Adapter, LowRankDelta, read_adapter
from mergeforget.errors import InputError
from mergeforget.merge.apply import applied
from mergeforget.merge.multi_adapter import side_by_side


def model(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 5)).to(dtype)


def adapter(seed: int = 0, **config: Any) -> Adapter:
    draw = np.random.default_rng(seed)
    deltas = {
        name: LowRankDelta(draw.standard_normal((2, columns)), draw.standard_normal((rows, 2)), 0.5)
        for name, rows, columns in (("0", 6, 4), ("1", 5, 6))
    }
    small = {
        name: LowRankDelta(d.a.astype(np.float32), d.b.astype(np.float32), d.scaling)
        for name, d in deltas.items()
    }
    return Adapter("merged", small, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_delta_is_added_and_removed_bit_for_bit(dtype: torch.dtype) -> None:
    net, change = model(dtype), adapter()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with applied(net, change):
        for name, delta in change.deltas.items():
            wanted = before[f"{name}.weight"].float() + torch.from_numpy(delta.dense())
            found = net.get_submodule(name).weight
            assert isinstance(found, torch.nn.Parameter) and found.dtype == dtype
            torch.testing.assert_close(found.data, wanted.to(dtype))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_weights_are_restored_after_an_error() -> None:
    net = model()
    before = net[0].weight.clone()
    with pytest.raises(ZeroDivisionError), applied(net, adapter()):
        raise ZeroDivisionError
    assert torch.equal(net[0].weight, before)


def test_buffers_are_reused_and_hold_the_next_candidate() -> None:
    net = model()
    buffers: dict[str, Any] = {}
    with applied(net, adapter(0), buffers):
        places = {name: x.data_ptr() for name, x in buffers.items()}
    with applied(net, adapter(1), buffers):
        assert {name: x.data_ptr() for name, x in buffers.items()} == places
        found = net[0].weight.clone()
    with applied(net, adapter(1)):
        assert torch.equal(net[0].weight, found)


def test_a_delta_is_added_to_a_base_with_transposed_weights() -> None:
    """``fan_in_fan_out`` is the value of the last module, so it is ignored where modules differ."""
    for told in (True, False):
        net: Any = torch.nn.Sequential(Conv1D(6, 4), torch.nn.Linear(6, 5))
        before, change = [layer.weight.clone() for layer in net], adapter(fan_in_fan_out=told)
        with applied(net, change):
            dense = [torch.from_numpy(change.deltas[name].dense()) for name in "01"]
            torch.testing.assert_close(net[0].weight.data, before[0] + dense[0].T)
            torch.testing.assert_close(net[1].weight.data, before[1] + dense[1])


def test_a_transposed_square_weight_and_an_output_layer_are_changed_as_by_peft(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}
    net = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)).eval()
    tokens = torch.arange(8).reshape(1, 8)
    lora = LoraConfig(target_modules=["attn.c_proj", "lm_head"], init_lora_weights=False)
    peft = get_peft_model(copy.deepcopy(net), lora)
    peft.save_pretrained(str(tmp_path))
    with torch.no_grad(), applied(net, read_adapter(tmp_path)):
        torch.testing.assert_close(net(tokens).logits, peft(tokens).logits, rtol=1e-4, atol=1e-4)


def test_factors_of_float64_are_applied_in_float32() -> None:
    net, change = model(), adapter()
    wide = {
        name: LowRankDelta(d.a.astype(np.float64), d.b.astype(np.float64), d.scaling)
        for name, d in change.deltas.items()
    }
    with applied(net, change):
        wanted = net[0].weight.clone()
    with applied(net, Adapter("wide", wide, {})):
        assert torch.equal(net[0].weight, wanted)


@pytest.mark.parametrize("put", [applied, lambda net, change: side_by_side(net, [change])])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA rescales.*--full"),
        ({"modules_to_save": ["1"]}, "whole modules.*--full"),
        ({"bias": "all"}, "biases of the base.*--full"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
    ],
)
def test_an_adapter_that_changes_more_than_products_is_refused(
    put: Any, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=f"'merged' cannot be applied exactly: .*{words}"):
        with put(model(), adapter(**config)):
            pass


def test_a_tied_embedding_stays_when_the_output_layer_changes(make_model: Any) -> None:
    """As with PEFT's unmerged adapter, which changes the output of the layer alone."""
    net = make_model()
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((2, 32)), draw.standard_normal((259, 2))
    delta = LowRankDelta(a.astype(np.float32), b.astype(np.float32), 0.5)
    embedded = net.get_input_embeddings().weight
    assert net.lm_head.weight is embedded
    before = embedded.clone()
    with applied(net, Adapter("merged", {"lm_head": delta}, {})):
        assert torch.equal(net.get_input_embeddings().weight, before)
        changed = before + torch.from_numpy(delta.dense())
        torch.testing.assert_close(net.lm_head.weight.data, changed)
    assert net.lm_head.weight is embedded and torch.equal(embedded, before)


def test_an_adapter_of_another_model_is_refused() -> None:
    change = adapter()
    with pytest.raises(InputError, match="no module '7'"):
        with applied(model(), Adapter("x", {"7": change.deltas["0"]}, {})):
            pass
    with pytest.raises(InputError, match="another model"):
        with applied(model(), Adapter("x", {"1": change.deltas["0"]}, {})):
            pass
