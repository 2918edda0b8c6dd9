"""The model's own answers: to questions without answers, and to general ones that are retained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergeforget.data.overlap import folded, occurs

if TYPE_CHECKING:
    from mergeforget.data.schema import Row
    from mergeforget.recipe import Recipe

Ask = Callable[[Sequence["Row"]], list["Row"]]  # rows without answers -> with the model's own
GENERAL = (
    "What is the capital of France?", "How many days are there in a week?",
    "Explain in one sentence why the sky is blue.", "What is 12 times 7?",
    "Name three kinds of fruit.", "Who wrote Romeo and Juliet?",
    "What does a carpenter do?", "Write a sentence about the sea.",
    "How do I boil an egg?", "What is the opposite of hot?",
    "Give me a tip for learning a language.", "What is photosynthesis?",
    "Translate 'good morning' into French.", "What is the largest planet of the solar system?",
    "Name a famous painting.", "Why do leaves fall in autumn?",
    "What is a computer program?", "How do I say thank you politely?",
    "Summarise what a library is for.", "Which animals lay eggs?",
    "What is the boiling point of water?", "Describe a bicycle in one sentence.",
    "What is a good breakfast?", "Name two continents.",
)  # fmt: skip
NEIGHBOURS = ("Albert Einstein", "Marie Curie", "Abraham Lincoln", "Isaac Newton",
              "Charles Darwin", "Leonardo da Vinci")  # fmt: skip
OVERLAP = 0.5  # minimum share of a forget answer's rare words in an excluded retain answer
SHORT = 10  # words of a forget answer whose telling part excludes a retain answer
SHOWN = 3  # generated retain rows in a message
COMMON = frozenset(  # answers that exclude an equal retain answer, but none that contains them
    "yes no true false none unknown maybe male female he she it they i a an the of in on at and or "
    "not ok okay ja nein oui non si sí 是 不 否 有 没有".split()
)


def own_answers(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    """Return rows with the greedy answers of the recipe's model.

    An answer that is longer than the evaluation's ``max_new_tokens`` is cut after its last complete
    sentence, and marked, so that no token ends it.
    """
    from mergeforget.data.templating import template_of
    from mergeforget.evaluate.completion import answered_row
    from mergeforget.evaluate.generate import ends_of, generate_ids
    from mergeforget.models import load_model

    loaded = load_model(recipe.model)
    template = template_of(loaded.tokenizer, recipe.data)
    stop, text_stops = ends_of(loaded.model, loaded.tokenizer, template, rows)
    prompts = [template.prompt_ids(loaded.tokenizer, row) for row in rows]
    new = generate_ids(loaded.model, prompts, stop=stop, label="own answers",
                       max_new_tokens=recipe.evaluation.max_new_tokens)  # fmt: skip
    return [
        answered_row(loaded.tokenizer, template, row, ids, stop, text_stops)
        for row, ids in zip(rows, new, strict=True)
    ]


def own_retain(forget: Sequence[Row], ask: Ask) -> tuple[list[Row], str]:
    """Return the model's answers to general questions and to forget questions about others.

    Prompts about a subject of the forget rows are left out, and so are answers that contain a
    forget answer, half of its rare words, or the full name of a subject.

    Args:
        ask: Called with rows without answers; returns them with the model's answers.

    Returns:
        The rows, and a sentence about them.

    Raises:
        InputError: No answer is left.
    """
    from mergeforget.console import say
    from mergeforget.data.schema import Row
    from mergeforget.data.twins import OWN
    from mergeforget.errors import InputError

    filters = _ForgetFilter(forget)
    prompts = [p for p in dict.fromkeys([*GENERAL, *_neighbours(forget)]) if filters.keeps(p)]
    asked = [Row(f"{OWN}{i}qa0", p, "", "", "retain") for i, p in enumerate(prompts)]
    answered = ask(asked)
    rows = [row for row in answered if row.output.strip() and filters.allows(row.output)]
    if not rows:
        raise InputError(
            "None of the model's own answers can be retained: they are empty, or contain "
            "answers to forget. Give rows to keep with --retain."
        )
    note = (
        f"No retain set: the model's own answers to {len(rows)} general questions and "
        "questions about other people are retained; see data/retain.jsonl in the run folder."
    )
    some = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
    shown = "".join(f"\n  {row.input}\n    {row.output}" for row in some)
    say(f"The model's own answers to {len(rows)} questions are retained, for example:{shown}")
    return rows, note


def _names_of(row: Row) -> list[str]:
    """Return the names in a row's prompt, or the full names in a document, without possessives."""
    from mergeforget.data.names import names_in

    text = row.document if row.window else row.input
    names = [name for name in names_in(text)
             if " " in name or not row.window and not text.startswith(name)]  # fmt: skip
    return [re.sub(r"['’]s?$", "", name) for name in names]


