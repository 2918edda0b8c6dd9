"""Puts several adapters on one live model, unmerged: each row of a batch goes through its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mergeforget.adapter import Adapter
from mergeforget.errors import InputError
from mergeforget.expert_factors import expert_of
from mergeforget.merge.apply import weight_of
from mergeforget.merge.inputs import check_plain

Factors = tuple[Tensor, Tensor]  # of several adapters: a (n, rank, in), scaling * b (n, out, rank)


class UnfitError(InputError):
    """A model whose rows cannot be told apart inside; one adapter at a time works all the same."""


@contextmanager
def side_by_side(model: nn.Module, adapters: Sequence[Adapter]) -> Iterator[SideBySide]:
    """Let each row of a batch go through its own adapter while the block runs.

    A module computes ``y = W x + scaling_c B_c A_c x`` with c the adapter of the row. The weights
    are not touched, so nothing has to be put back. In float32 the output differs from that of the
    merged weights by a rounding; in a half type by that of ``W + scaling_c B_c A_c`` as well, which
    only the merged weights have.

    Args:
        model: a transformers model, with the module names that the adapters know. Its linear layers
            get (rows, tokens, in), whether they store (out, in) or, as Conv1D, (in, out).
        adapters: of any ranks, on any modules; where one changes nothing its rows stay as they are.

    Yields:
        An object whose ``rows`` must be called before the first pass of each batch.

    Raises:
        InputError: as ``apply.applied``.
        UnfitError: within a pass: a module gets something other than one item a row, or its weight
            is used in another way than by calling it.
    """
    for adapter in adapters:
        check_plain(adapter, done="applied")
    names = sorted({name for adapter in adapters for name in adapter.deltas})
    if experts := [name for name in names if expert_of(name) is not None]:
        raise UnfitError(
            f"{experts[0]} is an expert in a parameter that holds all experts, so the change of an "
            "adapter cannot be added to what it gives."
        )
    beside = SideBySide({name: _stacked(model, name, adapters) for name in names})
    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(beside.adding(name)).remove)
        hooks.callback(model.register_forward_hook(beside.check_all_took_part).remove)
        yield beside


class SideBySide:
    """Several adapters, and the adapter of each row of the next passes."""

    def __init__(self, factors: dict[str, Factors]) -> None:
        """Begin without rows.

        Args:
            factors: module -> those of all adapters.
        """
        self._every = self._factors = factors
        self._present: list[int] = []
        self._orders: list[list[int]] = [[], []]  # into groups, and back
        self._aligned = False
        self._indices: dict[torch.device, list[Tensor]] = {}  # the same, where they are needed
        self._took_part: set[str] = set()

    def rows(self, owners: Sequence[int]) -> None:
        """Set the adapter of each row of the next passes.

        Those of all adapters are padded to the most that one of them has, so that each is a matrix
        of one batched product. Where all have as many, and each has its own beside each other,
        nothing needs to be moved.

        Args:
            owners: place of the adapter of each row, (rows,).
        """
        present = sorted(set(owners))
        if present != self._present:
            self._present = present
            self._factors = {name: _picked(f, present) for name, f in self._every.items()}
        own = [[row for row, owner in enumerate(owners) if owner == one] for one in present]
        most = max(len(rows) for rows in own)
        padded = [rows + rows[:1] * (most - len(rows)) for rows in own]  # (present, most)
        place = {row: i * most + j for i, rows in enumerate(own) for j, row in enumerate(rows)}
        self._orders = [sum(padded, []), [place[row] for row in range(len(owners))]]
        self._aligned = self._orders[0] == list(range(len(owners)))
        self._indices.clear()

    def adding(self, name: str) -> Any:
        """A forward hook that adds each row's own change to what a module gives."""

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._took_part.add(name)
            x, (a, b), rows = inputs[0], self._factors[name], len(self._orders[1])
            if x.dim() != 3 or len(x) != rows:
                raise UnfitError(
                    f"{name} gets {tuple(x.shape)} where a batch has {rows} rows, so its rows "
                    "cannot be told apart."
                )
            if self._aligned:
                inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT)
                output.view(len(a), -1, output.shape[-1]).baddbmm_(inner, b.mT)
                return output
            there, back = self._placed(x.device)
            own = x[there].view(len(a), -1, x.shape[-1])  # (present, most * tokens, in)
            change = torch.bmm(torch.bmm(own, a.mT), b.mT)  # (present, most * tokens, out)
            return output.add_(change.view(len(there), *output.shape[1:])[back])

        return add

    def _placed(self, device: torch.device) -> list[Tensor]:
        """The order of rows by adapter, and the one back; on a device of the model."""
        if device not in self._indices:
            self._indices[device] = [torch.tensor(order, device=device) for order in self._orders]
        return self._indices[device]

    def check_all_took_part(self, *_: Any) -> None:
        """A forward hook of the whole model: a module that was passed by changed nothing.

        Raises:
            UnfitError: there is one.
        """
        left = self._every.keys() - self._took_part
        self._took_part.clear()
        if left:
            raise UnfitError(
                f"The model does not call {min(left)} but reads its weight, so the change of an "
                "adapter cannot be added to what it gives."
            )


def _stacked(model: nn.Module, name: str, adapters: Sequence[Adapter]) -> Factors:
    """The factors of one module, padded with zeros to the largest rank, on the module's device."""
    deltas = [adapter.deltas.get(name) for adapter in adapters]
    known = [delta for delta in deltas if delta is not None]
    weight = [weight_of(model, name, delta) for delta in known][0]
    rank, (rows, columns) = max(delta.rank for delta in known), known[0].shape
    a = np.zeros((len(adapters), rank, columns), np.float32)
    b = np.zeros((len(adapters), rows, rank), np.float32)
    for i, delta in enumerate(deltas):
        if delta is not None:
            a[i, : delta.rank] = delta.a
            b[i, :, : delta.rank] = delta.scaling * delta.b
    return torch.from_numpy(a).to(weight), torch.from_numpy(b).to(weight)


def _picked(factors: Factors, places: list[int]) -> Factors:
    """The factors of some adapters; the same tensors if all are chosen."""
    a, b = factors
    return factors if len(places) == len(a) else (a[places], b[places])
