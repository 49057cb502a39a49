"""Every batch drawn from any DataLoader, numbered: which pass over which loader, which batch of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch


@dataclass
class Pass:
    """One pass of an iterator over its loader.

    Attributes:
        loader: an identity of the loader, the same for all its passes, and for one that is made anew in its place.
        serial: of the pass, over all loaders.
        length: batches of one epoch, len(loader); None where it has none.
        data: an identity of what is drawn, the same for all loaders that draw the whole of one data set; of a part of
            it, that of the whole and more.
        drawn: batches drawn so far.
        asked: how often a batch was asked for, also where there was none left.
        exhausted: there are no more.
        replaced: its iterator has begun another pass.
        iterator: which makes it.
        gone: whether its loader is, and cannot be made anew.
    """

    loader: int
    serial: int
    length: int | None
    data: tuple[int, ...]
    drawn: int = 0
    asked: int = 0
    exhausted: bool = False
    replaced: bool = False
    iterator: Callable[[], object] = object
    gone: Callable[[], bool] = bool

    @property
    def epoch_key(self) -> tuple[int, int]:
        """Equal for two batches exactly if they belong to the same epoch of the loader.

        An iterator that is kept for all epochs passes its loader's length again and again.
        """
        return self.serial, (self.drawn - 1) // self.length if self.length else 0

    @property
    def over(self) -> bool:
        """Whether nothing more can be drawn: a loop that is left, also by a break, lets go of its iterator."""
        return self.exhausted or self.replaced or self.iterator() is None

    @property
    def at_an_end(self) -> bool:
        """Whether the last batch drawn was the last of an epoch of the loader, where its length is known."""
        return self.length is not None and self.drawn > 0 and self.drawn % self.length == 0

    @property
    def done(self) -> bool:
        """Whether it is over or every batch has been drawn, even if its iterator is kept."""
        return self.over or (self.length is not None and self.drawn >= self.length)

    @property
    def last(self) -> bool:
        """Whether it is over and its loader will make no other."""
        return self.over and self.gone()

    @property
    def lone(self) -> bool:
        """Whether one batch of several was taken, as `next(iter(loader))` does."""
        return self.over and self.drawn == 1 and self.length != 1 and not self.exhausted


@dataclass
class Source:
    """A loader, or several that were made one after the other to draw the same data in the same way.

    Attributes:
        identity: of all of them.
        data: an identity of what they draw.
        things: that which they draw.
        manner: in which they draw it.
        loader: the latest.
    """

    identity: int
    data: tuple[int, ...]
    things: list[Callable[[], object]]
    manner: tuple[object, ...]
    loader: Callable[[], object]

    def gone(self) -> bool:
        """Whether none is left, and none can be made of what is."""
        return self.loader() is None and any(thing() is None for thing in self.things)


class Numbers:
    """A number for each object, its own for as long as it lives; objects need not be hashable."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._known: dict[int, tuple[ref[Any], int]] = {}

    def of(self, thing: Any) -> int:
        """The object's number; a new one each time where it takes no weak reference."""
        address = id(thing)
        if address not in self._known:
            number = next(self._numbers)
            try:
                reference = ref(thing, lambda _: self._known.pop(address, None))
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
        self._loaders: WeakKeyDictionary[DataLoader[Any], Source] = WeakKeyDictionary()
        self._sources: list[Source] = []
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
        def draw(iterator: Any) -> Any:
            self._boundary.run(self._asked, iterator)
            try:
                batch = original(iterator)
            except StopIteration:
                self._boundary.run(self._exhausted, iterator)
                raise
            self._boundary.run(self._drawn, iterator)
            return batch

        return draw

    def _begun(self, iterator: Any, loader: DataLoader[Any] | None = None, *_: Any) -> None:
        old = self._passes.get(iterator)
        if old is not None:
            old.replaced = True
        if loader is not None:
            if loader not in self._loaders:
                self._loaders[loader] = self._source(loader)
            source = self._loaders[loader]
            identity, data, length, gone = source.identity, source.data, _length(loader), source.gone
        elif old is not None:
            identity, data, length, gone = old.loader, old.data, old.length, old.gone
        else:
            return
        self._passes[iterator] = Pass(
            identity, next(self._serials), length, data, iterator=ref(iterator), gone=gone
        )

    def _asked(self, iterator: Any) -> None:
        current = self._passes.get(iterator)
        if current is None:  # an iterator from before we watched: its loader will be known as another one
            identity, serial, data = (next(self._serials) for _ in range(3))
            current = self._passes[iterator] = Pass(
                identity, serial, None, (data,), iterator=ref(iterator), gone=_unknown
            )
        current.asked += 1

    def _exhausted(self, iterator: Any) -> None:
        if iterator in self._passes:
            self._passes[iterator].exhausted = True

    def _drawn(self, iterator: Any) -> None:
        current = self._passes[iterator]
        current.drawn += 1
        self._on_batch(current)

    def _source(self, loader: DataLoader[Any]) -> Source:
        self._sources = [source for source in self._sources if not source.gone()]
        things, manner = _drawn_by(loader)
        data = tuple(self._things.of(thing) for thing in things)
        for source in self._sources:
            if source.data == data and source.manner == manner and source.loader() is None:
                source.loader = ref(loader)
                return source
        source = Source(next(self._serials), data, [_weakly(thing) for thing in things], manner, ref(loader))
        self._sources.append(source)
        return source


def _unknown() -> bool:
    return True


def _weakly(thing: Any) -> Callable[[], object]:
    try:
        return ref(thing)
    except TypeError:
        return _nothing


def _nothing() -> None:
    return None


def _drawn_by(loader: DataLoader[Any]) -> tuple[tuple[Any, ...], tuple[object, ...]]:
    """The data set, or its tensors, with what may leave some of it out; and the manner of drawing."""
    dataset: Any = loader.dataset
    if not isinstance(loader, DataLoader):
        return (dataset,), ()
    whole, parts = dataset, []
    while isinstance(whole, Subset):
        parts.append(whole)
        whole = whole.dataset
    things: tuple[Any, ...] = (*(whole.tensors if type(whole) is TensorDataset else (whole,)), *parts)
    manner = type(loader.sampler), loader.batch_size
    sampler: Any = loader.sampler
    if type(loader.batch_sampler) not in (BatchSampler, type(None)):
        sampler = loader.batch_sampler
    if loader._dataset_kind != _DatasetKind.Iterable and not _draws_all(sampler, dataset):
        things += (sampler,)
    return things, manner


def _length(loader: DataLoader[Any]) -> int | None:
    """len(loader), but never asked of an iterable data set: torch would then warn when it is exceeded."""
    counted: Any = loader
    if not isinstance(loader, DataLoader):
        # fastai draws through a stand-in, which has its own DataLoader as `d`.
        counted = vars(loader).get("d")
    elif loader._dataset_kind == _DatasetKind.Iterable and type(loader).__len__ is DataLoader.__len__:
        return None
    try:
        return len(counted) or None
    except TypeError:
        return None


def _draws_all(sampler: Any, dataset: Any) -> bool:
    """Whether the sampler is one that torch makes itself, over the whole data set."""
    if type(sampler) is RandomSampler and (sampler.replacement or sampler._num_samples is not None):
        return False
    return type(sampler) in (RandomSampler, SequentialSampler) and sampler.data_source is dataset
