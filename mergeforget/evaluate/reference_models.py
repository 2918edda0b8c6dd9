"""Measures a retrained model and a reference model on the rows of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeforget.data.readers import read_records
from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.errors import InputError
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.measure import Membership
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.texts import read_losses, unit_of
from mergeforget.evaluate.worst_case import worst_case

WORST = "worst"
STORED = ".likelihoods.jsonl"


@dataclass(frozen=True)
class Beside:
    """Measured once in every way of asking, and compared with every model.

    Attributes:
        retrained: a model trained without the forget set, for forget quality and PrivLeak: by the
            name of the way, and the worst case as ``WORST``.
        reference: any model of the same tokenizer, for the membership signal ``reference``.
    """

    retrained: Mapping[str, Measured] = field(default_factory=dict)
    reference: Mapping[str, Measured] = field(default_factory=dict)

    def add_to(self, measured: Measured, way: str) -> Measured:
        """What was measured, with the retrained model beside it and the reference's signal."""
        retrained = self.retrained.get(way)
        if retrained is not None:
            check_other_model(measured, retrained)
        losses = measured.losses
        if way in self.reference:
            theirs = {(d.id, d.member): d.nll for d in self.reference[way].losses}
            losses = [
                replace(d, signals=d.signals | {"reference": theirs[d.id, d.member] - d.nll})
                for d in losses
            ]
        return replace(measured, losses=losses, retrained=retrained)


def check_other_model(measured: Measured, retrained: Measured) -> None:
    """Raise InputError where the retrained model is the evaluated one, under any name.

    Every likelihood is the same then, forget quality is 1 and PrivLeak 0: a model that forgot
    nothing would look perfectly unlearned.
    """
    theirs = {d.row.id: d.nll for d in retrained.likelihoods if d.row.split == "forget"}
    pairs = [(d.nll, theirs[d.row.id]) for d in measured.likelihoods
             if d.row.split == "forget" and d.row.id in theirs and d.tokens]  # fmt: skip
    if pairs and all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in pairs):
        raise InputError(
            f"--retrained names the evaluated model itself: all {len(pairs)} forget rows have the "
            "same likelihood. Give a model that was trained without the forget set."
        )


def read_beside(evaluation: Evaluation) -> Beside:
    """Measure the models that the settings name, or read what was stored of them.

    Raises:
        InputError: there is no such model or file.
    """
    spec, rows = evaluation.settings, evaluation.rows
    retrained: dict[str, Measured] = {}
    reference: dict[str, Measured] = {}
    if spec.retrained is not None:
        asked = replace(rows, retain=[], further=[])
        stored = _stored(Path(spec.retrained), spec.membership)
        if stored is not None:  # an evaluation stores its worst case
            retrained = {WORST: stored}
        else:
            retrained = _other(evaluation, spec.retrained, asked, "retrained")
            retrained[WORST] = worst_case(retrained)
    if spec.reference is not None:
        documents = EvaluationRows(members=rows.members, nonmembers=rows.nonmembers)
        reference = _other(evaluation, spec.reference, documents, "reference")
    return Beside(retrained, reference)


def _other(
    evaluation: Evaluation, name: str, rows: EvaluationRows, label: str
) -> dict[str, Measured]:
    """The likelihoods of another model, or of the same base with another adapter, by way."""
    settings = evaluation.settings.model_copy(
        update={
            "max_new_tokens": 0,  # no answer of it is compared
            "mmlu": None,
            "lm_eval": [],
            "gradient_norm": False,
            "backend": "transformers",
        }
    )
    if (Path(name) / "adapter_config.json").is_file():
        return evaluation.varied(rows, settings).run_ways(Path(name), label)
    return evaluation.varied(rows, settings, base=name).run_ways(None, label)


def _stored(path: Path, membership: Membership) -> Measured | None:
    """What an evaluation wrote of a model: ``answers/NAME.likelihoods.jsonl`` and its losses.

    Losses that do not say what they are of were written by an older version, and are taken as
    they are.

    Raises:
        InputError: the file holds something else, or the losses are not of what is judged here.
    """
    if not path.name.endswith(".jsonl"):
        return None
    if not path.name.endswith(STORED):
        raise InputError(
            f"{path} is neither a model nor an answers/NAME{STORED} that an evaluation wrote."
        )
    losses = path.with_name(path.name.removesuffix(STORED) + ".losses.jsonl")
    found: list[DocumentLoss] = read_losses(losses) if losses.exists() else []
    unit = unit_of(losses) if found else ""
    if unit and unit != membership:
        raise InputError(
            f"{losses} judges membership by {unit}, and here it is judged by {membership}: "
            f"PrivLeak would compare unlike figures. Give --membership {unit}, or measure the "
            f"retrained model again with --membership {membership}."
        )
    return Measured([], found, likelihoods=[_likelihood(r, path) for _, r in read_records(path)])


def _likelihood(record: dict[str, object], path: Path) -> AnswerLikelihood:
    values = dict(record)
    try:
        row = Row(str(values.pop("id")), "", "", str(values.pop("task")), str(values.pop("split")))
        perturbed = tuple(float(v) for v in values.pop("perturbed"))  # type: ignore[attr-defined]
        return AnswerLikelihood(row, perturbed=perturbed, **values)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold likelihoods as an evaluation writes them ({error}). Write it "
            "again with `mergeforget evaluate --model M --forget F --out DIR`."
        ) from error
