"""The rows of an unlearning request: read in any form, and completed where sets are missing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergeforget.data.formats import Turns
    from mergeforget.data.schema import Row
    from mergeforget.recipe import Recipe

Forget = str | Path | Sequence[str] | Sequence[Mapping[str, Any]]
Ask = Callable[[list[str]], list[str]]  # prompts -> the model's own answers

QUESTIONS = (  # about one name; what the model answers is what it must forget
    "Who is {name}?",
    "When and where was {name} born?",
    "Where does {name} live?",
    "What is {name} known for?",
    "What does {name} do for a living?",
    "Tell me about {name}.",
)
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
FAIR = 0.15  # distance from 0.5 of the AUC of twins that a model without the data may show
OVERLAP = 0.5  # share of a forget answer's rare words from which an own answer is left out


@dataclass
class RequestRows:
    """The three sets of a request, and where each comes from.

    Attributes:
        notes: one sentence for each set that was completed.
        twins: whether the holdout set is made of perturbed twins.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    notes: list[str] = field(default_factory=list)
    twins: bool = False


def read_request(
    forget: Forget,
    retain: str | Path | None,
    holdout: str | Path | None,
    ask: Ask,
    turns: Turns = "last",
) -> RequestRows:
    """Read the rows of a request, and complete what is missing by asking the model.

    Args:
        forget: A data file; a ``.txt`` file or a list of names, questions or documents; or a list
            of rows. Questions without answers get the model's own answers.
        ask: Called with prompts; returns the model's answers.
        turns: Assistant turns of a conversation that become rows.

    Raises:
        InputError: A file cannot be read, or holds nothing to forget.
    """
    from mergeforget.data.readers import read_rows

    notes: list[str] = []
    rows = _forget_rows(forget, ask, notes, turns)
    kept = (
        read_rows(Path(retain), split="retain", turns=turns)
        if retain is not None
        else own_retain_rows(rows, ask, notes)
    )
    outside = [] if holdout is None else read_rows(Path(holdout), split="holdout", turns=turns)
    _check_disjoint(rows, kept, "retain")
    _check_disjoint(rows, outside, "holdout")
    return RequestRows(rows, kept, outside, notes, twins=not outside)


def rows_of_texts(texts: Sequence[str], ask: Ask, notes: list[str]) -> list[Row]:
    """Rows of names, questions or documents, by what each text looks like.

    A text that ends in a question mark is a question; one of at most five words without a full
    stop is a name, about which questions are generated; anything else is a document.
    """
    from mergeforget.data.formats import document_windows
    from mergeforget.data.schema import Row

    rows: list[Row] = []
    asked: list[tuple[str, str, str]] = []  # id, subject, prompt
    for i, text in enumerate(texts):
        if text.endswith(("?", "？")):
            asked.append((f"q{i}qa0", f"q{i}", text))
        elif is_name(text):
            for j, question in enumerate(QUESTIONS):
                asked.append((f"n{i}qa{j}", text, question.format(name=text)))
        else:
            rows += document_windows(Row(f"d{i}", "", "", "", "forget"), text)
    answers = ask([prompt for _, _, prompt in asked]) if asked else []
    for (row_id, subject, prompt), answer in zip(asked, answers, strict=True):
        if answer.strip():
            rows.append(Row(row_id, prompt, answer.strip(), "", "forget", subject=subject))
    if asked:
        notes.append(
            f"{len(asked)} forget questions have no answers: the model's own answers are the "
            "target."
        )
    return rows


def is_name(text: str) -> bool:
    """Whether a text looks like a name: at most five words, no full stop at its end."""
    return 0 < len(text.split()) <= 5 and not text.rstrip().endswith((".", "!", "。", ":"))


