"""The verdict on a model of a run, from its scores, the attacks on it and the control.

The report, the model card, ``evidence.json``, ``mergeforget attack`` and ``mergeforget unlearn``
all use ``run_verdict``, so that they state the same verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergeforget.attack.methods import ATTACKS, weaker_arguments
from mergeforget.attack.result import Result, read_results, write_verdict
from mergeforget.attack.target import Facts, Target
from mergeforget.console import say
from mergeforget.data.prompt_variants import prompt_variants
from mergeforget.data.schema import Answer, DocumentLoss, Measured
from mergeforget.errors import InputError
from mergeforget.evaluate.matching import RARE, OwnDigits, matching_sentence, own_digits
from mergeforget.evaluate.measure import measure, membership_documents
from mergeforget.evaluate.membership import matched
from mergeforget.evaluate.paired import auc_difference, in_variant, read_with_patterns
from mergeforget.evaluate.rows import of_forget_set
from mergeforget.evaluate.run_models import is_outdated, models_of
from mergeforget.evaluate.texts import nlls_by_variant, read_losses, unit_of
from mergeforget.evaluate.verdict import ForgettingVerdict, judge
from mergeforget.evaluate.verdict_figures import (
    Difference,
    EarlierAnswers,
    auc_score,
    finite,
    leak_rates,
    leaks_of,
    variant_of,
)
from mergeforget.evaluate.worst_case import worst_case
from mergeforget.files import read_json_object, reading, write_json
from mergeforget.metrics._leaks import partly_leaked
from mergeforget.metrics._patterns import Patterns
from mergeforget.metrics.leak_rate import (
    DEFINITION,
    can_leak,
    chance_of,
    distinct,
    is_leaked,
    leak_score,
    of_earlier_definition,
    patterns_of,
)
from mergeforget.metrics.mia_auc import mia_auc
from mergeforget.model_files import content_of
from mergeforget.run import Run
from mergeforget.score import Score, find, read_scores

CONTROL = "control.json"  # scores of the control, in the folder of the attacks
EARLIER = "earlier.json"  # revealed answers of each earlier request, in the run folder


def run_verdict(run: Run, model: str | None = None) -> ForgettingVerdict:
    """Return the verdict on a model of a run; the default is the chosen candidate."""
    name = model or run.chosen_name() or "under"
    control = read_control(run.attacks)
    with reading(run.attacks / CONTROL):
        known = [Score.from_dict(values) for values in control.get("scores", [])]
        leaked = set(map(str, control.get("leaked_rows", [])))
        guessed = set(map(str, control.get("partial_rows", [])))
        digits = float((control.get("own_digits") or {}).get("p", 1.0))
    notes, earlier = run.root / "notes.json", run.root / EARLIER
    results = results_of(run, name)
    stored = _Stored([], [], Patterns())
    if is_outdated(run, name):
        say(
            f"Warning: the adapter of {name} was changed after it was measured, so its scores do "
            "not count. Measure it again with `mergeforget evaluate` or `mergeforget search`."
        )
    else:
        stored = _Stored.of(run, name)
    before = _Stored.of(run, "base").scores if name != "base" else []
    partial = _partial_in(results) | {a.row.id for a in stored.countable() if _in_part(a)}
    shared, given, chance = stored.compared(leaked)
    answers = stored.answers
    compared = _compare_auc(run, name, stored.scores, control, known)
    return judge(
        stored.scores,
        findings=findings_of(results),
        control=compared.control,
        shared=shared,
        given=given,
        chance=chance,
        partial=len(partial - stored.revealed() - guessed),
        matching=matching_sentence(answers, digits) if answers else _matching_in(results),
        excess=compared.excess,
        incomparable=compared.incomparable,
        membership=not notes.is_file()
        or read_json_object(notes).get("membership") != "not measurable",
        earlier=read_earlier(earlier),
        before=before,
        evaluated=stored.evaluated,
    )


@dataclass(frozen=True)
class _Stored:
    """The stored measurements of a model on the rows to forget.

    Attributes:
        answers: Answers to the rows to forget.
        patterns: Patterns of the retain rows that were answered.
        evaluated: Number of rows to forget that were answered, and number of all; None if unknown.
    """

    scores: list[Score]
    answers: list[Answer]
    patterns: Patterns
    evaluated: tuple[int, int] | None = None

    @classmethod
    def of(cls, run: Run, name: str) -> _Stored:
        """Read the measurements of a model of a run.

        Scores of an evaluation of other forget rows (``--rows``) are left out. The leak rate is
        computed again where it is missing, is of an earlier definition, includes such rows, or
        lacks the patterns of retain rows that were not answered (``--limit``).
        """
        scores = read_scores(run.scores).get(name, [])
        every, patterns, more = read_with_patterns(run, name)
        answers, evaluated = of_forget_set(run.data / "forget.jsonl", every)
        if len(answers) < len(every):
            scores = [s for s in scores if s.part != "all" or s.split not in ("forget", "mia")]
        rates = leak_rates(scores)
        outdated = [rate for rate in rates if of_earlier_definition(rate)]
        wanted = outdated or not rates or len(answers) < len(every) or more
        if wanted and answers and scores:
            again = leak_score(answers, "forget", patterns)
            replaced = outdated + [rate for rate in rates if more and rate.n <= len(answers)]
            scores = [score for score in scores if score not in replaced]
            scores += [again] if again is not None else []
        return cls(scores, answers, patterns, evaluated)

    def countable(self) -> list[Answer]:
        """Return the answers to rows that can leak."""
        return [answer for answer in self.answers if can_leak(answer.row, self.patterns)]

    def revealed(self) -> set[str]:
        """Return the ids of the rows that are revealed."""
        return {a.row.id for a in self.answers if is_leaked(a, self.patterns)}

    def compared(self, leaked: Collection[str]) -> tuple[int, int, float | None]:
        """Return how many revealed rows a control reveals, how many of all, and the chance level.

        The chance level is that of the rows that the control does not reveal.

        If the leak rate is of more rows than there are answers, as after a later evaluation of
        fewer rows, every row that the control reveals counts as revealed by the model, too.

        Args:
            leaked: Ids of the rows that the control reveals.
        """
        countable = distinct(self.countable())
        revealed = self.revealed() & set(leaked)
        shared = sum(answer.row.id in revealed for answer in countable)
        leaks, asked, chance = leaks_of(finite(self.scores))
        if asked > len(countable):
            others = set(leaked) - {answer.row.id for answer in self.answers}
            every = min(leaks, shared + len(others))
            return every, every, chance
        own = [answer for answer in countable if answer.row.id not in leaked]
        given = len(countable) - len(own)
        return shared, given, chance_of(own, self.patterns) if own and self.scores else None


def read_earlier(path: Path) -> dict[str, EarlierAnswers] | None:
    """Return the revealed answers of earlier requests; None without a file."""
    if not path.is_file():
        return None
    with reading(path):
        return {name: EarlierAnswers.stored(one) for name, one in read_json_object(path).items()}


def results_of(run: Run, model: str) -> list[Result]:
    """Return the results of all attacks on one model, except those on earlier weights."""
    results = (r for name in ATTACKS.names() for r in read_results(run.attacks, name))
    own = [result for result in results if result.model == model]
    stated = {r.settings["weights"] for r in own if r.settings.get("weights")}
    adapter = models_of(run).get(model) if stated else None
    now = content_of(adapter) if adapter else ""
    return [r for r in own if not adapter or r.settings.get("weights", now) == now]


def findings_of(results: Sequence[Result]) -> dict[str, str]:
    """Return the finding of each attack.

    ``in part`` means that it found nothing, but in a part of the rows or with weaker arguments or
    shorter answers than usual.
    """
    findings: dict[str, str] = {}
    with reading("A result of an attack"):
        for result in results:
            settings = result.settings
            attacked, rows = settings.get("forget_rows") or (0, 0)
            less = attacked < rows or weaker_arguments(result.attack, settings.get("given") or {})
            if tokens := settings.get("max_new_tokens"):
                less = less or tokens < settings.get("usual_tokens", 0)
            in_part = result.finding == "none found" and less
            findings[result.attack] = "in part" if in_part else result.finding
    return findings


def keep_verdict(folder: Path, model: str, run: Run | None = None) -> ForgettingVerdict:
    """Judge all attacks on a model whose results are in a folder, and write the verdict there.

    Args:
        run: The run that the model belongs to; its scores are used as well.
    """
    if run is not None and run.attacks == folder:
        verdict = run_verdict(run, model)
    else:
        results = [r for name in ATTACKS.names() for r in read_results(folder, name)]
        own = [r for r in results if r.model == model]
        partial = len(_partial_in(own))
        verdict = judge(
            None, findings=findings_of(own), partial=partial, matching=_matching_in(own)
        )
    write_verdict(folder, model, verdict.to_dict() | {"sentence": verdict.sentence})
    return verdict


def measure_control(target: Target) -> None:
    """Evaluate the control on the questions of the data, and save its scores with the attacks.

    The verdict compares the revealed answers by row, and the MIA AUC by document, with those of the
    control. So all rows are used, even if the attacks are limited to some of them.
    """
    if target.control is None:
        return
    forget, retain = target.all_rows("forget"), target.all_rows("retain")
    inside, outside = (
        membership_documents(rows, target.membership)
        for rows in (forget, target.all_rows("holdout"))
    )
    members, nonmembers = matched(inside, outside, target.seed) if outside else ([], [])

    def work(model: Any, tokenizer: Any) -> Facts:
        patterns = patterns_of(retain)
        worst = worst_case({
            way.name: measure(
                model,
                tokenizer,
                forget=forget,
                retain=[],
                members=members,
                nonmembers=nonmembers,
                max_new_tokens=target.max_new_tokens,
                batch_tokens=target.batch_tokens,
                membership=target.membership,
                template=way,
                label="control",
            )
            for way in prompt_variants(
                target.template(tokenizer), tokenizer, forget, target.systems
            )
        }, patterns=patterns)  # fmt: skip
        rate = leak_score(worst.answers, "forget", patterns)
        scores = [rate, mia_auc(worst) if nonmembers else None]
        digits = own_digits(worst.answers)
        return {
            "scores": [score.to_dict() for score in scores if score is not None],
            "leaked_rows": [a.row.id for a in worst.answers if is_leaked(a, patterns)],
            "partial_rows": [a.row.id for a in worst.answers if _in_part(a)],
            "own_digits": digits.to_dict() if digits else None,
            "losses": [loss.to_dict() for loss in worst.losses],
            "membership": target.membership,
        }  # fmt: skip

    settings: Facts = {"membership": target.membership, "max_new_tokens": target.max_new_tokens}
    settings |= {"leaks": DEFINITION, "losses": "by variant"}
    if target.systems:
        settings["systems"] = list(target.systems)
    rows = [*forget, *nonmembers]
    facts = target.measured(target.control, "control", settings, rows, work)
    write_json(target.folder / CONTROL, {"model": target.control.name} | facts)


def read_control(folder: Path) -> Facts:
    """Return the scores that ``measure_control`` saved; empty without a control."""
    path = folder / CONTROL
    return read_json_object(path) if path.is_file() else {}


def _in_part(answer: Answer) -> bool:
    row = answer.row
    return bool(partly_leaked(row.output, answer.completion, row.prompt))


def _partial_in(results: Sequence[Result]) -> set[str]:
    return {str(row) for result in results for row in result.figures.get("partial_rows", ())}


def _matching_in(results: Sequence[Result]) -> str:
    """Return a sentence if direct answers contain significantly more of their own digits.

    The p-value is multiplied by the number of attacks that compared digits.
    """
    compared = [own for r in results if (own := r.figures.get("own_digits"))]
    with reading("A result of an attack"):
        for one in compared:
            digits = OwnDigits(**one["model"])
            control = float(one.get("control", {}).get("p", 1.0))
            if digits.p * len(compared) < RARE <= control:
                return digits.sentence
    return ""


@dataclass(frozen=True)
class _ComparedAUC:
    """The MIA AUC of the control with the prompts of the model's.

    Attributes:
        control: Scores of the control, without the AUC if it cannot be compared.
        excess: AUC of the model minus that of the control, if their losses can be paired.
        incomparable: Why the AUC cannot be compared; empty if it can or none was measured.
    """

    control: list[Score]
    excess: Difference | None = None
    incomparable: str = ""


def _compare_auc(
    run: Run, model: str, scores: Sequence[Score], control: Facts, known: Sequence[Score]
) -> _ComparedAUC:
    """Compare the AUC of a model with that of the control in the same prompt variant.

    The variant is the one that is judged: that of the AUC on the report split if there is one. A
    file of an earlier version has the losses of an unknown variant, the control's own farthest one,
    so it is compared only with a model that has a single variant.
    """
    area, theirs_area = auc_score(finite(scores)), auc_score(finite(known))
    if area is None or theirs_area is None:
        return _ComparedAUC(list(known))
    path = run.answers / f"{model}.losses.jsonl"
    mine = read_losses(path) if path.is_file() and path.stat().st_size else []
    theirs, unit = _losses_of_control(run, control)
    own = next((loss.variant for loss in mine), "")  # empty in a file of an earlier version
    variant = variant_of(area) or own
    several = any(loss.by_variant for loss in (*mine, *theirs)) or bool(area.by_variant)
    named = any(loss.variant for loss in theirs)
    same = in_variant(theirs, variant) if named or not several else None
    others = [score for score in known if score.metric != theirs_area.metric]
    if same is None:
        return _ComparedAUC(others, incomparable=_other_prompts(variant))
    if theirs and mine and (by := unit_of(path)) and by != unit:
        return _ComparedAUC(others, incomparable=(
            f"Membership was judged by {unit} for the control and by {by} for the model, so their "
            "MIA AUCs are not compared. Use the same evaluation.membership for both."
        ))  # fmt: skip
    if any(loss.by_variant for loss in theirs):
        theirs_area = mia_auc(Measured([], same, membership=unit)) or theirs_area
    if not own:  # the losses are of the variant that is farthest from 0.5 on all documents
        far = variant_of(find(scores, "mia_auc", "mia")) or variant
        mine = [replace(loss, variant=far) for loss in mine]
    excess = auc_difference(mine, same, variant)
    return _ComparedAUC([*others, theirs_area], (excess.value, excess.interval) if excess else None)


def _other_prompts(variant: str) -> str:
    """Return a sentence about a control that was not measured with the prompts of the model."""
    if not variant:
        return (
            "The prompt variant of the MIA AUC is not recorded, and the control was measured with "
            "several, so the two are not compared. Evaluate the model again."
        )
    return (
        f"The MIA AUC is that with {variant} prompts, and the control was not measured with them, "
        "so the two are not compared. Repeat the attacks, with a --control that has the chat "
        "template of the model."
    )


def _losses_of_control(run: Run, control: Facts) -> tuple[list[DocumentLoss], str]:
    """Return the document losses of the control and the unit of membership, if they are stored."""
    with reading(run.attacks / CONTROL):
        losses = [
            DocumentLoss(
                str(d["id"]), bool(d["member"]), float(d["nll"]),
                subject=str(d.get("subject") or ""), variant=str(d.get("variant") or ""),
                by_variant=nlls_by_variant(d.get("by_variant") or {}),
            )
            for d in control.get("losses") or []
        ]  # fmt: skip
        return losses, str(control["membership"]) if losses else ""


def verdicts_in(folder: Path, models: Sequence[str]) -> dict[str, str]:
    """Return the saved verdict on each model as a sentence.

    Raises:
        InputError: There is no verdict on a model.
    """
    path = folder / "verdict.json"
    verdicts = read_json_object(path) if path.is_file() else {}
    if missing := [model for model in models if model not in verdicts]:
        raise InputError(f"{path} has no verdict on {missing[0]!r}. Run an attack on it first.")
    with reading(path):
        return {model: str(verdicts[model]["sentence"]) for model in models}
