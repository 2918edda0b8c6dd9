"""Early stopping: measure a small fixed sample every few steps, and keep the best step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mergeforget.chunked_logprobs import top_labels
from mergeforget.console import say
from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import is_main, on_main
from mergeforget.errors import NumericError, RecipeError
from mergeforget.files import append_jsonl, read_jsonl, reading, replacing, write_json
from mergeforget.train.forward import output_matrix, predict, unwrapped
from mergeforget.train_config import Watch

PROXIES = "proxies.jsonl"  # file in the run folder, one line per check
BEST, HEALTHY = "best", "healthy"  # kept weights: best check, last step below the threshold


class Watcher(TrainerCallback):
    """Measure a sample before the first step and then every ``every`` steps.

    Each line has the mean NLL of forget and retain answers, the share of answers that greedy
    decoding reproduces word for word (every token is the most likely one), and the AUC of
    distinguishing forget rows from holdout rows by their NLL.
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
                "watch.best_by: mia compares forget rows with holdout rows, but there are none. "
                "Give --holdout, or set best_by to retain_nll or last."
            )
        self.lines, self.checkpoints = folder / PROXIES, checkpoints
        self.secured: dict[str, int] = {}  # by kind: step of the weights that the checkpoint needs
        self.head: torch.Tensor | None = None
        self.end = folder / "until" / f"{stage}.json"  # how a training ended early
        self.before: dict[str, torch.Tensor] = {}  # weights one step before a check
        self.kept_step: int | None = None  # after a collapse

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if self.head is None:
            self.head = output_matrix(unwrapped(model))
        if state.global_step == 0:
            on_main(lambda: self.end.unlink(missing_ok=True))
            self._look(model, 0)
        following = state.global_step + 1
        if self.settings.collapse and (
            following % self.settings.every == 0 or following == state.max_steps
        ):
            self.before = {n: p.detach().clone() for n, p in _trainable(model)}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        due = state.global_step % self.settings.every == 0 or state.global_step == state.max_steps
        if due and self._look(model, state.global_step):
            self._step_back(model, state.global_step)
            control.should_training_stop = True

    def _step_back(self, model: Any, step: int) -> None:
        """Restore the last step below the collapse threshold: the previous step or the last check.

        Raises:
            NumericError: The first step exceeded the threshold.
        """
        parameters = dict(_trainable(model))
        for name, tensor in self.before.items():
            parameters[name].data.copy_(tensor)
        line = proxies(unwrapped(model), self.samples, self.head)
        seen = on_main(self._seen)
        limit = seen[0]["retain_nll"] + self.settings.collapse
        self.kept_step = step - 1
        if step == 1 or not line["retain_nll"] <= limit:
            self.kept_step = seen[-2]["step"]
            if is_main():
                from safetensors.torch import load_file

                for name, tensor in load_file(self._file(HEALTHY, seen[-2]["step"])).items():
                    parameters[name].data.copy_(tensor)
            line = seen[-2]
        if not self.kept_step:
            raise NumericError(
                f"{self.stage} collapsed within {step} steps: the retain NLL rose by more than "
                f"{self.settings.collapse:g} nats (watch.collapse). Lower the learning rate."
            )
        facts = {"outcome": "collapsed", "step": self.kept_step, "auc": line.get("mia_auc"),
                 "forget_exact": line["forget_exact"],
                 "retain_exact": line["retain_exact"]}  # fmt: skip
        on_main(lambda: write_json(self.end, facts))
        if self.settings.best_by == "last":
            say(f"{self.stage}: kept step {self.kept_step}, the last before the collapse.")

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if not is_main() or self.settings.best_by == "last" or not self._seen()[1:]:
            return  # only the main process saves weights
        line = min(self._seen()[1:], key=self._badness)
        if not self._file(BEST, line["step"]).exists():
            say(
                f"{self.stage}: kept the last step: the weights of step {line['step']} are missing."
            )
            return
        from safetensors.torch import load_file

        parameters = dict(unwrapped(model).named_parameters())
        for name, tensor in load_file(self._file(BEST, line["step"])).items():
            parameters[name].data.copy_(tensor)
        say(f"{self.stage}: kept step {line['step']}, the best by {self.settings.best_by}.")

    def _look(self, model: Any, step: int) -> bool:
        """Measure and decide whether to stop; every rank measures, since weights may be sharded."""
        line = {
            "stage": self.stage,
            "step": step,
            **proxies(unwrapped(model), self.samples, self.head),
        }
        return on_main(lambda: self._note(model, line))

    def _note(self, model: Any, line: dict[str, Any]) -> bool:
        """Record a check, save the weights if they are the best, and decide whether to stop."""
        earlier = [self._badness(x) for x in self._seen()[1:]]
        better = line["step"] > 0 and self._badness(line) < min(earlier, default=float("inf"))
        if self.settings.best_by != "last" and better:
            self._keep(model, BEST, line["step"])
        append_jsonl(self.lines, [line])  # after the weights, so that a recorded file exists
        risen = line["retain_nll"] - self._seen()[0]["retain_nll"]
        if not self.settings.collapse:
            return False
        if risen <= self.settings.collapse:
            self._keep(model, HEALTHY, line["step"])
            return False
        say(
            f"{self.stage}: stopped at step {line['step']}: the retain answers' NLL rose by "
            f"{risen:.2f} nats (watch.collapse is {self.settings.collapse:g})."
        )
        return True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if is_main():  # remove files of steps after the checkpoint, which are repeated
            for path, step in self._files():
                if step > state.global_step:
                    path.unlink()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.secured = {}
        for path, step in self._files():
            kind = path.name.split("-")[0]
            self.secured[kind] = max(step, self.secured.get(kind, 0))

    def _file(self, kind: str, step: int) -> Path:
        return self.checkpoints / f"{kind}-{step:06d}.safetensors"

    def _files(self) -> list[tuple[Path, int]]:
        paths = [p for k in (BEST, HEALTHY) for p in self.checkpoints.glob(f"{k}-*.safetensors")]
        return [(path, int(path.stem.split("-")[1])) for path in paths]

    def _keep(self, model: Any, kind: str, step: int) -> None:
        """Save the weights of a check; earlier ones stay while the last checkpoint needs them."""
        from safetensors.torch import save_file

        weights = {n: p.detach().cpu().contiguous() for n, p in _trainable(model)}
        path = self._file(kind, step)
        with replacing(path) as temporary:
            save_file(weights, temporary)
        for old, step_of_file in self._files():
            if old.name.startswith(kind) and step_of_file not in (step, self.secured.get(kind)):
                old.unlink()

    def _seen(self) -> list[dict[str, Any]]:
        lines = [x for x in read_jsonl(self.lines) if x.get("stage") == self.stage]
        with reading(self.lines):
            for line in lines:
                if not isinstance(line["step"], int):
                    raise TypeError(f"step is {line['step']!r}")
                for key in ("retain_nll", "forget_exact", "retain_exact"):
                    line[key] = float(line[key])
                self._badness(line)
        return lines

    def _badness(self, line: dict[str, Any]) -> float:
        if self.settings.best_by == "mia":
            return abs(float(line["mia_auc"]) - 0.5)
        return float(line["retain_nll"])


