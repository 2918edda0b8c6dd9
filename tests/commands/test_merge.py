"""The command `mergeforget merge`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mergeforget.adapter import read_adapter
from mergeforget.candidate import DEFAULT, Candidate
from mergeforget.cli import main
from mergeforget.merge.engine import merge_adapters
from mergeforget.recipe import change, load_recipe, save_recipe
from mergeforget.tensors import read_safetensors

WriteLora = Callable[..., Path]


def call(*words: str | Path) -> Result:
    """`merge`, or `merge-models` where the options are its own."""
    given = [str(word) for word in words]
    models = {"--model", "--config"} & set(given)
    return CliRunner().invoke(main, ["merge-models" if models else "merge", *given])


@pytest.fixture
def run(tmp_path: Path, write_lora: WriteLora, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The newest of two runs under runs/, with a pair."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "second"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("over", "under")):
        write_lora(name, seed).rename(folder / name)
    save_recipe(load_recipe("zjuklab"), folder / "recipe.yaml")
    return folder


def test_the_pair_of_the_newest_run_becomes_a_candidate(run: Path) -> None:
    done = call("--density", "0.7", "--json")
    assert done.exit_code == 0, done.output
    assert "Run: runs/second" in done.stderr
    facts = json.loads(done.stdout)
    assert facts["folder"] == "runs/second/candidates/ties-factors-d0.70"
    candidate = Candidate.from_dict(json.loads(Path(facts["folder"], "candidate.json").read_text()))
    assert candidate == Candidate("ties", 0.7)
    wanted = merge_adapters([read_adapter(run / "over"), read_adapter(run / "under")], candidate)
    for module, delta in read_adapter(Path(facts["folder"])).deltas.items():
        assert delta.b.tobytes() == wanted.adapter.deltas[module].b.tobytes()


def test_without_a_method_the_recipe_of_the_run_applies(run: Path) -> None:
    merge = {"density": 0.3, "weights": [1, 0.5], "seed": 7, "arguments": {"sign": "count"}}
    merge["method"] = "dare_ties"
    save_recipe(change(load_recipe("zjuklab"), merge=merge), run / "recipe.yaml")

    def candidate(*words: str) -> Candidate:
        done = call(run, *words, "--json")
        assert done.exit_code == 0, done.output
        return Candidate.from_dict(json.loads(done.stdout)["candidate"])

    told = Candidate("dare_ties", 0.3, (1.0, 0.5), seed=7, arguments={"sign": "count"})
    assert candidate() == told
    assert candidate("--density", "0.9", "--seed", "0") == replace(told, density=0.9, seed=0)
    assert candidate("--set", "sign=total").arguments == {"sign": "total"}
    assert candidate("--method", "linear") == Candidate("linear")


def test_a_method_without_a_density_gets_the_default_one(run: Path) -> None:
    """For methods that need one; a method that takes none, or has its own default, gets none."""

    def density(*words: str) -> float | None:
        done = call(run, *words, "--json")
        assert done.exit_code == 0, done.output
        return Candidate.from_dict(json.loads(done.stdout)["candidate"]).density

    assert density("--method", "ties") == density() == DEFAULT.density == 0.8
    assert density("--method", "ties_svd") == density("--method", "dare-ties") == 0.8
    assert density("--method", "linear") is density("--method", "magmax") is None
    save_recipe(change(load_recipe("zjuklab"), merge={"method": "linear"}), run / "recipe.yaml")
    assert density() is None


def test_precision_is_an_option_and_a_key_of_the_recipe(run: Path, tmp_path: Path) -> None:
    pair = [read_adapter(run / "over"), read_adapter(run / "under")]
    words = [str(run), "--method", "svd", "--rank", "2", "--json", "--out"]
    factors = {}
    for precision in ("float32", "float64"):
        done = call(*words, str(tmp_path / precision), "--precision", precision)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["precision"] == precision
        factors[precision] = read_adapter(tmp_path / precision).deltas
    merge = {"method": "svd", "density": None, "precision": "float64"}
    save_recipe(change(load_recipe("zjuklab"), merge=merge), run / "recipe.yaml")
    assert json.loads(call(run, "--json").stdout)["precision"] == "float64"
    for module, delta in factors["float64"].items():
        whole = sum(adapter.deltas[module].dense().astype("f8") for adapter in pair)
        u, s, v = np.linalg.svd(whole)
        wanted = (u[:, :2] * s[:2]) @ v[:2]
        apart, usual = (
            abs(d.b.astype("f8") @ d.a - wanted).max() for d in (delta, factors["float32"][module])
        )
        assert apart < 1e-6 and usual < 1e-4


def test_peft_s_names_weights_and_arguments_are_understood(run: Path) -> None:
    done = call(
        run, "--method", "ties_svd", "--density", "0.5", "--weights", "1,-0.5", "--rank", "2",
        "--set", "sign=count", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    candidate = json.loads(done.stdout)["candidate"]
    assert candidate["method"] == "ties" and candidate["space"] == "delta"
    assert candidate["weights"] == [1.0, -0.5] and candidate["arguments"] == {"sign": "count"}


def test_the_text_reports_truncation_and_space_error(run: Path) -> None:
    assert "of the energy" in call(run, "--method", "svd").output
    assert "from the same method" in call(run, "--method", "linear").output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--density", "0"], 2, "must be in (0, 1]"),
        (["--density", "1.5"], 2, "write 0.8 for 80 percent"),
        (["--method", "tis", "--density", "0.5"], 2, "Did you mean 'ties'?"),
        (["--density", "0.5", "--weights", "1,x"], 2, "not a list of numbers"),
        (["--density", "0.5", "--weights", "1,1,1"], 2, "3 weights"),
        (["--density", "0.5", "--set", "sign"], 2, "NAME=VALUE"),
        (["--density", "0.5", "--adapter", "absent", "--out", "x"], 4, "absent is not an adapter"),
    ],
)
def test_what_cannot_be_done_is_said_and_coded(
    run: Path, words: list[str], code: int, message: str
) -> None:
    done = call(*words)
    assert done.exit_code == code and message in done.output, done.output
    assert not (run / "candidates").exists()


def test_adapters_by_name_need_a_place(run: Path, write_lora: WriteLora, tmp_path: Path) -> None:
    one, two = write_lora("one"), write_lora("two", 1)
    words = ["--density", "0.5", "--adapter", str(one), "--adapter", str(two)]
    assert "--out" in call(*words).output
    assert call(*words, "--out", str(tmp_path / "merged")).exit_code == 0
    assert read_adapter(tmp_path / "merged").deltas.keys() == read_adapter(one).deltas.keys()


def test_what_no_merge_made_is_not_replaced(
    run: Path, write_lora: WriteLora, tmp_path: Path
) -> None:
    """A folder of something else, a file, an adapter that is merged, one that holds it."""
    one, two = write_lora("one"), write_lora("two", 1)
    words = ["--method", "ties", "--density", "0.5", "--adapter", str(one), "--adapter", str(two)]
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    for out, message in [
        (home, "not merged here: thesis.tex"),
        (home / "thesis.tex", "is a file"),
        (one, "one is read"),
        (tmp_path, "contains"),
    ]:
        done = call(*words, "--out", out)
        assert done.exit_code == 4 and message in done.output, done.output
    done = call(run, "--method", "linear", "--out", run / "under")
    assert done.exit_code == 4 and "under is read" in done.output
    assert (home / "thesis.tex").read_text() == "years of work"
    assert read_adapter(one).deltas and read_adapter(run / "under").deltas


def test_an_earlier_merge_is_replaced_unless_it_is_merged_again(
    write_lora: WriteLora, tmp_path: Path
) -> None:
    one, two, out = write_lora("one"), write_lora("two", 1), tmp_path / "out"
    out.mkdir()
    for density in ("0.5", "0.7"):
        words = ["--density", density, "--adapter", str(one), "--adapter", str(two)]
        assert call(*words, "--out", out).exit_code == 0
        facts = json.loads((out / "candidate.json").read_text())
        assert facts["density"] == float(density)
    done = call("--density", "0.5", "--adapter", one, "--adapter", out, "--out", out)
    assert done.exit_code == 4 and "out is read" in done.output, done.output


def test_models_that_are_read_are_not_replaced(
    tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter")
    (base / "candidate.json").write_text("{}")  # as if it had been merged
    config = {
        "merge_method": "slerp",
        "base_model": str(base),
        "models": [{"model": str(tiny_folder)}],
    }
    (tmp_path / "config.yml").write_text(json.dumps(config))
    before = (base / "model.safetensors").read_bytes()
    every: list[list[str | Path]] = [
        ["--method", "linear", "--full", "--base", base, "--adapter", adapter],
        ["--method", "linear", "--model", base, "--model", tiny_folder],
        ["--config", tmp_path / "config.yml"],
    ]
    for words in every:
        done = call(*words, "--out", base)
        assert done.exit_code == 4 and "base is read" in done.output, done.output
    assert (base / "model.safetensors").read_bytes() == before


def test_what_mergekit_wrote_is_written_again_and_nothing_else(
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
    assert done.exit_code == 4 and "not merged here" in done.output


def test_a_full_model_is_written_and_its_rounding_error_reported(
    tiny_folder: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    pair = [save_adapter(tmp_path / name, seed) for seed, name in ((1, "over"), (2, "under"))]
    words = ["--density", "0.7", "--full", "--base", str(tiny_folder), "--dtype", "bfloat16"]
    for folder in pair:
        words += ["--adapter", str(folder)]
    done = call(*words, "--out", tmp_path / "full")
    assert done.exit_code == 0, done.output
    assert "realised change" in done.stdout and (tmp_path / "full" / "config.json").exists()


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


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--density", "0.5", "--dtype", "bfloat16"], "--dtype"),
        (["--density", "0.5", "--device", "cude"], "--device cude"),
        (["--density", "0.5", "--max-memory", "800MB", "--shard-size", "1GB"], "--max-memory"),
        (["--density", "0.5", "--base", "b"], "--base"),
        (["--density", "0.5", "--seed", "0"], "--seed"),
        (["--density", "0.5", "--svd", "exact"], "--svd"),
        (["--method", "svd", "--compare"], "--compare"),
        (["--method", "cat", "--rank", "2"], "--rank"),
        (["--density", "0.5", "--rank", "2"], "space delta"),
        (["--density", "0.5", "--data", "rows.jsonl"], "--data"),
        (["--density", "0.5", "--full", "--compare", "--out", "m"], "--compare"),
        (["--density", "0.5", "--adapter", "a", "--out", "m"], "RUN and --adapter"),
    ],
)
def test_an_option_that_does_not_apply_is_refused_by_name(
    run: Path, words: list[str], option: str
) -> None:
    done = call(run, *words)
    assert done.exit_code == 2 and option in done.output, done.output
    assert not (run / "candidates").exists()


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
def test_an_option_that_merge_models_does_not_use_is_refused_by_name(
    words: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"model": "a"}, {"model": "b"}]
    Path("mk.yml").write_text(json.dumps({"merge_method": "linear", "models": rows}))
    done = CliRunner().invoke(main, ["merge-models", *words, "--out", "out"])
    if "--print-mergekit" in words and "--config" not in words:
        option = f"--out, {option}" if option == "--threads" else option
    assert done.exit_code == 2 and option.split(", ")[-1] in done.output, done.output


def test_one_adapter_is_truncated_to_a_rank(write_lora: WriteLora, tmp_path: Path) -> None:
    one = write_lora("one", rank=4)
    done = call("--adapter", one, "--rank", "2", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["candidate"]["method"] == "linear" and facts["candidate"]["rank"] == 2
    lost = energy = 0.0
    whole, found = read_adapter(one), read_adapter(tmp_path / "out")
    for module, delta in whole.deltas.items():
        s = np.linalg.svd(delta.dense(), compute_uv=False)
        assert found.deltas[module].rank == 2
        best = float(np.linalg.norm(s[2:]))
        apart = np.linalg.norm(delta.dense() - found.deltas[module].dense())
        assert apart == pytest.approx(best, rel=1e-3)
        lost, energy = lost + best**2, energy + (s**2).sum()
    assert facts["energy_lost"] == pytest.approx(lost / energy, rel=1e-3)


def test_models_of_other_kinds_are_refused_or_named(
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
    """Models that tie their output layer merge, whoever stores it and whatever the config says."""
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
def test_what_mergekit_refuses_is_an_input_error_in_one_sentence(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "m.yml").write_text(text + "\n")
    done = call("--config", tmp_path / "m.yml", "--out", tmp_path / "out")
    assert done.exit_code == 4 and message in done.output, done.output
    assert len(done.stderr.split("Error: ")[1].strip().splitlines()) == 1
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp") or p.name == "out"]
