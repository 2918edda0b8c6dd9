"""Find the tensors of a checkpoint that contain a parameter of the loaded model.

transformers renames the tensors of some models when it loads them, and packs the experts of a
layer, which many checkpoints store separately, into one parameter. Its conversion is applied in
reverse to arrays of indices, to find where each row and column of a parameter is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mergeforget.candidate import Candidate
from mergeforget.errors import InputError
from mergeforget.expert_factors import expert_of, module_of, parameter_of
from mergeforget.merge.checkpoint.adapter_deltas import TensorChange
from mergeforget.merge.checkpoint.compatible import EMBEDDINGS, find_tensor
from mergeforget.merge.checkpoint.reader import Checkpoint

Array = NDArray[Any]
WEIGHT = ".weight"
Merge = Callable[[TensorChange], Array]  # returns the merged delta of one matrix, (out, in)


@dataclass(frozen=True)
class Piece:
    """One matrix of a stored tensor, as rows and columns of a matrix of the model.

    Attributes:
        expert: Index of the matrix in a parameter with several; 0 for a plain weight.
        turned: Whether the tensor stores the transpose.
    """

    expert: int
    rows: Array
    columns: Array
    turned: bool

    def cut(self, matrix: Array) -> Array:
        """Return the part of the model's matrix that the tensor stores."""
        part: Array = matrix[np.ix_(self.rows, self.columns)]
        return part.T if self.turned else part


@dataclass(frozen=True)
class StoredChange:
    """The merged delta of a tensor that stores parts of the model's matrices.

    Attributes:
        steps: How the matrix of each piece is changed.
        transposed: Whether the model stores its matrices as (in, out).
        shape: Shape of the tensor, (rows, columns).
    """

    steps: Sequence[TensorChange]
    pieces: Sequence[Piece]
    transposed: bool
    shape: tuple[int, int]
    merge: Merge = field(compare=False)
    _last: list[Any] = field(default_factory=lambda: [None, None], compare=False)

    def rows(self, part: slice, origin: Array) -> Array:
        """Return the delta of some rows of the tensor; ``origin`` is not used."""
        if len(self.pieces) == 1:
            return self._piece(0).reshape(self.shape)[part]
        return np.stack([self._piece(i).ravel() for i in range(*part.indices(self.shape[0]))])

    def _piece(self, index: int) -> Array:
        if self._last[0] != index:  # blocks of one matrix are consecutive
            merged = self.merge(self.steps[index])
            cut = self.pieces[index].cut(merged.T if self.transposed else merged)
            self._last[:] = index, np.ascontiguousarray(cut)
        delta: Array = self._last[1]
        return delta


def stored_steps(
    steps: Mapping[str, TensorChange],
    model: Checkpoint,
    targets: Sequence[str],
    merge: Merge,
) -> dict[str, TensorChange]:
    """Replace names of the loaded model by those of the checkpoint.

    Args:
        steps: Changes by ``MODULE.weight``, or ``MODULE[NUMBER].weight`` for an expert.
        targets: The ``target_parameters`` of the adapters.
        merge: Computes the merged delta of one matrix.

    Returns:
        Steps by tensor of the checkpoint; steps whose tensor exists are unchanged.

    Raises:
        InputError: The tensors of a parameter cannot be found.
    """
    modules = {name: name.removesuffix(WEIGHT) for name in steps}
    experts = {n: expert for n, module in modules.items() if (expert := expert_of(module))}
    strange = [n for n in steps if n not in experts and not _is_there(model, n)]
    if not experts and not strange:
        return dict(steps)
    skeleton = skeleton_of(model.folder)
    if skeleton is None:
        return dict(steps)  # the lookup of the tensor reports the name
    stored = {n: step for n, step in steps.items() if n not in experts and n not in strange}
    for name in strange:
        stored |= _renamed(skeleton, model, name, steps[name], merge)
    wrapped: dict[str, dict[int, TensorChange]] = {}
    for name, (wrapper, number) in experts.items():
        wrapped.setdefault(wrapper, {})[number] = steps[name]
    for wrapper, changes in wrapped.items():
        stored |= _of_experts(skeleton, model, wrapper, changes, targets, merge)
    return stored


