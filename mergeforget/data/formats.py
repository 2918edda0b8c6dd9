"""Converts records to rows: prompt and answer, Alpaca, conversations, documents.

A record is a dictionary, for example a line of JSON, and its keys determine the format; see
``docs/data.md``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mergeforget.data.fields import (
    Record,
    are_turns,
    conversation,
    cut_of,
    earlier_turns,
    is_visible,
    missing,
    option_named,
    parsed,
    texts_of,
    turn_weights,
    unread_turn_keys,
    value_of,
    weight_of,
    window_of,
)
from mergeforget.data.schema import Message, Row, Window

Turns = Literal["last", "every"]
FIELDS = ("id", "input", "output", "task", "split", "weight", "subject", "window", "cut",
          "messages", "instruction", "text")  # fmt: skip
OTHERS = ("paraphrased", "perturbed")  # other answers to the same prompt; TOFU adds "_answer"
FURTHER = "further_answers"  # column with a list of right answers besides the one that is trained
PAIRS = {  # common names of prompt and answer -> kind of row
    ("input", "output"): "sc1",
    ("question", "answer"): "qa0",
    ("question", "answers"): "qa0",
    ("prompt", "completion"): "sc1",
    ("prompt", "response"): "sc1",
    ("instruction", "output"): "sc1",
    ("instruction", "response"): "sc1",
}
PROMPTS = {  # usual columns of prompts, and the columns of answers that make them a format
    "question": "answer", "input": "output", "prompt": "completion", "instruction": "output",
    "name": "output",
}  # fmt: skip
ASKED = ("question", "input", "prompt", "instruction", "query")
ANSWERS = ("output", "answer", "completion", "response")
LABELS = frozenset(  # columns that are neither prompts nor answers
    "id subject task split weight category type topic source author language index".split()
)
OF_DOCUMENT = LABELS | {"document", "title", "url", "revid", "date"}
SEVERAL = "answers"  # column with a list of right answers, as in SQuAD
CONTEXTS = ("input", "context")  # columns that are appended to an instruction
TOOL_COLUMNS = ("tools", "functions")  # definitions of tools, as in OpenAI's files
TURN_COLUMNS = ("system", "history")  # turns before the prompt, as in LLaMA-Factory
CONVERSATIONS = ("messages", "conversations", "conversation")
LONGEST = 1_000_000  # characters of one text; a longer one takes hours to evaluate
WINDOW, OVERLAP = 1000, 200  # characters per window, and overlap with the previous window
AUTHOR = 20  # questions about each author in TOFU
NAMED = 0.8  # minimum share of blocks in which an author's name is found
NAME = re.compile(r"\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)+")


@dataclass(frozen=True)
class Format:
    """Conversion of the records of a file to rows.

    Attributes:
        kind: ``pair``, ``conversation`` or ``document``.
        names: Names of fields in the file, by our names.
        context: Column appended to the instruction, in Alpaca's and Dolly's format.
        suffix: Ending of a generated id, which determines the kind of row.
        read: Columns that are used.
        turns: Columns with turns before the prompt: ``system`` and ``history``.
        columns: All columns of the file.
        labelled: Whether all answers are labels or numbers of options.
    """

    kind: Literal["pair", "conversation", "document"]
    names: Mapping[str, str]
    context: str = ""
    suffix: str = "sc1"
    read: frozenset[str] = field(default_factory=frozenset)
    turns: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()
    labelled: bool = False

    def rows(
        self, record: Record, made_id: str, split: str, turns: Turns, source: str = ""
    ) -> list[Row]:
        """Convert a record to rows.

        Args:
            made_id: Id of a record without an id.
            source: Subject of a record without id and subject, unique among all files.

        Raises:
            ValueError: A required field is missing.
        """
        base = self._base(record, made_id, split, source or made_id)
        if self.kind == "document":
            return document_windows(base, value_of(record, self.names["text"]))
        if self.kind == "conversation":
            name = self.names["messages"]
            given = conversation(record.get(name), name)
            earlier = earlier_turns(record, self.turns, given[0].role)
            weights = [0.0] * len(earlier) + turn_weights(record.get(name), name)
            made = _turns(base, [*earlier, *given], weights, turns)
        else:
            made = [self._pair(base, record)]
        for row in made:
            _check_lengths(row)
        return made

    def earlier_answers(self, record: Record) -> int:
        """Return the number of assistant turns that are only context of the last one."""
        if self.kind != "conversation":
            return 0
        name = self.names["messages"]
        weights = turn_weights(record.get(name), name)
        roles = [turn.role for turn in conversation(record.get(name), name)]
        asked = roles.index("user") if "user" in roles else 0
        trained = sum(
            role == "assistant" and weight > 0 and place > asked
            for place, (role, weight) in enumerate(zip(roles, weights, strict=True))
        )
        return max(0, trained - 1)

    def further_answers(self, record: Record) -> list[str]:
        """Return the answers in a list of right answers that are not trained."""
        return answers_of(record)[1:] if self.names.get("output") == SEVERAL else []

    def option(self, record: Record) -> str:
        """Return the text of the option that the answer names; empty if it names none."""
        if self.kind != "pair":
            return ""
        return option_named(record, self.names["output"], labelled=self.labelled)

    def advice(self, column: str) -> str:
        """Return how to make a column that is not read a part of the prompt, as a sentence."""
        if self.kind != "pair" or self.context or column not in self.columns:
            return " If it belongs to a row, write it into a column that is read."
        named = {"instruction": self.names["input"], "input": column,
                 "output": self.names["output"]}  # fmt: skip
        recipe, option = (
            " ".join(f"{begin}{ours}={theirs}" for ours, theirs in named.items())
            for begin in ("--set data.columns.", "--column ")
        )
        return (
            f" If it belongs to the prompt, map it: {recipe} for commands with a recipe, {option} "
            "for others."
        )

    def _base(self, record: Record, made_id: str, split: str, source: str) -> Row:
        """Return the row without prompt and answer."""

        def text(name: str) -> str:
            given = self.names.get(name)
            return "" if given is None or missing(record.get(given)) else value_of(record, given)

        suffix = {"document": "", "conversation": "qa0"}.get(self.kind, self.suffix)
        return Row(
            id=text("id") or made_id + suffix,
            input="",
            output="",
            task=text("task"),
            split=split or text("split"),
            weight=weight_of(text("weight") or "1"),
            paraphrased=text("paraphrased"),
            perturbed=texts_of(record, self.names["perturbed"])
            if "perturbed" in self.names
            else (),
            subject=text("subject") or ("" if text("id") else source),
            window=window_of(text("window")),
            cut=cut_of(record.get(self.names.get("cut", ""))),
            further_answers=texts_of(record, self.names[FURTHER]) if FURTHER in self.names else (),
        )

    def _pair(self, base: Row, record: Record) -> Row:
        prompt, answer = self.names["input"], self.names["output"]
        earlier: tuple[Message, ...] = ()
        if are_turns(record.get(prompt)):  # a conversation's turns, as TRL writes them
            turns = conversation(record.get(prompt), prompt)
            if not turns or turns[-1].role != "user":
                raise ValueError(f"{prompt!r} does not end with a user's turn")
            earlier, asked = tuple(turns[:-1]), turns[-1].content
        else:
            asked = value_of(record, prompt)
        if "messages" in self.names:
            given = record.get(self.names["messages"])
            earlier = earlier or tuple(conversation(given, "messages") if given else ())
        first = earlier[0].role if earlier else ""
        earlier = (*earlier_turns(record, self.turns, first), *earlier)
        if are_turns(record.get(answer)):
            answer_turns = conversation(record.get(answer), answer)
            if len(answer_turns) != 1 or answer_turns[0].role != "assistant":
                raise ValueError(f"{answer!r} is not one assistant's turn")
            base = replace(base, weight=base.weight * turn_weights(record.get(answer), answer)[0])
            output = answer_turns[0].content
        elif answer == SEVERAL:
            output, *further = answers_of(record) or [""]
            base = replace(base, further_answers=(*further, *base.further_answers))
        else:
            output = self.option(record) or value_of(record, answer)
        own = [("user", asked.strip()), ("assistant", output.strip())]
        if [(m.role, m.content.strip()) for m in earlier[-2:]] == own:
            earlier = earlier[:-2]  # the column has the whole conversation, with the answer
        if self.context and not missing(record.get(self.context)):
            context = value_of(record, self.context)
            asked = "\n\n".join(text for text in (asked, context) if text.strip())
        if not asked.strip() and not base.window:
            keys = "" if prompt in record else f"; the keys of this row are {', '.join(record)}"
            raise ValueError(f"no prompt ({prompt!r} is empty or missing{keys})")
        if not is_visible(output):
            raise ValueError(f"no answer ({answer!r} is empty or missing)")
        return replace(base, input=asked, output=output, messages=earlier)


def answers_of(record: Record) -> list[str]:
    """Return the different answers in a column of right answers: a list, SQuAD's form, or a text.

    Raises:
        ValueError: The column has another form.
    """
    value = parsed(record.get(SEVERAL), SEVERAL, "[{")
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):  # of texts, or of objects with a text
        texts = [one.get("text") if isinstance(one, dict) else one for one in value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{SEVERAL!r} is not a list of texts but {str(value)[:40]}")
        return list(dict.fromkeys(text for text in map(str, texts) if text.strip()))
    text = value_of({SEVERAL: value}, SEVERAL)
    return [text] if text.strip() else []


def _check_lengths(row: Row) -> None:
    texts = {"prompt": row.prompt, "answer": row.output, "paraphrased answer": row.paraphrased}
    texts |= {f"perturbed answer {i}": text for i, text in enumerate(row.perturbed, 1)}
    texts |= {f"further answer {i}": text for i, text in enumerate(row.further_answers, 1)}
    for what, text in texts.items():
        if len(text) > LONGEST:
            raise ValueError(
                f"the {what} has {len(text):,} characters; the maximum is {LONGEST:,}, so split "
                "the row"
            )


def find_format(have: Sequence[str], columns: Mapping[str, str]) -> Format | None:
    """Return the format of records with these keys; None if prompt and answer are not found.

    Args:
        columns: Names in the file by our names, given by the user; they take precedence.
    """
    found = _find_format(have, columns) or _rarer_format(have, columns)
    found = found and replace(found, columns=frozenset(have))
    before = frozenset(TURN_COLUMNS) & set(have) - set(columns.values())
    if found is None or found.kind == "document" or not before:
        return found
    return replace(found, read=found.read | before, turns=before)


def _find_format(have: Sequence[str], columns: Mapping[str, str]) -> Format | None:
    names = {name: name for name in (*FIELDS, *OTHERS, FURTHER) if name in have}
    names |= {name: f"{name}_answer" for name in OTHERS if f"{name}_answer" in have}
    names |= columns
    given = columns.keys()
    fits = [pair for pair in PAIRS if pair[0] in have and pair[1] in have]
    fits = [pair for pair in fits if pair[1] != SEVERAL or (pair[0], "answer") not in fits]
    if not given & {"messages", "text"}:
        if found := _instruction(names, have, given):
            return found
        if "input" in names and "output" in names:
            return _format("pair", names, ("instruction", "text"))
        if len(fits) == 1 and not given & {"input", "output"}:
            chosen = names | dict(zip(("input", "output"), fits[0], strict=True))
            context = "context" if fits[0][0] == "question" and "context" in have else ""
            return _format("pair", chosen, ("instruction", "text"), context, PAIRS[fits[0]])
    turns = next((n for n in CONVERSATIONS if n in have), None)
    if "messages" in given or (turns and not fits and "text" not in given):
        named = names | {"messages": columns.get("messages", turns or "")}
        return _format("conversation", named, ("input", "output", "instruction", "text"))
    if "text" in names and not fits:
        return _format("document", names, ("input", "output", "instruction", "messages"))
    return None


def _rarer_format(have: Sequence[str], columns: Mapping[str, str]) -> Format | None:
    """Return the format of a usual prompt with an answer that rarely goes with it, or a document.

    Such as ``query`` and ``answer`` in RWKU, or ``document`` in LUME's files of members. Records
    with several usual columns of prompts or of answers are ambiguous.
    """
    names = {name: name for name in (*FIELDS, *OTHERS, FURTHER) if name in have} | dict(columns)
    if columns.keys() & {"messages", "text"}:
        return None
    found = []
    for ours, usual in (("input", ASKED), ("output", ANSWERS)):
        known = [columns[ours]] if ours in columns else [n for n in usual if n in have]
        found += known if len(known) == 1 else []
    if len(found) == 2:
        chosen = names | {"input": found[0], "output": found[1]}
        suffix = "qa0" if found[0] in ("question", "query") else "sc1"
        return _format("pair", chosen, ("instruction", "text"), suffix=suffix)
    if "document" in have and OF_DOCUMENT.issuperset(have):
        return _format("document", names | {"text": "document"}, ("input", "output", "messages"))
    return None


def _instruction(
    names: Mapping[str, str], have: Sequence[str], given: Iterable[str]
) -> Format | None:
    """Return Alpaca's or Dolly's format: an instruction, an optional context, and the answer."""
    if "instruction" not in names or (set(given) & {"input"} and "instruction" not in given):
        return None
    answer = names.get("output") or next((n for n in ANSWERS[1:] if n in have), None)
    if answer is None:
        return None
    context = names.get("input") or next((n for n in CONTEXTS if n in have), "")
    chosen = dict(names) | {"input": names["instruction"], "output": answer}
    return _format("pair", chosen, ("instruction", "text"), context=context)


def _format(
    kind: Literal["pair", "conversation", "document"],
    names: Mapping[str, str],
    unused: Iterable[str],
    context: str = "",
    suffix: str = "sc1",
) -> Format:
    used = {ours: theirs for ours, theirs in names.items() if ours not in set(unused)}
    if kind == "pair" and used.get("messages") and used["messages"] in CONVERSATIONS[1:]:
        del used["messages"]
    suffix = PAIRS.get((used.get("input", ""), used.get("output", "")), suffix)
    read = frozenset([*used.values(), context])
    return Format(kind, used, context, suffix, read)


def unread_text(records: Sequence[Record], read: Iterable[str]) -> list[str]:
    """Return unused columns that look like text: at least three words, or several texts, in most.

    Definitions of tools, of which a template would make a part of the prompt, count as text. Keys
    of turns are added where they contain text, for example ``reasoning_content``.
    """
    known = set(read)
    names = dict.fromkeys(name for record in records for name in record if name not in known)
    unread = []
    for name in names:
        texts = [record for record in records if _looks_like_text(record.get(name))]
        defined = name in TOOL_COLUMNS and any(record.get(name) for record in records)
        if 2 * len(texts) > len(records) or defined:
            unread.append(str(name))
    keys = (unread_turn_keys(record.get(name)) for record in records for name in known)
    return [*unread, *sorted(set().union(*keys))]


def _looks_like_text(value: object) -> bool:
    """Return whether a value is at least three words, several texts, or options by letter."""
    if isinstance(value, dict):
        options = len(value) > 1 and all(len(str(key)) == 1 for key in value)
        value = list(value.values()) if options else next(iter(value.values()), None)
    if isinstance(value, list):
        return sum(isinstance(one, str) for one in value) > 1
    return isinstance(value, str) and len(value.split()) >= 3


def _turns(
    base: Row, turns: Sequence[Message], weights: Sequence[float], wanted: Turns
) -> list[Row]:
    """Make a row of the last assistant turn, or of every one, each with all earlier turns.

    A turn of weight 0 becomes no row, as in OpenAI's and axolotl's training; it stays in the
    prompts of later turns.
    """
    places = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not places:
        raise ValueError("the conversation has no assistant turn")
    trained = [i for i in places if weights[i]]
    if not trained:
        raise ValueError(
            "every assistant turn has weight 0 (or train: false), so nothing is left to train or "
            "to evaluate; remove the conversation"
        )
    made = []
    for number, place in enumerate(places):
        if place not in trained or wanted == "last" and place != trained[-1]:
            continue
        if place == 0 and len(trained) > 1:
            continue  # a greeting, which answers nothing
        if place == 0 or turns[place - 1].role != "user":
            other = "; read only the last one with --turns last" if wanted == "every" else ""
            raise ValueError(f"an assistant turn does not follow a user turn{other}")
        if not is_visible(turns[place].content) or not turns[place - 1].content.strip():
            raise ValueError("a user or assistant turn is empty")
        row = replace(
            base,
            input=turns[place - 1].content,
            output=turns[place].content,
            weight=base.weight * weights[place],
            messages=tuple(turns[: place - 1]),
        )
        if wanted == "every" and len(places) > 1:
            row = replace(row, id=f"{base.id}-turn{number}", subject=base.subject)
        made.append(row)
    return made


def document_windows(base: Row, text: str) -> list[Row]:
    """Split a document into windows that contain every character once, except for overlaps.

    Args:
        base: Row with the id and the subject of the document.

    Raises:
        ValueError: The text is empty.

    Example:
        >>> [row.window for row in document_windows(Row("a", "", ""), "word " * 500)]
        ['start', 'middle', 'end']
    """
    text = text.strip()
    if not text:
        raise ValueError("the text is empty")
    cuts = [0]
    while len(text) - cuts[-1] > WINDOW - (OVERLAP if len(cuts) > 1 else 0):
        cuts.append(_cut(text, cuts[-1] + WINDOW - (OVERLAP if len(cuts) > 1 else 0)))
    cuts.append(len(text))
    made = []
    for number, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        last = number == len(cuts) - 2
        if number == 0:
            opening = _cut(text, min(OVERLAP, end // 2), floor=0) if end > 1 else 0
            begin, start = 0, opening
            window: Window = "whole" if last else "start"
        else:
            begin = _cut(text, start - OVERLAP)
            window = "end" if last else "middle"
        made.append(
            replace(
                base,
                id=base.id if window == "whole" else f"{base.id}-w{number}",
                subject=base.subject,
                input=text[begin:start],
                output=text[start:end],
                window=window,
            )
        )
    return made


def _cut(text: str, place: int, floor: int | None = None) -> int:
    """Return the position of the last whitespace shortly before ``place``, or ``place``."""
    low = max(0, place - OVERLAP // 2) if floor is None else floor
    for i in range(place, low, -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return place


def with_authors(rows: Sequence[Row]) -> list[Row]:
    """Set the subject of TOFU's questions, in blocks of twenty about one author, to the author.

    Rows are returned unchanged unless nearly every block has a common name that no other block has.
    The subject of the remaining blocks is that of their first row.
    """
    blocks = [rows[i : i + AUTHOR] for i in range(0, len(rows), AUTHOR)]
    if not rows or len(rows) % AUTHOR:
        return list(rows)
    authors = [_shared_name(block) for block in blocks]
    counts = Counter(authors)
    names = [
        name if name and counts[name] == 1 else block[0].subject
        for name, block in zip(authors, blocks, strict=True)
    ]
    if sum(counts[n] == 1 for n in authors if n) < NAMED * len(blocks):
        return list(rows)
    return [
        replace(row, subject=name)
        for name, block in zip(names, blocks, strict=True)
        for row in block
    ]


def _shared_name(block: Sequence[Row]) -> str:
    """Return the full name that occurs in at least a third of the rows; empty if there is none."""
    counts = Counter(
        name.removesuffix("'s").removesuffix("’s")
        for row in block
        for name in set(NAME.findall(f"{row.input} {row.output}"))
    )
    name, count = counts.most_common(1)[0] if counts else ("", 0)
    return name if 3 * count >= len(block) else ""
