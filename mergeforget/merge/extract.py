"""Extract a plain LoRA from a fine-tuned model, or from any adapter that PEFT can merge.

Each weight matrix that differs from the base becomes a module of the adapter: its difference,
truncated to a rank. A tied embedding becomes two modules, the embedding and the output layer, which
PEFT adapts separately. Tensors without such a form (norms, biases) are reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mergeforget.adapter import Adapter, LowRankDelta, adapter_folder
from mergeforget.adapter_config import CONFIG
from mergeforget.candidate import Candidate
from mergeforget.console import progress, quiet
from mergeforget.errors import InputError
from mergeforget.files import read_json_object
from mergeforget.merge.checkpoint.adapter_deltas import CONV1D, HAVE_CONV1D
from mergeforget.merge.checkpoint.compatible import (
    OUTPUTS,
    check_equal,
    check_finite_block,
    check_same_tensors,
    embedding_of,
    is_tied,
    plain_name,
    tensor_of,
)
from mergeforget.merge.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
from mergeforget.merge.checkpoint.saved_names import (
    WEIGHT,
    LoadedWeight,
    is_causal,
    loaded_weights,
    model_class,
    skeleton_of,
)
from mergeforget.merge.engine import Merged
from mergeforget.merge.inputs import NO_PLAIN_LORA, NOT_PLAIN, first_names
from mergeforget.merge.kernels.arrays import as_array
from mergeforget.merge.kernels.dispatch import workers
from mergeforget.merge.kernels.truncated_svd import Svd, cut_dense
from mergeforget.model_files import stored_template


@dataclass(frozen=True)
class Difference:
    """Difference of one tensor of the model from the base.

    Attributes:
        energy: Squared norm of the difference.
        lost: Squared norm of the truncation error.
        delta: The truncated difference; None if it is zero or cannot be a LoRA.
    """

    name: str
    energy: float
    lost: float
    delta: LowRankDelta | None = None
    embedding: bool = False


def extract_lora(
    model: Path, base: Path, rank: int, *, svd: Svd = "fast", threads: int = 0, named: str = ""
) -> Merged:
    """Truncate the differences of a model from its base to an adapter of a rank.

    Args:
        model: Folder of a fine-tuned model, or of a PEFT adapter, which PEFT folds into the base.
        base: Folder of the model that it was fine-tuned from.
        rank: Largest rank of a module.
        named: How the adapter's config names the base; the folder when empty.

    Returns:
        The adapter, with the tokenizer of the model if its chat template differs from the base's.
        Its report has ``modules``, ``energy_lost`` (the share of the squared norm that
        the truncation leaves out) and ``energy_left_out`` (that of tensors with no LoRA form).

    Raises:
        InputError: The model and the base differ in their tensors or in quantised weights, or are
            equal, or PEFT cannot fold the adapter.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(_as_model(model, base))
        origin = stack.enter_context(open_checkpoint(base))
        other = stack.enter_context(open_checkpoint(folder))
        check_same_tensors([origin, other], outputs=False)
        pairs = _pairs(origin, other)
        with progress("Extracting", len(pairs)) as bar, workers(threads) as pool:
            differences = []
            for one in pool.map(lambda pair: _difference(pair, origin, other, rank, svd), pairs):
                differences.append(one)
                bar.advance()
    merged = _merged(differences, str(model), named or str(base), rank, _task(base))
    template = stored_template(model) if model.is_dir() else None
    if template is None or template == stored_template(base):
        return merged
    return replace(merged, adapter=replace(merged.adapter, tokenizer=model))


@dataclass(frozen=True)
class ComparedTensors:
    """A tensor of the base and the tensor of the model that it is compared with.

    Attributes:
        weight: Parameter of the loaded model; its name is empty if a LoRA cannot change it.
    """

    base: TensorInfo
    model: TensorInfo
    weight: LoadedWeight


def _pairs(base: Checkpoint, model: Checkpoint) -> list[ComparedTensors]:
    """Return the tensors to compare; the output layer of a tied base is its embedding."""
    weights = loaded_weights(base)
    output = _output_name(base.folder) if is_tied(base) else None
    tensors = [
        info
        for info in base.tensors.values()
        if output is None or plain_name(info.name) not in OUTPUTS
    ]
    pairs = [
        ComparedTensors(info, tensor_of(model, info.name), weights.get(info.name, LoadedWeight("")))
        for info in tensors
    ]
    embedding = embedding_of(base)
    if output is not None and embedding is not None:
        pairs.append(ComparedTensors(embedding, tensor_of(model, output), LoadedWeight(output)))
    return pairs


