"""A base too large for its memory: layers on the disk, the same measurements, no silent change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mergeforget.adapter import read_adapter
from mergeforget.attack.target import Models, TargetModel
from mergeforget.errors import ResourceError, UsageError
from mergeforget.evaluate.generate import generate_ids
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.evaluate.membership import gradient_norms
from mergeforget.evaluate.self_check import safe_modes
from mergeforget.merge.apply import applied
from mergeforget.merge.multi_adapter import side_by_side
from mergeforget.models import LoadedModel, load_model
from mergeforget.recipe import ModelSpec

PROMPTS = [[5 + i] * (3 + 5 * i % 9) + [i] for i in range(5)]


@pytest.fixture(scope="module")
def offloaded(tiny_folder: Path) -> LoadedModel:
    """The tiny model with room for its embeddings and one of its two layers."""
    whole = load_model(str(tiny_folder)).model
    layer = sum(p.numel() * 4 for p in whole.model.layers[0].parameters())
    rest = sum(p.numel() * 4 for p in whole.parameters()) - 2 * layer
    limit: dict[int | str, int | str] = {"cpu": rest + 2 * layer}
    return load_model(str(tiny_folder), device="auto", max_memory=limit)


def test_an_offloaded_model_gives_the_same_measurements(
    offloaded: LoadedModel, tiny_folder: Path
) -> None:
    model, whole = offloaded.model, load_model(str(tiny_folder)).model
    assert set(model.hf_device_map.values()) == {"cpu", "disk"} and model.device.type == "cpu"
    assert safe_modes(model) == safe_modes(whole)
    answers = [generate_ids(m, PROMPTS, stop=[3], max_new_tokens=6) for m in (whole, model)]
    assert answers[0] == answers[1]
    one, other = (likelihoods(m, PROMPTS) for m in (whole, model))
    for mine, theirs in zip(one, other, strict=True):
        assert mine.nll == theirs.nll and (mine.mean == theirs.mean).all()


def test_a_change_of_offloaded_weights_is_refused(
    offloaded: LoadedModel, tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = read_adapter(save_adapter(tmp_path / "adapter"))
    model = offloaded.model
    with pytest.raises(ResourceError, match="offloaded"), applied(model, adapter):
        pass
    with pytest.raises(ResourceError, match="offloaded"), side_by_side(model, [adapter]):
        pass
    with pytest.raises(ResourceError, match="A gradient norm needs all weights"):
        gradient_norms(model, [([5, 6, 7], 1)])
    attacked = Models(ModelSpec(), device="auto")
    attacked._loaded, attacked._name = offloaded, str(tiny_folder)
    with (
        pytest.raises(ResourceError, match="An attack needs all weights"),
        attacked.opened(TargetModel("model", str(tiny_folder))),
    ):
        pass


def test_auto_is_for_the_evaluation_of_one_process(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--use_fsdp"):
        load_model(str(tiny_folder), device="auto", frozen=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        load_model(str(tiny_folder), device="auto")
