"""Every batch drawn from any DataLoader, numbered: which pass over which loader, which batch of it."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
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
        data: an identity of what is drawn, the same for all loaders that draw the whole of one data set.
        drawn: batches drawn so far.
        asked: how often a batch was asked for, also where there was none left.
    """

    loader: int
    serial: int
    length: int | None
    data: tuple[int, ...]
    drawn: int = 0
    asked: int = 0

    @property
    def epoch_key(self) -> tuple[int, int]:
        """Equal for two batches exactly if they belong to the same epoch of the loader.

        An iterator that is kept for all epochs passes its loader's length again and again.
        """
        return self.serial, (self.drawn - 1) // self.length if self.length else 0


class Numbers:
    """A number for each object, its own for as long as it lives; objects need not be hashable."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def of(self, thing: Any) -> int:
        """The object's number; a new one each time where it takes no weak reference."""
        address = id(thing)
        if address not in self._known:
            number = next(self._numbers)
            try:
                reference = weakref.ref(thing, lambda _: self._known.pop(address, None))
            except TypeError:
                return number
            self._known[address] = reference, number
        return self._known[address][1]


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
        self._loaders: WeakKeyDictionary[DataLoader[Any], tuple[int, tuple[int, ...]]] = WeakKeyDictionary()
        self._things = Numbers(self._serials)
        self._patches = [
            Patch(_BaseDataLoaderIter, "__init__", functools.partial(self._around, self._begun)),
            Patch(_BaseDataLoaderIter, "_reset", functools.partial(self._around, self._begun)),
            Patch(_BaseDataLoaderIter, "__next__", self._around_next),
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

    def _around_next(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(iterator: Any, *args: Any, **kwargs: Any) -> Any:
            self._boundary.run(self._asked, iterator)
            result = original(iterator, *args, **kwargs)
            self._boundary.run(self._drawn, iterator)
            return result

        return call

    def _begun(self, iterator: Any, loader: DataLoader[Any] | None = None, *_: Any) -> None:
        if loader is not None:
            if loader not in self._loaders:
                self._loaders[loader] = next(self._serials), self._data(loader)
            identity, data = self._loaders[loader]
            self._passes[iterator] = Pass(identity, next(self._serials), _length(loader), data)
        elif iterator in self._passes:
            old = self._passes[iterator]
            self._passes[iterator] = Pass(old.loader, next(self._serials), old.length, old.data)

    def _asked(self, iterator: Any) -> None:
        current = self._passes.get(iterator)
        if current is None:  # an iterator from before we watched
            data = (next(self._serials),)
            current = self._passes[iterator] = Pass(next(self._serials), next(self._serials), None, data)
        current.asked += 1

    def _drawn(self, iterator: Any) -> None:
        current = self._passes[iterator]
        current.drawn += 1
        self._on_batch(current)

    def _data(self, loader: DataLoader[Any]) -> tuple[int, ...]:
        """What the loader draws: the data set, or its tensors, with the sampler where that may leave some out."""
        dataset: Any = loader.dataset
        things = dataset.tensors if type(dataset) is TensorDataset else (dataset,)
        sampler: Any = loader.sampler
        if type(loader.batch_sampler) not in (BatchSampler, type(None)):
            sampler = loader.batch_sampler
        if loader._dataset_kind != _DatasetKind.Iterable and not _draws_all(sampler, dataset):
            things = (*things, sampler)
        return tuple(self._things.of(thing) for thing in things)


def _length(loader: DataLoader[Any]) -> int | None:
    """len(loader), but never asked of an iterable data set: torch would then warn when it is exceeded."""
    own = type(loader).__len__ is not DataLoader.__len__
    if loader._dataset_kind == _DatasetKind.Iterable and not own:
        return None
    try:
        return len(loader) or None
    except TypeError:
        return None


def _draws_all(sampler: Any, dataset: Any) -> bool:
    """Whether the sampler is one that torch makes itself, over the whole data set."""
    if type(sampler) is RandomSampler and (sampler.replacement or sampler._num_samples is not None):
        return False
    return type(sampler) in (RandomSampler, SequentialSampler) and sampler.data_source is dataset
