"""Find names of people in texts, and the words that are capitalised without being names.

Names are found by their upper-case first letter, so there are none in a script without case.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
TITLED = re.compile(rf"(?:\b(?:{'|'.join(TITLES)})\.? )+\*", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_]+")
_RUNNING = re.compile(r"(?<![\w@.])[^\W\d_]+(?![\w@])")
ADDRESS = re.compile(r"[^\s@]*@[^\s@]+|(?:https?://|www\.)\S+|\S+\.\w+/\S+")
_TOKEN = re.compile(r"(?<![^\W_])[^\W\d_]+(?:['’-][^\W\d_]+)*\.?")
_ELIDED = re.compile(r"(?:[^\W\d_A-Z]{1,5}|[CJLMNST]|Qu)['’](?=[^\W\d_])")  # d'Anna, L'an
_ENDING = re.compile(r"['’](?:s|ll|d|ve|re|m)\Z", re.IGNORECASE)  # Anna's, Anna'll


@dataclass(frozen=True)
class PersonName:
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


def names_in(text: str, common: frozenset[str] = frozenset()) -> list[str]:
    """Return names of people in a text: sequences of capitalised words, or else single ones.

    Titles are not part of a name, and a single word after a title is a name like a sequence.

    Args:
        common: Words, in lower case, that are not names.

    >>> names_in("Is Frau Dr. Anna Schmidt the aunt of Mr. Jean-Luc Roy's wife?")
    ['Anna Schmidt', 'Jean-Luc Roy']
    """
    return list(dict.fromkeys(name.text for name in find_names(text, common)))


def find_names(text: str, common: frozenset[str]) -> list[PersonName]:
    """Return the names of ``names_in`` with their words and whether a title precedes them."""
    runs: list[list[tuple[str, int, int]]] = []  # words with their places
    for found in _TOKEN.finditer(text):
        token = found.group().rstrip(".")
        word, start = bare_word(token)
        if not _capitalised(word) or token.lower() in NO_NAMES:
            continue
        if word.lower() in NO_NAMES or word.lower() in common or months_like(word):
            continue
        start += found.start()
        gap = text[runs[-1][-1][2] : start] if runs else ""
        place = (word, start, start + len(word))
        runs[-1].append(place) if gap in (" ", ". ") else runs.append([place])
    names = list(dict.fromkeys(filter(None, (_untitled(text, run) for run in runs))))
    alone = [n for n in names if n.lone and len(n.text) > 2 and n.text.lower() not in REPLIES]
    inside = [name for name in alone if not text.startswith(name.text)]
    return [name for name in names if not name.lone] or inside or alone


def _untitled(text: str, run: Sequence[tuple[str, int, int]]) -> PersonName | None:
    """Return the name in a sequence of capitalised words; None if all are titles."""
    first, last = 0, len(run)
    while first < last and _is_title(run[first][0], last - first):
        first += 1
    while first < last and _is_title(run[last - 1][0], 3):
        last -= 1
    if first == last:
        return None
    words = run[first:last]
    return PersonName(text[words[0][1] : words[-1][2]], tuple(w for w, _, _ in words), first > 0)


def _is_title(word: str, words: int) -> bool:
    """Return whether a word of a sequence is a title; in ``Don Draper``, Don is a first name."""
    return word.lower() in TITLES and (word != "Don" or words > 2)


def _capitalised(word: str) -> bool:
    return word[:1].isupper() or word[:1].istitle()


def bare_word(token: str) -> tuple[str, int]:
    """Return a word without elided article and possessive ending, and its place in the token.

    >>> bare_word("d’Anna"), bare_word("Lee's"), bare_word("O'Neill"), bare_word("L'adresse")
    (('Anna', 2), ('Lee', 0), ("O'Neill", 0), ('adresse', 2))
    """
    stem = _ENDING.sub("", token)
    found = _ELIDED.match(stem)
    if found and _capitalised(stem[found.end() :]) != _capitalised(stem):
        return stem[found.end() :], found.end()
    return stem, 0


def word_key(word: str) -> str:
    """Return a word in lower case with a plain apostrophe, the same for both spellings."""
    return word.lower().replace("’", "'")


def months_like(word: str) -> tuple[str, ...]:
    """Return the months of the language in which this word is a month; empty otherwise."""
    return next((months for months in MONTHS if word in months), ())


def lower_case_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of running text, without parts of addresses."""
    words = (word for text in texts for word in _RUNNING.findall(ADDRESS.sub(" ", text)))
    return frozenset(word for word in words if word.islower() and len(word) > 3)


def chunks(text: str) -> list[str]:
    """Return the words of a text, addresses and numbers undivided, without punctuation."""
    edges = string.punctuation + "“”„«»‘’…¿¡。？！，、"
    stripped = (_ENDING.sub("", word.strip(edges)) for word in text.casefold().split())
    return [word for word in stripped if word]
