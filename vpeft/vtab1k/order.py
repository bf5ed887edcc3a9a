"""The order in which TFDS stores a split, computed without TFDS or TensorFlow.

    place(key) = md5(split ‖ key)        as a 128-bit number; a split is stored by rising place

TFDS (github.com/tensorflow/datasets, Apache-2.0: core/hashing.py, core/shuffle.py) has kept this rule since its
first release: a change would be a new major version of every data set. `train[:800]` is therefore the 800 examples
of lowest place, whatever the number of files they are spread over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

from vpeft.vtab1k.source import Example


def place(key: str | int, split: str) -> bytes:
    """The hash that sorts an example; compares as the number it stands for.

    Args:
        key: As the builder yields it; a number counts as its decimal digits.
        split: TFDS's name of the split, which salts the hash.
    """
    return hashlib.md5(split.encode() + str(key).replace("\\", "/").encode(), usedforsecurity=False).digest()


def stored_order(examples: Sequence[Example], split: str) -> list[int]:
    """Positions in `examples` by their place in TFDS's split.

    Raises:
        ValueError: Two examples have one key, which TFDS refuses as well.
    """
    places = [place(example.key, split) for example in examples]
    order = sorted(range(len(places)), key=places.__getitem__)
    for first, second in pairwise(order):
        if places[first] == places[second]:
            raise ValueError(
                f"Two examples of {split} have the key '{examples[first].key}'; the archive holds a file twice, and "
                "its order would not be that of TFDS. Fetch it again."
            )
    return order
