"""The engine: what it refuses, what it reports, and what holds for every merge."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mergeforget
from mergeforget.adapter import Adapter, LowRankDelta, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import (
    DensityError,
    InputError,
    NumericError,
    UnknownNameError,
    UsageError,
)
from mergeforget.merge.engine import MergeSettings, merge_adapters, write_candidate
from mergeforget.merge.methods import MERGE_METHODS

WriteLora = Callable[..., Path]
MODULES = {
    "model.layers.0.mlp.up_proj": (16, 10),
    "model.layers.0.self_attn.q_proj": (12, 10),
    "model.layers.1.mlp.up_proj": (16, 10),
}


@pytest.fixture
def pair(write_lora: WriteLora) -> list[Adapter]:
    return [read_adapter(write_lora("over", 1)), read_adapter(write_lora("under", 2))]


def dense(adapter: Adapter) -> dict[str, Any]:
    return {module: delta.dense() for module, delta in adapter.deltas.items()}


def energy(adapter: Adapter) -> float:
    return sum(delta.norm() ** 2 for delta in adapter.deltas.values())


def assert_close(found: Adapter, wanted: dict[str, Any]) -> None:
    assert found.deltas.keys() == wanted.keys()
    for module, delta in dense(found).items():
        np.testing.assert_allclose(delta, wanted[module], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "dare_linear", "cat"])
@pytest.mark.parametrize("space", ["factors", "delta"])
def test_merging_one_adapter_at_weight_and_density_1_returns_it(
    pair: list[Adapter], method: str, space: Any
) -> None:
    density = 1.0 if "density" in MERGE_METHODS.get(method).parameters else None
    merged = merge_adapters(pair[:1], Candidate(method, density, (1.0,), space))
    assert_close(merged.adapter, dense(pair[0]))


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "cat"])
@pytest.mark.parametrize("space", ["factors", "delta"])
def test_order_of_adapters_does_not_matter(pair: list[Adapter], method: str, space: Any) -> None:
    density = 0.6 if "density" in MERGE_METHODS.get(method).parameters else None
    one = merge_adapters(
        pair, Candidate(method, density, (1.0, 0.5), space), MergeSettings(svd="exact")
    )
    two = merge_adapters(
        pair[::-1], Candidate(method, density, (0.5, 1.0), space), MergeSettings(svd="exact")
    )
    assert_close(one.adapter, dense(two.adapter))


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "dare_ties", "cat"])
def test_negating_the_weights_negates_the_result(pair: list[Adapter], method: str) -> None:
    density = 0.6 if "density" in MERGE_METHODS.get(method).parameters else None
    plus = merge_adapters(pair, Candidate(method, density, (1.0, 0.5), "delta"))
    minus = merge_adapters(pair, Candidate(method, density, (-1.0, -0.5), "delta"))
    assert_close(minus.adapter, {k: -x for k, x in dense(plus.adapter).items()})


@pytest.mark.parametrize("candidate", [Candidate("cat"), Candidate("svd", rank=6)])
def test_cat_and_svd_at_full_rank_are_the_sum(pair: list[Adapter], candidate: Candidate) -> None:
    merged = merge_adapters(pair, candidate)
    first, second = dense(pair[0]), dense(pair[1])
    assert_close(merged.adapter, {k: first[k] + second[k] for k in first})
    assert merged.report["energy_lost"] < 1e-9


def test_the_energy_lost_by_truncation_is_reported(pair: list[Adapter]) -> None:
    merged = merge_adapters(pair, Candidate("svd", rank=2))
    whole = merge_adapters(pair, Candidate("cat"))
    lost = sum(
        np.linalg.norm(x - dense(merged.adapter)[k]) ** 2 for k, x in dense(whole.adapter).items()
    )
    assert merged.report["energy_lost"] == pytest.approx(lost / energy(whole.adapter), rel=1e-4)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_how_far_factor_space_is_from_delta_space_is_measured(
    pair: list[Adapter], method: str
) -> None:
    density = 0.6 if method == "ties" else None
    merged = merge_adapters(pair, Candidate(method, density), MergeSettings(compare=True))
    wanted = merge_adapters(
        pair, Candidate(method, density, space="delta", rank=10), MergeSettings(svd="exact")
    )
    apart = sum(
        np.linalg.norm(x - dense(merged.adapter)[k]) ** 2 for k, x in dense(wanted.adapter).items()
    )
    wanted_energy = energy(wanted.adapter)
    assert merged.report["space_error"] == pytest.approx((apart / wanted_energy) ** 0.5, rel=1e-3)


def test_the_number_of_threads_does_not_change_the_result(pair: list[Adapter]) -> None:
    candidate = Candidate("dare_ties", 0.5, space="delta", seed=3)
    one, four = (merge_adapters(pair, candidate, MergeSettings(threads=n)).adapter for n in (1, 4))
    for module, delta in one.deltas.items():
        assert delta.b.tobytes() == four.deltas[module].b.tobytes()


def test_random_draws_of_a_module_do_not_depend_on_other_modules(pair: list[Adapter]) -> None:
    candidate = Candidate("dare_linear", 0.5)
    alone = "model.layers.1.mlp.up_proj"
    part = [replace(a, deltas={alone: a.deltas[alone]}) for a in pair]
    whole, single = (merge_adapters(x, candidate).adapter.deltas[alone] for x in (pair, part))
    assert whole.a.tobytes() == single.a.tobytes() and whole.b.tobytes() == single.b.tobytes()


def test_merging_imports_neither_torch_nor_transformers(
    write_lora: WriteLora, tmp_path: Path
) -> None:
    over, under = write_lora("over", 1), write_lora("under", 2)
    code = (
        "import sys; from mergeforget.cli import main\n"
        f"try: main(['merge', '--density', '0.7', '--adapter', {str(over)!r}, '--adapter', "
        f"{str(under)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_adapter(tmp_path / "out").deltas.keys() == MODULES.keys()


def test_candidate_json_contains_the_candidate_and_the_report(
    pair: list[Adapter], tmp_path: Path
) -> None:
    write_candidate(merge_adapters(pair, Candidate("ties_svd", 0.5)), tmp_path / "c")
    facts = json.loads((tmp_path / "c" / "candidate.json").read_text())
    assert Candidate.from_dict(facts) == Candidate("ties", 0.5, space="delta")
    assert 0 < facts["energy_lost"] < 1


@pytest.mark.parametrize(
    ("candidate", "error", "words"),
    [
        (Candidate("tis", 0.5), UnknownNameError, "Did you mean 'ties'"),
        (Candidate("ties"), UsageError, "needs a density"),
        (Candidate("ties", 0.0), DensityError, "0, but it is the fraction"),
        (Candidate("ties", 1.5), DensityError, "write 0.8 for 80 percent"),
        (Candidate("linear", 0.5), UsageError, "takes no density"),
        (Candidate("linear", weights=(1.0,)), UsageError, "2 adapters but 1 weights"),
        (Candidate("linear", weights=(1.0, float("nan"))), UsageError, "finite"),
        (Candidate("consensus", arguments={"ratio": float("inf")}), UsageError, "finite"),
        (Candidate("ties", 0.5, rank=4), UsageError, "--space delta"),
        (Candidate("ties", 0.5, arguments={"sing": "count"}), UsageError, "Did you mean 'sign'"),
        (Candidate("ties", 0.5, arguments={"density": 1}), UsageError, "its own option"),
        (Candidate("ties", 0.5, arguments={"scale": 2}), UsageError, "--space delta"),
        (Candidate("linear", space="foo"), UsageError, "factors or delta"),  # type: ignore[arg-type]
        (Candidate("linear", space="delta", rank=-1), UsageError, "positive integer"),
        (Candidate("linear", space="delta", rank=0), UsageError, "positive integer"),
        (
            Candidate("linear", space="delta", arguments={"normalize": "no"}),
            UsageError,
            "normalize of 'linear' must be true or false, not 'no'",
        ),
        (
            Candidate("linear", space="delta", by_module={"scale": [{"value": "half"}]}),
            UsageError,
            "scale of 'linear' must be a number",
        ),
    ],
)
def test_an_inconsistent_candidate_is_refused(
    pair: list[Adapter], candidate: Candidate, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        merge_adapters(pair, candidate)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases of the base"),
        ({"lora_bias": True}, "biases of lora_B"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"tensors": {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}}, "lm_head"),
    ],
)
def test_adapters_other_than_plain_lora_are_refused_by_name(
    write_lora: WriteLora, config: dict[str, Any], words: str
) -> None:
    adapters = [
        read_adapter(write_lora("over")),
        read_adapter(write_lora("odd", 1, **config)),
    ]
    with pytest.raises(InputError, match=f"'odd' cannot be merged exactly: .*{words}"):
        merge_adapters(adapters, Candidate("ties", 0.5))


def test_adapters_of_another_base_or_shape_are_refused(
    pair: list[Adapter], write_lora: WriteLora
) -> None:
    other = read_adapter(write_lora("other", base_model_name_or_path="another"))
    with pytest.raises(InputError, match="'over' was trained on base and 'other' on another"):
        merge_adapters([pair[0], other], Candidate("linear"))
    wide = {name: (rows, 11) for name, (rows, _) in MODULES.items()}
    with pytest.raises(InputError, match="different base models"):
        merge_adapters(
            [pair[0], read_adapter(write_lora("wide", modules=wide))], Candidate("linear")
        )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "Inf")])
def test_nan_and_inf_are_refused_by_adapter_and_tensor(
    pair: list[Adapter], value: float, word: str
) -> None:
    module = "model.layers.1.mlp.up_proj"
    pair[1].deltas[module].b[0, 0] = value
    with pytest.raises(NumericError, match=f"'under' contains {word} in {module}.lora_B"):
        merge_adapters(pair, Candidate("linear"))


def test_different_ranks_are_refused_in_factor_space_only(
    pair: list[Adapter], write_lora: WriteLora
) -> None:
    larger = read_adapter(write_lora("larger", 3, rank=4))
    with pytest.raises(InputError, match="--space delta"):
        merge_adapters([pair[0], larger], Candidate("ties", 0.5))
    merged = merge_adapters([pair[0], larger], Candidate("ties", 0.5, space="delta"))
    assert {delta.rank for delta in merged.adapter.deltas.values()} == {4}


def test_modules_missing_in_one_adapter_are_named_or_merged(
    pair: list[Adapter], write_lora: WriteLora
) -> None:
    some = dict(list(MODULES.items())[:2])
    fewer = read_adapter(write_lora("fewer", 3, modules=some))
    with pytest.raises(InputError, match="1 modules of 'over' are missing from 'fewer'"):
        merge_adapters([pair[0], fewer], Candidate("linear"))
    common = merge_adapters([pair[0], fewer], Candidate("linear"), MergeSettings("common"))
    assert common.adapter.deltas.keys() == some.keys()
    assert common.adapter.config["target_modules"] == sorted(some)
    every = merge_adapters([pair[0], fewer], Candidate("cat"), MergeSettings("all"))
    assert every.adapter.deltas.keys() == MODULES.keys()
    assert every.adapter.deltas["model.layers.1.mlp.up_proj"].rank == 3


def test_an_adapter_and_its_modules_print_one_line(pair: list[Any]) -> None:
    assert len(repr(pair[0])) < 160 and "\n" not in repr(pair[0])
    delta = next(iter(pair[0].deltas.values()))
    assert repr(delta) == f"LowRankDelta(16 x 10, rank {delta.rank})"


def test_few_files_handle_a_density_between_the_option_and_the_trimmed_tensor(
    write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """Counts the package's files with a frame that holds the density, up to the first trim."""
    from click.testing import CliRunner

    from mergeforget.cli import main

    names = [str(write_lora(name, i)) for i, name in enumerate(("over", "under"))]
    command = ["merge", "--adapter", names[0], "--adapter", names[1], "--density", "0.37"]
    entered: dict[str, None] = {}

    def holds(value: Any) -> bool:
        if isinstance(value, float):
            return value == 0.37
        if isinstance(value, dict):
            return any(map(holds, value.values()))
        if isinstance(value, list | tuple):
            return any(map(holds, value))
        return getattr(value, "density", None) == 0.37

    def watch(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and "/mergeforget/" in name and "<" not in name:
            if any(map(holds, frame.f_locals.values())) and "trimmed" not in entered:
                entered[name.partition("/mergeforget/")[2]] = None
                if frame.f_code.co_name == "trim":
                    entered["trimmed"] = None

    import threading

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert done.exit_code == 0, done.output
    assert "trimmed" in entered and len(entered) - 1 <= 12, list(entered)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (0.0, 2.0)])
