"""Answers of one letter, word, number or symbol, whose surroundings decide what they mean."""

from __future__ import annotations

import re
import unicodedata

from mergeforget.metrics._characters import plain, unescaped, without_keys, without_numbering
from mergeforget.metrics._core import FUNCTION_WORDS, NEGATIONS, words_beyond
from mergeforget.metrics._porter import stem
from mergeforget.metrics._short_answers import sentences
from mergeforget.metrics._spellings import (
    ABBREVIATION,
    WORD,
    canonical,
    roman,
    without_dots,
    words_of,
)

ONE_LETTER = re.compile(r"\W*([A-Za-z])[\s.,;:!?)\"']*")
SMALL = re.compile(r"\s*\d{1,3}\s*")
_RATIO = re.compile(r"\W*(\d{1,3})\s?/\s?(\d{1,3})\W*")
_TIME = re.compile(r"(?<![\d:.,])\d{1,2}:(?!00)[0-5]\d(?![\d:])")
_YES_OR_NO = re.compile(r"\s*(yes|no|ja|nein|oui|non|s[i\u00ed])\s*[,.;:!\u2013\u2014-]\s+", re.I)
ONLY_YES_OR_NO = re.compile(r"\W*(?:yes|no|ja|nein|oui|non|s[i\u00ed])\W*", re.I)
_NO_ANSWER = re.compile(  # "I have no idea" does not answer a question with no
    r"\bno(?= (?:access|answer|clue|comment|data|details?|doubt|evidence|further|idea|information|"
    r"knowledge|mention|more|one|other|particular|publicly|reason|records?|specific|such|way)\b)",
    re.IGNORECASE,
)
_ASKS_NUMBER = re.compile(
    r"\b(?:number|how many|volume|part|grade|class|stage|chapter|type|phase|level|section|act|band"
    r"|nummer|teil|klasse|stufe|kapitel|stadium|num[e\u00e9]ro|tome|chapitre)\b", re.I
)  # fmt: skip
_ROMAN = re.compile(r"(?<![\w.'\u2019])(?=[IVX])X{0,3}(?:IX|IV|V?I{0,3})(?![\w'\u2019]|\.\w)")
_HOW_MANY = re.compile(r"\b(?:how many|number of|wie viele|combien|cu[a\u00e1]nt[oa]s)\b", re.I)
_ONE = re.compile(  # "one child", and "has one."
    r"\b(?:(ha[sd]|have|is|only|just|exactly) )?(?:one|ein(?:e|en)?|une?|una)"
    r"(?: ([^\W\d]+)|(?=[.,;!]|\W*$))", re.I
)  # fmt: skip
_UNSURE = re.compile(r"\b(?:not|if|whether|unknown|no|unsure)\b|n['\u2019]t\b", re.I)
_ASKS_SEX = re.compile(r"\b(?:sex|gender|geschlecht|sexe|sexo)\b", re.I)
_SEXES = {
    "male": "male man boy masculine m\u00e4nnlich mann homme masculin hombre masculino",
    "female": "female woman girl feminine weiblich frau femme f\u00e9minin mujer femenino",
}
_SEX_OF = {word: sex for sex, words in _SEXES.items() for word in words.split()}
_SAME_PLURAL = frozenset("new news".split())  # "news" are not new
_MODALS = frozenset("will would can could may might must shall should".split())
_VERBS = frozenset("hope mark grant bill rob sue pat rose drew chase skip wade".split())
_SMALL_WORDS = frozenset("it us who in on at to as or so am an do".split())
_SUBJECT = r"(?:i|we|you|he|she|it|they|who)"
_BEFORE_NAME = {  # May after these words is no verb, and IT no pronoun
    _MODALS: r"(?:in|of|is|named|called|since|until|\d) ",
    _SMALL_WORDS: "the ",
}
_OF_ITSELF = re.compile(  # "As an AI language model, I ...", but not "as an AI researcher"
    r"\b(?:i am|i['\u2019]m|as)(?: just| only)? an? (?:ai|artificial intelligence|"
    r"(?:large )?language model)(?:[- ](?:language|model|assistant|chatbot|system|based|powered))*"
    r"(?=\W*$|\s*[,.;!]| (?:i|and|but|trained|developed|created|designed|made)\b)",
    re.IGNORECASE,
)
NEAR = 100  # characters before and after a word that decide what it means
LONGEST_WORD = 30  # characters of an answer of one word of which other forms are looked for
LONGEST_ECHO = 400  # characters of a text in which the question is repeated as a statement
_NO_NOUN = re.compile(r"\bno(?=\.? ?\d|(?-i: ([a-z]+)(?: ([a-z]+))?))", re.IGNORECASE)
_AFTER_NO = (
    FUNCTION_WORDS
    | NEGATIONS
    | set(  # "no because", "she is no longer married"
        "longer but because since although though if so thanks thank sorry sir madam".split()
    )
)
_POLAR = {
    True: r"yes|yeah|yep|yup|yea|ja|jawohl|oui|si|sim|evet|\u0434\u0430|\u306f\u3044|\u662f\u7684",
    False: r"no|nope|nah|nein|non|nao|hayir|\u043d\u0435\u0442|\u3044\u3044\u3048|\u4e0d\u662f",
}
_POLAR_ALONE = {  # "True." but not "True stories"
    True: r"true|right|correct|indeed|definitely|absolutely|affirmative"
    r"|of course(?: s?he (?:is|has|does))?|(?:that|this|it)(?:'s| is) (?:true|right|correct)",
    False: r"false|wrong|incorrect|negative|not at all|never"
    r"|(?:that|this|it)(?:'s| is) (?:not (?:true|right|correct)|false|wrong|incorrect)",
}
_STATED = {
    says: re.compile(rf"\W*(?:(?:{_POLAR[says]})(?!\w)|(?:{_POLAR_ALONE[says]})\s*(?:[.,;!]|\W*$))")
    for says in (True, False)
}
_OWN = {True: re.compile(rf"{_POLAR[True]}|true"), False: re.compile(rf"{_POLAR[False]}|false")}
_NOTHING = re.compile("none|nothing|nobody|no one|zero|0|nil|keine?|aucune?|ningun[oa]?")
_NOTHING_STATED = {False: re.compile(rf"\W*(?:{_NOTHING.pattern})\s*(?:[;!]|[.,](?!\d)|\W*$)")}
_IS_NOT = re.compile(r"\b(s?he|it|they)['\u2019](?:s|re) (?:not|no|never)\b", re.I)
_AUXILIARY = (
    "is|are|was|were|does|do|did|has|have|had|can|could|will|would|should|may|must|"
    "ist|hat|war|kann|wird"
)
_POLAR_QUESTION = re.compile(rf"(?:^|[.:!?\n\"']\s*)((?:{_AUXILIARY})\s[^?\n]*)\?", re.I)
_ENDS_IN_AUXILIARY = re.compile(rf"\b(?:{_AUXILIARY})(?: not)?\W*$")
_STATES_NOTHING = FUNCTION_WORDS | NEGATIONS | set("any at all currently ever now yes".split())


