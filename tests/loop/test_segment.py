"""Epochs as a function of a log: of logs written by hand, and of one that is a million steps long."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator

from mlflow_dynamics.loop.epochs import EpochFinder, Segmentation, segment
from mlflow_dynamics.loop.events import Backward, BatchDrawn, Event, LoaderGone, Mode, PassEnded, Stepped

LOADER, OTHER = 1, 2


def steps(loader: int, pass_: int, numbers: range, length: int | None = 3) -> Iterator[Event]:
    for number in numbers:
        yield BatchDrawn(loader, pass_, number, length)
        yield Backward()
        yield Stepped()


def test_a_log_without_steps_has_no_epochs() -> None:
    assert segment([]) == Segmentation((), None, None, complete=True, doubt=None)
    assert segment([Mode(True), BatchDrawn(LOADER, 10, 1, 3)]).starts == ()


def test_a_pass_is_an_epoch() -> None:
    log = [Mode(True), *steps(LOADER, 10, range(1, 4)), PassEnded(10, True), *steps(LOADER, 11, range(1, 3))]
    assert segment(log) == Segmentation((0, 3), LOADER, None, complete=False, doubt=None)
    assert segment([*log, *steps(LOADER, 11, range(3, 4))]).complete


def test_an_evaluation_is_no_epoch() -> None:
    evaluation = [Mode(False), BatchDrawn(OTHER, 11, 1, 1), PassEnded(11, True), Mode(True)]
    log = [Mode(True), *steps(LOADER, 10, range(1, 3)), *evaluation, *steps(LOADER, 10, range(3, 4))]
    assert segment(log, over=True) == Segmentation((0,), LOADER, None, complete=True, doubt=None)


def test_steps_on_another_loader_are_open_until_it_begins_a_second_pass() -> None:
    first = [Mode(True), *steps(LOADER, 10, range(1, 4)), PassEnded(10, True)]
    second = [*steps(OTHER, 11, range(1, 4)), PassEnded(11, True)]
    assert segment(first + second) == Segmentation((0,), LOADER, 3, complete=True, doubt=None)
    again = [*steps(OTHER, 12, range(1, 2))]
    assert segment(first + second + again) == Segmentation((0, 3, 6), OTHER, None, complete=False, doubt=None)


def test_steps_since_the_change_of_loaders_are_read_again() -> None:
    """Four loaders, the second one left with its iterator kept, and the first one deleted before the last."""
    log = [
        Mode(True),
        *[*steps(1, 11, range(1, 7), 6), PassEnded(11, True)],
        *steps(2, 12, range(1, 7), 9),
        *[*steps(3, 13, range(1, 7), 6), PassEnded(13, True)],
        LoaderGone(1),
        *[*steps(4, 14, range(1, 7), 6), PassEnded(14, True)],
    ]
    assert segment(log, over=True).starts == (0, 6, 12, 18)


def test_memory_and_time_do_not_grow_with_the_log() -> None:
    finder = EpochFinder()
    kept, took = [], []
    for epoch in range(1000):
        begun = time.process_time()
        for number in range(1, 1001):
            finder.batch(BatchDrawn(LOADER, epoch, number, 1000), training=True)
            finder.backward()
            finder.step()
        finder.end(PassEnded(epoch, True))
        took.append(time.process_time() - begun)
        kept.append(len(pickle.dumps(finder)))
    assert finder.steps == 1_000_000
    assert max(kept[10:]) < kept[10] + 50  # numbers are longer
    assert sorted(took[-100:])[10] < 3 * sorted(took[:100])[10]
