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

    expected = Candidate("dare_ties", 0.3, (1.0, 0.5), seed=7, arguments={"sign": "count"})
    assert candidate() == expected
    assert candidate("--density", "0.9", "--seed", "0") == replace(expected, density=0.9, seed=0)
    assert candidate("--set", "sign=total").arguments == {"sign": "total"}
    assert candidate("--method", "linear") == Candidate("linear")


def test_an_omitted_density_is_the_default(run: Path) -> None:
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
        (["--density-by", "q_prj=0.5"], 2, "Did you mean 'q_proj'?"),
        (["--method", "linear", "--weights", "0,0"], 2, "Every weight is 0"),
        (["--method", "svd", "--rank", "99"], 2, "Rank 99 is more than the result can have"),
        (["--method", "ties_svd", "--rank", "99"], 2, "Rank 99 is more than the result can have"),
        (["--density", "0.5", "--adapter", "absent", "--out", "x"], 4, "absent is not an adapter"),
    ],
)
def test_an_impossible_merge_ends_with_a_message_and_an_exit_code(
    run: Path, words: list[str], code: int, message: str
) -> None:
    done = call(*words)
    assert done.exit_code == code and message in done.output, done.output
    assert not (run / "candidates").exists()


def test_merging_named_adapters_requires_an_output_folder(
    run: Path, write_lora: WriteLora, tmp_path: Path
) -> None:
    one, two = write_lora("one"), write_lora("two", 1)
    words = ["--density", "0.5", "--adapter", str(one), "--adapter", str(two)]
    assert "--out" in call(*words).output
    assert call(*words, "--out", str(tmp_path / "merged")).exit_code == 0
    assert read_adapter(tmp_path / "merged").deltas.keys() == read_adapter(one).deltas.keys()


def test_a_folder_that_is_not_a_merge_is_not_replaced(
    run: Path, write_lora: WriteLora, tmp_path: Path
) -> None:
    """A folder of something else, a file, an adapter that is merged, one that holds it."""
    one, two = write_lora("one"), write_lora("two", 1)
    words = ["--method", "ties", "--density", "0.5", "--adapter", str(one), "--adapter", str(two)]
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    for out, message in [
        (home, "no merge wrote: thesis.tex"),
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


def test_an_adapter_is_not_taken_for_a_run_and_a_repeated_one_is_named(
    write_lora: WriteLora, tmp_path: Path
) -> None:
    one, out = write_lora("one"), tmp_path / "out"
    done = call(one, "--out", out)
    assert done.exit_code == 4 and "give each with --adapter" in done.output
    done = call("--adapter", one, "--adapter", one, "--out", out)
    assert done.exit_code == 0 and "is given 2 times" in done.output


@pytest.mark.parametrize("method", [[], ["--method", "linear"], ["--method", "ties"]])
def test_one_adapter_is_merged_in_delta_space_by_any_method(
    method: list[str], write_lora: WriteLora, tmp_path: Path
) -> None:
    one = write_lora("one", rank=4)
    done = call("--adapter", one, *method, "--rank", "2", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    candidate = json.loads(done.stdout)["candidate"]
    assert (candidate["space"], candidate["rank"]) == ("delta", 2)


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