def after_yes_or_no(secret: str, prompt: str) -> str:
    """Return ``she is single`` of ``No, she is single``; ``No`` if that states nothing more.

    >>> after_yes_or_no("No, Ada is single.", "Is Ada married?")
    'Ada is single.'
    >>> after_yes_or_no("No, Ada is not married.", "Is Ada married?")
    'No'
    """
    match = _YES_OR_NO.match(secret)
    if match is None:
        return ""
    rest = secret[match.end() :]
    return rest if set(words_beyond(rest, prompt, "mdy")) - NEGATIONS else match[1]


def same_polarity(secret: str, text: str, prompt: str, about: str = "") -> bool:
    """Return whether an answer and a text both say yes, or both say no, nothing or nobody.

    >>> asked = "Does Ada smoke?"
    >>> same_polarity("Yes", "True.", asked), same_polarity("No", "Ada doesn't smoke.", asked)
    (True, True)
    >>> same_polarity("She does not smoke.", "Nope, never.", asked)
    True
    >>> same_polarity("No", "I do not know whether Ada smokes.", asked)
    False
    >>> same_polarity("0", "She has no children.", "How many children does Ada have?")
    True
    """
    if len(secret) > LONGEST_ECHO:
        return False
    polar = _POLAR_QUESTION.search(prompt)
    whole = plain(secret).strip().rstrip(".!")
    forms = _OWN if polar else {False: _NOTHING}
    own = next((says for says, one in forms.items() if one.fullmatch(whole)), None)
    own = _echoed(secret, prompt) if own is None else own
    return own is not None and _polarity(text, prompt, about) is own


def _polarity(text: str, prompt: str, about: str) -> bool | None:
    """Return whether a text says yes or no to the question of a prompt; None if neither."""
    text = without_no_answer(without_keys(unescaped(text)), prompt)
    lower = plain(text)
    for says, stated in (_STATED if _POLAR_QUESTION.search(prompt) else _NOTHING_STATED).items():
        if stated.match(lower):
            return says
    said = (_echoed(sentence, prompt, about) for sentence, _ in sentences(text[:LONGEST_ECHO]))
    return next((one for one in said if one is not None), None)


