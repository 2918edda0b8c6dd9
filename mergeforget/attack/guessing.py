"""Estimates how well a model that never saw the data guesses a secret after a prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mergeforget.attack.target import Facts, Target
from mergeforget.attack.variants import Variant
from mergeforget.attack.verdict import GREEDY
from mergeforget.data.schema import Row
from mergeforget.data.templating import PromptTemplate
from mergeforget.errors import NumericError
from mergeforget.evaluate.likelihood import likelihoods
from mergeforget.metrics._core import parts_that_reveal
from mergeforget.metrics._leaks import WINDOW
from mergeforget.metrics._short_answers import short_words
from mergeforget.metrics._spellings import length

SHOTS = 3  # retained examples before a prompt
NOT_FINITE = (
    "The likelihoods of a model are not numbers: its weights contain NaN or Inf, or overflow in "
    "its dtype. Load it in float32, or train it again with a smaller learning rate."
)


def as_rows(asked: Sequence[Variant]) -> list[Row]:
    """Return rows that identify the prompts, for the key of a cached measurement."""
    forms = [v.way if v.system is None else json.dumps([v.way, v.system]) for v in asked]
    return [
        Row(f"{i} {form}", v.text, v.start, window=v.row.window if v.prompt == v.row.input else "")
        for i, (form, v) in enumerate(zip(forms, asked, strict=True))
    ]


def examples_of(target: Target, n: int = SHOTS) -> str:
    """Return the shortest retain rows of different subjects as examples to put before a prompt."""
    short = sorted(target.retain, key=lambda r: (r.kind != "qa", len(r.document)))
    shown, subjects = [], set[str]()
    for row in short:
        if row.subject not in subjects:
            shown.append(row)
            subjects.add(row.subject)
    return "".join(f"{row.document}\n\n" for row in shown[:n])


def guess_chances(target: Target, name: str, asked: Sequence[Variant]) -> list[float]:
    """Return the chance that a model without the data guesses each secret, in [0, 1].

    This is the control's probability of the secret after the prompt, alone or preceded by three
    retained examples that show the form of an answer, whichever is larger. For a secret longer than
    ``WINDOW`` words, it is that of the most probable sequence of ``WINDOW`` words. If a part of the
    secret reveals it, such as the name of a city in a sentence, it is the probability of that part
    given the words before it. The value is doubled, because greedy decoding emits a likely answer
    more often than its probability.
    """
    assert target.control is not None
    front = examples_of(target)
    variants = [replace(v, prompt=before + v.prompt) for before in dict.fromkeys(("", front))
             for v in asked]  # fmt: skip

    def work(model: Any, tokenizer: Any) -> Facts:
        logps = secret_logps(target, model, tokenizer, variants,
                             label=f"control: how well {name} can be guessed")  # fmt: skip
        own = target.template(tokenizer)
        return {"chances": [
            max(_window_chance(one, v.secret), _part_chance(one, v, tokenizer, own))
            for one, v in zip(logps, variants, strict=True)
        ]}  # fmt: skip

    rows = [replace(row, output=f"{row.output} {v.secret}")
            for row, v in zip(as_rows(variants), variants, strict=True)]  # fmt: skip
    chances = target.measured(target.control, f"{name}-guess", {"parts": True}, rows, work)[
        "chances"
    ]
    n = len(asked)
    return [min(1.0, GREEDY * max(chances[i::n])) for i in range(n)]


def _window_chance(logps: Sequence[float], secret: str) -> float:
    words = length(secret.split())
    size = len(logps) if words <= WINDOW else max(1, round(len(logps) * WINDOW / words))
    sums = np.convolve(np.asarray(logps, float), np.ones(size), "valid") if len(logps) else [0.0]
    return math.exp(min(0.0, float(np.max(sums))))


def _part_chance(logps: Sequence[float], v: Variant, tokenizer: Any, own: PromptTemplate) -> float:
    """Return the probability of the most probable part that reveals a secret; 0 without any."""
    parts = [[span] for span in parts_that_reveal(v.secret)]
    short = short_words(v.secret, v.text)
    parts += [list(short)] if short else []
    if not parts:
        return 0.0
    ids = v.tokens(tokenizer, own)[1]
    ends = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    offset = max(0, tokenizer.decode(ids).find(v.secret))
    starts = [0, *ends[:-1]]
    sums = [
        sum(logp for logp, a, b in zip(logps, starts, ends, strict=True)
            if any(a < offset + end and b > offset + start for start, end in spans))
        for spans in parts
    ]  # fmt: skip
    return math.exp(min(0.0, max(sums)))


def secret_logps(
    target: Target, model: Any, tokenizer: Any, asked: Sequence[Variant], *, label: str = ""
) -> list[list[float]]:
    """Return the log-probability of each token of a secret after its prompt, in nats.

    Raises:
        NumericError: One of them is not a number.
    """
    own = target.template(tokenizer)
    pairs = [v.tokens(tokenizer, own) for v in asked]
    scored = likelihoods(
        model,
        [[*prompt, *secret] for prompt, secret in pairs],
        starts=[len(prompt) for prompt, _ in pairs],
        batch_tokens=target.batch_tokens,
        label=label,
    )
    if any(np.isnan(one.logps).any() for one in scored):
        raise NumericError(NOT_FINITE)
    return [one.logps.tolist() for one in scored]
