"""Outputs of reference models, computed once and stored where possible.

The reference is the model before unlearning; "Who's Harry Potter" also reads the reinforced model,
which is the base after training on the forget set.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import set_seed

from mergeforget.chunked_logprobs import Projection
from mergeforget.console import quiet
from mergeforget.data.batches import Batch, pack
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import on_main
from mergeforget.errors import InputError, RecipeError
from mergeforget.files import replacing
from mergeforget.model_files import content_of, locate
from mergeforget.outputs import PADDING, TokenOutputs
from mergeforget.recipe import Term, Training
from mergeforget.train.forward import as_reference, output_matrix, predict
from mergeforget.train.lora_targets import lora_config
from mergeforget.train.objective import ReferenceContent, any_needs, mask_of, reads_of
from mergeforget.train.tokenize import encode_sets
from mergeforget.train_config import Reinforce

if TYPE_CHECKING:
    from mergeforget.train.fit import TrainingJob

TOKENS = 2048  # tokens of packed rows in one pass
MOST_BYTES = 2**30  # largest size of the hidden states stored for one set


@dataclass
class Reference:
    """Access to the outputs of the model before unlearning.

    Attributes:
        known: Outputs computed before the first step, by set.
        before: Initial values of the trained weights, where the model itself is trained.
        head: The output matrix; see ``output_matrix``.
        old_head: The output matrix before unlearning; a copy where the matrix is trained.
        reinforced: Outputs of the reinforced model on the forget set, where a loss reads them.
    """

    known: Mapping[str, StoredOutputs] = field(default_factory=dict)
    before: Mapping[str, Tensor] | None = None
    head: Tensor | None = None
    old_head: Tensor | None = None
    reinforced: StoredOutputs | None = None


class StoredOutputs:
    """Stored reference outputs of a set, addressed by row index.

    Args:
        values: Log-probabilities of the labels, (tokens,), or inputs of the output layer,
            (tokens, width), of all rows in order.
        counts: (rows,) kept tokens of each row.
        head: The output matrix, needed with inputs of the output layer.
    """

    def __init__(self, values: Tensor, counts: Tensor, head: Tensor | None = None) -> None:
        self.rows, self.head = values.split(counts.tolist()), head

    def outputs(self, batch: Batch, **totals: Any) -> TokenOutputs:
        """Stored reference outputs of a batch; the model is not run. They are 0 on padding."""
        values = torch.cat([self.rows[i] for i in batch.index.tolist()]).to(batch.labels.device)
        if len(values) < len(batch.labels):  # rows are stored without padding
            padded = values.new_zeros(len(batch.labels), *values.shape[1:])
            padded[batch.kind != PADDING] = values
            values = padded
        source = None if self.head is None else Projection(values, self.head)
        return TokenOutputs(
            source,
            batch.labels,
            batch.row,
            batch.rows,
            batch.kind,
            known_logps=values if self.head is None else None,
            weights=batch.weights,
            parts=batch.parts,
            **totals,
        )


def reference_of(
    model: Any, encoded: Mapping[str, Sequence[Encoded]], training: Training, folder: Path
) -> Reference:
    """Compute reference outputs before the first step, while the model equals the reference.

    Args:
        folder: Run folder, where the outputs are stored.
    """
    reads = reads_of(training.objective)
    kinds = mask_of(training.objective)
    head = output_matrix(model)
    untrained: dict[str, Tensor] | None = {} if training.full else None  # no adapter to switch off
    known = {}
    for name, needs in reads.items():
        content = needs.kept
        if content == "hidden" and not _fits(head, encoded[name], kinds):
            content = None
        if content is not None and PADDING not in kinds:
            store = folder / "reference"
            known[name] = load_or_compute(
                content, model, encoded[name], kinds, store, head, untrained
            )
    before, old_head = None, head
    if training.full and any(r.reference and name not in known for name, r in reads.items()):
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        named = (before[n] for n, p in model.named_parameters() if p is head and n in before)
        old_head = next(named, head)
    return Reference(known, before, head, old_head)


def load_or_compute(
    content: ReferenceContent,
    model: Any,
    encoded: Sequence[Encoded],
    kinds: tuple[int, ...],
    folder: Path,
    head: Tensor | None = None,
    before: Mapping[str, Tensor] | None = None,
    label: str = "",
) -> StoredOutputs:
    """Load reference outputs from the run folder, or compute and store them.

    Both sides of a pair have the same base and often the same rows, so the second loads the file.

    Args:
        kinds: Kinds of position that are kept of a row.
        head, before: see ``predict`` and ``as_reference``.
        label: Beginning of the file's name, for outputs of another model than the base.
    """
    from safetensors.torch import load_file, save_file

    path = folder / f"{label}{content}-{_name(model, encoded, kinds)}.safetensors"

    def keep(tensors: dict[str, Tensor]) -> None:
        with replacing(path) as temporary:
            save_file(tensors, temporary)

    if not on_main(path.exists):  # on every rank: each may hold only a shard of the model
        tensors = _compute(content, model, encoded, kinds, head, before)
        on_main(lambda: keep(tensors))
    try:
        return StoredOutputs(**load_file(path), head=head if content == "hidden" else None)
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}). Delete it; it is created again.") from error


def _compute(
    content: ReferenceContent,
    model: Any,
    encoded: Sequence[Encoded],
    kinds: tuple[int, ...],
    head: Tensor | None,
    before: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """``values`` of all kept tokens, row after row, and ``counts`` of each row."""
    device = next(model.parameters()).device
    values, counts = [], []
    with as_reference(model, before):
        for rows in in_groups(encoded):
            batch = pack(rows, kinds).to(device)
            outputs = predict(model, batch, head=head)
            if content == "logps":
                values.append(outputs.token_logps.cpu())
            else:
                assert isinstance(outputs.source, Projection)
                values.append(outputs.source.hidden.cpu())
            counts.append(torch.bincount(batch.row.cpu(), minlength=batch.rows))
    return {"values": torch.cat(values), "counts": torch.cat(counts)}


def _fits(head: Tensor | None, encoded: Sequence[Encoded], kinds: tuple[int, ...]) -> bool:
    """Return whether inputs of the output layer fit the budget and the layer is frozen."""
    if head is None or head.requires_grad:
        return False
    tokens = sum(kind in kinds for one in encoded for kind in one.kinds)
    return tokens * head.shape[1] * head.element_size() <= MOST_BYTES


def in_groups(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return groups of consecutive rows, each up to a number of tokens."""
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
    """Hash of everything that determines the stored values."""
    dtype = next(model.parameters()).dtype
    quantised = " quantised" if getattr(model.config, "quantization_config", None) else ""
    facts = f"{on_main(lambda: _base_id(model))} {dtype}{quantised} {sorted(kinds)}"
    digest = hashlib.sha256(facts.encode())
    for one in encoded:
        digest.update(repr((one.ids, one.kinds)).encode())
    return digest.hexdigest()[:16]