def test_the_error_of_factor_space_is_the_distance_of_the_products(
    weights: tuple[float, float],
) -> None:
    draw = np.random.default_rng(3)
    pair = [
        Adapter(
            f"a{i}",
            {"x.q_proj": LowRankDelta(
                draw.standard_normal((3, 10)).astype(np.float32),
                draw.standard_normal((12, 3)).astype(np.float32), 0.7 + i,
            )},
            {"peft_type": "LORA", "r": 3},
        )
        for i in range(2)
    ]  # fmt: skip
    merged = merge_adapters(pair, Candidate("linear", weights=weights))
    wanted = sum(w * one.deltas["x.q_proj"].dense() for w, one in zip(weights, pair, strict=True))
    found = merged.adapter.deltas["x.q_proj"].dense()
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert merged.report["space_error"] == pytest.approx(error, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("ties", "factors"),
        ("linear", "factors"),
        ("dare_ties", "factors"),
        ("ties", "delta"),
        ("magnitude_prune", "delta"),
        ("linear", "delta"),
        ("knots", "delta"),
    ],
)
@pytest.mark.parametrize("svd", ["fast", "exact"])
def test_torch_merges_adapters_as_numpy_does(
    method: str, space: Any, svd: Any, write_lora: Callable[..., Path]
) -> None:
    """``cpu:0`` is torch's CPU; equal in factor space, and to 1e-5 where a delta is truncated."""
    pair = [read_adapter(write_lora(name, i)) for i, name in enumerate(("over", "under"))]
    density = 0.6 if "density" in MERGE_METHODS.get(method).parameters else None
    candidate = Candidate(method, density, (1.0, -0.5), space)
    ours = merge_adapters(pair, candidate, MergeSettings(svd=svd))
    theirs = merge_adapters(pair, candidate, MergeSettings(svd=svd, device="cpu:0"))
    assert theirs.report.pop("device") == "cpu:0" and "device" not in ours.report
    for name, delta in ours.adapter.deltas.items():
        found = theirs.adapter.deltas[name]
        if space == "factors":
            np.testing.assert_array_equal(found.a, delta.a)
            np.testing.assert_array_equal(found.b, delta.b)
        np.testing.assert_allclose(found.dense(), delta.dense(), atol=1e-5)
    with pytest.raises(UsageError, match="--device cude"):
        merge_adapters(pair, candidate, MergeSettings(device="cude"))


