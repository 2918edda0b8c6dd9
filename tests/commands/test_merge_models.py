"""The command `mergeforget merge-models`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mergeforget.cli import main
from mergeforget.tensors import read_safetensors


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["merge-models", *map(str, words)])


def test_a_result_of_mergekit_is_replaced_but_no_other_folder(
    save_models: Callable[..., list[Path]], tmp_path: Path
) -> None:
    base, *models = save_models(tmp_path)
    config = {"merge_method": "nuslerp", "base_model": str(base)}
    rows = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    (tmp_path / "config.yml").write_text(json.dumps(config | {"models": rows, "dtype": "float32"}))
    words = ["--config", str(tmp_path / "config.yml"), "--out"]
    for _ in range(2):
        done = call(*words, tmp_path / "m")
        assert done.exit_code == 0 and "merged by mergekit" in done.output, done.output
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    done = call(*words, tmp_path / "home")
    assert done.exit_code == 4 and "no merge wrote" in done.output


def test_models_are_merged_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "--model",
        tiny_folder,
        "--model",
        tiny_folder,
        "--method",
        "linear",
        "--json",
    ]
    done = call(*words, "--out", tmp_path / "mean", "--max-memory", "100MB")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["candidate"]["weights"] == [0.5, 0.5]
    weights = [folder / "model.safetensors" for folder in (tiny_folder, tmp_path / "mean")]
    first, second = (read_safetensors(path)[0] for path in weights)
    assert all((first[name] == second[name]).all() for name in first)
    done = call(*words, "--out", tmp_path / "m", "--max-memory", "lots")
    assert done.exit_code == 2 and "not a size" in done.output
    assert "No such option" in call(*words, "--adapter", "x", "--out", tmp_path / "m").output


def test_slerp_weights_of_models_are_not_normalised(tiny_folder: Path, tmp_path: Path) -> None:
    """Its coefficients are no shares of a mean: those of a model and itself add up to it."""
    words: list[str | Path] = ["--model", tiny_folder, "--model", tiny_folder, "--method", "slerp"]
    done = call(*words, "--out", tmp_path / "m")
    assert done.exit_code == 0, done.output
    weights = [folder / "model.safetensors" for folder in (tiny_folder, tmp_path / "m")]
    first, second = (read_safetensors(path)[0] for path in weights)
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, rtol=1e-5)
    assert "weight" not in call(*words, "--print-mergekit").stdout


def test_a_configuration_of_mergekit_is_run_and_printed(tiny_folder: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["--base", tiny_folder, "--density", "0.5"]
    for name in ("one", "two"):
        words += ["--model", shutil.copytree(tiny_folder, tmp_path / name)]
    assert "--set vote=weighted" in call(*words, "--print-mergekit").output
    words += ["--set", "vote=weighted", "--set", "divide=weights"]
    printed = call(*words, "--print-mergekit")
    assert printed.exit_code == 0 and "merge_method: ties" in printed.stdout
    (tmp_path / "config.yml").write_text(printed.stdout)
    done = call("--config", tmp_path / "config.yml", "--out", tmp_path / "m", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["candidate"]["method"] == "ties"
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_a_filter_without_a_match_is_refused_except_in_a_configuration(
    tiny_folder: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = [
        "--model",
        tiny_folder,
        "--base",
        tiny_folder,
        "--out",
        tmp_path / "m",
    ]
    done = call(*words, "--density-by", "q_prj=0.5")
    assert done.exit_code == 2 and "Did you mean 'q_proj'?" in done.output
    rows = [{"model": str(tiny_folder), "parameters": {"weight": [
        {"filter": "q_prj", "value": 0.3}, {"value": 0.5}]}}]  # fmt: skip
    path = tmp_path / "mk.yml"
    path.write_text(json.dumps({"merge_method": "linear", "models": rows}))
    done = call("--config", path, "--out", tmp_path / "m")  # mergekit ignores such a filter
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "purpose"], "purpose merges adapters: use `mergeforget merge`"),
        (["--method", "task_arithmetic", "--weights", "0"], "Every weight is 0"),
        (["--model", "ADAPTER"], "--full --out MODEL"),
    ],
)
def test_incompatible_models_are_explained(
    words: list[str], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    given = [str(tmp_path / "a") if word == "ADAPTER" else word for word in words]
    models: list[str | Path] = ["--model", tiny_folder, "--base", tiny_folder]
    done = call(*models, *given, "--out", tmp_path / "m")
    assert done.exit_code in (2, 4) and message in done.output, done.output


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--config", "mk.yml", "--method", "ties", "--density", ".3"], "--method, --density"),
        (["--config", "mk.yml", "--model", "m"], "--model"),
        (["--config", "mk.yml", "--dtype", "float16"], "--dtype"),
        (["--config", "mk.yml", "--seed", "3"], "--seed"),
        (["--config", "mk.yml", "--print-mergekit"], "--print-mergekit"),
        (["--model", "m", "--method", "linear", "--print-mergekit", "--threads", "2"], "--threads"),
        (["--model", "m", "--method", "linear", "--seed", "2"], "--seed"),
        (["--model", "m", "--method", "linear", "--rank", "1"], "No such option '--rank'"),
    ],
)
def test_an_option_that_does_not_apply_is_refused_by_name(
    words: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"model": "a"}, {"model": "b"}]
    Path("mk.yml").write_text(json.dumps({"merge_method": "linear", "models": rows}))
    done = call(*words, "--out", "out")
    if "--print-mergekit" in words and "--config" not in words:
        option = f"--out, {option}" if option == "--threads" else option
    assert done.exit_code == 2 and option.split(", ")[-1] in done.output, done.output


def test_models_with_different_settings_are_refused_or_named(
    save_models: Callable[..., list[Path]], tiny_folder: Path, tmp_path: Path
) -> None:
    _, one, two = save_models(tmp_path)
    for model in (one, two):
        shutil.copy(tiny_folder / "tokenizer.json", model / "tokenizer.json")
    words: list[str | Path] = ["--method", "linear", "--model", one, "--model", two, "--out"]
    assert call(*words, tmp_path / "same").exit_code == 0
    config = json.loads((two / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    changed = config | {"rope_parameters": rope | {"rope_theta": 123.0}, "rms_norm_eps": 0.5}
    (two / "config.json").write_text(json.dumps(changed))
    done = call(*words, tmp_path / "rope")
    assert done.exit_code == 0 and "rms_norm_eps is" in done.stderr, done.output
    assert "rope_parameters is" in done.stderr
    (two / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    done = call(*words, tmp_path / "other")
    assert done.exit_code == 4 and "a mistral" in done.output, done.output
    assert call(*words, tmp_path / "other", "--same-base").exit_code == 0
    (two / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((two / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (two / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = call(*words, tmp_path / "permuted")
    assert done.exit_code == 4 and "'A' is token" in done.output, done.output


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("stated", [True, False])
def test_a_tied_output_layer_may_be_stored_or_not(
    stored: bool, stated: bool, save_models: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """Models with a tied output layer can be merged, whether or not they store it."""
    from safetensors.numpy import load_file, save_file

    _, one, two = save_models(tmp_path)
    if stored:
        tensors = load_file(two / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        save_file(tensors, two / "model.safetensors", {"format": "pt"})
    if not stated:
        for model in (one, two):
            config = json.loads((model / "config.json").read_text())
            config.pop("tie_word_embeddings", None)
            (model / "config.json").write_text(json.dumps(config))
    for i, pair in enumerate(((one, two), (two, one))):
        words = [w for model in pair for w in ("--model", model)]
        done = call("--method", "linear", *words, "--out", tmp_path / f"m{i}")
        assert done.exit_code == 0, done.output
        found = load_file(tmp_path / f"m{i}" / "model.safetensors")
        name = "model.embed_tokens.weight"
        wanted = sum(load_file(m / "model.safetensors")[name] for m in pair) / 2
        for tensor in {name, "lm_head.weight"} & found.keys():
            np.testing.assert_allclose(found[tensor], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: wizardry\nmodels: [{model: a}]", "'wizardry', which neither"),
        ("merge_method: arcee_fus\nmodels: [{model: a}]", "Did you mean 'arcee_fusion'?"),
        ("merge_method: nuslerp\nbase_model: /no/b\nmodels: [{model: /no/a}]", "could not"),
        ("merge_method: arcee_fusion\nmodels: 3", "models is '3', but must be a list"),
        ("merge_method: [a]\nmodels: [{model: a}]", "merge_method is ['a']"),
        ("merge_method: ties\nbase_model: [b]\nmodels: [{model: a}]", "base_model is ['b']"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: {a: 1}", "dtype is {'a': 1}"),
        ("merge_method: ties\nmodels: [{model: a, parameters: [1]}]", "parameters is '[1]'"),
        ("merge_method: ties\nparameters: x\nmodels: [{model: a}]", "parameters is 'x'"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: x}}]", "weight is 'x'"),
        ("merge_method: nuslerp\nmodels: [{model: a}]\nslices: []", "could not run"),
    ],
)
def test_a_configuration_that_mergekit_refuses_is_an_input_error_in_one_sentence(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "m.yml").write_text(text + "\n")
    done = call("--config", tmp_path / "m.yml", "--out", tmp_path / "out")
    assert done.exit_code == 4 and message in done.output, done.output
    assert len(done.stderr.split("Error: ")[1].strip().splitlines()) == 1
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp") or p.name == "out"]
