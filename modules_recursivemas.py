"""Named modules of one type: `mas.agents["planner"]` is an agent for readers and type checkers, too."""

from collections.abc import ItemsView, ValuesView
from typing import Generic, TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleDict, Generic[M]):
    """A `ModuleDict` whose values are known to be of type `M`."""

    def __getitem__(self, key: str) -> M:
        return cast(M, super().__getitem__(key))

    def items(self) -> ItemsView[str, M]:
        return cast(ItemsView[str, M], super().items())

    def values(self) -> ValuesView[M]:
        return cast(ValuesView[M], super().values())
