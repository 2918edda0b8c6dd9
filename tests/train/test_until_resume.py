"""A training with `until` that was stopped or killed at any step ends as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_until import recipe_of

from mergeforget.errors import Interrupted, NumericError
from mergeforget.files import read_json, read_jsonl
from mergeforget.model_files import content_of
from mergeforget.recipe import Recipe
from mergeforget.run import Run
from mergeforget.train.callbacks import Checkpoints
from mergeforget.train.checks import Check, MeasuredSets
from mergeforget.train.pair import train_pair, train_single

COLLAPSES = (
    "pair.over.learning_rate=0.5", "pair.over.until.auc_at_most=0", "pair.over.until.every=1",
    "pair.over.until.largest_rate=1", "pair.over.until.back_offs=0", "pair.over.until.max_steps=40",
    "pair.under.until={forget_risen: 0.0, forget_exact: 1.0}",
)  # fmt: skip


@contextmanager
def signalled(step: int) -> Iterator[None]:
    """Send the training SIGTERM at a step."""
    original = Checkpoints.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            self.signum = 15
        original(self, args, state, control, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "on_step_end", on_step_end)
        yield


def train(recipe: Recipe, run: Run, *, resume: bool = False) -> None:
    """Train a pair; a training without a snapshot for under ends in an error."""
    try:
        train_pair(recipe, run, resume=resume)
    except NumericError as error:
        assert "under-forgets" in str(error)


@pytest.mark.parametrize(
    ("more", "outcome"),
    [((), "reached"), (("pair.over.until.max_steps=12",), "max_steps"), (COLLAPSES, "collapsed")],
)
def test_a_training_stopped_in_its_last_step_is_resumed_as_ended(
    more: tuple[str, ...], outcome: str, knowing: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(knowing, *more)
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(recipe, whole)
    end = read_json(whole.root / "until" / "over.json")
    assert end["outcome"] == outcome
    last = read_jsonl(whole.history)[-1]["step"]
    with signalled(last), pytest.raises(Interrupted):
        train_pair(recipe, cut)
    train(recipe, cut, resume=True)
    assert read_json(cut.root / "until" / "over.json") == end
    assert read_jsonl(cut.history)[-1]["step"] == last
    assert content_of(cut.over) == content_of(whole.over)
    assert whole.under.exists() == cut.under.exists()
    assert not whole.under.exists() or content_of(cut.under) == content_of(whole.under)
    assert sorted(p.name for p in cut.snapshots.iterdir()) == sorted(
        p.name for p in whole.snapshots.iterdir()
    )


def test_a_killed_training_still_has_the_snapshots_of_its_last_checkpoint(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 12 backs off to step 8, which a training resumed at step 10 does again."""
    measure, on_step_end, killed = MeasuredSets.measure, Checkpoints.on_step_end, True

    def spoiled(self: Any, model: Any, step: int) -> Check:
        check = measure(self, model, step)
        return replace(check, retain_nll=check.retain_nll + 5) if step == 12 else check

    def kill(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_step_end(self, args, state, control, **more)
        if killed and state.global_step == 10:
            control.should_save = True
        if killed and state.global_step == 17:
            raise KeyboardInterrupt

    monkeypatch.setattr(MeasuredSets, "measure", spoiled)
    monkeypatch.setattr(Checkpoints, "on_step_end", kill)
    recipe = recipe_of(knowing, "pair.over.until.max_steps=24", "pair.over.until.every=4")
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_single(recipe, run, checkpoint_seconds=1e6)
    killed = False
    train_single(recipe, run, resume=True)
    train_single(recipe, whole)
    assert content_of(run.root / "adapter") == content_of(whole.root / "adapter")
    assert [x["until"]["decision"] for x in read_jsonl(run.history) if "until" in x].count(
        "back off"
    ) == 1
