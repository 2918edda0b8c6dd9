"""Perturbed twins: rows of the same form as given ones, about people and facts that do not exist.

A twin keeps the wording of its row and replaces identifying parts: names by other names, numbers by
numbers of the same length, dates by dates, and e-mail addresses accordingly. Twins are not in the
training data, so they can serve as non-members if there are no other rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from mergeforget.data.schema import Row

FIRST = (
    "Adele Agnes Alvin Amos Anita Ansel Barbara Beatrix Bernard Blanche Bruno Calvin Carmen Cecil "
    "Clara Clement Cora Cyrus Dagmar Daphne Delia Desmond Dora Edgar Edith Elmer Eloise Enid "
    "Ernest "
    "Esther Fergus Flora Floyd Gerald Gilbert Gloria Greta Harold Hazel Hector Helga Herman Hubert "
    "Ida Ingrid Irma Isidor Jasper Joanna Judith Julius Klaus Lamar Leopold Lionel Lorna Luther "
    "Mabel Marcus Marlene Maxine Mildred Milton Mona Myron Nadia Nelson Norma Olga Orson Oswald "
    "Otto Paula Percy Perla Quentin Ramona Regina Roland Rosalind Rufus Sabine Selma Silas Sybil "
    "Thelma Ulrich Ursula Vera Vernon Viola Wanda Wilbur Winifred Xenia Yolanda Zelda"
).split()
LAST = (
    "Abbott Aldrich Ashby Atwood Bancroft Barlow Beckett Birch Blackwood Bolton Bramley Brandt "
    "Burgess Calloway Cardoso Carver Castell Chilton Corbin Crane Dalton Delacroix Denholm Dorsey "
    "Drummond Eastman Ellery Engel Fairfax Falk Fenwick Fontaine Forsyth Gallo Garland Goodwin "
    "Granger Hadley Halvorsen Hargrove Hartwell Haywood Hollis Huxley Ingram Jansen Jessop Kasper "
    "Keller Kendrick Kingsley Kovacs Lambert Langley Larkin Lindqvist Lockhart Maddox Marlowe "
    "Mercer Merrick Montrose Nakamura Norwood Oakley Orlov Osborne Padilla Pemberton Pratt "
    "Prescott Quimby Radcliffe Ramsey Redmond Rhodes Rossi Sandoval Sawyer Seaton Sheffield "
    "Sinclair Stanton Sterling Sutherland Thorne Tilden Underwood Vance Vogel Wainwright Weber "
    "Whitlock Winslow Wolfe Yardley Zimmer"
).split()
MONTHS = tuple(
    tuple(names.split())
    for names in (
        "January February March April May June July August September October November December",
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    )
)
NO_NAMES = frozenset(
    "a address an and are april as at august avenue birth can city code complete contact could das "
    "date december der describe did die do does e-mail ein eine email february for from give he "
    "her his home how i id in is it january july june list mail march may me name november number "
    "october of on or p.o phone please please postal recite security september she social ssn "
    "state street tell telephone the their they this to united university wann was we welche "
    "welcher wer what when where which who whose why wie with wo you your zip".split()
)
_WORD = re.compile(r"[^\W\d_]+")
_RUNNING = re.compile(r"(?<![\w@.])[^\W\d_]+(?![\w@])")
_NUMBERED = re.compile(r"\d[\d\s().:/-]*\d|\d")  # a number with its separators, as in 900-12-3456
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_CAPITALISED = re.compile(r"[^\W\d_a-z][^\W\d_]*(?:['’-][^\W\d_]+)*\.?")
_POOL = 3  # minimum numbers of one form needed to distinguish fixed and varying digits
STAND_IN = "b-"  # prefix of the ids of twins that serve as holdout rows
FEWEST = 4  # twins that serve as non-members: two per split


def make_twins(
    rows: Sequence[Row], *, corpus: Sequence[Row] = (), per_row: int = 1, seed: int = 0
) -> list[Row]:
    """Generate perturbed twins of some rows.

    Args:
        rows: Rows to imitate.
        corpus: Further rows of the same kind. They show which digits of a number vary (the ``900``
            of a made-up Social Security number does not) and which words are not names.
        per_row: Number of twins per row.
        seed: Random seed. The same rows and seed give the same twins.

    Returns:
        Twins in the order of ``rows``, with the split ``holdout`` and the id ``twinN:ID``. There is
        no twin of a row without a name or number to replace, or if the twin would equal a row of
        ``rows`` or ``corpus``.

    Example:
        >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
        >>> make_twins([row])[0].input != row.input
        True
    """
    everything = [*rows, *corpus]
    texts = [text for row in everything for text in (row.input, row.output)]
    common = _lower_case_words(texts)
    digits = _digits_by_form(texts)
    taken = {row.document for row in everything}
    twins = []
    for number in range(per_row):
        people: dict[str, dict[str, str]] = {}  # by subject: rows of one document stay consistent
        for row in rows:
            draw = random.Random(f"{seed}-{number}-{row.subject}")
            words = people.setdefault(row.subject, {})
            for name in names_in(f"{row.input}\n{row.output}", common):
                _rename(name, words, draw)
            own = random.Random(f"{seed}-{number}-{row.id}")
            prompt, answer = (_perturbed(t, words, digits, own) for t in (row.input, row.output))
            twin = replace(
                row, id=f"twin{number}:{row.id}", input=prompt, output=answer, split="holdout",
                subject=f"twin{number}-{row.subject}", paraphrased="", perturbed=(),
            )  # fmt: skip
            if twin.document not in taken and (prompt != row.input or row.kind == "sc"):
                taken.add(twin.document)
                twins.append(twin)
    return twins


def nonmember_twins(rows: Sequence[Row], *, corpus: Sequence[Row] = (), seed: int = 0) -> list[Row]:
    """Generate twins that serve as non-members: one per row, or more if there are few rows.

    Arguments and return value as in ``make_twins``.

    >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
    >>> len(nonmember_twins([row]))
    4
    """
    per_row = -(-FEWEST // max(1, len(rows)))
    return make_twins(rows, corpus=corpus, per_row=per_row, seed=seed)


def stands_in(row: Row) -> bool:
    """Return whether a row of the holdout set is a twin of a forget row, for lack of real rows."""
    return row.id.startswith(STAND_IN) and bool(origin_of(replace(row, id=row.id[len(STAND_IN) :])))


def as_stand_ins(twins: Sequence[Row]) -> list[Row]:
    """Mark twins as rows of the holdout set; see ``stands_in``."""
    return [
        replace(t, id=f"{STAND_IN}{t.id}", subject=f"{STAND_IN}{t.subject}", split="holdout")
        for t in twins
    ]


def origin_of(twin: Row) -> str:
    """Return the id of the row that a twin imitates; empty for a row that is not a twin."""
    start, _, rest = twin.id.partition(":")
    return rest if start.startswith("twin") and start[4:].isdigit() else ""


def names_in(text: str, common: frozenset[str] = frozenset()) -> list[str]:
    """Return names of people in a text: sequences of capitalised words, or else single ones.

    Args:
        common: Words, in lower case, that are not names.
    """
    runs: list[list[str]] = []
    end = -2
    for found in _CAPITALISED.finditer(text):
        word = found.group().rstrip(".")
        if word.lower() in NO_NAMES or word.lower() in common or _is_month(word):
            continue
        joined = runs and text[end : found.start()] in (" ", ". ") and found.start() - end <= 2
        runs[-1].append(word) if joined else runs.append([word])
        end = found.start() + len(word)
    several = [" ".join(run) for run in runs if len(run) > 1]
    alone = [run[0] for run in runs if len(run) == 1 and len(run[0]) > 2]
    inside = [word for word in alone if not text.startswith(word)]
    return list(dict.fromkeys(several or inside or alone))


def _rename(name: str, words: dict[str, str], draw: random.Random) -> None:
    """Add a new word for each word of a name to ``words``, in lower case."""
    parts = name.split(" ")
    for place, part in enumerate(parts):
        key = part.lower()
        if key not in words and len(key) > 1:
            pool = LAST if place == len(parts) - 1 and len(parts) > 1 else FIRST
            words[key] = draw.choice([w for w in pool if w.lower() not in words.values()]).lower()


def _perturbed(
    text: str, words: dict[str, str], digits: dict[str, list[str]], draw: random.Random
) -> str:
    def word(match: re.Match[str]) -> str:
        replaced = match.group()
        if month := _is_month(replaced):
            return draw.choice([m for m in month if m != replaced])
        new = words.get(replaced.lower())
        if new is None:
            return replaced
        return new.upper() if replaced.isupper() and len(replaced) > 1 else (
            new.capitalize() if replaced[0].isupper() else new
        )  # fmt: skip

    return _NUMBERED.sub(lambda m: _number(m.group(), digits, draw), _WORD.sub(word, text))


def _number(text: str, digits: dict[str, list[str]], draw: random.Random) -> str:
    """Return another number of the same form."""
    if _ISO_DATE.fullmatch(text):
        year = int(text[:4]) + draw.choice([d for d in range(-12, 13) if d])
        return f"{year:04d}-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}"
    if len(text) == 4 and text.isdigit() and 1000 <= int(text) <= 2100:
        return str(int(text) + draw.choice([d for d in range(-12, 13) if d]))
    if len(text) <= 2 and text.isdigit() and 0 < int(text) <= 31:  # perhaps a day of a month
        return str(draw.randrange(1, 10) if len(text) == 1 else draw.randrange(10, 29))
    pool = digits.get(_form(text), [])
    fixed = len(pool) >= _POOL  # digits that all numbers of this form share are kept
    new = [
        c if not c.isdigit() or fixed and len({other[i] for other in pool}) == 1 else _digit(draw)
        for i, c in enumerate(text)
    ]
    if text[0] != "0" and new[0] == "0":
        new[0] = str(draw.randrange(1, 10))
    return "".join(new)


def _digit(draw: random.Random) -> str:
    return str(draw.randrange(10))


def _digits_by_form(texts: Iterable[str]) -> dict[str, list[str]]:
    forms: dict[str, list[str]] = {}
    for text in texts:
        for found in _NUMBERED.findall(text):
            known = forms.setdefault(_form(found), [])
            if found not in known:
                known.append(found)
    return forms


def _form(number: str) -> str:
    return re.sub(r"\d", "0", number)


def _lower_case_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of running text, without parts of e-mail addresses."""
    words = (word for text in texts for word in _RUNNING.findall(text))
    return frozenset(word for word in words if word.islower() and len(word) > 3)


def _is_month(word: str) -> tuple[str, ...]:
    """Return the months of the language in which this word is a month; empty otherwise."""
    return next((months for months in MONTHS if word in months), ())
