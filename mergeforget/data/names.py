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
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre "
        "dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "Ocak Şubat Mart Nisan Mayıs Haziran Temmuz Ağustos Eylül Ekim Kasım Aralık",
        "januari februari maart april mei juni juli augustus september oktober november december",
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października "
        "listopada grudnia",
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня",
        "Ιανουαρίου Φεβρουαρίου Μαρτίου Απριλίου Μαΐου Ιουνίου Ιουλίου Αυγούστου Σεπτεμβρίου "
        "Οκτωβρίου Νοεμβρίου Δεκεμβρίου",
    )
)
FRENCH_MONTHS = MONTHS[2]
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
    "πού πότε στη στην στις στο στον στους где как какой когда кто мой моя на он она они по "
    "bonjour danke dear gracias hallo hello hey hi hola merci okay please sorry sure thank thanks "
    "welcome after before every during its many most several since some their today".split()
)
REPLIES = frozenset("ja nein no non none oui sí sim true false yes".split())  # no names if alone
TITLES = frozenset(
    "dr prof professor doctor mr mrs ms miss mx sir dame lady madam rev reverend sr jr phd md esq "
    "ii iii president senator captain colonel sergeant capt col gen gov lt sen sgt chancellor "
    "lieutenant mayor minister aunt uncle grandma grandpa "
    "herr herrn frau fräulein doktor professorin dipl ing "
    "mme mlle monsieur madame mademoiselle maître docteur professeur professeure docteure pr "
    "sra srta señor señora señorita doña doctora profesor profesora lic don".split()
)
STREETS = frozenset(
    "avenue ave blvd boulevard close court crescent drive lane ln place rd road row square street "
    "terrace walk way".split()
)
TITLED = re.compile(rf"(?:\b(?:{'|'.join(TITLES)})\.? )+\*", re.IGNORECASE)
LETTERS = re.compile(r"[^\W\d_]+")
_RUNNING = re.compile(r"(?<![\w@.])[^\W\d_]+(?![\w@])")
ADDRESS = re.compile(r"[^\s@]*@[^\s@]+|(?:https?://|www\.)\S+|\S+\.\w+/\S+")
_TOKEN = re.compile(r"(?<![^\W_])[^\W\d_]+(?:['’-][^\W\d_]+)*\.?")
_ELIDED = re.compile(r"(?:[^\W\d_A-Z]{1,5}|[CJLMNST]|Qu)['’](?=[^\W\d_])")  # d'Anna, L'an
_ENDING = re.compile(r"['’](?:s|ll|d|ve|re|m)\Z", re.IGNORECASE)  # Anna's, Anna'll
_SUFFIX = re.compile(r"(?<=[^\W\d_]{3})['’][a-zçğıöşü]{1,6}\Z")  # Turkish Anna'nın
# Room 12, Case No. 7, but not Rome 1990
_LABEL = re.compile(r" (?:N[or]\. ?|# ?|№ ?|(?!(?:1[5-9]|20)\d\d\b))\d")
_OBJECT = re.compile(  # after a verb at the beginning of a sentence: Cancel my, Nenne die
    r" (?:a|all|an|das|dem|den|der|die|ein|eine|einen|el|her|his|it|its|la|las|le|les|los|me|mein"
    r"|meine|mi|mon|my|our|that|the|their|these|this|those|un|una|une|us|your)\b"
)
_EXCLAIMED = re.compile(r"[.!] +[^\W\d_a-z]")  # Done. Your parcel
_ACRONYM = 4  # most letters of an abbreviation in upper case, such as IBAN


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
    """Return the names of ``names_in`` with their words and whether a title precedes them.

    >>> [name.text for name in find_names("Is Leon Gast HIV positive? Ask Dr. Voss.", frozenset())]
    ['Leon Gast', 'Voss']
    """
    runs: list[list[tuple[str, int, int]]] = []  # words with their places
    for found in _TOKEN.finditer(text):
        token = found.group().rstrip(".")
        word, start = bare_word(token)
        if not _capitalised(word) or token.lower() in NO_NAMES:
            continue
        if word.lower() in NO_NAMES or word.lower() in common or months_like(word):
            continue
        start += found.start()
        end = start + len(word)
        before = text[start - 1 : start]
        if len(word) == 1 and before and before not in " \n\t-.(\"'“‘«":  # the unit °C
            continue
        if word.isupper() and "_" in (before, text[end : end + 1]):  # a constant, DB_HOST
            continue
        last, _, over = runs[-1][-1] if runs else ("", 0, 0)
        gap = text[over:start] if runs else ""
        short = len(last) == 1 or last.lower() in TITLES  # a full stop that ends no sentence
        joined = gap == " " or gap == ". " and short
        place = (word, start, end)
        runs[-1].append(place) if joined else runs.append([place])
    shown = [(run, name) for run in runs if (name := _untitled(text, run))]
    names = list(dict.fromkeys(n for run, n in shown if not n.lone or not _no_name(text, run[0])))
    alone = [n for n in names if n.lone and len(n.text) > 2 and n.text.lower() not in REPLIES]
    told = [n for n in alone if not is_acronym(n.text, text)]
    alone = told or ([] if re.search(r"\d", text) else alone)
    inside = [name for name in alone if not text.startswith(name.text)]
    return [name for name in names if not name.lone] or inside or alone


