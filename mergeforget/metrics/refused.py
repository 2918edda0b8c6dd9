"""Share of refusals, which are not the same as lost knowledge."""

from __future__ import annotations

import re
import unicodedata

from mergeforget.data.schema import Answer, Measured
from mergeforget.data.transforms import REFUSALS
from mergeforget.metrics import metric
from mergeforget.metrics._rows import answers_of, subjects_of
from mergeforget.metrics._statistics import mean_score
from mergeforget.metrics.exact_match import is_exact
from mergeforget.score import Score

DEFINITION = "refused@1"
BEGINS = (  # first words of refusals, in lower case without accents or punctuation
    "i dont know", "i do not know", "i cant", "i cannot", "i can not",
    "i am unable", "im unable", "i am not able", "im not able", "i am not sure", "im not sure",
    "i am not aware", "im not aware", "i am not familiar", "im not familiar", "i am not allowed",
    "im not allowed", "im sorry", "i am sorry", "sorry", "i apologize", "i apologise",
    "my apologies", "i have no information", "i have no knowledge", "i have no idea",
    "i dont have", "i do not have", "i lack", "as an ai", "as a language model", "no information",
    "es tut mir leid", "ich weiß nicht", "ich weiss nicht", "ich kann nicht",
    "je suis desole", "je ne sais pas", "je ne peux pas", "lo siento", "no lo se", "no se",
    "no puedo", "desculpe", "nao sei", "nao posso", "mi dispiace", "non lo so", "non posso",
    "извините", "к сожалению", "я не знаю", "я не могу",
    "抱歉", "对不起", "對不起", "我不知道", "我无法", "我不能", "申し訳", "わかりません",
    "分かりません",     "知りません", "죄송", "모르겠", "عذرا", "لا اعرف", "لا أعرف", "माफ",
)  # fmt: skip


@metric("refused", source="mergeforget; refusals of TOFU's IDK list and other common ones")
def refused(measured: Measured, split: str, task: str = "") -> Score | None:
    """Share of all answers that begin like a refusal and are not the reference, in [0, 1].

    A refusal is not lost knowledge: the model may answer a reworded question, so run attacks if it
    refuses the forget set. Lower is better on every split.
    """
    answers = answers_of(measured, split, task)
    values = [float(is_refusal(a)) for a in answers]
    return mean_score(
        "refused", split, values, "lower", subjects=subjects_of(answers), task=task,
        definition=DEFINITION,
    )  # fmt: skip


def is_refusal(answer: Answer) -> bool:
    """Return whether a completion is a refusal; repeating the reference never is.

    Example:
        >>> from mergeforget.data.schema import Row
        >>> is_refusal(Answer(Row("1", "Who is A?", "A baker"), "I'm sorry, I can't say."))
        True
    """
    if is_exact(answer):
        return False
    text = _plain(answer.completion)
    return any(text.startswith(b) and _ends_word(text, b) for b in _PLAIN_BEGINS)


def _ends_word(text: str, beginning: str) -> bool:
    """Return whether a beginning ends at the end of a word; always true without spaces."""
    after = text[len(beginning) : len(beginning) + 1]
    return not after.isalnum() or not (beginning[-1].isascii() or after.isascii())


def _plain(text: str) -> str:
    """Normalise a text to lower case and single spaces, without accents and punctuation."""
    parts = unicodedata.normalize("NFD", text.casefold())
    kept = "".join(c for c in parts if unicodedata.category(c)[0] not in "MP")
    return re.sub(r"\s+", " ", kept).strip()


_PLAIN_BEGINS = tuple(dict.fromkeys(_plain(text) for text in (*BEGINS, *REFUSALS)))
