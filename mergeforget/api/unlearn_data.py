"""Reads the rows of an unlearning request, and generates the sets that are missing."""

from __future__ import annotations

import re
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

QUESTIONS = (  # about one name; the model must forget its own answers to them
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
FAIR = 0.15  # maximum distance from 0.5 of the AUC of twins under a model without the data
OVERLAP = 0.5  # minimum share of a forget answer's rare words in an excluded retain answer


@dataclass
class RequestRows:
    """The three sets of a request.

    Attributes:
        notes: One sentence for each generated set.
        twins: Whether the holdout set is made of perturbed twins.
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
    columns: Mapping[str, str] | None = None,
) -> RequestRows:
    """Read the rows of a request, and ask the model for missing answers and retain rows.

    Args:
        forget: A data file; a ``.txt`` file or a list of names, questions or documents; or a list
            of rows. Questions without answers get the model's own answers.
        ask: Called with prompts; returns the model's answers.
        turns: Assistant turns of a conversation that become rows.
        columns: Names of columns in the files by our names.

    Raises:
        InputError: A file cannot be read, or contains nothing to forget.
    """
    from mergeforget.data.readers import read_rows

    notes: list[str] = []
    rows = read_forget(forget, ask, notes, turns, columns)
    retain_rows = (
        read_rows(Path(retain), split="retain", turns=turns, columns=columns)
        if retain is not None
        else own_retain_rows(rows, ask, notes)
    )
    outside = []
    if holdout is not None:
        outside = read_rows(Path(holdout), split="holdout", turns=turns, columns=columns)
    check_not_in(rows, retain_rows, "retain")
    check_not_in(rows, outside, "holdout")
    return RequestRows(rows, retain_rows, outside, notes, twins=not outside)


def rows_of_texts(texts: Sequence[str], ask: Ask, notes: list[str]) -> list[Row]:
    """Return rows for texts, each of which is a name, a question or a document.

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
    """Return whether a text looks like a name: at most five words without a final full stop."""
    return 0 < len(text.split()) <= 5 and not text.rstrip().endswith((".", "!", "。", ":"))


def own_retain_rows(forget: Sequence[Row], ask: Ask, notes: list[str]) -> list[Row]:
    """Return the model's answers to general questions, and to forget questions about others.

    Answers that contain half of the rare words of a forget answer are excluded.
    """
    from mergeforget.data.schema import Row
    from mergeforget.data.twins import names_in

    neighbours = []
    for i, row in enumerate(forget):
        names = names_in(row.input)
        if names and row.kind != "sc":
            neighbours.append(row.input.replace(names[0], NEIGHBOURS[i % len(NEIGHBOURS)]))
    prompts = list(dict.fromkeys([*GENERAL, *neighbours[:12]]))
    answers = ask(prompts)
    secret = [_rare(row.output) for row in forget]
    rows = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        words = _rare(answer)
        if answer.strip() and not any(s and len(s & words) >= OVERLAP * len(s) for s in secret):
            rows.append(Row(f"own{i}qa0", prompt, answer.strip(), "", "retain"))
    notes.append(
        f"No retain set: the model's own answers to {len(rows)} general questions and questions "
        "about other people are retained; see data/retain.jsonl in the run folder."
    )
    return rows


def read_forget(
    forget: Forget,
    ask: Ask,
    notes: list[str],
    turns: Turns,
    columns: Mapping[str, str] | None = None,
) -> list[Row]:
    """Read the rows to forget, and ask the model for missing answers; see :func:`read_request`."""
    from mergeforget.data.readers import read_records, read_rows
    from mergeforget.data.schema import Row
    from mergeforget.errors import InputError

    if isinstance(forget, str | Path):
        path = Path(forget)
        if path.suffix.lower() in (".txt", ".md"):
            texts = _texts(path)
            return _check_not_empty(rows_of_texts(texts, ask, notes), str(path))
        records = [record for _, record in read_records(path)] if path.suffix else []
        questions = _questions(records, columns or {}, path)
        if questions:
            return _check_not_empty(rows_of_texts(questions, ask, notes), str(path))
        return read_rows(path, split="forget", turns=turns, columns=columns)
    items = list(forget)
    if all(isinstance(item, str) for item in items):
        return _check_not_empty(
            rows_of_texts([str(item) for item in items], ask, notes), "the list"
        )
    made = []
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(f"Item {i} of forget is neither a text nor a row: {item!r}.")
        prompt = item.get("input") or item.get("question") or item.get("prompt")
        answer = item.get("output") or item.get("answer") or item.get("completion")
        if not prompt or not answer:
            raise InputError(f"Item {i} of forget has no prompt or no answer: {dict(item)!r}.")
        made.append(Row(str(item.get("id", f"row{i}qa0")), str(prompt), str(answer), "", "forget"))
    return _check_not_empty(made, "the list")


LABELS = frozenset(  # columns of a table of questions that are no answers
    "id subject task split weight category type topic source author language index".split()
)


def _questions(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, str], path: Path
) -> list[str]:
    """Return the prompts of records without an answer column; empty if there is one.

    Args:
        columns: Names of columns by our names.

    Raises:
        InputError: A column may hold the answers, but its name is unknown.
    """
    from mergeforget.errors import InputError

    answers = {"output", "answer", "completion", "response", "messages", "conversations", "text"}
    if not records or any(answers & record.keys() for record in records):
        return []
    if columns.keys() & answers:
        return []
    usual = ["question", "input", "prompt", "name"]
    prompts = [columns["input"]] if "input" in columns else usual
    questions = [next((str(r[p]) for p in prompts if r.get(p)), "") for r in records]
    if not all(questions):
        return []
    known = {*prompts, *LABELS, *columns.values()}
    others = dict.fromkeys(n for record in records for n, v in record.items() if v and
                           n.lower() not in known and n not in known)  # fmt: skip
    if others:
        names = ", ".join(map(repr, others))
        raise InputError(
            f"{path} has questions, but no known column of answers: {names} would not be read. If "
            f"it holds the answers, give --set data.columns.output={next(iter(others))}; if the "
            "model's own answers are to be forgotten, remove it from the file."
        )
    return questions


