"""The model before unlearning: what it says is computed once where one number a token will do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.batches import Batch, pack
from mergeforget.data.tokens import Encoded
from mergeforget.errors import InputError
from mergeforget.files import whole
from mergeforget.outputs import PADDING, TokenOutputs
from mergeforget.processes import on_main
from mergeforget.recipe import Training
from mergeforget.train.forward import as_reference, output_matrix, predict
from mergeforget.train.objective import mask_of
from mergeforget.train.reads import reads_of

TOKENS = 2048  # of several rows, run through the model at once


@dataclass
class Reference:
    """How the model before unlearning is asked.

    Attributes:
        known: by set, what it says where that was computed before.
        before: the trained weights as they were, where the model itself is trained.
        head: the output matrix; see ``output_matrix``.
    """

    known: Mapping[str, KnownLogps] = field(default_factory=dict)
    before: Mapping[str, Tensor] | None = None
    head: Tensor | None = None


class KnownLogps:
    """Log-probabilities of every row's kept tokens, by the row's place in its set."""

    def __init__(self, logps: Tensor, counts: Tensor) -> None:
        self.rows = logps.split(counts.tolist())

    def outputs(self, batch: Batch, **totals: Any) -> TokenOutputs:
        """What the reference says about a batch, without running it."""
        logps = torch.cat([self.rows[i] for i in batch.index.tolist()]).to(batch.labels.device)
        kept = batch.labels, batch.row, batch.rows, batch.kind
        return TokenOutputs(None, *kept, known_logps=logps, weights=batch.weights, **totals)


def reference_of(
    model: Any, encoded: Mapping[str, Sequence[Encoded]], training: Training, folder: Path
) -> Reference:
    """Compute what can be known before the first step, while the model still is the reference.

    Args:
        folder: of the run; log-probabilities are kept there.
    """
    reads = reads_of(training.objective)
    kinds = mask_of(training.objective)
    head = output_matrix(model)
    before = None
    if training.full and any(r.reference and not r.can_be_kept for r in reads.values()):
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    untrained: dict[str, Tensor] | None = {} if training.full else None  # no adapter to switch off
    known = {
        name: known_logps(
            model, encoded[name], kinds, folder / "reference", head=head, before=untrained
        )
        for name, read in reads.items()
        if read.can_be_kept and PADDING not in kinds
    }
    return Reference(known, before, head)


def known_logps(
    model: Any,
    encoded: Sequence[Encoded],
    kinds: tuple[int, ...],
    folder: Path,
    *,
    head: Tensor | None = None,
    before: Mapping[str, Tensor] | None = None,
) -> KnownLogps:
    """Read the reference's log-probabilities from the run folder, or compute and keep them there.

    Both sides of a pair have the same base and often the same rows: the second finds the file.

    Args:
        kinds: of position that are kept of a row.
        head, before: see ``predict`` and ``as_reference``.
    """
    from safetensors.torch import load_file, save_file

    path = folder / f"{_name(model, encoded, kinds)}.safetensors"

    def find_or_compute() -> None:
        if not path.exists():
            tensors = _compute(model, encoded, kinds, head, before)
            with whole(path) as temporary:
                save_file(tensors, temporary)

    on_main(find_or_compute)
    try:
        return KnownLogps(**load_file(path))
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}). Delete it; it is made again.") from error


def _compute(
    model: Any,
    encoded: Sequence[Encoded],
    kinds: tuple[int, ...],
    head: Tensor | None,
    before: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """``logps`` of all kept tokens, row after row, and ``counts`` of each row."""
    device = next(model.parameters()).device
    logps, counts = [], []
    with as_reference(model, before):
        for rows in _groups(encoded):
            batch = pack(rows, kinds).to(device)
            logps.append(predict(model, batch, head=head).token_logps.cpu())
            counts.append(torch.bincount(batch.row.cpu(), minlength=batch.rows))
    return {"logps": torch.cat(logps), "counts": torch.cat(counts)}


def _groups(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """Rows in their order, packed up to a number of tokens."""
    groups: list[list[Encoded]] = []
    size = TOKENS
    for one in encoded:
        if size + len(one) > TOKENS:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += len(one)
    return groups


def _name(model: Any, encoded: Sequence[Encoded], kinds: tuple[int, ...]) -> str:
    """A hash of all that decides the numbers."""
    dtype = next(model.parameters()).dtype
    digest = hashlib.sha256(f"{model.config._name_or_path} {dtype} {sorted(kinds)}".encode())
    for one in encoded:
        digest.update(repr((one.ids, one.kinds)).encode())
    return digest.hexdigest()[:16]
