"""Decisions of a training with `until` after a check: rate, targets, and the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_until import BASE

from mergeforget.recipe import load_recipe
from mergeforget.train import until
from mergeforget.train.checks import Check, MeasuredSets, met
from mergeforget.train_config import Dual, Until


@pytest.mark.parametrize(
    ("check", "until", "expected"),
    [
        ({"auc": 0.3}, {"auc_at_most": 0.35}, True),
        ({"auc": 0.4}, {"auc_at_most": 0.35}, False),
        ({"auc": None}, {"auc_at_most": 0.35}, False),
        ({"auc": 0.6}, {"auc_at_least": 0.6}, True),
        ({"auc": 0.9}, {"auc_at_least": 0.6, "auc_at_most": 0.8}, False),
        ({"auc": 0.4, "aucs": (0.3, 0.5)}, {"auc_at_most": 0.45}, True),
        ({"auc": 0.4, "aucs": (0.2, 0.6)}, {"auc_at_most": 0.45}, False),  # too high in one form
        ({"auc": 0.5, "aucs": (0.5, 0.5)}, {"auc_at_most": 0.45}, False),
        ({"auc": 0.6, "aucs": (0.5, 0.7)}, {"auc_at_least": 0.55}, False),
        ({"auc": 0.6, "aucs": (0.56, 0.64)}, {"auc_at_least": 0.55}, True),
        ({"forget_exact": 0.1}, {"forget_exact": 0.0}, False),
        ({"forget_exact": 0.1, "guess_p": 0.3}, {"forget_exact": 0.0}, True),
        ({"forget_exact": 0.1, "guess_p": 0.01}, {"forget_exact": 0.0}, False),
        ({"retain_exact": 0.7}, {"auc_at_least": 0.0, "retain_kept": 0.8}, False),
        ({"forget_nll": 0.5}, {"forget_risen": 0.5}, False),  # 0.4 above the base
    ],
)
def test_the_condition_checks_auc_exact_answers_and_nll(
    check: dict[str, Any], until: dict[str, Any], expected: bool
) -> None:
    assert met(replace(BASE, step=4, **check), Until(**until), BASE) is expected


@pytest.mark.parametrize("risen, fallen, rate",
                         [(0.0, 0.0, 1.4e-3), (0.2, 0.0, 1e-3), (0.0, 0.1, 1e-3)])  # fmt: skip
def test_the_rate_grows_only_without_progress(
    risen: float, fallen: float, rate: float, tmp_path: Path
) -> None:
    """A rise of the forget NLL and a fall of the AUC both count as progress."""
    rates = ["pair.over.learning_rate=1e-3", "pair.over.until.largest_rate=1e-2"]
    training = load_recipe("level", rates).pair.over  # type: ignore[union-attr]
    control = until.UntilController(
        training, MeasuredSets({"forget": []}), stage="over", folder=tmp_path,
        history=tmp_path / "history.jsonl", save=lambda path: None,
    )  # fmt: skip
    control.base, control.checks = BASE, [replace(BASE, step=4, auc=0.9)]
    check = replace(BASE, step=8, auc=0.9 - fallen, forget_nll=BASE.forget_nll + risen)
    control._decide(check, last=False)
    assert control.rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("first", "rate", "lowered"),
    [(4, 4, 2), (4, 3, 1.5), (4, 1.5, 1), (0.5, 1.5, 0.75), (0.5, 0.5, 0.5), (1, 1, 1)],
)
def test_the_rate_is_lowered_while_retain_rows_are_harmed(
    first: float, rate: float, lowered: float, tmp_path: Path
) -> None:
    """Down to the recipe's rate, although a range test chose a larger one."""
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    control.base, control.checks = BASE, [replace(BASE, step=4, auc=0.9)]
    recipe = control.rate
    control.first_rate, control.rate = first * recipe, rate * recipe
    check = replace(BASE, step=8, auc=0.6, retain_nll=0.3)
    assert control._decide(check, False) == ("lower rate" if lowered < rate else "continue")
    assert control.rate == pytest.approx(lowered * recipe)


