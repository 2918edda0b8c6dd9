"""Train until a measured condition holds: learning rate, aim and end are found on the way.

See docs/unlearn.md for the formulas. Every check is part of the step's line in ``history.jsonl``,
under ``until``, with what was measured and what was decided.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from mergeforget.console import say
from mergeforget.data.batches import pack
from mergeforget.data.tokens import Encoded
from mergeforget.distributed import on_main
from mergeforget.files import read_jsonl, reading
from mergeforget.train.forward import as_reference, predict, unwrapped
from mergeforget.train_config import Training, Until

SAMPLE = 64  # rows of a set that are measured at most
AT_ONCE = 16  # rows of one forward pass
STEPS_AHEAD = 8  # steps in one direction that the range test allows for
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the range test, times the recipe's learning rate
COST = 0.05  # nats of retain NLL that a rate of the range test may cost
HARMED = 0.1  # nats of retain NLL above the base's at which the rate grows no more, and is eased
CLOSE = 0.1  # nats from the aim that count as having reached it


@dataclass(frozen=True)
class Check:
    """What is measured at a check.

    Attributes:
        auc: probability that an unseen row of the selection split lies further above its level
            than a forget row of it, averaged over the forms of prompts; None without unseen rows.
        forget_exact, retain_exact: share of answers that greedy decoding repeats.
        unseen_nll: mean NLL of the unseen rows; None without.
        unseen_risen: mean of the unseen rows' NLL less their level; None without.
        risen: the same for each form of prompts: the run's, and raw where it is trained as well.
    """

    step: int
    forget_nll: float
    forget_exact: float
    retain_nll: float
    retain_exact: float
    unseen_nll: float | None = None
    auc: float | None = None
    unseen_risen: float | None = None
    risen: tuple[float, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether every measured value is finite."""
        return all(v == v and abs(v) < float("inf") for v in (self.forget_nll, self.retain_nll))


def met(check: Check, until: Until, base: Check) -> bool:
    """Whether a check fulfils the condition of ``until``; see ``Until``."""
    auc = check.auc
    low, high = until.auc_at_least, until.auc_at_most
    if (low is not None or high is not None) and auc is None:
        return False
    return (
        (low is None or auc is not None and auc >= low)
        and (high is None or auc is not None and auc <= high)
        and (until.forget_exact is None or check.forget_exact <= until.forget_exact)
        and check.forget_nll - base.forget_nll >= until.forget_risen
        and (
            until.retain_kept is None
            or check.retain_exact >= until.retain_kept * base.retain_exact
        )
    )  # fmt: skip


