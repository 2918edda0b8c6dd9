"""The verdict of an unlearning job: what speaks for and against "the data is forgotten"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.run import Run

EXACT = 0.05  # share of forget answers that may still be repeated
KEPT = 0.8  # share of the retain answers known before that must remain
BALANCED = (0.35, 0.65)  # AUC on the report split


def table_of(run: Run, chosen: str) -> list[dict[str, Any]]:
    """Base, over, under and the chosen merge on the report split."""
    from mergeforget.score import find, read_scores

    scores = read_scores(run.scores)
    rows = []
    for name in ("base", "over", "under", chosen):
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
    """The table as plain text."""
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


def findings_of(run: Run, name: str) -> dict[str, str]:
    """What each attack on the candidate found."""
    from mergeforget.attack.methods import ATTACKS
    from mergeforget.attack.result import read_results

    return {
        result.attack: result.finding
        for one in ATTACKS.names()
        for result in read_results(run.attacks, one)
        if getattr(result, "model", getattr(result, "subject", "")) == name
    }


def verdict_of(
    table: Sequence[dict[str, Any]],
    findings: Mapping[str, str],
    measurable: bool,
    earlier: Mapping[str, float] | None = None,
) -> tuple[str, str]:
    """The verdict and the paragraph that explains it.

    NOT FORGOTTEN where any evidence shows that the model still knows: an attack found traces, more
    than 5 % of the forget answers are repeated, or the interval of a measurable AUC lies above 0.5.
    FORGOTTEN only where every kind of evidence is there and none speaks against it: attacks that
    include ``prompts`` and ``relearn`` found nothing, and the base repeated answers that the result
    does not. Otherwise NOT ENOUGH DATA.

    >>> verdict_of([{"model": "base", "mia_auc": 1.0, "auc_interval": (0.9, 1.0), "forget": 1.0,
    ...              "retain": 1.0}] * 4, {}, True)[0]
    'NOT FORGOTTEN'
    """
    base, result = table[0], table[-1]
    guilty = [name for name, finding in findings.items() if finding == "traces"]
    against, missing = [], []
    if guilty:
        against.append(f"{', '.join(guilty)} found traces of the data")
    forget, before = result["forget"], base["forget"]
    if forget is None:
        missing.append("no answer was generated")
    elif forget > EXACT:
        against.append(f"{forget:.0%} of the forget answers are still repeated")
    auc, interval = result["mia_auc"], result["auc_interval"]
    low, high = interval or (auc, auc)
    if measurable and auc is not None and low is not None:
        if low > 0.5 and auc > BALANCED[1]:
            against.append(
                f"members are recognised (AUC {auc:.2f}, 95 % CI {low:.2f} to {high:.2f})"
            )
        elif not BALANCED[0] <= auc <= BALANCED[1]:
            missing.append(f"the AUC of {auc:.2f} is away from 0.5")
    for run, share in (earlier or {}).items():
        if share > EXACT:
            against.append(f"{share:.0%} of the answers that {run} forgot are back")
    cleared = [name for name, finding in findings.items() if finding == "none found"]
    doubtful = [name for name, finding in findings.items() if finding == "undecided"]
    if doubtful:
        missing.append(f"{', '.join(doubtful)} cannot be decided")
    lacking = [name for name in ("prompts", "relearn") if name not in cleared]
    if lacking and not doubtful:
        missing.append(f"{' and '.join(lacking)} did not clear the model")
    if before is not None and not before and (base["mia_auc"] or 0) < 0.6:
        missing.append("the model before did not show that it knew the rows")
    verdict = "NOT FORGOTTEN" if against else "NOT ENOUGH DATA" if missing else "FORGOTTEN"
    text = [f"{verdict}."]
    if against:
        text.append(f"{_sentence(against)}.")
    if missing and not against:
        text.append(f"{_sentence(missing)}.")
    if forget is not None and before is not None:
        text.append(f"{forget:.0%} of the forget answers are repeated, {before:.0%} before.")
    if measurable and auc is not None:
        text.append(
            f"Forget rows and unseen rows are told apart with AUC {auc:.2f} (0.5 is chance)."
        )
    if result["retain"] is not None and base["retain"]:
        share = result["retain"] / base["retain"]
        damage = (
            "" if share >= KEPT else " This is less than the 80 % asked for: the model is damaged."
        )
        text.append(f"{share:.0%} of the retain answers known before are kept.{damage}")
    if earlier and not any(share > EXACT for share in earlier.values()):
        text.append(f"What {len(earlier)} earlier runs forgot is still forgotten.")
    if cleared:
        text.append(f"No traces under {', '.join(cleared)}.")
    return verdict, " ".join(text)


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def answers_of(run: Run, chosen: str, shown: Mapping[str, int]) -> list[dict[str, str]]:
    """Some answers of the base and of the chosen merge, side by side.

    Args:
        shown: Number of answers of each set.
    """
    from mergeforget.files import read_jsonl

    before, after = (
        {line["id"]: line for line in read_jsonl(run.answers / f"{name}.jsonl")}
        for name in ("base", chosen)
    )
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
