"""Measures the checks of a training with ``until``: NLL, exact answers, AUC, and levels of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mergeforget.data.tokens import Encoded
from mergeforget.train.nlls import (
    aligned,
    answer_ids,
    auc_of,
    mapped,
    read_nlls,
    read_token_nlls,
    remembered,
)
from mergeforget.train_config import Until

SAMPLE = 64  # examples of a set that are measured, at most; see ``sample_size``
PASSAGE = 24  # answer tokens; longer answers have levels of their own
FEWEST = 3  # rows of each length in each set, below which all lengths have the same levels
SLACK = 0.1  # by which the AUC of one form of prompts may exceed the bound on their mean
ROUNDING = 1e-9  # by which a share may miss its bound: 0.8 * 0.9 > 18 / 25
UNLIKELY = 0.05  # p-value below which exact forget answers are not attributed to guessing


@dataclass(frozen=True)
class Check:
    """Measurements of one check.

    Attributes:
        auc: Probability that the NLL of an unseen row of the selection split exceeds its level by
            more than that of a forget row, averaged over the forms of prompts; None without unseen
            rows.
        aucs: The same for each form of prompts: the run's, and those that are trained, too.
        forget_exact, retain_exact: Share of answers that greedy decoding reproduces; of a retain
            row with several prompt variants, in all of them.
        unseen_exact: The same for unseen rows, whose answers the model can only guess; None if
            there are none.
        guess_p: Probability that guessing reproduces at least as many forget answers, such as
            e-mail addresses that consist of the name; see ``MeasuredSets.guessable``.
        unseen_nll: Mean NLL of the unseen rows; None if there are none.
        unseen_risen: Mean NLL of the unseen rows minus their level; None if there are none.
        risen: The same for each form of prompts.
        below: Mean of NLL minus level of the unseen rows minus that of the forget rows, for each
            form of prompts.
        doubt: One minus the probability of an answer token, averaged over the forget rows.
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
    unseen_exact: float | None = None
    guess_p: float = 0.0
    aucs: tuple[float, ...] = ()
    below: tuple[float, ...] = ()
    doubt: float = 0.0

    @property
    def lowest_auc(self) -> float | None:
        """AUC of the form of prompts with the lowest one."""
        return min(self.aucs, default=self.auc)

    @property
    def highest_auc(self) -> float | None:
        """AUC of the form of prompts with the highest one."""
        return max(self.aucs, default=self.auc)

    @property
    def finite(self) -> bool:
        """Whether every measured value is finite."""
        return all(v == v and abs(v) < float("inf") for v in (self.forget_nll, self.retain_nll))


def met(check: Check, until: Until, base: Check) -> bool:
    """Return whether a check satisfies the condition of ``until``; see ``Until``."""
    lowest, low = check.lowest_auc, until.auc_at_least
    return (
        (low is None or lowest is not None and lowest >= low)
        and low_enough(check, until.auc_at_most)
        and answers_forgotten(check, until)
        and check.forget_nll - base.forget_nll >= until.forget_risen
        and answers_kept(check, until, base)
    )  # fmt: skip


def low_enough(check: Check, high: float | None) -> bool:
    """Return whether the mean AUC of the forms of prompts is at most ``high``, if that is given.

    The AUC of a single form may exceed it by ``SLACK``. Each is estimated from few rows, so the
    maximum over the forms overestimates the true AUC.
    """
    highest = check.highest_auc
    if high is None or highest is None or check.auc is None:
        return high is None
    return check.auc <= high + ROUNDING and highest <= high + SLACK + ROUNDING


def answers_forgotten(check: Check, until: Until) -> bool:
    """Return whether few enough forget answers are exact, or guessing explains them."""
    most = until.forget_exact
    return most is None or check.forget_exact <= most + ROUNDING or check.guess_p >= UNLIKELY


def answers_kept(check: Check, until: Until, base: Check) -> bool:
    """Return whether as many retain answers are exact as ``until`` requires."""
    kept = until.retain_kept
    return kept is None or check.retain_exact >= kept * base.retain_exact - ROUNDING


