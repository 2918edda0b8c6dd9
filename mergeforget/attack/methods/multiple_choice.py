"""Multiple choice: the true answer among plausible ones."""

from __future__ import annotations

import random
from typing import Any

from mergeforget.attack.comparing import alternatives, by_subject, compare
from mergeforget.attack.guessing import secret_logps
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Facts, NotApplicableError, Target, TargetModel
from mergeforget.attack.variants import Variant
from mergeforget.data.schema import Row

LETTERS = "ABCDEFGH"


@attack(
    "multiple_choice",
    source="Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, arXiv:2402.16835; "
    "form of the question as in MMLU, arXiv:2009.03300",
)
def multiple_choice(target: Target, *, options: int = 4) -> Result:
    """Show the true answer among answers of the same type, and compare the letters' likelihoods.

    Args:
        options: Number of answers shown, including the true one, 2 to 8.

    Raises:
        NotApplicableError: No row has enough alternatives.
    """
    target.need("forget")
    options = max(2, min(options, len(LETTERS)))
    pool = [*target.holdout, *target.forget]
    asked = [
        one for row in (*target.forget, *target.compared())
        if (one := _question(row, pool, options, target.seed))
    ]  # fmt: skip
    if not any(row in target.forget for row, _, _ in asked):
        raise NotApplicableError(
            f"No forget row has {options - 1} other answers of its type to show."
        )
    by_model = {m.role: [_hits(target, m, asked, options)] for m in target.measured_models()}
    settings = {"options": options, "seed": target.seed}
    return compare(target, "multiple_choice", by_model, ["all"], settings,
                   unit="of 1 (right choices)", what="the share of right choices")  # fmt: skip


def _question(row: Row, pool: list[Row], options: int, seed: int) -> tuple[Row, str, int] | None:
    """Return the row, its question with all options, and the index of the true one."""
    others = alternatives(row, pool, options - 1, seed)
    if len(others) < options - 1:
        return None
    draw = random.Random(f"{seed}-{row.id}")
    place = draw.randrange(options)
    shown = [*others[:place], row.output, *others[place:]]
    lines = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, shown, strict=False))
    return row, f"{row.input}\n{lines}Answer:", place


def _hits(
    target: Target, target_model: TargetModel, asked: list[tuple[Row, str, int]], options: int
) -> Facts:
    """Return the accuracy of one model by subject."""
    texts = [
        Variant(row, "", prompt, letter) for row, prompt, _ in asked for letter in LETTERS[:options]
    ]

    def work(model: Any, tokenizer: Any) -> Facts:
        logps = secret_logps(
            target, model, tokenizer, texts, label=f"{target_model.role}: multiple choice"
        )
        return {"logps": [sum(one) for one in logps]}

    rows = [Row(f"{i}", v.prompt, v.secret) for i, v in enumerate(texts)]
    logps = target.measured(target_model, "multiple_choice", {}, rows, work)["logps"]
    forgets = {id(row) for row in target.forget}
    by_split: dict[str, list[tuple[Row, float]]] = {"forget": [], "holdout": []}
    for i, (row, _, place) in enumerate(asked):
        of_row = logps[i * options : (i + 1) * options]
        right = float(max(range(options), key=of_row.__getitem__) == place)
        by_split["forget" if id(row) in forgets else "holdout"].append((row, right))
    return {
        s: by_subject([r for r, _ in some], [v for _, v in some]) for s, some in by_split.items()
    }
