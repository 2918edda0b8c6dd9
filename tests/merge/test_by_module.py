"""Settings by module and depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import DensityError, UsageError
from mergeforget.merge.engine import merge_adapters
from mergeforget.merge.request import at_module, depth_of, evaluate, parse


def test_depth_increases_from_0_to_1_over_the_layers() -> None:
    names = ["model.embed_tokens", *(f"model.layers.{i}.mlp.up_proj" for i in (0, 1, 4))]
    assert list(depth_of(names).values()) == [0.0, 0.0, 0.25, 1.0]
    assert depth_of(["only.0.mlp"]) == {"only.0.mlp": 1.0}
    towers = ["encoder.block.1.wi", "encoder.block.3.wi", "decoder.block.1.wi", "shared"]
    assert list(depth_of(towers).values()) == [pytest.approx(1 / 3), 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("setting", "name", "depth", "wanted"),
    [
        (0.3, "x", 0.5, 0.3),
        ([0.0, 1.0], "x", 0.25, 0.25),
        ([1.0, 0.5, 0.0], "x", 0.75, 0.25),
        ([0.2, 0.8], "x", 1.0, 0.8),
        ([{"filter": "mlp", "value": 0.1}, {"value": [0.4, 0.6]}], "a.mlp.b", 0.5, 0.1),
        ([{"filter": "mlp", "value": 0.1}, {"value": [0.4, 0.6]}], "a.attn.b", 0.5, 0.5),
        ([{"filter": "mlp", "value": 0.1}], "a.attn.b", 0.5, None),
    ],
)
def test_settings_have_the_meaning_of_mergekit(
    setting: Any, name: str, depth: float, wanted: Any
) -> None:
    """Also against mergekit's own function."""
    from mergekit.config import ConditionalParameter, evaluate_setting

    assert evaluate(setting, name, depth) == pytest.approx(wanted)
    if isinstance(setting, list) and isinstance(setting[0], dict):
        setting = [ConditionalParameter(**one) for one in setting]
    assert evaluate_setting(name, setting, depth, validate=lambda x: x) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["mlp", "mlp=", "mlp=x", "mlp=0.5,y"])
def test_malformed_settings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="FILTER=VALUE"):
        parse(text)
    with pytest.raises(UsageError, match="not a filter"):
        evaluate([{"match": "mlp", "value": 1}], "x", 0)


def test_each_module_is_merged_with_its_settings(write_lora: Callable[..., Path]) -> None:
    pair = [read_adapter(write_lora("over", 1)), read_adapter(write_lora("under", 2))]
    settings = {
        "density": [{"filter": "attn", "value": 0.9}, {"filter": "*", "value": [0.2, 0.8]}],
        "weights": [2.0, [{"filter": "mlp", "value": -1.0}]],
    }
    merged = merge_adapters(pair, Candidate("ties", 0.5, by_module=settings)).adapter
    for module, density, weights in (
        ("model.layers.0.mlp.up_proj", 0.2, (2.0, -1.0)),
        ("model.layers.1.mlp.up_proj", 0.8, (2.0, -1.0)),
        ("model.layers.0.self_attn.q_proj", 0.9, (2.0, 1.0)),
    ):
        alone = merge_adapters(pair, Candidate("ties", density, weights)).adapter
        assert merged.deltas[module].b.tobytes() == alone.deltas[module].b.tobytes()
    assert at_module(Candidate("ties", 0.5), "x", 0) == Candidate("ties", 0.5)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"density": [0.5, 1.5]}, DensityError),
        ({"weights": [1.0]}, UsageError),
        ({"sing": "count"}, UsageError),
        ({"weights": [float("inf"), 1.0]}, UsageError),
        ({"weights": [1.0, [{"filter": "mlp", "value": [0.5, float("nan")]}]]}, UsageError),
    ],
)
def test_settings_are_checked_before_any_work(
    write_lora: Callable[..., Path], settings: dict[str, Any], error: type[Exception]
) -> None:
    pair = [read_adapter(write_lora("over", 1)), read_adapter(write_lora("under", 2))]
    with pytest.raises(error):
        merge_adapters(pair, Candidate("ties", 0.5, by_module=settings))


def test_different_settings_give_different_candidate_names() -> None:
    one, two = (Candidate("ties", 0.5, by_module={"density": d}) for d in (0.1, 0.2))
    assert one.name != two.name and Candidate.from_dict(one.to_dict()) == one
