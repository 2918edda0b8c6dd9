"""Apply several adapters to one loaded model, unmerged: each row of a batch uses its own."""

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
from mergeforget.merge.apply import transposed_parameter, weight_of
from mergeforget.merge.inputs import check_plain
from mergeforget.models import check_resident

Factors = tuple[Tensor, Tensor]  # a (n, rank, in) and scaling * b (n, out, rank) of n adapters


class UnfitError(InputError):
    """The model does not keep rows separate; one adapter at a time still works."""


@contextmanager
def side_by_side(model: nn.Module, adapters: Sequence[Adapter]) -> Iterator[SideBySide]:
    """Apply to each row of a batch its own adapter inside the block.

    A module computes ``y = W x + scaling_c B_c A_c x`` with c the adapter of the row. The weights
    are not modified, so nothing has to be restored. In float32 the output differs from that of the
    merged weights by rounding; in half precision also by the rounding of ``W + scaling_c B_c A_c``,
    which only merged weights have.

    Args:
        model: A transformers model with the modules of the adapters. Its linear layers
            take (rows, tokens, in), with weights (out, in) or, as in Conv1D, (in, out).
        adapters: Adapters of any ranks, on any modules.

    Yields:
        An object whose method ``rows`` must be called before the first pass of each batch.

    Raises:
        InputError: As in ``apply.applied``.
        UnfitError: In a pass, a module gets an input without one item per row, or its weight
            is used without calling the module.
    """
    for adapter in adapters:
        check_plain(adapter, done="applied")
    check_resident(model, "An adapter")
    names = sorted({name for adapter in adapters for name in adapter.deltas})
    if experts := [name for name in names if expert_of(name) is not None]:
        raise UnfitError(
            f"{experts[0]} is an expert in a parameter that holds all experts, so the delta of an "
            "adapter cannot be added to its output."
        )
    if turned := transposed_parameter(model, adapters):
        raise UnfitError(f"{turned} stores (in, out), and an adapter changes its parameter itself.")
    adapters_by_row = SideBySide({name: _stacked(model, name, adapters) for name in names})
    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_hook(adapters_by_row.adding(name)).remove)
        hooks.callback(model.register_forward_hook(adapters_by_row.check_all_took_part).remove)
        yield adapters_by_row


class SideBySide:
    """Several adapters, and the assignment of rows to adapters for the next passes."""

    def __init__(self, factors: dict[str, Factors]) -> None:
        """Create the object without rows.

        Args:
            factors: Factors of all adapters by module.
        """
        self._every = self._factors = factors
        self._present: list[int] = []
        self._orders: list[list[int]] = [[], []]  # permutation into groups, and its inverse
        self._aligned = False
        self._indices: dict[torch.device, list[Tensor]] = {}  # the same on each device
        self._took_part: set[str] = set()

    def rows(self, owners: Sequence[int]) -> None:
        """Set the adapter of each row of the next passes.

        The rows of each adapter are padded to the maximum number, so that all form
        one batched product. If all adapters have equally many consecutive rows,
        no rows are moved.

        Args:
            owners: Index of the adapter of each row, (rows,).
        """
        present = sorted(set(owners))
        if present != self._present:
            self._present = present
            self._factors = {name: _picked(f, present) for name, f in self._every.items()}
        rows_by_adapter = [
            [row for row, owner in enumerate(owners) if owner == one] for one in present
        ]
        longest = max(len(rows) for rows in rows_by_adapter)
        padded = [
            rows + rows[:1] * (longest - len(rows)) for rows in rows_by_adapter
        ]  # (present, most)
        position = {
            row: i * longest + j
            for i, rows in enumerate(rows_by_adapter)
            for j, row in enumerate(rows)
        }
        self._orders = [sum(padded, []), [position[row] for row in range(len(owners))]]
        self._aligned = self._orders[0] == list(range(len(owners)))
        self._indices.clear()

    def adding(self, name: str) -> Any:
        """Return a forward hook that adds the delta of each row's adapter to the output."""

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._took_part.add(name)
            x, (a, b), rows = inputs[0], self._factors[name], len(self._orders[1])
            if x.dim() != 3 or len(x) != rows:
                raise UnfitError(
                    f"{name} gets an input {tuple(x.shape)} for {rows} rows, so its rows "
                    "cannot be separated."
                )
            if self._aligned:
                inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.mT)
                output.view(len(a), -1, output.shape[-1]).baddbmm_(inner, b.mT)
                return output
            order, inverse = self._placed(x.device)
            grouped = x[order].view(len(a), -1, x.shape[-1])  # (present, most * tokens, in)
            change = torch.bmm(torch.bmm(grouped, a.mT), b.mT)  # (present, most * tokens, out)
            return output.add_(change.view(len(order), *output.shape[1:])[inverse])

        return add

    def _placed(self, device: torch.device) -> list[Tensor]:
        """Return the order of rows by adapter and its inverse, on a device of the model."""
        if device not in self._indices:
            self._indices[device] = [torch.tensor(order, device=device) for order in self._orders]
        return self._indices[device]

    def check_all_took_part(self, *_: Any) -> None:
        """Check, in a forward hook of the whole model, that every adapted module was called.

        Raises:
            UnfitError: A module was not called.
        """
        left = self._every.keys() - self._took_part
        self._took_part.clear()
        if left:
            raise UnfitError(
                f"The model does not call {min(left)} but reads its weight, so the delta of an "
                "adapter cannot be added to its output."
            )


def _stacked(model: nn.Module, name: str, adapters: Sequence[Adapter]) -> Factors:
    """Return the factors of one module on its device, padded with zeros to the largest rank."""
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
    """Return the factors of some adapters; the same tensors if all are selected."""
    a, b = factors
    return factors if len(places) == len(a) else (a[places], b[places])
