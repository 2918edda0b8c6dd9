"""Batches: several rows packed into one sequence without padding, or padded.

Packed rows are concatenated, each with its own positions, so no computation is spent on padding.
transformers infers the row boundaries from the positions and masks attention between rows. For
architectures that do not support this, ``predict`` processes the rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.tokens import Encoded
from mergeforget.outputs import ANSWER, PADDING, PROMPT, Part

SAME_START = 4  # first tokens by which rows are put into groups with a common prefix


@dataclass(frozen=True)
class _Counts:
    """Counts of a batch, taken on the CPU so that a training step does not wait for the device."""

    rows: float
    kinds: dict[int, float]
    tokens: int


@dataclass
class Batch:
    """Tokens of several rows, and the predictions that a loss uses.

    Attributes:
        input_ids: (1, tokens) if packed, (rows, length) if padded.
        position_ids: Same shape; each row starts at 0. None when padded on the left.
        attention_mask: (rows, length); None if packed.
        keep: (kept,) positions in the flattened input whose next token is predicted.
        labels: (kept,) that next token.
        row: (kept,) index of its row in the batch.
        kind: (kept,) ANSWER, PROMPT or PADDING.
        rows: Number of rows.
        index: (rows,) index of each row in its set.
        weights: (rows,) weight of each row.
        counts: Cached counts; computed at the first access.
        parts: The micro-batches that it was fused from; see ``fuse``.
        lengths: Number of tokens of each packed row; empty if rows are padded.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    attention_mask: Tensor | None
    keep: Tensor
    labels: Tensor
    row: Tensor
    kind: Tensor
    rows: int
    index: Tensor
    weights: Tensor
    counts: _Counts | None = None
    parts: tuple[Part, ...] = ()
    lengths: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return self._counted().tokens

    @property
    def total(self) -> float:
        """Weighted number of rows."""
        return self._counted().rows

    def count(self) -> dict[int, float]:
        """Return the number of kept positions by kind, weighted by the rows' weights."""
        return self._counted().kinds

    def _counted(self) -> _Counts:
        if self.counts is None:
            each, mask = self.weights[self.row], self.attention_mask
            self.counts = _Counts(
                rows=float(self.weights.sum()),
                kinds={k: float(each[self.kind == k].sum()) for k in (PADDING, PROMPT, ANSWER)},
                tokens=int(self.input_ids.numel() if mask is None else mask.sum()),
            )
        return self.counts

    def pin(self) -> Batch:
        """Return the batch in pinned memory, from which copies to the GPU are asynchronous."""
        self._counted()
        here = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and not v.is_cuda}
        pinned: dict[str, Any] = {k: v.pin_memory() for k, v in here.items() if k != "index"}
        return replace(self, **pinned)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to a device, except ``index``, after computing its counts on the CPU."""
        self._counted()
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) and k != "index" else v
            for k, v in vars(self).items()
        }
        return Batch(**moved)


def pack(encoded: Sequence[Encoded], kinds: Sequence[int] = (ANSWER,)) -> Batch:
    """Concatenate rows into a packed batch, and keep the predictions of the given token kinds."""
    ids: list[int] = []
    positions: list[int] = []
    keep, labels, row, kept_positions = [], [], [], []
    for place, one in enumerate(encoded):
        start = len(ids)
        ids += one.ids
        positions += range(len(one.ids))
        for i in range(1, len(one.ids)):
            if one.kinds[i] in kinds:
                keep.append(start + i - 1)
                labels.append(one.ids[i])
                row.append(place)
                kept_positions.append(one.kinds[i])
    lists = {"keep": keep, "labels": labels, "row": row, "kind": kept_positions}
    tensors = {name: torch.tensor(values, dtype=torch.long) for name, values in lists.items()}
    return Batch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=None,
        keep=tensors["keep"],
        labels=tensors["labels"],
        row=tensors["row"],
        kind=tensors["kind"],
        rows=len(encoded),
        index=torch.tensor([e.row for e in encoded]),
        weights=torch.tensor([e.weight for e in encoded]),
        lengths=tuple(len(e) for e in encoded),
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Concatenate packed batches into one; rows remain separate."""
    tokens = [0, *accumulate(b.input_ids.shape[1] for b in batches)]
    rows = [0, *accumulate(b.rows for b in batches)]

    def all_of(name: str, dim: int = 0, add: Sequence[int] = ()) -> Tensor:
        parts = [getattr(b, name) for b in batches]
        return torch.cat([p + n for p, n in zip(parts, add, strict=False)] if add else parts, dim)

    return Batch(
        input_ids=all_of("input_ids", 1),
        position_ids=all_of("position_ids", 1),
        attention_mask=None,
        keep=all_of("keep", add=tokens),
        labels=all_of("labels"),
        row=all_of("row", add=rows),
        kind=all_of("kind"),
        rows=rows[-1],
        index=all_of("index"),
        weights=all_of("weights"),
        counts=_summed([b.counts for b in batches]),
        lengths=tuple(length for b in batches for length in b.lengths),
    )


def fuse(batches: Sequence[Batch]) -> Batch:
    """Join the micro-batches of a set into one packed batch, and record each of them as a part."""
    parts, tokens, rows = [], 0, 0
    for batch in batches:
        kept = len(batch.keep)
        places = slice(tokens, tokens + kept), slice(rows, rows + batch.rows)
        parts.append(Part(*places, batch.total, batch.count()))
        tokens, rows = tokens + kept, rows + batch.rows
    return replace(join(batches), parts=tuple(parts))