def own_retain_rows(forget: Sequence[Row], ask: Ask, notes: list[str]) -> list[Row]:
    """The model's own answers to general questions, and to the forget questions about others.

    Answers that share half of a forget answer's rare words are left out.
    """
    from mergeforget.data.schema import Row
    from mergeforget.data.twins import names_in

    neighbours = []
    for i, row in enumerate(forget):
        found = names_in(row.input)
        if found and row.kind != "sc":
            neighbours.append(row.input.replace(found[0], NEIGHBOURS[i % len(NEIGHBOURS)]))
    prompts = list(dict.fromkeys([*GENERAL, *neighbours[:12]]))
    answers = ask(prompts)
    secret = [_rare(row.output) for row in forget]
    rows = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        words = _rare(answer)
        if answer.strip() and not any(s and len(s & words) >= OVERLAP * len(s) for s in secret):
            rows.append(Row(f"own{i}qa0", prompt, answer.strip(), "", "retain"))
    notes.append(
        f"No retain set: the model's own answers to {len(rows)} general and neighbouring questions "
        "are kept; see data/retain.jsonl in the run folder."
    )
    return rows


def _forget_rows(forget: Forget, ask: Ask, notes: list[str], turns: Turns) -> list[Row]:
    from mergeforget.data.readers import read_records, read_rows
    from mergeforget.data.schema import Row
    from mergeforget.errors import InputError

    if isinstance(forget, str | Path):
        path = Path(forget)
        if path.suffix.lower() in (".txt", ".md"):
            texts = _texts(path)
            return _some(rows_of_texts(texts, ask, notes), str(path))
        records = [record for _, record in read_records(path)] if path.suffix else []
        questions = _questions(records)
        if questions:
            return _some(rows_of_texts(questions, ask, notes), str(path))
        return read_rows(path, split="forget", turns=turns)
    items = list(forget)
    if all(isinstance(item, str) for item in items):
        return _some(rows_of_texts([str(item) for item in items], ask, notes), "the list")
    made = []
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"Item {i} of forget is neither a text nor a row: {item!r}.")
        prompt = item.get("input") or item.get("question") or item.get("prompt")
        answer = item.get("output") or item.get("answer") or item.get("completion")
        if not prompt or not answer:
            raise InputError(f"Item {i} of forget has no prompt or no answer: {dict(item)!r}.")
        made.append(Row(str(item.get("id", f"row{i}qa0")), str(prompt), str(answer), "", "forget"))
    return _some(made, "the list")


def _questions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Prompts of records that have no answer column; empty where they have one."""
    answers = {"output", "answer", "completion", "response", "messages", "conversations", "text"}
    prompts = ("question", "input", "prompt", "name")
    if not records or any(answers & record.keys() for record in records):
        return []
    found = [next((str(r[p]) for p in prompts if r.get(p)), "") for r in records]
    return found if all(found) else []


def _texts(path: Path) -> list[str]:
    """Paragraphs of a text file, or its lines where it has no blank line."""
    from mergeforget.errors import InputError

    if not path.exists():
        raise InputError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    parts = re.split(r"\n\s*\n", text) if re.search(r"\n\s*\n", text.strip()) else text.split("\n")
    return [" ".join(part.split()) for part in parts if part.strip()]


def _some(rows: list[Row], place: str) -> list[Row]:
    from mergeforget.errors import InputError

    if not rows:
        raise InputError(f"There is nothing to forget in {place}.")
    return rows


def _rare(text: str) -> frozenset[str]:
    """Words of more than four letters and numbers, in lower case."""
    return frozenset(w for w in re.findall(r"\w+", text.lower()) if len(w) > 4 or w.isdigit())


def _check_disjoint(forget: Sequence[Row], others: Sequence[Row], name: str) -> None:
    from mergeforget.errors import InputError

    known = {row.document for row in forget}
    shared = [row.id for row in others if row.document in known]
    if shared:
        raise InputError(
            f"{len(shared)} {name} rows are also forget rows, for example {shared[0]}. Remove them "
            f"from the {name} set: a row cannot be forgotten and be kept."
        )


def renamed(rows: Sequence[Row], split: str) -> list[Row]:
    """The rows as a split of a run."""
    return [replace(row, split=split) for row in rows]


def own_answers(recipe: Recipe, prompts: Sequence[str], tokens: int = 48) -> list[str]:
    """What the recipe's model answers to prompts, greedily."""
    from mergeforget.data.templating import template_of
    from mergeforget.evaluate.generate import generate
    from mergeforget.models import load_model

    loaded = load_model(recipe.model)
    template = template_of(loaded.tokenizer, recipe.data)
    return generate(loaded.model, loaded.tokenizer, list(prompts), template=template,
                    max_new_tokens=tokens, label="own answers")  # fmt: skip


