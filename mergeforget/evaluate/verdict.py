"""Decides whether a model has forgotten: FORGOTTEN, NOT FORGOTTEN or NOT ENOUGH DATA.

The search, the attacks, the report, the model card and ``mergeforget unlearn`` use the same rule;
``docs/evidence.md`` describes it, with its error rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mergeforget.evaluate.verdict_figures import (
    MARGIN,
    MOST,
    RARE,
    Difference,
    EarlierAnswers,
    answered,
    at_least,
    auc_interval,
    auc_score,
    finite,
    knew,
    leaks_of,
    more_people,
    of_one_subject,
    rate_of,
    unpaired_difference,
)
from mergeforget.score import Score

State = Literal["FORGOTTEN", "NOT FORGOTTEN", "NOT ENOUGH DATA"]
SHARED = 0.25  # share of answers above which a control that reveals them may have seen the data
BACK = 0.05  # share of revealed answers above which an earlier request counts as undone
NEEDED = ("prompts", "relearn")  # attacks that are required to clear a model


@dataclass(frozen=True)
class ForgettingVerdict:
    """The conclusion about one model.

    Attributes:
        state: FORGOTTEN, NOT FORGOTTEN, or NOT ENOUGH DATA if neither is shown.
        reasons: Reasons for the state, one sentence each.
        leaks: Number of revealed forget answers, of ``asked``: the rows that can leak.
        auc: MIA AUC, if there are non-members; ``interval`` is its 95 % interval.
        more_people: Approximate number of additional people needed to decide the AUC, or None.
        over_forgotten: Whether the forget set is identifiable by its high loss: the whole interval
            of the AUC is far below 0.5. This is not memory, but the model is not balanced.
        told_apart: Whether the forget documents are identifiable by their low loss, because of
            memory or because the holdout differs in kind.
        uncertain: Reservations about the verdict, one sentence each.
    """

    state: State
    reasons: list[str]
    leaks: int = 0
    asked: int = 0
    auc: float | None = None
    interval: tuple[float, float] | None = None
    more_people: int | None = None
    over_forgotten: bool = False
    told_apart: bool = False
    uncertain: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether the model has forgotten, and the whole interval of its AUC is near 0.5."""
        near = self.interval is not None and self.interval[0] >= 0.5 - MARGIN
        return self.state == "FORGOTTEN" and near

    @property
    def sentence(self) -> str:
        """``NOT ENOUGH DATA: ...``"""
        return f"{self.state}: {' '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"balanced": self.balanced}


