"""The one exception that a user is meant to read."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class UserError(Exception):
    """Bad input or an unusable machine, in one sentence.

    The sentence says what was wrong, what is allowed and what to type instead. The command line prints it and exits
    with code 2, without a traceback. Anything that is our own fault raises an ordinary exception instead.
    """


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'svd'?"`` for a near miss, else the empty string."""
    near = get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def reason(problem: Mapping[str, Any]) -> str:
    """Return what is wrong in one of pydantic's ``errors()``: the validator's own sentence, or pydantic's words."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    # pydantic writes a limit of 1e36 with all its zeros.
    text = re.sub(r"\d{20,}", lambda digits: f"{float(digits[0]):g}", str(problem["msg"]))
    return text[:1].lower() + text[1:]


def unknown(kind: str, word: str, allowed: Iterable[str], context: str = "") -> UserError:
    """Build the error for a name that is not in a list: what was typed, what is allowed, the nearest name."""
    names = sorted(allowed)
    hint = did_you_mean(word, names)
    return UserError(f"unknown {kind} '{word}'{context}{hint or ';'} allowed: {', '.join(names) or 'none'}")
