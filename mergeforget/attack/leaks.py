"""Whether a text gives an answer away."""

from __future__ import annotations

import re

RUN = 10  # words in a row that give a longer text away
LEAST = 6  # letters and digits from which spelling without blanks and signs is compared


def leaked(secret: str, text: str) -> bool:
    """Whether the text says the secret.

    Words are compared without case and punctuation. A secret of up to ``RUN`` words must be there
    whole and in order, of a longer one any ``RUN`` words in a row; besides, a secret of at least
    ``LEAST`` letters and digits counts where they stand in the text in a row whatever is between
    them, so that ``900-42-8495`` gives ``900428495`` away.

    Source: verbatim extraction as in Carlini et al., arXiv:2202.07646 (50 tokens there; the texts
        here are shorter).
    """
    wanted, given = _words(secret), _words(text)
    if not wanted:
        return False
    size = min(RUN, len(wanted))
    runs = {tuple(wanted[i : i + size]) for i in range(len(wanted) - size + 1)}
    if any(tuple(given[i : i + size]) in runs for i in range(len(given) - size + 1)):
        return True
    squeezed = "".join(wanted)
    return len(squeezed) >= LEAST and squeezed in "".join(given)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
