"""A DataLoader and a training script without torch: loops read as real ones, and tell an `EpochFinder` alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from mlflow_dynamics.loop.epochs import EpochFinder
from mlflow_dynamics.loop.events import Backward, BatchDrawn, Event, LoaderGone, Mode, PassEnded, Stepped

Expected = list[int] | str


class Loader:
    """A DataLoader to the finder; with `persistent` workers it keeps its iterator."""

    def __init__(self, loop: Loop, length: int, *, known: bool = True, persistent: bool = False) -> None:
        self.loop, self.length, self.known, self.persistent = loop, length, known, persistent
        self.told = Told(loop, next(loop.serials))
        self.iterator: Batches | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Batches:
        if not self.persistent:
            return Batches(self)
        if self.iterator is None:
            self.iterator = Batches(self)
        else:
            self.iterator.begin(self)
        return self.iterator

    def __del__(self) -> None:
        self.told.deleted = True
        self.told.perhaps_gone()


class Told:
    """What torch tells of a loader when it, and all iterators over it, are gone."""

    def __init__(self, loop: Loop, identity: int) -> None:
        self.loop, self.identity = loop, identity
        self.deleted = False
        self.open: set[int] = set()

    def perhaps_gone(self) -> None:
        if self.deleted and not self.open:
            self.loop.hear(LoaderGone(self.identity))


class Batches:
    """Its iterator, which like torch's holds no loader."""

    def __init__(self, loader: Loader) -> None:
        self.told, self.pass_ = loader.told, -1
        self.begin(loader)

    def begin(self, loader: Loader) -> None:
        self.end(exhausted=False)
        self.length, self.left, self.drawn = loader.length if loader.known else None, loader.length, 0
        self.pass_ = next(self.told.loop.serials)
        self.told.open.add(self.pass_)

    def end(self, *, exhausted: bool) -> None:
        if self.pass_ in self.told.open:
            self.told.open.remove(self.pass_)
            self.told.loop.hear(PassEnded(self.pass_, exhausted))
            self.told.perhaps_gone()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> int:
        if self.left == 0:
            self.end(exhausted=True)
            raise StopIteration
        self.left -= 1
        self.drawn += 1
        self.told.loop.hear(Mode(self.told.loop.training))
        self.told.loop.hear(BatchDrawn(self.told.identity, self.pass_, self.drawn, self.length))
        return self.drawn

    def __del__(self) -> None:
        self.end(exhausted=False)


class Loop:
    """What a training script does, seen by an `EpochFinder`."""

    def __init__(self) -> None:
        self.finder = EpochFinder()
        self.training = True
        self.serials = itertools.count()
        self.epochs: list[int] = []
        self.begun = 0
        self.marks: set[int] = set()
        self.log: list[Event] = []
        self.declined: str | None = None

    def hear(self, event: Event) -> None:
        self.log.append(event)
        if self.declined is None:
            made = self.finder.steps
            starts = self.finder.hear(event)
            if self.finder.perhaps_begins:
                self.marks.add(made)
            assert self.marks.issuperset(set(starts) - {made})
            self.close(starts)
            self.declined = self.finder.doubt

    def close(self, starts: list[int]) -> None:
        for start in starts:
            self.epochs.append(start - self.begun)
            self.begun = start

    def backward(self) -> None:
        self.hear(Backward())

    def step(self, *, backward: bool = True) -> None:
        if backward:
            self.backward()
        self.hear(Stepped())

    def loader(self, length: int, *, known: bool = True, persistent: bool = False) -> Loader:
        return Loader(self, length, known=known, persistent=persistent)

    def evaluate(self, batches: Iterable[int], *, sloppy: bool = False, restore: bool = True) -> None:
        before, self.training = self.training, sloppy
        for _ in batches:
            pass
        self.training = before if restore else sloppy

    def result(self) -> Expected:
        if self.declined is None:
            starts = self.finder.conclude()
            assert self.marks.issuperset(starts)
            self.declined = self.finder.doubt
            self.close([] if self.declined else [*starts, self.finder.steps])
        return self.declined or self.epochs


def ahead(batches: Loader, depth: int) -> Iterator[int]:
    """Draws `depth` batches before they are asked for."""
    stream = iter(batches)
    waiting = list(itertools.islice(stream, depth))
    while waiting:
        waiting.extend(itertools.islice(stream, 1))
        yield waiting.pop(0)


def endless(batches: Loader) -> Iterator[int]:
    while True:
        yield from batches


class Shapes:
    """Loop shapes, and the number of steps of each epoch, or the reason why none can be told."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Callable[[Loop], None], Expected]] = {}

    def gives(self, expected: Expected) -> Callable[[Callable[[Loop], None]], Callable[[Loop], None]]:
        def register(shape: Callable[[Loop], None]) -> Callable[[Loop], None]:
            self.known[shape.__name__] = shape, expected
            return shape

        return register

    def check(self, name: str) -> None:
        shape, expected = self.known[name]
        loop = Loop()
        shape(loop)
        assert loop.result() == expected
