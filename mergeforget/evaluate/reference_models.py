"""Measures a retrained model and a reference model on the rows of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeforget.data.schema import AnswerLikelihood, DocumentLoss, Measured, Row
from mergeforget.data.sources import read_records
from mergeforget.errors import InputError
from mergeforget.evaluate.evaluation import Evaluation
from mergeforget.evaluate.measure import Membership
from mergeforget.evaluate.rows import EvaluationRows
from mergeforget.evaluate.texts import read_losses, unit_of
from mergeforget.evaluate.worst_case import worst_case

WORST = "worst"
STORED = ".likelihoods.jsonl"


@dataclass(frozen=True)
class ReferenceModels:
    """Measurements of models that every evaluated model is compared with, by prompt variant.

    Attributes:
        retrained: A model trained without the forget set, for forget quality and PrivLeak. The
            worst case over the variants has the key ``WORST``.
        reference: Any model with the same tokenizer, for the membership signal ``reference``.
    """

    retrained: Mapping[str, Measured] = field(default_factory=dict)
    reference: Mapping[str, Measured] = field(default_factory=dict)

    def add_to(self, measured: Measured, variant: str) -> Measured:
        """Return the measurements with those of the retrained model and the reference signal."""
        retrained = self.retrained.get(variant)
        if retrained is not None:
            check_other_model(measured, retrained)
        losses = measured.losses
        if variant in self.reference:
            theirs = {(d.id, d.member): d.nll for d in self.reference[variant].losses}
            losses = [
                replace(d, signals=d.signals | {"reference": theirs[d.id, d.member] - d.nll})
                for d in losses
            ]
        return replace(measured, losses=losses, retrained=retrained)


def check_other_model(measured: Measured, retrained: Measured) -> None:
    """Raise InputError if the retrained model is the evaluated one, under any name.

    All likelihoods would be equal, so forget quality would be 1 and PrivLeak 0: a model that forgot
    nothing would look perfectly unlearned.
    """
    theirs = {d.row.id: d.nll for d in retrained.likelihoods if d.row.split == "forget"}
    pairs = [(d.nll, theirs[d.row.id]) for d in measured.likelihoods
             if d.row.split == "forget" and d.row.id in theirs and d.tokens]  # fmt: skip
    if pairs and all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-7) for a, b in pairs):
        raise InputError(
            f"--retrained names the evaluated model itself: all {len(pairs)} forget rows have the "
            "same likelihood. Pass a model that was trained without the forget set."
        )


def measure_reference_models(evaluation: Evaluation) -> ReferenceModels:
    """Measure the reference models that the settings name, or read stored measurements of them.

    Raises:
        InputError: There is no such model or file.
    """
    spec, rows = evaluation.settings, evaluation.rows
    retrained: dict[str, Measured] = {}
    reference: dict[str, Measured] = {}
    if spec.retrained is not None:
        asked = replace(rows, retain=[], further=[])
        stored = _stored(Path(spec.retrained), spec.membership)
        if stored is not None:  # stored measurements are the worst case over the variants
            retrained = {WORST: stored}
        else:
            retrained = _other(evaluation, spec.retrained, asked, "retrained")
            retrained[WORST] = worst_case(retrained)
    if spec.reference is not None:
        documents = EvaluationRows(members=rows.members, nonmembers=rows.nonmembers)
        reference = _other(evaluation, spec.reference, documents, "reference")
    return ReferenceModels(retrained, reference)


def _other(
    evaluation: Evaluation, name: str, rows: EvaluationRows, label: str
) -> dict[str, Measured]:
    """Measure another model, or the same base with another adapter, by prompt variant."""
    settings = evaluation.settings.model_copy(
        update={
            "max_new_tokens": 0,  # its answers are not used
            "mmlu": None,
            "lm_eval": [],
            "gradient_norm": False,
            "backend": "transformers",
        }
    )
    if (Path(name) / "adapter_config.json").is_file():
        return evaluation.varied(rows, settings).run_variants(Path(name), label)
    return evaluation.varied(rows, settings, base=name).run_variants(None, label)


def _stored(path: Path, membership: Membership) -> Measured | None:
    """Read ``answers/NAME.likelihoods.jsonl`` and the losses next to it.

    Losses without a unit of membership were written by an older version and are accepted.

    Raises:
        InputError: The file has another content, or the losses have another unit of membership.
    """
    if not path.name.endswith(".jsonl"):
        return None
    if not path.name.endswith(STORED):
        raise InputError(
            f"{path} is neither a model nor a file answers/NAME{STORED} of an evaluation."
        )
    losses = path.with_name(path.name.removesuffix(STORED) + ".losses.jsonl")
    found: list[DocumentLoss] = read_losses(losses) if losses.exists() else []
    unit = unit_of(losses) if found else ""
    if unit and unit != membership:
        raise InputError(
            f"{losses} judges membership by {unit}, and here it is judged by {membership}, so "
            f"PrivLeak cannot compare them. Use --membership {unit}, or evaluate the retrained "
            f"model again with --membership {membership}."
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
            f"{path} does not contain the likelihoods of an evaluation ({error}). Create it with "
            "`mergeforget evaluate --model M --forget F --out DIR`."
        ) from error
