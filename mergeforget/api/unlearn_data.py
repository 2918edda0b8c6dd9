"""Read the rows of an unlearning request: files, texts, names, questions, and rows in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.data_checks import check_not_in
from mergeforget.api.own_answers import Ask, own_retain

if TYPE_CHECKING:
    from mergeforget.data.formats import Turns
    from mergeforget.data.schema import Row
    from mergeforget.recipe import Recipe

Forget = str | Path | Sequence[str] | Sequence[Mapping[str, Any]]
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
AS_DOCUMENT = (
    "To forget the text as a document, put the file into a folder of its own and give the folder."
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
        """Return generated retain rows; see ``own_answers.own_retain``."""
        rows, note = own_retain(forget, self.ask)
        self.notes.append(note)
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


def turns_of(recipe: Recipe) -> Turns:
    """Return the turns of conversations to forget: every one, unless the recipe sets them."""
    return recipe.data.turns if "turns" in recipe.data.model_fields_set else "every"


def renamed(rows: Sequence[Row], split: str) -> list[Row]:
    """Return the rows with the name of a split."""
    return [replace(row, split=split) for row in rows]
