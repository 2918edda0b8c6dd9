"""A training with `until` brackets the level of unseen rows, backs off, and can be resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT_TEMPLATE, build_tokenizer

from mergeforget.adapter import read_adapter
from mergeforget.errors import InputError, RecipeError
from mergeforget.files import read_json, read_jsonl, write_jsonl
from mergeforget.recipe import Recipe, change, load_recipe
from mergeforget.recipe_sections import DataSpec
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores
from mergeforget.search.budget import SearchBudget
from mergeforget.search.driver import Options, search
from mergeforget.train import checks, until
from mergeforget.train.checks import Check, MeasuredSets
from mergeforget.train.objective import check_recipe
from mergeforget.train.pair import train_pair
from mergeforget.train.run_rows import add_twins, read_data

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
        "pair.over.until.auc_at_most=0.2", "pair.over.until.back_offs=12",
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
    assert (len(sets.held), len(sets.holdout)) == (18, 24)
    texts = {r.document for r in [*sets.forget, *sets.held, *sets.holdout]}
    assert len(texts) == 48 and {r.split for r in sets.holdout} == {"holdout"}


def test_rows_without_anything_to_perturb_need_a_holdout(knowing: dict[str, Path]) -> None:
    recipe = recipe_of(knowing)
    sets = read_data(recipe.data)
    plain = [replace(r, input="which?", output=f"{r.output[:1]} it is") for r in sets.forget]
    with pytest.raises(InputError, match="Only 0 of .* forget rows have .*upper-case.*--holdout"):
        add_twins(replace(sets, forget=plain, holdout=[]), recipe)
    chinese = [
        replace(r, input="李明的电话号码是多少？", output="13812345678") for r in sets.forget
    ]
    with pytest.raises(InputError, match="Only 0 of .* forget rows have a perturbed twin"):
        add_twins(replace(sets, forget=chinese, holdout=[]), recipe)


@pytest.mark.parametrize(("forget", "message"), [("a.jsonl", "unlearn"), (None, "data make")])
def test_a_recipe_without_data_says_how_to_get_some(forget: str | None, message: str) -> None:
    with pytest.raises(
        RecipeError,
        match=f"give --.*`mergeforget {message}`",
    ):
        read_data(DataSpec(forget=forget))


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
    chat_only = [idk, "pair.over.until.also_raw=false"]
    with pytest.raises(RecipeError, match="forget_variants"):
        check_recipe(load_recipe("level", chat_only))
    check_recipe(load_recipe("level", [*chat_only, "pair.over.until.forget_variants=false"]))


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
                           "pair.over.until.forget_variants=false",
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


def test_one_retain_row_is_refused_before_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "retain.jsonl", read_jsonl(knowing["retain"])[:1])
    recipe = change(recipe_of(knowing), data={"retain": str(tmp_path / "retain.jsonl")})
    with pytest.raises(InputError, match="at least two"):
        train_pair(recipe, Run(tmp_path / "run"))


def test_a_step_on_the_side_of_under_is_enough_to_end_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(
        knowing, "pair.under.until.retain_kept=1", "pair.under.until.forget_risen=99"
    )
    run = train_pair(recipe, Run(tmp_path / "run"))
    lines = [x["until"] for x in read_jsonl(run.history) if "until" in x]
    assert "return" not in [x["decision"] for x in lines]
    over = read_json(run.root / "until" / "over.json")
    under = next(x for x in lines if x["step"] == over["under_step"])
    assert not over["under_met"] and under["auc"] >= 0.55 and over["auc"] <= 0.45


def test_twins_of_unseen_passages_are_held_where_the_base_knows_the_passages(
    knowing: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows(split: str) -> list[dict[str, str]]:
        letters = "abcdefghijkl" if split == "holdout" else "abcdef"
        names = [f"{split.title()} Lee{letter}" for letter in letters]
        dates = [f"19{i}1-03-{i + 10}" for i in range(len(names))]
        asked = zip(names, dates, strict=True)
        return [
            {"id": f"{split}{len(answer)}{name}", "input": f"When was {name} born?",
             "output": answer}
            for name, date in asked for answer in (date, f"{name} of Rome was born on {date} at 12")
        ]  # fmt: skip

    def remembered(twins: torch.Tensor, others: torch.Tensor) -> bool:
        tested.append(len(twins))
        return len(tested) == 2

    tested: list[int] = []
    monkeypatch.setattr(checks, "remembered", remembered)
    monkeypatch.setattr(checks, "PASSAGE", 14)
    for split in ("forget", "retain", "holdout"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows(split))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("forget", "retain", "holdout")}
    recipe = change(recipe_of(knowing, "pair.over.until.max_steps=2"), data=files)
    run = Run(tmp_path / "run")
    with pytest.raises(Exception, match="under-forgets"):
        train_pair(recipe, run)
    assert tested == [6, 6]
    assert "the base knows the wording of forget rows" in capsys.readouterr().err
    assert len(read_jsonl(run.history)) >= 2