@pytest.mark.parametrize(
    ("bases", "refused"),
    [
        (["meta/Llama", "evil/Llama"], True),
        (["/data/run1/merged", "/data/run2/merged"], True),
        (["/data/run1/merged-4bit", "/data/run2/merged"], True),
        (["meta/Llama", "unsloth/Llama-8B-bnb-4bit"], True),
        ([None, "org/A", "org/B"], True),
        (["org/A", None, "org/A", "org/B"], True),
        (["meta/Llama", "META/llama"], False),
        (["meta/Llama", "unsloth/llama-bnb-4bit"], False),
        (["meta/Llama", "/models/Llama-GPTQ"], False),
        (["meta/Llama", "/cache/models--meta--Llama/snapshots/0a1b"], False),
        (["/data/run1/merged", "/data/run1/merged-4bit"], False),
        ([None, "org/A", None], False),
    ],
)
def test_names_of_different_bases_are_refused_in_every_pair(
    write_lora: WriteLora, bases: list[str | None], refused: bool
) -> None:
    adapters = [
        read_adapter(write_lora(f"a{i}", i, base_model_name_or_path=base))
        for i, base in enumerate(bases)
    ]
    candidate = Candidate("linear", weights=(1.0,) * len(bases))
    if refused:
        with pytest.raises(InputError, match="add --same-base"):
            merge_adapters(adapters, candidate)
        merge_adapters(adapters, candidate, MergeSettings(same_base=True))
    else:
        base = next(name for name in bases if name)
        assert merge_adapters(adapters, candidate).adapter.base == base