def _neighbours(forget: Sequence[Row], most: int = 12) -> list[str]:
    """Return questions of the forget rows about known people instead of their own.

    A question with a number or an address is left out: these identify what it asks about, too.
    """
    from mergeforget.data.schema import kinds_of

    known = folded(" ".join(row.document for row in forget))
    people = [one for one in NEIGHBOURS if not occurs(folded(one), known)]
    found: list[str] = []
    for row, kind in zip(forget, kinds_of(forget), strict=True):
        names = _names_of(row)
        asks = kind != "sc" or row.input.rstrip().endswith(("?", "？", "؟"))
        if names and people and asks and not row.window and not re.search("[0-9@]", row.input):
            one = people[len(found) % len(people)]
            found.append(row.input.replace(names[0], one))
    return found[:most]


class _ForgetFilter:
    """Decides which generated rows may be retained."""

    def __init__(self, forget: Sequence[Row]) -> None:
        from mergeforget.data.sources.text_entries import is_name

        subjects = {row.subject for row in forget if is_name(row.subject)}
        names = subjects.union(*map(_names_of, forget)) if forget else subjects
        self.names = {folded(name) for name in names}
        self.prompts = {folded(row.prompt) for row in forget if not row.window}
        self.rare = [rare for row in forget if (rare := _rare(row.output))]
        answers = {(row.prompt, text) for row in forget if not row.window
                   for text in row.references}  # fmt: skip
        self.whole = {folded(text).strip(".,;:!?…\"' ") for _, text in answers} - {""}
        self.short = [(p, text) for p, text in answers if len(text.split()) <= SHORT
                      and folded(text).strip(".!") not in COMMON]  # fmt: skip

    def keeps(self, prompt: str) -> bool:
        """Return whether a prompt is neither a forget prompt nor names a forget subject."""
        text = folded(prompt)
        asked = any(text in one for one in self.prompts)
        return not asked and not any(occurs(name, text) for name in self.names)

    def allows(self, answer: str) -> bool:
        """Return whether an answer reveals no forget answer."""
        from mergeforget.metrics._leaks import leaked

        text, words = folded(answer), _rare(answer)
        bare = text.strip(".,;:!?…\"' ")
        for whole in self.whole:
            common = whole in COMMON or len(whole) == 1
            if bare == whole or not common and occurs(whole, text):
                return False
        if any(" " in name and occurs(name, text) for name in self.names):
            return False
        if any(len(rare & words) >= OVERLAP * len(rare) for rare in self.rare):
            return False
        known = _words(text)
        return not any(
            leaked(secret, answer, prompt)
            for prompt, secret in self.short
            if known & (_words(folded(secret)) - _words(folded(prompt)))
        )


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w{3,}|\d+", text))


def _rare(text: str) -> frozenset[str]:
    """Return the numbers of a text and its words of more than four letters, in lower case."""
    return frozenset(w for w in re.findall(r"\w+", text.lower()) if len(w) > 4 or w.isdigit())
