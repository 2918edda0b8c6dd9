"""Describe the result of an unlearning job; ``evaluate.verdict`` decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.evaluate.verdict import ForgettingVerdict
    from mergeforget.evaluate.verdict_figures import EarlierAnswers
    from mergeforget.run import Run

KEPT = 0.8  # share of the retain answers known before that must remain


def table_of(run: Run, chosen: str) -> list[dict[str, Any]]:
    """Return the scores of base, over, under and the chosen merge on the report split."""
    from mergeforget.run import ANCHORS
    from mergeforget.score import find, read_scores

    scores = read_scores(run.scores)
    rows = []
    for name in (*ANCHORS, chosen):
        found = {
            key: find(scores.get(name, []), metric, split, part="report")
            for key, metric, split in (
                ("mia_auc", "mia_auc", "mia"),
                ("forget", "exact_match", "forget"),
                ("retain", "exact_match", "retain"),
            )
        }
        values = {k: None if s is None else s.value for k, s in found.items()}
        auc = found["mia_auc"]
        rows.append({"model": name, **values,
                     "auc_interval": None if auc is None else auc.interval})  # fmt: skip
    return rows


def table_text(table: Sequence[dict[str, Any]]) -> str:
    """Format the table as plain text."""
    names = {"base": "before", "over": "over", "under": "under"}
    lines = [f"{'':<28}{'MIA AUC':>22}{'forget answers':>16}{'retain answers':>16}"]
    for row in table:
        auc = "-" if row["mia_auc"] is None else f"{row['mia_auc']:.2f}"
        if row["auc_interval"]:
            auc += " [{:.2f}, {:.2f}]".format(*row["auc_interval"])
        shares = ["-" if row[k] is None else f"{row[k]:.0%}" for k in ("forget", "retain")]
        lines.append(f"{names.get(row['model'], row['model']):<28}{auc:>22}"
                     + "".join(f"{s:>16}" for s in shares))  # fmt: skip
    return "\n".join(lines)


def paragraph_of(
    verdict: ForgettingVerdict,
    table: Sequence[dict[str, Any]],
    earlier: Mapping[str, EarlierAnswers] | None = None,
) -> str:
    """Return the verdict with its reasons and the remaining answers as one paragraph.

    Args:
        table: Records of ``table_of``, the base first and the result last.
        earlier: Revealed answers of each earlier request.

    >>> from mergeforget.evaluate.verdict import judge
    >>> row = {"forget": 1.0, "retain": 1.0}
    >>> paragraph_of(judge([]), [row, row | {"retain": 0.5}])[:16]
    'NOT ENOUGH DATA:'
    """
    base, result = table[0], table[-1]
    text = [verdict.sentence]
    if result["forget"] is not None and base["forget"] is not None:
        text.append(
            f"{result['forget']:.0%} of the forget answers are repeated word for word, "
            f"{base['forget']:.0%} before."
        )
    if result["retain"] is not None and base["retain"]:
        share = result["retain"] / base["retain"]
        text.append(f"{share:.0%} of the retain answers known before are kept.")
        if share < KEPT - 1e-9:  # 0.72 / 0.9 is less than 0.8 in floating point
            text.append(f"This is less than the {KEPT:.0%} asked for: the model is damaged.")
    if earlier and all(one.asked and not one.share for one in earlier.values()):
        requests = "1 earlier request" if len(earlier) == 1 else f"{len(earlier)} earlier requests"
        text.append(f"The data of {requests} is still forgotten.")
    if verdict.uncertain:
        text.append(f"Uncertain: {' '.join(verdict.uncertain)}")
    return " ".join(text)


def answers_of(run: Run, chosen: str, shown: Mapping[str, int]) -> list[dict[str, str]]:
    """Return some answers of the base and of the chosen merge, side by side.

    Args:
        shown: Number of answers per set.
    """
    from mergeforget.files import read_jsonl, reading

    def lines_of(name: str) -> dict[str, dict[str, str]]:
        path = run.answers / f"{name}.jsonl"
        keys = ("id", "split", "input", "output", "completion")
        with reading(path):
            lines = [{key: str(line[key]) for key in keys} for line in read_jsonl(path)]
        return {line["id"]: line for line in lines}

    before, after = lines_of("base"), lines_of(chosen)
    rows: list[dict[str, str]] = []
    for split, count in shown.items():
        own = [line for key, line in before.items() if line["split"] == split and key in after]
        for line in sorted(own, key=lambda one: len(one["input"]))[:count]:
            now = after[line["id"]]["completion"]
            rows.append({
                "split": split, "prompt": line["input"], "expected": line["output"],
                "before": line["completion"].strip(), "after": now.strip(),
            })  # fmt: skip
    return rows
