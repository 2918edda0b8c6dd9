"""Draw other names for people, and replace names and months in texts, addresses included."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from mergeforget.data.names import (
    ADDRESS,
    LETTERS,
    PersonName,
    bare_word,
    chunks,
    find_names,
    is_acronym,
    months_like,
    word_key,
)
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
_PERSON = re.compile(  # asks for a person
    r"\b(?:who|whom|whose|names?|called|wer|wen|wem|wessen|heißt|qui|nom|quién|quiénes|nombre|chi|nome"
    r"|quem|kim|adı|кто|кого|кому|кем|имя|зовут|ποιος|ποια|ποιον)\b",
    re.IGNORECASE,
)
_KEYWORD = re.compile(r"([^\W\d_]{4,})\d+\W?")  # an answer such as hunter2
_LOCAL = re.compile(r"[^\s@]+@")  # the first part of an e-mail address
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass
class NewNames:
    """The names of one subject and their replacements, in lower case.

    Attributes:
        words: New words by the words of the names.
        handles: The same for what addresses are made of: initials, joined and ASCII words.
        doubtful: Words of the current row's answer that may be no names: a single word, or words
            such as ``Software Engineer`` if the prompt asks for no person.
    """

    words: dict[str, str] = field(default_factory=dict)
    handles: dict[str, str] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()

    def add(self, row: Row, common: frozenset[str], draw: random.Random) -> None:
        """Draw replacements for the names in a row.

        A single capitalised word within a sentence of the prompt is a name, even if the answer has
        names in full. A name that a document's windows divide is one name. Addresses of people who
        are not named, and an answer such as ``hunter2``, get new words, too.
        """
        asking = "\n".join([*_said(row), row.input])
        text = f"{asking}{'' if row.output[:1].isspace() else chr(10)}{row.output}"
        seen = frozenset(
            part.lower()
            for word in [*text.split(), *ADDRESS.findall(text)]
            for part in LETTERS.findall(word)
            if part[0].isupper() or ADDRESS.fullmatch(word)
        )
        asked_about = [
            name
            for name in find_names(asking, common)
            if re.search(rf"[\w,;'’] {re.escape(name.text)}(?!\w)", asking)
        ]
        told = [
            name
            for name in find_names(text, common)
            if not (name.lone and is_acronym(name.text, asking if name.text in asking else text))
        ]
        names = list(dict.fromkeys([*told, *asked_about]))
        for name in names:
            _rename(name, self.words, seen, draw)
            self.handles |= _handles(name, self.words)
        if keyword := _KEYWORD.fullmatch(row.output.strip()):
            self.words.setdefault(word_key(keyword[1]), draw.choice(LAST).lower())
        for address in filter(_LOCAL.match, ADDRESS.findall(text)):
            parts = [part.lower() for part in LETTERS.findall(address.partition("@")[0])]
            if not any(part in self.words or part in self.handles for part in parts):
                self.handles |= {p: draw.choice(LAST).lower()[: 1 if len(p) == 1 else None]
                                 for p in parts}  # fmt: skip
        asked = {part for word in chunks(row.prompt) for part in (word, *word.split("-"))}
        person = _PERSON.search(row.input)
        self.doubtful = frozenset(
            key
            for name in names
            if name.lone or not name.titled and not person
            for part in name.parts
            for key in word_key(part).split("-")
        ).difference(asked)


def _rename(
    name: PersonName, words: dict[str, str], seen: frozenset[str], draw: random.Random
) -> None:
    """Add a new word for each word of a name to ``words``, in lower case.

    Args:
        seen: Capitalised words of the row and of its addresses, in lower case. ``Schmidts`` is the
            German genitive of ``Schmidt`` if ``schmidt`` is among them or among ``words``.
    """
    for place, part in enumerate(name.parts):
        several = len(name.parts) > 1 or name.titled
        for key in word_key(part).split("-"):
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


def _handles(name: PersonName, words: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of e-mail addresses: a name's words in ASCII, joined, and its initials."""
    found: dict[str, str] = {}
    parts = [[k for k in word_key(part).split("-") if k in words] for part in name.parts]
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


def with_new_names(
    text: str,
    words: Mapping[str, str],
    handles: Mapping[str, str],
    months: dict[str, str],
    draw: random.Random | None = None,
) -> str:
    """Replace words, also in addresses, and months if there is a source of random numbers."""
    addresses = [found.span() for found in ADDRESS.finditer(text)]

    def new_of(word: str, place: int) -> str | None:
        key = word_key(word)
        end = next((end for start, end in addresses if start <= place < end), 0)
        if end and key not in words and (len(key) > 1 or "@" in text[place:end]):
            return handles.get(key)
        return words.get(key)

    def part(word: str, place: int) -> str:
        if draw and (others := months_like(word)):
            return months.setdefault(word, draw.choice([m for m in others if m != word] or [word]))
        new = new_of(word, place)
        if new is None:
            return word
        if word.isupper() and len(word) > 1:
            return new.upper()
        return new.capitalize() if word[0].isupper() else new

    def whole(match: re.Match[str]) -> str:
        token, place = match.group(), match.start()
        word, start = bare_word(token)
        end = start + len(word)
        if new_of(word, place + start) is None:
            return LETTERS.sub(lambda m: part(m.group(), place + m.start()), token)
        return token[:start] + part(word, place + start) + token[end:]

    return _WORD.sub(whole, text)
