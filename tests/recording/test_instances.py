"""Living objects are found by class, and other threads do not notice the search."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable

import pytest
from torch import nn

from mlflow_dynamics.recording.instances import instances_of


class Named:
    pass


class Slotted(Named):
    __slots__ = ("child",)


def test_instances_of_a_class_and_of_its_subclasses_are_found() -> None:
    things = [Named(), Slotted(), Named()]
    assert {id(thing) for thing in instances_of(Named)} == {id(thing) for thing in things}
    del things[1]
    gc.collect()
    assert {type(thing) for thing in instances_of(Named)} == {Named}
    del things
    assert instances_of(Named) == []


def test_it_finds_what_a_look_at_every_object_finds() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    found = {id(module) for module in instances_of(nn.Module)}
    assert {id(module) for module in model.modules()} <= found
    assert found == {id(thing) for thing in gc.get_objects() if issubclass(type(thing), nn.Module)}


def all_objects() -> list[object]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Named)]


@pytest.mark.parametrize(("search", "harmless"), [(instances_of, True), (lambda kind: all_objects(), False)])
def test_tuples_that_other_threads_are_filling_come_out_whole(
    search: Callable[[type], object], harmless: bool
) -> None:
    ended = threading.Event()
    errors = []

    def fill() -> None:
        while not ended.is_set():
            try:
                tuple(number for number in range(2000))
            except SystemError as error:
                errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=fill)
    thread.start()
    try:
        until = time.monotonic() + (2 if harmless else 20)
        while time.monotonic() < until and not errors:
            search(Named)
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert (not errors) == harmless
