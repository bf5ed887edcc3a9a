"""Methods that do not go with labels of pixels, or not with a neck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vpeft import methods

_SHRINKING = (("evp", None), ("ilm_vp", "outside"))  # methods, and their `kind`, after which a pixel is elsewhere


def unfit(
    spec: Mapping[str, Any] | Sequence[Mapping[str, Any]], neck: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What is wrong with the methods of a `method:` entry under a `neck:` entry, a sentence each.

    Raises:
        ValueError: a method or an option that there is not.
    """
    plain = methods.resolve(spec)
    resolved = plain if isinstance(plain, list) else [plain]
    looking = [one["name"] for one in resolved if issubclass(methods.METHODS[one["name"]], methods.Preparing)]
    if looking:
        yield (
            f"{' and '.join(looking)} looks at images with one label each before it trains, and here every pixel has "
            "one; use another method, or kind: classification"
        )
    shrinking = [one["name"] for one in resolved if (one["name"], one.get("kind")) in _SHRINKING]
    if shrinking:
        yield (
            f"{' and '.join(shrinking)} shrinks the image within its prompt, and the labels would no longer lie over "
            "it; use another method, or kind: classification"
        )
    idle = [one["name"] for one in resolved if one["name"] != "linear"]
    if neck and neck.get("regime") == "extractor" and idle:
        yield (
            f"neck.regime extractor runs the backbone without a graph, so {' and '.join(idle)} would not learn; use "
            "neck.regime injector, or method linear"
        )
