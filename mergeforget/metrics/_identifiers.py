"""Finds numbers, dates in digits and e-mail addresses in a text, whatever their separators."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from itertools import pairwise
from urllib.parse import unquote

from mergeforget.metrics._characters import LETTER, UMLAUTS, plain, visible
from mergeforget.metrics._dates import complete_dates, in_digits, with_dates, with_iso_dates
from mergeforget.metrics._number_words import with_digits
from mergeforget.metrics._quantities import GROUPS

LONGEST_NUMBER = 100  # maximum digits of the same
NUMBER = 5  # minimum digits of a number that is compared without separators
SEPARATED = 7  # minimum digits of a number with separators that identifies somebody
SHORT_NUMBER = 3  # minimum digits of a number that is found digit by digit

SHORTEST_ABROAD = 10  # minimum digits of an international number after its prefix
_ABROAD = re.compile(r"\(?(?:00|011(?=[\s.\-/)]))\)?[\s.\-/]*(?=\(?[1-9])")
_TRUNK = re.compile(r"\(\s*0\s*\)")  # +44 (0)20: dialled within the country only
_DIGITS = {
    word: str(digit)
    for digit, words in enumerate((
        "zero oh null zéro cero", "one eins un uno", "two zwei deux dos", "three drei trois tres",
        "four vier quatre cuatro", "five fünf cinq cinco", "six sechs seis",
        "seven sieben sept siete", "eight acht huit ocho", "nine neun neuf nueve",
    ))
    for word in map(plain, words.split())
}  # fmt: skip
_DIGIT_WORD = re.compile(rf"\b(?:{'|'.join(sorted(_DIGITS, key=len, reverse=True))})\b")
_SPOKEN_SIGN = re.compile(
    r"(?<=\d)[\s,]+(?:dash|hyphen|minus|slash|bindestrich|strich|tiret|gui[o\u00f3]n)[\s,]+(?=\d)"
)
_BETWEEN = r"(?:[^\d+]{0,40}[^\W\d][^\d+]{0,3}|[^\w+]{0,4})"  # words between parts of a number
_NO_DIGIT_BEFORE = r"(?<![\d+])(?<!\+\d)(?<!\+\d\d)(?<!\d[\s().-])"  # nor a country code
_SIGNS = r"[\s().,\-\u2010-\u2015/·:]{0,3}"  # between the digits of one number
_TWO_DIGITS = frozenset(  # country codes; those that do not begin with 1 or 7 have three digits
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 "
    "65 66 81 82 84 86 90 91 92 93 94 95 98".split()
)
_REPEATED = re.compile(r"\b(double|triple|doppel)[\s-]?(\d)\b")
EMAIL = re.compile(  # lengths as in RFC 5321; in a script without spaces, text may precede it
    rf"(?:{LETTER}|[.+-]){{1,64}}@(?:{LETTER}|-){{1,63}}(?:\.(?:{LETTER}|-){{1,63}})+"
)
_GROUPS = re.compile(r"\d[\d().+/\-\u2010-\u2015\u00b7 ]*\d")
_TIME = r"(?:[01]?\d|2[0-4])[:.h][0-5]\d"
_TIMES = re.compile(rf"{_TIME}(?:\s?[-\u2010-\u2015/]\s?{_TIME})*")
_YEAR = re.compile(r"(?:1\d|20)\d\d")
_DOT_WORD = r"(?:dot|punkt|point|punto)"
_AT = re.compile(
    r"\s*[\[({<*~|-]?\s*(?:@|_?(?<![^\W_])(?:at(?:[- ]sign)?|arobase|arroba|chiocciola|klammeraffe)"
    r"(?![^\W_])_?)\s*[\])}>*~|-]?\s*"
)
_DOT = re.compile(
    rf"\s*[\[({{<*~|-]\s*(?:\.|{_DOT_WORD})\s*[\])}}>*~|-]\s*|\s+{_DOT_WORD}\s+|_{_DOT_WORD}_"
)
_APART = "(?:and|at|the|on|with|is|in|domain|host|server|provider|mail|e-?mail|address)"
_SIGN_WORDS = {
    sign: re.compile(rf"\s+(?:{words})\s+")
    for sign, words in (("_", "underscore|unterstrich"), ("+", "plus"),
                        ("-", "dash|hyphen|minus|bindestrich"))
}  # fmt: skip


def identifier(secret: str) -> str:
    """Return what a text must contain to reveal a secret that identifies somebody.

    That is the longest run of digits of a secret with a number or a complete date, or the name of
    an e-mail address; empty for any other secret, which completions may contain by chance. A number
    has at least ``NUMBER`` digits in a row, without the zeros of a round one, or ``SEPARATED``
    digits with separators. Times, years, and ranges of round numbers are easy to guess.

    Example:
        >>> identifier("900-42-8495"), identifier("Ada@x.org"), identifier("Rome")
        ('8495', 'ada', '')
        >>> identifier("09:00-17:00"), identifier("From 2010 to 2014"), identifier("100-1000")
        ('', '', '')
    """
    joined = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), visible(secret))
    if (
        any(len(run) >= NUMBER and not _round(run) for run in re.findall(r"\d+", joined))
        or any(_separated(match[0]) for match in _GROUPS.finditer(joined))
        or complete_dates(with_iso_dates(joined))
    ):
        return str(max(re.findall(r"\d+", secret), key=len))
    match = EMAIL.search(secret)
    return match[0].split("@")[0].casefold() if match else ""


def _round(number: str) -> bool:
    """Return whether a number of digits is easy to guess because of the zeros at its end."""
    return number.endswith("000") and len(number.rstrip("0")) < NUMBER


def _separated(text: str) -> bool:
    """Return whether groups of digits are one number, such as a phone number."""
    groups = re.findall(r"\d+", text)
    if sum(map(len, groups)) < SEPARATED or _TIMES.fullmatch(text):
        return False
    if all(map(_YEAR.fullmatch, groups)):
        return False
    return len(groups) > 2 or not all(group.endswith("0") for group in groups)


def is_number(text: str) -> bool:
    """Return whether a text is one number, with or without separators."""
    return bool(re.fullmatch(r"[\d\s().,+\-\u2010-\u2015/:]*\d[\d\s().,+\-\u2010-\u2015/:]*", text))


def number_in(secret: str, text: str) -> bool:
    """Return whether a number is in a text, with any separators and an optional country code.

    The country code may be absent from the text or, for a number that begins with 0, from the
    secret, but a number with another country code is another number. The prefixes ``00`` and
    ``011`` are read as a plus sign, and a trunk prefix ``(0)`` after a country code is ignored.

    >>> number_in("+44 (0)20 7946 0958", "0044 20 7946 0958")
    True
    >>> number_in("0044 20 7946 0958", "+49 20 7946 0958")
    False
    """
    secret = visible(secret)
    as_written = re.sub(r"\D", "", secret)
    if not NUMBER <= len(as_written) <= LONGEST_NUMBER or not is_number(secret):
        return False
    secret = _international(secret.strip())
    digits = re.sub(r"\D", "", secret)
    abroad, national = secret.startswith("+"), digits[0] == "0" and len(digits) >= 9
    tails = {as_written, digits} | ({digits[1:]} if national else set())
    if abroad or (len(digits) == 11 and digits[0] == "1"):
        tails |= {rest for rest in [digits[len(country_code(digits)) :]] if len(rest) >= 8}
    amount = GROUPS.fullmatch(secret.strip())
    text = visible(text)
    if amount:
        text = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)  # 54,300 is not in 54,300,000
    in_words = _SPOKEN_SIGN.sub("-", _spoken(text))
    if any(_parts_in(secret, one) for one in (text, in_words)):
        return True
    for tail in tails:
        coded = int(len(tail) >= SEPARATED and not amount)  # 154,300 is not 54,300
        number = re.compile(
            rf"(?<!\d)(?:(?P<plus>\+|00)?(?P<code>\d{{1,3}}){_SIGNS}(?:\(0\){_SIGNS})?){{0,{coded}}}"
            rf"{_SIGNS.join(tail)}(?!\d)"
        )
        for match in (m for one in (text, in_words) for m in number.finditer(one)):
            plus, code = match["plus"], match["code"]
            other = abroad and plus and f"{code}{tail}" != digits and tail != digits
            if not other and (plus or not code or not national or tail == digits):
                return True
    return False


def _parts_in(number: str, text: str) -> bool:
    """Return whether the groups of digits of a number are in a text with words between them.

    Amounts, dates and short groups, such as 10-20-30, are left out.

    >>> _parts_in("900-42-8495", "It starts with 900, then 42, and ends with 8495.")
    True
    """
    groups = re.findall(r"\d+", number)
    if number.startswith("+") and len("".join(groups[1:])) >= SEPARATED:
        groups = groups[1:]
    long = len("".join(groups)) >= SEPARATED + 2 or max(map(len, groups)) > SEPARATED // 2
    if len(groups) < 2 or not long or GROUPS.fullmatch(number) or not identifier(number):
        return False
    parts = _BETWEEN.join(_SIGNS.join(group) for group in groups)
    return not complete_dates(number) and bool(re.search(rf"{_NO_DIGIT_BEFORE}{parts}(?!\d)", text))


def _international(number: str) -> str:
    """Return a phone number with a plus sign for ``00`` or ``011``, and without ``(0)``.

    Other numbers are returned as they are.
    """
    prefix = _ABROAD.match(number)
    if prefix and SHORTEST_ABROAD <= sum(map(str.isdigit, number[prefix.end() :])) <= 15:
        number = "+" + number[prefix.end() :]
    return _TRUNK.sub(" ", number, count=1) if number.startswith("+") else number


def country_code(digits: str) -> str:
    """Return the country code of an international phone number, without its plus sign.

    Source: ITU-T E.164, list of assigned country codes.

    >>> country_code("12025550143"), country_code("49301234567"), country_code("353861234567")
    ('1', '49', '353')
    """
    if digits[:1] in ("1", "7"):
        return digits[0]
    return digits[:2] if digits[:2] in _TWO_DIGITS else digits[:3]


def email_in(secret: str, text: str) -> bool:
    """Return whether a secret that is an e-mail address is in a text: ``ada at x dot org``."""
    match = EMAIL.search(plain(secret))
    if not match or match[0] != plain(secret).strip(" <>.,;\"'"):
        return False
    given = _AT.sub("@", " ".join(plain(unquote(html.unescape(text))).split()))
    given = _DOT.sub(".", given)
    for sign, pattern in _SIGN_WORDS.items():
        given = pattern.sub(sign, given)
    name, domain = map(re.escape, match[0].split("@"))
    between = rf"[@\"'\s,;:]+(?:{_APART}[\"'\s,;:]+){{0,6}}"  # name: ada, domain: x.org
    end = r"(?![\w-]|\.[a-z]{2,3}(?!\w))"  # x.org is not x.org.uk
    return bool(re.search(rf"(?<![\w.+-]){name}{between}{domain}{end}", given))


@lru_cache(maxsize=1 << 14)
def _spoken(text: str) -> str:
    """Write digits that are words as digits, one by one; lower case."""
    in_words = _DIGIT_WORD.sub(lambda match: _DIGITS[match[0]], plain(text))
    return _REPEATED.sub(lambda m: m[2] * (3 if m[1] == "triple" else 2), in_words)


def date_digits_in(date: tuple[int, int, int], text: str) -> bool:
    """Return whether a date (year, month, day) is in a text as eight digits without separators."""
    return not in_digits(*date).isdisjoint(re.findall(r"(?<!\d)\d{8}(?!\d)", visible(text)))


def date_of_digits(secret: str) -> str:
    """Return ``1990-05-12`` for a secret ``19900512``, and "" for any other secret."""
    match = re.fullmatch(r"\s*((?:19|20)\d\d)(\d\d)(\d\d)\s*", secret)
    iso = "-".join(match.groups()) if match else ""
    return iso if iso != with_dates(iso, "mdy") else ""


def with_short_numbers(secret: str, text: str) -> str:
    """Join the digits of the numbers of a secret where a text writes them apart.

    The digits may be single (``4 2 7 1``, ``4-2-7-1``, ``four two seven one``) or, in numbers of an
    even length, in pairs (``forty-two seventy-one``), with one separator throughout. Other numbers
    of the text remain as they are. Numbers such as 123 are left out, because ``1, 2, 3`` is a list.

    >>> with_short_numbers("PIN 4271", "The pin is four two seven one.")
    'the pin is 4271.'
    >>> with_short_numbers("PIN 4271", "Pages 4 2 7 1 3")
    'Pages 4 2 7 1 3'
    """
    texts: list[str] = []
    for run in re.findall(r"\d+", secret):
        steps = {int(b) - int(a) for a, b in pairwise(run)}
        if len(run) < SHORT_NUMBER or (len(steps) == 1 and abs(steps.pop()) == 1):
            continue
        parts = [list(run)]
        if len(run) > SHORT_NUMBER and len(run) % 2 == 0:
            parts.append([run[i : i + 2] for i in range(0, len(run), 2)])
        texts = texts or [text, _spoken(text), with_digits(text.translate(UMLAUTS))]
        for one in parts:
            signs = rf"(?!{'[.,]' if len(one) == 2 else 'x'}\d)[\s.,/:\u00b7\u2010-\u2015-]{{1,3}}"
            rest = "".join(rf"(?P=s){part}" for part in one[2:])
            apart = re.compile(
                rf"(?<!\d)(?<!\d[\s.,/:-]){one[0]}(?P<s>{signs}){one[1]}{rest}"
                r"(?!\d|[\s.,/:-]\d)"
            )
            found = next((other for other in texts if apart.search(other)), None)
            if found is not None:
                text = apart.sub(run, found)
                texts = [text, _spoken(text), with_digits(text.translate(UMLAUTS))]
    return text
