"""A Trainer that combines the gradients of both sets: NGDiff and its fitted learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mergeforget.recipe import Training
from mergeforget.train.directions import RateFit, clipped, fitted_rate, ngdiff, probed_rate
from mergeforget.train.objective import compute
from mergeforget.train.requirements import reads_of
from mergeforget.train.trainer import Share, UnlearningTrainer


class NGDiffTrainer(UnlearningTrainer):
    """Follows ``g_R / ||g_R|| - g_F / ||g_F||`` and optionally fits the learning rate.

    The forget terms of a recipe are minimised, as ``ga`` is, so ``g_F`` is minus their gradient.
    """

    def __init__(self, *, training: Training, **settings: Any) -> None:
        super().__init__(**settings)
        self.training = training
        self._gathered: dict[str, list[Tensor]] = {}
        self._shares: list[Share] = []
        self._parts = 1.0  # micro-batches of the step in which a row counts, per process

    def get_batch_samples(self, *args: Any, **more: Any) -> Any:
        shares, count = super().get_batch_samples(*args, **more)
        if self.training.clip_each:  # each micro-batch by its own mean, then the mean over them
            real = sum(any(b.total for b in s.batches.values()) for s in shares)
            self._parts = self._over_processes(real) or 1.0
            shares = [Share(s.batches, {}, {}) for s in shares]
        self._shares, self._gathered = shares, {}
        return shares, count

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        share = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        for name in ("retain", "forget"):
            terms = [t for t in self.terms if t.on == name]
            with self._apart(model):
                loss = self.loss_of(model, share, terms)
                self.accelerator.backward(loss)
            self._gather(name)
            total = total + loss.detach()
        if self.accelerator.sync_gradients:
            self._steer(model)
        return total / self._parts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log terms and notes as means over micro-batches where each is clipped."""
        for noted in (self._values, self._notes):
            noted.update({key: value / self._parts for key, value in noted.items()})
        super().log(logs, start_time)

    @contextmanager
    def _apart(self, model: Any) -> Iterator[None]:
        """Keep gradients local to each rank; ``_steer`` averages them later."""
        synced = self.accelerator.sync_gradients
        with self.accelerator.no_sync(model):
            self.accelerator.gradient_state._set_sync_gradients(False)
            try:
                yield
            finally:
                self.accelerator.gradient_state._set_sync_gradients(synced)

    def _gather(self, name: str) -> None:
        """Add the parameters' gradient to its set's sum and clear it."""
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
        """Store the direction as the parameters' gradient and fit the learning rate."""
        for gradient in self._gathered.values():
            for g in gradient:
                if self.accelerator.num_processes > 1:
                    g.copy_(self.accelerator.reduce(g, "mean"))
        retain = self._gathered["retain"]
        step = ngdiff(retain, [-g for g in self._gathered["forget"]])
        for parameter, g in zip(self._trained(), step, strict=True):
            parameter.grad = g
        rate = self.training.auto_rate
        if rate is not None and self.state.global_step % rate.every == 0:
            self._set_rate(self._fit(model, retain, step))

    def _fit(self, model: Any, retain: Sequence[Tensor], step: Sequence[Tensor]) -> RateFit:
        asked = self.training.auto_rate
        assert asked is not None
        if asked.method == "fit":
            return fitted_rate(retain, step, asked.candidates)
        optimizer: Any = self.optimizer
        rate = float(optimizer.param_groups[0]["lr"])
        ahead, here, behind = (self._retain_loss(model, step, s * rate) for s in (-1.0, 0.0, 1.0))
        return probed_rate(rate, ahead, here, behind)

    def _retain_loss(self, model: Any, step: Sequence[Tensor], distance: float) -> float:
        """The step's retain loss at ``theta + distance * step``; theta is restored bit for bit."""
        terms = [t for t in self.terms if t.on == "retain"]
        places = list(self._trained())
        own = [p.data.clone() for p in places]
        model.eval()
        try:
            with torch.no_grad():
                for parameter, g in zip(places, step, strict=True):
                    parameter.data.add_(g, alpha=distance)
                loss = sum(self._quiet_loss(model, s, terms) for s in self._shares)
        finally:
            for parameter, data in zip(places, own, strict=True):
                parameter.data.copy_(data)
            model.train()
        return self._over_processes(loss / self._parts)

    def _quiet_loss(self, model: Any, share: Share, terms: Any) -> float:
        """Weighted sum of the terms, without logging."""
        self._prepare_inputs(share)
        reads = reads_of(terms)
        before = {n: self._reference(model, share, n, r) for n, r in reads.items() if r.reference}
        return float(compute(terms, self._policy(model, share, reads), before)[0])

    def _set_rate(self, fit: RateFit) -> None:
        """Use a fitted rate from here on; the scheduler, and so each checkpoint, stores it."""
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
