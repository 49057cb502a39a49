"""Tells which batches are drawn from which DataLoader, by number. Decides nothing about epochs."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset

from mlflow_dynamics.loop.events import BatchDrawn, LoaderGone, PassEnded
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.recording.torch_private import LoaderIterator, draws_whole, is_iterable


def _nothing() -> None:
    return None


@dataclass(eq=False)
class Source:
    """A loader, or several loaders that were made one after the other to draw the same data in the same way.

    Attributes:
        number: the number that all of these loaders have.
        data: numbers of the data that the loaders draw.
        manner: the way in which the loaders draw the data.
        loader: a reference to the latest loader.
        things: references to the data.
        running: the number of passes that have not ended.
    """

    number: int
    data: tuple[int, ...]
    manner: tuple[object, ...]
    loader: Callable[[], object] = _nothing
    things: list[Callable[[], object]] = field(default_factory=lambda: [_nothing])
    running: int = 0

    @property
    def gone(self) -> bool:
        """Whether no more batches can be drawn: no pass and no loader is left, and some of the data are freed."""
        return not self.running and self.loader() is None and any(thing() is None for thing in self.things)


class Numbers:
    """Gives each object a number, which no other object has while that one lives. Objects need not be hashable."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._known: dict[int, tuple[ref[Any], int]] = {}

    def of(self, thing: Any) -> int:
        """The object's number; a new number each time if the object takes no weak reference."""
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
    """Tells, in the process that trains, what is drawn from any DataLoader and what has ended.

    The iterator is watched rather than `DataLoader.__iter__`, because every loader draws through it: also
    loaders that override `__iter__`, that keep their workers, or that keep one iterator for ever.

    Args:
        on_batch: called with the pass after each batch drawn.
        on_end: called when a pass or a loader has ended: at any moment and in any thread, as Python frees an iterator.
        boundary: keeps our failures out of the script.
    """

    def __init__(
        self,
        on_batch: Callable[[Pass], None],
        on_end: Callable[[PassEnded | LoaderGone], None],
        boundary: Boundary,
    ) -> None:
        self._on_batch = on_batch
        self._on_end = on_end
        self._boundary = boundary
        self._exiting = (
            sys.is_finalizing
        )  # kept here: a module may be taken apart before an iterator is freed
        self._numbers = itertools.count()
        # By the address of each iterator that is not freed: a reference, its latest pass and the pass's source.
        self._running: dict[int, tuple[ref[Any], Pass, Source]] = {}
        self._loaders: WeakKeyDictionary[DataLoader[Any], Source] = WeakKeyDictionary()
        self._sources: dict[int, Source] = {}
        self._things = Numbers(self._numbers)
        self._patches = [
            Patch(LoaderIterator, "__init__", after=self._after_begin),
            Patch(LoaderIterator, "_reset", after=self._after_begin),
            Patch(LoaderIterator, "__next__", inside=functools.partial(_Drawing, self)),
        ]

    def remove(self) -> None:
        """Give torch its own functions back."""
        for patch in self._patches:
            patch.remove()

    def asked(self, iterator: Any) -> None:
        """A batch is about to be drawn."""
        self._boundary.run(self._asked, iterator)

    def answered(self, iterator: Any, error: type[BaseException] | None) -> None:
        """A batch was drawn, or the iterator raised this `error` instead."""
        if error is None:
            self._boundary.run(self._drawn, iterator)
        elif issubclass(error, StopIteration):
            self._boundary.run(self._exhausted, iterator)

    def _after_begin(self, _: None, iterator: Any, *args: Any, **kwargs: Any) -> None:
        self._boundary.run(self._begun, iterator, *args)

    def _begun(self, iterator: Any, loader: DataLoader[Any] | None = None, *_: Any) -> None:
        old = self._running.get(id(iterator))
        if old is not None:
            self._end(*old[1:], False)
        if loader is not None:
            if loader not in self._loaders:
                self._loaders[loader] = self._source(loader)
            self._run(iterator, self._loaders[loader], _length(loader))
        elif old is not None:
            self._run(iterator, old[2], old[1].length)

    def _run(self, iterator: Any, source: Source, length: int | None) -> Pass:
        drawn = Pass(BatchDrawn(source.number, next(self._numbers), 0, length), source.data)
        address = id(iterator)
        self._running[address] = ref(iterator, functools.partial(self._freed, address)), drawn, source
        source.running += 1
        return drawn

    def _asked(self, iterator: Any) -> None:
        running = self._running.get(id(iterator))
        if running is None:  # the iterator is older than this watch: its loader counts as a source of its own
            drawn = self._run(iterator, self._new_source((next(self._numbers),), ()), None)
        else:
            drawn = running[1]
        drawn.asked += 1

    def _drawn(self, iterator: Any) -> None:
        drawn = self._running[id(iterator)][1]
        before = drawn.latest
        drawn.latest = BatchDrawn(before.loader, before.pass_, before.number + 1, before.length)
        self._on_batch(drawn)

    def _exhausted(self, iterator: Any) -> None:
        running = self._running.get(id(iterator))
        if running is not None:
            self._end(*running[1:], True)

    def _freed(self, address: int, _: object) -> None:
        self._when_freed(self._end, *self._running.pop(address)[1:], False)

    def _when_freed(self, function: Callable[..., None], *args: Any) -> None:
        if not self._exiting():  # else nobody is left to tell, and Python before 3.11 has none of our modules
            self._boundary.run(function, *args)

    def _end(self, drawn: Pass, source: Source, exhausted: bool) -> None:
        if not drawn.ended:
            drawn.ended, drawn.exhausted = True, exhausted
            source.running -= 1
            self._on_end(PassEnded(drawn.serial, exhausted))
            self._perhaps_gone(source)

    def _perhaps_gone(self, source: Source) -> None:
        if source.gone and self._sources.pop(source.number, None) is not None:
            self._on_end(LoaderGone(source.number))

    def _source(self, loader: DataLoader[Any]) -> Source:
        things, manner = _drawn_by(loader)
        data = tuple(self._things.of(thing) for thing in things)
        for source in list(self._sources.values()):
            if source.data == data and source.manner == manner and source.loader() is None:
                source.loader = self._noticing(source, loader)
                return source
        source = self._new_source(data, manner)
        source.loader = self._noticing(source, loader)
        source.things = [self._noticing(source, thing) for thing in things]
        return source

    def _new_source(self, data: tuple[int, ...], manner: tuple[object, ...]) -> Source:
        number = next(self._numbers)
        source = self._sources[number] = Source(number, data, manner)
        return source

    def _noticing(self, source: Source, thing: Any) -> Callable[[], object]:
        """A weak reference to a loader or its data; when it dies, `on_end` may hear that the source is gone."""
        try:
            return ref(thing, lambda _: self._when_freed(self._perhaps_gone, source))
        except TypeError:
            return _nothing


