"""A Trainer that combines gradients of the forget and retain terms: NGDiff, GRU, SAM and others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mergeforget.recipe import Training
from mergeforget.train.dataset import Share
from mergeforget.train.directions import (
    RateFit,
    along,
    clipped,
    curvature_penalised,
    fitted_rate,
    ngdiff,
    norm,
    norm_penalised,
    probed_rate,
    rectified,
)
from mergeforget.train.objective import compute, reads_of
from mergeforget.train.trainer import UnlearningTrainer
from mergeforget.train_config import SMOOTHING

EMA = "retain_gradient.safetensors"  # file of a checkpoint: GRU's smoothed retain gradient


class NGDiffTrainer(UnlearningTrainer):
    """Combine the gradients of the retain and the forget terms into one update direction.

    - ``ngdiff`` follows ``g_R / ||g_R|| - g_F / ||g_F||`` and optionally fits the learning rate.
      The forget terms are minimised, as ``ga`` is, so ``g_F`` is minus their gradient.
    - ``gru`` follows the gradient of the forget terms, rectified against the retain gradient, which
      is smoothed over steps (arXiv:2503.09117). Each checkpoint holds the smoothed gradient.
    - ``sam`` adds the retain gradient to the gradient of the forget terms at
      ``theta + radius * g / ||g||``, g their gradient at theta (arXiv:2502.05374).
    - ``gp`` and ``cr`` add the retain gradient to that of the forget terms and a penalty on the
      norm of their gradient, or on its change within ``sam_radius`` (the same paper).
    """

    def __init__(self, *, training: Training, **settings: Any) -> None:
        super().__init__(**settings)
        self.training = training
        self._gathered: dict[str, list[Tensor]] = {}
        self._shares: list[Share] = []
        self._mean: list[Tensor] = []  # GRU's smoothed retain gradient
        self._parts = 1.0  # micro-batches of the step with rows of positive weight, per process

    def _fused(self, shares: list[Share]) -> list[Share]:
        """Do not fuse micro-batches if the gradient of each one is clipped."""
        return shares if self.training.clip_each else super()._fused(shares)

    def get_batch_samples(self, *args: Any, **more: Any) -> Any:
        shares, count = super().get_batch_samples(*args, **more)
        if self.training.clip_each:  # mean over each micro-batch, then over micro-batches
            real = sum(any(b.total for b in s.batches.values()) for s in shares)
            self._parts = self._mean_over_ranks(real) or 1.0
            shares = [Share(s.batches, {}, {}) for s in shares]
        self._shares, self._gathered = [s for s in shares if s.batches], {}
        return shares, count

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        if not inputs.batches:
            return total
        model.train()
        share = self._prepare_inputs(inputs)
        for name in ("retain", "forget"):
            terms = [t for t in self.terms if t.on == name]
            if not terms:  # SAM without retain terms
                continue
            with self._apart(model):
                loss = self.loss_of(model, share, terms)
                self.accelerator.backward(loss)
            self._gather(name)
            total = total + loss.detach()
        if self.accelerator.sync_gradients:
            self._steer(model)
        return total / self._parts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log terms and notes as means over micro-batches if each is clipped."""
        for noted in (self._values, self._notes):
            noted.update({key: value / self._parts for key, value in noted.items()})
        super().log(logs, start_time)

    def _step_loss(self) -> float:
        return super()._step_loss() / self._parts

    @contextmanager
    def _apart(self, model: Any) -> Iterator[None]:
        """Keep gradients local to each rank; ``_steer`` averages them."""
        synced = self.accelerator.sync_gradients
        with self.accelerator.no_sync(model):
            self.accelerator.gradient_state._set_sync_gradients(False)
            try:
                yield
            finally:
                self.accelerator.gradient_state._set_sync_gradients(synced)

    def _gather(self, name: str) -> None:
        """Add the gradient of the parameters to the sum of its set, and clear it."""
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained()]
        if self.training.clip_each:
            gradient = clipped(gradient, self.training.clip_each)
            gradient = [g / self._parts for g in gradient]
        so_far = self._gathered.get(name)
        if so_far is None:
            self._gathered[name] = [g.clone() for g in gradient]
        else:
            for old, new in zip(so_far, gradient, strict=True):
                old += new
        for parameter in self._trained():
            parameter.grad = None

    def _steer(self, model: Any) -> None:
        """Store the direction as the gradient of the parameters, and fit the learning rate."""
        for gradient in self._gathered.values():
            for g in gradient:
                if self.accelerator.num_processes > 1:
                    g.copy_(self.accelerator.reduce(g, "mean"))
        zeros = [torch.zeros_like(p) for p in self._trained()]
        retain = self._gathered.get("retain", zeros)
        if self.training.direction == "gru":
            step = rectified(self._gathered["forget"], self._smoothed(retain))
        elif self.training.direction in SMOOTHING:
            smooth = self._smooth_gradient(model, self._gathered["forget"])
            step = [r + f for r, f in zip(retain, smooth, strict=True)]
        else:
            step = ngdiff(retain, [-g for g in self._gathered["forget"]])
        for parameter, g in zip(self._trained(), step, strict=True):
            parameter.grad = g
        rate = self.training.auto_rate
        if rate is not None and self.state.global_step % rate.every == 0:
            self._set_rate(self._fit(model, retain, step))

    def _smoothed(self, retain: Sequence[Tensor]) -> list[Tensor]:
        """Return the exponential moving average of the retain gradient."""
        weight = self.training.gru_smoothing
        if self._mean:
            pairs = zip(retain, self._mean, strict=True)
            self._mean = [weight * g + (1 - weight) * mean.to(g) for g, mean in pairs]
        else:
            self._mean = [g.clone() for g in retain]
        return self._mean

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._mean and self.is_world_process_zero():
            tensors = {str(i): g.contiguous() for i, g in enumerate(self._mean)}
            save_file(tensors, Path(output_dir) / EMA)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and (path := Path(checkpoint) / EMA).exists():
            tensors = load_file(path)
            self._mean = [tensors[str(i)] for i in range(len(tensors))]

    def _smooth_gradient(self, model: Any, here: list[Tensor]) -> list[Tensor]:
        """Return the gradient of the forget terms with the sharpness that the direction limits."""
        settings = self.training
        radius, penalty = settings.sam_radius, settings.penalty
        if not norm(here):
            return here
        offset = along(here, radius)
        ahead = self._forget_gradient(model, offset)
        if settings.direction == "sam":
            return ahead
        if settings.direction == "gp":
            return norm_penalised(here, ahead, radius, penalty)
        bend = along([a - g for a, g in zip(ahead, here, strict=True)], radius)
        here_bent = self._forget_gradient(model, bend)
        both = [one + other for one, other in zip(offset, bend, strict=True)]
        ahead_bent = self._forget_gradient(model, both)
        return curvature_penalised(here, ahead, here_bent, ahead_bent, radius, penalty)

    def _forget_gradient(self, model: Any, offset: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of the forget terms at ``theta + offset``; theta is restored."""
        parameters = list(self._trained())
        originals = [p.data.clone() for p in parameters]
        noted = dict(self._pending), dict(self._pending_notes)
        terms = [t for t in self.terms if t.on == "forget"]
        self._gathered.pop("forget")
        with torch.no_grad():
            for parameter, change in zip(parameters, offset, strict=True):
                parameter.data.add_(change)
        try:
            for share in self._shares:
                with self._apart(model):
                    self.accelerator.backward(self.loss_of(model, share, terms))
                self._gather("forget")
        finally:
            for parameter, data in zip(parameters, originals, strict=True):
                parameter.data.copy_(data)
            self._pending, self._pending_notes = noted
        gradient = self._gathered["forget"]
        if self.accelerator.num_processes > 1:
            gradient = [self.accelerator.reduce(g, "mean") for g in gradient]
        return gradient

    def _fit(self, model: Any, retain: Sequence[Tensor], step: Sequence[Tensor]) -> RateFit:
        settings = self.training.auto_rate
        assert settings is not None
        if settings.method == "fit":
            return fitted_rate(retain, step, settings.candidates)
        optimizer: Any = self.optimizer
        rate = float(optimizer.param_groups[0]["lr"])
        loss_ahead, loss_here, loss_behind = (
            self._retain_loss(model, step, s * rate) for s in (-1.0, 0.0, 1.0)
        )
        return probed_rate(rate, loss_ahead, loss_here, loss_behind)

    def _retain_loss(self, model: Any, step: Sequence[Tensor], distance: float) -> float:
        """Return the retain loss at ``theta + distance * step``; theta is restored bit for bit."""
        terms = [t for t in self.terms if t.on == "retain"]
        parameters = list(self._trained())
        originals = [p.data.clone() for p in parameters]
        model.eval()
        try:
            with torch.no_grad():
                for parameter, g in zip(parameters, step, strict=True):
                    parameter.data.add_(g, alpha=distance)
                loss = sum(self._quiet_loss(model, s, terms) for s in self._shares)
        finally:
            for parameter, data in zip(parameters, originals, strict=True):
                parameter.data.copy_(data)
            model.train()
        return self._mean_over_ranks(loss / self._parts)

    def _quiet_loss(self, model: Any, share: Share, terms: Any) -> float:
        """Return the weighted sum of the terms, without logging."""
        self._prepare_inputs(share)
        reads = reads_of(terms)
        before = self._references(model, share, reads)
        return float(compute(terms, self._policy(model, share, reads), before)[0])

    def _set_rate(self, fit: RateFit) -> None:
        """Use a fitted rate from now on; it is part of the scheduler and of each checkpoint."""
        optimizer: Any = self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = fit.rate
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        scheduler.base_lrs = [fit.rate] * len(scheduler.base_lrs)
        scheduler._last_lr = list(scheduler.base_lrs)  # logged as the rate of this step
        fitted = fit.fitted if math.isfinite(fit.fitted) else None
        self._more["auto_rate"] = {
            "rate": fit.rate,
            "fitted": fitted,
            "curvature": fit.curvature,
            "accepted": fit.accepted,
        }

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
