"""Queries that a method makes and a head takes: who has them to give, who wants them, and that the two meet.

They are made of the method's parameters alone, so that the head asks for them whenever it needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vpeft.methods import name_of


@runtime_checkable
class Querying(Protocol):
    """A method that can make the queries of a mask head."""

    query_dim: int | None  # their width; None where it makes none

    def queries(self) -> Tensor:
        """[Q, query_dim], the same for all images."""
        ...


@runtime_checkable
class Linked(Protocol):
    """A head that can take its queries from a method."""

    linked: bool  # whether it does

    def link(self, method: Querying) -> None:
        """Take the queries of a method from now on; ValueError where they do not fit."""
        ...


def link(methods: Sequence[nn.Module], head: nn.Module) -> None:
    """Give the queries of a method to the head that takes them.

    Raises:
        ValueError: there are queries and no head that takes them, or the other way round, or two methods make some.
    """
    giving = [method for method in methods if isinstance(method, Querying) and method.query_dim is not None]
    names = [name_of(method) for method in methods if method in giving]
    taking = head if isinstance(head, Linked) and head.linked else None
    if taking is not None and not giving:
        raise ValueError(
            "mask: linked is true, and no method makes queries. Use method rein with query_dim, or set linked to false."
        )
    if giving and taking is None:
        raise ValueError(
            f"{names[0]}: query_dim is {giving[0].query_dim}, and the head takes no queries, so that what makes them "
            "would not learn. Use kind: segmentation with head mask and linked: true, or leave query_dim out."
        )
    if len(giving) > 1:
        raise ValueError(f"{' and '.join(names)} both make queries, and a head takes one set; set query_dim of one.")
    if taking is not None:
        taking.link(giving[0])
