"""CIDEr-D (Vedantam et al., CVPR 2015, arXiv:1411.5726): how far a caption agrees with those that humans gave.

    CIDEr-D = 10 / (4 m) sum_n sum_j exp(-(l - l_j)^2 / 2 sigma^2) min(g_n, g_nj) . g_nj / (|g_n| |g_nj|)

for a caption of length l and its m references of lengths l_j; n from 1 to 4; sigma 6. g_n holds for each n-gram of
words how often the text has it, times the log of how rare it is: images over images with a reference that has it.

Here rather than from a package: pycocoevalcap (1.2, 2020) is a wheel of 104 MB of Java archives around its 190 lines
and states no licence, and aac-metrics (0.6.0) cannot be installed beside numpy 2 or transformers 5. The tests hold
numbers that pycocoevalcap 1.2 computes. It leaves the words to Stanford's tokenizer, which is Java; here words are
lower-cased runs of letters and digits, `n't` and `'s` apart as there, and punctuation does not count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_LONGEST, _SIGMA = 4, 6.0
Grams = Counter[tuple[str, ...]]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, from 0 to 10.

    Args:
        captions: One an image.
        references: Of each image, at least one.

    Raises:
        ValueError: There are fewer than two images, so that no n-gram is rarer than another.
    """
    if len(captions) < 2:
        raise ValueError(
            "CIDEr weighs words by how rare they are among the references of all images, and one image has none that "
            "is rare. Score two samples at least; papers score thousands."
        )
    known = [[_grams(words(text)) for text in texts] for texts in references]
    seen = Counter(gram for texts in known for gram in set().union(*texts))
    rarity = _Rarity(seen, len(captions))
    return [
        10 * sum(_similarity(rarity, _grams(words(caption)), text) for text in texts) / len(texts)
        for caption, texts in zip(captions, known, strict=True)
    ]


def words(text: str) -> list[str]:
    """What is counted of a text: `A dog's ball isn't red-hot.` has `a dog 's ball is n't red-hot`."""
    text = re.sub(r"n't\b", " n't", text.lower())
    return re.findall(r"n't|'(?:s|m|d|ll|re|ve)\b|\w+(?:-\w+)*", text)


class _Rarity:
    def __init__(self, seen: Counter[tuple[str, ...]], images: int) -> None:
        self.seen, self.images = seen, math.log(images)

    def weighed(self, grams: Grams, length: int) -> dict[tuple[str, ...], float]:
        """The n-grams of one length with their weights."""
        return {
            gram: count * (self.images - math.log(max(1, self.seen[gram])))
            for gram, count in grams.items()
            if len(gram) == length
        }


def _grams(text: Sequence[str]) -> Grams:
    return Counter(
        tuple(text[start : start + length])
        for length in range(1, _LONGEST + 1)
        for start in range(len(text) - length + 1)
    )


def _similarity(rarity: _Rarity, caption: Grams, reference: Grams) -> float:
    """Mean over the lengths of n-grams; without a factor 10."""
    apart = _length(caption) - _length(reference)
    total = 0.0
    for length in range(1, _LONGEST + 1):
        ours, theirs = (rarity.weighed(grams, length) for grams in (caption, reference))
        product = sum(min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in ours.items())
        sizes = _norm(ours.values()) * _norm(theirs.values())
        total += product / sizes if sizes else 0.0
    return total / _LONGEST * math.exp(-(apart**2) / (2 * _SIGMA**2))


def _length(grams: Grams) -> int:
    # Of its pairs of words, as in pycocoevalcap: one less than its words.
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in values))