def _is_there(model: Checkpoint, name: str) -> bool:
    """Return whether the checkpoint has the tensor or ties it to the embedding."""
    return find_tensor(model, name) is not None or name.endswith(("lm_head.weight", "out.weight"))


def skeleton_of(folder: Path) -> Any:
    """Build the model without weights; None if transformers cannot build it."""
    import torch
    from transformers import AutoConfig

    from mergeforget.console import quiet

    try:
        with torch.device("meta"), quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            kind = model_class(config)
            return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except Exception:  # custom model code, or an incomplete configuration
        return None


def is_causal(config: Any) -> bool:
    """Return whether transformers loads a model of this config as a causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def model_class(config: Any) -> Any:
    """Return the class that loads a model: causal language model, or the config's own class.

    Raises:
        InputError: transformers has no such class.
    """
    import transformers

    if is_causal(config):
        return transformers.AutoModelForCausalLM
    names = config.architectures or []
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not classes:
        raise InputError(
            f"transformers cannot load a model of type {config.model_type!r} with the architecture "
            f"{', '.join(names) or 'none'}."
        )
    return classes[0]


class LoadedWeight(NamedTuple):
    """A parameter of the loaded model.

    Attributes:
        embedding: Whether it is the weight of an embedding, of tokens, positions or others.
    """

    name: str
    embedding: bool = False


def loaded_weights(model: Checkpoint) -> dict[str, LoadedWeight]:
    """Tensor of the checkpoint -> the parameter of the loaded model that it holds, whole.

    Tensors that hold a part of a parameter, such as one expert of several, are absent. So are all
    parameters but the weights of linear layers and embeddings, which PEFT can adapt. A model that
    transformers cannot build has the names of its checkpoint.
    """
    skeleton = skeleton_of(model.folder)
    if skeleton is None:
        return {name: LoadedWeight(name, name.endswith(EMBEDDINGS)) for name in model.tensors}
    import torch
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    weights_by_tensor: dict[str, LoadedWeight] = {}
    for module, layer in skeleton.named_modules(remove_duplicate=False):
        if not isinstance(layer, kinds):
            continue
        name, shape = f"{module}{WEIGHT}", layer.weight.shape
        embedding = isinstance(layer, torch.nn.Embedding)
        if embedding and type(layer) is not torch.nn.Embedding and not name.endswith(EMBEDDINGS):
            continue  # it computes positions from its input, to which PEFT would apply the LoRA
        placeholder = torch.empty(shape, device="meta")
        stored = (
            {} if name in model.tensors else revert_weight_conversion(skeleton, {name: placeholder})
        )
        layout = shape, (shape[1], 1)  # neither a part nor the transpose
        keys = [key for key, x in stored.items() if (x.shape, x.stride()) == layout]
        if len(stored) > 1 or (stored and not keys):
            continue
        info = find_tensor(model, keys[0] if keys else name)
        if info is not None:
            weights_by_tensor[info.name] = LoadedWeight(name, embedding)
    return weights_by_tensor


def _renamed(
    skeleton: Any, model: Checkpoint, name: str, step: TensorChange, merge: Merge
) -> dict[str, TensorChange]:
    """Return the step of a plain tensor under its name in the checkpoint."""
    parameter = dict(skeleton.named_parameters(remove_duplicate=False)).get(name)
    if parameter is None or parameter.ndim > 2:
        return {name: step}
    pieces_by_tensor = _places(skeleton, name, tuple(parameter.shape))
    if len(pieces_by_tensor) == 1:
        (stored, (piece,)), whole = next(iter(pieces_by_tensor.items())), tuple(parameter.shape)
        unchanged = not piece.turned and (len(piece.rows), len(piece.columns)) == whole[-2:]
        if parameter.ndim == 1 or unchanged:
            return {stored: step}
    if parameter.ndim == 1:
        return {name: step}
    return {
        stored: _stored(model, stored, pieces, [step] * len(pieces), False, merge)
        for stored, pieces in pieces_by_tensor.items()
    }


def _of_experts(
    skeleton: Any,
    model: Checkpoint,
    wrapper: str,
    changes: Mapping[int, TensorChange],
    targets: Sequence[str],
    merge: Merge,
) -> dict[str, TensorChange]:
    """Return the steps of all experts of one parameter, by tensor of the checkpoint."""
    try:
        module = skeleton.get_submodule(module_of(wrapper))
    except AttributeError as error:
        raise InputError(
            f"{model.folder} has no module {module_of(wrapper)}, whose experts the adapter "
            "changes. Name the base of the adapter."
        ) from error
    parameter_names = [key for key, _ in module.named_parameters(recurse=False)]
    key = parameter_of(wrapper, parameter_names, targets)
    name, parameter = f"{module_of(wrapper)}.{key}", getattr(module, key)
    shape = tuple(parameter.shape)
    transposed = parameter.ndim == 3 and bool(getattr(module, "is_transposed", False))
    count, change = (shape[0] if len(shape) == 3 else 1), next(iter(changes.values())).changes[0]
    if (change.shape[::-1] if transposed else change.shape) != shape[-2:] or len(changes) != count:
        raise InputError(
            f"{name} is {shape} in {model.folder}, and the adapter changes {len(changes)} matrices "
            f"of {change.shape}: it was trained on another model."
        )
    if find_tensor(model, name) is not None:  # stored under the same name
        rows, columns = np.arange(shape[-2]), np.arange(shape[-1])
        pieces_by_tensor = {name: [Piece(i, rows, columns, False) for i in range(count)]}
    else:
        pieces_by_tensor = _places(skeleton, name, shape)
    return {
        stored: _stored(model, stored, pieces, [changes[p.expert] for p in pieces], transposed,
                        merge)
        for stored, pieces in pieces_by_tensor.items()
    }  # fmt: skip


def _stored(
    model: Checkpoint,
    name: str,
    pieces: Sequence[Piece],
    steps: Sequence[TensorChange],
    transposed: bool,
    merge: Merge,
) -> TensorChange:
    info = find_tensor(model, name)
    if info is None:
        raise InputError(
            f"{model.folder} has no tensor {name}, in which transformers stores a weight that the "
            "adapter changes. Save the base with transformers' save_pretrained and use that copy."
        )
    change = StoredChange(steps, pieces, transposed, info.matrix, merge)
    return TensorChange(name, [change], Candidate("linear", weights=(1.0,), space="delta"))


def _places(skeleton: Any, name: str, shape: tuple[int, ...]) -> dict[str, list[Piece]]:
    """Return the parts of a parameter that each tensor of a checkpoint stores, by matrix."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    x, y = (1, *shape)[-2:]
    count = shape[0] if len(shape) == 3 else 1
    numbers = torch.arange(count * x, dtype=torch.int32).view(count, x, 1).expand(count, x, y)
    across = torch.arange(y, dtype=torch.int32).view(1, 1, y).expand(count, x, y)
    rows, columns = (
        revert_weight_conversion(skeleton, {name: one.reshape(shape)}) for one in (numbers, across)
    )
    return {
        stored: [_piece(r, c, x) for r, c in zip(_matrices(rows[stored]),
                                                 _matrices(columns[stored]), strict=True)]
        for stored in rows
    }  # fmt: skip


def _matrices(tensor: Any) -> Iterable[Array]:
    array = tensor.numpy()
    return array if array.ndim == 3 else [np.atleast_2d(array)]


def _piece(rows: Array, columns: Array, height: int) -> Piece:
    """Convert a matrix of row indices and one of column indices to slices."""
    turned = rows.shape[1] > 1 and bool((rows[:, :1] != rows[:, 1:]).any())
    if turned:
        rows, columns = rows.T, columns.T
    row_index, column_index = rows[:, 0], columns[0]
    is_rectangle = (rows == row_index[:, None]).all() and (columns == column_index[None]).all()
    if not is_rectangle or len(set((row_index // height).tolist())) != 1:
        raise InputError(
            "A parameter of this model is stored in a form in which a low-rank change cannot be "
            "found. Export the adapter instead of the whole model."
        )
    return Piece(int(row_index[0]) // height, row_index % height, column_index, turned)
