"""AdaMerging: coefficients that lower the entropy of the merged model's predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.cli import main
from mergeforget.data.readers import read_rows
from mergeforget.errors import UsageError
from mergeforget.merge.adaptive_weights import answer_entropy, learn_shares

ARGUMENTS = {"steps": 4, "rate": 0.1, "rows": 3}


def test_the_entropy_matches_a_hand_calculation() -> None:
    class Fixed(torch.nn.Linear):
        def forward(self, *_: Any, **given: Any) -> Any:
            logits = torch.tensor([[[0.0, 0.0], [5.0, 5.0], [0.0, 100.0], [7.0, 1.0]]])
            return type("Output", (), {"logits": logits})

    # the answer's tokens are predicted at places 1 (ln 2) and 2 (certain)
    found = answer_entropy(Fixed(1, 1), ([0, 0, 1, 1], [False, False, True, True]))
    assert float(found) == pytest.approx(np.log(2) / 2)


def test_steps_lower_the_entropy_and_leave_the_model_alone(
    tiny_model: Any, tiny_tokenizer: Any, tiny_run: Any
) -> None:
    adapters = [read_adapter(tiny_run.over), read_adapter(tiny_run.under)]
    rows = [read_rows(tiny_run.data / f"{n}.jsonl") for n in ("forget", "retain")]
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    candidate = Candidate("adamerging", weights=(1.0, 2.0), arguments=ARGUMENTS)
    found = learn_shares(tiny_model, tiny_tokenizer, adapters, rows, candidate)
    assert found.entropy[-1] < found.entropy[0] and len(found.entropy) == 5
    assert found.shares.keys() == adapters[0].deltas.keys()
    moved = np.concatenate(list(found.shares.values())) - 0.3
    assert 0 < np.abs(moved).max() <= 4 * 0.1 + 1e-6  # Adam moves by at most its rate
    assert all(torch.equal(p, before[name]) for name, p in tiny_model.named_parameters())
    for wrong in ({"steps": 0}, {"rate": 0}, {"rows": 0}):
        with pytest.raises(UsageError, match="steps and rows >= 1"):
            learn_shares(
                tiny_model, tiny_tokenizer, adapters, rows, Candidate("adamerging", arguments=wrong)
            )


def test_the_command_writes_the_learned_sum(tiny_run: Any, tmp_path: Path) -> None:
    words = ["merge", str(tiny_run.root), "--method", "adamerging", "--json"]
    words += [text for key, value in ARGUMENTS.items() for text in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(main, [*words, "--rank", "8", "--out", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["candidate"]["arguments"] == ARGUMENTS and facts["energy_lost"] < 1e-6
    merged = read_adapter(tmp_path / "m")
    over, under = read_adapter(tiny_run.over), read_adapter(tiny_run.under)
    for name, shares in facts["shares"].items():
        parts = over.deltas[name].dense(), under.deltas[name].dense()
        wanted = sum(s * x for s, x in zip(shares, parts, strict=True))
        np.testing.assert_allclose(merged.deltas[name].dense(), wanted, atol=1e-5)
    done = CliRunner().invoke(main, [*words, "--full", "--out", str(tmp_path / "full")])
    assert done.exit_code == 0, done.output
    base = load_file(Path(tiny_run.base()) / "model.safetensors")
    full = load_file(tmp_path / "full" / "model.safetensors")
    for name, delta in merged.deltas.items():
        change = (full[f"{name}.weight"] - base[f"{name}.weight"]).numpy()
        np.testing.assert_allclose(change, delta.dense(), atol=1e-5)
