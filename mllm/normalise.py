"""Answers in the form in which VQAv2 compares them, by the rules it states (visualqa.org/evaluation).

Lower case; no periods but decimal ones; no commas between digits; other punctuation but apostrophe and colon becomes a
space; number words become digits; no articles; contractions get their apostrophe. Answers and right answers alike.

The official program departs from its rules in corners: where all humans agree it compares texts as they are, and where
punctuation stands beside a space it removes it everywhere in the text, so that two words may become one.
"""

from __future__ import annotations

import re

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
# What each of these may be contracted with, as far as the result without its apostrophe is no word of its own.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need sha should was were wo would",
    "'ve": "could i might must should they we who would you",
    "'ll": "it that there they who you",
    "'re": "they what you",
    "'s": "he here how let she that there what when where who why",
    "'d": "he it that there they who you",
    "'m": "i",
}
_CONTRACTED = {
    f"{start}{ending}".replace("'", ""): f"{start}{ending}"
    for ending, starts in _ENDINGS.items()
    for start in starts.split()
}


def normalised(text: str) -> str:
    """An answer as it is compared: `The two dogs, I dont know.` becomes `2 dogs i don't know`."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"\.(?!\d)", "", text)
    text = re.sub(r"[^\w\s':.]|_", " ", text)
    words = [word for word in text.split() if word not in _ARTICLES] or text.split()  # A may be one of four choices
    return " ".join(_CONTRACTED.get(word, word) for word in (_NUMBERS.get(word, word) for word in words))
