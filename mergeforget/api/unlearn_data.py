"""Reads the rows of an unlearning request, and generates the sets that are missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.data.overlap import folded, occurs

if TYPE_CHECKING:
    from mergeforget.data.formats import Turns
    from mergeforget.data.schema import Row
    from mergeforget.recipe import Recipe

Forget = str | Path | Sequence[str] | Sequence[Mapping[str, Any]]
Ask = Callable[[Sequence["Row"]], list["Row"]]  # rows without answers -> with the model's own

PROMPTS = ("input", "question", "prompt", "instruction")  # names of a row in memory
OUTPUTS = ("output", "answer", "answers", "completion", "response")
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
AS_DOCUMENT = (
    "To forget the text as a document, put the file into a folder of its own and give the folder."
)
FAIR = 0.15  # maximum distance from 0.5 of the AUC of twins under a model without the data
OVERLAP = 0.5  # minimum share of a forget answer's rare words in an excluded retain answer
SHORT = 10  # words of a forget answer whose telling part excludes a retain answer
SHOWN = 3  # generated retain rows in a message
COMMON = frozenset(  # answers that exclude an equal retain answer, but none that contains them
    "yes no true false none unknown maybe male female he she it they i a an the of in on at and or "
    "not ok okay ja nein oui non si sí 是 不 否 有 没有".split()
)


@dataclass
class RequestRows:
    """The three sets of a request.

    Attributes:
        notes: One sentence for each generated set.
        generated: Forget rows whose questions or answers are generated.
        twins: Whether the holdout set is made of perturbed twins.
    """

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    notes: list[str] = field(default_factory=list)
    generated: list[Row] = field(default_factory=list)
    twins: bool = False


def read_request(
    forget: Forget,
    retain: Forget | None,
    holdout: Forget | None,
    ask: Ask,
    turns: Turns = "last",
    columns: Mapping[str, str] | None = None,
    earlier: Sequence[Row] = (),
) -> RequestRows:
    """Read the rows of a request, and ask the model for missing answers and retain rows.

    Args:
        forget, retain, holdout: A data file; a ``.txt`` or ``.md`` file or a list of names,
            questions or documents; a list of rows or a DataFrame. Questions without answers get the
            model's own answers. All three are read in the same way.
        ask: Called with rows without answers; returns them with the model's answers.
        turns: Assistant turns of a conversation that become rows.
        columns: Names of columns in the files by our names.
        earlier: Forget rows of earlier requests. They are neither retained, which would teach them
            again, nor non-members, since the model was trained on them.

    Raises:
        InputError: A source cannot be read, or contains nothing; a row is in two sets.
    """
    reader = RequestReader(ask, turns, columns or {})
    rows = reader.read(forget)
    gone = [*rows, *earlier]
    retain_rows = reader.own_retain(gone) if retain is None else reader.read(retain, "retain")
    outside = [] if holdout is None else reader.read(holdout, "holdout")
    check_not_in(gone, retain_rows, "retain")
    check_not_in(gone, outside, "holdout")
    generated = reader.generated
    return RequestRows(rows, retain_rows, outside, reader.notes, generated, twins=not outside)


@dataclass
class RequestReader:
    """Reads the sets of a request in the same way.

    Attributes:
        ask, turns, columns: As in ``read_request``.
        notes: How texts were read, and what was generated.
        generated: Forget rows with the model's own answers.
    """

    ask: Ask
    turns: Turns = "last"
    columns: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    generated: list[Row] = field(default_factory=list)

    def read(self, source: Forget, split: str = "forget") -> list[Row]:
        """Read one set; see ``read_request``."""
        from mergeforget.data.sources.folders import file_of_set
        from mergeforget.data.sources.memory import items_of
        from mergeforget.data.sources.text_entries import TextEntry, entries_of, kind_of_text
        from mergeforget.errors import InputError

        if isinstance(source, str | Path):
            path = file_of_set(Path(source), split)
            return self._answered(self._rows_of_file(path, split), split, str(path))
        items = items_of(source, split)
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) < len(items):
            if texts:
                raise InputError(
                    f"The list of {split} rows contains texts and rows, for example {texts[0]!r}. "
                    "Give texts only, or rows only."
                )
            given = (item for item in items if not isinstance(item, str))
            records = list(enumerate((_as_pair(i, self.columns) for i in given), 1))
            rows = self._rows_of_records(records, Path(split), split, "item")
            return self._answered(rows, split, "the list")
        own: list[TextEntry] = []
        for text in filter(str.strip, texts):
            _check_no_answers(text, f"An item of {split}")
            lines = entries_of(text).entries if "\n" in text.strip() else []
            listed = lines and all(entry.kind != "document" for entry in lines)
            own += lines if listed else [TextEntry(kind_of_text(text), text.strip())]
        return self._answered(self._rows_of_entries(own, split, "The list"), split, "the list")

    def _rows_of_file(self, path: Path, split: str) -> list[Row]:
        """Read a text file as a list or as documents, and any other source as records."""
        from mergeforget.data.sources import read_records
        from mergeforget.data.sources.common import TEXTS, text_of
        from mergeforget.data.sources.text import json_records
        from mergeforget.data.sources.text_entries import (
            TextEntry,
            answered_questions,
            entries_of,
            fault_of_list,
            kinds_of_list,
        )
        from mergeforget.errors import InputError

        if path.suffix.lower() not in TEXTS or path.is_dir():
            records = read_records(path)
            texts = [one.get("text") for _, one in records if one.keys() == {"text"}]
            if len(texts) == len(records) and all(isinstance(one, str) for one in texts):
                items = [str(text).strip() for text in texts]
                if kinds := kinds_of_list(items):
                    for item in items:
                        _check_no_answers(item, f"An entry of {path}")
                    listed = list(map(TextEntry, kinds, items))
                    return self._rows_of_entries(listed, split, str(path))
            return self._rows_of_records(records, path, split, "line")
        if not path.exists():
            raise InputError(f"There is no file {path}.")
        text = text_of(path)
        if records := json_records(path, text):
            return self._rows_of_records(records, path, split, "line")
        try:
            pairs = answered_questions(text)
        except ValueError as error:
            raise InputError(f"{path} {error}. {AS_DOCUMENT}") from error
        if pairs:
            self._note(f"{path} is read as {len(pairs)} questions with answers.")
            asked = [{"question": question, "answer": answer} for question, answer in pairs]
            return self._rows_of_records(list(enumerate(asked, 1)), path, split, "question")
        if fault := fault_of_list(text):
            raise InputError(
                f"{path} {fault}. Write a .csv file with the columns question and answer, or begin "
                f"the lines with Q: and A:. {AS_DOCUMENT}"
            )
        entries = entries_of(text)
        return self._rows_of_entries(entries.entries, split, str(path), entries.headings)

    def _note(self, note: str) -> None:
        from mergeforget.console import say

        self.notes.append(note)
        say(note)

    def own_retain(self, forget: Sequence[Row]) -> list[Row]:
        """Return the model's answers to general questions, and to forget questions about others.

        Prompts about a subject of the forget rows are left out, and so are answers that contain a
        forget answer, half of its rare words, or the full name of a subject.

        Raises:
            InputError: No answer is left.
        """
        from mergeforget.console import say
        from mergeforget.data.schema import Row
        from mergeforget.errors import InputError

        filters = _ForgetFilter(forget)
        prompts = [p for p in dict.fromkeys([*GENERAL, *_neighbours(forget)]) if filters.keeps(p)]
        asked = [Row(f"own{i}qa0", p, "", "", "retain") for i, p in enumerate(prompts)]
        answered = self.ask(asked)
        rows = [row for row in answered if row.output.strip() and filters.allows(row.output)]
        if not rows:
            raise InputError(
                "None of the model's own answers can be retained: they are empty, or contain "
                "answers to forget. Give rows to keep with --retain."
            )
        self.notes.append(
            f"No retain set: the model's own answers to {len(rows)} general questions and "
            "questions about other people are retained; see data/retain.jsonl in the run folder."
        )
        some = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
        shown = "".join(f"\n  {row.input}\n    {row.output}" for row in some)
        say(f"The model's own answers to {len(rows)} questions are retained, for example:{shown}")
        return rows

    def _rows_of_entries(
        self, entries: Sequence[Any], split: str, place: str, headings: Sequence[str] = ()
    ) -> list[Row]:
        """Return rows for names, questions and documents; questions have no answers yet."""
        from collections import Counter

        from mergeforget.data.formats import document_windows
        from mergeforget.data.schema import Row

        mark = "" if split == "forget" else f"{split}-"  # ids of two sets differ
        rows: list[Row] = []
        for i, entry in enumerate(entries):
            if entry.kind == "question":
                rows.append(Row(f"{mark}q{i}qa0", entry.text, "", "", split))
            elif entry.kind == "name":
                rows += _about(Row(f"{mark}n{i}qa0", entry.text, "", "", split), entry.text)
            else:
                rows += document_windows(Row(f"{mark}d{i}", "", "", "", split), entry.text)
        if counts := Counter(entry.kind for entry in entries):
            read = " and ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in counts.items())
            more = f" Not read: {', '.join(map(repr, headings))}." if headings else ""
            if len(entries) == 1 and "\n" in entries[0].text:
                more += " Blank lines divide a text into several documents."
            self._note(f"{place} is read as {read}, {len(rows)} {split} rows.{more}")
        return rows

    def _rows_of_records(
        self, records: list[tuple[int, dict[str, Any]]], path: Path, split: str, unit: str
    ) -> list[Row]:
        """Convert records to rows; questions and names have no answers yet."""
        from mergeforget.data.readers import rows_of_records, with_unknown_answers
        from mergeforget.data.sources.text_entries import is_name

        given: dict[str, Any] = {
            "split": split, "columns": self.columns, "turns": self.turns, "unit": unit,
            "check_split": "any",
        }  # fmt: skip
        asked = with_unknown_answers(records, self.columns, path)
        if asked is None:
            return rows_of_records(records, path, **given)
        has_subject = "subject" in self.columns or any(record.get("subject") for _, record in asked)
        rows = []
        for row in rows_of_records(asked, path, suffix="qa0", **given):
            one = replace(row, output="", subject=row.subject)
            about = one.subject if has_subject else one.input
            rows += _about(one, about) if is_name(one.input) else [one]
        return rows

    def _answered(self, rows: Sequence[Row], split: str, place: str) -> list[Row]:
        """Return the rows with the model's answers where they have none."""
        from mergeforget.errors import InputError

        missing = [row for row in rows if not row.output]
        found = iter(self.ask(missing) if missing else [])
        answered = [row if row.output else next(found) for row in rows]
        kept = [row for row in answered if row.output.strip()]
        if not kept:
            raise InputError(
                f"There is nothing to {'forget' if split == 'forget' else 'read'} in {place}"
                + (": the model answers none of its questions." if missing else ".")
            )
        if missing:
            empty = len(answered) - len(kept)
            self.notes.append(
                f"{len(missing) - empty} {split} questions have no answers: the model's own "
                "answers are the target."
                + (f" {empty} more are left out: the model answers nothing." if empty else "")
            )
        if split == "forget":
            self.generated += [new for old, new in zip(rows, answered, strict=True)
                               if not old.output and new.output.strip()]  # fmt: skip
        return kept


