"""Every batch drawn from any DataLoader, numbered: which pass over which loader, which batch of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch


@dataclass
class Pass:
    """One pass of an iterator over its loader.

    Attributes:
        loader: an identity of the loader, the same for all its passes.
        serial: of the pass, over all loaders.
        length: batches of one epoch, len(loader); None where it has none.
        drawn: batches drawn so far.
    """

    loader: int
    serial: int
    length: int | None
    drawn: int = 0

    @property
    def epoch_key(self) -> tuple[int, int]:
        """Equal for two batches exactly if they belong to the same epoch of the loader.

        An iterator that is kept for all epochs passes its loader's length again and again.
        """
        return self.serial, (self.drawn - 1) // self.length if self.length else 0


class LoaderWatch:
    """Calls `on_batch(pass)` in the process that trains, after each batch drawn from any DataLoader.

    `_BaseDataLoaderIter` is watched rather than `DataLoader.__iter__`: loaders that override the latter, keep
    their workers or one iterator for ever still draw through it.
    """

    def __init__(self, on_batch: Callable[[Pass], None], boundary: Boundary) -> None:
        self._on_batch = on_batch
        self._boundary = boundary
        self._serials = itertools.count()
        self._passes: WeakKeyDictionary[Any, Pass] = WeakKeyDictionary()
        self._loaders: WeakKeyDictionary[DataLoader[Any], int] = WeakKeyDictionary()
        self._patches = [
            Patch(_BaseDataLoaderIter, "__init__", functools.partial(self._around, self._begun)),
            Patch(_BaseDataLoaderIter, "_reset", functools.partial(self._around, self._begun)),
            Patch(_BaseDataLoaderIter, "__next__", functools.partial(self._around, self._drawn)),
        ]

    def remove(self) -> None:
        """Give torch its own functions back."""
        for patch in self._patches:
            patch.remove()

    def _around(self, notice: Callable[..., None], original: Callable[..., Any]) -> Callable[..., Any]:
        def call(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(iterator, *args, **kwargs)
            self._boundary.run(notice, iterator, *args)
            return result

        return call

    def _begun(self, iterator: Any, loader: DataLoader[Any] | None = None, *_: Any) -> None:
        if loader is not None:
            identity = self._loaders.setdefault(loader, next(self._serials))
            self._passes[iterator] = Pass(identity, next(self._serials), _length(loader))
        elif iterator in self._passes:
            old = self._passes[iterator]
            self._passes[iterator] = Pass(old.loader, next(self._serials), old.length)

    def _drawn(self, iterator: Any) -> None:
        current = self._passes.get(iterator)
        if current is None:  # an iterator from before we watched
            current = self._passes[iterator] = Pass(next(self._serials), next(self._serials), None)
        current.drawn += 1
        self._on_batch(current)


def _length(loader: DataLoader[Any]) -> int | None:
    """len(loader), but never asked of an iterable data set: torch would then warn when it is exceeded."""
    own = type(loader).__len__ is not DataLoader.__len__
    if loader._dataset_kind == _DatasetKind.Iterable and not own:
        return None
    try:
        return len(loader) or None
    except TypeError:
        return None
