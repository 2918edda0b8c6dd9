"""Every option of the merging commands in every mode is used, or refused by name.

Each table must have a row for every option of its command, so that an option which is added later
needs one. ``USED`` options change the written weights, ``SAME`` ones only how they are computed or
stored; what is recorded in candidate.json must be what was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from mergeforget.cli import main
from mergeforget.commands import extract_lora, merge, merge_models

USED, SAME, REFUSED = "used", "same", "refused"
ALWAYS = {"as_json", "out", "run", "adapters", "models", "model"}  # every call below has them
COMMON = {"plugins", "verbose", "quiet", "trust_remote_code"}  # of every command


class Case(NamedTuple):
    """One option.

    Attributes:
        words: What is added to the command line, in whose second half the option is.
        result: ``USED``, ``SAME`` or ``REFUSED``.
        recorded: What candidate.json then says.
        beside: Words that both this call and the one that it is compared with have.
    """

    words: list[str]
    result: str
    recorded: dict[str, Any] = {}  # noqa: RUF012
    beside: list[str] = []  # noqa: RUF012


DARE = ["--method", "dare_ties"]
DENSE = ["--space", "delta"]
ADAPTER = {
    "method": Case(["--method", "linear"], USED, {"method": "linear", "density": None}),
    "weights": Case(["--weights", "1,0.5"], USED, {"weights": [1.0, 0.5]}),
    "space": Case(["--space", "delta"], USED, {"space": "delta"}),
    "rank": Case(["--rank", "2"], USED, {"rank": 2}, DENSE),
    "density": Case(["--density", "0.4"], USED, {"density": 0.4}),
    "density_by": Case(["--density-by", "up_proj=0.3"], USED,
                       {"by_module": {"density": [{"filter": "up_proj", "value": 0.3}]}}),
    "weights_by": Case(["--weights-by", "up_proj=1,0"], USED),
    "seed": Case(["--seed", "5"], USED, {"seed": 5}, DARE),
    "precision": Case(["--precision", "float64"], USED, {"precision": "float64"}),
    "arguments": Case(["--set", "sign=count"], USED, {"arguments": {"sign": "count"}}),
    "same_base": Case(["--same-base"], SAME),
    "device": Case(["--device", "cpu:0"], SAME, {"device": "cpu:0"}),
    "modules": Case(["--modules", "all"], SAME),
    "svd": Case(["--svd", "exact"], USED, {}, DENSE),
    "data": Case(["--data", "rows.jsonl"], REFUSED),
    "compare": Case(["--compare"], SAME),
    "full": Case(["--full"], USED),
    "base": Case(["--base", "BASE"], REFUSED),
    "dtype": Case(["--dtype", "float32"], REFUSED),
    "max_memory": Case(["--max-memory", "1GB"], REFUSED),
    "shard_size": Case(["--shard-size", "1GB"], REFUSED),
    "threads": Case(["--threads", "1"], SAME),
}  # fmt: skip
FULL = ADAPTER | {
    "rank": Case(["--rank", "2"], USED, {"rank": 2}, DENSE),
    "svd": Case(["--svd", "exact"], USED, {}, [*DENSE, "--rank", "2"]),
    "compare": Case(["--compare"], REFUSED),
    "base": Case(["--base", "BASE"], SAME),
    "precision": Case(["--precision", "float64"], USED, {"precision": "float64"}),
    "device": Case(["--device", "cpu:0"], SAME, {"device": "cpu:0"}),
    "dtype": Case(["--dtype", "bfloat16"], USED, {"dtype": "bfloat16"}),
    "max_memory": Case(["--max-memory", "1GB"], SAME),
    "shard_size": Case(["--shard-size", "1GB"], SAME),
}
MODELS = {
    "base": Case(["--base", "BASE"], USED, {}, ["--method", "linear", "--weights", "1,1"]),
    "method": Case(["--method", "linear"], USED, {"method": "linear"}, ["--base", "BASE"]),
    "weights": Case(["--weights", "1,0.5"], USED, {"weights": [1.0, 0.5]}, ["--base", "BASE"]),
    "density": Case(["--density", "0.4"], USED, {"density": 0.4}, ["--base", "BASE"]),
    "density_by": Case(["--density-by", "up_proj=0.3"], USED, {}, ["--base", "BASE"]),
    "weights_by": Case(["--weights-by", "up_proj=1,0"], USED, {}, ["--base", "BASE"]),
    "seed": Case(["--seed", "5"], USED, {"seed": 5}, ["--base", "BASE", *DARE]),
    "precision": Case(["--precision", "float64"], USED, {"precision": "float64"},
                      ["--base", "BASE"]),
    "arguments": Case(["--set", "sign=count"], USED, {"arguments": {"sign": "count"}},
                      ["--base", "BASE"]),
    "same_base": Case(["--same-base"], SAME, {}, ["--base", "BASE"]),
    "device": Case(["--device", "cpu:0"], SAME, {"device": "cpu:0"}, ["--base", "BASE"]),
    "dtype": Case(["--dtype", "bfloat16"], USED, {"dtype": "bfloat16"}, ["--base", "BASE"]),
    "max_memory": Case(["--max-memory", "1GB"], SAME, {}, ["--base", "BASE"]),
    "shard_size": Case(["--shard-size", "1GB"], SAME, {}, ["--base", "BASE"]),
    "threads": Case(["--threads", "1"], SAME, {}, ["--base", "BASE"]),
    "config": Case(["--config", "mk.yml"], REFUSED),
    "print_mergekit": Case(["--print-mergekit"], REFUSED),  # of --out
}  # fmt: skip
EXTRACT = {
    "base": Case([], SAME),  # required
    "rank": Case(["--rank", "2"], USED, {"rank": 2}),
    "svd": Case(["--svd", "exact"], USED, {}, ["--rank", "2"]),
    "threads": Case(["--threads", "1"], SAME),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path],
           save_models: Callable[..., list[Path]]) -> dict[str, Path]:  # fmt: skip
    root = tmp_path_factory.mktemp("options")
    base, one, two = save_models(root)
    found = {"BASE": base, "one": one, "two": two}
    for seed, name in enumerate(("over", "under"), 1):
        found[name] = save_adapter(root / name, seed)
        path = found[name] / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return found


def digest(folder: Path) -> str:
    [path] = folder.glob("*.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(case: Case, option: str, command: list[str], inputs: dict[str, Path], out: Path) -> None:
    known = {key: str(path) for key, path in inputs.items()}

    def call(words: list[str], folder: Path) -> Any:
        given = [known.get(word, word) for word in [*command, *case.beside, *words]]
        return CliRunner().invoke(main, [*given, "--out", str(folder)])

    done = call(case.words, out / "with")
    if case.result == REFUSED:
        name = next(w for w in case.words if w.startswith("--"))
        assert done.exit_code == 2, (option, done.output)
        assert name in done.output or f"{name}, which" in done.output, (option, done.output)
        assert not (out / "with").exists()
        return
    assert done.exit_code == 0, (option, done.output)
    facts = json.loads((out / "with" / "candidate.json").read_text())
    for key, value in case.recorded.items():
        assert facts[key] == value, (option, key, facts)
    plain = call([], out / "without")
    assert plain.exit_code == 0, plain.output
    assert (digest(out / "with") != digest(out / "without")) == (case.result == USED), option


PAIR = ["merge", "--adapter", "over", "--adapter", "under"]


@pytest.mark.parametrize("option", ADAPTER)
def test_each_option_of_merge_to_an_adapter_works_or_is_refused(
    option: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    check(ADAPTER[option], option, PAIR, inputs, tmp_path)


@pytest.mark.parametrize("option", sorted(FULL.keys() - {"full"}))
def test_each_option_of_merge_to_a_model_works_or_is_refused(
    option: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    check(FULL[option], option, [*PAIR, "--full"], inputs, tmp_path)


@pytest.mark.parametrize("option", MODELS)
def test_each_option_of_merge_models_works_or_is_refused(
    option: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    words = ["merge-models", "--model", "one", "--model", "two"]
    if option == "print_mergekit":  # it writes no files, so --out is refused
        case = Case(["--print-mergekit"], REFUSED, {}, ["--base", "BASE"])
        given = [str(inputs.get(w, w)) for w in [*words, *case.beside, *case.words]]
        done = CliRunner().invoke(main, [*given, "--out", str(tmp_path / "m")])
        assert done.exit_code == 2 and "--out does not apply" in done.output
        return
    if option == "config":
        given = [str(inputs.get(w, w)) for w in [*words, "--config", "mk.yml"]]
        done = CliRunner().invoke(main, [*given, "--out", str(tmp_path / "m")])
        assert done.exit_code == 2 and "--model does not apply" in done.output
        return
    check(MODELS[option], option, words, inputs, tmp_path)


@pytest.mark.parametrize("option", EXTRACT)
def test_each_option_of_extract_lora_works_or_is_refused(
    option: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    check(EXTRACT[option], option, ["extract-lora", "one", "--base", "BASE"], inputs, tmp_path)


@pytest.mark.parametrize(
    ("command", "table"),
    [(merge, ADAPTER), (merge, FULL), (merge_models, MODELS), (extract_lora, EXTRACT)],
)
def test_every_option_has_a_row(command: Any, table: dict[str, Case]) -> None:
    options = {one.name for one in command.command.params} - ALWAYS - COMMON
    assert table.keys() == options