class UntilController(TrainerCallback):
    """Checks every few steps, chooses the learning rate and the aim, and ends the training.

    Args:
        training: with ``until``.
        sets: tokenised ``forget``, ``retain``, and where there are any ``held``, ``unseen`` (rows
            of the selection split that no training sees) and ``imitations`` (twins of these).
        twins: for each row of ``held`` and of ``imitations`` the place of the row of ``forget`` or
            ``unseen`` that it imitates, or -1.
        selected: places of the forget rows of the selection split; all where it is empty.
        forms: for each row of ``forget`` and ``unseen`` the form of its prompt, 0 or 1; all are of
            one form where it is empty.
        under: condition of the other end, where both are snapshots of this trajectory.
        folder: snapshots go to ``FOLDER/STAGE-stepNNNNN``.
        save: writes the adapter into a folder.
    """

    def __init__(
        self,
        training: Training,
        sets: Mapping[str, Sequence[Encoded]],
        *,
        stage: str,
        folder: Path,
        history: Path,
        save: Any,
        twins: Mapping[str, Sequence[int]] | None = None,
        selected: Sequence[int] = (),
        forms: Mapping[str, Sequence[int]] | None = None,
        under: Until | None = None,
    ) -> None:
        assert training.until is not None
        self.until, self.under = training.until, under
        self.sets, self.twins = sets, dict(twins or {})
        self.selected = list(selected) or list(range(len(sets["forget"])))
        self.forms = {
            name: torch.tensor((forms or {}).get(name) or [0] * len(rows))
            for name, rows in sets.items()
            if name in ("forget", "unseen")
        }
        self.stage, self.folder, self.history, self.save = stage, folder, history, save
        self.rate = self.first_rate = training.learning_rate
        self.trainer: Any = None  # set once the trainer exists
        self.base: Check | None = None
        self.checks: list[Check] = []  # healthy ones, in order
        self.back_offs = 0
        self.offset = self._first_offset()
        self.levels: dict[str, Tensor] = {}  # of forget and unseen, under the base
        self.outcome = ""  # reached, max_steps or collapsed
        self.reached: Check | None = None

    @property
    def note(self) -> str:
        """For the progress display."""
        if not self.checks:
            return ""
        last = self.checks[-1]
        auc = "" if last.auc is None else f"AUC {last.auc:.2f}, "
        return f"{auc}forget {last.forget_exact:.0%}, retain {last.retain_exact:.0%} known"

    def snapshot(self, step: int) -> Path:
        """Save the adapter at the current step."""
        return self.folder / f"{self.stage}-step{step:05d}"

    def under_step(self, before: float = float("inf")) -> int | None:
        """The last step whose snapshot fulfils ``under``, of those before a step."""
        if self.under is None or self.base is None:
            return None
        fit = [c.step for c in self.checks
               if 0 < c.step < before and met(c, self.under, self.base)]  # fmt: skip
        return fit[-1] if fit else None

    def nearest_under(self, before: float = float("inf")) -> int | None:
        """The last step before a step on the side of ``under``, whether or not the rest holds."""
        if self.under is None:
            return None
        low = self.under.auc_at_least
        near = [c.step for c in self.checks
                if 0 < c.step < before and (low is None or (c.auc or 0.0) >= low)]  # fmt: skip
        return near[-1] if near else None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        inner = unwrapped(model)
        with as_reference(inner):
            self._measure_levels(inner)
            self.base = self._measure(inner, 0)
        self.checks = [self.base]
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
        self._aim()

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
        if step % self.until.every and not last:
            return
        inner = unwrapped(model)
        check = self._measure(inner, step)
        decision = self._decide(check, last)
        if decision in ("collapsed", "back off", "mend"):
            self._restore(inner)
            more["optimizer"].state.clear()
        if decision in ("grow", "ease", "back off", "mend"):
            self._set_rate(more["optimizer"], more.get("lr_scheduler"))
        self._aim()
        line = asdict(check) | {"decision": decision, "learning_rate": self.rate}
        self.trainer._more["until"] = line | {
            "offset": self.offset, "first_rate": self.first_rate
        }  # fmt: skip
        if decision in ("reached", "max_steps", "collapsed"):
            self.outcome = decision
            control.should_training_stop = True
        self._prune()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        on_main(lambda: shutil.rmtree(self.snapshot(0), ignore_errors=True))

    def _decide(self, check: Check, last: bool) -> str:
        """What follows from a check; changes rate, offset and the list of healthy checks."""
        assert self.base is not None
        risen = check.retain_nll - self.base.retain_nll
        before = self.checks[-1]
        if not check.finite or risen > self.until.collapse:
            self.back_offs += 1
            back = f"the retain NLL rose by {risen:.2f} nats; back to step {before.step}"
            if self.back_offs > self.until.back_offs or last:
                say(f"{self.stage}: {back}, which is kept.")
                return "collapsed"
            self.rate /= 2
            say(f"{self.stage}: {back} with learning rate {self.rate:.1e}.")
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
                return "mend"
        self.checks.append(check)
        self.save(self.snapshot(check.step))
        if over:
            self.reached = check
            return "reached"
        if last:
            say(f"{self.stage}: the condition was not reached in {check.step} steps ({self.note}).")
            return "max_steps"
        gap = self._gap(check)
        if gap < CLOSE:
            self.offset += self.until.margin if self.offset >= 0 else -self.until.margin
            return "move aim"
        if risen > HARMED:
            if self.rate > self.first_rate:
                self.rate = max(self.first_rate, self.rate / self.until.growth)
                return "ease"
        elif check.forget_nll - before.forget_nll < self.until.slow and gap > 2 * CLOSE:
            if self.rate < self.until.largest_rate:
                self.rate = min(self.until.largest_rate, self.rate * self.until.growth)
                return "grow"
        return "go on"

    def _replay(self, line: Mapping[str, Any]) -> None:
        """Take over a check of an interrupted training."""
        self.rate, self.offset = line["learning_rate"], line["offset"]
        self.first_rate = line.get("first_rate", self.first_rate)
        decision = line["decision"]
        if decision in ("back off", "mend", "collapsed"):
            self.back_offs += 1
            if decision == "mend":
                self._retreat()
        else:
            names = Check.__dataclass_fields__
            known = {k: v for k, v in line.items() if k in names}
            mean = known.get("unseen_risen")
            risen = known.get("risen") or ([] if mean is None else [mean, mean])
            self.checks.append(Check(**known | {"risen": tuple(risen)}))

    def _retreat(self) -> None:
        """Drop the checks after the last one at which the AUC was on the side of ``under``."""
        assert self.under is not None
        low = self.under.auc_at_least
        while len(self.checks) > 1 and low is not None and (self.checks[-1].auc or 0.0) < low:
            self.checks.pop()

    def _first_offset(self) -> float:
        """Above the level where the AUC shall fall below chance, below it where it shall not."""
        low, high = self.until.auc_at_least, self.until.auc_at_most
        if low is not None and high is None:
            return -self.until.margin
        return self.until.margin if low is None else 0.0

    def _aim(self) -> None:
        """Set the level of each forget row: what it would be unseen, as the model now is."""
        levels = self._targets(self.checks[-1])
        if levels is not None:
            self.trainer.levels = {"forget": levels.clamp(min=0.0)}

    def _targets(self, check: Check) -> Tensor | None:
        """The NLL that each forget row is aimed at; None without a level.

        Unseen rows asked in chat and asked raw rise by different amounts.
        """
        if not check.risen:
            return None
        return self.levels["forget"] + torch.tensor(check.risen)[self.forms["forget"]] + self.offset

    def _gap(self, check: Check) -> float:
        """Nats that the forget rows lie below their aim, on average; infinite without a level."""
        targets = self._targets(check)
        return float("inf") if targets is None else float(targets.mean()) - check.forget_nll

    def _measure_levels(self, model: Any) -> None:
        """The level of each forget row and unseen row: mean NLL of its twins under the base.

        A row without twins gets the mean of all twins. Where the unseen rows have no twins, their
        own NLL under the base is their level, and where the forget rows have none, the mean of the
        unseen rows is theirs.
        """
        unseen = self.sets.get("unseen")
        if not unseen:
            return
        own = read_nlls(model, unseen)[0]
        forget = self._mean_of_twins(model, "held", len(self.sets["forget"]))
        imitated = self._mean_of_twins(model, "imitations", len(unseen))
        if forget is None or imitated is None:
            forget = torch.full((len(self.sets["forget"]),), float(own.mean()))
            imitated = own
        self.levels = {"forget": forget, "unseen": imitated}

    def _mean_of_twins(self, model: Any, name: str, size: int) -> Tensor | None:
        """Mean NLL of the twins of each of ``size`` rows; None where most rows have none."""
        twins, places = self.sets.get(name, ()), self.twins.get(name, ())
        known = {place for place in places if place >= 0}
        if len(places) != len(twins) or 2 * len(known) <= size:
            return None
        nll = read_nlls(model, twins)[0]
        levels = torch.full((size,), float(nll.mean()))
        for place in known:
            own = [value for value, twin in zip(nll, places, strict=True) if twin == place]
            levels[place] = torch.stack(own).mean()
        return levels

    def _measure(self, model: Any, step: int) -> Check:
        """Compute the loss and the exact answers of each set, and the AUC of NLL minus level."""
        forget, retain = (read_nlls(model, spread(self.sets[n], SAMPLE))
                          for n in ("forget", "retain"))  # fmt: skip
        check = Check(
            step=step,
            forget_nll=float(forget[0].mean()),
            forget_exact=float(forget[1].float().mean()),
            retain_nll=float(retain[0].mean()),
            retain_exact=float(retain[1].float().mean()),
        )
        if not self.levels:
            return check
        excess, form = {}, {}
        for name, places in (
            ("forget", self.selected), ("unseen", range(len(self.sets["unseen"])))
        ):  # fmt: skip
            some = spread(list(places), SAMPLE)
            nll = read_nlls(model, [self.sets[name][i] for i in some])[0]
            excess[name], form[name] = nll - self.levels[name][some], self.forms[name][some]
            if name == "unseen":
                check = replace(check, unseen_nll=float(nll.mean()))
        outside, mean = excess["unseen"], float(excess["unseen"].mean())
        risen, aucs = [], []
        for one in range(1 + int(max(forms.max() for forms in self.forms.values()))):
            own = outside[form["unseen"] == one]
            risen.append(float(own.mean()) if len(own) else mean)
            members = excess["forget"][form["forget"] == one]
            if len(own) and len(members):
                aucs.append(auc_of(members, own))
        return replace(
            check,
            unseen_risen=mean,
            risen=tuple(risen),
            auc=sum(aucs) / len(aucs) if aucs else auc_of(excess["forget"], outside),
        )

    def _range_test(self, model: Any) -> float:
        """The largest rate of which several steps in one direction cost the retain rows little."""
        own = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
        start = [p.detach().clone() for p in own]
        assert self.base is not None
        chosen = self.rate * RATES[0]
        for factor in RATES:
            rate = self.rate * factor
            if rate > self.until.largest_rate:
                break
            for p, old in zip(own, start, strict=True):
                assert p.grad is not None
                p.data.copy_(old - STEPS_AHEAD * rate * p.grad.sign())
            retain = read_nlls(model, spread(self.sets["retain"], SAMPLE))[0].mean()
            forget = read_nlls(model, spread(self.sets["forget"], SAMPLE))[0].mean()
            cost = float(retain) - self.base.retain_nll
            gained = max(0.0, float(forget) - self.base.forget_nll)
            if not cost <= COST + 0.1 * gained:
                break
            chosen = rate
        for p, old in zip(own, start, strict=True):
            p.data.copy_(old)
        say(f"{self.stage}: learning rate {chosen:.1e} by a range test")
        return chosen

    def _set_rate(self, optimizer: Any, scheduler: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate
        inner = getattr(scheduler, "scheduler", scheduler)
        if inner is not None:
            inner.base_lrs = [self.rate] * len(inner.base_lrs)

    def _restore(self, model: Any) -> None:
        """Put back the adapter of the last healthy check."""
        load_weights(model, self.snapshot(self.checks[-1].step))

    def _prune(self) -> None:
        """Delete the snapshots that nothing can return to.

        Kept are the last healthy one and, before it, the one that would become ``under``.
        """
        last = self.checks[-1].step
        kept = {0, last}
        if self.under is not None:
            found = {self.under_step(), self.under_step(last), self.nearest_under(last)}
            kept |= {step for step in found if step is not None}
        for check in self.checks:
            if check.step not in kept:
                on_main(lambda s=check.step: shutil.rmtree(self.snapshot(s), ignore_errors=True))  # type: ignore[misc]


def read_nlls(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """NLL per token of each row's answer, and whether greedy decoding repeats it; (rows,) each."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nll, exact = [], []
    with torch.no_grad():
        for start in range(0, len(rows), AT_ONCE):
            said = predict(model, pack(rows[start : start + AT_ONCE]).to(device))
            wrong = said.per_row((said.logits.argmax(-1) != said.labels).float())
            nll.append(said.nll().float().cpu())
            exact.append((wrong == 0).cpu())
    model.train(was_training)
    return torch.cat(nll), torch.cat(exact)


def auc_of(members: Tensor, nonmembers: Tensor) -> float:
    """Probability that a non-member's NLL is higher than a member's; a tie counts half."""
    gap = nonmembers[:, None] - members[None, :]
    return float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean())


def spread(rows: Sequence[Any], size: int) -> list[Any]:
    """At most ``size`` of the rows, evenly over the set."""
    count = min(size, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def load_weights(model: Any, folder: Path) -> None:
    """Load an adapter's weights from a PEFT folder into the adapter of a PEFT model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