def _texts(path: Path) -> list[str]:
    """Return the paragraphs of a text file, or its lines if it has no blank line."""
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


def _check_not_empty(rows: list[Row], place: str) -> list[Row]:
    from mergeforget.errors import InputError

    if not rows:
        raise InputError(f"There is nothing to forget in {place}.")
    return rows


def _rare(text: str) -> frozenset[str]:
    """Return the numbers of a text and its words of more than four letters, in lower case."""
    return frozenset(w for w in re.findall(r"\w+", text.lower()) if len(w) > 4 or w.isdigit())


def check_not_in(forget: Sequence[Row], others: Sequence[Row], name: str) -> None:
    """Raise InputError if other rows contain forget rows.

    Args:
        name: Name of the other rows in the message.
    """
    from mergeforget.data.overlap import plain_text
    from mergeforget.errors import InputError

    known = set(map(plain_text, forget))
    shared = [row.id for row in others if plain_text(row) in known]
    if shared:
        raise InputError(
            f"{len(shared)} {name} rows are also forget rows, for example {shared[0]}. Remove them "
            f"from the {name} set: a row cannot be both forgotten and retained."
        )


def renamed(rows: Sequence[Row], split: str) -> list[Row]:
    """Return the rows with the name of a split."""
    return [replace(row, split=split) for row in rows]


def own_answers(recipe: Recipe, prompts: Sequence[str], tokens: int = 48) -> list[str]:
    """Return the greedy answers of the recipe's model to prompts."""
    from mergeforget.data.templating import template_of
    from mergeforget.evaluate.generate import generate
    from mergeforget.models import load_model

    loaded = load_model(recipe.model)
    template = template_of(loaded.tokenizer, recipe.data)
    return generate(loaded.model, loaded.tokenizer, list(prompts), template=template,
                    max_new_tokens=tokens, label="own answers")  # fmt: skip