@pytest.mark.parametrize(
    ("factor", "risen", "tried", "last", "decision", "rate"),
    [
        (4, 0.5, 0, False, "back off", 2),
        (1, 0.5, 0, False, "continue", 1),  # the recipe's own rate may harm by up to a nat
        (1, 1.5, 0, False, "back off", 0.5),
        (4, 0.25, 0, False, "lower rate", 2),
        (4, 0.5, 4, False, "lower rate", 2),  # no back-off is left
        (4, 0.5, 0, True, "max_steps", 4),
    ],
)
def test_an_interval_that_spoils_retain_rows_at_a_high_rate_is_repeated(
    factor: float, risen: float, tried: int, last: bool, decision: str, rate: float, tmp_path: Path
) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    control.base, control.checks, control.back_offs = BASE, [BASE], tried
    recipe = control.rate
    control.first_rate = control.rate = factor * recipe
    check = replace(BASE, step=8, auc=0.6, retain_nll=BASE.retain_nll + risen)
    assert control._decide(check, last) == decision
    assert control.rate == pytest.approx(rate * recipe)


@pytest.mark.parametrize(
    ("risen", "exact", "factor"),
    [(-0.2, 0.5, 1.0), (0.05, 0.5, 1.0), (0.15, 0.5, 3.0), (2.0, 0.0, 8.0), (2.0, 0.9, 1.0)],
)
def test_retain_terms_weigh_more_while_answers_are_lost(
    risen: float, exact: float, factor: float, tmp_path: Path
) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    check = replace(BASE, retain_nll=BASE.retain_nll + risen, retain_exact=exact)
    control.base, control.checks = BASE, [check]
    assert control.retain_factor == pytest.approx(factor)
    control.trainer = SimpleNamespace(terms=list(control.training.objective))
    control.until = control.until.model_copy(update={"auc_at_most": 0.0})
    for _ in range(2):  # the recipe's weight is multiplied, not the last one
        control.on_step_begin(None, None, None)
    weights = {term.label: term.weight for term in control.trainer.terms}
    assert weights == {"level_forget": 1.0, "gd_retain": pytest.approx(5 * factor),
                       "hold_held": 3.0}  # fmt: skip


@pytest.mark.parametrize("missing, factor", [({}, 4.0), ({"auc": 0.5}, 1.0),
                                             ({"forget_exact": 0.1}, 1.0)])  # fmt: skip
def test_retain_terms_weigh_more_if_nothing_else_is_missing(
    missing: dict[str, Any], factor: float, tmp_path: Path
) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    check = replace(BASE, auc=0.4, forget_exact=0.0, retain_exact=0.5)
    control.base, control.checks = BASE, [replace(check, **missing)]
    assert control.retain_factor == factor


def test_a_dual_weight_is_not_multiplied(tmp_path: Path) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    dual = Dual(term="gd_retain", limit=0.1, step=1.0)
    control.training = control.training.model_copy(update={"dual": dual})
    control.base, control.checks = BASE, [replace(BASE, retain_nll=9.0, retain_exact=0.0)]
    control.trainer = SimpleNamespace(terms=list(control.training.objective))
    control.on_step_begin(None, None, None)
    assert control.trainer.terms == control.training.objective


def controller_of(folder: Path, measured: MeasuredSets) -> until.UntilController:
    training = load_recipe("level").pair.over  # type: ignore[union-attr]
    history = folder / "history.jsonl"
    return until.UntilController(
        training, measured, stage="over", folder=folder, history=history, save=lambda path: None
    )


