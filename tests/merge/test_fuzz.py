"""Malformed files of every kind raise only our own errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeforget.adapter import read_adapter
from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, MergeforgetError
from mergeforget.merge.checkpoint.reader import open_checkpoint, read_header
from mergeforget.merge.engine import merge_adapters

WEIGHTS = "adapter_model.safetensors"
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.text(max_size=5) | st.just("F32"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def read(folder: Path) -> None:
    """Read and merge an adapter; an error of ours is an answer, any other fails the test."""
    try:
        adapter = read_adapter(folder)
        merge_adapters([adapter, adapter], Candidate("ties", 0.5))
    except MergeforgetError as error:
        assert str(error)


@pytest.fixture
def adapter(write_lora: Callable[..., Path]) -> Path:
    return write_lora("adapter", modules={"model.layers.0.mlp.up_proj": (4, 3)})


@quick
@given(
    cut=st.integers(0, 2000), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)))
)
def test_truncated_or_damaged_files_are_input_errors(
    adapter: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    path = adapter / WEIGHTS
    whole = path.read_bytes()
    data = bytearray(whole[: max(0, len(whole) - cut)])
    for place, bits in flips:
        if place < len(data):
            data[place] ^= bits
    path.write_bytes(data)
    read(adapter)
    try:
        read_header(path)
    except InputError as error:
        assert "truncated or not a safetensors" in str(error)
    path.write_bytes(whole)


@quick
@given(header=st.dictionaries(st.text(max_size=8), values, max_size=3), body=st.binary(max_size=40))
def test_any_header_is_read_or_an_input_error(
    tmp_path: Path, header: dict[str, Any], body: bytes
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    try:
        with open_checkpoint(tmp_path) as model:
            for info in model.tensors.values():
                model.read(info)
    except MergeforgetError as error:
        assert str(error)


@quick
@given(
    config=st.dictionaries(
        st.sampled_from(
            ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
             "target_modules", "base_model_name_or_path", "init_lora_weights", "bias"]
        ),
        values,
    )
)  # fmt: skip
def test_any_config_is_read_or_an_input_error(adapter: Path, config: dict[str, Any]) -> None:
    plain = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    (adapter / "adapter_config.json").write_text(json.dumps(plain | config))
    read(adapter)


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", ""]
)
def test_an_index_that_names_another_folder_is_refused(
    tiny_folder: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="of the folder itself only"):
        open_checkpoint(folder).__enter__()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "no weight_map"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "which is missing"),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, index: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=words):
        open_checkpoint(tmp_path).__enter__()


def test_a_folder_of_pickles_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="pickles, which are not read"):
        open_checkpoint(tmp_path).__enter__()


@pytest.mark.parametrize("dtype", [[], {}, None, 7, "F99"])
def test_an_unknown_dtype_is_refused(tmp_path: Path, dtype: Any) -> None:
    header = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(InputError, match="a has the unsupported dtype"):
        read_header(path)


def test_a_model_in_fp8_is_called_quantised_not_truncated(tmp_path: Path) -> None:
    facts = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    text = json.dumps({"q_proj.weight": facts}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(InputError, match=r"q_proj.weight is stored as F8_E4M3 \(quantised") as told:
        read_header(path)
    assert "truncated" not in str(told.value)


def test_a_single_file_takes_precedence_over_an_index(tiny_folder: Path, tmp_path: Path) -> None:
    """Of a folder that was sharded once and written whole since."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(folder) as model:
        assert {info.path.name for info in model.tensors.values()} == {"model.safetensors"}


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    facts = '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'
    text = f'{{"a": {facts}, "a": {facts}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="occurs twice"):
        read_header(path)


@pytest.mark.parametrize("odd", ["", "unaligned", "empty tensor", "extra byte", "overlap", "twice"])
def test_tensors_of_a_file_equal_those_of_the_library(odd: str, tmp_path: Path) -> None:
    import numpy as np
    import safetensors
    from safetensors.numpy import save_file

    from mergeforget.tensors import read_safetensors

    path, draw = tmp_path / "x.safetensors", np.random.default_rng(0)
    tensors: dict[str, Any] = {"a": draw.random((3, 4)), "b": draw.random(5).astype(np.float16)}
    tensors["c"] = draw.integers(0, 9, (2, 2), dtype=np.uint8)
    if odd == "empty tensor":
        tensors["e"] = np.zeros((0, 7), np.float32)
    save_file(tensors, path, {"format": "pt"})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    if odd == "unaligned":  # a byte tensor first, so that the others start at odd offsets
        header = {"c": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                  "a": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}  # fmt: skip
        data = data[:9]
    elif odd == "extra byte":
        data += b"\0"
    elif odd == "overlap":
        header["a"]["data_offsets"] = header["b"]["data_offsets"]
    text = json.dumps(header)
    if odd == "twice":
        text = text[:-1] + ', "c": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    try:
        theirs = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError:
        assert odd
        with pytest.raises(InputError, match="truncated or not a safetensors file"):
            read_safetensors(path)
        return
    found, dtypes = read_safetensors(path)
    assert dtypes == {name: one["dtype"] for name, one in theirs.items()}
    for name, one in theirs.items():
        kind = {"F64": "f8", "F16": "f2", "U8": "u1", "F32": "f4"}[one["dtype"]]
        wanted = np.frombuffer(one["data"], kind).reshape(one["shape"])
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("shape", [[0, 2**62], [1] * 65, [0] * 65])
def test_shapes_that_numpy_cannot_represent_are_input_errors(
    adapter: Path, shape: list[int]
) -> None:
    size = 4 * (0 not in shape)
    name = "base_model.model.x.lora_A.weight"
    text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    (adapter / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * size)
    with pytest.raises(InputError, match="shape that numpy cannot represent"):
        read_adapter(adapter)


@pytest.mark.parametrize("name", ["alpha_pattern", "rank_pattern"])
def test_null_in_a_pattern_is_an_input_error(write_lora: Callable[..., Path], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is .'q': None., but must map patterns to"):
        read_adapter(write_lora("null", **{name: {"q": None}}))


def test_a_lone_surrogate_in_a_tensor_name_is_an_input_error(adapter: Path) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].decode().replace("up_proj", "\\ud800q")
    whole = len(text).to_bytes(8, "little") + text.encode() + data[8 + length :]
    (adapter / WEIGHTS).write_bytes(whole)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_adapter(adapter)


def test_a_model_without_tensors_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="contains no tensors"), open_checkpoint(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_weights_that_are_no_regular_file_are_not_read(adapter: Path, kind: str) -> None:
    (adapter / WEIGHTS).unlink()
    if kind == "pipe":
        os.mkfifo(adapter / WEIGHTS)
    else:
        (adapter / WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(InputError, match="a folder, a pipe or a device"):
        read_adapter(adapter)