def twins_auc(
    recipe: Recipe, model: str, forget: Sequence[Row], twins: Sequence[Row]
) -> float | None:
    """Return the AUC of forget rows against their twins under a model; None without twins.

    Args:
        model: Hub id or folder.
    """
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.models import load_model
    from mergeforget.train.levels import auc_of
    from mergeforget.train.nlls import read_nlls

    if not twins:
        return None
    loaded = load_model(recipe.model.model_copy(update={"name": model}))
    template = template_of(loaded.tokenizer, recipe.data)
    members, nonmembers = (
        read_nlls(
            loaded.model,
            encode_rows(loaded.tokenizer, rows[:64], max_length=256, template=template),
        )[0]
        for rows in (forget, twins)
    )
    return auc_of(members, nonmembers)


def check_rows(recipe: Recipe, rows: RequestRows, request: dict[str, Any]) -> dict[str, Any]:
    """Measure whether the base knows the forget rows, its speed, and whether twins are fair.

    Returns:
        ``answer_tokens``, the length of the longest answer; ``expected``, the seconds of each stage
        and attack; ``notes``; and ``membership``, ``measurable`` or ``not measurable``.
    """
    from mergeforget.api.job import ATTACKS, expected_seconds, seconds_per_row
    from mergeforget.console import duration, say
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.data.twins import nonmember_twins
    from mergeforget.models import load_model
    from mergeforget.outputs import ANSWER
    from mergeforget.train.levels import auc_of
    from mergeforget.train.nlls import read_nlls

    loaded = load_model(recipe.model)
    template = template_of(loaded.tokenizer, recipe.data)
    outside = rows.holdout or nonmember_twins(rows.forget, corpus=rows.retain, seed=1)

    def encoded(rows: Sequence[Any]) -> Any:
        return encode_rows(loaded.tokenizer, rows, max_length=256, template=template)

    forget, unseen = encoded(rows.forget[:64]), encoded(outside[:64])
    nll, exact = read_nlls(loaded.model, forget)
    auc = auc_of(nll, read_nlls(loaded.model, unseen)[0]) if unseen else None
    notes = []
    control = request["control"]
    unseen_data = request["memorise"] or control == request["model"]
    if rows.twins and control and not unseen_data:
        auc_of_control = twins_auc(recipe, control, rows.forget, outside)
    else:
        auc_of_control = auc if unseen_data else None
    if rows.twins and auc_of_control is not None:
        fair = abs(auc_of_control - 0.5) <= FAIR
        how = "as likely as" if fair else "not as likely as"
        notes.append(f"Control of the twins: under a model that never saw the data, they are {how} "
                     f"the forget rows (AUC {auc_of_control:.2f}).")  # fmt: skip
    else:
        fair = not rows.twins
    if not unseen_data and auc is not None and auc < 0.6 and not exact.any():
        notes.append(f"The model does not seem to know the forget rows: AUC {auc:.2f}, and none of "
                     f"{len(forget)} answers is repeated.")  # fmt: skip
    if len({row.subject for row in rows.forget}) == 1 < len(rows.forget):
        notes.append("All forget rows are about one subject: intervals count it as one document, "
                     "and its membership says nothing about other people.")  # fmt: skip
    lengths = [one.kinds.count(ANSWER) for one in encoded([*rows.forget, *rows.retain])]
    pace = seconds_per_row(loaded.model, forget)
    expected = expected_seconds(recipe, rows, bool(request["memorise"]), pace)
    total = sum(s for stage, s in expected.items() if stage not in ATTACKS)
    say(f"Estimate: about {duration(total)} without attacks.")
    for note in notes:
        say(note)
    return {"answer_tokens": max(lengths), "expected": expected, "notes": notes,
            "membership": "measurable" if fair else "not measurable"}  # fmt: skip