def is_acronym(word: str, text: str) -> bool:
    """Return whether a word is in upper case, short, and part of a text in mixed case."""
    return word.isupper() and 1 < len(word) <= _ACRONYM and text.upper() != text


def _no_name(text: str, word: tuple[str, int, int]) -> bool:
    """Return whether a single capitalised word has a number, is a verb, or is exclaimed."""
    written, start, end = word
    if _LABEL.match(text, end) or is_acronym(written, text) and re.match(" [a-z]", text[end:]):
        return True
    begins = not text[:start].strip(" \n\"'“‘«¿¡") or re.search(r"[.!?:\n]\W*\Z", text[:start])
    return bool(begins and (_OBJECT.match(text, end) or _EXCLAIMED.match(text, end)))


def _untitled(text: str, run: Sequence[tuple[str, int, int]]) -> PersonName | None:
    """Return the name in a sequence of capitalised words; None if all are titles.

    Abbreviations before and after it, and the ``Lane`` of ``12 Birch Lane``, are no part of it.
    """
    first, last = 0, len(run)
    while first < last and _is_title(run[first][0], last - first):
        first += 1
    for place in range(first, last - 1):
        word, _, end = run[place]
        if text[end : end + 1] == "." and word.lower() in TITLES.difference(("jr", "sr")):
            first = place + 1  # Ask Dr. Voss
    titled = first > 0
    while first < last and _is_title(run[last - 1][0], 3):
        last -= 1
    while last - first > 1 and is_acronym(run[first][0], text) and not titled:
        first += 1
    while last - first > 2 and is_acronym(run[last - 1][0], text):
        last -= 1
    numbered = re.search(r"\d[A-Za-z]? \Z", text[: run[0][1]])
    if last - first > 1 and run[last - 1][0].lower() in STREETS and numbered:
        last -= 1
    if first == last:
        return None
    words = run[first:last]
    return PersonName(text[words[0][1] : words[-1][2]], tuple(w for w, _, _ in words), titled)


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
    stem = _SUFFIX.sub("", _ENDING.sub("", token))
    found = _ELIDED.match(stem)
    if found and _capitalised(stem[found.end() :]) != _capitalised(stem):
        return stem[found.end() :], found.end()
    return stem, 0


def word_key(word: str) -> str:
    """Return a word in lower case with a plain apostrophe, the same for both spellings."""
    return word.lower().replace("’", "'")


def months_like(word: str) -> tuple[str, ...]:
    """Return the months of the language in which this word is a month; empty otherwise.

    Those of a word of several languages are months in all of them.

    >>> months_like("August"), months_like("agosto")
    (('April', 'August', 'September', 'November'), ('agosto',))
    """
    known = [months for months in MONTHS if word in months]
    return tuple(m for m in known[0] if all(m in other for other in known)) if known else ()


def lower_case_words(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of running text, without parts of addresses."""
    words = (word for text in texts for word in _RUNNING.findall(ADDRESS.sub(" ", text)))
    return frozenset(word for word in words if word.islower() and len(word) > 3)


def chunks(text: str) -> list[str]:
    """Return the words of a text, addresses and numbers undivided, without punctuation."""
    edges = string.punctuation + "“”„«»‘’…¿¡。？！，、"
    stripped = (_ENDING.sub("", word.strip(edges)) for word in text.casefold().split())
    return [word for word in stripped if word]