def judge(
    scores: Sequence[Score] | None,
    *,
    findings: Mapping[str, str] | None = None,
    control: Sequence[Score] = (),
    shared: int = 0,
    given: int | None = None,
    chance: float | None = None,
    partial: int = 0,
    matching: str = "",
    excess: Difference | None = None,
    incomparable: str = "",
    membership: bool = True,
    earlier: Mapping[str, EarlierAnswers] | None = None,
    before: Sequence[Score] = (),
    evaluated: tuple[int, int] | None = None,
) -> ForgettingVerdict:
    """Decide whether a model has forgotten.

    - NOT FORGOTTEN: more forget answers are revealed than by chance or by the control, an attack
      found traces, answers of an earlier request are revealed again, or the whole interval of the
      MIA AUC is above ``0.5 + MARGIN`` and the AUC is significantly above the control's. Without a
      control the AUC convicts no model, because the forget rows may be easier than the holdout.
    - FORGOTTEN: none of these, every forget row was evaluated, some can leak (see
      ``metrics.leak_rate``), revealed answers are neither so easy
      to guess that knowledge cannot be told from chance nor also revealed by a control that may
      have seen them, the model before unlearning knew the data, the answers contain no more digits
      of their own secrets than of other people's, the whole interval of the AUC is
      below ``0.5 + MARGIN`` (or at most ``MARGIN`` above the control's, which is required if the
      control's whole interval is below 0.5), and, if ``findings`` are given, the attacks of
      ``NEEDED`` had power and found none, and no attack was undecided.
    - NOT ENOUGH DATA: anything else.

    Args:
        scores: Scores of the model. Leaks are counted on all rows; the AUC is that of the report
            split if the model was selected by a search. None judges the attacks alone, for a
            model that was not evaluated.
        findings: Finding of each attack on the model: ``traces``, ``none found``, ``in part`` (none
            found, but in a part of the forget rows or with a weaker attack), ``undecided``,
            ``no power`` or ``no control``. None excludes attacks from the verdict, as in a search;
            an empty mapping means that no attack was run.
        control: Scores of a model that never saw the data.
        shared: Number of leaked rows that the control reveals as well.
        given: Number of counted rows that the control reveals, ``shared`` by default. The model is
            judged by the others.
        chance: Leak rate by chance of the rows that the control does not reveal; that of the scores
            by default.
        partial: Number of further rows of which a part is revealed, such as the last four digits.
            A part convicts no model, and is named in ``uncertain``.
        matching: Sentence of a significant result of ``own_digits``, which prevents clearing.
        excess: AUC of the model minus that of the control on the same documents, and its 95 %
            interval; computed from the two intervals by default.
        incomparable: Why the AUC of the control cannot be compared, as a sentence. It is then not
            in ``control``, and the model is not cleared, because the comparison may convict it.
        membership: Whether the non-members are comparable with the forget rows. If not, the AUC is
            ignored, and only attacks can clear the model.
        earlier: Revealed forget answers of each earlier request.
        before: Scores of the model before unlearning. If they do not show that it knew the data,
            only attacks with power can clear a model. Empty if it was not evaluated.
        evaluated: Number of forget rows that were evaluated, and number of rows to forget. With
            fewer, no model is cleared. None if these are unknown.

    >>> leak = Score("leak_rate", "forget", 0.5, "lower", 10, chance=0.0)
    >>> print(judge([leak]).sentence)
    NOT FORGOTTEN: 5 of 10 forget answers are still revealed.
    """
    notes = _Notes([], [], [])
    if findings is not None:
        _attacks(findings, notes)
    cleared = all((findings or {}).get(name) == "none found" for name in NEEDED)
    leaks, asked, area, over, more = 0, 0, None, False, None
    if scores is not None:
        scores, control, before = map(finite, (scores, control, before))
        leaks, asked, _ = leaks_of(scores)
        _answers(scores, control, shared, shared if given is None else given, chance, notes)
        if evaluated and evaluated[0] < evaluated[1] and answered(scores):
            notes.doubts.append(_left_out(*evaluated))
        area = auc_score(scores) if membership else None
        over, more = _membership(area, auc_score(control), excess, cleared, notes, incomparable)
        if before and not cleared and not knew(before, membership):
            notes.doubts.append(
                "Nothing shows that the model before unlearning knew the data: its answers and its "
                "MIA AUC do not differ from chance."
            )
    if partial:
        notes.uncertain.append(_in_part(partial))
    if matching:
        notes.doubts.append(matching)
    for run, answers in (earlier or {}).items():
        if not answers.asked:
            notes.doubts.append(f"None of the answers that {run} forgot can be counted.")
        elif answers.share > 0:
            again = answers.beyond and answers.share > BACK
            how = "again" if answers.beyond else "no more than by chance"
            (notes.guilty if again else notes.doubts).append(
                f"{answers.share:.0%} of the answers that {run} forgot are revealed {how}."
            )
    guilty, doubts, uncertain = notes
    state: State = "FORGOTTEN"
    if guilty or doubts:
        state = "NOT FORGOTTEN" if guilty else "NOT ENOUGH DATA"
    interval = None if area is None else auc_interval(area)
    reason = _cleared(leaks, asked, area, findings, scores is not None)
    return ForgettingVerdict(
        state,
        guilty or doubts or [reason],
        leaks,
        asked,
        None if area is None else area.value,
        interval,
        more,
        over_forgotten=over,
        told_apart=interval is not None and interval[0] > 0.5 + MARGIN,
        uncertain=uncertain + (doubts if guilty else []),
    )


class _Notes(NamedTuple):
    """Sentences that convict, that prevent clearing, and that stay uncertain."""

    guilty: list[str]
    doubts: list[str]
    uncertain: list[str]


