"""Perturbed twins: rows of the same form as given ones, about people and facts that do not exist.

A twin keeps the wording of its row and replaces identifying parts: names by other names, numbers by
numbers of the same length, dates by dates, and e-mail addresses accordingly. An answer without such
a part is replaced by that of another row with the same question. Twins are not in the training
data, so they can serve as non-members if there are no other rows.
"""

from __future__ import annotations

import random
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from mergeforget.data.schema import Row
from mergeforget.data.twin_numbers import NUMBERED, ORDINAL, digits_by_form, ordinal, other_number

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
# names in other scripts: of men and of women, for a word that ends like one of these
OTHER_FIRST = {
    "CYRILLIC": (
        "Борис Виктор Глеб Денис Егор Захар Кирилл Леонид Максим Никита Павел Роман Семён Юрий",
        "Алина Вера Галина Дарья Елена Жанна Зоя Инна Кира Лидия Марина Нина Полина Раиса София",
    ),
    "GREEK": (
        "Αλέξανδρος Γιώργος Δημήτρης Θωμάς Κώστας Λουκάς Μάρκος Νίκος Πέτρος Σπύρος Χρήστος",
        "Αγγελική Βασιλική Δήμητρα Ειρήνη Ελένη Ζωή Ιωάννα Κατερίνα Μαρία Σοφία Φωτεινή Χριστίνα",
    ),
}
OTHER_LAST = {
    "CYRILLIC": (
        "Беляев Воронов Гусев Дроздов Ершов Жуков Киселёв Лебедев Морозов Орлов Панов Соколов",
        "Беляева Воронова Гусева Дроздова Ершова Жукова Киселёва Лебедева Морозова Орлова Соколова",
    ),
    "GREEK": (
        "Βασιλειάδης Γεωργιάδης Δημητριάδης Ιωαννίδης Καραγιάννης Λαμπράκης Μιχαηλίδης Νικολαΐδης",
        "Βασιλειάδου Γεωργιάδου Δημητριάδου Ιωαννίδου Καραγιάννη Λαμπράκη Μιχαηλίδου Νικολαΐδου",
    ),
}
FEMININE = tuple("аяίήηάαουύώ")
MONTHS = tuple(
    tuple(names.split())
    for names in (
        "January February March April May June July August September October November December",
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "januari februari maart april mei juni juli augustus september oktober november december",
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października "
        "listopada grudnia",
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня",
        "Ιανουαρίου Φεβρουαρίου Μαρτίου Απριλίου Μαΐου Ιουνίου Ιουλίου Αυγούστου Σεπτεμβρίου "
        "Οκτωβρίου Νοεμβρίου Δεκεμβρίου",
    )
)
NO_NAMES = frozenset(
    "a address adresse all also an and any april are as at august avenue be beruf birth both but "
    "by can city code combien comment complete contact could cuál cuándo cuánto cómo das date "
    "december der describe did die do does dónde e-mail e-mail-adresse each ein eine email "
    "february few for from geburtsdatum geburtsort geburtstag give had has he her his home how i "
    "id if in is ist it january july june let list mail march may me my name new no nor not "
    "november now number nummer october of off old on one only or our out own où p.o phone please "
    "postal pourquoi quand quel quelle qui quién qué recite security see september she so social "
    "some ssn state street such telefonnummer telephone tell than that the their then there these "
    "they this those to too two united university until up us very wann was we welche welcher wer "
    "were what when where which who whose why wie with wo wohnort yes yet you your zip ποια ποιος "
    "πού πότε στη στην στις στο στον στους где как какой когда кто мой моя на он она они по".split()
)
REPLIES = frozenset("ja nein no non none oui sí sim true false yes".split())  # no names if alone
TITLES = frozenset(
    "dr prof professor doctor mr mrs ms miss mx sir dame lady madam rev reverend sr jr phd md esq "
    "ii iii president senator captain colonel sergeant "
    "herr herrn frau fräulein doktor professorin dipl ing "
    "mme mlle monsieur madame mademoiselle maître docteur professeur professeure docteure pr "
    "sra srta señor señora señorita doña doctora profesor profesora lic don".split()
)
_TITLED = re.compile(rf"(?:\b(?:{'|'.join(TITLES)})\.? )+\*", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PART = re.compile(r"[^\W\d_]+")
_RUNNING = re.compile(r"(?<![\w@.])[^\W\d_]+(?![\w@])")
_ADDRESS = re.compile(r"[^\s@]*@[^\s@]+|(?:https?://|www\.)\S+|\S+\.\w+/\S+")
_TOKEN = re.compile(r"(?<![^\W_])[^\W\d_]+(?:['’-][^\W\d_]+)*\.?")
_ELIDED = re.compile(r"(?:[^\W\d_A-Z]{1,5}|[CJLMNST]|Qu)['’](?=[^\W\d_])")  # d'Anna, L'an
_ENDING = re.compile(r"['’](?:s|ll|d|ve|re|m)\Z", re.IGNORECASE)  # Anna's, Anna'll
_TRIES = 4  # draws of numbers until a twin differs from its row
STAND_IN = "b-"  # prefix of the ids of twins that serve as holdout rows
LONG, CHANGED = 20, 0.1  # words of a passage, and least share of them that a twin replaces
FEWEST = 4  # twins that serve as non-members: two per split


def make_twins(
    rows: Sequence[Row], *, corpus: Sequence[Row] = (), per_row: int = 1, seed: int = 0
) -> list[Row]:
    """Generate perturbed twins of some rows.

    Names are found by their upper-case first letter, so there are none in a script without case.

    Args:
        rows: Rows to imitate.
        corpus: Further rows of the same kind. They show which digits of a number vary (the ``900``
            of a made-up Social Security number does not) and which words are not names, and they
            have other answers to the same questions, unless they are holdout rows, which are not
            imitated.
        per_row: Number of twins per row.
        seed: Random seed. The same rows and seed give the same twins.

    Returns:
        Twins in the order of ``rows``, with the split ``holdout`` and the id ``twinN:ID``. A row
        has no twin if its prompt contains no name or number to replace, or if the part of the
        answer that is not in the prompt contains none and no other row has the same question
        about another name and a different answer, or if the twin would equal a row of ``rows`` or
        ``corpus``.

    Example:
        >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
        >>> make_twins([row])[0].input != row.input
        True
        >>> rows = [row, Row("b-qa0", "Where does Ann Lee live?", "Rome")]
        >>> other = Row("c-qa0", "Where does Tom Cole live?", "Oslo")
        >>> [twin.output for twin in make_twins(rows[1:], corpus=[other])], len(make_twins(rows))
        (['Oslo'], 1)
    """
    everything = [*rows, *corpus]
    texts = [text for row in everything for text in (row.input, row.output)]
    common = _lower_case_words(texts)
    digits = digits_by_form(texts)
    told = [*rows, *(row for row in corpus if row.split != "holdout")]  # no unseen fact is used
    answers = _rows_by_question(told, common)
    taken = {row.document for row in everything}
    twins = []
    for number in range(per_row):
        people: dict[str, _People] = {}  # by subject: rows of one document stay consistent
        for row in rows:
            own = people.setdefault(row.subject, _People())
            own.add(row, common, random.Random(f"{seed}-{number}-{row.subject}"))
            draws = [
                random.Random(f"{seed}-{number}-{row.id}{f'-{attempt}' if attempt else ''}")
                for attempt in range(_TRIES)
            ]
            found = _twin(row, own, common, digits, answers, taken, draws)
            if found:
                taken.add(found.document)
                twins.append(replace(
                    found, id=f"twin{number}:{row.id}", split="holdout",
                    subject=f"twin{number}-{row.subject}", paraphrased="", perturbed=(),
                    further_answers=(),
                ))  # fmt: skip
    return twins


def nonmember_twins(rows: Sequence[Row], *, corpus: Sequence[Row] = (), seed: int = 0) -> list[Row]:
    """Generate twins that serve as non-members: one per row, or more if few rows have a twin.

    Arguments and return value as in ``make_twins``.

    >>> row = Row("a-qa0", "When was Ann Lee born?", "1987-03-02")
    >>> len(nonmember_twins([row]))
    4
    """
    twins = make_twins(rows, corpus=corpus, seed=seed)
    if not twins or len(twins) >= FEWEST:
        return twins
    return make_twins(rows, corpus=corpus, per_row=-(-FEWEST // len(twins)), seed=seed)


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


@dataclass(frozen=True)
class _Name:
    """A name in a text, without titles and possessive endings.

    Attributes:
        text: The name as it is written.
        parts: Its words, without full stops.
        titled: Whether a title precedes it.
    """

    text: str
    parts: tuple[str, ...]
    titled: bool

    @property
    def lone(self) -> bool:
        """Whether this is a single capitalised word without a title, which may be no name."""
        return len(self.parts) == 1 and not self.titled


@dataclass
class _People:
    """The names of one subject and their replacements, in lower case.

    Attributes:
        words: New words by the words of the names.
        handles: The same for what addresses are made of: initials, joined and ASCII words.
        lone: Words of the current row's answer that may be no names.
    """

    words: dict[str, str] = field(default_factory=dict)
    handles: dict[str, str] = field(default_factory=dict)
    lone: frozenset[str] = frozenset()

    def add(self, row: Row, common: frozenset[str], draw: random.Random) -> None:
        """Draw replacements for the names in a row."""
        text = "\n".join([*_said(row), row.input, row.output])
        seen = frozenset(
            part.lower()
            for word in [*text.split(), *_ADDRESS.findall(text)]
            for part in _PART.findall(word)
            if part[0].isupper() or _ADDRESS.fullmatch(word)
        )
        names = _names(text, common)
        for name in names:
            _rename(name, self.words, seen, draw)
            self.handles |= _handles(name, self.words)
        asked = _chunks(row.prompt)
        self.lone = frozenset(
            _key(name.parts[0]) for name in names if name.lone and _key(name.parts[0]) not in asked
        )


def names_in(text: str, common: frozenset[str] = frozenset()) -> list[str]:
    """Return names of people in a text: sequences of capitalised words, or else single ones.

    Titles are not part of a name, and a single word after a title is a name like a sequence.

    Args:
        common: Words, in lower case, that are not names.

    >>> names_in("Is Frau Dr. Anna Schmidt the aunt of Mr. Jean-Luc Roy's wife?")
    ['Anna Schmidt', 'Jean-Luc Roy']
    """
    return list(dict.fromkeys(name.text for name in _names(text, common)))


def _names(text: str, common: frozenset[str]) -> list[_Name]:
    runs: list[list[tuple[str, int, int]]] = []  # words with their places
    for found in _TOKEN.finditer(text):
        token = found.group().rstrip(".")
        word, start = _bare(token)
        if not _capitalised(word) or token.lower() in NO_NAMES:
            continue
        if word.lower() in NO_NAMES or word.lower() in common or _is_month(word):
            continue
        start += found.start()
        gap = text[runs[-1][-1][2] : start] if runs else ""
        place = (word, start, start + len(word))
        runs[-1].append(place) if gap in (" ", ". ") else runs.append([place])
    names = list(dict.fromkeys(filter(None, (_untitled(text, run) for run in runs))))
    alone = [n for n in names if n.lone and len(n.text) > 2 and n.text.lower() not in REPLIES]
    inside = [name for name in alone if not text.startswith(name.text)]
    return [name for name in names if not name.lone] or inside or alone


def _untitled(text: str, run: Sequence[tuple[str, int, int]]) -> _Name | None:
    """Return the name in a sequence of capitalised words; None if all are titles."""
    first, last = 0, len(run)
    while first < last and _is_title(run[first][0], last - first):
        first += 1
    while first < last and _is_title(run[last - 1][0], 3):
        last -= 1
    if first == last:
        return None
    words = run[first:last]
    return _Name(text[words[0][1] : words[-1][2]], tuple(w for w, _, _ in words), first > 0)


def _is_title(word: str, words: int) -> bool:
    """Return whether a word of a sequence is a title; in ``Don Draper``, Don is a first name."""
    return word.lower() in TITLES and (word != "Don" or words > 2)


def _capitalised(word: str) -> bool:
    return word[:1].isupper() or word[:1].istitle()


def _bare(token: str) -> tuple[str, int]:
    """Return a word without elided article and possessive ending, and its place in the token.

    >>> _bare("d’Anna"), _bare("Lee's"), _bare("O'Neill"), _bare("L'adresse")
    (('Anna', 2), ('Lee', 0), ("O'Neill", 0), ('adresse', 2))
    """
    stem = _ENDING.sub("", token)
    found = _ELIDED.match(stem)
    if found and _capitalised(stem[found.end() :]) != _capitalised(stem):
        return stem[found.end() :], found.end()
    return stem, 0


def _key(word: str) -> str:
    return word.lower().replace("’", "'")


def _rename(name: _Name, words: dict[str, str], seen: frozenset[str], draw: random.Random) -> None:
    """Add a new word for each word of a name to ``words``, in lower case.

    Args:
        seen: Capitalised words of the row and of its addresses, in lower case. ``Schmidts`` is the
            German genitive of ``Schmidt`` if ``schmidt`` is among them or among ``words``.
    """
    for place, part in enumerate(name.parts):
        several = len(name.parts) > 1 or name.titled
        for key in _key(part).split("-"):
            stem = key[:-1] if key.endswith("s") and len(key) > 3 else ""
            genitive = bool(stem) and (stem in words or stem in seen)
            new = stem if genitive else key
            if new not in words and len(key) > 1:
                pool = _pool(new, last=place == len(name.parts) - 1 and several)
                unused = [w for w in pool if w.lower() not in words.values()]
                words[new] = draw.choice(unused or pool).lower()
            if genitive:
                words.setdefault(key, f"{words[stem]}s")


def _pool(word: str, last: bool) -> list[str]:
    """Return last or first names in the script of a word; others have Latin names.

    >>> _pool("анна", last=False)[0], _pool("lee", last=True)[0]
    ('Алина', 'Abbott')
    """
    script = unicodedata.name(word[0], "").split(" ")[0]
    names = (OTHER_LAST if last else OTHER_FIRST).get(script)
    if names is None:
        return LAST if last else FIRST
    men, women = names
    return (women if word.endswith(FEMININE) else men).split()


def _handles(name: _Name, words: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of e-mail addresses: a name's words in ASCII, joined, and its initials."""
    found: dict[str, str] = {}
    parts = [[k for k in _key(part).split("-") if k in words] for part in name.parts]
    for keys in filter(None, parts):
        found["".join(keys)] = "".join(words[key] for key in keys)
    pairs = list(found.items())
    for (one, new_one), (other, new_other) in ((p, q) for p in pairs for q in pairs if p != q):
        found[one + other] = new_one + new_other
        found[one[0] + other] = new_one[0] + new_other
        found[one + other[0]] = new_one + new_other[0]
    found["".join(old for old, _ in pairs)] = "".join(new for _, new in pairs)
    found |= {old[0]: new[0] for old, new in reversed(pairs)}
    found |= {key: words[key] for keys in parts for key in keys}
    return {form: new for old, new in found.items() for form in _ascii_forms(old) if form}


def _ascii_forms(word: str) -> set[str]:
    """Return the forms of a word in addresses.

    >>> sorted(_ascii_forms("o'müller"))
    ['omueller', 'omuller', 'omüller']
    """
    plain = word.replace("'", "")
    german = plain.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue").replace("ß", "ss")
    forms = {plain, german, plain.replace("ß", "ss").replace("ø", "o").replace("ł", "l")}
    return {
        "".join(c for c in unicodedata.normalize("NFKD", form) if not unicodedata.combining(c))
        for form in forms
    } | {plain}


def _said(row: Row) -> list[str]:
    """Return the earlier turns of a conversation, without the system message."""
    return [message.content for message in row.messages if message.role != "system"]


def _chunks(text: str) -> list[str]:
    """Return the words of a text, addresses and numbers undivided, without punctuation."""
    edges = string.punctuation + "“”„«»‘’…¿¡。？！，、"
    stripped = (_ENDING.sub("", word.strip(edges)) for word in text.casefold().split())
    return [word for word in stripped if word]


def _secret(row: Row) -> list[str]:
    """Return the words of an answer that its prompt does not give."""
    given = set(_chunks(row.prompt))
    return [word for word in _chunks(row.output) if word not in given]


def _differs(row: Row, twin: Row) -> bool:
    """Return whether a twin is about another name or number, and has another answer.

    A row that completes a text or is part of a document may have the same prompt. An answer that
    differs only in words of the prompt, such as ``Ann Lee lives in Rome``, is the same answer, and
    so is a passage of a story in which only a name is another one.
    """
    if twin.prompt == row.prompt and row.kind != "sc" and not row.window:
        return False
    if not row.output:
        return True
    secret, other = _secret(row), _secret(twin)
    if len(secret) > LONG:
        kept = SequenceMatcher(None, secret, other, False).get_matching_blocks()
        return 1 - sum(block.size for block in kept) / len(secret) >= CHANGED
    return twin.output != row.output and (not secret or other != secret)


def _twin(
    row: Row,
    people: _People,
    common: frozenset[str],
    digits: dict[str, list[str]],
    answers: Mapping[str, Sequence[Row]],
    taken: set[str],
    draws: Sequence[random.Random],
) -> Row | None:
    """Return a row with other names, numbers and dates, or with another row's answer.

    A capitalised word of the answer that may be no name, such as a city, is replaced by a name only
    if no row with the same question has another answer.

    Args:
        answers: Rows by question; see ``_question``.
        taken: Texts of rows, which a twin must not equal.
        draws: A source of random numbers for each try.
    """

    def allowed(twin: Row) -> bool:
        return twin.document not in taken and _differs(row, twin)

    tries = [_perturbed(row, people.words, people.handles, digits, draw) for draw in draws]
    twin = next(filter(allowed, tries), None)
    if twin and people.lone:
        sure = {old: new for old, new in people.words.items() if old not in people.lone}
        draw = random.Random(0)
        if _differs(row, _perturbed(row, sure, people.handles, digits, draw)):
            return twin
    elif twin:
        return twin
    others = [o for o in answers.get(_question(row, common), ()) if _secret(o) != _secret(row)]
    outputs: list[str] = []
    for some in ([o for o in others if o.split == "retain"], others):  # rather no forget answer
        told = (_answer_of(one, row, tries[0], people.words, common) for one in some)
        outputs = outputs or [
            text for text in dict.fromkeys(told) if allowed(replace(tries[0], output=text))
        ]
    return replace(tries[0], output=draws[0].choice(outputs)) if outputs else twin


def _perturbed(
    row: Row,
    words: Mapping[str, str],
    handles: Mapping[str, str],
    digits: dict[str, list[str]],
    draw: random.Random,
) -> Row:
    """Return a row with other words and numbers; equal numbers and months stay equal."""
    known: dict[str, str] = {}

    def changed(text: str) -> str:
        renamed = _renamed(text, words, handles, known, draw)

        def number(match: re.Match[str]) -> str:
            new = other_number(match.group(), digits, draw, renamed[match.end() : match.end() + 2])
            return known.setdefault(match.group(), new)

        return ORDINAL.sub(ordinal, NUMBERED.sub(number, renamed))

    prompt, answer = changed(row.input), changed(row.output)
    messages = tuple(
        m if m.role == "system" else replace(m, content=changed(m.content)) for m in row.messages
    )
    return replace(row, input=prompt, output=answer, messages=messages)


def _renamed(
    text: str,
    words: Mapping[str, str],
    handles: Mapping[str, str],
    months: dict[str, str],
    draw: random.Random | None = None,
) -> str:
    """Replace words, also in addresses, and months if there is a source of random numbers."""
    addresses = [found.span() for found in _ADDRESS.finditer(text)]

    def new_of(word: str, place: int) -> str | None:
        key = _key(word)
        end = next((end for start, end in addresses if start <= place < end), 0)
        if end and key not in words and (len(key) > 1 or "@" in text[place:end]):
            return handles.get(key)
        return words.get(key)

    def part(word: str, place: int) -> str:
        if draw and (others := _is_month(word)):
            return months.setdefault(word, draw.choice([m for m in others if m != word]))
        new = new_of(word, place)
        if new is None:
            return word
        if word.isupper() and len(word) > 1:
            return new.upper()
        return new.capitalize() if word[0].isupper() else new

    def whole(match: re.Match[str]) -> str:
        token, place = match.group(), match.start()
        word, start = _bare(token)
        end = start + len(word)
        if new_of(word, place + start) is None:
            return _PART.sub(lambda m: part(m.group(), place + m.start()), token)
        return token[:start] + part(word, place + start) + token[end:]

    return _WORD.sub(whole, text)


def _question(row: Row, common: frozenset[str]) -> str:
    """Return a prompt with placeholders for names, months and numbers.

    >>> _question(Row("a", "Where did Mr. Lee live in May 1987?", ""), frozenset())
    'Where did * live in * #?'
    """
    text = row.prompt
    for name in sorted(names_in(row.input, common), key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "*", text)
    text = _PART.sub(lambda m: "*" if _is_month(m.group()) else m.group(), _TITLED.sub("*", text))
    return NUMBERED.sub("#", text)


def _rows_by_question(rows: Iterable[Row], common: frozenset[str]) -> dict[str, list[Row]]:
    """Return the rows with an answer by question; windows of documents have none."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.output and not row.window:
            found.setdefault(_question(row, common), []).append(row)
    return found


def _answer_of(
    other: Row, row: Row, twin: Row, words: Mapping[str, str], common: frozenset[str]
) -> str:
    """Return another row's answer to the same question, with the names and numbers of a twin."""
    text, new = other.output, dict[str, str]()
    names = zip(_names(other.input, common), _names(row.input, common), strict=False)
    for theirs, ours in names:
        name = _renamed(ours.text, words, {}, {})
        text = re.sub(rf"(?<!\w){re.escape(theirs.text)}(?!\w)", name, text)
        new |= {_key(theirs.parts[i]): _key(name.split(" ")[i]) for i in (0, -1)}
    replaced = NUMBERED.findall(other.input), NUMBERED.findall(twin.input)
    numbers = dict(zip(*replaced, strict=False))
    return NUMBERED.sub(lambda m: numbers.get(m.group(), m.group()), _renamed(text, new, {}, {}))


def _lower_case_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of running text, without parts of addresses."""
    words = (word for text in texts for word in _RUNNING.findall(_ADDRESS.sub(" ", text)))
    return frozenset(word for word in words if word.islower() and len(word) > 3)


def _is_month(word: str) -> tuple[str, ...]:
    """Return the months of the language in which this word is a month; empty otherwise."""
    return next((months for months in MONTHS if word in months), ())
