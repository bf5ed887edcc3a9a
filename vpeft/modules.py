"""nn.ModuleList that tells a type checker what it holds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[M]: ...
