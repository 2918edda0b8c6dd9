"""Normalises spellings, so that a secret is found in a text whatever its form.

``words_of`` unifies case, diacritics, dates, street words and US states. ``canonical`` rewrites a
text beforehand: markup, look-alike letters, spelled words, number words, currencies, units.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

from mergeforget.metrics._number_words import with_digits

SPELLED = 3  # minimum letters of a word that is spelled letter by letter
TATWEEL = "\u0640"  # lengthens an Arabic word
Order = Literal["mdy", "dmy"]
ORDERS: tuple[Order, ...] = ("mdy", "dmy")

_MONTHS = (
    "january|jan|januar|jänner|janvier|enero|gennaio|janeiro",
    "february|feb|februar|février|febrero|febbraio|fevereiro",
    "march|mar|märz|mars|marzo|março",
    "april|apr|avril|abril|aprile",
    "may|mai|mayo|maggio|maio",
    "june|jun|juni|juin|junio|giugno|junho",
    "july|jul|juli|juillet|julio|luglio|julho",
    "august|aug|août|agosto",
    "september|sept|sep|septembre|septiembre|settembre|setembro",
    "october|oct|oktober|okt|octobre|octubre|ottobre|outubro",
    "november|nov|novembre|noviembre|novembro",
    "december|dec|dezember|dez|décembre|diciembre|dicembre|dezembro",
)
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


def visible(text: str) -> str:
    """Unify compatibility forms and the digits of all scripts, and remove invisible characters."""
    if text.isascii():
        return text
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c
        for c in unicodedata.normalize("NFKC", text)
        if unicodedata.category(c) != "Cf" and c != TATWEEL
    )


def plain(text: str) -> str:
    """Lower case without diacritics; see also ``visible``."""
    parts = unicodedata.normalize("NFKD", visible(text).casefold())
    kept = "".join(c for c in parts if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", kept)  # syllables of Hangul, which NFKD takes apart


MONTH_OF = {plain(name): i + 1 for i, row in enumerate(_MONTHS) for name in row.split("|")}
_FULL_WORD = {short: word for word, every in _STREETS.items() for short in every.split()}
_STATE_OF = dict(zip(_STATES[::2], _STATES[1::2], strict=True))
MONTHS = [row.split("|")[0] for row in _MONTHS]
_NAME = "|".join(sorted(MONTH_OF, key=len, reverse=True))
_DAY, _YEAR = r"(?P<d>\d{1,2})(?:st|nd|rd|th|er|\.|º)?", r"(?P<y>\d{4})"
_DATES = [
    re.compile(rf"(?<!\d){_YEAR}\s?[-/.]\s?(?P<m>\d{{1,2}})\s?[-/.]\s?(?P<d>\d{{1,2}})(?!\d)"),
    re.compile(rf"\b(?P<n>{_NAME})\.?\s+(?:the\s+)?{_DAY}(?:,|\s)\s*(?:of\s+|in\s+)?{_YEAR}\b"),
    re.compile(rf"\b{_DAY}\s+(?:day\s+)?(?:of\s+|de\s+|di\s+)?(?P<n>{_NAME})\b\.?,?\s*"
               rf"(?:of\s+|de\s+|del\s+)?{_YEAR}\b"),
    re.compile(rf"\b(?P<d>\d{{1,2}})[-\s](?P<n>{_NAME})[-\s,]+{_YEAR}\b"),
    re.compile(rf"\b{_YEAR}\s*,?\s*(?P<n>{_NAME})\.?\s+{_DAY}(?!\w)"),
]  # fmt: skip
_NUMERIC = re.compile(r"(?<!\d)(\d{1,2})\s?([-/.])\s?(\d{1,2})\s?\2\s?(\d{4}|\d{2})(?!\d)")
_NO_SPACES = (  # scripts without spaces, or (Hangul) with particles: each character is a word
    r"\uac00-\ud7a3\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
)
WORD = re.compile(rf"[{_NO_SPACES}]|[^\W_{_NO_SPACES}]+")
GROUPS = re.compile(  # 1,815 and 1.815 and 1'815, also with a narrow space
    r"(?<![\d.,])\d{1,3}([,.'\u2019\u066c\u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?!\d)"
)
UMLAUTS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "æ": "ae", "Ä": "Ae", "Ö": "Oe",
     "Ü": "Ue", "Ø": "Oe", "Å": "Aa", "Æ": "Ae"}
)  # fmt: skip


@lru_cache(maxsize=1 << 14)
def words_of(text: str, order: Order = "mdy") -> tuple[str, ...]:
    """Return the words of a text in a normalised spelling; a date is one word."""
    text = visible(GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text))
    text = re.sub(r"\b[A-Z]{2}\b", lambda m: _STATE_OF.get(m[0], m[0]).replace("_", " "), text)
    text = _with_dates(plain(text), order)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,815
    text = re.sub(r"(?<=\w)['\u2019]s\b", "", text)
    return tuple(_FULL_WORD.get(word, word) for word in WORD.findall(text))


def _with_dates(text: str, order: Order) -> str:
    def named(match: re.Match[str]) -> str:
        parts = match.groupdict()
        month = MONTH_OF[parts["n"]] if parts.get("n") else int(parts["m"])
        return _date_word(int(parts["y"]), month, int(parts["d"])) or match[0]

    def numeric(match: re.Match[str]) -> str:
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        year += 0 if year > 99 else 1900 if year > 30 else 2000
        month, day = (first, second) if order == "mdy" else (second, first)
        month, day = (day, month) if month > 12 >= day else (month, day)
        return _date_word(year, month, day) or match[0]

    for pattern in _DATES:
        text = pattern.sub(named, text)
    return _NUMERIC.sub(numeric, text)


def _date_word(year: int, month: int, day: int) -> str:
    return f" date{year}x{month}x{day} " if 1 <= month <= 12 and 1 <= day <= 31 else ""


def month_numbers(text: str) -> set[int]:
    """Return the numbers of the months that a text names, in any of the known languages."""
    return {MONTH_OF[word] for word in WORD.findall(plain(text)) if word in MONTH_OF}


_TAGS = re.compile(r"</?(?:b|i|u|s|em|strong|span|mark|code|sub|sup)\b[^<>]*>", re.I)
_BREAKS = re.compile(r"</?(?:br|p|div|li|td|tr)\b[^<>]*>", re.I)
_EMPHASIS = re.compile(r"\*+(?=\S)|(?<=\S)\*+|`+|__+|~~+")
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1"
    "\u03a4\u03a5\u03a7\u0131\u0261",
    "aeopcyxijsdhqwABEKMHOPCTYXIJSaopvikABEZHIKMNOPTYXig",
)  # Cyrillic and Greek letters that look like Latin ones
_NATO = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu alpha juliet x-ray"
).split()
_NATO_RUN = re.compile(rf"\b(?:{'|'.join(_NATO)})(?:[\s,-]+(?:{'|'.join(_NATO)})\b){{2,}}", re.I)
_NATO_WORD = re.compile("|".join(_NATO), re.I)
_AS_IN = re.compile(r"\b([^\W\d_]) (?:as in|wie|comme) [^\W\d_]+[,;.]?\s*(?:and\s+)?", re.I)
_LETTERS = re.compile(  # J-O-H-N, J. O. H. N., J O H N: one separator throughout
    r"(?<![^\W_])([^\W\d_])(?P<s>[-._/*|~+\u2010-\u2015\u00b7\u2022]|[.,]\s|\s-\s|\s)"
    rf"(?:[^\W\d_](?P=s)){{{SPELLED - 2},}}[^\W\d_](?![^\W_])"
)
_LEET = str.maketrans("013457", "oieast")
_LEET_WORD = re.compile(
    r"\b(?=[a-z013457]{4,}\b)(?=(?:[a-z]*\d){1,2}[a-z]*\b)[a-z]+\d\w*[a-z]\b", re.I
)
_LEET_NUMBER = re.compile(r"\b(?=[\dOolI]{6,40}\b)(?=(?:[OolI]*\d){4})[\dOolI]+")
_ROMAN = re.compile(r"(?<=[a-z] )(X{0,2}(?:IX|IV|V?I{0,3}))(?![\w.'])(?<=[IVX]{2})")
_ROMAN_DATE = re.compile(r"\b(\d{1,2})([-./ ])\s?(I{1,3}|I?V|VI{1,3}|I?X|XI{1,2})\2\s?(?=\d{4}\b)")
_NTH = re.compile(r"\b([A-Z]\w+),? the (\d+)th\b")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|ten|te|ter)\b")
_CJK_DATE = re.compile(r"(\d{4})\s?\u5e74\s?(\d{1,2})\s?\u6708\s?(\d{1,2})\s?\u65e5")
_SHORT_YEAR = re.compile(r"(?<=[\w,] )['\u2019](\d\d)\b")
_TIMES = re.compile(r"\b(\d{1,2})(?:[:.](\d\d))?\s?([ap])\.?m\b\.?", re.I)
_SCALED = re.compile(
    r"(?<![\w.,])(\d+(?:[.,]\d+)?)(?:\s?(thousand|tausend|million(?:en|s)?|mio|billions?|bn)\b|(k)\b)"
    r"\.?", re.I)  # fmt: skip
_SCALE = {"t": 10**3, "k": 10**3, "m": 10**6, "b": 10**9}
_CURRENCY = {
    "usd": r"us\$|\$|usd|us-dollars?|dollars?|bucks", "eur": "\u20ac|eur|euros?",
    "gbp": r"\u00a3|gbp|pounds? sterling|pounds?|quid", "chf": "chf|sfr|francs?|franken",
}  # fmt: skip
_UNIT = {
    "percent": r"%|percent|per cent|prozent|pct|pour cent|por ciento",
    "km": r"km|kilomet(?:er|re)s?", "cm": r"cm|centimet(?:er|re)s?|zentimeter",
    "mm": r"mm|millimet(?:er|re)s?", "m": r"m|met(?:er|re)s?", "mi": r"mi|miles?",
    "kg": r"kg|kgs|kilograms?|kilogramm|kilos?", "g": r"g|grams?|gramm", "lb": r"lbs?",
    "ft": r"ft|feet|foot|fuss", "in": r"inch|inches", "l": r"l|lit(?:er|re)s?",
    "degc": r"\u00b0\s?c|degrees? (?:celsius|centigrade)|grad celsius|celsius",
    "degf": r"\u00b0\s?f|degrees? fahrenheit|fahrenheit",
    "h": r"h|hrs?|hours?|stunden?", "min": r"min|mins|minutes?|minuten",
}  # fmt: skip
_AMOUNT = r"\d{1,15}(?:[.,]\d{1,3}){0,4}"
_NUMBERED = [
    *((re.compile(rf"(?:(?<![^\W\d])(?:{signs}))\s?({_AMOUNT})(?![\d])"), rf"\1 {code}")
      for code, signs in _CURRENCY.items()),
    *((re.compile(rf"(?<![\w.,])({_AMOUNT})\s?(?:{signs})(?!\w)"), rf"\1 {code}")
      for code, signs in (_CURRENCY | _UNIT).items()),
]  # fmt: skip
_TITLES = [
    (re.compile(r"\bSt\.? (?=[A-Z])"), "Saint "), (re.compile(r"\bDr\.? (?=[A-Z])"), "Doctor "),
    (re.compile(r"\bProf\.? (?=[A-Z])"), "Professor "),
    (re.compile(r"(?<=[a-zäöüß]{3})str(?:\.|\b)"), "strasse"),
]  # fmt: skip


@lru_cache(maxsize=1 << 14)
def canonical(text: str) -> str:
    """Rewrite a text in one spelling; compare it in addition to the text itself.

    - markup (``**Jo**hn``, ``<b>``, ``&amp;``, ``%40``) and invisible characters are removed;
    - Cyrillic and Greek letters that look like Latin ones, and digits within words (``R0me``)
      become letters;
    - words that are spelled letter by letter (``J-O-H-N``, ``Juliett Oscar Hotel November``) are
      joined, and hyphens within words removed;
    - number words and Roman numerals become digits, ``3.5 million`` becomes ``3500000``;
    - currencies, units and times of day have one name (``$5`` and ``5 dollars``).

    >>> canonical("The third of May, nineteen ninety, for $1,500.00")
    'the 3th of may, 1990, for 1500 usd'
    >>> canonical("It is J-O-H-N, 5 kilometres away, at 3 pm")
    'it is john, 5 km away, at 15:00'
    """
    if "&" in text or "<" in text:
        text = html.unescape(_BREAKS.sub(" ", _TAGS.sub("", text)))
    text = unquote(text) if re.search(r"%[2-7][0-9A-Fa-f]", text) else text
    text = visible(unicodedata.normalize("NFC", _EMPHASIS.sub("", text)))
    text = text if text.isascii() else text.translate(_LOOK_ALIKE).translate(UMLAUTS)
    text = _AS_IN.sub(r"\1 ", text)
    text = _NATO_RUN.sub(lambda m: "".join(w[0] for w in _NATO_WORD.findall(m[0])), text)
    text = _LETTERS.sub(lambda m: m[0].replace(m["s"], ""), text.rstrip())
    text = _LEET_NUMBER.sub(lambda m: re.sub("[lI]", "1", re.sub("[Oo]", "0", m[0])), text)
    text = _LEET_WORD.sub(
        lambda m: re.sub("(?<=[aeiou])1", "l", m[0], flags=re.I).translate(_LEET), text
    )
    text = _ROMAN_DATE.sub(lambda m: f"{m[1]}. {MONTHS[_roman(m[3]) - 1]} ", text)
    text = _ROMAN.sub(lambda m: str(_roman(m[1])), text)
    for pattern, word in _TITLES:
        text = pattern.sub(word, text)
    text = _CJK_DATE.sub(r"\1-\2-\3", text)
    text = _NTH.sub(r"\1 \2", with_digits(text))
    text = _ORDINAL.sub(r"\1th", plain(text))
    text = re.sub(r"\b(?:in|of) the year\b", "of", text)
    text = re.sub(r"\((\d{4})\)", r"\1", text)
    text = _SHORT_YEAR.sub(lambda m: ("19" if int(m[1]) > 30 else "20") + m[1], text)
    text = _SCALED.sub(_scaled, text)
    text = re.sub(r"(?<=\d)[.,]00(?![\d.,]\d|\d)", "", text)
    text = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = re.sub(r"(?<=\d)'\s?(?=\d{1,2}\s?(?:\"|''))", " ft ", text)
    text = re.sub(r"(?<=\d)\s?(?:\"|'')(?!\w)", " in", text)
    for pattern, word in _NUMBERED:
        text = pattern.sub(word, text)
    text = _TIMES.sub(_time, text)
    return re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", "", text)


def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[c] for c in text]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def _scaled(match: re.Match[str]) -> str:
    scale = _SCALE[(match[3] or match[2])[0].lower()]
    grouped = re.fullmatch(r"\d{1,3}[.,]\d{3}", match[1])  # 1,500 million
    value = float(re.sub("[.,]", "" if grouped else ".", match[1])) * scale
    return str(int(value)) if value == int(value) else match[0]


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), match[2] or "00"
    if not 1 <= hour <= 12:
        return match[0]
    return f"{hour % 12 + (12 if match[3].lower() == 'p' else 0)}:{minute}"
