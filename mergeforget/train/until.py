"""Controls a training with ``until``: learning rate, target and end depend on checks.

See docs/unlearn.md for the formulas. Each check is recorded in its step's line of
``history.jsonl``, under ``until``, with the measurements and the decision.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from mergeforget.console import say
from mergeforget.distributed import gather, on_main
from mergeforget.files import read_jsonl, reading
from mergeforget.train.checks import (
    Check,
    MeasuredSets,
    answers_forgotten,
    answers_kept,
    low_enough,
    met,
    rows_per_pass,
)
from mergeforget.train.forward import as_reference, unwrapped
from mergeforget.train_config import Training, Until

STEPS_AHEAD = 8  # number of equal steps that the range test takes at once
SLOWER, FASTER = (0.5, 0.25), (2.0, 4.0, 8.0)  # rates of the range test, relative to the first
COST = 0.05  # maximum rise of the retain NLL in the range test, in nats
HARMED = 0.1  # rise of the retain NLL, in nats, above which the learning rate decreases
BALANCE, MOST_BALANCE = 0.05, 8.0  # nats per unit of the factor of retain terms, and its maximum
LAST_BALANCE = 4.0  # least factor of retain terms if only retain answers are missing
SPOILED = 0.3  # the same, above which steps at more than the recipe's rate are repeated
FELL = 0.05  # fall of the AUC since the last check that counts as progress
CLOSE = 0.1  # distance from the target, in nats, at which it counts as reached
LEAD = 0.2  # nats by which one form of prompts may be closer to its target than the other
OVERSHOT = 0.5  # nats beyond the target of every form of prompts that lower the learning rate
TOO_FAR = 0.25  # AUC below ``auc_at_most`` at which a training does not end yet
RETURNS = 4  # maximum number of checks that wait for the AUC to rise again
FAR = 0.1  # AUC below ``auc_at_most`` at which the target of a form of prompts is lowered
ENDED = ("reached", "max_steps", "collapsed")  # decisions that end the training
UNDONE = ("back off", "return", "collapsed")  # decisions that restore an earlier check's weights


class UntilController(TrainerCallback):
    """Runs checks, adjusts the learning rate and the target, and ends the training.

    Args:
        training: A training with ``until``.
        measured: The sets that are measured at each check.
        stage: Name of the training.
        folder: Folder of the snapshots ``STAGE-stepNNNNN``.
        history: The run's ``history.jsonl``.
        save: Function that writes the adapter to a folder.
        under: Condition of ``under``, if it is a snapshot of this training.
    """

    def __init__(
        self,
        training: Training,
        measured: MeasuredSets,
        *,
        stage: str,
        folder: Path,
        history: Path,
        save: Callable[[Path], Any],
        under: Until | None = None,
    ) -> None:
        assert training.until is not None
        self.training, self.until, self.under = training, training.until, under
        self.every = training.steps_between_checks(rows_per_pass(measured.sets["forget"]))
        self.measured = measured
        self.stage, self.folder, self.history, self.save = stage, folder, history, save
        self.rate = self.first_rate = self.recipe_rate = training.learning_rate
        self.trainer: Any = None  # set once the trainer exists
        self.base: Check | None = None
        self.checks: list[Check] = []  # in order, without those whose steps were undone
        self.back_offs = 0
        self.returns = 0  # checks that met the condition with an AUC far below the bound
        self.offsets = [self._first_offset()]  # of each form of prompts
        self.outcome = ""  # one of ENDED
        self._saved: set[int] = set()  # steps of all snapshots, also of steps that were undone
        self._needed: deque[set[int]] = deque(maxlen=2)  # by the two checkpoints that are kept

    @property
    def note(self) -> str:
        """Text for the progress display."""
        if not self.checks:
            return ""
        last = self.checks[-1]
        auc = "" if last.auc is None else f"AUC {last.auc:.2f}, "
        return f"{auc}forget {last.forget_exact:.0%}, retain {last.retain_exact:.0%} known"

    def snapshot(self, step: int) -> Path:
        """Return the folder of the snapshot of a step."""
        return self.folder / f"{self.stage}-step{step:05d}"

    def under_step(self, before: float = float("inf")) -> int | None:
        """Return the last step before a step whose check satisfies ``under``."""
        if self.under is None or self.base is None:
            return None
        fit = [c.step for c in self.checks
               if 0 < c.step < before and met(c, self.under, self.base)]  # fmt: skip
        return fit[-1] if fit else None

    def nearest_under(self, before: float = float("inf")) -> int | None:
        """Return the last step before a step that satisfies the lower AUC bound of ``under``."""
        if self.under is None:
            return None
        low = self.under.auc_at_least or 0.0
        steps = [c.step for c in self.checks
                 if 0 < c.step < before and (c.lowest_auc or 0.0) >= low]  # fmt: skip
        return steps[-1] if steps else None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        inner = unwrapped(model)
        with as_reference(inner):
            self.base = self._measure(inner, 0)
        self.checks = [self.base]
        self.offsets *= len(self.base.risen) or 1
        for line in read_jsonl(self.history):
            if line.get("stage") != self.stage:
                continue
            with reading(self.history):
                if "range_test" in line:
                    self.rate = self.first_rate = float(line["range_test"])
                if "until" in line:
                    self._replay(line["until"])
        if not state.global_step:
            self.save(self.snapshot(0))
        self._needed.extend([self._saved | {0}, self._saved | {0}])
        self._set_targets()

    def take_end(self, model: Any, step: int, folder: Path) -> None:
        """Restore a training that ended with the step of its last checkpoint.

        Args:
            folder: Folder of the checkpoint.
        """
        self.on_train_begin(None, TrainerState(global_step=step), None, model)
        load_weights(unwrapped(model), folder)
        self.on_train_end(None, None, None)

    def ended_with(self, step: int) -> bool:
        """Return whether the history has a check after a step that ended the training."""
        lines = [line for line in read_jsonl(self.history) if line.get("stage") == self.stage]
        with reading(self.history):
            last = [line for line in lines if "until" in line and line["until"]["step"] == step]
            return bool(last) and last[-1]["until"]["decision"] in ENDED

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Multiply the weights of the retain terms by ``retain_factor``."""
        factor, dual = self.retain_factor, self.training.dual
        weights = {
            term.label: term.weight * factor
            for term in self.training.objective
            if term.on == "retain" and not (dual and dual.term == term.label)
        }
        self.trainer.terms = [
            term.model_copy(update={"weight": weights[term.label]})
            if term.label in weights
            else term
            for term in self.trainer.terms
        ]

    @property
    def retain_factor(self) -> float:
        """Factor of the weights of retain terms while fewer answers are kept than required.

        It is 1 up to 8, proportional to the rise of the retain NLL, and at least 4 if nothing else
        is missing. Forget and retain rows of the same kind, such as TOFU's authors, share much of
        what is forgotten. A lower learning rate alone did not restore the retain answers.
        """
        assert self.base is not None
        check = self.checks[-1]
        if answers_kept(check, self.until, self.base):
            return 1.0
        risen = check.retain_nll - self.base.retain_nll
        least = LAST_BALANCE if self._only_retention_lacks(check) else 1.0
        return min(MOST_BALANCE, max(least, risen / BALANCE))

    def _only_retention_lacks(self, check: Check) -> bool:
        """Return whether a check satisfies the condition, except perhaps for retained answers."""
        assert self.base is not None
        return met(check, self.until.model_copy(update={"retain_kept": None}), self.base)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        if state.global_step == 0 and self.until.range_test:
            self.rate = self.first_rate = self._range_test(unwrapped(model))
            self._set_rate(more["optimizer"], more.get("lr_scheduler"))
            self.trainer._more["range_test"] = self.rate

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        step = state.global_step
        last = step >= state.max_steps
        if step % self.every and not last:
            return
        inner = unwrapped(model)
        check = self._measure(inner, step)
        decision = self._decide(check, last)
        if decision in UNDONE:
            self._restore(inner)
            more["optimizer"].state.clear()
        if decision in ("grow", "lower rate", "overshot", *UNDONE):
            self._set_rate(more["optimizer"], more.get("lr_scheduler"))
        self._set_targets()
        line = asdict(check) | {"decision": decision, "learning_rate": self.rate}
        self.trainer._more["until"] = line | {
            "offsets": list(self.offsets), "first_rate": self.first_rate,
            "retain_factor": self.retain_factor,
        }  # fmt: skip
        if decision in ENDED:
            self.outcome = decision
            control.should_training_stop = True
        self._prune()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._needed.append(self._kept())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._needed.clear()
        self._prune()
        on_main(lambda: shutil.rmtree(self.snapshot(0), ignore_errors=True))

    def _measure(self, model: Any, step: int) -> Check:
        """Measure a check; all ranks get the values of the first, so that they decide alike."""
        return gather(self.measured.measure(model, step))[0]

    def _decide(self, check: Check, last: bool) -> str:
        """Return the decision after a check; update the rate, the offset and the list of checks."""
        assert self.base is not None
        risen = check.retain_nll - self.base.retain_nll
        before = self.checks[-1]
        limit = self.until.collapse
        if self.rate > self.recipe_rate and self.back_offs < self.until.back_offs and not last:
            limit = min(limit, SPOILED)
        if not check.finite or risen > limit:
            self.back_offs += 1
            reason = f"the retain NLL rose by {risen:.2f} nats; back to step {before.step}"
            if self.back_offs > self.until.back_offs or last:
                say(f"{self.stage}: {reason}, which is kept.")
                return "collapsed"
            self.rate /= 2
            say(f"{self.stage}: {reason} with learning rate {self.rate:.1e}.")
            return "back off"
        over = met(check, self.until, self.base)
        if over and self.under is not None and self.nearest_under() is None:
            if self.back_offs < self.until.back_offs and not last:
                self.back_offs += 1
                self.rate /= 2
                self._retreat()
                before = self.checks[-1]
                say(f"{self.stage}: step {check.step} passed the under-forgetting range; back to "
                    f"step {before.step} with learning rate {self.rate:.1e}.")  # fmt: skip
                return "return"
        self.checks.append(check)
        self.save(self.snapshot(check.step))
        self._saved.add(check.step)
        if over and not (self._too_far(check) and self.returns < RETURNS and not last):
            return "reached"
        if last:
            say(f"{self.stage}: the condition was not reached in {check.step} steps ({self.note}).")
            return "max_steps"
        self.returns += over
        overshot = over or max(self._gaps(check)) < -OVERSHOT
        moved = self._move_targets(check, before)
        if overshot:
            self.rate = min(self.rate, max(self.first_rate / 4, self.rate / 2))
            return "overshot"
        least = min(self.first_rate, self.recipe_rate)
        if risen > HARMED and self.rate > least:
            self.rate = max(least, self.rate / 2)
            return "lower rate"
        if moved:
            return "move target"
        slow = not self._progressed(check, before) and max(self._gaps(check)) > 2 * CLOSE
        if risen <= HARMED and slow and not self._only_retention_lacks(check):
            if self.rate < self.until.largest_rate:
                self.rate = min(self.until.largest_rate, self.rate * self.until.growth)
                return "grow"
        return "continue"

    def _too_far(self, check: Check) -> bool:
        """Return whether the AUC is so far below ``auc_at_most`` that merges are too coarse."""
        lowest, high = check.lowest_auc, self.until.auc_at_most
        if lowest is None or high is None or not check.below:
            return False
        return lowest < high - TOO_FAR

    def _progressed(self, check: Check, before: Check) -> bool:
        """Return whether the forget NLL rose, or the AUC fell, enough since the last check."""
        if check.forget_nll - before.forget_nll >= self.until.slow:
            return True
        known = check.auc is not None and before.auc is not None
        return known and before.auc - check.auc >= FELL  # type: ignore[operator]

    def _replay(self, line: Mapping[str, Any]) -> None:
        """Restore the state after a check of an interrupted training."""
        self.rate = line["learning_rate"]
        self.offsets = line.get("offsets") or [line["offset"]] * len(self.offsets)
        self.first_rate = line.get("first_rate", self.first_rate)
        decision = line["decision"]
        self.outcome = decision if decision in ENDED else ""
        if decision not in UNDONE:
            self._saved.add(int(line["step"]))
        if decision in UNDONE or decision == "mend":  # mend: an earlier version
            self.back_offs += 1
            if decision in ("return", "mend"):
                self._retreat()
        else:
            names = Check.__dataclass_fields__
            known = {k: v for k, v in line.items() if k in names}
            mean = known.get("unseen_risen")
            known["risen"] = known.get("risen") or ([] if mean is None else [mean, mean])
            waited = decision == "overshot" and self.base is not None
            tuples = {n: tuple(known.get(n, ())) for n in ("risen", "aucs", "below")}
            self.checks.append(Check(**known | tuples))
            self.returns += waited and met(self.checks[-1], self.until, self.base)  # type: ignore[arg-type]

    def _retreat(self) -> None:
        """Remove the checks after the last one that satisfies the lower AUC bound of ``under``."""
        assert self.under is not None
        low = self.under.auc_at_least
        if low is None:
            return
        while len(self.checks) > 1 and (self.checks[-1].lowest_auc or 0.0) < low:
            self.checks.pop()

    def _first_offset(self) -> float:
        """Return an offset above the level for a bound on the AUC from above, otherwise below."""
        low, high = self.until.auc_at_least, self.until.auc_at_most
        if low is not None and high is None:
            return -self.until.margin
        return self.until.margin if low is None else 0.0

    def _set_targets(self) -> None:
        """Set the target NLL of each forget row in the loss ``level``.

        A form of prompts that is more than ``LEAD`` nats closer to its target than the other waits
        for it: its rows are held at their present distance from the level.
        """
        check = self.checks[-1]
        gaps = self._gaps(check)
        waits = [min(max(0.0, max(gaps) - gap - LEAD), max(0.0, gap)) for gap in gaps]
        if not check.below:  # without levels, or a check of an earlier version
            waits = [0.0] * len(self.offsets)
        offsets = [o - wait for o, wait in zip(self.offsets, waits, strict=True)]
        levels = self.measured.targets(check, offsets)
        self.trainer.doubts = {"forget": check.doubt}
        if levels is not None:
            self.trainer.levels = {"forget": levels.clamp(min=0.0)}
            if self.measured.profile is not None:
                self.trainer.profiles = {"forget": self.measured.profile}

    def _gaps(self, check: Check) -> list[float]:
        """Return the distance of the forget rows from their target for each form, in nats.

        It is infinity without levels.
        """
        if not check.below:
            return [float("inf")]
        return [below + o for below, o in zip(check.below, self.offsets, strict=True)]

    def _move_targets(self, check: Check, before: Check) -> bool:
        """Move the targets of the forms of prompts; return whether one moved.

        A target rises by ``margin`` if its rows reached it, but their AUC is too high, too many
        answers are exact, or the NLL has not risen enough. It falls by ``margin`` if the AUC is
        below ``auc_at_least``, or far below ``auc_at_most`` while the other conditions hold, unless
        the rows are beyond their target and have come closer to it since the last check.
        """
        old, margin = list(self.offsets), self.until.margin
        low, high = self.until.auc_at_least, self.until.auc_at_most
        assert self.base is not None
        risen = check.forget_nll - self.base.forget_nll >= self.until.forget_risen
        known = not risen or not answers_forgotten(check, self.until)
        reached = low_enough(check, high)
        for form, gap in enumerate(self._gaps(check)):
            auc = check.aucs[form] if form < len(check.aucs) else check.auc
            too_high = high is not None and not reached and (auc is None or auc > high)
            too_low = auc is not None and low is not None and auc < low
            far_below = auc is not None and high is not None and low is None and auc < high - FAR
            if too_low or (far_below and not known):
                nearer = form < len(before.below) and check.below[form] - before.below[form] > CLOSE
                if gap > -2 * CLOSE or not nearer:
                    self.offsets[form] -= margin
            elif (too_high or known) and gap < CLOSE:
                self.offsets[form] += margin
        return self.offsets != old

    def _range_test(self, model: Any) -> float:
        """Return the largest rate at which several equal steps hardly raise the retain NLL."""
        trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
        start = [p.detach().clone() for p in trained]

        def harmless(factor: float) -> bool:
            return gather(costs_little(factor))[0]

        def costs_little(factor: float) -> bool:
            if self.rate * factor > self.until.largest_rate:
                return False
            for p, old in zip(trained, start, strict=True):
                assert p.grad is not None
                p.data.copy_(old - STEPS_AHEAD * self.rate * factor * p.grad.sign())
            assert self.base is not None
            cost = self.measured.measure_retain(model)[0] - self.base.retain_nll
            gained = max(0.0, self.measured.measure_forget(model) - self.base.forget_nll)
            return cost <= COST + 0.1 * gained

        chosen = 1.0
        if harmless(chosen):
            for factor in FASTER:
                if not harmless(factor):
                    break
                chosen = factor
        else:
            chosen = next((f for f in SLOWER[:-1] if harmless(f)), SLOWER[-1])
        for p, old in zip(trained, start, strict=True):
            p.data.copy_(old)
        rate = self.rate * chosen
        say(f"{self.stage}: learning rate {rate:.1e} by a range test")
        return rate

    def _set_rate(self, optimizer: Any, scheduler: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        inner = getattr(scheduler, "scheduler", scheduler)
        if inner is not None:
            inner.base_lrs = [self.rate] * len(inner.base_lrs)

    def _restore(self, model: Any) -> None:
        """Restore the adapter of the last check in the list."""
        load_weights(model, self.snapshot(self.checks[-1].step))

    def _kept(self) -> set[int]:
        """Return the steps whose snapshots are needed from here on.

        These are the last one, and the earlier one that would become ``under``.
        """
        last = self.checks[-1].step
        found = {0, last}
        if self.under is not None:
            every = (self.under_step(), self.under_step(last), self.nearest_under(last))
            found |= {step for step in every if step is not None}
        return found

    def _prune(self) -> None:
        """Delete the snapshots that neither this training nor a resumed one needs."""
        kept = self._kept().union(*self._needed)
        for step in sorted(self._saved - kept):
            on_main(lambda s=step: shutil.rmtree(self.snapshot(s), ignore_errors=True))  # type: ignore[misc]
            self._saved.discard(step)


def load_weights(model: Any, folder: Path) -> None:
    """Load an adapter's weights from a PEFT folder into the adapter of a PEFT model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
