"""The one exception for what a user can mend, and the words that help to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TRY_AGAIN = 75  # exit code of a job that another start may help: EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
    """A user's mistake: the message is one line that says what, where, and how to mend it.

    The command line prints it without a traceback and exits with 2. Whatever is a mistake of ours must be
    another exception, so that its traceback is seen.
    """


class RankError(UserError):
    """A user's mistake that one rank may meet alone: that rank prints it, where of others rank 0 speaks for all."""


class LostRanksError(RuntimeError):
    """Other ranks have gone, and this one cannot go on: what went wrong, they have said. The exit code: TRY_AGAIN."""


def nearest(word: str, words: Iterable[str], limit: int = 3) -> str:
    """``word``'s closest spellings among ``words``, else all of them, as text for an error message."""
    known = list(words)
    close = difflib.get_close_matches(word, known, n=limit, cutoff=0.55)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(sorted(known))
