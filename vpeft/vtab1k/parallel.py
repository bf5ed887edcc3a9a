"""Work on many images in several processes, handed out in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

# What torch says of a worker that is gone.
_KILLED = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)")
_CHUNK = 64  # images that a worker makes before it reports

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_chunks(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[list[Result]]:
    """Results of a function over `items`, in their order, some at a time.

    A worker's items come in rising order, so it reads a compressed archive forward only.

    Args:
        work: Gives one result; a ValueError or OSError ends the iteration after what was made before it.
        items: What to work on.
        workers: Processes; 0 works in this one.

    Raises:
        ValueError, OSError: As `work` raised it.
        RuntimeError: A process was killed, which the message says; or as `work` raised it.
    """
    chunks = _Chunks(work, items)
    results = iter(DataLoader(chunks, None, num_workers=min(workers, len(chunks)), collate_fn=_as_it_is))
    for _ in range(len(chunks)):
        try:
            made, fault = next(results)
        except RuntimeError as error:
            if not _KILLED.search(str(error)):  # a fault of the work, which torch hands on under the same type
                raise
            raise RuntimeError(
                "A worker was killed, most often because memory ran out; use fewer workers. What was made before is "
                f"kept. ({error})"
            ) from error
        yield made
        if fault is not None:
            raise fault


def _as_it_is(item: Any) -> Any:
    return item


class _Chunks(Dataset[tuple[list[Any], Exception | None]], Generic[Item, Result]):
    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self._work, self._items = work, items

    def __len__(self) -> int:
        return -(-len(self._items) // _CHUNK)

    def __getitem__(self, index: int) -> tuple[list[Result], Exception | None]:
        results: list[Result] = []
        for item in self._items[index * _CHUNK : (index + 1) * _CHUNK]:
            try:
                results.append(self._work(item))
            except (ValueError, OSError) as error:
                return results, error
        return results, None
