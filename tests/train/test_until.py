"""A training with `until` brackets the level of unseen rows, backs off, and can be resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.adapter import read_adapter
from mergeforget.errors import InputError, RecipeError
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.recipe import Recipe, change, load_recipe
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search
from mergeforget.train import until
from mergeforget.train.checks import Check, MeasuredSets, met
from mergeforget.train.objective import check_recipe
from mergeforget.train.pair import train_pair
from mergeforget.train.run_rows import add_twins, read_data
from mergeforget.train_config import Until

BASE = Check(0, 0.1, 1.0, 0.1, 1.0, 3.0, 1.0)


def recipe_of(knowing: dict[str, Path], *more: str, objective: list[Any] | None = None) -> Recipe:
    level = ["pair.over.until.max_steps=200", "pair.over.lora.r=4", "pair.under.lora.r=4",
             "pair.over.learning_rate=5e-3", "pair.over.until.largest_rate=2e-2",
             "pair.over.until.retain_kept=0", "pair.under.until.retain_kept=0", *more]  # fmt: skip
    recipe = load_recipe("level", level)
    files = {n: str(knowing[n]) for n in ("forget", "retain", "holdout")}
    return change(recipe, model={"name": str(knowing["model"])}, data=files)


@pytest.fixture(scope="session")
def bracketed(knowing: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("bracketed") / "run")
    return train_pair(recipe_of(knowing), run)


def test_the_pair_brackets_the_level(bracketed: Run) -> None:
    over = read_json(bracketed.root / "until" / "over.json")
    assert over["outcome"] == "reached" and over["auc"] <= 0.45 and over["forget_exact"] == 0
    lines = [x["until"] for x in read_jsonl(bracketed.history) if "until" in x]
    (under,) = [x for x in lines if x["step"] == over["under_step"]]
    assert under["auc"] >= 0.55 and under["forget_nll"] - over["base"]["forget_nll"] >= 0.5
    assert all(x["decision"] and x["learning_rate"] > 0 for x in lines)
    assert bracketed.state("over") == bracketed.state("under") == "done"


def test_both_ends_are_plain_adapters_of_one_trajectory(bracketed: Run) -> None:
    over, under = read_adapter(bracketed.over), read_adapter(bracketed.under)
    assert over.deltas.keys() == under.deltas.keys()
    assert any((over.deltas[m].b != under.deltas[m].b).any() for m in over.deltas)
    assert not (bracketed.snapshots / "over-step00000").exists()


def test_the_rate_is_halved_after_a_collapse(knowing: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(
        knowing, "pair.over.learning_rate=0.5", "pair.over.until.largest_rate=1",
        "pair.over.until.auc_at_most=0", "pair.over.until.back_offs=12",
    )  # fmt: skip
    run = train_pair(recipe, Run(tmp_path / "run"))
    lines = [x["until"] for x in read_jsonl(run.history) if "until" in x]
    assert "back off" in [x["decision"] for x in lines]
    end = read_json(run.root / "until" / "over.json")
    assert end["outcome"] == "reached" and lines[-1]["learning_rate"] < 0.5


def test_a_collapsed_training_keeps_the_step_before_the_collapse(
    knowing: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(
        knowing, "pair.over.learning_rate=0.5", "pair.over.until.auc_at_most=0",
        "pair.over.until.largest_rate=1", "pair.over.until.back_offs=0",
        "pair.under.until={forget_risen: 0.0, forget_exact: 1.0}", "pair.over.until.every=1",
    )  # fmt: skip
    run = Run(tmp_path / "run")
    with pytest.raises(Exception, match="under-forgets"):
        train_pair(recipe, run)
    assert read_json(run.root / "until" / "over.json")["outcome"] == "collapsed"
    assert "which is kept" in capsys.readouterr().err
    assert run.state("over") == "done" and read_json(run.status)["over"]["outcome"] == "collapsed"


def test_resumed_training_ends_as_an_uninterrupted_one(
    knowing: dict[str, Path], tmp_path: Path, bracketed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = Run(tmp_path / "run"), 0
    measure = MeasuredSets.measure

    def cut(self: Any, model: Any, step: int) -> Check:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt
        return measure(self, model, step)

    monkeypatch.setattr(MeasuredSets, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        train_pair(recipe_of(knowing), run, checkpoint_seconds=0)
    monkeypatch.setattr(MeasuredSets, "measure", measure)
    train_pair(recipe_of(knowing), run, resume=True)
    one, other = read_adapter(run.over), read_adapter(bracketed.over)
    assert all((one.deltas[m].b == other.deltas[m].b).all() for m in one.deltas)
    one, other = read_adapter(run.under), read_adapter(bracketed.under)
    assert all((one.deltas[m].b == other.deltas[m].b).all() for m in one.deltas)


def test_twins_replace_a_missing_holdout(knowing: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"id": f"p{i}qa0", "input": f"When was Ann Lee{'abcdef'[i]} born?",
             "output": f"19{i}1-03-0{i + 1}"} for i in range(6)]  # fmt: skip
    write_jsonl(tmp_path / "forget.jsonl", rows)
    recipe = recipe_of(knowing)
    recipe = change(recipe, data={"forget": str(tmp_path / "forget.jsonl"), "holdout": None})
    sets = add_twins(read_data(recipe.data), recipe)
    assert (len(sets.held), len(sets.holdout)) == (18, 6)
    texts = {r.document for r in [*sets.forget, *sets.held, *sets.holdout]}
    assert len(texts) == 30 and {r.split for r in sets.holdout} == {"holdout"}


def test_rows_without_anything_to_perturb_need_a_holdout(knowing: dict[str, Path]) -> None:
    recipe = recipe_of(knowing)
    sets = read_data(recipe.data)
    plain = [replace(r, input="which?", output=f"{r.output[:1]} it is") for r in sets.forget]
    with pytest.raises(InputError, match="--holdout"):
        add_twins(replace(sets, forget=plain, holdout=[]), recipe)


@pytest.mark.parametrize(
    ("check", "until", "expected"),
    [
        ({"auc": 0.3}, {"auc_at_most": 0.35}, True),
        ({"auc": 0.4}, {"auc_at_most": 0.35}, False),
        ({"auc": None}, {"auc_at_most": 0.35}, False),
        ({"auc": 0.6}, {"auc_at_least": 0.6}, True),
        ({"auc": 0.9}, {"auc_at_least": 0.6, "auc_at_most": 0.8}, False),
        ({"auc": 0.4, "aucs": (0.3, 0.5)}, {"auc_at_most": 0.45}, False),  # in one form only
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("pair.over.until={every: 2}", "no condition"),
        ("pair.over.until={auc_at_least: 0.7, auc_at_most: 0.3}", "above"),
        ("pair.over.schedule=linear", "constant"),
        ("pair.over.until=null", "shared needs"),
        ("pair.over.watch={every: 2}", "leave out"),
    ],
)
def test_contradictions_are_refused(change: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("level", [change])


def test_refusals_answer_one_form_of_prompts() -> None:
    idk = "pair.over.objective=[{loss: idk, on: forget}, {loss: gd, on: retain}]"
    with pytest.raises(RecipeError, match="also_raw"):
        check_recipe(load_recipe("level", [idk]))
    check_recipe(load_recipe("level", [idk, "pair.over.until.also_raw=false"]))


def test_forget_rows_of_a_chat_model_are_trained_and_measured_raw_as_well(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(knowing["model"], folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    for raw in (True, False):
        recipe = recipe_of(knowing, "pair.over.until.max_steps=8", "pair.over.learning_rate=1e-3",
                           "pair.over.until.auc_at_most=0",
                           "pair.under.until={retain_kept: 0}",
                           f"pair.over.until.also_raw={str(raw).lower()}")  # fmt: skip
        recipe = change(recipe, model={"name": str(folder)})
        run = train_pair(recipe, Run(tmp_path / f"run-{raw}"))
        levels = read_json(run.root / "until" / "over.json")["levels"]
        for known in (levels["forget"], levels["unseen"]):
            own = {x for x in known if not x.endswith("@raw")}
            assert {x for x in known if x.endswith("@raw")} == ({f"{x}@raw" for x in own} if raw
                                                                else set())  # fmt: skip
        assert len(levels["forget"]) == (1 + raw) * len(read_jsonl(knowing["forget"]))
        measured = score_parts_of(run, recipe)
        assert find(measured, "mia_auc_level", "mia", part="choose") is not None
        assert find(measured, "mia_auc_level", "mia", part="report") is None


def score_parts_of(run: Run, recipe: Recipe) -> list[Score]:
    """Scores of the over-forgetting adapter, as a search measures them."""
    spec = change(recipe, search={"finalists": 1, "weights": [[0.5, 0.5]]}).search
    search(run, spec, Options(SearchBudget()))
    return read_scores(run.scores)["over"]


@pytest.mark.parametrize("slope, chosen, measured",
                         [(0.01, 4.0, 3), (3.0, 2.0, 3), (5.0, 1.0, 2), (9.0, 0.5, 2),
                          (99.0, 0.25, 2)])  # fmt: skip
def test_the_range_test_finds_the_largest_harmless_rate(
    slope: float, chosen: float, measured: int, tmp_path: Path
) -> None:
    """The retain NLL rises by slope times the distance that the weight is moved."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.weight.grad = torch.ones(1, 1)
    asked: list[float] = []

    class Sets:
        sets: dict[str, list[Any]] = {"forget": []}

        def measure_retain(self, model: Any) -> tuple[float, float]:
            asked.append(-model.weight.item() / until.STEPS_AHEAD)
            return 0.1 + slope * asked[-1] * until.STEPS_AHEAD, 1.0

        def measure_forget(self, model: Any) -> float:
            return 0.1

    rates = ["pair.over.learning_rate=1e-3", "pair.over.until.largest_rate=4e-3"]
    training = load_recipe("level", rates).pair.over  # type: ignore[union-attr]
    control = until.UntilController(
        training, Sets(), stage="over", folder=tmp_path,  # type: ignore[arg-type]
        history=tmp_path / "history.jsonl", save=lambda path: None,
    )  # fmt: skip
    control.base = BASE
    assert control._range_test(model) == pytest.approx(chosen * 1e-3)
    assert len(set(asked)) == measured and model.weight.item() == 0.0


