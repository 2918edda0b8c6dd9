"""A request to unlearn: refused, corrected, compared with that of the run, and its adapters."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import build_tokenizer
from unlearning import SMALL, call

import mergeforget as mf
from mergeforget.adapter import read_adapter
from mergeforget.api.earlier import (
    folded_base,
)
from mergeforget.api.job import Job
from mergeforget.api.unlearn import Unlearned, unlearn
from mergeforget.api.unlearn_pair import trained
from mergeforget.api.unlearn_request import differences, request_of, run_of
from mergeforget.cli import main
from mergeforget.errors import InputError, ResourceError, UsageError
from mergeforget.files import read_json, read_jsonl, write_json, write_jsonl
from mergeforget.recipe import change, load_recipe
from mergeforget.run import Run
from mergeforget.score import read_scores
from mergeforget.train import pair


def test_another_request_does_not_overwrite_a_run(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "other.jsonl", read_jsonl(knowing["forget"])[:3])
    with pytest.raises(InputError, match="another request"):
        call(knowing, result.run.root, forget=tmp_path / "other.jsonl")


def test_what_differs_from_the_stored_request_is_named(
    result: Unlearned, knowing: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = result.run.root
    for options, said in (
        ({"settings": [*SMALL[:-1], "search.weights=[[1, 0]]"]},
         "--set search.weights was [[0.5, 0.5]], now [[1, 0]]"),
        ({"settings": SMALL[1:]}, "--set pair.over.lora.r was 4, now not given"),
        ({"memorise": True}, "--memorise was not given, now given"),
        ({"holdout": None}, "the rows of --holdout differ"),
        ({"recipe": "zjuklab"}, "--recipe was level, now zjuklab"),
    ):  # fmt: skip
        sources = {n: knowing[n] for n in ("forget", "retain", "holdout")}
        with pytest.raises(InputError, match=re.escape(said)):
            unlearn(knowing["model"], out=run, **({"settings": SMALL} | sources | options))
    stored = read_json(run / "request.json")
    assert differences(stored, stored | {"settings": stored["settings"][::-1]}) == []
    monkeypatch.chdir(knowing["model"].parent)  # the same folder by another path
    assert differences(stored, stored | {"model": "model"}) == []


def test_two_calls_on_a_new_folder_do_not_mix_their_rows(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    with run.lock(), pytest.raises(ResourceError, match="is in use"):
        call(knowing, run.root)
    assert not (run.root / "request.json").exists()

    def checked(*arguments: Any) -> Run:  # another call begins after this one has looked
        found = run_of(*arguments)
        write_json(run.root / "request.json", {"model": "another"})
        return found

    monkeypatch.setattr("mergeforget.api.unlearn.run_of", checked)
    with pytest.raises(InputError, match="--memorise was not given|MODEL was another"):
        call(knowing, run.root)
    assert read_json(run.root / "request.json") == {"model": "another"}  # it is not withdrawn


def test_a_wrong_request_is_refused_before_the_training_and_can_be_corrected(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, began = tmp_path / "run", []

    def train(*_: Any, **__: Any) -> None:
        began.append(1)
        raise ResourceError("the training begins")

    monkeypatch.setattr(pair, "train_pair", train)
    both = tmp_path / "both.jsonl"
    shared = read_jsonl(knowing["retain"])[0] | {"split": "holdout"}
    write_jsonl(both, [*read_jsonl(knowing["holdout"]), shared])
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InputError, "There is no model at", {"control": str(tmp_path / "nosuch")}),
        (UsageError, "promts", {"attacks": ["promts"]}),
        (InputError, "rows are in both", {"holdout": both}),
    ]
    for error, message, options in wrong:
        with pytest.raises(error, match=message):
            call(knowing, out, **options)
        assert not (out / "request.json").exists() and not began
    with pytest.raises(ResourceError, match="the training begins"):
        call(knowing, out)


def test_a_request_that_the_training_refuses_can_be_corrected(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answers = tmp_path / "run", iter([InputError("too short"), ResourceError("disk full")])

    def train(*_: Any, **__: Any) -> None:
        raise next(answers)

    monkeypatch.setattr(pair, "train_pair", train)
    with pytest.raises(InputError, match="too short"):
        call(knowing, out)
    assert not (out / "request.json").exists()
    with pytest.raises(InputError, match="is not an adapter"):
        call(knowing, out, over=tmp_path / "nosuch")
    with pytest.raises(ResourceError, match="disk full"):
        call(knowing, out, system_prompt=None)
    assert (out / "request.json").exists()  # to be continued


def test_rows_that_only_the_recipe_names_are_not_replaced_by_generated_ones(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "forget": knowing["forget"]}
    for key, option in (("data.holdout", "--holdout"), ("model.name", "MODEL")):
        with pytest.raises(UsageError, match=f"--set {key} has no effect here. Give {option}"):
            unlearn(knowing["model"], settings=[f"{key}=x"], **options)
    recipe = change(load_recipe("level"), data={"holdout": str(knowing["holdout"])})
    options |= {"retain": knowing["retain"], "recipe": recipe}
    with pytest.raises(UsageError, match="The recipe sets data.holdout to .* Add --holdout"):
        unlearn(knowing["model"], **options)
    options |= {"forget": [knowing["forget"], knowing["holdout"]]}
    with pytest.raises(UsageError, match="The recipe sets data.holdout"):
        mf.unlearn_sequence(knowing["model"], **options)


def test_rows_of_an_earlier_call_that_failed_are_not_used(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, files = Run(tmp_path / "run"), {n: knowing[n] for n in ("forget", "retain")}
    shutil.copytree(knowing["forget"].parent, run.root / "request", dirs_exist_ok=True)
    write_jsonl(run.root / "request" / "holdout.jsonl", read_jsonl(knowing["holdout"]))
    asked = request_of(
        str(knowing["model"]), **files, holdout=None, recipe="level", memorise=False, control=None,
        adapter=None, after=None, template=None, system_prompt=None, turns=None, settings=(),
    )  # fmt: skip
    recipe, _ = trained(asked, Job(run, None), make_pair=lambda recipe, run: None)
    old = {row["input"] for row in read_jsonl(knowing["holdout"])}
    used = read_jsonl(Path(str(recipe.data.holdout))) if recipe.data.holdout else []
    assert not old & {row["input"] for row in used}


def test_a_masked_language_model_is_refused_before_the_training(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    build_tokenizer().save_pretrained(tmp_path / "bert")
    files: dict[str, Any] = {n: knowing[n] for n in ("forget", "retain", "holdout")}
    faults = "is not a causal language model|cannot be evaluated"  # by its weights
    with pytest.raises(InputError, match=faults):
        unlearn(tmp_path / "bert", out=tmp_path / "run", **files)
    assert not (tmp_path / "run" / "request.json").exists()


@pytest.mark.parametrize("given", [("over", "under"), ("under",)])
def test_existing_adapters_are_sides_of_the_pair(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path, given: tuple[str, ...]
) -> None:
    trained_pair = result.run.paths
    sides: dict[str, Any] = {side: getattr(trained_pair, side) for side in given}
    again = call(knowing, tmp_path / "run", attacks=[], **sides)
    run = again.run.paths
    for side in given:
        old, new = (read_adapter(getattr(one, side)) for one in (trained_pair, run))
        assert all((old.deltas[m].dense() == new.deltas[m].dense()).all() for m in old.deltas)
    if len(given) == 2:
        for side in given:
            before, after = (
                {(s.metric, s.split): s.value for s in read_scores(one.scores, "all")[side]}
                for one in (trained_pair, run)
            )
            assert after.keys() > {("mia_auc", "mia"), ("nll", "forget"), ("exact_match", "retain")}
            assert after.items() <= before.items()  # without levels, which a training measures
    repeated = call(knowing, run.root, attacks=[], **sides)
    assert repeated.table == again.table
    with pytest.raises(InputError, match="another request: the weights of --under differ"):
        call(knowing, run.root, attacks=[], **(sides | {"under": trained_pair.over}))


def test_an_existing_adapter_is_part_of_the_request(
    result: Unlearned, knowing: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match="the weights of --over differ"):
        call(knowing, result.run.paths.root, attacks=[], over=result.run.paths.under)


def test_existing_adapters_belong_to_the_named_model(
    result: Unlearned, knowing: dict[str, Path], tmp_path: Path
) -> None:
    over = result.run.paths.over
    with pytest.raises(UsageError, match="are adapters of MODEL itself"):
        call(knowing, tmp_path / "run", over=over, memorise=True)
    words = ["--forget", str(knowing["forget"]), "--forget", str(knowing["retain"])]
    done = CliRunner().invoke(main, ["unlearn", str(knowing["model"]), *words, "--over", str(over)])
    assert done.exit_code == 2 and "give --forget once" in done.output


def test_an_adapter_of_another_base_is_reported(
    tmp_path: Path, save_adapter: Callable[..., Path], knowing: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    adapter = save_adapter(tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    write_json(path, read_json(path) | {"base_model_name_or_path": "org/other"})
    request = {"model": str(knowing["model"]), "adapter": str(adapter), "after": None}
    folded_base(Run(tmp_path / "run"), request)
    assert "was trained on org/other, and is merged into" in caplog.text