def _answers(
    scores: Sequence[Score],
    control: Sequence[Score],
    shared: int,
    excluded: int,
    chance: float | None,
    notes: _Notes,
) -> None:
    """Judge the answers to the questions of the data."""
    leaks, asked, rate = leaks_of(scores)
    allowed = max(rate if chance is None else chance, 0.0 if shared else rate_of(control))
    if chance == 0:  # an answer that cannot be guessed, and that the control does not reveal
        allowed = 0.0
    beyond = leaks - shared
    others = max(beyond, asked - excluded)  # rows that the control does not reveal
    if not asked:
        notes.doubts.append(_uncounted(answered(scores)))
    elif beyond and at_least(beyond, others, allowed) < RARE:
        more = f"; {shared} of them also by a model that never saw the data" if shared else ""
        notes.guilty.append(f"{leaks} of {asked} forget answers are still revealed{more}.")
    elif leaks:
        than = "by chance or by a model that never saw the data" if control else "by chance"
        notes.uncertain.append(
            f"{leaks} of {asked} forget answers are revealed, no more than {than}."
        )
        given = shared or round(rate_of(control) * asked)
        if given > SHARED * asked and at_least(given, asked, rate) < RARE:
            notes.doubts.append(
                f"The control reveals {given} of the {asked} forget answers, too, more than by "
                "chance: it may have seen the data. Use a --control that never saw them."
            )
        elif not control and of_one_subject(scores):
            notes.doubts.append(
                f"{leaks} of {asked} forget answers are revealed, and all are about one subject, "
                "so how many a model reveals by chance is unknown without a --control."
            )
        elif at_least(others, others, allowed) >= RARE:
            notes.doubts.append(
                f"The answers are too easy to guess to tell knowledge from chance: {leaks} of "
                f"{asked} are revealed, and chance reveals {allowed:.0%}."
            )


def _uncounted(rows: int) -> str:
    """Return a sentence about forget rows of which none can leak.

    Args:
        rows: Number of forget rows that were answered.
    """
    if not rows:
        return "No forget row was evaluated."
    return (
        f"None of the {rows} forget answers can be counted: each is in its own prompt, follows "
        "from it by a pattern of the retain rows, or is punctuation only."
    )


def _left_out(evaluated: int, rows: int) -> str:
    """Return a sentence about forget rows that were not evaluated."""
    were = "was" if evaluated == 1 else "were"
    return (
        f"Only {evaluated} of {rows} forget rows {were} evaluated. Evaluate all of them: without "
        "--limit (evaluation.limit) and without other forget rows (--rows)."
    )


def _in_part(rows: int) -> str:
    """Return a sentence about answers of which only a part was revealed."""
    what = "1 forget answer is" if rows == 1 else f"{rows} forget answers are"
    return f"{what} revealed in part, such as the last four digits of a number or a month and year."


def _membership(
    area: Score | None,
    control: Score | None,
    excess: Difference | None,
    cleared: bool,
    notes: _Notes,
    incomparable: str,
) -> tuple[bool, int | None]:
    """Judge the MIA AUC; return whether it is far below 0.5, and how many more people decide it."""
    if area is None:
        text = "Membership was not measured: there are no comparable non-members."
        (notes.uncertain if cleared else notes.doubts).append(text)
        return False, None
    if incomparable:
        notes.doubts.append(incomparable)
    low, high = auc_interval(area)
    figures, top = f"MIA AUC {area.value:.2f}, 95 % CI {low:.2f} to {high:.2f}", 0.5 + MARGIN
    least = most = None
    if control is not None:
        value, (least, most) = excess or unpaired_difference(area, control)
        figures += (
            f"; control {control.value:.2f}, difference {value:+.2f}, {least:+.2f} to {most:+.2f}"
        )
    more = None
    if least is not None and low > top and least > 0:
        notes.guilty.append(f"Forget documents can be distinguished from unseen ones ({figures}).")
    elif high > top and most is not None and most <= MARGIN:
        notes.uncertain.append(f"The forget set is easier than the holdout for both ({figures}).")
    elif low > top:
        why = "this also holds for the control" if control else (
            "this may also hold for the control" if incomparable else
            "without a model that never saw the data (--control) this may be a difference in kind"
        )  # fmt: skip
        notes.doubts.append(
            f"Forget documents can be distinguished from unseen ones, but {why} ({figures})."
        )
    elif high > top:
        more = more_people(area, (low, high), top)
        who = "1 more person is" if more == 1 else f"{more} more people are"
        people = (
            f" About {who} needed." if more is not None
            else f" The AUC is so close to {top} that {MOST} more people would not decide it."
        )  # fmt: skip
        notes.doubts.append(
            f"Membership cannot be decided ({figures}; required: below {top}).{people}"
        )
    elif least is not None and least > MARGIN:
        notes.doubts.append(f"The AUC is significantly above that of the control ({figures}).")
    elif control is not None and most is not None and _holdout_is_easier(control, most):
        notes.doubts.append(
            "The holdout is easier than the forget set for the control, so an AUC of 0.5 is not "
            f"chance, and that of the model may be more than {MARGIN:.1f} above the control's "
            f"({figures})."
        )
    if high <= top and (doubt := _known_in_another_variant(area, control)):
        notes.doubts.append(doubt)
    over = high < 0.5 - MARGIN
    if over:
        notes.uncertain.append(f"The forget set is identifiable by its high loss ({figures}).")
    elif low < 0.5 - MARGIN:
        more = more or more_people(area, (low, high), 0.5 - MARGIN)
        notes.uncertain.append(f"Over-forgetting cannot be excluded ({figures}).")
    return over, more


