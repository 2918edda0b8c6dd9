"""Draw docs/figures/balance.png from docs/study/main-search.json: the picture of the README.

python docs/figures/balance.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLORS = {"base": "#6b7280", "over": "#c2570c", "under": "#1d6fb8", "merge": "#0f8f6b"}
MODELS = ("base", "over", "under", "ties-factors-d0.80")


def auc_by_density(axis: Any, scores: dict[str, Any]) -> None:
    """Membership AUC of the merge at each density, between its over and its under adapter."""
    for name, style in (("base", ":"), ("over", "--"), ("under", "-.")):
        value = scores[name]["all"]["mia_auc/mia"][0]
        axis.axhline(value, color=COLORS[name], linestyle=style, linewidth=2, label=name)
    merges = sorted(name for name in scores if name.startswith("ties"))
    densities = [float(name.rpartition("d")[2]) for name in merges]
    value, _, low, high = zip(*(scores[m]["all"]["mia_auc/mia"] for m in merges), strict=True)
    bars = [[v - a for v, a in zip(value, low, strict=True)],
            [b - v for v, b in zip(value, high, strict=True)]]  # fmt: skip
    axis.errorbar(densities, value, bars, color=COLORS["merge"], marker="o", linewidth=2,
                  capsize=3, label="TIES merge, 95 % CI")  # fmt: skip
    axis.axhline(0.5, color="black", linewidth=1)
    axis.text(0.165, 0.515, "chance", fontsize=9)
    axis.set(xlabel="density (fraction of entries kept)", ylabel="membership ROC AUC",
             xlim=(0.15, 1.03), ylim=(0.15, 1.05))  # fmt: skip
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=4, fontsize=9, frameon=False)


def answers(axis: Any, scores: dict[str, Any]) -> None:
    """Questions that each model answers word for word."""
    for offset, (split, color) in enumerate((("forget", "#111827"), ("retain", "#9ca3af"))):
        values = [scores[name]["all"][f"exact_match/{split}"][0] for name in MODELS]
        places = [i + 0.38 * offset - 0.19 for i in range(len(MODELS))]
        axis.bar(places, values, 0.36, color=color, label=f"{split} questions")
        for x, value in zip(places, values, strict=True):
            axis.text(x, value + 0.02, f"{value:.0%}", ha="center", fontsize=7)
    names = ["base", "over", "under", "merge,\ndensity 0.8"]
    axis.set(ylabel="answered word for word", ylim=(0, 1.1))
    axis.set_xticks(range(len(MODELS)), names)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2, fontsize=9, frameon=False)


def main() -> None:
    found = json.loads((HERE.parent / "study" / "main-search.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
    auc_by_density(left, found["measured"]["scores"])
    answers(right, found["measured"]["scores"])
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "balance.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
