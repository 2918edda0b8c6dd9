"""Writes amounts, units, currencies, fractions and times of day of a text in one way."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

GROUPS = re.compile(  # 1,815 and 1.815 and 1'815, also with a narrow space
    r"(?<![\d.,])\d{1,3}([,.'\u2019\u066c\u00a0\u2009\u202f])\d{3}(?:\1\d{3})*(?!\d)"
)
_SPACED = re.compile(
    r"(?<![\d.,+] )(?<![\d.,+])[1-9]\d{0,2}(?: \d{3})+(?![\d.,]\d|\d| \d)"
)  # 54 300
_PRIMES = str.maketrans(
    {"\u2032": "'", "\u2033": '"', "\u2019": "'", "\u201d": '"'}
)  # 5\u203211\u2033
_DOZEN = re.compile(
    r"(?<!several )(?<!few )(?<!some )(?<!many )"
    r"\b(?:(?P<half>half|halbes|demi|media)[\s-](?:an?\s)?|(?P<n>\d{1,4})\s|(?:an?|one|eine?|un[ea]?)\s)?(?:dozen|dutzend|douzaine|docena)\b"
)
_ARTICLE_HALF = re.compile(r"\b(?:eine?|une)\s(?=(?:halbes|demi)[\s-](?:dutzend|douzaine))")
_AND_A_HALF = re.compile(r"\b(\d{1,9})(?: and (?:an? |one |1 |3 |three )?(half|quarters?)\b)")
_HALF = re.compile(r"\b(?:one|an?|1)[\s-]half\b")
_MIXED = re.compile(r"\b(\d{1,9})\s(1/2|1/4|3/4)(?![\d/])")
_PARTS = {"1/2": "5", "1/4": "25", "3/4": "75"}
_SCALED_HALF = re.compile(r"(?<![\w.,])(\d{1,9}\.\d{1,2}) (1000(?:000){0,2})(?![\d.,])")
_DOT_WORD = re.compile(r"(?<=\d) dot (?=\d)")  # of IP addresses and versions
_PER = re.compile(
    r"(?:\s?/\s?| (?:per|an?|each|every) )(annum|year|month|week)\b"
    r"|\b(annually|yearly|monthly|weekly)\b"
)
_ADVERBS = {"annually": "year", "yearly": "year", "monthly": "month", "weekly": "week"}
_DIGIT = r"(?:\d+|one|oh|zero)"
_POINT = re.compile(
    rf"(?<!\w)({_DIGIT}) (?:point|komma|virgule|coma|punto) ({_DIGIT}(?: {_DIGIT})*)(?!\w)"
)
_NUMBER_SIGN = re.compile(r"\b(?:no|nr)\.?\s(?=\d)|[#\u2116]\s?(?=\d)")
_DECADE = re.compile(r"\bthe (?:(fif|six|seven|eigh|nine)ties|['\u2019]?([5-9])0['\u2019]?s)(?!\w)")
_DECADES = {"fif": "5", "six": "6", "seven": "7", "eigh": "8", "nine": "9"}
_TWICE = re.compile(r"\btwice\b")
_SCALED = re.compile(
    r"(?<![\w.,])(\d+(?:[.,]\d+)?)(?:\s?(hundred|thousand|tausend|million(?:en|s)?|mio|mln|billions?|bn|lakhs?|crores?)"
    r"\b|(k)\b)\.?", re.I)  # fmt: skip
_SCALED_MONEY = re.compile(
    r"((?:[$\u20ac\u00a3\u00a5\u20b9]|\b(?:usd|eur|gbp|chf)\s))\s?(\d+(?:[.,]\d+)?)\s?(mn?|mm|b)\b",
    re.I,
)
_SCALE = {"h": 10**2, "t": 10**3, "k": 10**3, "m": 10**6, "b": 10**9, "l": 10**5, "c": 10**7}
CURRENCY = {
    "usd": r"us\$|\$|usd|us-dollars?|dollars?|bucks", "eur": "\u20ac|eur|euros?",
    "pound": r"\u00a3|gbp|pounds? sterling|pounds?|quid|lbs?",  # of money and of weight
    "chf": "chf|sfr|francs?|franken",
    "yen": "\u00a5|jpy|yen|yuan|cny|rmb", "inr": r"\u20b9|rs\.?|inr|rupees?",
    "pln": r"zl|pln|zlot(?:y|ys|ych|e)", "kr": r"kr\.?|sek|nok|dkk|kron(?:or|er|a|e|en)",
    "brl": r"r\$|brl|reais", "tl": r"\u20ba|tl|(?:turkish )?liras?",
    "rub": r"\u20bd|rub|ro?ubles?", "krw": r"\u20a9|krw", "czk": r"k\u010d|kc|czk|korunas?",
}  # fmt: skip
_HOUR = r"(?:/\s?h|ph| (?:per|an) hour)"
_UNIT = {
    "kmh": rf"kmh|kilomet(?:er|re)s?{_HOUR}|km{_HOUR}|kph|stundenkilometer",
    "mph": rf"mph|miles?{_HOUR}|mi{_HOUR}",
    "sqkm": r"km2|sq\.?\s?km|square kilomet(?:er|re)s?|quadratkilometer",
    "sqm": r"m2|sq\.?\s?m|square met(?:er|re)s?|quadratmeter|qm",
    "sqft": r"ft2|sq\.?\s?ft|square (?:feet|foot)",
    "bpm": "bpm|beats (?:per|a) minute",
    "percent": r"%|percent|per cent|prozent|pct|pour cent|por ciento",
    "km": r"kms?|kilomet(?:er|re|ro)s?|\u043a\u043c", "cm": r"cms?|centimet(?:er|re)s?|zentimeter",
    "mm": r"mm|millimet(?:er|re)s?", "m": r"m|met(?:er|re)s?", "mi": r"mi|miles?",
    "yd": r"yds?|yards?", "mg": r"mg|milligram(?:me?)?s?",
    "kg": r"kg|kgs|kilogram(?:me?)?s?|kilos?|\u043a\u0433", "g": r"g|gram(?:me?)?s?",
    "oz": r"oz|ounces?|unzen?", "ft": r"ft|feet|foot|fuss", "in": r"inch|inches",
    "ml": r"ml|millilit(?:er|re)s?", "cl": r"cl|centilit(?:er|re)s?", "l": r"l|lit(?:er|re)s?",
    "kb": "kb|kilobytes?", "mb": "mb|megabytes?", "gb": "gb|gigabytes?", "tb": "tb|terabytes?",
    "kw": r"kw|kilowatts?", "watt": r"w|watts?", "ha": r"ha|hectares?|hektar",
    "degc": r"\u00b0\s?c|degrees? (?:celsius|centigrade)|grad celsius|celsius",
    "degf": r"\u00b0\s?f|degrees? fahrenheit|fahrenheit",
    "year": r"years?|yrs?|jahre?n?|ans|annees?|anos?"
            r"|\u043b[\u0435e]\u0442|\u0433[\u043eo]\u0434[\u0430a]?",
    "month": "months?|monate?n?|mois|mes(?:es)?", "week": "weeks?|wochen?|semaines?|semanas?",
    "day": "days?|tage?n?|jours?|dias?",
    "h": r"h|hrs?|hours?|stunden?", "min": r"min|mins|minutes?|minuten",
    "sec": r"secs?|seconds?|sekunden?",
}  # fmt: skip
UNIT_CODES = frozenset(CURRENCY) | frozenset(_UNIT)  # as ``quantities`` writes them
UNIT_WORD = re.compile("|".join((CURRENCY | _UNIT).values()))
_AMOUNT = r"\d{1,15}(?:[.,]\d{1,3}){0,4}"
_NUMBERED = [
    *((re.compile(rf"(?:(?<![^\W\d])(?:{signs}))\s?({_AMOUNT})(?![\d])"), rf"\1 {code}")
      for code, signs in CURRENCY.items()),
    *((re.compile(rf"(?<![\w.,])({_AMOUNT})[\s-]?(?:{signs})(?!\w)"), rf"\1 {code}")
      for code, signs in (CURRENCY | _UNIT).items()),
]  # fmt: skip
_CENTS = re.compile(
    r"\b(\d{1,9}) (usd|eur|pound) (?:and )?(\d{1,2}) (?:cents?|pence|pennies|centimes?|centavos?)\b"
)
_ONLY_CENTS = re.compile(r"(?<![\d.,])(\d{1,2}) (?:cents?|pence)\b")
_UNDER_ONE = re.compile(r"(?<![\d.,])0[.,](\d\d) (?:usd|eur|pound)\b")
_METRES_AND = re.compile(r"(?<![\d.,])(\d)\s?m(?:et(?:er|re)s?)?\s?(\d\d)(?!\d|\s?[a-z])")
_BASE = {
    "km": ("mm", 10**6), "m": ("mm", 10**3), "cm": ("mm", 10), "mm": ("mm", 1),
    "kg": ("mg", 10**6), "g": ("mg", 10**3), "mg": ("mg", 1),
    "l": ("ml", 10**3), "cl": ("ml", 10), "ml": ("ml", 1),
    "h": ("sec", 3600), "min": ("sec", 60), "sec": ("sec", 1),
    "year": ("month", 12), "month": ("month", 1), "week": ("day", 7), "day": ("day", 1),
}  # fmt: skip
_CONVERTED = re.compile(rf"(?<![\w.,])(\d{{1,15}}(?:[.,]\d{{1,3}})?) ({'|'.join(_BASE)})\b")

_SHARE_WORDS = {
    2: "half|halves", 3: "3ths?|thirds?", 4: "quarters?|4ths?|fourths?", 5: "5ths?|fifths",
    6: "6ths?|sixths", 7: "7ths?|sevenths", 8: "8ths?|eighths", 9: "9ths?|ninths",
    10: "10ths?|tenths",
}  # fmt: skip
_END = r"(?= of\b|[.,;!?)]|\W*$)"
_SHARE = re.compile(  # 75 percent, 3/4, 3 quarters, half of, 0.75, .75
    r"(?<![\w.,])(?P<percent>\d{1,3}(?:[.,]\d{1,4})?) percent\b"
    r"|(?<![\w./,:-])(?P<above>\d{1,2})/(?P<below>\d{1,3})(?![\w/:-]|[.,]\d)"
    rf"|(?<![\w.,/])(?P<n>\d{{1,2}}|one|an?)[ -](?P<nth>{'|'.join(_SHARE_WORDS.values())}){_END}"
    rf"|(?<![\w/-])(?<!th )(?P<half>half){_END}"
    r"|(?<![\w.,:/-])0?(?:(?<=0)[.,]|\.)(?P<decimal>\d{1,4})(?![\w/:%-]|[.,]\d)"
)
_ZEROS = re.compile(r"(?<![\d.,:/-])(\d{1,9}[.,]\d{0,9}[1-9])0{1,9}(?![\d:/-]|[.,]\d)")

_TO_MIDNIGHT = re.compile(r"\b(?:12 )?midnight\b"), re.compile(r"\b(?:12 )?(?:noon|midday)\b")
_PAST = re.compile(r"\b(half|quarter|\d{1,2}(?: minutes?)?) (past|to) (\d{1,2})\b(?![:.]?\d)")
_CLOCK = re.compile(r"\b(\d{1,2}) o['\u2019 ]?clock\b")
_UHR = re.compile(r"\b(\d{1,2})(?:[:.](\d\d))? uhr\b(?: (\d\d)\b)?")
_HOURS = re.compile(r"\b(\d{1,2})\s?h\s?(\d\d)(?!\d|\s?m)|\b(\d\d):?(\d\d) ?(?:hours|hrs|h)\b")
_PART_OF_DAY = re.compile(
    r"\b(\d{1,2}(?:[:.]\d\d)?) (?:in the (morning|afternoon|evening)|at (night))\b"
)
_TIMES = re.compile(r"\b(\d{1,2})(?:[:.](\d\d))?\s?([ap])\.?m\b\.?", re.I)
_ZONE = re.compile(  # an offset follows a date; 9:00-17:00 is a range
    r"(\d{4}-\d\d-\d\d[t ]\d\d:\d\d(?::\d\d)?)(?:\.\d{1,9})?\s?(?:[+-]\d\d:?\d\d|z|utc|gmt)(?!\w)"
    r"|(:\d\d)(?:\.\d{1,9})?\s?(?:z|utc|gmt)(?!\w)"
)
_ISO_T = re.compile(r"(\d{4}-\d\d-\d\d)[t ](?=\d\d:\d\d)")
_NO_SECONDS = re.compile(r"(?<![\d:])(\d{1,2}:\d\d):00(?:\.0{1,9})?(?![\d:])")
_NO_ZERO = re.compile(r"(?<![\d:])0(\d:\d\d)(?!\d)")
_AT_MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d) 0:00(?!\d)")
_AT = re.compile(r"(?<=\d{4}),? (?:at|um) (?=\d{1,2}:\d\d)")


def quantities(text: str) -> str:
    """Write the amounts of a text in one form.

    Args:
        text: Lower-case text whose number words are digits.

    >>> quantities("half a dozen, $1.5m, 5 kilometres, 2 and a half years, 3 point 1 4")
    '6, 1500000 usd, 5 km, 2.5 year, 3.14'
    >>> quantities("half past 4 in the afternoon, 16 uhr, 08:05 or 1990-05-12t10:00:00+02:00")
    '16:30, 16:00, 8:05 or 1990-05-12 10:00'
    """
    text = _times(text.translate(_PRIMES))
    text = _DOZEN.sub(lambda m: "6" if m["half"] else str(12 * int(m["n"] or 1)),
                      _ARTICLE_HALF.sub("", text))  # fmt: skip
    text = _AND_A_HALF.sub(_and_a_half, text)
    text = _SCALED_HALF.sub(lambda m: str(int(Decimal(m[1]) * int(m[2]))), text)
    text = _PER.sub(lambda m: f" per {m[1] or _ADVERBS[m[2]]}", text)
    text = _DOT_WORD.sub(".", text)
    text = _MIXED.sub(lambda m: f"{m[1]}.{_PARTS[m[2]]}", _HALF.sub("1/2", text))
    text = _POINT.sub(_decimal, text)
    text = _DECADE.sub(lambda m: f"the 19{m[2] or _DECADES[m[1]]}0s", text)
    text = _NUMBER_SIGN.sub("number ", _TWICE.sub("2 times", text))
    text = _SCALED_MONEY.sub(lambda m: m[1] + _scaled(m[2], m[3], m[2] + m[3]), text)
    text = _SCALED.sub(lambda m: _scaled(m[1], m[3] or m[2], m[0]), text)
    text = re.sub(r"(?<=\d)[.,]00(?![\d.,]\d|\d)", "", text)
    text = GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<=\d)'\s?(?=\d{1,2}\s?(?:\"|''))", " ft ", text)
    text = re.sub(r"(?<=\d)\s?(?:\"|'')(?!\w)", " in", text)
    text = _METRES_AND.sub(r"\1.\2 m", text)
    for pattern, word in _NUMBERED:
        text = pattern.sub(word, text)
    text = _CENTS.sub(lambda m: f"{m[1]}.{int(m[3]):02d} {m[2]}", text)
    text = _UNDER_ONE.sub(r"0.\1 cent", text)
    return _ONLY_CENTS.sub(lambda m: f"0.{int(m[1]):02d} cent", text)


@lru_cache(maxsize=1 << 14)
def in_base_units(text: str) -> str:
    """Convert metric amounts, durations and shares of a text, as ``quantities`` writes it.

    >>> in_base_units("1.80 m"), in_base_units("180 cm"), in_base_units("1.5 year")
    ('1800 mm', '1800 mm', '18 month')
    >>> in_base_units("75 percent or 3/4 or .75 or 3 quarters"), in_base_units("one 3th of it")
    ('share3in4 or share3in4 or share3in4 or share3in4', 'share1in3 of it')
    """

    def converted(match: re.Match[str]) -> str:
        unit, factor = _BASE[match[2]]
        value = Decimal(match[1].replace(",", ".")) * factor
        return f"{value.normalize():f} {unit}"

    return _SHARE.sub(_share, _CONVERTED.sub(converted, text))


def _share(match: re.Match[str]) -> str:
    """Write a fraction, a percentage, or a decimal below 1 as one word."""
    if match["percent"]:
        value = Fraction(match["percent"].replace(",", ".")) / 100
    elif match["above"]:
        above, below = int(match["above"]), int(match["below"])
        if not 0 < above < below:
            return match[0]
        value = Fraction(above, below)
    elif match["nth"]:
        nth = next(n for n, words in _SHARE_WORDS.items() if re.fullmatch(words, match["nth"]))
        value = Fraction(int(match["n"]) if match["n"].isdigit() else 1, nth)
    else:
        value = Fraction(f"0.{match['decimal']}") if match["decimal"] else Fraction(1, 2)
    return f"share{value.numerator}in{value.denominator}"


def without_zeros(text: str) -> str:
    """Remove the zeros at the end of the decimals of a text: ``3.50`` is ``3.5``."""
    return _ZEROS.sub(r"\1", text)


def without_other_amounts(number: str, unit: str, text: str) -> str:
    """Remove the amounts of a text that have this number and another unit.

    >>> without_other_amounts("180", "cm", "180 or 180 cm, 180 kg")
    '180 or 180 cm, '
    """
    units = "|".join(code for code in (*CURRENCY, *_UNIT) if code != unit)
    return re.sub(rf"(?<![\w.,]){number} (?:{units})\b", "", text)


def _and_a_half(match: re.Match[str]) -> str:
    if match[2] == "half":
        return f"{match[1]}.5"
    return f"{match[1]}.{'75' if match[2] == 'quarters' else '25'}"


def _decimal(match: re.Match[str]) -> str:
    digits = [re.sub("oh|zero", "0", part.replace("one", "1")) for part in match.groups()]
    return f"{digits[0]}.{digits[1].replace(' ', '')}"


def _scaled(amount: str, scale: str, otherwise: str) -> str:
    grouped = re.fullmatch(r"\d{1,3}[.,]\d{3}", amount)  # 1,500 million
    value = Decimal(re.sub("[.,]", "" if grouped else ".", amount)) * _SCALE[scale[0].lower()]
    return str(int(value)) if value == int(value) else otherwise


def _times(text: str) -> str:
    midnight, noon = _TO_MIDNIGHT
    text = noon.sub("12:00", midnight.sub("0:00", text))
    text = _CLOCK.sub(r"\1:00", _PAST.sub(_past, text))
    text = _UHR.sub(lambda m: f"{m[1]}:{m[2] or m[3] or '00'}", text)
    text = _HOURS.sub(_hours, text)
    text = _PART_OF_DAY.sub(lambda m: f"{m[1]} {'am' if m[2] == 'morning' else 'pm'}", text)
    text = _TIMES.sub(_time, text)
    text = _NO_SECONDS.sub(r"\1", _ISO_T.sub(r"\1 ", _ZONE.sub(r"\1\2", text)))
    return _AT.sub(" ", _AT_MIDNIGHT.sub(r"\1", _NO_ZERO.sub(r"\1", text)))


def _past(match: re.Match[str]) -> str:
    minutes = {"half": 30, "quarter": 15}.get(match[1]) or int(match[1].split()[0])
    hour = int(match[3])
    if not 1 <= hour <= 24 or minutes > 59 or (match[2] == "to" and match[1].isdecimal()):
        return match[0]  # 10 to 4 is a range
    if match[2] == "to":
        return f"{hour - 1 or 12}:{60 - minutes:02d}"
    return f"{hour}:{minutes:02d}"


def _hours(match: re.Match[str]) -> str:
    hour, minute = int(match[1] or match[3]), int(match[2] or match[4])
    return f"{hour}:{minute:02d}" if hour < 24 and minute < 60 else match[0]


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match[1]), match[2] or "00"
    if 12 < hour < 24:
        return f"{hour}:{minute}"
    if not 1 <= hour <= 12:
        return match[0]
    return f"{hour % 12 + (12 if match[3].lower() == 'p' else 0)}:{minute}"
