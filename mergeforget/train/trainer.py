"""A transformers Trainer for an unlearning objective on several sets per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler

from mergeforget.distributed import gather, sharded
from mergeforget.errors import NumericError
from mergeforget.files import append_jsonl
from mergeforget.fsdp import trained
from mergeforget.outputs import TokenOutputs
from mergeforget.recipe import Term
from mergeforget.train.dataset import Share, fuse_shares
from mergeforget.train.forward import TOGETHER, as_reference, predict_sets, unwrapped
from mergeforget.train.objective import Reads, check_finite, compute, reads_of, sets_of
from mergeforget.train.perturbed import perturbed
from mergeforget.train.reference import Reference
from mergeforget.train.samplers import ChunkedSampler, Order, ShardedSampler
from mergeforget.train.weighting import Entanglement, TokenScorer
from mergeforget.train_config import Robust

if TYPE_CHECKING:
    from mergeforget.train.together import Partners

Outputs = dict[str, TokenOutputs]  # by set
SCORER = "token_scorer.safetensors"  # of a checkpoint


class UnlearningTrainer(Trainer):
    """A Trainer that minimises the terms of a recipe.

    Each micro-batch divides by the totals of its optimiser step, so the losses of the micro-batches
    add up to the loss of the step. Gradient accumulation therefore equals the larger batch, also
    with micro-batches of unequal size and over several ranks. Micro-batches may also be fused into
    passes of up to ``budget`` tokens without changing the result.
    """

    scorer: TokenScorer | None = None  # of the loss atwu
    entanglement: Entanglement | None = None  # of the loss egup
    loss_is_scaled_for_ga = True  # the losses of shares add up, so the Trainer must not divide them

    def __init__(
        self,
        *,
        terms: Sequence[Term],
        stage: str,
        history: Path | None,
        reference: Reference | None = None,
        order: Order,
        accumulation: int,
        budget: int = TOGETHER,
        robust: Robust | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.robust = robust  # perturbs the weights of the forget terms
        self.terms, self.stage, self.history = list(terms), stage, history
        self.reference, self.order = reference or Reference(), order
        self.accumulation = accumulation  # micro-batches per step over all ranks
        self.workers = int(self.args.device.type == "cuda")  # prepares batches ahead of a GPU
        self.budget = budget  # tokens per pass; a larger micro-batch is a separate pass
        self.reads = reads_of(self.terms)
        self.levels: dict[str, Tensor] = {}  # target NLL of the level loss by set, (rows,)
        self.profiles: dict[str, Tensor] = {}  # that of answer tokens relative to it, (rows, n)
        self.doubts: dict[str, float] = {}  # of the level loss by set; see TokenOutputs.doubt
        self._pending: dict[
            str, Tensor
        ] = {}  # sums over the micro-batches of the step, on the device
        self._pending_notes: dict[str, Tensor] = {}
        self._values: dict[str, float] = {}  # the same sums on the CPU, after one transfer per step
        self._notes: dict[str, float] = {}
        self._more: dict[str, Any] = {}  # further entries of the step's history line
        self.partners: Partners | None = None  # joins passes with those of another training

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the data loader of this rank, in the order of the recipe's sampler."""
        several = self.accelerator.num_processes
        dealt = ShardedSampler(
            self.order, self.accumulation, self.accelerator.process_index, several
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.order if several == 1 else dealt,
            collate_fn=self.data_collator,
            num_workers=self.workers,
            prefetch_factor=2 * self.args.gradient_accumulation_steps if self.workers else None,
        )
        if several > 1:
            return loader
        prepared: DataLoader[Any] = self.accelerator.prepare_data_loader(
            loader,
            device_placement=False,  # a share is moved after it is fused
        )
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the Trainer's scheduler; with chunks it restarts with each chunk."""
        if not isinstance(self.order, ChunkedSampler):
            return super().create_scheduler(num_training_steps, optimizer)
        chosen: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(chosen, self._factor_in_chunks())
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor_in_chunks(self) -> Callable[[int], float]:
        """Return the learning-rate factor by step, with a schedule and a warm-up per chunk."""
        assert isinstance(self.order, ChunkedSampler)
        factors: list[float] = []
        chunk_steps = self.order.chunk_steps
        for steps in chunk_steps:
            chunk_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1)]),
                num_warmup_steps=round(self.args.warmup_steps * steps / sum(chunk_steps)),
                num_training_steps=steps,
            )
            factors += [float(chunk_scheduler.lr_lambdas[0](step)) for step in range(steps)]
        return lambda step: factors[min(step, len(factors) - 1)]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Return the micro-batches of one optimiser step, each with the totals of the step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        names = batches[0] if batches else {}
        rows = {n: self._mean_over_ranks(sum(b[n].total for b in batches)) for n in names}
        tokens = {n: self._added([b[n].count() for b in batches]) for n in names}
        return self._fused([Share(b, rows, tokens) for b in batches]), None

    def _fused(self, shares: list[Share]) -> list[Share]:
        """Fuse micro-batches into passes of up to ``budget`` tokens."""
        return fuse_shares(shares, self.budget)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if isinstance(inputs, Share):
            device = self.args.device
            pinned = {n: b.pin() if device.type == "cuda" else b for n, b in inputs.batches.items()}
            inputs.batches = {n: b.to(device) for n, b in pinned.items()}
        return inputs

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        self.state.num_input_tokens_seen += sum(b.tokens for b in inputs.batches.values())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of a share; skip one that was fused into a later share."""
        if not inputs.batches:
            return torch.zeros((), device=self.args.device)
        if self.partners is not None:
            return self.partners.step(self, model, inputs)
        return self.separate_step(model, inputs)

    def separate_step(self, model: Any, share: Share) -> Tensor:
        """Run forward and backward of a share of this training alone."""
        loss: Tensor = super().training_step(model, share)  # type: ignore[arg-type]
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return self.loss_of(model, inputs, self.terms)

    def loss_of(self, model: Any, share: Share, terms: Sequence[Term]) -> Tensor:
        """Return the weighted sum of the terms whose sets are in the share; record their values."""
        terms, reads, before = self.before(model, share, terms)
        return self.loss_from(share, terms, before, self._policy(model, share, reads))

    def before(
        self, model: Any, share: Share, terms: Sequence[Term] | None = None
    ) -> tuple[list[Term], dict[str, Reads], Outputs]:
        """Return the terms whose sets are in the share, what they read, and the references."""
        terms = self.terms if terms is None else terms
        terms = [t for t in terms if set(sets_of(t)) <= share.batches.keys()]
        reads = reads_of(terms)
        return terms, reads, self._references(model, share, reads)

    def loss_from(
        self, share: Share, terms: Sequence[Term], before: Outputs, policy: Outputs
    ) -> Tensor:
        """Return the weighted sum of the terms for given outputs; record their values."""
        for name in self.doubts.keys() & policy.keys():
            policy[name].doubt = self.doubts[name]
        for name, levels in self.levels.items():
            if name in policy:
                index = share.batches[name].index.to(levels.device)
                policy[name].levels = levels[index]
                if name in self.profiles:
                    table = self.profiles[name][index].to(policy[name].row.device)
                    policy[name].profile = policy[name].of_answers(table)
        self._weigh(policy, share)
        loss, values = compute(terms, policy, before)
        _add(self._pending, values)
        for name, outputs in policy.items():
            notes = {f"{note}_{name}": value.detach() for note, value in outputs.notes.items()}
            _add(self._pending_notes, notes)
        return loss

    def _weigh(self, policy: Outputs, share: Share) -> None:
        """Set the scores of the forget tokens and the efforts of the forget rows."""
        if "forget" not in policy:
            return
        outputs = policy["forget"]
        if self.entanglement is not None:
            index = share.batches["forget"].index
            outputs.efforts = self.entanglement.efforts(outputs, index)
            outputs.notes["effort"] = outputs.row_mean(outputs.efforts)
        if self.scorer is not None:
            with torch.no_grad():
                outputs.scores = self.scorer.score(outputs)
            outputs.notes["score"] = outputs.token_mean(outputs.scores, self.scorer.kinds)
            if self.scorer.due(self.state.global_step):
                self.scorer.accumulate(outputs)

    def value_of(self, label: str) -> float | None:
        """Return a term's value in the current step over all ranks; None if not computed."""
        if label not in self._values:
            return None
        return self._mean_over_ranks(self._values[label])

    def note(self, **values: Any) -> None:
        """Add entries to the history line of the current step."""
        self._more |= values

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.scorer is not None and self.is_world_process_zero():
            state = {name: values.cpu() for name, values in self.scorer.state().items()}
            save_file(state, Path(output_dir) / SCORER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.scorer is not None and checkpoint:
            self.scorer.load(load_file(Path(checkpoint) / SCORER))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if sharded():
            state_dict = trained(self.model)
        super()._save(output_dir, state_dict)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient's norm, and transfer the step's terms, before the optimiser step.

        This is the only device synchronisation of a step. A value that is not finite ends the
        training with NumericError.
        """
        if self.scorer is not None and self.scorer.due(self.state.global_step):
            self.scorer.update()
        norm = torch.as_tensor(super()._get_grad_norm(model, grad_norm))
        parts = [*self._pending.values(), *self._pending_notes.values()]
        wide = [v.reshape(()).double() for v in parts]
        transferred: list[float] = torch.stack([norm.reshape(()).to(wide[0]), *wide]).tolist()
        self._values = dict(zip(self._pending, transferred[1:], strict=False))
        self._notes = dict(
            zip(self._pending_notes, transferred[1 + len(self._pending) :], strict=True)
        )
        self._pending, self._pending_notes = {}, {}
        check_finite(self._values)
        if not math.isfinite(transferred[0]):
            raise NumericError(
                f"The gradient is not finite in step {self.state.global_step + 1} (its norm is "
                f"{transferred[0]}). Lower the learning rate; the last checkpoint is kept."
            )
        return transferred[0]

    def _step_loss(self) -> float:
        """Return the weighted sum of the step's terms, without a device synchronisation."""
        weights = {term.label: term.weight for term in self.terms}
        return sum(weights[label] * value for label, value in self._values.items())

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, *more: Any, **named: Any
    ) -> None:
        """Log the step's loss from its terms, without the Trainer's own device synchronisation."""
        step = self.state.global_step
        if self.control.should_log and step > self._globalstep_last_logged and self._values:
            loss = self._mean_over_ranks(self._step_loss())
            tr_loss -= tr_loss
            self._total_loss_scalar += loss
            self._globalstep_last_logged = step
            rate = named.get("learning_rate")
            rate = self._get_learning_rate() if rate is None else rate
            self.log({"loss": loss, "grad_norm": grad_norm, "learning_rate": rate})
            self.control.should_log = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *more, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the last step to the logs, and append a line to the history."""
        if "loss" in logs and self._values:
            values = {k: self._mean_over_ranks(v) for k, v in self._values.items()}
            line = {"stage": self.stage, "step": self.state.global_step}
            line |= {"epoch": self.epoch, "loss": logs["loss"], "terms": values}
            line |= {k: logs[k] for k in ("grad_norm", "learning_rate") if k in logs}
            notes = gather(self._notes)  # empty on a rank whose rows all have weight 0
            if names := sorted({name for one in notes for name in one}):
                each = {n: sum(one.get(n, 0.0) for one in notes) / len(notes) for n in names}
                line |= {"notes": each}
            line |= self._more
            if self.history is not None and self.is_world_process_zero():
                append_jsonl(self.history, [line], sync=False)  # Checkpoints syncs it
            logs = logs | {f"term/{label}": value for label, value in values.items()}
            self._values, self._notes, self._more = {}, {}, {}
        super().log(logs, start_time)

    @property
    def epoch(self) -> float:
        """Number of passes over the forget set; with chunks, all are one data loader pass."""
        passes = self.order.epochs if isinstance(self.order, ChunkedSampler) else 1
        return float(self.state.epoch or 0.0) * passes

    def _policy(self, model: Any, share: Share, reads: Mapping[str, Reads]) -> Outputs:
        """Return the policy's outputs by set, in one pass if the sets fit."""
        layers = set().union(*(r.layers for r in reads.values()))
        batches = {name: share.batches[name] for name in reads}
        totals = {name: share.totals(name) for name in reads}
        more: dict[str, Any] = {
            "head": self.reference.head, "layers": sorted(layers), "together": self.together,
        }  # fmt: skip
        if self.robust is None or "forget" not in batches:
            return predict_sets(model, batches, totals, **more)
        others = {name: batch for name, batch in batches.items() if name != "forget"}
        with perturbed(unwrapped(model), self.robust):
            outputs = predict_sets(model, {"forget": batches["forget"]}, totals, **more)
        return outputs | (predict_sets(model, others, totals, **more) if others else {})

    def _references(self, model: Any, share: Share, reads: Mapping[str, Reads]) -> Outputs:
        """Return the reference's outputs by set, for terms that read them."""
        batches = {name: share.batches[name] for name, needs in reads.items() if needs.reference}
        known = self.reference.known
        references = {
            name: known[name].outputs(batch, **share.totals(name))
            for name, batch in batches.items()
            if name in known
        }
        batches = {name: batch for name, batch in batches.items() if name not in known}
        if not batches:
            return self._with_reinforced(references, share)
        inner = unwrapped(model)
        layers = set().union(*(reads[name].reference_layers for name in batches))
        totals = {name: share.totals(name) for name in batches}
        with as_reference(inner, self.reference.before):
            outputs = predict_sets(inner, batches, totals, head=self.reference.old_head,
                                layers=sorted(layers), together=self.together)  # fmt: skip
        return self._with_reinforced(references | outputs, share)

    def _with_reinforced(self, before: Outputs, share: Share) -> Outputs:
        """Add the reinforced model's outputs to those of the reference on the forget set."""
        if self.reference.reinforced is not None and "forget" in before:
            batch, totals = share.batches["forget"], share.totals("forget")
            before["forget"].reinforced = self.reference.reinforced.outputs(batch, **totals)
        return before

    @property
    def together(self) -> int:
        """Maximum number of tokens of a joint pass over several sets."""
        return max(self.budget, TOGETHER)

    def _added(self, counts: Sequence[dict[int, float]]) -> dict[int, float]:
        return {kind: self._mean_over_ranks(sum(c[kind] for c in counts)) for kind in counts[0]}

    def _mean_over_ranks(self, value: float) -> float:
        """Return the mean over ranks: gradients are averaged, so totals must be, too."""
        if self.accelerator.num_processes == 1:
            return value
        local = torch.tensor(float(value), dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(local, "mean"))


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add values to running sums on their device."""
    for key, value in values.items():
        sums[key] = sums[key] + value if key in sums else value
