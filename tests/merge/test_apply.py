"""An adapter on a live model, and off again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.adapter import Adapter, LowRankDelta
from mergeforget.errors import InputError
from mergeforget.merge.apply import applied


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
def test_the_change_is_added_and_taken_off_to_the_last_bit(dtype: torch.dtype) -> None:
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


def test_the_weights_come_back_after_an_error() -> None:
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


def test_a_base_that_stores_its_weights_transposed() -> None:
    net = model()
    net[0].weight.data = net[0].weight.data.T.contiguous()
    net[1].weight.data = net[1].weight.data.T.contiguous()
    before, change = net[0].weight.clone(), adapter(fan_in_fan_out=True)
    with applied(net, change):
        wanted = before + torch.from_numpy(change.deltas["0"].dense()).T
        torch.testing.assert_close(net[0].weight.data, wanted)


def test_a_tied_embedding_stays_when_the_output_layer_changes(make_model: Any) -> None:
    """As on PEFT's unmerged adapter, which changes what the layer gives and nothing else."""
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