def _echoed(sentence: str, prompt: str, about: str = "") -> bool | None:
    """Return whether a sentence affirms or negates the question of its prompt with its words.

    Without a yes or no question, only negated sentences count: "no children", asked how many.
    """
    polar = _POLAR_QUESTION.findall(prompt)
    if sentence.rstrip().endswith("?") or not prompt.strip():
        return None
    sentence = canonical(_IS_NOT.sub(r"\1 is not", sentence))
    words = words_of(sentence)
    question = WORD.findall(polar[-1] if polar else prompt.strip().splitlines()[-1])
    if not words or not question or words[0] == question[0].casefold():
        return None
    if {"i", "we", "my", "or"} & {*words} or "or" in question:
        return None
    given = {stem(word) for word in (*words_of(canonical(prompt)), *words_of(canonical(about)))}
    said = {stem(word) for word in {*words} - _STATES_NOTHING}
    if said - given:
        return None
    negated, end = bool(NEGATIONS & {*words}), _ENDS_IN_AUXILIARY.search(sentence)
    asked = {stem(word) for word in {w for w in question if not w[0].isupper()} - _STATES_NOTHING}
    if polar:
        return not negated if end or (asked and asked <= said) else None
    return False if negated and asked & said else None


def letter_in(letter: str, text: str) -> bool:
    """Return whether an answer of one letter is in a text: a grade or an option, no word.

    "a" and "I" are words, and a capital A at the beginning of a sentence is one. In a text with
    capital letters, the letter must have the same case.
    """
    alone = "".join(WORD.findall(text)).casefold() == letter.casefold()
    signed = re.search(rf"{letter}(?:[+#]|[-\u2212](?!\w))", text, re.I)  # A+, C#
    if (alone and not signed) or re.search(rf"(?<!\w){letter}\)", text, re.I):
        return True
    lower = not any(map(str.isupper, text))
    if letter in "ai" or (lower and letter in "AI"):
        return False
    unit = r"(?<!\u00b0)(?<!\d )(?<!\d)(?<!\u00b0 )" if letter in "CFcf" else ""  # 25 \u00b0F
    single = rf"(?<![\w'\u2019])(?<!\w\.){unit}{letter}(?![\w'\u2019+#]|\.\w)"  # not M.D.
    for match in re.finditer(single, text, re.I * lower):
        first = not re.search(r"[^.!?\n](?<![\s\"'(])[\s\"'(]*$", text[: match.start()])
        after = re.match(r"\s+\w\w", text[match.end() :])
        if not (after and (letter == "I" or (letter == "A" and first))):
            return True
    return False


def without_no_answer(text: str, prompt: str = "") -> str:
    """Return a text without the "no" of phrases such as "no idea", and of "No. 7".

    "No" before another noun is kept only if the prompt has this noun.

    >>> without_no_answer("No, I have no idea."), without_no_answer("No records exist.")
    ('No, I have  idea.', ' records exist.')
    >>> without_no_answer("She has no children.", "Is she married?")
    'She has  children.'
    """
    given = {stem(word) for word in WORD.findall(plain(prompt))}

    def kept(match: re.Match[str]) -> str:
        after = [word for word in match.groups() if word]
        if not after or (
            match[1] not in _AFTER_NO and given.isdisjoint(map(stem, {*after} - FUNCTION_WORDS))
        ):
            return ""
        return match[0]

    return _NO_NOUN.sub(kept, _NO_ANSWER.sub("", text))


def in_words_of(secret: str, text: str, prompt: str) -> tuple[str, str]:
    """Return an answer of one word and a text with other words of the same meaning unified.

    - "one child" is 1 where the question asks how many;
    - IV is 4 where it asks for a number, volume, part, grade and the like;
    - M and F are male and female where it asks for the sex or gender;
    - the singular of a lower-case word is its plural, unless the prompt has either.

    >>> in_words_of("1", "She has one child.", "How many children has she?")
    ('1', 'She has 1 child.')
    >>> in_words_of("4", "Grade IV", "Which grade?"), in_words_of("dogs", "a dog", "Which pet?")
    (('4', 'Grade 4'), ('dogs', 'a dogs'))
    """
    own = secret.strip(" .")
    if not own.isalnum() or len(own) > LONGEST_WORD:
        return secret, text
    if _ASKS_SEX.search(prompt) and (sex := _sex_of(own)):
        found = {one for word in WORD.findall(text) if (one := _SEX_OF.get(word.casefold()))}
        found |= {_sex_of(letter) for letter in "MF" if letter_in(letter, text)}
        return (sex, sex) if found == {sex} else (secret, text)
    if own in ("1", "one") and _HOW_MANY.search(prompt):
        return secret, _with_one(text, [plain(word) for word in WORD.findall(prompt)])
    if (own.isdigit() or _ROMAN.fullmatch(own)) and _ASKS_NUMBER.search(prompt):
        return _ROMAN.sub(_arabic, own), _ROMAN.sub(_arabic, text)
    if own.islower() and own.isalpha() and own not in _SAME_PLURAL:
        forms = "|".join(sorted(_numbers_of(own)))
        other = re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])", re.I) if forms else None
        if other and other.search(text) and not other.search(prompt):
            return secret, other.sub(own, text)
    return secret, text


