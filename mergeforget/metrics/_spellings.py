"""Normalises spellings, so that a secret is found in a text whatever its form.

``words_of`` unifies case, diacritics, dates, street words and US states. ``canonical`` rewrites a
text beforehand: markup, look-alike letters, spelled words, number words, currencies, units.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from mergeforget.metrics._characters import (
    LOOK_ALIKE,
    MARKS,
    NO_SPACES,
    UMLAUTS,
    plain,
    unescaped,
    visible,
)
from mergeforget.metrics._dates import MONTHS, Order, with_dates, with_iso_dates, with_keyed_dates
from mergeforget.metrics._number_words import with_digits, with_han_digits
from mergeforget.metrics._quantities import GROUPS, quantities

SPELLED = 3  # minimum letters of a word that is spelled letter by letter

_STREETS = {
    "street": "st str", "avenue": "ave av", "road": "rd", "boulevard": "blvd", "drive": "dr",
    "lane": "ln", "court": "ct", "place": "pl", "square": "sq", "highway": "hwy",
    "parkway": "pkwy", "terrace": "ter terr", "circle": "cir", "trail": "trl", "way": "wy",
    "apartment": "apt", "suite": "ste", "building": "bldg", "floor": "fl", "mount": "mt",
    "north": "n", "south": "s", "east": "e", "west": "w",
}  # fmt: skip
_STATES = (
    "AL alabama AK alaska AZ arizona AR arkansas CA california CO colorado CT connecticut DE "
    "delaware FL florida GA georgia HI hawaii ID idaho IL illinois IN indiana IA iowa KS kansas KY "
    "kentucky LA louisiana ME maine MD maryland MA massachusetts MI michigan MN minnesota MS "
    "mississippi MO missouri MT montana NE nebraska NV nevada NH new_hampshire NJ new_jersey NM "
    "new_mexico NY new_york NC north_carolina ND north_dakota OH ohio OK oklahoma OR oregon PA "
    "pennsylvania RI rhode_island SC south_carolina SD south_dakota TN tennessee TX texas UT utah "
    "VT vermont VA virginia WA washington WV west_virginia WI wisconsin WY wyoming"
).split()


_FULL_WORD = {short: word for word, every in _STREETS.items() for short in every.split()}
_STATE_OF = dict(zip(_STATES[::2], _STATES[1::2], strict=True))
_LETTERS_OF_WORD = rf"[^\W_{NO_SPACES}]"
WORD = re.compile(  # each character of a script without spaces is a word, with its marks
    rf"(?=\w)[{NO_SPACES}][{MARKS}]*|{_LETTERS_OF_WORD}+(?:[{MARKS}]+{_LETTERS_OF_WORD}*)*"
)
_RHESUS = re.compile(  # AB positive, O Rh-; "a positive answer" is none
    r"(?<![\w+-])(AB|[ABO])[\s,]?[\s(]?(?:rh\s?(?:d\s?)?(?=[-+\s(]|pos|neg)[\s(]?)?"
    r"(?:(\+|pos(?:iti(?:ve?|f|vo))?(?![^\W_]))|(?:-|neg(?:ati(?:ve?|f|vo))?(?![^\W_])))"
    r"(?![\w+-])(?! (?!and|or|but|blood|type|which)[^\W\d_])", re.I,
)  # fmt: skip
_GRADE = re.compile(  # and C++17
    r"(?<![\w+#-])([A-Za-z])(\+\+?|#|-(?=[\s.,;:!?)\"']|$))(?![^\W\d]|[+#-])"
)
_SIGNED = re.compile(r"[+#]|-(?!\w)|pos|neg", re.I)
_SIGN_OF = {"+": " plus", "++": "plusplus ", "#": "sharp ", "-": " minus"}
SINGLE = re.compile(rf"(?=\w)[{NO_SPACES}]")
PER_WORD = 3  # characters of a script without spaces that are as long as one word


@lru_cache(maxsize=1 << 14)
def words_of(text: str, order: Order = "mdy") -> tuple[str, ...]:
    """Return the words of a text in a normalised spelling; a date is one word."""
    text = visible(GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text))
    text = re.sub(r"\b[A-Z]{2}\b", lambda m: _STATE_OF.get(m[0], m[0]).replace("_", " "), text)
    text = with_dates(plain(with_signs(text)), order)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,815
    text = re.sub(r"(?<=\w)['\u2019]s\b", "", text)
    text = re.sub(r"\b(km|mi|m)/(h|s)\b", r"\1\2", text)
    return tuple(_FULL_WORD.get(word, word) for word in WORD.findall(text))


def with_signs(text: str) -> str:
    """Spell out the signs in blood groups, grades and names of programming languages.

    >>> with_signs("AB+, O Rh negative, B-, C++ or C#")
    'AB plus, O minus, B minus, Cplusplus  or Csharp '
    """
    text = text.replace("\u2212", "-")
    if not _SIGNED.search(text):
        return text
    text = _RHESUS.sub(lambda m: f"{m[1]} {'plus' if m[2] else 'minus'}", text)
    return _GRADE.sub(lambda m: m[1] + _SIGN_OF[m[2]], text)


def length(words: Iterable[str]) -> float:
    """Return how long some words are; ``PER_WORD`` characters without spaces are one word.

    >>> length("She lives in Rome".split()), length("她住在罗马".split())
    (4.0, 1.6666666666666667)
    """
    parts = (part for word in words for part in (WORD.findall(word) if SINGLE.search(word)
                                                 else [word]))  # fmt: skip
    return sum(map(size_of, parts)) / PER_WORD


def size_of(word: str) -> int:
    """Return the length of one of ``words_of``, in characters of a script without spaces."""
    return 1 if SINGLE.match(word) else PER_WORD


_SEMITIC = re.compile(rf"[\u05d0-\u05ea\u0620-\u06ff][\w{MARKS}]*")
_ARTICLE = "\u0627\u0644"  # al-
_WITH_ARTICLE = re.compile(  # and, then; by, for, as; l + al- is written ll-
    r"(?:[\u0648\u0641]?[\u0628\u0643]?\u0627\u0644|[\u0648\u0641]?\u0644\u0644)(?=\w\w\w)"
)
_ARABIC = [a + b for a in ("", "\u0648", "\u0641") for b in ("", "\u0628", "\u0644", "\u0643")]
_HEBREW = [  # and; that, when; in, to, from, as; the
    a + b + c + d
    for a in ("", "\u05d5") for b in ("", "\u05e9", "\u05db\u05e9")
    for c in ("", "\u05d1", "\u05dc", "\u05de", "\u05db") for d in ("", "\u05d4")
]  # fmt: skip
_LEAST = 4  # letters of a single word with an attached preposition: Karim is not "like Rim"


def detached(text: str, secret: str) -> str:
    """Write Arabic and Hebrew words without attached prefixes where a secret has them so.

    Prefixes are prepositions, "and", and the article. A word of less than four letters also needs
    the article, or the next word of the secret after it.

    >>> detached("בתל אביב", "תל אביב")
    'תל אביב'
    """
    if secret.isascii() or text.isascii() or not _SEMITIC.search(secret):
        return text
    own = words_of(secret)
    forms = {(_without_article(word) or word): word for word in own if _SEMITIC.match(word)}
    forms |= {word: word for word in own if _SEMITIC.match(word)}
    after = {(word, following) for word, following in zip(own, own[1:], strict=False)}

    def rewritten(match: re.Match[str]) -> str:
        word = plain(match[0])
        if not word or word in forms:  # a mark or a sign that lengthens words is none
            return forms.get(word, match[0])
        following = next(iter(words_of(text[match.end() : match.end() + 80])), "")
        for shorter, safe in _without_prefix(word):
            found = forms.get(shorter)
            if found and (safe or (found, following) in after):
                return found
        return match[0]

    return _SEMITIC.sub(rewritten, text)


def _without_article(word: str) -> str:
    """Return an Arabic word with its article only, or "" for a word without article."""
    match = _WITH_ARTICLE.match(word)
    return _ARTICLE + word[match.end() :] if match else ""


def _without_prefix(word: str) -> Iterable[tuple[str, bool]]:
    """Yield what may be left of a word, and whether that is long enough to be the same word."""
    if short := _without_article(word):
        yield short, True
        yield short[len(_ARTICLE) :], True
    for prefix in (_ARABIC if word[0] >= "\u0620" else _HEBREW)[1:]:
        if word.startswith(prefix) and len(word) > len(prefix) + 1:
            yield word[len(prefix) :], len(word) - len(prefix) >= _LEAST


_NATO = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu alpha juliet x-ray"
).split()
_NATO_RUN = re.compile(rf"\b(?:{'|'.join(_NATO)})(?:[\s,-]+(?:{'|'.join(_NATO)})\b){{2,}}", re.I)
_NATO_WORD = re.compile("|".join(_NATO), re.I)
_AS_IN = re.compile(r"\b([^\W\d_]) (?:as in|wie|comme) [^\W\d_]+[,;.]?\s*(?:and\s+)?", re.I)
_LETTERS = re.compile(  # J-O-H-N, J. O. H. N., "J", "O", "H", "N": one separator throughout
    rf"(?<![^\W_])(?<![{MARKS}])[^\W_](?P<s>(?:(?![{MARKS}])[\W_]){{1,5}}?)"
    rf"(?:[^\W_](?P=s)){{{SPELLED - 2},}}[^\W_](?![^\W_]|[{MARKS}])"
)
_LISTED = re.compile(r"(?<!\S)(?<!\d\. )(?:\d{1,2}[.):]|[-*\u2022])[ \t]+(?=[^\W_][ \t.]*$)", re.M)
_LEET = str.maketrans("013457", "oieast")
_LEET_WORD = re.compile(
    r"\b(?=[a-z013457]{4,}\b)(?=(?:[a-z]*\d){1,2}[a-z]*\b)[a-z]+\d\w*[a-z]\b", re.I
)
_LEET_NUMBER = re.compile(r"\b(?=[\dOolI]{6,40}\b)(?=(?:[OolI]*\d){4})[\dOolI]+")
_ROMAN = re.compile(r"(?<=[a-z] )(X{0,2}(?:IX|IV|V?I{0,3}))(?![\w.'])(?<=[IVX]{2})")
_ROMAN_DAY = re.compile(
    r"\b(?=[IVX])(X{0,2}(?:IX|IV|V?I{0,3})|XXXI?)(?:(?<=[IVX]{2})|(?<=\b[VX]))"
    rf"(?=\.? (?:of )?(?i:{'|'.join(MONTHS)})\b)"
)
_ROMAN_YEAR = re.compile(
    r"\b(?=[MDCLXVI]{4})(MM?)(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})\b"
)
_ROMAN_DATE = re.compile(r"\b(\d{1,2})([-./ ])\s?(I{1,3}|I?V|VI{1,3}|I?X|XI{1,2})\2\s?(?=\d{4}\b)")
_NTH = re.compile(r"\b([A-Z]\w+),? the (\d+)th\b")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|ten|te|ter)\b")
_NOT = re.compile(r"\b(?:(ca|wo|sha)n['\u2019]t|cannot|([a-z]+)n['\u2019]t)(?!\w)", re.I)
_FULL_VERB = {"ca": "can", "wo": "will", "sha": "shall"}
_YEAR_OLD = re.compile(r"(?<=\d)[-\s]years?-old\b")
_SHORT_YEAR = re.compile(r"(?<=[\w,.] )['\u2019](\d\d)\b")
_HYPHEN = re.compile(rf"(?:(?<=[^\W\d_])|(?<=[{MARKS}]))-(?=[^\W\d_])")
ABBREVIATION = re.compile(  # U.K., Ph.D., B.Sc.
    r"(?<![\w.])(?:[A-Z][a-z]?\.)+[A-Z][a-z]?\b\.?(?![\w@])"
    r"|(?<![\w.])[A-Z][a-z]\. [A-Z]\.(?!\w)|(?<![\w.])(?:[a-z]\.){2}(?!\w)(?<![ap]\.m\.)"
)
_TITLES = [
    (re.compile(r"\bSt\.? (?=[A-Z])"), "Saint "), (re.compile(r"\bDr\.? (?=[A-Z])"), "Doctor "),
    (re.compile(r"\bProf\.? (?=[A-Z])"), "Professor "),
    (re.compile(r"(?<=[a-zäöüß]{3})str(?:\.|\b)"), "strasse"),
]  # fmt: skip


@lru_cache(maxsize=1 << 14)
def canonical(text: str) -> str:
    """Rewrite a text in one spelling; compare it in addition to the text itself.

    - markup (``**Jo**hn``, ``<b>``) and invisible characters are removed, and escape sequences
      (``&amp;``, ``%40``, ``\\u00e9``) decoded;
    - Cyrillic and Greek letters that look like Latin ones, and digits within words (``R0me``)
      become letters;
    - words that are spelled letter by letter (``J-O-H-N``, ``Juliett Oscar Hotel November``) are
      joined, and hyphens within words removed;
    - number words and Roman numerals become digits, ``3.5 million`` becomes ``3500000``;
    - ``can't`` becomes ``can not``;
    - currencies, units and times of day have one name (``$5`` and ``5 dollars``), see
      ``quantities``.

    >>> canonical("The third of May, nineteen ninety, for $1,500.00")
    'the 3th of may, 1990, for 1500 usd'
    >>> canonical("It is J-O-H-N, 5 kilometres away, at 3 pm")
    'it is john, 5 km away, at 15:00'
    """
    text = visible(unicodedata.normalize("NFC", unescaped(text)))
    text = text if text.isascii() else text.translate(LOOK_ALIKE).translate(UMLAUTS)
    text = _NOT.sub(lambda m: f"{_FULL_VERB.get((m[1] or '').lower(), m[2] or 'can')} not", text)
    text = _AS_IN.sub(r"\1 ", text)
    text = _NATO_RUN.sub(lambda m: "".join(w[0] for w in _NATO_WORD.findall(m[0])), text)
    text = _LETTERS.sub(_joined, _LISTED.sub("", text.rstrip()))
    text = _LEET_NUMBER.sub(lambda m: re.sub("[lI]", "1", re.sub("[Oo]", "0", m[0])), text)
    text = _LEET_WORD.sub(
        lambda m: re.sub("(?<=[aeiou])1", "l", m[0], flags=re.I).translate(_LEET), text
    )
    text = _ROMAN_YEAR.sub(lambda m: str(roman(m[0])), text)
    text = _ROMAN_DAY.sub(lambda m: str(roman(m[1])), text)
    text = _ROMAN_DATE.sub(lambda m: f"{m[1]}. {MONTHS[roman(m[3]) - 1]} ", text)
    text = _ROMAN.sub(lambda m: str(roman(m[1])), text)
    text = ABBREVIATION.sub(without_dots, text)
    for pattern, word in _TITLES:
        text = pattern.sub(word, text)
    text = re.sub(r"[ \t]*\|[ \t]*", " ", with_iso_dates(with_han_digits(text)))  # cells of a table
    text = _NTH.sub(r"\1 \2", with_digits(text))
    text = _YEAR_OLD.sub(" year old", _ORDINAL.sub(r"\1th", plain(text)))
    text = re.sub(r" & ", " and ", text)
    text = re.sub(r"\b(?:in|of) the year\b", "of", text)
    text = re.sub(r"\((\d{4})\)", r"\1", text)
    text = _SHORT_YEAR.sub(lambda m: ("19" if int(m[1]) > 30 else "20") + m[1], text)
    text = quantities(with_keyed_dates(text))
    return _HYPHEN.sub("", text)


def _joined(match: re.Match[str]) -> str:
    """Join letters that are written separately; digits may be a list of numbers."""
    joined = match[0].replace(match["s"], "")
    return match[0] if joined.isdigit() else joined


def without_dots(match: re.Match[str]) -> str:
    """Join the letters of an abbreviation."""
    return re.sub(r"[. ]", "", match[0])


def roman(text: str) -> int:
    """Return the value of a Roman numeral."""
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in text]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