def _summed(counts: Sequence[_Counts | None]) -> _Counts | None:
    """Return the counts of joined batches; None if those of a batch are unknown."""
    known = [c for c in counts if c is not None]
    if len(known) < len(counts):
        return None
    kinds = {kind: sum(c.kinds[kind] for c in known) for kind in (PADDING, PROMPT, ANSWER)}
    return _Counts(sum(c.rows for c in known), kinds, sum(c.tokens for c in known))


@dataclass(frozen=True)
class SharedPrefix:
    """A packed batch in which the common prefix of some rows is processed only once.

    Attributes:
        input_ids, position_ids: (1, tokens): for each group of rows its common prefix, then the
            rest of each row.
        mask: (1, 1, tokens, tokens), True where a token attends: to the common prefix of its
            group and to earlier tokens of its own row.
        keep: (kept,) as ``Batch.keep``, in the new order.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    keep: Tensor


def share_prefix(batch: Batch, least: float = 0.2) -> SharedPrefix | None:
    """Process the common prefix of packed rows once; None where that saves too little.

    In chat form, every row begins with the same system prompt, which is half of a short row. Rows
    that are rendered in different ways form a group each: those with the same first tokens.

    Args:
        least: Share of the tokens that must be saved.
    """
    assert batch.position_ids is not None
    tokens = batch.input_ids.shape[1]
    starts = [*(batch.position_ids[0] == 0).nonzero().flatten().tolist(), tokens]
    token_ids = batch.input_ids[0].tolist()
    rows = [token_ids[a:b] for a, b in pairwise(starts)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(row[:SAME_START]), []).append(place)
    ids: list[int] = []
    positions: list[int] = []
    group, owner = [], []  # of each token; owner -1 is the common prefix
    begins = [0] * len(rows)  # position of the common prefix of each row
    own = [0] * len(rows)  # position of the rest of each row, minus the length of the prefix
    common = [0] * len(rows)
    for number, places in enumerate(groups.values()):
        length = _common([rows[place] for place in places])
        start = len(ids)
        parts = [(-1, rows[places[0]][:length], 0)]
        parts += [(place, rows[place][length:], length) for place in places]
        for place, part, first in parts:
            if place >= 0:
                begins[place], common[place], own[place] = start, length, len(ids) - length
            ids += part
            positions += range(first, first + len(part))
            group += [number] * len(part)
            owner += [place] * len(part)
    if tokens - len(ids) < least * tokens:
        return None
    of_group, of_row = torch.tensor(group), torch.tensor(owner)
    sees = (of_row[None, :] == -1) | (of_row[None, :] == of_row[:, None])
    mask = (sees & (of_group[None, :] == of_group[:, None])).tril()
    offset = batch.keep - torch.tensor(starts[:-1])[batch.row]
    stands = torch.where(
        offset < torch.tensor(common)[batch.row],
        torch.tensor(begins)[batch.row],
        torch.tensor(own)[batch.row],
    )
    return SharedPrefix(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        mask=mask[None, None],
        keep=stands + offset,
    )


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with; each row keeps one of its own. 0 for a single row."""
    if len(rows) < 2:
        return 0
    most = min(len(row) for row in rows) - 1
    return next((i for i in range(most) if len({row[i] for row in rows}) > 1), most)


def split(batch: Batch) -> list[Batch]:
    """Split a packed batch into one batch per row; the inverse of ``join``."""
    assert batch.position_ids is not None
    parts = []
    for i, (start, end) in enumerate(pairwise([0, *accumulate(batch.lengths)])):
        own = batch.row == i
        parts.append(
            Batch(
                input_ids=batch.input_ids[:, start:end],
                position_ids=batch.position_ids[:, start:end],
                attention_mask=None,
                keep=batch.keep[own] - start,
                labels=batch.labels[own],
                row=torch.zeros_like(batch.row[own]),
                kind=batch.kind[own],
                rows=1,
                index=batch.index[i : i + 1],
                weights=batch.weights[i : i + 1],
                lengths=batch.lengths[i : i + 1],
            )
        )
    return parts


def pad(
    encoded: Sequence[Encoded],
    kinds: Sequence[int],
    pad_id: int,
    *,
    side: str,
    length: int | None = None,
) -> Batch:
    """Pad rows to equal length; with PADDING in ``kinds``, predictions on padding are kept too.

    The prediction after the last token of a row has no label and counts as PADDING, like
    predictions from padding.

    Args:
        length: Length of every row in tokens; that of the longest row by default.
    """
    length = length or max(len(e) for e in encoded)
    ids = torch.full((len(encoded), length), pad_id)
    kind = torch.full((len(encoded), length), PADDING)
    mask = torch.zeros_like(ids)
    for i, one in enumerate(encoded):
        place = slice(length - len(one), length) if side == "left" else slice(0, len(one))
        ids[i, place] = torch.tensor(one.ids)
        kind[i, place] = torch.tensor(one.kinds)
        mask[i, place] = 1
    after = torch.full((len(encoded), 1), PADDING)
    next_kind = torch.where(mask == 1, torch.cat([kind[:, 1:], after], 1), PADDING)
    next_id = torch.cat([ids[:, 1:], torch.full_like(after, pad_id)], 1)
    chosen = torch.isin(next_kind, torch.tensor(list(kinds)))
    rows = torch.arange(len(encoded))[:, None].expand_as(chosen)
    return Batch(
        input_ids=ids,
        position_ids=None,
        attention_mask=mask,
        keep=chosen.flatten().nonzero().squeeze(1),
        labels=next_id[chosen],
        row=rows[chosen],
        kind=next_kind[chosen],
        rows=len(encoded),
        index=torch.tensor([e.row for e in encoded]),
        weights=torch.tensor([e.weight for e in encoded]),
    )