@pytest.mark.parametrize(
    ("revisions", "refused"),
    [
        (["v1", "v2"], True),
        (["v1", None, "v2"], True),
        (["v1", "v1"], False),
        (["v1", None], False),
    ],
)
def test_two_revisions_of_a_base_are_two_bases(
    write_lora: WriteLora, revisions: list[str | None], refused: bool
) -> None:
    adapters = [
        read_adapter(write_lora(f"a{i}", i, base_model_name_or_path="org/A", revision=revision))
        for i, revision in enumerate(revisions)
    ]
    candidate = Candidate("linear", weights=(1.0,) * len(revisions))
    if refused:
        with pytest.raises(InputError, match=r"org/A \(revision v1\) and .* \(revision v2\)"):
            merge_adapters(adapters, candidate)
        merge_adapters(adapters, candidate, MergeSettings(same_base=True))
    else:
        assert merge_adapters(adapters, candidate).adapter.base == "org/A"


def test_shapes_are_compared_between_all_adapters(write_lora: WriteLora) -> None:
    """The first adapter lacks the module whose shape differs."""
    modules = [{"a.0.q": (12, 16)}, {"a.1.q": (12, 16)}, {"a.1.q": (12, 20)}]
    adapters = [read_adapter(write_lora(f"m{i}", i, modules=m)) for i, m in enumerate(modules)]
    with pytest.raises(InputError, match=r"a.1.q is \(12, 16\) in 'm1' and \(12, 20\) in 'm2'"):
        merge_adapters(
            adapters, Candidate("linear", weights=(1.0,) * 3), MergeSettings(modules="all")
        )


def test_ranks_of_adapters_with_one_name_are_compared(write_lora: WriteLora) -> None:
    adapters = [read_adapter(write_lora(f"a{r}", rank=r), "over") for r in (3, 4)]
    with pytest.raises(InputError, match="rank 3 in 'over', 4 in 'over'"):
        merge_adapters(adapters, Candidate("ties", 0.5))


@pytest.mark.parametrize(
    ("option", "value"),
    [("space", "foo"), ("precision", "float16"), ("svd", "foo"), ("modules", "foo"), ("rank", -1)],
)
def test_the_api_refuses_values_that_an_option_does_not_have(
    pair: list[Adapter], option: Any, value: Any
) -> None:
    given: dict[str, Any] = {"space": "delta", "method": "ties"} | {option: value}
    with pytest.raises(UsageError, match=str(value)):
        mergeforget.merge(pair, **given)