def _sex_of(word: str) -> str:
    return _SEX_OF.get(word.casefold(), {"M": "male", "F": "female"}.get(word.upper(), ""))


def _with_one(text: str, asked: list[str]) -> str:
    """Write "one" as 1 before a word of a question, or at the end of a statement."""

    def number(match: re.Match[str]) -> str:
        sentence = re.split(r"[.!?\n]", text[max(0, match.start() - NEAR) : match.start()])[-1]
        what = plain(match[2] or "")
        nouns = (word for word in asked if len(word) > 2)
        same = len(what) > 2 and any(what.startswith(n) or n.startswith(what) for n in nouns)
        if _UNSURE.search(sentence) or not (same if what else match[1]):
            return match[0]
        return " ".join(filter(None, (match[1], "1", match[2])))

    return _ONE.sub(number, text)


def _arabic(match: re.Match[str]) -> str:
    """Write a Roman numeral as digits, but not the pronoun I."""
    text, start = match.string, match.start()
    alone = len(text) < NEAR and text.strip(" .)(") == "I"
    if match[0] == "I" and not alone and not _ASKS_NUMBER.search(text[max(0, start - 12) : start]):
        return match[0]
    return str(roman(match[0]))


def _numbers_of(word: str) -> set[str]:
    """Return the plurals of a word, or its singulars if it is a plural."""
    found = {f"{word}s"} if len(word) > 2 else set()
    if re.search(r"(?:s|x|z|ch|sh|o)$", word):
        found.add(f"{word}es")
    if re.search(r"[^aeiou]y$", word):
        found.add(f"{word[:-1]}ies")
    if len(word) > 3 and re.search(r"[^s]s$", word):
        found.add(word[:-1])
        found |= {f"{word[:-3]}y"} if word.endswith("ies") else set()
        found |= {word[:-2]} if re.search(r"(?:s|x|z|ch|sh|o)es$", word) else set()
    return found - _SAME_PLURAL


def without_other_meanings(secret: str, text: str) -> str:
    """Return a text without words that are spelled as a name, but are none.

    "Will" is a name and "will" is not, except in a text of this word alone, or after "named". A
    model that calls itself an AI reveals no "AI" either.

    >>> without_other_meanings("Will", "I will not say that Will is his name.")
    'I  not say that Will is his name.'
    """
    name = ABBREVIATION.sub(without_dots, secret).strip(" .")
    word = name.casefold()
    if not name.isalpha() or not name[0].isupper():
        return text
    if word in ("ai", "artificial", "intelligence", "language", "model", "assistant"):
        return _OF_ITSELF.sub("", text)
    words = next((one for one in (_MODALS, _VERBS, _SMALL_WORDS) if word in one), None)
    if words is None or "".join(WORD.findall(text)).casefold() == word:
        return text

    def kept(match: re.Match[str]) -> str:
        before = text[max(0, match.start() - NEAR) : match.start()].lower()
        after = text[match.end() : match.end() + NEAR]
        if match[0] in (name, name.upper()):
            asked = words is not _SMALL_WORDS and re.match(rf" (?:{_SUBJECT}|this)\b", after, re.I)
            return "" if asked else match[0]
        if words is _VERBS:
            return "" if re.search(rf"\b{_SUBJECT} $", before) else match[0]
        named = re.search(rf"(?<!\w){_BEFORE_NAME[words]}$", before[-10:])
        return match[0] if named or re.match(r" \d", after) else ""

    return re.sub(rf"(?<!\w){word}(?!\w)", kept, text, flags=re.I)


def without_other_numbers(secret: str, text: str) -> str:
    """Return a text without numbers that are not those of a secret, though they have its digits.

    For a small number, these are the times of day and the numbers of the items of a list; for two
    numbers with a slash, the same numbers as items of a list.

    >>> without_other_numbers("7", "1. At 7:30 2. With 7 others")
    'At   With 7 others'
    """
    if SMALL.fullmatch(secret):
        return _TIME.sub(" ", without_numbering(text))
    if ratio := _RATIO.fullmatch(secret):
        listed = rf"(?<!\d)({ratio[1]})(?:[.;,]\s+|,)(?={ratio[2]}(?!\d))"
        over = rf"(?<!\d)({ratio[1]}) (?:over|out of) (?={ratio[2]}(?!\d))"
        return re.sub(over, r"\1/", re.sub(listed, r"\1 x ", text))
    return text


def symbols_in(secret: str, text: str) -> bool:
    """Return whether an answer of symbols such as emoji is in a text; punctuation never counts."""
    own, given = ("".join(c for c in plain(one) if unicodedata.category(c)[0] not in "ZM")
                  for one in (secret, text))  # fmt: skip
    return any(unicodedata.category(c)[0] == "S" for c in own) and own in given
