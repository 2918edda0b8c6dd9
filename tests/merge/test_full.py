"""Full models: written as plain folders, exact, resumable, within their memory."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mergeforget as mf
import mergeforget.merge.checkpoint.full as full
import mergeforget.merge.checkpoint.writer as writer
from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, NumericError, ResourceError, UsageError
from mergeforget.merge.checkpoint.full import fold_adapters, merge_models
from mergeforget.merge.checkpoint.jobs import Rounding, TensorJob
from mergeforget.merge.checkpoint.tensor_jobs import Output
from mergeforget.merge.engine import MergeSettings, merge_adapters, write_candidate

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOKENS = torch.arange(12).reshape(2, 6)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits  # type: ignore[no-any-return]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, save_adapter: Callable[..., Path]) -> list[Path]:
    root = tmp_path_factory.mktemp("pair")
    return [
        save_adapter(root / name, seed, scale=0.3) for seed, name in ((1, "over"), (2, "under"))
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_models: Callable[..., Any]) -> list[Path]:
    found: list[Path] = save_models(tmp_path_factory.mktemp("models"), apart=0.02)
    return found


@pytest.mark.parametrize("candidate", [Candidate("ties", 0.7), Candidate("svd", rank=3)])
def test_a_full_model_answers_as_base_and_adapter_do(
    tiny_folder: Path, pair: list[Path], tmp_path: Path, candidate: Candidate
) -> None:
    adapters = [read_adapter(p) for p in pair]
    written = fold_adapters(tiny_folder, adapters, candidate, tmp_path / "full")
    assert written.rounding == 0.0
    write_candidate(merge_adapters(adapters, candidate), tmp_path / "adapter")
    wanted = logits(PeftModel.from_pretrained(load(tiny_folder), tmp_path / "adapter"))
    torch.testing.assert_close(logits(load(tmp_path / "full")), wanted, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "full" / "tokenizer.json").exists()
    facts = json.loads((tmp_path / "full" / "candidate.json").read_text())
    assert Candidate.from_dict(facts) == written.candidate


def test_delta_space_adds_the_full_rank_delta(
    tiny_folder: Path, pair: list[Path], tmp_path: Path
) -> None:
    adapters = [read_adapter(p) for p in pair]
    fold_adapters(tiny_folder, adapters, Candidate("ties_svd", 0.5), tmp_path / "full")
    whole = merge_adapters(adapters, Candidate("ties_svd", 0.5, rank=32)).adapter
    plain, merged = load(tiny_folder), load(tmp_path / "full")
    for module, delta in whole.deltas.items():
        change = merged.get_submodule(module).weight - plain.get_submodule(module).weight
        np.testing.assert_allclose(change.detach().numpy(), delta.dense(), atol=2e-5)


def test_the_rounding_error_of_half_precision_is_measured(
    tiny_folder: Path, pair: list[Path], tmp_path: Path
) -> None:
    adapters = [read_adapter(p) for p in pair]
    output = Output(dtype="bfloat16")
    written = fold_adapters(tiny_folder, adapters, Candidate("ties", 0.7), tmp_path / "f", output)
    change = merge_adapters(adapters, Candidate("ties", 0.7)).adapter
    base, full = (
        load_file(tiny_folder / "model.safetensors"),
        load_file(tmp_path / "f/model.safetensors"),
    )
    error = energy = 0.0
    for module, delta in change.deltas.items():
        name = f"{module}.weight"
        meant = torch.from_numpy(delta.dense()).double()
        error += float((full[name].double() - base[name].double() - meant).square().sum())
        energy += float(meant.square().sum())
    assert full["model.norm.weight"].dtype == torch.bfloat16
    assert written.rounding == pytest.approx((error / energy) ** 0.5, rel=1e-4)
    assert json.loads((tmp_path / "f" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("threads", [1, 3])
def test_merging_models_is_the_method_on_every_tensor(
    models: list[Path], tmp_path: Path, threads: int
) -> None:
    output = Output(threads=threads, shard_bytes=20_000)
    candidate = Candidate("linear", weights=(0.5, 0.25))
    merge_models(models[1:], models[0], candidate, tmp_path / "m", output)
    base, one, two = (load(path).state_dict() for path in models)
    merged = load(tmp_path / "m").state_dict()
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    for name, tensor in merged.items():
        wanted = base[name] + 0.5 * (one[name] - base[name]) + 0.25 * (two[name] - base[name])
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "device", ["cpu:0", pytest.param("cuda", marks=[pytest.mark.gpu, needs_a_gpu])]
)
@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "dare_linear"])
def test_torch_writes_the_same_bytes_as_numpy(
    models: list[Path], tmp_path: Path, method: str, device: str
) -> None:
    candidate = Candidate(method, None if method == "linear" else 0.5, weights=(0.7, -0.4))
    for where in ("cpu", device):
        output = Output(device=where)
        merge_models(models[1:], models[0], candidate, tmp_path / where, output)
    ours, theirs = (tmp_path / w / "model.safetensors" for w in ("cpu", device))
    assert ours.read_bytes() == theirs.read_bytes()


def test_an_unavailable_device_is_refused(models: list[Path], tmp_path: Path) -> None:
    for device in ("cude", "cuda:99"):
        with pytest.raises(UsageError, match=f"--device.*{device}"):
            output = Output(device=device)
            merge_models(models[1:], models[0], Candidate("ties", 0.5), tmp_path / "m", output)


def test_models_without_a_base_are_averaged(models: list[Path], tmp_path: Path) -> None:
    merge_models(models[1:], None, Candidate("linear", weights=(0.5, 0.5)), tmp_path / "m")
    one, two = (load(path).state_dict() for path in models[1:])
    for name, tensor in load(tmp_path / "m").state_dict().items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    with pytest.raises(UsageError, match="--base"):
        merge_models(models[1:], None, Candidate("ties", 0.5), tmp_path / "n")


class Killed(BaseException):
    pass


def test_an_interrupted_merge_resumes_and_writes_the_same_bytes(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate, output = Candidate("dare_ties", 0.5), Output(threads=1)
    merge_models(models[1:], models[0], candidate, tmp_path / "whole", output)
    written: list[str] = []
    write = writer._write_tensor

    def until_the_sixth(job: TensorJob, *rest: Any) -> tuple[float, float]:
        written.append(job.name)
        if len(written) == 6:
            raise Killed
        return write(job, *rest)

    monkeypatch.setattr(writer, "_write_tensor", until_the_sixth)
    with pytest.raises(Killed):
        merge_models(models[1:], models[0], candidate, tmp_path / "m", output)
    assert not (tmp_path / "m").exists()
    first = written.copy()
    merge_models(models[1:], models[0], candidate, tmp_path / "m", output)
    assert not set(first[:5]) & set(written[6:]), "finished tensors were merged again"
    for name in ("model.safetensors", "candidate.json"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_of_an_interrupted_merge_are_not_reused_for_another(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "carry_over", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            merge_models(models[1:], models[0], Candidate("ties", 0.5), tmp_path / "m")
    merge_models(models[1:], models[0], Candidate("ties", 0.9), tmp_path / "m")
    merge_models(models[1:], models[0], Candidate("ties", 0.9), tmp_path / "n")
    one, two = (tmp_path / x / "model.safetensors" for x in "mn")
    assert one.read_bytes() == two.read_bytes()


SVD = Candidate("ties_svd", 0.5, rank=2)


@pytest.mark.parametrize(
    ("candidate", "how", "then"),
    [
        (SVD, MergeSettings(svd="fast"), MergeSettings(svd="exact")),
        (SVD, MergeSettings(modules="common"), MergeSettings(modules="all")),
        (SVD, MergeSettings(), MergeSettings(precision="float64")),
    ],
    ids=["svd", "modules", "precision"],
)
def test_an_interrupted_fold_resumes_only_with_equal_options(
    tiny_folder: Path,
    pair: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    candidate: Candidate,
    how: MergeSettings,
    then: MergeSettings,
) -> None:
    adapters = [read_adapter(p) for p in pair]
    for options in (how, then):
        with monkeypatch.context() as patch:
            patch.setattr(writer, "carry_over", lambda *_, **__: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                fold_adapters(tiny_folder, adapters, candidate, tmp_path / "m", how=how)
        written: list[str] = []
        write = writer._write_tensor

        def noted(
            job: TensorJob, *rest: Any, written: list[str] = written, write: Any = write
        ) -> tuple[float, float]:
            written.append(job.name)
            found: tuple[float, float] = write(job, *rest)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(writer, "_write_tensor", noted)
            fold_adapters(tiny_folder, adapters, candidate, tmp_path / "m", how=options)
        assert bool(written) == (options != how)


def test_a_merge_of_another_version_or_device_is_not_resumed(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[dict[str, Any]] = []

    def noted(_: Path, __: Any, plan: dict[str, Any], **___: Any) -> Rounding:
        plans.append(plan)
        return Rounding()

    monkeypatch.setattr(full, "write_model", noted)
    candidate, out = Candidate("ties", 0.5), tmp_path / "m"
    merge_models(models[1:], models[0], candidate, out)
    merge_models(models[1:], models[0], candidate, out, Output(device="cpu:0"))
    monkeypatch.setattr(full, "__version__", "0")
    merge_models(models[1:], models[0], candidate, out)
    assert all(one != other for one, other in itertools.combinations(plans, 2))


def test_max_memory_is_kept_or_refused_by_name(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="--max-memory"):
        merge_models(
            models[1:], models[0], Candidate("ties", 0.5), tmp_path / "m", Output(max_memory=1000)
        )


def changed(folder: Path, to: Path, **tensors: Any) -> Path:
    shutil.copytree(folder, to)
    every = load_file(to / "model.safetensors") | tensors
    save_file({k: v for k, v in every.items() if v is not None}, to / "model.safetensors")
    return to


def test_incompatible_models_are_refused(models: list[Path], tmp_path: Path) -> None:
    norm = "model.norm.weight"
    candidate, out = Candidate("ties", 0.5), tmp_path / "out"
    nan = changed(models[1], tmp_path / "nan", **{norm: torch.full((32,), torch.nan)})
    with pytest.raises(NumericError, match=f"{norm} of .*nan contains NaN or Inf"):
        merge_models([nan, models[2]], models[0], candidate, out)
    other = changed(models[1], tmp_path / "other", **{norm: torch.ones(31)})
    with pytest.raises(InputError, match=r"\(32,\) .* and \(31,\)"):
        merge_models([other, models[2]], models[0], candidate, out)
    fewer = changed(models[1], tmp_path / "fewer", **{norm: None})
    with pytest.raises(InputError, match="different tensors: norm.weight"):
        merge_models([fewer, models[2]], models[0], candidate, out)
    untied = changed(models[1], tmp_path / "untied", **{"lm_head.weight": torch.ones(259, 32)})
    with pytest.raises(InputError, match="different tensors: lm_head.weight"):
        merge_models([untied, models[2]], models[0], candidate, out)
    assert not out.exists()


@pytest.mark.parametrize("where", ["carried", "changed", "merged"])
def test_values_too_large_for_float16_are_refused_by_name(
    models: list[Path], tiny_folder: Path, pair: list[Path], tmp_path: Path, where: str
) -> None:
    """bfloat16 has a larger range; copied tensors with Inf are unchanged."""
    name = "model.norm.weight" if where == "carried" else "model.layers.0.mlp.up_proj.weight"
    large = torch.full((32,) if where == "carried" else (64, 32), 1e5, dtype=torch.bfloat16)
    big, out = changed(tiny_folder, tmp_path / "big", **{name: large}), tmp_path / "out"
    half = Output(dtype="float16")
    with pytest.raises(NumericError, match=f"{name} reaches .*bfloat16 or float32"):
        if where == "merged":
            merge_models([big, big], None, Candidate("linear", weights=(0.5, 0.5)), out, half)
        else:
            fold_adapters(big, [read_adapter(p) for p in pair], Candidate("linear"), out, half)
    assert not out.exists()
    endless = changed(tiny_folder, tmp_path / "endless", **{"model.norm.weight": large * torch.inf})
    if where == "carried":
        fold_adapters(endless, [read_adapter(p) for p in pair], Candidate("linear"), out, half)
        assert load_file(out / "model.safetensors")["model.norm.weight"].isinf().all()


def test_a_quantised_base_is_refused(tiny_folder: Path, pair: list[Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    small = torch.ones(64, 32, dtype=torch.int8)
    other = changed(tiny_folder, tmp_path / "other", **{name: small})
    adapters = [read_adapter(p) for p in pair]
    with pytest.raises(InputError, match=f"{name} .*stored as I8.*unquantised base"):
        fold_adapters(other, adapters, Candidate("linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
@pytest.mark.parametrize("method", ["linear", "ties", "breadcrumbs", "della", "sce", "model_stock"])
def test_an_empty_tensor_is_carried_over(
    models: list[Path], tmp_path: Path, method: str, shape: tuple[int, int]
) -> None:
    empty = [changed(m, tmp_path / m.name, **{"a.weight": torch.zeros(shape)}) for m in models]
    density = 0.5 if method in ("ties", "breadcrumbs", "della") else None
    merge_models(empty[1:], empty[0], Candidate(method, density), tmp_path / "m")
    merged = load_file(tmp_path / "m" / "model.safetensors")
    assert merged["a.weight"].shape == shape and torch.isfinite(merged["model.norm.weight"]).all()


def test_an_input_is_never_overwritten(
    models: list[Path], pair: list[Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(models[0], tmp_path / "base"))
    (tmp_path / "link").symlink_to(base)
    for out in (base, tmp_path / "link", tmp_path):
        with pytest.raises(InputError, match="is read, and the output would replace it"):
            fold_adapters(base, [read_adapter(p) for p in pair], Candidate("linear"), out)
        with pytest.raises(InputError, match="is read, and the output would replace it"):
            merge_models([base, models[1]], None, Candidate("linear"), out)
    assert load_file(base / "model.safetensors")


def test_a_base_that_lacks_a_module_is_refused(
    tiny_folder: Path, pair: list[Path], tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    other = changed(tiny_folder, tmp_path / "other", **{name: None})
    adapters = [read_adapter(p) for p in pair]
    with pytest.raises(InputError, match=f"no tensor {name}"):
        fold_adapters(other, adapters, Candidate("linear"), tmp_path / "out")


def test_a_sum_that_overflows_is_refused(
    save_models: Callable[..., list[Path]], tmp_path: Path
) -> None:
    for dtype, large in ((torch.float32, 3e38), (torch.bfloat16, 3e38)):
        folder = tmp_path / str(dtype)
        _, one, two = save_models(folder, dtype=dtype)
        for model in (one, two):
            tensors = load_file(model / "model.safetensors")
            next(iter(tensors.values())).view(-1)[0] = large
            save_file(tensors, model / "model.safetensors", {"format": "pt"})
        with pytest.raises(NumericError, match="overflows"):
            merge_models([one, two], None, Candidate("linear", space="delta"), folder / "out")
        assert not (folder / "out").exists()


@pytest.mark.parametrize("base", ["", None])
def test_adapters_that_name_no_base_need_one(
    base: str | None, write_lora: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = write_lora("a", base_model_name_or_path=base)  # of a model that was built in memory
    with pytest.raises(InputError, match="a does not name its base model. Name it with --base"):
        mf.merge_full([adapter], tmp_path / "out")
