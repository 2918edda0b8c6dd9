"""Rounding to few bits: against the formula in float64, and by its bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergeforget.attack.calibration import (
    CALIBRATED,
    InputStatistics,
    awq,
    calibrated,
    gptq,
    in_parts,
)
from mergeforget.attack.rounding import (
    NF4,
    round_to_nearest,
    round_to_nf4,
    rounded,
    weight_matrices,
)
from mergeforget.errors import UsageError


def reference(weight: np.ndarray, bits: int, group: int | None) -> np.ndarray:
    """The formula, group by group, in float64."""
    top = 2 ** (bits - 1) - 1
    found = np.zeros_like(weight)
    for i, row in enumerate(weight):
        size = len(row) if group is None else group
        for start in range(0, len(row), size):
            part = row[start : start + size]
            scale = np.abs(part).max() / top
            if scale:
                found[i, start : start + size] = scale * np.rint(part / scale)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 64, 7])
def test_rounded_weights_equal_the_formula(bits: int, group: int | None) -> None:
    weight = torch.randn(5, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0  # a row of zeros has no scale
    found = round_to_nearest(weight, bits, group).numpy()
    np.testing.assert_allclose(found, reference(weight.numpy(), bits, group), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64)])
def test_no_weight_changes_by_more_than_half_a_scale(bits: int, group: int | None) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    found = round_to_nearest(weight, bits, group)
    parts = weight.double().view(16, -1, group or 128)
    scale = parts.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (found.double().view_as(parts) - parts).abs() / scale
    assert error.max() <= 0.5 + 1e-5
    assert error.mean() == pytest.approx(0.25, abs=0.03)  # uniform between two grid points
    assert len(found[0, : group or 128].unique()) <= 2**bits - 1


def test_rounding_is_idempotent() -> None:
    weight = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    once = round_to_nearest(weight, 4, 64)
    torch.testing.assert_close(round_to_nearest(once, 4, 64), once, rtol=1e-14, atol=0)


def test_half_precision_dtypes_are_preserved() -> None:
    weight = torch.randn(4, 70).bfloat16()
    found = round_to_nearest(weight, 8)
    assert found.dtype == torch.bfloat16 and found.shape == weight.shape


def test_rounded_weights_are_restored(tiny_model: Any) -> None:
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), rounded(tiny_model, 4, 64) as done:
        assert done.matrices == 2 * 7 and done.share == 1  # no output layer
        changed = [n for n, p in tiny_model.named_parameters() if not torch.equal(p, before[n])]
        assert len(changed) == done.matrices and not any("embed" in n for n in changed)
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.named_parameters())


def test_one_bit_is_refused() -> None:
    with pytest.raises(UsageError, match="the minimum is 2"):
        round_to_nearest(torch.ones(2, 2), 1)


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return MixtralForCausalLM(config).eval()


def test_experts_stored_as_one_parameter_are_rounded_expert_by_expert() -> None:
    model = mixtral()
    experts = model.model.layers[0].mlp.experts
    before = experts.down_proj.detach().clone()  # (experts, out, in)
    with rounded(model, 4, None) as done:
        for expert in range(4):
            expected = round_to_nearest(before[expert], 4)
            torch.testing.assert_close(experts.down_proj[expert], expected, rtol=0, atol=0)
        changed = sum(p.numel() for p in model.parameters() if p.ndim > 1) - 2 * 64 * 16
        assert done.share == 1 and done.weights == changed
    assert torch.equal(experts.down_proj, before)


def test_transposed_experts_have_a_scale_for_each_output_channel() -> None:
    experts: Any = torch.nn.Module()
    experts.is_transposed = True  # as gpt-oss says of its own
    experts.gate_up_proj = torch.nn.Parameter(torch.randn(2, 6, 8))  # (experts, in, out)
    (matrix,) = weight_matrices(experts)
    for expert in range(2):
        expected = round_to_nearest(experts.gate_up_proj.data[expert].T, 4).T
        torch.testing.assert_close(matrix.round(4, None)[expert], expected, rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_that_mixes_channels_is_rounded_by_output_channel(groups: int) -> None:
    convolution = torch.nn.Conv1d(8, 4, 2, groups=groups)
    weight = convolution.weight.data.clone()  # (out, in / groups, width)
    with rounded(convolution, 4, None) as done:
        assert (done.weights, done.total) == (weight.numel(), weight.numel())
        expected = round_to_nearest(weight.flatten(1), 4).view_as(weight)
        assert torch.equal(convolution.weight, expected)
    assert torch.equal(convolution.weight, weight)


def test_weights_that_cannot_be_rounded_lower_the_share() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4))
    packed = torch.zeros(4, 4, dtype=torch.uint8)
    model[1].weight = torch.nn.Parameter(packed, requires_grad=False)
    with rounded(model, 4, None) as done:
        assert (done.matrices, done.share) == (1, 0.5)


def test_nf4_rounds_to_the_nearest_of_sixteen_values() -> None:
    """By the definition, block by block of 64 in row-major order; the last one is shorter."""
    weight = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = round_to_nf4(weight).view(-1)
    values = torch.tensor(NF4, dtype=torch.float64)
    for start in range(0, 150, 64):
        block = weight.view(-1)[start : start + 64]
        scale = block.abs().max()
        nearest = values[(block[:, None] / scale - values).abs().argmin(1)] * scale
        torch.testing.assert_close(found[start : start + 64], nearest, rtol=0, atol=1e-15)
    assert torch.equal(round_to_nf4(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_nf4_equals_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(4))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(round_to_nf4(weight), theirs, rtol=1e-5, atol=1e-6)


def test_a_model_can_be_rounded_to_nf4(tiny_model: Any) -> None:
    weight = tiny_model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with rounded(tiny_model, 4, 64, "nf4") as done:
        assert done.share == 1 and torch.equal(weight, round_to_nf4(before))
    assert torch.equal(weight, before)


def _inputs(width: int, n: int = 400) -> tuple[torch.Tensor, InputStatistics]:
    """Correlated inputs of a layer, some of them much larger than the others."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, width, generator=draw) @ torch.randn(width, width, generator=draw)
    x = x / width**0.5 * torch.linspace(0.1, 1.0, width)
    x[:, ::16] *= 20
    found = InputStatistics(torch.zeros(width, width), torch.zeros(width))
    found.add(x.view(2, -1, width))
    return x, found


