"""Recognises dates in a text, whatever their order, language and completeness."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from functools import lru_cache
from typing import Literal

from mergeforget.metrics._characters import LOOK_ALIKE, MARKS, plain

Order = Literal["mdy", "dmy"]
ORDERS: tuple[Order, ...] = ("mdy", "dmy")
NEAR = 60  # characters between the parts of a date that is written in two places
Written = Callable[[int, int, int], str]  # year, month, day

_MONTHS = (  # the English name first
    "january|jan|januar|jänner|janvier|enero|gennaio|janeiro|januari|stycznia|января"
    "|январь|ocak|ledna|januára|siječnja|січня|ιανουαρίου|tammikuuta|január|ianuarie"
    "|sausio|janvāris|jaanuar|gener|januarja|januara|януари|يناير"
    "|जनवरी|জানুয়ারি|جنوری|ژانویه|ינואר|בינואר|มกราคม|كانون الثاني",
    "february|feb|februar|février|febrero|febbraio|fevereiro|februari|lutego|февраля"
    "|февраль|şubat|února|februára|veljače|лютого|φεβρουαρίου|helmikuuta|február"
    "|februarie|vasario|februāris|veebruar|febrer|februarja|februara|февруари|فبراير"
    "|फरवरी|फ़रवरी|ফেব্রুয়ারি|فروری|فوریه|פברואר|בפברואר|กุมภาพันธ์|شباط",
    "march|mar|märz|mars|marzo|março|maart|marts|marca|марта|март|mart|března|ožujka"
    "|березня|μαρτίου|maaliskuuta|március|martie|kovo|märts|maret|març|marta|مارس"
    "|मार्च|মার্চ|مارچ|מרץ|במרץ|มีนาคม|آذار",
    "april|apr|avril|abril|aprile|kwietnia|апреля|апрель|nisan|dubna|apríla|travnja"
    "|квітня|απριλίου|huhtikuuta|április|balandžio|aprīlis|aprill|aprila|април|أبريل"
    "|ابريل"
    "|अप्रैल|এপ্রিল|اپریل|آوریل|אפריל|באפריל|เมษายน|نيسان",
    "may|mai|mayo|maggio|maio|mei|maj|maja|мая|май|mayıs|května|mája|svibnja|травня|μαΐου"
    "|toukokuuta|május|gegužės|maijs|maig|maí|مايو"
    "|मई|মে|مئی|מאי|במאי|พฤษภาคม|أيار",
    "june|jun|juni|juin|junio|giugno|junho|czerwca|июня|июнь|haziran|června|júna|lipnja"
    "|червня|ιουνίου|kesäkuuta|június|iunie|birželio|jūnijs|juuni|juny|junija|juna|юни"
    "|يونيو"
    "|जून|জুন|جون|ژوئن|יוני|ביוני|มิถุนายน|حزيران",
    "july|jul|juli|juillet|julio|luglio|julho|lipca|июля|июль|temmuz|července|júla|srpnja"
    "|липня|ιουλίου|heinäkuuta|július|iulie|liepos|jūlijs|juuli|juliol|julija|jula|юли"
    "|يوليو"
    "|जुलाई|জুলাই|جولائی|ژوئیه|יולי|ביולי|กรกฎาคม|تموز",
    "august|aug|août|agosto|augustus|augusti|sierpnia|августа|август|ağustos|srpna"
    "|augusta|kolovoza|серпня|αυγούστου|elokuuta|augusztus|rugpjūčio|augusts|agustus"
    "|agost|avgusta|ágúst|أغسطس"
    "|अगस्त|আগস্ট|اگست|אוגוסט|באוגוסט|สิงหาคม|آب",
    "september|sept|sep|septembre|septiembre|settembre|setembro|września|сентября"
    "|сентябрь|eylül|září|septembra|rujna|вересня|σεπτεμβρίου|syyskuuta|szeptember"
    "|septembrie|rugsėjo|septembris|setembre|септември|سبتمبر"
    "|सितंबर|सितम्बर|সেপ্টেম্বর|ستمبر|سپتامبر|ספטמבר|בספטמבר|กันยายน|أيلول",
    "october|oct|oktober|okt|octobre|octubre|ottobre|outubro|października|октября|октябрь"
    "|ekim|října|októbra|жовтня|οκτωβρίου|lokakuuta|október|octombrie|spalio|oktobris"
    "|oktoober|oktobra|октомври|أكتوبر|اكتوبر"
    "|अक्टूबर|অক্টোবর|اکتوبر|اکتبر|אוקטובר|באוקטובר|ตุลาคม|تشرين الأول",
    "november|nov|novembre|noviembre|novembro|listopada|ноября|ноябрь|kasım|listopadu"
    "|novembra|studenoga|studenog|листопада|νοεμβρίου|marraskuuta|noiembrie|lapkričio"
    "|novembris|ноември|نوفمبر"
    "|नवंबर|नवम्बर|নভেম্বর|نومبر|نوامبر|נובמבר|בנובמבר|พฤศจิกายน|تشرين الثاني",
    "december|dec|dezember|dez|décembre|diciembre|dicembre|dezembro|grudnia|декабря"
    "|декабрь|aralık|prosince|decembra|prosinca|грудня|δεκεμβρίου|joulukuuta|decembrie"
    "|gruodžio|decembris|detsember|desember|desembre|декември|ديسمبر"
    "|दिसंबर|दिसम्बर|ডিসেম্বর|دسمبر|دسامبر|דצמבר|בדצמבר|ธันวาคม|كانون الأول",
)
MONTHS = [row.split("|")[0] for row in _MONTHS]
MONTH_OF = {plain(name): i + 1 for i, row in enumerate(_MONTHS) for name in row.split("|")}
MONTH_OF |= {name.translate(LOOK_ALIKE): i for name, i in MONTH_OF.items()}  # as in ``canonical``
_NAME = f"(?P<n>{'|'.join(sorted(MONTH_OF, key=len, reverse=True))})(?![^\\W\\d]|[{MARKS}])"
_TH = r"(?:st|nd|rd|th|er|\.|º|o(?=\s+de\s)|\u03b7|-?(?:\u0433[o\u043e]|[o\u043e]?[e\u0435]))?"
_WORD = re.compile(rf"[^\W\d_](?:[^\W\d_]|[{MARKS}])*")
_FULL_NAME = re.compile(rf"\b(?:{'|'.join(MONTHS)})\b")
_DAY, _YEAR = rf"(?P<d>\d{{1,2}}){_TH}", r"(?P<y>\d{4})"
_OF = r"(?:of\s+|de\s+|del\s+|di\s+|in\s+|roku\s+)?"
_DATES = [
    re.compile(rf"(?<!\d){_YEAR}\s?[-/.]\s?(?P<m>\d{{1,2}})\s?[-/.]\s?(?P<d>\d{{1,2}})(?!\d)"),
    re.compile(rf"\b{_NAME}\.?[\s/-]+(?:the\s+)?{_DAY}(?:,|[\s/-])\s*{_OF}{_YEAR}\b"),
    re.compile(
        rf"\b{_DAY}(?:\s+|(?<=\.))(?:day\s+)?(?:of\s+|de\s+|di\s+)?{_NAME}\.?,?\s*{_OF}{_YEAR}\b"
    ),
    re.compile(rf"\b(?P<d>\d{{1,2}})[-/\s]?{_NAME}[-/\s,]*{_YEAR}\b"),
    re.compile(rf"\b{_YEAR}(?:\.|\s*m\.)?\s*,?\s*{_NAME}\.?\s+{_DAY}(?!\w)"),
    re.compile(rf"\b(?P<d>\d{{1,2}})([-/\s]){_NAME}\.?\2'?(?P<y>\d\d)(?![\w:]|[.,]\d)"),
    re.compile(r"(?<![\d./-])(?P<y>3[2-9]|[4-9]\d)([-/.])(?P<m>\d\d)\2(?P<d>\d\d)(?![\d/-]|\.\d)"),
    re.compile(rf"\b{_YEAR}\.?\s+gada\s+{_DAY}\s+{_NAME}"),
]
_NUMERIC = re.compile(r"(?<!\d)(\d{1,2})\s?([-/.])\s?(\d{1,2})\s?\2\s?'?(\d{4}|\d{2})(?!\d)")
_DAY_MONTH = [
    re.compile(rf"\b{_NAME}\.?\s+(?:the\s+)?{_DAY}(?![\w:])"),
    re.compile(rf"\b{_DAY}\s+(?:day\s+)?(?:of\s+|de\s+|di\s+)?{_NAME}"),
]
_SLASHED = re.compile(r"(?<![\w/.,-])(\d{1,2})/(\d{1,2})(?![\w/-])")
_DOTTED = re.compile(  # am 14.2., 14.02.; not 12.5. as a number
    r"(?<![\w/.,-])(?:(?<=\bam )|(?<=\bdem )|(?<=\bden )|(?<=\bvom )|(?=\d\d\.\d\d\.))"
    r"(\d{1,2})\.\s?(\d{1,2})\.(?!\s?\d)"
)
_ALONE = re.compile(r"\W*(\d{1,2})\.\s?(\d{1,2})\.\W*")  # 12.5. as a whole text
_ASIAN = re.compile(r"(?<!\d)(\d{1,2})\s?[\u6708\uc6d4]\s?(\d{1,2})\s?[\u65e5\u53f7\u865f\uc77c]")
_THANG = re.compile(r"(?<!\d)(\d{1,2}) thang (\d{1,2})(?![\w/-])")  # Vietnamese
_MONTH_YEAR = [
    re.compile(rf"\b{_NAME}\.?,?\s+(?:of\s+|de\s+|del\s+|in\s+)?{_YEAR}\b"),
    re.compile(rf"(?<![\w/.-])(?P<m>\d{{1,2}})[/.]{_YEAR}(?![\w/-])"),
    re.compile(rf"(?<![\w/.-]){_YEAR}[/-](?P<m>\d{{2}})(?![\w/-])"),
]
_KEY_NAME = r"(?:birth)?_?(day|month|year|(?:dd?|mm?|y{1,4})(?=[\"']?\s*[:=]))"
_KEYED = re.compile(
    rf"(?:[\"']?\b{_KEY_NAME}\b[\"']?\s*(?:[:=]|is)?\s*[\"']?[^\W_]{{1,10}}\b[\"']?"
    r"[,;|.\s]{0,4}(?:[-*\u2022]\s+)?(?:and\s)?){3}"
)
_KEY = re.compile(rf"{_KEY_NAME}\b[\"']?\s*(?:[:=]|is)?\s*[\"']?([^\W_]+)")
_KEY_OF = {"d": "day", "m": "month", "y": "year"}


def with_dates(text: str, order: Order, written: Written | None = None) -> str:
    """Write each complete date of a lower-case text as one word, or as ``written`` returns it."""
    write = written or (lambda year, month, day: f" date{year}x{month}x{day} ")

    def checked(year: int, month: int, day: int) -> str:
        return write(year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else ""

    def named(match: re.Match[str]) -> str:
        parts = match.groupdict()
        month = MONTH_OF[parts["n"]] if parts.get("n") else int(parts["m"])
        return checked(_full_year(int(parts["y"])), month, int(parts["d"])) or match[0]

    def numeric(match: re.Match[str]) -> str:
        first, second, year = int(match[1]), int(match[3]), _full_year(int(match[4]))
        month, day = (first, second) if order == "mdy" else (second, first)
        month, day = (day, month) if month > 12 >= day else (month, day)
        return checked(year, month, day) or match[0]

    for pattern in _DATES:
        text = pattern.sub(named, text)
    return _NUMERIC.sub(numeric, text)


def _full_year(year: int) -> int:
    return year + (0 if year > 99 else 1900 if year > 30 else 2000)


@lru_cache(maxsize=1 << 14)
def with_date_parts(text: str, order: Order) -> str:
    """Write the dates of a lower-case text, complete or not, as day, month and year.

    A part of a date is then found in the whole date. The day becomes an ordinal, so that the number
    12 is not found in 12 May, and the month gets another name, so that no date is recognised again.

    >>> with_date_parts("born in 05/1990, on 1990-05-12, on may the 12th", "mdy").split()
    ['born', 'in', 'month5', '1990,', 'on', '12th', 'month5', '1990', ',', 'on', '12th', 'month5']
    """

    def day_month(match: re.Match[str]) -> str:
        return f"{int(match['d'])}th month{MONTH_OF[match['n']]}"

    def slashed(match: re.Match[str]) -> str:
        month, day = (int(match[1]), int(match[2])) if order == "mdy" else (
            int(match[2]), int(match[1]))  # fmt: skip
        return _written(day, month) or match[0]

    def month_year(match: re.Match[str]) -> str:
        parts = match.groupdict()
        month = MONTH_OF[parts["n"]] if parts.get("n") else int(parts["m"])
        return f"month{month} {match['y']}" if 1 <= month <= 12 else match[0]

    text = with_dates(text, order, lambda year, month, day: f" {day}th {MONTHS[month - 1]} {year} ")
    for pattern in _DAY_MONTH:
        text = pattern.sub(day_month, text)
    text = _SLASHED.sub(slashed, text)
    for pattern in (_DOTTED, _THANG):
        text = pattern.sub(lambda m: _written(int(m[1]), int(m[2])) or m[0], text)
    text = _ASIAN.sub(lambda m: _written(int(m[2]), int(m[1])) or m[0], text)
    if alone := _ALONE.fullmatch(text):
        text = _written(int(alone[1]), int(alone[2])) or text
    for pattern in _MONTH_YEAR:
        text = pattern.sub(month_year, text)
    return _FULL_NAME.sub(lambda m: f"month{MONTH_OF[m[0]]}", text)


def _written(day: int, month: int) -> str:
    return f"{day}th month{month}" if 1 <= month <= 12 and 1 <= day <= 31 else ""


def complete_dates(text: str) -> list[tuple[int, int]]:
    """Return where a text has complete dates: day, month and year.

    >>> complete_dates("On 12 May 1990 at 10:30")
    [(3, 14)]
    """
    given = plain(text)
    if len(given) != len(text):
        given = text.lower()
    found: dict[tuple[int, int], str] = {}
    for pattern in (*_DATES, _NUMERIC):
        for match in pattern.finditer(given):
            if with_dates(match[0], "mdy") != match[0]:
                found[match.span()] = match[0]
    return [span for span in found if span[1] <= len(text)]


_COMMA = r"[\"']?\s*,\s*[\"']?"
_OTHER_ORDERS = [
    (
        re.compile(
            r"(\d{4})\s?[\u5e74\ub144]\s?(\d{1,2})\s?[\u6708\uc6d4]\s?(\d{1,2})\s?[\u65e5\uc77c]"
        ),
        r"\1-\2-\3",
    ),
    (re.compile(r"(\d{1,2})\s?\u6708\s?(\d{1,2})\s?\u65e5\s?(\d{4})\s?\u5e74"), r"\3-\1-\2"),
    (re.compile(r"\b(\d{1,2}) th\u00e1ng (\d{1,2}),? (?:n\u0103m )?(\d{4})\b", re.I), r"\3-\2-\1"),
    (re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})-(\d{4})(?!\d)"), r"\1/\2/\3"),
    (
        re.compile(rf"[(\[{{]\s*((?:19|20)\d\d){_COMMA}(\d{{1,2}}){_COMMA}(\d{{1,2}})\s*[,)\]}}]"),
        r"\1-\2-\3 ",
    ),  # date(1990, 5, 12)
    (
        re.compile(rf"[(\[{{]\s*(\d{{1,2}}){_COMMA}(\d{{1,2}}){_COMMA}((?:19|20)\d\d)\s*[)\]}}]"),
        r"\1/\2/\3 ",
    ),
    (re.compile(r"(?<!\d)(\d{1,2})\|(\d{1,2})\|(\d{4})(?!\d)"), r"\1/\2/\3"),
    (
        re.compile(r"(?<!\d)(?<!\d[ .,/-])(\d{1,2}) (\d{1,2}) ((?:19|20)\d\d)(?![\d.,]| \d)"),
        r"\1/\2/\3",
    ),
]
_BUDDHIST = re.compile(  # after a Thai month or "Buddhist era"
    "((?:คม|ยน|พันธ์|พ\\.?\\s?ศ\\.?)\\s*)(2[45]\\d\\d)(?!\\d)"
)
_WEEK = re.compile(r"(?<![\w-])((?:19|20)\d\d)-?W(\d\d)-?([1-7])(?![\w-])", re.I)
_DAY_OF_YEAR = re.compile(
    r"(?<![\w-])(?P<y>(?:19|20)\d\d)-(?P<d>\d{3})(?![\w-])"
    r"|\b(?P<n>\d{1,3})(?:st|nd|rd|th) day (?:of|in) (?:the year )?(?P<z>\d{4})\b", re.I
)  # fmt: skip


def with_iso_dates(text: str) -> str:
    """Write the dates of Asian languages, ISO weeks and days of a year as ``1990-05-12``.

    Years of the Buddhist era become those of the common era.

    >>> with_iso_dates("1990\u5e745\u670812\u65e5, 1990-W19-6, 1990-132, the 132nd day of 1990")
    '1990-5-12, 1990-05-12, 1990-05-12, the 1990-05-12'
    """
    text = _BUDDHIST.sub(lambda m: f"{m[1]}{int(m[2]) - 543}", text)
    for pattern, iso in _OTHER_ORDERS:
        text = pattern.sub(iso, text)

    def of_week(match: re.Match[str]) -> str:
        year, week, day = map(int, match.groups())
        with suppress(ValueError):
            return date.fromisocalendar(year, week, day).isoformat()
        return match[0]

    def of_year(match: re.Match[str]) -> str:
        year, day = int(match["y"] or match["z"]), int(match["d"] or match["n"])
        start = date(year, 1, 1)
        return (start + timedelta(day - 1)).isoformat() if 1 <= day <= 366 else match[0]

    return _DAY_OF_YEAR.sub(of_year, _WEEK.sub(of_week, text))


def scattered_date_in(date: tuple[int, int, int], text: str) -> bool:
    """Return whether a date (year, month, day) is in a lower-case text with words in between.

    >>> scattered_date_in((1990, 5, 12), "on may 12 she was born, of 1990")
    True
    >>> scattered_date_in((1990, 5, 12), "may 1990, on the 12th"), (
    ...     scattered_date_in((1990, 5, 12), "she was 12. in may 1990 she moved"))
    (True, False)
    """
    year, month, day = date
    if str(year) not in text:
        return False
    for pattern in _DAY_MONTH:
        for match in pattern.finditer(text):
            if (int(match["d"]), MONTH_OF[match["n"]]) == (day, month):
                years = [
                    (min(abs(y.start() - match.end()), abs(match.start() - y.end())), int(y[0]))
                    for y in re.finditer(r"(?<![\d.,])(?:1\d|20)\d\d(?!\d)", text)
                ]
                if years and min(years)[0] <= NEAR and min(years)[1] == year:
                    return True
    for match in _MONTH_YEAR[0].finditer(text):
        if (int(match["y"]), MONTH_OF[match["n"]]) == (year, month):
            around = text[max(0, match.start() - NEAR) : match.end() + NEAR]
            if re.search(rf"(?<!\d){day}th\b", around):
                return True
    return False


def month_numbers(text: str) -> set[int]:
    """Return the numbers of the months that a text names, in any of the known languages."""
    return {MONTH_OF[word] for word in _WORD.findall(plain(text)) if word in MONTH_OF}


def with_keyed_dates(text: str) -> str:
    """Write ``day: 12, month: May, year: 1990`` in a lower-case text as ``1990-5-12``."""

    def joined(match: re.Match[str]) -> str:
        found = {_KEY_OF[key[0]]: value for key, value in _KEY.findall(match[0])}
        month = MONTH_OF.get(found.get("month", ""), 0) or _number(found.get("month", ""))
        day, year = (_number(found.get(key, "").removesuffix("th")) for key in ("day", "year"))
        return f"{year}-{month}-{day} " if year > 999 and 1 <= month <= 12 and day else match[0]

    return _KEYED.sub(joined, text) if "y" in text else text


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def in_digits(year: int, month: int, day: int) -> frozenset[str]:
    """Return a date in eight digits, in each order: ``19900512``, ``12051990``, ``05121990``."""
    y, m, d = f"{year:04d}", f"{month:02d}", f"{day:02d}"
    return frozenset({y + m + d, d + m + y, m + d + y})