@pytest.mark.parametrize(
    ("aucs", "below", "exact", "offsets"),
    [
        ((0.6, 0.6), (0.0, 0.0), 0.0, (0.3, 0.3)),  # 0.3 nats from the target
        ((0.6, 0.6), (-0.25, 0.0), 0.0, (0.6, 0.3)),  # the first form reached it
        ((0.6, 0.4), (0.0, -0.25), 0.0, (0.3, 0.3)),  # the AUC of the second is low enough,
        ((0.6, 0.3), (0.0, -0.25), 0.0, (0.3, 0.0)),  # or lower than it has to be
        ((0.6, 0.3), (0.0, -0.6), 0.0, (0.3, 0.3)),  # its rows are led back already
        ((0.4, 0.3), (-0.3, -0.3), 0.1, (0.6, 0.6)),  # answers are left
    ],
)
def test_each_form_of_prompts_has_its_own_target(
    aucs: tuple[float, float], below: tuple[float, float], exact: float,
    offsets: tuple[float, float], tmp_path: Path,
) -> None:  # fmt: skip
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    before = replace(BASE, step=4, below=(-0.9, -0.9))
    control.base, control.checks, control.offsets = BASE, [before], [0.3, 0.3]
    check = replace(BASE, step=8, auc=sum(aucs) / 2, aucs=aucs, below=below, risen=(0.1, 0.2),
                    forget_exact=exact, forget_nll=1.0)  # fmt: skip
    decision = control._decide(check, last=False)
    assert control.offsets == pytest.approx(list(offsets))
    assert (decision == "move target") == (offsets != (0.3, 0.3))


def of_check(**changes: Any) -> Check:
    """A check of one form of prompts whose rows are at their target."""
    one = {"auc": 0.6, "below": (-0.3,), "risen": (0.1,), "forget_exact": 0.0, "forget_nll": 1.0}
    return replace(BASE, step=8, **(one | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "check", "offset"),
    [
        ({"auc_at_most": 0.45, "auc_at_least": 0.3}, {"auc": 0.2}, 0.0),  # below both bounds
        ({"auc_at_most": 0.45, "auc_at_least": 0.3}, {"auc": 0.2, "forget_exact": 0.5}, 0.0),
        ({"auc_at_most": 0.45, "auc_at_least": 0.3}, {"auc": 0.6}, 0.6),
        ({"auc_at_most": 0.45, "auc_at_least": 0.3}, {"auc": 0.4}, 0.3),
        ({"auc_at_least": 0.55}, {"auc": 0.6, "forget_exact": 0.5}, 0.6),  # answers are left
        ({"auc_at_least": 0.55}, {"auc": 0.5}, 0.0),
        ({"auc_at_least": 0.55}, {"auc": 0.5, "below": (-0.6,)}, 0.3),  # led back already
        ({"auc_at_most": 0.45}, {"auc": 0.1}, 0.0),  # the condition holds, but the AUC is far below
        ({"auc_at_most": 0.45, "forget_risen": 2.0}, {"auc": 0.4}, 0.6),
    ],
)
def test_targets_move_toward_what_is_missing(
    bounds: dict[str, float], check: dict[str, Any], offset: float, tmp_path: Path
) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    before = replace(BASE, step=4, below=(-0.9,))
    control.base, control.checks, control.offsets = BASE, [before], [0.3]
    control.until = Until(**{"forget_exact": 0.0, "retain_kept": 0.9, **bounds})  # type: ignore[arg-type]
    control._decide(of_check(**check), last=False)
    assert control.offsets == pytest.approx([offset])


@pytest.mark.parametrize("before, offset", [(-1.2, -0.3), (-0.9, -0.3), (-1.25, -0.3), (-1.4, 0.0)])
def test_a_target_falls_further_if_the_rows_do_not_return_to_it(
    before: float, offset: float, tmp_path: Path
) -> None:
    """The mean over long rows may stay beyond a target at which half of their tokens are."""
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    control.base, control.checks = BASE, [replace(BASE, step=4, below=(before,))]
    control.offsets = [0.0]
    check = of_check(auc=0.2, below=(-1.2,), retain_exact=0.0)
    assert control._decide(check, last=False) == "overshot"
    assert control.offsets == pytest.approx([offset])