def _known_in_another_variant(area: Score, control: Score | None) -> str:
    """Return a doubt about the prompt variant with the highest AUC; empty without one.

    The AUC that is judged is the one farthest from 0.5. If it is below 0.5, forget documents may
    still be distinguishable in another variant.
    """
    by_variant, top = area.by_variant or {}, 0.5 + MARGIN
    variant = max(by_variant, key=by_variant.__getitem__, default="")
    if not variant or by_variant[variant] <= area.value:
        return ""
    there = replace(area, value=by_variant[variant], interval=None, by_variant=None)
    low, high = auc_interval(there)
    below, required = high <= top or there.value <= 0.5, f"below {top}"
    if control is not None and variant in (control.by_variant or {}):
        never = (control.by_variant or {})[variant]
        same = replace(control, value=never, interval=None, by_variant=None)
        most = unpaired_difference(there, same)[1][1]
        if below and _holdout_is_easier(same, most):
            below, required = False, f"at most {MARGIN:.1f} above the control's {never:.2f}"
        elif most <= MARGIN:
            below = True  # the forget set is easier than the holdout for both
    if below:
        return ""
    return (
        f"Membership cannot be decided with {variant} prompts (MIA AUC {there.value:.2f}, 95 % CI "
        f"{low:.2f} to {high:.2f}; required: {required})."
    )


def _holdout_is_easier(control: Score, most: float) -> bool:
    """Return whether a low AUC of the control hides what a model with an AUC near 0.5 knows.

    Args:
        control: AUC of a model that never saw the data.
        most: Upper limit of the AUC of the model minus that of the control.
    """
    return auc_interval(control)[1] < 0.5 and most > MARGIN


def _cleared(
    leaks: int,
    asked: int,
    area: Score | None,
    findings: Mapping[str, str] | None,
    evaluated: bool,
) -> str:
    """Return a sentence with the evidence that clears a model."""
    parts = []
    if evaluated:
        parts.append(f"{leaks} of {asked} forget answers are revealed")
    if area is not None:
        low, high = auc_interval(area)
        parts.append(f"the MIA AUC is {area.value:.2f} (95 % CI {low:.2f} to {high:.2f})")
    if able := [name for name, found in (findings or {}).items() if found == "none found"]:
        attacks = f"{len(able)} attacks" if len(able) > 1 else "1 attack"
        parts.append(
            f"{attacks} found no traces, each with the power to find the data in the model before "
            f"unlearning ({', '.join(able)})"
        )
    text = ", and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return text[:1].upper() + text[1:] + "."


def _attacks(findings: Mapping[str, str], notes: _Notes) -> None:
    """Judge the findings of the attacks."""
    guilty, doubts, uncertain = notes
    decided = ("none found", "in part")
    by = {
        finding: [name for name, found in findings.items() if found == finding]
        for finding in ("traces", "none found", "in part", "undecided", "no power", "no control")
    }
    if by["traces"]:
        guilty.append(f"Attacks found traces of the data: {', '.join(by['traces'])}.")
    if not findings:
        doubts.append("No attack was run.")
    elif missing := [n for n in NEEDED if findings.get(n) not in (*decided, "traces")]:
        doubts.append(f"A verdict needs these attacks to be decided: {', '.join(missing)}.")
    if by["in part"]:
        where = doubts if set(NEEDED) & set(by["in part"]) else uncertain
        names = ", ".join(by["in part"])
        where.append(
            "These attacks were run on only a part of the forget rows, or with weaker settings "
            f"than usual: {names}. Repeat them on all rows with the default settings: without "
            "--limit, --quick, --forget and arguments."
        )
    if others := [name for name in by["undecided"] if name not in NEEDED]:
        doubts.append(f"Undecided attacks: {', '.join(others)}.")
    if by["no power"]:
        names = ", ".join(by["no power"])
        uncertain.append(
            f"Attacks without power, which miss the data in the original model too: {names}."
        )
    if by["no control"]:
        names = ", ".join(by["no control"])
        uncertain.append(f"Not judged without a model that never saw the data: {names}.")