def test_too_few_rows_are_refused_before_the_base_memorises_them(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "one.jsonl", [{"id": "a", "input": "which?", "output": "it is"}])
    for count, told in ((1, "1 non-member documents"), (2, "too few holdout rows")):
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("one", "few")}
        write_jsonl(Path(files["few"]), read_jsonl(knowing["holdout"])[:count])
        data = {"forget": files["one"], "holdout": files["few"]}
        recipe = change(recipe_of(knowing), data=data)
        run = Run(tmp_path / f"run{count}")
        with pytest.raises(InputError, match=told):
            train_pair(recipe, run, memorise_first=True)
        assert not run.state("memorise")


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
    control.base, control.checks, control.offsets = BASE, [replace(BASE, step=4)], [0.3, 0.3]
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
    control.base, control.checks, control.offsets = BASE, [replace(BASE, step=4)], [0.3]
    control.until = Until(**{"forget_exact": 0.0, "retain_kept": 0.9, **bounds})  # type: ignore[arg-type]
    control._decide(of_check(**check), last=False)
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


def test_one_retain_row_is_refused_before_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "retain.jsonl", read_jsonl(knowing["retain"])[:1])
    recipe = change(recipe_of(knowing), data={"retain": str(tmp_path / "retain.jsonl")})
    with pytest.raises(InputError, match="at least two"):
        train_pair(recipe, Run(tmp_path / "run"))


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


@pytest.mark.parametrize("rows, every, steps", [(3, None, 4), (24, None, 4), (48, None, 9),
                                                (80, None, 15), (80, 2, 2)])  # fmt: skip
def test_checks_are_three_quarters_of_a_pass_apart(
    rows: int, every: int | None, steps: int
) -> None:
    """Three quarters of a pass in batches of four, at least four steps."""
    more = [f"pair.over.until.every={every}"] if every else []
    training = load_recipe("level", more).pair.over  # type: ignore[union-attr]
    assert training.steps_between_checks(rows) == steps


def test_a_step_on_the_side_of_under_is_enough_to_end_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(knowing, "pair.under.until.retain_kept=1", "pair.under.until.forget_risen=9")
    run = train_pair(recipe, Run(tmp_path / "run"))
    lines = [x["until"] for x in read_jsonl(run.history) if "until" in x]
    assert "return" not in [x["decision"] for x in lines]
    over = read_json(run.root / "until" / "over.json")
    under = next(x for x in lines if x["step"] == over["under_step"])
    assert not over["under_met"] and under["auc"] >= 0.55 and over["auc"] <= 0.45