def _check_no_answers(text: str, place: str) -> None:
    """Raise InputError if a text that is read as a question contains its answer."""
    from mergeforget.data.sources.text_entries import ARROW, has_answer, is_name, is_question
    from mergeforget.errors import InputError

    listed = is_question(text) or is_name(text)
    if "\n" not in text.strip() and (has_answer(text) or listed and ARROW.search(text)):
        raise InputError(
            f"{place} is a question with its answer: {text.strip()[:80]!r}. Give rows with both, "
            'such as {"question": "Where?", "answer": "In Rome."}.'
        )


def turns_of(recipe: Recipe) -> Turns:
    """Return the turns of conversations to forget: every one, unless the recipe sets them."""
    return recipe.data.turns if "turns" in recipe.data.model_fields_set else "every"


def _as_pair(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row in memory with the columns `input` and `output` if its names are of two formats.

    Such as ``question`` with ``output``; the names of one format are left to its reader.
    """
    from mergeforget.data.formats import find_format

    prompts = [name for name in PROMPTS if name in item]
    outputs = [name for name in OUTPUTS if name in item]
    if columns or len(prompts) != 1 or len(outputs) != 1 or find_format(prompts + outputs, {}):
        return dict(item)
    others = {key: value for key, value in item.items() if key not in (prompts[0], outputs[0])}
    return {"input": item[prompts[0]], "output": item[outputs[0]], **others}


def _about(row: Row, subject: str) -> list[Row]:
    """Return the generated questions about the name in a row's prompt."""
    stem = row.id.removesuffix("qa0")
    return [
        replace(row, id=f"{stem}qa{j}", input=question.format(name=row.input), subject=subject)
        for j, question in enumerate(QUESTIONS)
    ]


def _names_of(row: Row) -> list[str]:
    """Return the names in a row's prompt, or the full names in a document, without possessives."""
    from mergeforget.data.twins import names_in

    text = row.document if row.window else row.input
    names = [name for name in names_in(text)
             if " " in name or not row.window and not text.startswith(name)]  # fmt: skip
    return [re.sub(r"['’]s?$", "", name) for name in names]


def _neighbours(forget: Sequence[Row], most: int = 12) -> list[str]:
    """Return questions of the forget rows about known people instead of their own."""
    from mergeforget.data.schema import kinds_of

    known = folded(" ".join(row.document for row in forget))
    people = [one for one in NEIGHBOURS if not occurs(folded(one), known)]
    found: list[str] = []
    for row, kind in zip(forget, kinds_of(forget), strict=True):
        names = _names_of(row)
        if names and people and kind != "sc" and not row.window:
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


def check_not_in(forget: Sequence[Row], others: Sequence[Row], name: str) -> None:
    """Raise InputError if other rows contain forget rows; state which have the same prompt.

    Args:
        name: Name of the other rows in the message.
    """
    from mergeforget.console import say
    from mergeforget.data.overlap import shared_rows, without_punctuation
    from mergeforget.errors import InputError

    if shared := shared_rows(forget, others):
        raise InputError(
            f"{len(shared)} {name} rows are also forget rows of this or an earlier request, for "
            f"example {shared[0][1].id}. Remove them from the {name} set: a row to forget is "
            "neither retained nor unseen."
        )
    prompts = {without_punctuation(row.prompt) for row in forget if row.prompt and not row.window}
    asked = [
        row.id for row in others if not row.window and without_punctuation(row.prompt) in prompts
    ]
    if asked:
        say(
            f"Warning: {len(asked)} {name} rows have the prompt of a forget row, for example "
            f"{asked[0]}. If they answer it in other words, the fact is not forgotten or counts as "
            f"unseen: remove them from the {name} set."
        )


def renamed(rows: Sequence[Row], split: str) -> list[Row]:
    """Return the rows with the name of a split."""
    return [replace(row, split=split) for row in rows]


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


def control_auc(
    recipe: Recipe, model: str, forget: Sequence[Row], others: Sequence[Row]
) -> float | None:
    """Return the AUC of forget rows against others under a model; None without others.

    Args:
        model: Hub id or folder.
    """
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.models import load_model
    from mergeforget.train.nlls import auc_of, read_nlls

    if not others:
        return None
    loaded = load_model(recipe.model.model_copy(update={"name": model}))
    template = template_of(loaded.tokenizer, recipe.data)
    members, nonmembers = (
        read_nlls(
            loaded.model,
            encode_rows(loaded.tokenizer, rows[:64], max_length=256, template=template),
        )[0]
        for rows in (forget, others)
    )
    return auc_of(members, nonmembers)


def unfair_holdout_note(auc: float) -> str:
    """Return a note on a holdout that is easier or harder than the forget rows.

    Args:
        auc: AUC of a model that never saw the data.
    """
    how = "less" if auc > 0.5 else "more"
    return (
        f"Control of the holdout: a model that never saw the data finds its rows {how} likely than "
        f"the forget rows (AUC {auc:.2f}), so an AUC of 0.5 is not chance. Give a --holdout of the "
        "same kind as the forget rows, or compare with the control's AUC."
    )


def repeated_twins_note(share: float) -> str:
    """Return why twins that a model repeats are no substitute for unseen rows, as sentences."""
    return (
        f"The model before unlearning repeats {share:.0%} of the answers of the perturbed twins, "
        "because it knows the wording of the forget rows. They are no substitute for unseen rows: "
        "give such rows with --holdout to measure membership."
    )


def check_rows(recipe: Recipe, rows: RequestRows, request: dict[str, Any]) -> dict[str, Any]:
    """Measure whether the base knows the forget rows, its speed, and whether twins are fair.

    Returns:
        ``answer_tokens``, the length of the longest answer; ``expected``, the seconds of each stage
        and attack; ``notes``; and ``membership``, ``measurable`` or ``not measurable``.
    """
    from mergeforget.api.job import expected_seconds, seconds_per_row
    from mergeforget.console import say
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.data.twins import nonmember_twins
    from mergeforget.evaluate.self_check import safe_modes
    from mergeforget.models import load_model
    from mergeforget.outputs import ANSWER
    from mergeforget.train.fit import REPEATED
    from mergeforget.train.nlls import auc_of, read_nlls

    loaded = load_model(recipe.model)
    safe_modes(loaded.model)  # refuses masked language models
    template = template_of(loaded.tokenizer, recipe.data)
    outside = rows.holdout or nonmember_twins(rows.forget, corpus=rows.retain, seed=1)

    def encoded(rows: Sequence[Any]) -> Any:
        return encode_rows(loaded.tokenizer, rows, max_length=256, template=template)

    forget, unseen = encoded(rows.forget[:64]), encoded(outside[:64])
    nll, exact = read_nlls(loaded.model, forget)
    unseen_nll, repeated = read_nlls(loaded.model, unseen) if unseen else (None, None)
    auc = auc_of(nll, unseen_nll) if unseen_nll is not None else None
    notes = []
    control = request["control"]
    unseen_data = request["memorise"] or control == request["model"]
    if control and not unseen_data:
        auc_of_control = control_auc(recipe, control, rows.forget, outside)
    else:
        auc_of_control = auc if unseen_data else None
    if rows.twins and auc_of_control is not None:
        fair = abs(auc_of_control - 0.5) <= FAIR
        how = "as likely as" if fair else "not as likely as"
        notes.append(f"Control of the twins: under a model that never saw the data, they are {how} "
                     f"the forget rows (AUC {auc_of_control:.2f}).")  # fmt: skip
    else:
        fair = not rows.twins
        if auc_of_control is not None and abs(auc_of_control - 0.5) > FAIR:
            notes.append(unfair_holdout_note(auc_of_control))
    if rows.twins and repeated is not None and (share := float(repeated.float().mean())) > REPEATED:
        fair = False
        notes.append(repeated_twins_note(share))
    if not unseen_data and auc is not None and auc < 0.6 and not exact.any():
        notes.append(f"The model does not seem to know the forget rows: AUC {auc:.2f}, and none of "
                     f"{len(forget)} answers is repeated.")  # fmt: skip
    if len({row.subject for row in rows.forget}) == 1 < len(rows.forget):
        notes.append("All forget rows are about one subject: intervals count it as one document, "
                     "and its membership says nothing about other people.")  # fmt: skip
    lengths = [one.kinds.count(ANSWER) for one in encoded([*rows.forget, *rows.retain])]
    pace = seconds_per_row(loaded.model, forget)
    expected = expected_seconds(recipe, rows, bool(request["memorise"]), pace)
    for note in notes:
        say(note)
    return {"answer_tokens": max(lengths), "expected": expected, "notes": notes,
            "membership": "measurable" if fair else "not measurable"}  # fmt: skip
