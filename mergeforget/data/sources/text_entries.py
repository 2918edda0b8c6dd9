"""Finds the entries of a text: names, questions, instructions, or documents."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ASKS = (  # question marks of all scripts
    "?\uff1f\u061f\u2047\u2048\u2049\u037e\u055e\u1367\u2e2e\ufe56"
)
STOPS = (  # other marks that end a sentence
    ".!\u2026\u203c\u3002\uff01\uff0e\uff61\u06d4\u0964\u0965\u0589\u055c\u1362\u104b\u17d4\u17d5\ufe52\ufe57"
)
CLOSERS = (  # quotes and brackets after a mark
    "\"'\u201d\u2019\u201c\u2018\u00bb\u203a\u00ab\u2039)]}\u300d\u300f\uff09\u3011\u300b\u3009*_ "
)
INNER = "?\uff1f\u061f:\uff1a;\uff1b\u3002\uff0c\u3001\u060c\uff01\u2026\u0964"  # in no name
LONGEST_NAME, LONGEST_ASKED = 60, 1000  # characters
ODD = 0.2  # maximum share of other short lines in a list
MARKED = re.compile(r"(?:[-*\u2022\u00b7\u2013]|\(?\d{1,4}[.)])\s+")  # at the start of a list item
ABBREVIATION = re.compile(
    r"(?:^|[\s.,(])(?:[^\W\d_]|[JS]r|jun|sen|Esq|Dr|Mrs?|Ms|Prof|St|Inc|Ltd|Co|Corp|Bros|Ph\.?D|vs|"
    r"No|approx|etc|e\.g|i\.e|bzw|Mt|Gen|Col|Capt|Lt|Rev|Hon|Gov)\.$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(
    rf"[{re.escape(ASKS + STOPS)}]+[{re.escape(CLOSERS.strip())}]*(?=\s|$)|"
    rf"[\u3002\uff01\uff1f\uff61]+[{re.escape(CLOSERS.strip())}]*|(?<=\S)(?=[^\S\n]*\n)"
)
CONNECTORS = frozenset(
    "a af al an and at av bin ibn ben da das de del della den der di do dos du e el et for i in la "
    "le los las of on ter ten the to und van von y zu zum zur".split()
)
ASKING = frozenset(  # first words of questions
    "who what when where why how which whose whom wer was wann wo warum wie welche welcher welches "
    "wen wem qui que quoi quand où pourquoi comment quel quelle quién qué cuándo dónde cómo cuál "
    "chi cosa quando dove perché quem onde кто что когда где почему как".split()
)
TELLING = frozenset(  # first words of instructions
    "tell describe explain name list give write summarise summarize state recite complete "
    "translate provide beschreibe nenne erkläre erzähle erzähl schreibe gib décris décrivez "
    "raconte racontez explique expliquez nomme cite describa cuéntame explica dime háblame parlami "
    "racconta descrivi spiega descreva расскажи опиши назови".split()
)
VERBS = frozenset(  # in no name after its first word
    "is was are were has had have lives lived works worked earns owes owns loves hates suffers "
    "died does did".split()
)
RELATIONS = frozenset(  # words of sentences in scripts without case
    "في من على إلى الى عن مع هو هي كان كانت در از به را است بود में का की के को से पर ने है हैं था थी थे हूँ "
    "של את עם על הוא היא היה היתה הייתה".split()
)
PARTICLE = re.compile(  # of a Japanese sentence
    "(?<=[\u3040-\u30ff\u3400-\u9fff])[\u306f\u304c\u3092\u306b\u3067](?=.)|"
    "(?:\u3067\u3059|\u307e\u3059|\u307e\u3057\u305f|\u3044\u308b|\u3060)$"
)
COLUMN_NAMES = frozenset(  # of tables of questions
    "question answer input output prompt completion response instruction text name subject id "
    "frage antwort pregunta respuesta réponse domanda risposta".split()
)
TAGS = {  # before a question in a text -> before its answer
    "q": "a r", "question": "answer réponse response", "frage": "antwort", "f": "a",
    "pregunta": "respuesta", "p": "r", "domanda": "risposta", "d": "r", "pergunta": "resposta",
    "prompt": "completion response answer output", "input": "output answer",
    "instruction": "response output answer", "вопрос": "ответ", "в": "о", "问": "答", "問": "答",
    "问题": "答案", "質問": "回答 答え",
}  # fmt: skip
TALK = {"user": "assistant ai bot", "human": "assistant ai bot"}  # of a conversation
TAGGED = re.compile(r"[*_\s]*([^\W\d_]{1,12})\s?\d{0,4}\s?[*_]*[:\uff1a][*_]*\s*(.*)", re.DOTALL)
CODE = re.compile(  # a description, an e-mail address, a date, a number, or a code
    r"\s[-\u2013\u2014]\s|[^\s@]@[^\s@]|\d[-./]\d|\d{5}|[^\W\d_]\d|\d[^\W\d_]"
)
ARROW = re.compile(r"\s(?:->|=>|-->|==>|\u2192|\u21d2)\s")
ANSWERED = re.compile(  # a line with a question and something after it
    rf"(.*[{re.escape(ASKS)}][\"'*_\u201d)]*)(?:[,;|](?=\S)|\s*[-\u2013\u2014:=|]+\s+|\s+)(\S.*)"
)
POLITE = frozenset("please bitte can could would you".split())
REPLYING = frozenset("answer reply respond use be keep antworte répondez responde".split())
ASKING_CJK = re.compile(
    "[\u8c01\u8ab0\u54ea\u5417\u55ce]|\u4ec0[\u4e48\u9ebc]|\u4f55[\u6642\u4eba\u65f6]|(?:\u3067\u3059|\u307e\u3059)\u304b$|\ub204\uad6c"
)
TextKind = Literal["name", "question", "document"]


@dataclass(frozen=True)
class TextEntry:
    """A name, a question or instruction, or a document."""

    kind: TextKind
    text: str


@dataclass(frozen=True)
class TextEntries:
    """The names, questions and documents in a text.

    Attributes:
        headings: Headings of a list, which are no entries.
    """

    entries: list[TextEntry]
    headings: list[str]


def entries_of(text: str) -> TextEntries:
    """Classify a text as a whole, and divide it into entries.

    A text is a list if its lines are names, questions or instructions: each line is an entry.
    Otherwise, its paragraphs are documents, or its lines if it has no blank line and nearly all of
    them are sentences. A heading belongs to the document that follows it. Documents keep their
    line breaks and spaces. A line that begins with a full name counts as a sentence.

    >>> [e.text for e in entries_of("Ann Lee\\nBob Ray\\n\\nCarl Fox").entries]
    ['Ann Lee', 'Bob Ray', 'Carl Fox']
    >>> [e.kind for e in entries_of("Chapter One\\n\\nAnn lives in a house.").entries]
    ['document']
    """
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    headings = [line for line in lines if _is_list_heading(line)]
    items = [line for line in lines if not _is_list_heading(line)]
    if items and all(MARKED.match(line) for line in items):
        items = [MARKED.sub("", line, count=1) for line in items]
    if len(items) > 1 and all(line[-1] in ",;" for line in items[:-1]):
        items = [line.rstrip(",;") or line for line in items]
    parts = [p.rstrip() for p in re.split(r"\n(?:[^\S\n]*\n)+", text) if p.strip()]
    paragraphs = [" ".join(part.split()) for part in parts]
    wrapped = any(any(map(_continues, p.split("\n"), p.split("\n")[1:])) for p in parts)
    if wrapped and all(map(is_question, paragraphs)):
        return TextEntries([TextEntry("question", one) for one in paragraphs], [])
    if kinds := kinds_of_list(items):
        return TextEntries(list(map(TextEntry, kinds, items)), headings)
    facts = sum(_is_sentence(item) or _begins_with_name(item) for item in items)
    between = "\n\n"
    if len(parts) == 1 and not wrapped and facts >= (1 - ODD) * len(items):
        parts, between = lines, "\n"
    documents = _with_headings(parts, between)
    return TextEntries([TextEntry("document", one) for one in documents], [])


def answered_questions(text: str) -> list[tuple[str, str]]:
    """Return the questions and answers of a text whose lines begin with ``Q:`` and ``A:``.

    A line without such a word continues the one before. Empty for any other text.

    Raises:
        ValueError: The text has such lines, but not one answer after each question; or it is a
            conversation.

    >>> answered_questions("Q: Where?\\nA: In Rome.\\nOr in Oslo.")
    [('Where?', 'In Rome.\\nOr in Oslo.')]
    """
    lines = [line for line in text.strip().split("\n") if not line.startswith("#")]
    while lines and not lines[0].strip():
        lines = lines[1:]
    found = TAGGED.fullmatch(lines[0]) if lines else None
    if found is None:
        return []
    ask = found[1].lower()
    replies = (TAGS | TALK).get(ask, "").split()
    marks = [match[1].lower() if (match := TAGGED.fullmatch(line)) else "" for line in lines]
    reply = next((mark for mark in marks if mark in replies), "")
    if not reply:
        return []
    if ask in TALK:
        raise ValueError(
            "looks like a conversation. Write it as a .jsonl file with a line "
            '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]} for each '
            "conversation"
        )
    turns: list[tuple[str, list[str]]] = []
    for line, mark in zip(lines, marks, strict=True):
        if mark in (ask, reply):
            match = TAGGED.fullmatch(line)
            assert match is not None
            turns.append((mark, [match[2]]))
        else:
            turns[-1][1].append(line)
    given = [(mark, "\n".join(own).strip()) for mark, own in turns]
    pairs = list(zip(given[::2], given[1::2], strict=False))
    if len(given) % 2 or any(
        (q[0], a[0]) != (ask, reply) or not q[1] or not a[1] for q, a in pairs
    ):
        raise ValueError(
            f"has lines that begin with {ask.upper()}: and {reply.upper()}:, but not one answer "
            "after each question. Complete them, or write a .csv file with the columns question "
            "and answer"
        )
    return [(q[1], a[1]) for q, a in pairs]


def table_in(lines: Sequence[str]) -> str:
    """Return which table the lines of a text form, with an article; empty if they form none.

    >>> table_in(["question,answer", "Where?,Rome"])
    'a table whose columns are separated by commas'
    >>> table_in(["She sang, and he left.", "He slept, and she read."])
    ''
    """
    lines = [MARKED.sub("", line.strip(), count=1) for line in lines if line.strip()]
    if (
        len(lines) > 1
        and all(re.match(r"\|?.*\|", line) for line in lines)
        and (re.fullmatch(r"[|\s:-]*-[|\s:-]*", lines[1]))
    ):
        return "a Markdown table"
    for sign, name in {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}.items():
        if lines and _is_table(lines, sign):
            return f"a table whose columns are separated by {name}"
    return ""


def _is_table(lines: Sequence[str], sign: str) -> bool:
    """Return whether a sign separates the same number of cells in each line, as in no prose."""
    try:
        lines = [line.strip("| ") for line in lines] if sign == "|" else lines
        rows = list(csv.reader(lines, delimiter=sign, strict=True))
    except csv.Error:
        return False
    width = len(rows[0])
    if width < 2 or any(len(row) != width for row in rows):
        return False
    asked = sum(re.search(rf"[{re.escape(ASKS)}]\"?{re.escape(sign)}\"?\S", line) is not None
                for line in lines)  # fmt: skip
    if 2 * asked >= len(lines):
        return True
    header = [cell.strip().lower() for cell in rows[0]]
    if len(rows) < 2 or not all(header) or len(set(header)) < width or _is_sentence(lines[0]):
        return False
    if set(header) & COLUMN_NAMES:
        return max(len(cell.split()) for cell in header) <= 3
    close = not any(re.search(rf"{re.escape(sign)}\s", line) for line in lines)
    return sign in "\t|" or sign == ";" and close


def fault_of_list(text: str) -> str:
    """Return why lines with questions are no list: they contain the answers, too; empty otherwise.

    >>> fault_of_list("Where? -> Rome"), fault_of_list("Where does Ann live?")
    ("has lines with two parts, such as 'Where? -> Rome'", '')
    """
    lines = [line.strip().strip("*_ ") for line in text.split("\n") if line.strip()]
    lines = [MARKED.sub("", line, count=1) for line in lines if not line.startswith("#")]
    if not lines:
        return ""
    if all(map(ARROW.search, lines)):
        return f"has lines with two parts, such as {lines[0][:80]!r}"
    answered = [line for line in lines if has_answer(line)]
    if len(lines) > 1 and all(map(_asks_and_answers, lines)):
        answered = lines
    if answered and 2 * len(answered) >= len(lines):
        return f"has lines with a question and its answer, such as {answered[0][:80]!r}"
    asked = [line[-1:] in ASKS for line in lines]
    if len(lines) % 2 == 0 and asked == [True, False] * (len(lines) // 2):
        replies = lines[1::2]
        short = [len(one) <= LONGEST_NAME and not _is_sentence(one) for one in replies]
        if len(lines) > 2 or all(short) and not any(map(is_question, replies)):
            return f"has a question and its answer on alternating lines, such as {lines[0][:80]!r}"
    return ""


def has_answer(line: str) -> bool:
    """Return whether a line that is read as a question has an answer after its question mark.

    >>> has_answer("When was Ann born? 1987"), has_answer("Who is Ann? Answer in one word")
    (True, False)
    """
    found = ANSWERED.fullmatch(line)
    if found is None or line.rstrip(CLOSERS)[-1:] in ASKS:
        return False
    return is_question(line) and _first_word(found[2]) not in TELLING | POLITE | REPLYING


def _asks_and_answers(line: str) -> bool:
    """Return whether a line is one question and one short sentence."""
    found = ANSWERED.fullmatch(line)
    return (
        found is not None
        and line[0] not in CLOSERS
        and len(SENTENCE_END.findall(found[1])) == 1
        and len(found[2]) <= LONGEST_NAME
        and line.rstrip(CLOSERS)[-1:] not in ASKS
        and _first_word(found[2]) not in TELLING | POLITE | REPLYING
    )


def _first_word(text: str) -> str:
    return text.split()[0].strip(",.:!").lower()


def _begins_with_name(line: str) -> bool:
    words = line.split()
    return len(words) > 2 and all(word[0].isupper() for word in words[:2])


def kind_of_text(text: str) -> TextKind:
    """Return the kind of one entry; see ``entries_of``."""
    return "question" if is_question(text) else "name" if is_name(text) else "document"


def is_question(text: str) -> bool:
    """Return whether a text is a question or an instruction, with or without its mark.

    >>> is_question("Tell me about Ann Lee"), is_question("Ann Lee"), is_question("When I left.")
    (True, False, False)
    """
    text = text.strip()
    if len(text) > LONGEST_ASKED:
        return False
    end = text.rstrip(CLOSERS)[-1:]
    greek = end == ";" and any("GREEK" in unicodedata.name(c, "") for c in text)
    if (end and end in ASKS) or greek:
        return True
    sentence = _is_sentence(text)
    words = [word.strip(",.!\u2026:").lower() for word in text.split()]
    while words and words[0] in POLITE:
        words = words[1:]
    if 1 < len(words) <= 40 and len(SENTENCE_END.findall(text)) <= 1:
        if words[0].split("-")[0] in TELLING or words[0] in ASKING and not sentence:
            return True
    return not sentence and len(text) <= LONGEST_NAME and bool(ASKING_CJK.search(text))


def is_name(text: str) -> bool:
    """Return whether a text looks like a name: a few capitalised words, no sentence, no question.

    >>> is_name("Martin Luther King Jr."), is_name("Ann lives here."), is_name("J. R. R. Tolkien")
    (True, False, True)
    """
    text = text.strip()
    words = text.split()
    if not 0 < len(words) <= 8 or len(text) > LONGEST_NAME or any(c in INNER for c in text):
        return False
    if _is_sentence(text) or is_question(text) or not any(map(str.isalpha, text)):
        return False
    if any(w[-1] == "." and not ABBREVIATION.search(w) and len(w) > 5 for w in words):
        return False
    if CODE.search(text) or text.endswith(","):  # the latter of a letter
        return False
    if text.lower() == text.upper():  # a script without capitals
        return not any(map(str.isdigit, text)) and _is_uncased_name(words)
    if any(word.strip(",'\"").lower() in VERBS for word in words[1:]) and (
        text.islower() or text.isupper()
    ):
        return False
    if text.islower():
        return len(words) <= 3
    if text.isupper():
        return len([word for word in words if word.lower() not in CONNECTORS]) <= 3
    words = re.sub(r"\(.*?\)", "", text).split()  # of "Zoe (singer)"
    small = (w for w in words if w.islower() and w.strip(".,'\"") not in CONNECTORS)
    return not any(small)


def _is_uncased_name(words: Sequence[str]) -> bool:
    """Return whether words of a script without case are a name: few and short, and no sentence."""
    text = "".join(words)
    if len(words) > 3 or RELATIONS & set(words):
        return False
    first = unicodedata.name(text[0], "")
    if not first.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")):
        return len(words) > 1 or len(text) <= 12
    if first.startswith("HANGUL"):
        ends = len(words) > 1 and words[-1][-1] in "\ub2e4\uc694\uae4c"
        return len(words) <= 2 and not ends and max(map(len, words)) <= 6
    parts = [
        part for word in words for part in re.split("[\u00b7\u30fb\uff1d\u2022]", word) if part
    ]
    foreign = len(parts) > 1
    if all(unicodedata.name(c, "").startswith("KATAKANA") for part in parts for c in part):
        return len(parts) <= 4 and max(map(len, parts)) <= 10
    longest = max(map(len, parts))
    kana = any(unicodedata.name(c, "").startswith("HIRAGANA") for c in text)
    if kana and PARTICLE.search(text):
        return False
    return longest <= (6 if kana or foreign else 4)


def complete_parts(text: str) -> Iterator[str]:
    """Yield beginnings of a text that was cut, which end with a sentence or a line, longest first.

    Each follows also without its mark, because the next token may contain the mark and the line
    break after it. Sentences that make up less than a quarter are replaced by whole words.

    >>> next(complete_parts("Ann met Dr. Ray. She lives in No"))
    'Ann met Dr. Ray.'
    """
    ends = [
        found.end() for found in SENTENCE_END.finditer(text)
        if not _is_number_or_abbreviation(text[: found.end()], found.end() == len(text))
    ]  # fmt: skip
    for end in sorted({e for e in ends if 4 * e >= len(text)}, reverse=True)[:6]:
        part = text[:end].rstrip()
        yield part
        if shorter := part.rstrip(CLOSERS + ASKS + STOPS):
            yield shorter
    words = text.rsplit(None, 1)
    if len(words) == 2 and words[0].strip():
        yield words[0]
    yield text


def _is_number_or_abbreviation(text: str, last: bool) -> bool:
    """Return whether the last mark of a text follows a list number or an abbreviation.

    Args:
        last: The text was cut here, perhaps within a number.
    """
    line = text.rpartition("\n")[2]
    return bool(
        text[-1:] == "." and (ABBREVIATION.search(text) or re.fullmatch(r"\s*\d+\.", line))
        or last and re.search(r"\d\.$", text)
    )  # fmt: skip


def _is_sentence(text: str) -> bool:
    """Return whether a text ends with the mark of a sentence."""
    stem = text.rstrip(CLOSERS)
    end = stem[-1:]
    return bool(end) and end in ASKS + STOPS and not ABBREVIATION.search(stem)


def _is_list_heading(line: str) -> bool:
    return line.startswith("#") or line[-1] in ":\uff1a"


def kinds_of_list(items: Sequence[str]) -> list[TextKind]:
    """Return the kind of each line of a list; empty if the lines are no list."""
    kinds = [kind_of_text(item) for item in items]
    odd = [item for item, kind in zip(items, kinds, strict=True) if kind == "document"]
    listed = sorted(kind for kind in kinds if kind != "document")
    if len(odd) > ODD * len(items) or not listed:
        return []
    if any(_is_sentence(item) or len(item) > LONGEST_NAME for item in odd):
        return []
    usual = max(set(listed), key=listed.count)
    return [usual if kind == "document" else kind for kind in kinds]


def _continues(line: str, following: str) -> bool:
    """Return whether a sentence continues in the next line, so that the line is wrapped."""
    start = following.lstrip().lstrip(CLOSERS)[:1]
    uncased = start.isalpha() and start.lower() == start.upper()
    return not _is_sentence(line) and line[:1] != "#" and (start.islower() or uncased)


def _with_headings(paragraphs: Sequence[str], between: str) -> list[str]:
    """Return documents: each paragraph with the headings before it, and the last with a rest.

    Args:
        between: Separates the paragraphs.
    """
    documents: list[str] = []
    before: list[str] = []
    plain = [" ".join(one.split()) for one in paragraphs]
    for place, (one, text) in enumerate(zip(plain, paragraphs, strict=True)):
        later = next((p for p in plain[place + 1 :] if _is_sentence(p)), "")
        title = len(one) <= LONGEST_NAME and (is_name(one) or MARKED.match(one) is not None)
        if (one.startswith("#") and "\n" not in text) or (title and (later or documents)):
            before.append(text)
            continue
        documents.append(between.join([*before, text]))
        before = []
    if before and documents:
        documents[-1] = between.join([documents[-1], *before])
    elif before:
        documents = [between.join(before)]
    return documents
