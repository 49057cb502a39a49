"""A DataLoader and a training script without torch: loops read as real ones, and tell an `EpochFinder` alone."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator

from mlflow_dynamics.recording.epochs import EpochFinder
from mlflow_dynamics.recording.loaders import Pass

Expected = list[int] | str


class Loader:
    """A DataLoader to the finder; with `persistent` workers it keeps its iterator."""

    def __init__(self, loop: Loop, length: int, *, known: bool = True, persistent: bool = False) -> None:
        self.loop, self.length, self.known, self.persistent = loop, length, known, persistent
        self.identity = next(loop.serials)
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


def _is_gone(loader: weakref.ref[Loader]) -> bool:
    return loader() is None


class Batches:
    """Its iterator, which like torch's holds no loader."""

    current: Pass | None = None

    def __init__(self, loader: Loader) -> None:
        self.loop = loader.loop
        self.begin(loader)

    def begin(self, loader: Loader) -> None:
        if self.current is not None:
            self.current.replaced = True
        self.left = loader.length
        self.current = Pass(
            loader.identity,
            next(self.loop.serials),
            loader.length if loader.known else None,
            (loader.identity,),
            iterator=weakref.ref(self),
            gone=functools.partial(_is_gone, weakref.ref(loader)),
        )

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> int:
        assert self.current is not None
        if self.left == 0:
            self.current.exhausted = True
            raise StopIteration
        self.left -= 1
        self.current.drawn += 1
        self.loop.finder.batch(self.current, training=self.loop.training)
        return self.current.drawn


class Loop:
    """What a training script does, seen by an `EpochFinder`."""

    def __init__(self) -> None:
        self.finder = EpochFinder()
        self.training = True
        self.serials = itertools.count()
        self.epochs: list[int] = []
        self.steps = 0
        self.declined: str | None = None

    def loader(self, length: int, *, known: bool = True, persistent: bool = False) -> Loader:
        return Loader(self, length, known=known, persistent=persistent)

    def close(self, over: tuple[int, ...]) -> None:
        for late in over:
            self.epochs.append(self.steps - late)
            self.steps = late

    def step(self, *, backward: bool = True) -> None:
        if backward:
            self.finder.backward()
        if self.declined is None:
            self.close(self.finder.step())
            self.steps += 1
            self.declined = self.finder.doubt

    def evaluate(self, batches: Iterable[int], *, sloppy: bool = False, restore: bool = True) -> None:
        before, self.training = self.training, sloppy
        for _ in batches:
            pass
        self.training = before if restore else sloppy

    def result(self) -> Expected:
        if self.declined is None:
            over = self.finder.finish()
            self.declined = self.finder.doubt
            self.close(() if self.declined else over)
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