def _output_name(folder: Path) -> str | None:
    """Return the name of the output layer's weight in the loaded model; None if it has none."""
    skeleton = skeleton_of(folder)
    if skeleton is None:
        return "lm_head.weight"
    layer = skeleton.get_output_embeddings()
    names = [n for n, m in skeleton.named_modules(remove_duplicate=False) if m is layer]
    return f"{names[0]}{WEIGHT}" if names else None


def _difference(
    pair: ComparedTensors, base: Checkpoint, model: Checkpoint, rank: int, svd: Svd
) -> Difference:
    """Return the difference of one tensor under the name of the loaded model's module."""
    info = pair.base
    if not info.floating or not info.numel:
        check_equal(base, info, [(model, pair.model)])
        return Difference(info.name, 0.0, 0.0)
    change = check_finite_block(model, pair.model, model.read(pair.model)) - base.read(info)
    energy = float(np.square(change, dtype=np.float64).sum())
    if energy == 0:
        return Difference(info.name, 0.0, 0.0)
    if len(info.shape) != 2 or not pair.weight.name.endswith(WEIGHT):
        return Difference(info.name, energy, energy)
    module = pair.weight.name.removesuffix(WEIGHT)
    kind = base.config.get("model_type")
    if kind in HAVE_CONV1D and module.rpartition(".")[2] in CONV1D:
        change = np.ascontiguousarray(change.T)
    cut = cut_dense(change, rank, None, svd)
    delta = LowRankDelta(as_array(cut.a), as_array(cut.b), 1.0)
    lost = max(0.0, energy - cut.kept)
    return Difference(module, energy, lost, delta, pair.weight.embedding)


def _task(base: Path) -> str | None:
    """PEFT's task of an adapter: generation, unless the base is another kind of model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError):  # no config, or code of the model's own
        return "CAUSAL_LM"
    return "CAUSAL_LM" if is_causal(config) else None


def _merged(
    differences: list[Difference], model: str, base: str, rank: int, task: str | None
) -> Merged:
    deltas = {one.name: one.delta for one in differences if one.delta is not None}
    energy = sum(one.energy for one in differences)
    if not deltas:
        description = "equal" if not energy else "different only in tensors that no LoRA can change"
        raise InputError(f"{model} and {base} are {description}: there is nothing to extract.")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "target_modules": sorted(deltas),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }
    embeddings = frozenset(
        one.name for one in differences if one.embedding and one.delta is not None
    )
    left_out = [one for one in differences if one.delta is None and one.energy]
    report: dict[str, Any] = {
        "modules": len(deltas),
        "energy_lost": sum(one.lost for one in differences if one.delta is not None) / energy,
        "energy_left_out": sum(one.energy for one in left_out) / energy,
    }
    if left_out:
        report["left_out"] = first_names((one.name for one in left_out), 5)
    adapter = Adapter(Path(model).name, deltas, config, {}, "F32", embeddings)
    used = max(delta.rank for delta in deltas.values())
    return Merged(adapter, Candidate("linear", None, (1.0,), "delta", min(rank, used)), report)


@contextmanager
def _as_model(model: Path, base: Path) -> Iterator[Path]:
    """Yield a model folder; PEFT merges an adapter into the base in a temporary folder."""
    adapter = adapter_folder(model)
    if not (adapter / CONFIG).is_file():
        yield model
        return
    import torch
    from peft import PeftModel
    from transformers import AutoConfig

    config = read_json_object(adapter / CONFIG)
    kind = config.get("peft_type")
    if settings := [key for key in NO_PLAIN_LORA if config.get(key)]:
        raise InputError(
            f"{adapter} has no plain LoRA: {settings[0]} is set, and {NOT_PLAIN[settings[0]]}. "
            "Evaluate it with PEFT, or train a plain LoRA."
        )
    with tempfile.TemporaryDirectory() as folder:
        kind_of_model = model_class(AutoConfig.from_pretrained(base))
        with quiet():
            loaded = kind_of_model.from_pretrained(base, dtype=torch.float32)
        try:
            with quiet():
                folded: Any = PeftModel.from_pretrained(loaded, str(adapter))
                _untie(folded)
                folded = folded.merge_and_unload()
        except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise InputError(
                f"PEFT cannot fold {adapter} (of type {kind!r}) into {base}: {reason}. An adapter "
                "that does not change weights has no LoRA form."
            ) from error
        folded.save_pretrained(folder)
        yield Path(folder)


def _untie(model: Any) -> None:
    """Give each module its own copy of a weight that it shares with an earlier one.

    PEFT adapts a tied embedding and output layer separately, but would fold both changes into the
    weight that they share.
    """
    import torch

    owners: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if owners.setdefault(id(weight), module) is not module:
                module.register_parameter(name, torch.nn.Parameter(weight.detach().clone()))