def guess_probability(exact: Sequence[bool], shares: Sequence[float]) -> float:
    """Return the probability that guessing reproduces at least as many answers.

    Args:
        exact: Whether each answer was reproduced.
        shares: Probability that each answer is guessed.

    Returns:
        0 if an answer was reproduced that is never guessed: other answers do not explain it.

    >>> guess_probability([True, True, False], [0.5, 0.5, 0.0])
    0.25
    >>> guess_probability([True, False, True], [0.5, 0.5, 0.0])
    0.0
    """
    if any(known and not share for known, share in zip(exact, shares, strict=True)):
        return 0.0
    chances = [1.0]  # of each number of successes
    for share in shares:
        pairs = zip([*chances, 0.0], [0.0, *chances], strict=True)
        chances = [none * (1 - share) + one * share for none, one in pairs]
    return sum(chances[sum(exact) :])


class MeasuredSets:
    """The tokenised sets that are measured at each check.

    Args:
        sets: ``forget``, ``retain``, and optionally ``held``, ``unseen`` (rows of the selection
            split that are not trained on) and ``imitations`` (twins of ``unseen``).
        twins: For each row of ``held`` and ``imitations``, the index of the row of ``forget`` or
            ``unseen`` that it imitates, or -1.
        selected: Indices of the forget rows that are compared with unseen rows; empty means all.
        forms: For each row of ``forget`` and ``unseen``, the form of its prompt, see ``Encoded``;
            empty means that all have the same form.
        retain_places: For each example of ``retain``, the index of its row, of which there may be
            several prompt variants, or -1 if it is only trained; empty means that each is a row.

    Attributes:
        groups: Group of each row of ``forget`` and ``unseen``, (rows,): rows with the same form of
            prompt whose answers are all passages or all short.
        levels: Level of each row of ``forget`` and ``unseen``, (rows,): an estimate of its NLL
            under the base if it were unseen. Empty before ``measure_levels``.
        guessable: Share of the twins of each forget row whose answer the base reproduces, (rows,);
            0 for a row without twins. Where it is NaN, because the wording is known, checks use the
            share of unseen rows that are answered exactly, as they do if it is empty, without
            levels by twins.
        repeated: Share of the twins of forget rows whose answer the base reproduces, in the form of
            prompts with the larger share.
        known_groups: Groups in which the base knows the wording of the forget rows; the NLL of the
            tokens of their twins is then mapped to the distribution of those of unseen rows' twins.
        profile: NLL of each answer token of the forget rows relative to the level of its row, as
            in the row's twins, (rows, longest answer); 0 for rows without twins. None without
            levels by twins.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Encoded]],
        *,
        twins: Mapping[str, Sequence[int]] | None = None,
        selected: Sequence[int] = (),
        forms: Mapping[str, Sequence[int]] | None = None,
        retain_places: Sequence[int] = (),
    ) -> None:
        self.sets, self.twins = sets, dict(twins or {})
        self.retain_places = list(retain_places) or list(range(len(sets.get("retain", ()))))
        self.selected = list(selected) or list(range(len(sets["forget"])))
        self.forms = {
            name: torch.tensor((forms or {}).get(name) or [0] * len(rows)).long()
            for name, rows in sets.items()
            if name in ("forget", "unseen")
        }
        self.groups = self._groups()
        self.levels: dict[str, Tensor] = {}
        self.guessable = torch.zeros(0)
        self.known_groups: frozenset[int] = frozenset()
        self.repeated = 0.0
        self.profile: Tensor | None = None

    def measure_levels(self, model: Any) -> None:
        """Measure the level of each forget and unseen row: mean NLL of its twins under the base.

        If the base knows the wording of the forget rows of a group, their twins are too easy: the
        NLL of their tokens is replaced by the same quantile of that of the twins of unseen rows.

        A row without twins gets the mean over all twins in its group. If the forget or the unseen
        rows of a group have none, the level of the unseen rows is their own NLL under the base, and
        that of the forget rows is the mean over the unseen rows of the group.

        Args:
            model: The base model.
        """
        unseen = self.sets.get("unseen")
        if not unseen:
            return
        forget = self.sets["forget"]
        if self._has_twins("held", len(forget)) and self._has_twins("imitations", len(unseen)):
            held, exact = read_token_nlls(model, self.sets["held"])
            forms = self._groups_of_twins("forget", "held") // 2
            shares = [exact[forms == form].float().mean() for form in forms.unique()]
            self.repeated = float(max(shares))
            imitations = read_token_nlls(model, self.sets["imitations"])[0]
            self._set_levels(held, imitations)
            self.known_groups = self._remembered()
            if self.known_groups:
                held = self._mapped(held, imitations)
                self._set_levels(held, imitations)
            never = torch.zeros(len(forget))
            self.guessable = self._mean_of_twins(exact.float(), "held", never)
            self.guessable[self._wording_known(self.groups["forget"])] = float("nan")
            self.profile = self._profile(held)
            found = set(self._groups_of_twins("forget", "held").tolist())
            found &= set(self._groups_of_twins("unseen", "imitations").tolist())
        else:
            found = set()
        if {*self.groups["forget"].tolist(), *self.groups["unseen"].tolist()} - found:
            own = read_nlls(model, unseen)[0]
            means = mean_by_group(own, self.groups["unseen"], self.groups["forget"])
            for name, levels in (("forget", means), ("unseen", own)):
                twins = torch.isin(self.groups[name], torch.tensor(sorted(found)).long())
                self.levels[name] = torch.where(twins, self.levels.get(name, levels), levels)

    def to_hold(self) -> list[Encoded]:
        """Return the rows that are to be held, in place of ``held``.

        Where the base knows the wording of the forget rows, their twins are part of what it must
        forget, and the twins of unseen rows are held instead.
        """
        own = self._wording_known(self._groups_of_twins("forget", "held")).tolist()
        others = self._wording_known(self._groups_of_twins("unseen", "imitations")).tolist()
        kept = [one for one, known in zip(self.sets["held"], own, strict=True) if not known]
        kept += [one for one, known in zip(self.sets["imitations"], others, strict=True) if known]
        return [replace(one, row=i) for i, one in enumerate(kept)]

    def _groups(self) -> dict[str, Tensor]:
        """Return the group of each forget and unseen row; see ``groups``."""
        passages = {
            name: torch.tensor([len(answer_ids(one)) > PASSAGE for one in self.sets[name]]).bool()
            for name in self.forms
        }
        first = [passages[name][self.forms[name] == 0] for name in passages]
        smallest = min(min(int(one.sum()), int((~one).sum())) for one in first)
        apart = len(first) == 2 and smallest >= FEWEST
        return {name: 2 * self.forms[name] + passages[name].long() * apart for name in passages}

    def _wording_known(self, groups: Tensor) -> Tensor:
        """Return whether the base knows the wording of the rows of each group, booleans."""
        return torch.isin(groups, torch.tensor(sorted(self.known_groups), dtype=groups.dtype))

    def nothing_is_guessed(self) -> None:
        """Count every exact forget answer as known, whatever the twins show."""
        self.guessable = torch.zeros(len(self.sets["forget"]))

    def _set_levels(self, held: Sequence[Tensor], imitations: Sequence[Tensor]) -> None:
        """Set the level of each row to the mean NLL of its twins.

        Args:
            held, imitations: NLL of the answer tokens of each twin.
        """
        for name, twins, nlls in (("forget", "held", held), ("unseen", "imitations", imitations)):
            means = torch.stack([nll.mean() for nll in nlls])
            others = mean_by_group(means, self._groups_of_twins(name, twins), self.groups[name])
            self.levels[name] = self._mean_of_twins(means, twins, others)

    def _remembered(self) -> frozenset[int]:
        """Return the groups whose wording the base knows, by the rows of the first form.

        Passages and short answers are tested apart: the low NLL of remembered passages does not
        stand out among answers whose NLL is several times higher.
        """
        found: set[int] = set()
        for group in set(self.groups["forget"][self.forms["forget"] == 0].tolist()):
            levels = []
            for name, twins in (("forget", "held"), ("unseen", "imitations")):
                rows = sorted({row for row in self.twins[twins] if row >= 0})
                levels.append(self.levels[name][[r for r in rows if self.groups[name][r] == group]])
            if remembered(*levels):
                found |= {one for one in self.groups["forget"].tolist() if one % 2 == group % 2}
        return frozenset(found)

    def _mapped(self, held: Sequence[Tensor], imitations: Sequence[Tensor]) -> list[Tensor]:
        """Map the NLL of answer tokens of ``held`` to those of ``imitations``, by known group."""
        result = list(held)
        groups_of_held = self._groups_of_twins("forget", "held").tolist()
        groups_of_imitations = self._groups_of_twins("unseen", "imitations").tolist()
        for group in self.known_groups & set(groups_of_held) & set(groups_of_imitations):
            places = [i for i, one in enumerate(groups_of_held) if one == group]
            others = [imitations[i] for i, one in enumerate(groups_of_imitations) if one == group]
            flat = mapped(torch.cat([held[i] for i in places]), torch.cat(others))
            parts = flat.split([len(held[i]) for i in places])
            for place, part in zip(places, parts, strict=True):
                result[place] = part
        return result

    def _groups_of_twins(self, name: str, twins: str) -> Tensor:
        """Return the group of each twin; the first for a twin of no row in the set."""
        return torch.tensor([int(self.groups[name][r]) if r >= 0 else 0 for r in self.twins[twins]])

    def _has_twins(self, name: str, size: int) -> bool:
        """Return whether more than half of ``size`` rows have a twin in a set."""
        rows_of_twins = self.twins.get(name, ())
        known = {row for row in rows_of_twins if row >= 0}
        return len(rows_of_twins) == len(self.sets.get(name, ())) and 2 * len(known) > size

    def _mean_of_twins(self, values: Tensor, name: str, others: Tensor) -> Tensor:
        """Return the mean value of the twins of each row, (rows,).

        Args:
            values: Value of each twin, (twins,).
            others: Value of each row if it has no twins, (rows,).
        """
        places = torch.tensor(self.twins[name])
        own, places = values[places >= 0], places[places >= 0]
        counts = torch.bincount(places, minlength=len(others))
        sums = torch.zeros(len(others), dtype=torch.float64).index_add(0, places, own.double())
        return torch.where(counts > 0, (sums / counts.clamp(min=1)).to(others.dtype), others)

    def _profile(self, held: Sequence[Tensor]) -> Tensor:
        """Return the NLL of answer tokens relative to that of their row, (rows, longest answer).

        Tokens of a row correspond to those of its twins as in the shortest edit between them.

        Args:
            held: NLL of the answer tokens of each held row.
        """
        answers = [answer_ids(row) for row in self.sets["forget"]]
        sums = [torch.zeros(len(ids)) for ids in answers]
        for twin, nll, place in zip(self.sets["held"], held, self.twins["held"], strict=True):
            if place >= 0:
                sums[place] += aligned(answers[place], answer_ids(twin), nll)
        profile = torch.zeros(len(answers), max(map(len, answers)))
        for row, total in enumerate(sums):
            if total.sum() > 0:
                profile[row, : len(total)] = total / total.mean()
        return profile

    def measure_forget(self, model: Any) -> float:
        """Return the mean NLL of a sample of the forget rows."""
        return float(read_nlls(model, evenly_spaced(self.sets["forget"], SAMPLE))[0].mean())

    def measure_retain(self, model: Any) -> tuple[float, float]:
        """Return the mean NLL of a sample of the retain rows, and the share of exact answers."""
        rows = set(evenly_spaced(sorted({p for p in self.retain_places if p >= 0}), SAMPLE))
        examples = [i for i, row in enumerate(self.retain_places) if row in rows]
        nll, exact = read_nlls(model, [self.sets["retain"][i] for i in examples])
        wrong = {self.retain_places[i] for i, known in zip(examples, exact, strict=True)
                 if not known}  # fmt: skip
        return float(nll.mean()), 1 - len(wrong) / len(rows)

    def measure(self, model: Any, step: int) -> Check:
        """Measure the NLL and the exact answers of each set, and the AUC of NLL minus level."""
        forget = self.sets["forget"]
        size = sample_size(len(set(self.forms["forget"].tolist())))
        everywhere = evenly_spaced(range(len(forget)), size)
        members = evenly_spaced(self.selected, size) if self.levels else []
        measured_rows = sorted({*everywhere, *members})
        position = {row: i for i, row in enumerate(measured_rows)}
        tokens, exact = read_token_nlls(model, [forget[row] for row in measured_rows])
        forget_nll = torch.stack([nll.mean() for nll in tokens])
        doubts = torch.stack([-torch.expm1(-nll).mean() for nll in tokens])
        sample = [position[row] for row in everywhere]
        retain_nll, retain_exact = self.measure_retain(model)
        check = Check(
            step=step,
            forget_nll=float(forget_nll[sample].mean()),
            forget_exact=float(exact[sample].double().mean()),
            retain_nll=retain_nll,
            retain_exact=retain_exact,
            doubt=float(doubts[sample].mean()),
        )
        if not self.levels:
            return check
        others = evenly_spaced(range(len(self.sets["unseen"])), size)
        unseen_nll, guesses = read_nlls(model, [self.sets["unseen"][row] for row in others])
        excess_of_unseen = unseen_nll - self.levels["unseen"][others]
        excess_of_forget = (
            forget_nll[[position[row] for row in members]] - self.levels["forget"][members]
        )
        mean, guess = float(excess_of_unseen.mean()), float(guesses.double().mean())
        shares = [guess] * len(sample)
        if len(self.guessable):
            shares = self.guessable[everywhere].nan_to_num(guess).tolist()
        risen, aucs, below = [], [], []
        for form in range(1 + int(max(forms.max() for forms in self.forms.values()))):
            unseen_excess = excess_of_unseen[self.forms["unseen"][others] == form]
            risen.append(float(unseen_excess.mean()) if len(unseen_excess) else mean)
            forget_excess = excess_of_forget[self.forms["forget"][members] == form]
            below.append(risen[-1] - float(forget_excess.mean()) if len(forget_excess) else 0.0)
            if len(unseen_excess) and len(forget_excess):
                aucs.append(auc_of(forget_excess, unseen_excess))
        return replace(
            check,
            unseen_nll=float(unseen_nll.mean()),
            unseen_exact=guess,
            guess_p=guess_probability(exact[sample].tolist(), shares),
            unseen_risen=mean,
            risen=tuple(risen),
            aucs=tuple(aucs),
            below=tuple(below),
            auc=sum(aucs) / len(aucs) if aucs else auc_of(excess_of_forget, excess_of_unseen),
        )

    def targets(self, check: Check, offsets: Sequence[float]) -> Tensor | None:
        """Return the target NLL of each forget row, (rows,); None without levels.

        It is the row's level, plus the rise of the unseen rows with the same form of prompt (unseen
        rows in chat and with raw prompts rise by different amounts), plus the offset of that form.
        """
        if not check.risen:
            return None
        shifts = torch.tensor(check.risen) + torch.tensor(offsets)
        return self.levels["forget"] + shifts[self.forms["forget"]]


def mean_by_group(values: Tensor, groups: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of the values of each row's group, or else of its form, or else of all.

    Args:
        values, groups: Values and their groups, twice the form plus one for passages, (values,).
        wanted: Group of each row, (rows,).

    Returns:
        (rows,).

    >>> mean_by_group(torch.tensor([2.0, 4.0, 4.0]), torch.tensor([0, 2, 3]), torch.tensor([3, 0]))
    tensor([4., 2.])
    """
    means = torch.full((len(wanted),), float(values.mean()))
    for same, own in ((groups // 2, wanted // 2), (groups, wanted)):
        for one in set(same.tolist()):
            means[own == one] = float(values[same == one].mean())
    return means


def rows_per_pass(forget: Sequence[Encoded]) -> int:
    """Return the number of forget examples in the first two forms of prompts, usually chat and raw.

    Only these count for the length of a pass: most of what a model forgets in one chat variant, it
    forgets in the others.
    """
    return sum(one.form < 2 for one in forget)


def sample_size(forms: int) -> int:
    """Return the maximum number of examples of a set that are measured, at least 32 per form.

    Args:
        forms: Number of forms of prompts in the set.
    """
    return max(SAMPLE, SAMPLE // 2 * forms)


def evenly_spaced(rows: Sequence[Any], size: int) -> list[Any]:
    """Return at most ``size`` of the rows, evenly spaced."""
    count = min(size, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
