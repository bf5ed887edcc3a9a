"""What a mistyped name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """The end of an error: `did you mean 'prompts'?`, or all there is when nothing is near.

    Args:
        name: What was given.
        choices: What exists.
        prefix: Written before the choices, not compared: the `data.` of `data.task`, a folder.
    """
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean '{prefix}{near[0]}'?"
    return f"there is {', '.join(prefix + known for known in names)}" if names else "there is none"