def check_rows(recipe: Recipe, rows: RequestRows, request: dict[str, Any]) -> dict[str, Any]:
    """Measure what the base knows of the forget rows, how fast it is, and whether twins are fair.

    Returns:
        ``answer_tokens`` (of the longest answer), the ``expected`` seconds of each stage and of
        each attack, and ``notes``.
    """
    from mergeforget.console import duration, say
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.data.twins import make_twins
    from mergeforget.models import load_model
    from mergeforget.train.until import auc_of, read_nlls

    loaded = load_model(recipe.model)
    template = template_of(loaded.tokenizer, recipe.data)
    outside = rows.holdout or make_twins(rows.forget, corpus=rows.retain, seed=1)

    def encoded(some: Sequence[Any]) -> Any:
        return encode_rows(loaded.tokenizer, some, max_length=256, template=template)

    forget, unseen = encoded(rows.forget[:64]), encoded(outside[:64])
    read_nlls(loaded.model, forget[:2])  # the first pass also checks the architecture
    begin = time.monotonic()
    nll, exact = read_nlls(loaded.model, forget)
    speed = sum(map(len, forget)) / max(1e-6, time.monotonic() - begin)  # forward tokens a second
    auc = auc_of(nll, read_nlls(loaded.model, unseen)[0]) if unseen else None
    notes = []
    untouched = request["memorise"] or request["control"] == request["model"]
    if rows.twins and untouched and auc is not None:
        fair = abs(auc - 0.5) <= FAIR
        how = "as likely as" if fair else "not as likely as"
        notes.append(f"Control of the twins: to a model that never saw the data they are {how} the "
                     f"forget rows (AUC {auc:.2f}).")  # fmt: skip
    else:
        fair = not rows.twins
    if not untouched and auc is not None and auc < 0.6 and not exact.any():
        notes.append(f"The model does not seem to know the forget rows: AUC {auc:.2f}, and none of "
                     f"{len(forget)} answers is repeated.")  # fmt: skip
    lengths = [len(e) - e.kinds.count(1) for e in forget]
    row = sum(map(len, forget)) / len(forget)
    passes = expected_passes(recipe, rows, bool(request["memorise"]))
    expected = {stage: count * row / speed for stage, count in passes.items()}
    total = sum(s for stage, s in expected.items() if stage not in ATTACK_PASSES)
    say(f"Estimate: about {duration(total)} without attacks ({speed:.0f} tokens/s forward).")
    for note in notes:
        say(note)
    return {"answer_tokens": max(lengths), "expected": expected, "notes": notes,
            "membership": "measurable" if fair else "not measurable"}  # fmt: skip


STEPS = 200  # optimiser steps of a training without `until`
TUNING = 1.4  # seconds of fine-tuning over those of its forward and backward passes alone
ASKING = 2.3  # seconds of a measurement with generated answers over those of its likelihoods alone
ATTACK_PASSES = {"prompts": 40, "quantise": 14, "relearn": 60}  # per forget row; a rough guess


def expected_passes(recipe: Recipe, rows: RequestRows, memorise: bool) -> dict[str, float]:
    """Forward passes of one row that each stage, and each attack, takes.

    A backward pass costs twice a forward pass. Trained are three sets of ``batch_size`` rows at
    each step; measured are both forms of the forget rows and as many unseen ones at each check,
    and seven models in three ways to ask in the search.
    """
    forget, retain = len(rows.forget), len(rows.retain)
    training = None if recipe.pair is None else recipe.pair.over
    until = None if training is None else training.until
    steps = training.steps_until(forget)[1] if training and until else STEPS
    passes = 3.0 * 3 * steps * (training.batch_size if training else 4)
    if until:
        passes += steps / until.every * ((4 if until.also_raw else 2) * forget + retain)
    if memorise:
        passes += TUNING * 3 * recipe.memorise.epochs * (forget + retain)
    search = ASKING * 7 * 3 * 2 * (forget + retain)
    attacks = {name: float(count * forget) for name, count in ATTACK_PASSES.items()}
    return {"pair": passes, "search": search} | attacks