def test_a_moved_target_does_not_keep_the_rate_high(tmp_path: Path) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    control.base, control.checks, control.offsets = BASE, [replace(BASE, step=4)], [0.3]
    control.rate, control.back_offs = 4 * control.recipe_rate, 4
    harmed = of_check(forget_exact=0.5, retain_nll=BASE.retain_nll + 0.8)
    assert control._decide(harmed, last=False) == "lower rate"
    assert control.rate == pytest.approx(2 * control.recipe_rate) and control.offsets == [0.6]


@pytest.mark.parametrize(
    ("change", "until", "holds"),
    [
        ({"retain_exact": 1 - 5 / 14}, {"retain_kept": 0.9}, True),  # 9 of 10 that were known
        ({"retain_exact": 1 - 6 / 14}, {"retain_kept": 0.9}, False),
        ({"forget_exact": 1 / 20}, {"forget_exact": 0.05}, True),
    ],
)
def test_bounds_are_met_exactly(change: Any, until: Any, holds: bool) -> None:
    base = replace(BASE, retain_exact=1 - 4 / 14)
    assert met(replace(base, **change), Until(**until), base) == holds


def test_a_training_that_passed_its_target_by_far_returns_more_slowly(tmp_path: Path) -> None:
    control = controller_of(tmp_path, MeasuredSets({"forget": []}))
    control.base, control.checks, control.offsets = BASE, [replace(BASE, step=4)], [0.3, 0.3]
    far = replace(BASE, step=8, auc=0.05, aucs=(0.05, 0.05), below=(-1.8, -1.6), risen=(0.0, 0.0),
                  forget_exact=0.0, forget_nll=5.0)  # fmt: skip
    not_met = replace(far, retain_exact=0.1)
    rates = []
    for step in range(until.RETURNS + 2):
        check = replace(not_met if step == 0 else far, step=8 + step)
        rates.append((control._decide(check, last=False), control.rate / control.first_rate))
    slower = [("overshot", 0.5), *[("overshot", 0.25)] * until.RETURNS]
    assert rates == [*slower, ("reached", 0.25)]
    control.returns = 0
    assert control._decide(replace(far, step=20), last=True) == "reached"
    near = replace(far, step=24, aucs=(0.3, 0.25), below=(-0.3, -0.5))
    assert control._decide(near, last=False) == "reached"


@pytest.mark.parametrize(
    ("below", "targets"),
    [
        ((2.0, 2.0), (3.4, 4.5)),  # level + risen + offset
        ((2.0, 1.0), (3.4, 4.5 - 0.8)),  # the second waits until the first is 0.2 nats behind it
        ((2.0, -0.5), (3.4, 4.5)),  # beyond its target; it returns to it
        ((2.0, 0.1), (3.4, 4.5 - 0.4)),  # held where it is
    ],
)
def test_a_form_of_prompts_waits_for_the_other(
    below: tuple[float, float], targets: tuple[float, float], tmp_path: Path
) -> None:
    measured = MeasuredSets({"forget": []})
    measured.levels, measured.forms = {"forget": torch.tensor([3.0, 4.0])}, {}
    measured.forms["forget"] = torch.tensor([0, 1])
    control = controller_of(tmp_path, measured)
    control.offsets = [0.3, 0.3]
    control.checks = [replace(BASE, step=4, risen=(0.1, 0.2), below=below)]
    control.trainer = SimpleNamespace()
    control._set_targets()
    assert control.trainer.levels["forget"].tolist() == pytest.approx(list(targets))


@pytest.mark.parametrize("rows, every, steps", [(3, None, 5), (24, None, 5), (48, None, 9),
                                                (80, None, 15), (80, 2, 2)])  # fmt: skip
def test_checks_are_three_quarters_of_a_pass_apart(
    rows: int, every: int | None, steps: int
) -> None:
    """Three quarters of a pass in batches of four, at least four steps."""
    more = [f"pair.over.until.every={every}"] if every else []
    training = load_recipe("level", more).pair.over  # type: ignore[union-attr]
    assert training.steps_between_checks(rows) == steps
