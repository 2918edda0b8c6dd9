"""Stored references and logits in chunks train as those of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_training import GD, NPO

from mergeforget.train_config import Term


@pytest.mark.parametrize("mask", ["answer", "tokens"])
def test_stored_references_equal_a_forward_pass(
    mask: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terms = [NPO, GD, Term.model_validate({"loss": "kl", "on": "retain", "mask": mask})]
    kept, _ = train("kept", objective=terms)
    names = {p.name.split("-")[0] for p in (tmp_path / "kept" / "reference").iterdir()}
    assert names == {"logps", "hidden"}
    from mergeforget.train.objective import Reads

    monkeypatch.setattr(Reads, "kept", property(lambda self: None))
    live, _ = train("live", objective=terms)
    assert not (tmp_path / "live" / "reference").exists()
    for key, value in live.items():
        torch.testing.assert_close(kept[key], value, rtol=1e-3, atol=1e-5)


def test_chunked_logits_equal_those_of_the_model(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = [NPO, GD, Term.model_validate({"loss": "kl", "on": "retain", "mask": "tokens"})]
    chunks, _ = train("chunks", objective=terms)
    for place in ("mergeforget.train.fit", "mergeforget.train.reference"):
        monkeypatch.setattr(f"{place}.output_matrix", lambda model: None)
    plain, _ = train("plain", objective=terms)
    for key, value in plain.items():
        torch.testing.assert_close(chunks[key], value, rtol=1e-3, atol=1e-5)
