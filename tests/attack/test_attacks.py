"""Attacks on models of which it is known what they know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from memorising import FORGET, HOLDOUT, RETAIN, people, train

from mergeforget.attack.methods import ATTACKS
from mergeforget.attack.methods.probe import probe
from mergeforget.attack.methods.prompts import prompts
from mergeforget.attack.methods.quantise import judged, quantise
from mergeforget.attack.methods.relearn import _lesson, relearn
from mergeforget.attack.methods.relearn_unrelated import relearn_unrelated
from mergeforget.attack.methods.second_turn import second_turn
from mergeforget.attack.result import Result
from mergeforget.attack.scores import FOLLOWED, ScoredRows, forget_scores, losses_of
from mergeforget.attack.target import Facts, Models, NotApplicableError, Target, TargetModel
from mergeforget.attack.tuning import Tuning, learner, tune
from mergeforget.data.schema import Row
from mergeforget.errors import InputError, UsageError
from mergeforget.evaluate.membership import matched
from mergeforget.files import write_jsonl
from mergeforget.recipe import ModelSpec

Make = Callable[..., Target]
Points = list[Facts]
FAST: dict[str, Any] = {"steps": 5, "learning_rate": 3e-3, "batch": 4}


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> dict[str, Path]:
    """``knows`` memorised forget and retain, ``hides`` is that after a few steps of ascent on
    forget, ``broken`` after many steps on all rows, ``never`` learned retain alone."""
    root = tmp_path_factory.mktemp("attacked")
    found = {}

    def keep(name: str, model: Any) -> None:
        found[name] = root / name
        model.save_pretrained(found[name])
        tiny_tokenizer.save_pretrained(found[name])

    model = make_model(seed=1)
    train(model, tiny_tokenizer, FORGET + RETAIN, 130, 1e-2)
    keep("knows", model)
    train(model, tiny_tokenizer, FORGET, 12, -1e-3)
    keep("hides", model)
    train(model, tiny_tokenizer, FORGET + RETAIN, 40, -1e-3)
    keep("broken", model)
    never = make_model(seed=1)
    train(never, tiny_tokenizer, RETAIN, 60, 1e-2)
    keep("never", never)
    return found


@pytest.fixture
def target_of(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Target]:
    """A target with one of the folders as the attacked model: ``target_of("hides")``."""

    def make(name: str, **more: Any) -> Target:
        settings: dict[str, Any] = {
            "before": TargetModel("before", str(folders["knows"])),
            "control": TargetModel("control", str(folders["never"])),
            "forget": FORGET,
            "retain": RETAIN,
            "holdout": HOLDOUT,
            "folder": tmp_path / "attacks",
            "membership": "answers",
            "max_new_tokens": 8,
        }
        attacked = TargetModel(name, str(folders[name]))
        return Target(Models(ModelSpec(name=name)), attacked, **(settings | more))

    return make


def test_only_the_compared_part_of_a_large_holdout_is_scored(target_of: Make) -> None:
    """For few forget rows, 48 others, those that an evaluation draws."""
    many = people("holdout", 3, 40)
    target = target_of("hides", forget=FORGET[:4], holdout=many)
    assert len(target.compared()) == 48
    assert target.compared() == matched(FORGET[:4], many, target.seed)[1]
    facts = forget_scores(*_opened(target), ScoredRows.of(target), target, label="")
    assert len(losses_of(facts, "holdout")) == 24  # of two rows each


def _opened(target: Target) -> tuple[Any, Any]:
    with target.models.opened(target.attacked) as opened:
        return opened


def column(result: Result, model: str, key: str) -> list[Any]:
    return [row[key] for row in result.rows if row["model"] == model]


@pytest.fixture
def relearned(target_of: Make) -> Result:
    return relearn(target_of("hides"), **FAST | {"steps": 20}, full=True)


def test_relearning_recovers_hidden_data(relearned: Result) -> None:
    hidden, control = (column(relearned, m, "nll") for m in ("hides", "control"))
    assert column(relearned, "hides", "step") == [0, 1, 2, 3, 4, 5, 7, 10, 15, 20]
    assert (
        control[-1] > hidden[-1] + 0.5
    )  # nats per token, on rows that neither model was trained on
    assert relearned.finding == "traces" and "does not hold" in relearned.verdict
    last = relearned.figures["evidence"]["last"]
    assert last["beyond_holdout"]["low"] > 0 and relearned.settings["hidden"] == 12
    assert column(relearned, "before", "step") == [0] and relearned.figures["power"] == "traces"


def test_relearning_finds_nothing_in_a_model_without_the_data(
    target_of: Make, folders: dict[str, Path]
) -> None:
    target = target_of("never", control=TargetModel("control", str(folders["never"])))
    result = relearn(target, **FAST)
    assert result.finding == "none found" and "does not refute" in result.verdict
    last = result.figures["evidence"]["last"]
    assert last["over_control"]["value"] == 0  # the same model and training rows


def test_a_model_that_has_not_recovered_is_not_cleared(
    target_of: Make, folders: dict[str, Path]
) -> None:
    target = target_of("broken")
    result = relearn(target, **FAST | {"learning_rate": 1e-5})
    assert result.finding == "undecided" and "has not recovered" in result.verdict


def test_relearning_other_text_and_without_a_control(target_of: Make, tmp_path: Path) -> None:
    target = target_of("hides", control=None)
    result = relearn(target, **FAST, on="retain")
    assert result.settings["hidden"] == 16 and result.finding == "no control"
    alone = relearn(target_of("hides", holdout=[]), **FAST, on="retain")
    assert alone.finding == "traces"  # the model repeats an answer verbatim, the control does not
    assert {one["kind"] for one in alone.examples} == {"exact answer"}
    general = relearn_unrelated(target_of("hides"), **FAST)
    assert general.settings["hidden"] == 16 and general.settings["shown"] == 12
    with pytest.raises(InputError, match="forget, retain, both, unrelated or a data file"):
        relearn(target, on=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="none would be left"):
        relearn(target, shown=99)


def test_forget_rows_that_a_file_shows_are_not_counted_as_hidden(
    target_of: Make, tmp_path: Path
) -> None:
    target, path = target_of("hides"), tmp_path / "rows.jsonl"

    def lesson_of(rows: list[Row]) -> tuple[list[Row], list[Row]]:
        write_jsonl(path, [row.to_dict() for row in rows])
        return _lesson(target, str(path), None)

    lesson, hidden = lesson_of([FORGET[0], RETAIN[0]])
    assert len(lesson) == 2
    assert hidden == FORGET[2:]  # the second row belongs to the document of the first one
    with pytest.raises(UsageError, match="none would be left"):
        lesson_of(FORGET)
    with pytest.raises(InputError, match="2 rows of the holdout"):
        lesson_of([FORGET[0], *HOLDOUT[:2]])


def test_rows_about_one_person_are_divided_for_relearning(target_of: Make) -> None:
    person = [replace(row, subject="Ann") for row in FORGET]
    lesson, hidden = _lesson(target_of("hides", forget=person), "forget", None)
    assert len(lesson) == len(person) // 4 and len(lesson) + len(hidden) == len(person)
    assert {row.subject for row in hidden} == {"Ann"}  # intervals count one person
    lesson, hidden = _lesson(target_of("hides", forget=FORGET[:1]), "both", None)
    assert lesson == RETAIN and hidden == FORGET[:1]
    with pytest.raises(NotApplicableError, match="none would be left"):
        _lesson(target_of("hides", forget=FORGET[:1]), "forget", None)


@pytest.mark.parametrize("full", [True, False])
def test_a_relearned_model_is_restored(tiny_model: Any, full: bool) -> None:
    before = {n: p.detach().clone() for n, p in tiny_model.named_parameters()}
    tuning = Tuning(1, 1e-2, 1, 2, full, seed=0)
    with pytest.raises(RuntimeError, match="stop"), learner(tiny_model, tuning) as (_, trained):
        for parameter in trained:
            parameter.data += 1
        raise RuntimeError("stop")
    assert {n for n, _ in tiny_model.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in tiny_model.named_parameters())


def test_relearning_is_reproducible_for_a_seed(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [Row(f"r{i}", f"n {i}", f"{i}{i}") for i in range(5)]

    def norms(policy: Any, step: int) -> dict[str, float]:
        return {"norm": float(sum(p.detach().double().norm() for p in policy.parameters()))}

    tuning = Tuning(3, 1e-2, 2, 2, False, seed=4)
    first, second = (
        tune(tiny_model, tiny_tokenizer, rows, tuning, norms, label="x") for _ in range(2)
    )
    assert first == second and len({f["norm"] for f in first}) == len(tuning.points()) == 4


def test_measured_steps_are_dense_at_the_start() -> None:
    points = Tuning(100, 1e-3, 4, 8, False, 0).points()
    assert points == [0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100]
    assert Tuning(1, 1e-3, 4, 8, False, 0).points() == [0, 1]


def test_a_memorised_answer_leaks_by_prefix(target_of: Make) -> None:
    result = prompts(target_of("knows", before=None), kinds=["plain", "prefix"], words=[1])
    leaks = {m: dict(zip(column(result, m, "kind"), column(result, m, "row_leak_rate"),
                         strict=True)) for m in ("knows", "control")}  # fmt: skip
    assert leaks["knows"]["prefix"] > 0.8 and leaks["control"]["prefix"] < 0.2
    assert result.finding == "traces" and result.examples[0]["secret"]
    blank = prompts(target_of("never"), kinds=["plain"])
    assert blank.finding == "none found" and not blank.examples
    assert "19%" in blank.verdict  # 3 / 16: what none of 16 leaves open


def test_every_model_continues_the_conversation_of_the_attacked_one(
    target_of: Make, tmp_path: Path
) -> None:
    result = second_turn(target_of("hides", before=None))
    written = (tmp_path / "attacks" / result.figures["answers"]).with_suffix(".parquet")
    rows = pq.read_table(written).to_pylist()
    asked = {model: [r["prompt"] for r in rows if r["model"] == model]
             for model in ("hides", "control")}  # fmt: skip
    assert asked["hides"] == asked["control"] and len(set(asked["hides"])) == len(asked["hides"])
    first = asked["hides"][0].split("\n")
    assert first[0] in {row.input for row in FORGET} and first[-1] == "Are you sure?"


def test_answers_without_a_usable_prompt_are_reported(target_of: Make) -> None:
    short = [Row("a1qa0", "How many?", "42", "T", "forget")]
    with pytest.raises(InputError, match="No row can be tested with prefix"):
        prompts(target_of("hides", forget=short), kinds=["prefix"])
    told = [Row("a1qa0", "Is it Lund or Oslo?", "Lund", "T", "forget")]
    with pytest.raises(InputError, match="each answer is in its own prompt"):
        prompts(target_of("hides", forget=told), kinds=["plain"])


def test_quantised_models_are_compared_with_the_model_before(target_of: Make) -> None:
    result = quantise(target_of("hides"), bits=(8, 2), group=16)
    for model in ("hides", "before", "control"):
        assert column(result, model, "bits") == ["all", 8, 2]
    whole, eight, two = column(result, "hides", "nll")
    assert abs(eight - whole) < 0.05 < 0.1 < abs(two - whole)
    assert result.figures["known_before"] > 0
    assert result.figures["share_rounded"] == {8: 1.0, 2: 1.0}


def points_of(losses: dict[int, list[float]], holdout: list[float], share: float = 1) -> Points:
    """Scores of a model with these losses of forget people at each width, 0 as it is."""
    others = dict.fromkeys((*FOLLOWED, "retain_nll"))
    return [
        {"bits": bits, "rounded": share, "rows": {}, **others,
         "documents": {"forget": {f"f{i}": x for i, x in enumerate(every)},
                       "holdout": {f"h{i}": x for i, x in enumerate(holdout)}}}
        for bits, every in losses.items()
    ]  # fmt: skip


def test_quantisation_convicts_only_if_the_control_is_beaten_at_the_same_bits() -> None:
    """A model that gains by rounding, but only up to what the control knows, is innocent."""
    noise = [0.1, -0.1, 0.05, -0.05] * 3
    control = points_of({0: [5 + x for x in noise], 4: [5 + x for x in noise]}, [5.0, 5.1] * 6)
    before = points_of({0: [0.1 + x / 2 for x in noise], 4: [0.2 + x / 3 for x in noise]},
                       [5.0, 5.1] * 6)  # fmt: skip
    gains = points_of({0: [9 - x for x in noise], 4: [5.5 - x for x in noise]}, [6.0, 6.1] * 6)
    knows = points_of({0: [9 - x for x in noise], 4: [3 - x for x in noise]}, [5.0, 5.2] * 6)
    others = {"control": control, "before": before}
    assert judged("quantise", "m", {"m": gains, **others}, {}).finding == "none found"
    result = judged("quantise", "m", {"m": knows, **others}, {})
    assert result.finding == "traces" and "at 4 bits it reveals more" in result.verdict
    assert judged("quantise", "m", {"m": knows, "before": before}, {}).finding == "no control"
    weak = judged("quantise", "m", {"m": gains, "control": control, "before": control}, {})
    assert weak.finding == "no power"
    part = points_of({0: [9 - x for x in noise], 4: [5.5 - x for x in noise]}, [6.0, 6.1] * 6, 0.5)
    result = judged("quantise", "m", {"m": part, **others}, {})
    assert result.finding == "undecided" and "only 50.0% of the weights" in result.verdict


def test_style_shared_with_the_holdout_is_not_memory() -> None:
    """A model that predicts all such text better than the control is innocent."""
    control = points_of({0: [5.0, 5.1] * 6, 4: [5.0, 5.1] * 6}, [5.0, 5.2] * 6)
    fluent = points_of({0: [3.0, 3.2] * 6, 4: [3.0, 3.2] * 6}, [3.0, 3.1] * 6)
    result = judged("quantise", "m", {"m": fluent, "control": control, "before": points_of(
        {0: [0.1, 0.2] * 6, 4: [0.1, 0.2] * 6}, [5.0, 5.2] * 6)}, {})  # fmt: skip
    assert result.finding == "none found"


def test_a_probe_reads_every_layer(target_of: Make) -> None:
    result = probe(target_of("hides"), shuffles=19)
    assert column(result, "hides", "layer") == [0, 1, 2]  # embeddings and two layers
    assert all(0 <= auc <= 1 for auc in column(result, "control", "auc"))
    assert set(result.figures["p"]) == {"hides", "before", "control"}
    few = target_of("hides", forget=FORGET[:4], holdout=HOLDOUT[:4])
    result = probe(few, pool="mean", shuffles=19)  # 6 ways to label four documents
    assert result.finding == "no power"  # too few documents for any probe


def test_measurements_are_cached(target_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of("hides", before=None, control=None)
    first = quantise(target, bits=(4,))

    def no_model(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mergeforget.attack.target.load_model", no_model)
    again = target_of("hides", before=None, control=None)
    assert quantise(again, bits=(4,)) == first
    with pytest.raises(AssertionError, match="a model was loaded"):
        quantise(again, bits=(4,), group=8)  # a changed setting is measured again


def test_error_for_missing_rows_names_the_option(target_of: Make) -> None:
    with pytest.raises(InputError, match="needs holdout rows"):
        probe(target_of("hides", holdout=[]))


def test_every_attack_has_a_summary() -> None:
    for name in ATTACKS.names():
        entry = ATTACKS.get(name)
        assert entry.name == name and entry.source and entry.summary
