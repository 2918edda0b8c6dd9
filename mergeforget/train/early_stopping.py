"""Cheap figures every few steps on a small fixed sample: early stop, and the best step kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mergeforget.console import say
from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import is_main, on_main
from mergeforget.errors import RecipeError
from mergeforget.files import append_jsonl, read_jsonl, whole
from mergeforget.train.forward import predict, unwrapped
from mergeforget.train_config import Watch

PROXIES = "proxies.jsonl"  # in the run folder: one line a look
BEST = "best.safetensors"


class Watcher(TrainerCallback):
    """Looks every ``every`` steps, and before the first.

    A line has the mean NLL of forget and retain answers, the share of answers that greedy decoding
    would give word for word (every token of theirs is the likeliest), and the AUC of telling forget
    rows from holdout rows by their NLL.
    """

    def __init__(
        self,
        settings: Watch,
        sets: Mapping[str, Sequence[Encoded]],
        folder: Path,
        stage: str,
        checkpoints: Path,
    ) -> None:
        self.settings, self.stage = settings, stage
        names = [n for n in ("forget", "retain", "holdout") if n in sets]
        self.samples = {n: _spread(sets[n], settings.sample) for n in names}
        if settings.best_by == "mia" and "holdout" not in self.samples:
            raise RecipeError(
                "watch.best_by: mia tells forget rows from held-out ones, but there are none. Give "
                "--holdout, or set best_by to retain_nll or last."
            )
        self.lines, self.best = folder / PROXIES, checkpoints / BEST

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if state.global_step == 0:
            self._look(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        due = state.global_step % self.settings.every == 0 or state.global_step == state.max_steps
        if due and self._look(model, state.global_step):
            control.should_training_stop = True

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if not is_main() or self.settings.best_by == "last" or not self.best.exists():
            return  # of several processes the main one's weights are those that are saved
        from safetensors.torch import load_file

        places = dict(unwrapped(model).named_parameters())
        for name, tensor in load_file(self.best).items():
            places[name].data.copy_(tensor)
        line = min(self._seen()[1:], key=self._badness)
        say(f"{self.stage}: kept step {line['step']}, the best by {self.settings.best_by}.")

    def _look(self, model: Any, step: int) -> bool:
        """Measure, and say whether to stop; all processes look, since each may hold only a part."""
        line = {"stage": self.stage, "step": step, **proxies(unwrapped(model), self.samples)}
        return on_main(lambda: self._note(model, line))

    def _note(self, model: Any, line: dict[str, Any]) -> bool:
        """Note it, keep the weights where they are the best so far, and say whether to stop."""
        earlier = [self._badness(x) for x in self._seen()[1:]]
        append_jsonl(self.lines, [line])
        better = line["step"] > 0 and self._badness(line) < min(earlier, default=float("inf"))
        if self.settings.best_by != "last" and better:
            self._keep(model)
        risen = line["retain_nll"] - self._seen()[0]["retain_nll"]
        if not self.settings.collapse or risen <= self.settings.collapse:
            return False
        say(
            f"{self.stage}: stopped at step {line['step']}: the retain answers' NLL rose by "
            f"{risen:.2f} nats (watch.collapse is {self.settings.collapse:g})."
        )
        return True

    def _keep(self, model: Any) -> None:
        from safetensors.torch import save_file

        named = unwrapped(model).named_parameters()
        kept = {n: p.detach().cpu().contiguous() for n, p in named if p.requires_grad}
        with whole(self.best) as temporary:
            save_file(kept, temporary)

    def _seen(self) -> list[dict[str, Any]]:
        return [x for x in read_jsonl(self.lines) if x.get("stage") == self.stage]

    def _badness(self, line: dict[str, Any]) -> float:
        if self.settings.best_by == "mia":
            return abs(float(line["mia_auc"]) - 0.5)
        return float(line["retain_nll"])


def proxies(model: Any, samples: Mapping[str, Sequence[Encoded]]) -> dict[str, float]:
    """``forget_nll``, ``forget_exact``, ..., and ``mia_auc`` where there is a holdout set."""
    was_training = model.training
    model.eval()
    found: dict[str, float] = {}
    nll = {}
    with torch.no_grad():
        for name, rows in samples.items():
            said = predict(model, pack(rows).to(next(model.parameters()).device))
            nll[name] = said.nll()
            wrong = said.per_row((said.logits.argmax(-1) != said.labels).float())
            found[f"{name}_nll"] = float(nll[name].mean())
            found[f"{name}_exact"] = float((wrong == 0).float().mean())
    model.train(was_training)
    if "holdout" in nll:
        gap = nll["holdout"][:, None] - nll["forget"][None, :]
        found["mia_auc"] = float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean())
    return found


def _spread(rows: Sequence[Encoded], size: int) -> list[Encoded]:
    """At most ``size`` rows, evenly over the set."""
    count = min(size, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