def _trainable(model: Any) -> list[tuple[str, Any]]:
    return [(n, p) for n, p in unwrapped(model).named_parameters() if p.requires_grad]


def proxies(
    model: Any, samples: Mapping[str, Sequence[Encoded]], head: torch.Tensor | None = None
) -> dict[str, float]:
    """``forget_nll``, ``forget_exact``, ..., and ``mia_auc`` where there is a holdout set.

    Args:
        head: The output matrix; logits are then computed in chunks. See ``output_matrix``.
    """
    was_training = model.training
    model.eval()
    measured: dict[str, float] = {}
    nll = {}
    with torch.no_grad():
        for name, rows in samples.items():
            outputs = predict(model, pack(rows).to(next(model.parameters()).device), head=head)
            assert outputs.source is not None
            nll[name] = outputs.nll()
            wrong = outputs.per_row((top_labels(outputs.source) != outputs.labels).float())
            measured[f"{name}_nll"] = float(nll[name].mean())
            measured[f"{name}_exact"] = float((wrong == 0).float().mean())
    model.train(was_training)
    if "holdout" in nll:
        gap = nll["holdout"][:, None] - nll["forget"][None, :]
        measured["mia_auc"] = float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean())
    return measured


def _spread(rows: Sequence[Encoded], size: int) -> list[Encoded]:
    """Return at most ``size`` rows, evenly spaced over the set."""
    count = min(size, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