def _base_id(model: Any) -> str:
    """Return what identifies the base: the hash of its files, or else of its weights."""
    name = str(model.config._name_or_path)
    if name:
        return content_of(Path(name) if Path(name).is_dir() else locate(name))
    digest = hashlib.sha256()
    for key, weight in model.named_parameters():
        if "lora_" not in key:
            plain = weight.detach().cpu().contiguous()
            digest.update(f"{key} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy())  # a sum hides swapped rows
    return digest.hexdigest()


def reinforce(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    job: TrainingJob,
    template: PromptTemplate,
) -> StoredOutputs:
    """Train an adapter on the forget set, and return its outputs there; the adapter is dropped.

    Raises:
        RecipeError: The model's logits are not its last hidden state times a matrix.
    """
    from peft import get_peft_model

    from mergeforget.train.fit import TrainingJob, fit  # fit.py calls this function

    more = training.reinforce or Reinforce()
    plan = Training(
        objective=[Term(loss="gd", on="forget", **_mask_of(training, "reinforced"))],
        transforms=[step for step in training.transforms if step.on == "forget"],
        epochs=more.epochs, learning_rate=more.learning_rate, optimizer=training.optimizer,
        batch_size=training.batch_size, gradient_accumulation=training.gradient_accumulation,
        weight_decay=training.weight_decay, max_grad_norm=training.max_grad_norm,
        max_length=training.max_length, seed=training.seed, tokens=training.tokens,
        lora=training.lora, gradient_checkpointing=training.gradient_checkpointing,
        tokens_per_pass=training.tokens_per_pass,
    )  # fmt: skip
    stage = f"{job.stage}-reinforced"
    own_job = TrainingJob(job.run, stage, job.resume, job.checkpoint_seconds)
    set_seed(training.seed)
    with quiet():
        policy = get_peft_model(
            model, lora_config(model, **plan.lora.model_dump(exclude_none=True))
        )
    try:
        encoded = encode_sets(tokenizer, {"forget": sets["forget"]}, plan, template)
        head = output_matrix(policy)
        if head is None:
            raise RecipeError(
                "whp stores the outputs of the reinforced model as inputs of its output layer, and "
                f"{type(model).__name__} changes its logits after that layer. Use another "
                "objective, for example undial."
            )
        folder, label = job.run.root / "reference", f"{stage}-"
        stored = on_main(lambda: sorted(folder.glob(f"{label}*.safetensors")))
        if not (job.resume and stored):
            on_main(lambda: _remove(stored))
            reference = Reference(head=head)
            fit(policy, tokenizer, encoded, plan.objective, plan, own_job, reference=reference)
        kinds = mask_of(training.objective)
        rows = encoded["forget"]
        known = load_or_compute("hidden", policy, rows, kinds, folder, head, before={}, label=label)
    finally:
        policy.unload()
    on_main(lambda: shutil.rmtree(own_job.checkpoints, ignore_errors=True))
    return known


def _mask_of(training: Training, need: str) -> dict[str, Any]:
    """Return the mask of the term with a need as an argument; empty for the default mask."""
    term = next(t for t in training.objective if any_needs([t], need))
    return {"mask": term.arguments["mask"]} if "mask" in term.arguments else {}


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