class _Drawing:
    """Tells the watch that a batch is about to be drawn, and then whether it was drawn."""

    def __init__(self, watch: LoaderWatch, iterator: Any) -> None:
        self._watch = watch
        self._iterator = iterator

    def __enter__(self) -> None:
        self._watch.asked(self._iterator)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._watch.answered(self._iterator, error)


def _drawn_by(loader: DataLoader[Any]) -> tuple[tuple[Any, ...], tuple[object, ...]]:
    """The data drawn (the data set or its tensors, and what may leave some of it out), and the manner of drawing."""
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
    if not is_iterable(loader) and not _draws_all(sampler, dataset):
        things += (sampler,)
    return things, manner


def _length(loader: DataLoader[Any]) -> int | None:
    """len(loader), which an iterable data set is never asked for: torch would warn later if it is exceeded."""
    counted: Any = loader
    if not isinstance(loader, DataLoader):
        # fastai draws through a stand-in, whose attribute `d` is fastai's own DataLoader.
        counted = vars(loader).get("d")
    elif is_iterable(loader) and type(loader).__len__ is DataLoader.__len__:
        return None
    try:
        return len(counted) or None
    except TypeError:
        return None


def _draws_all(sampler: Any, dataset: Any) -> bool:
    """Whether the sampler is one that torch makes itself, over the whole data set."""
    if type(sampler) is RandomSampler and (sampler.replacement or not draws_whole(sampler)):
        return False
    return type(sampler) in (RandomSampler, SequentialSampler) and sampler.data_source is dataset