@pytest.mark.parametrize("method", [gptq, awq])
@pytest.mark.parametrize("group", [None, 64, 48])
def test_calibration_lowers_the_error_of_the_outputs(method: Any, group: int | None) -> None:
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(4))
    x, inputs = _inputs(192)
    found = method(weight, inputs, 4, group)
    plain = round_to_nearest(weight, 4, group)
    errors = [(x @ (one - weight).T).square().mean() for one in (found, plain)]
    assert errors[0] < 0.8 * errors[1]
    if method is gptq:
        assert all(len(row[: group or 192].unique()) <= 15 for row in found)  # 4 bits, symmetric


def test_gptq_follows_the_published_loop() -> None:
    """Against the greedy update of optimal brain quantisation, written without Cholesky factors.

    The column that is rounded next leaves the inverse of the Gram matrix by Gaussian elimination.
    """
    weight = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    _, inputs = _inputs(20)
    found = gptq(weight, inputs, 3, None)
    gram = inputs.gram.double() / inputs.count
    gram += 0.01 * gram.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    inverse, w = torch.linalg.inv(gram), weight.clone()
    scale = w.abs().amax(1) / 3
    for i in range(20):
        rounded_column = scale * (w[:, i] / scale).round().clamp(-3, 3)
        error = (w[:, i] - rounded_column) / inverse[i, i]
        w[:, i + 1 :] -= error[:, None] * inverse[i, i + 1 :]
        w[:, i] = rounded_column
        inverse = inverse - inverse[:, i : i + 1] @ inverse[i : i + 1] / inverse[i, i]
    torch.testing.assert_close(found, w, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", [gptq, awq])
def test_without_inputs_calibration_is_rounding_to_nearest(method: Any) -> None:
    weight = torch.randn(4, 130, generator=torch.Generator().manual_seed(6))
    nothing = InputStatistics(torch.zeros(130, 130), torch.zeros(130))
    found = method(weight, nothing, 4, 64)
    torch.testing.assert_close(found, round_to_nearest(weight, 4, 64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CALIBRATED)
def test_a_model_is_quantised_with_calibration_and_restored(tiny_model: Any, kind: Any) -> None:
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    texts = [[5, 6, 7, 8], [9, 10, 11]]
    with calibrated(tiny_model, 4, 64, kind, texts) as done:
        assert done.share == 1 and done.matrices == 2 * 7
        first = "model.layers.0.self_attn.q_proj.weight"
        now = dict(tiny_model.named_parameters())[first]
        assert not torch.equal(now, before[first])
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.named_parameters())
    assert not tiny_model.model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_calibration_is_split_to_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [torch.nn.Linear(8, 2) for _ in range(5)]
    monkeypatch.setattr("mergeforget.attack.calibration.ENTRIES", 130)
    assert in_parts(layers) == [[0, 1], [2, 3], [4]]
