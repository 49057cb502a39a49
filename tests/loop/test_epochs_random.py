"""Loops put together at random, from what scripts do: their epochs are right or declined, never wrong."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_loop import Loader, Loop, ahead, endless

from mlflow_dynamics.loop.epochs import segment

Randomly = Callable[[Loop, random.Random], list[int]]
LOOPS = 200


def some(loop: Loop, dice: random.Random, length: int) -> Loader:
    return loop.loader(length, known=dice.random() < 0.85, persistent=dice.random() < 0.3)


def evaluate(loop: Loop, dice: random.Random, loaders: Iterable[Loader]) -> None:
    for batches in loaders:
        if dice.random() < 0.5:
            loop.evaluate(batches)


def drawn(dice: random.Random, batches: Loader) -> Iterator[int]:
    """As they come, or one or two ahead; a loader drawn in one go cannot be told from one that is evaluated."""
    depth = dice.choice([0, 0, 1, 2])
    return ahead(batches, depth) if 0 < depth < len(batches) - 1 else iter(batches)


def one_loader(loop: Loop, dice: random.Random) -> list[int]:
    """Perhaps a new one each epoch, broken off, put into training mode late, evaluated every few steps."""
    length = dice.randint(2, 9)
    batches, test = some(loop, dice, length), some(loop, dice, dice.randint(1, 9))
    new, late, kept, every = dice.random() < 0.3, dice.random() < 0.3, [], dice.choice([0, 0, 1, 2, 3])
    last = dice.randint(2, length) if dice.random() < 0.3 else length
    epochs = dice.randint(1, 5)
    for _ in range(epochs):
        if new:
            kept.append(batches)
            if dice.random() < 0.5:
                kept.clear()
            batches = some(loop, dice, length)
        loop.training = not late
        for index, _ in enumerate(drawn(dice, batches), 1):
            loop.training = True
            loop.step()
            if every and index % every == 0:
                evaluate(loop, dice, [test])
                loop.training = not late
            if index == last:
                break
        loop.training = True
        evaluate(loop, dice, [test, batches])
    return [last] * epochs


def two_data_sets(loop: Loop, dice: random.Random) -> list[int]:
    sets = [some(loop, dice, dice.randint(2, 9)) for _ in range(2)]
    epochs = dice.randint(2, 4)
    for _ in range(epochs):
        for batches in sets:
            for _ in drawn(dice, batches):
                loop.step()
            evaluate(loop, dice, sets)
    return [sum(map(len, sets))] * epochs


def phases(loop: Loop, dice: random.Random) -> list[int]:
    loaders, sizes = [some(loop, dice, dice.randint(2, 9)) for _ in range(3)], []
    for batches in loaders:
        for _ in range(dice.randint(1, 3)):
            last = dice.choice([len(batches), dice.randint(2, len(batches))])
            for index, _ in enumerate(drawn(dice, batches), 1):
                loop.step()
                if index == last:
                    break
            sizes.append(last)
            evaluate(loop, dice, loaders)
    return sizes


def in_turn(loop: Loop, dice: random.Random) -> list[int]:
    batches, times, epochs = some(loop, dice, dice.randint(2, 9)), dice.randint(1, 3), dice.randint(1, 4)
    other, test = endless(some(loop, dice, dice.randint(4, 20))), some(loop, dice, 3)
    for _ in range(epochs):
        for _ in batches:
            loop.step()
            for _ in range(times):
                next(other)
                loop.step()
            evaluate(loop, dice, [test])
    return [len(batches) * (times + 1)] * epochs


def accumulation(loop: Loop, dice: random.Random) -> list[int]:
    """Groups within an epoch, or over the epochs' ends."""
    length = dice.randint(3, 12)
    group, new, across = dice.randint(2, min(4, length)), dice.random() < 0.5, dice.random() < 0.3
    batches, sizes, count = some(loop, dice, length), [], 0
    for _ in range(dice.randint(1, 4)):
        batches = some(loop, dice, length) if new else batches
        sizes.append(0)
        for index, _ in enumerate(drawn(dice, batches), 1):
            count += 1
            loop.backward()
            if (count if across else index) % group == 0:
                loop.step(backward=False)
                sizes[-1] += 1
        evaluate(loop, dice, [batches])
    return sizes


def zipped(loop: Loop, dice: random.Random) -> list[int]:
    loaders = [some(loop, dice, dice.randint(2, 9)) for _ in range(2)]
    epochs = dice.randint(2, 4)
    for _ in range(epochs):
        for _ in zip(*loaders, strict=False):
            loop.step()
        evaluate(loop, dice, loaders)
    return [min(map(len, loaders))] * epochs


def slices(loop: Loop, dice: random.Random) -> list[int]:
    """Their epochs could only be guessed."""
    test = some(loop, dice, dice.randint(2, 9))
    for _ in range(dice.randint(1, 30)):
        loop.step()
        if dice.random() < 0.2:
            loop.evaluate(test, sloppy=dice.random() < 0.5)
    return []


def one_after_the_other(loop: Loop, dice: random.Random) -> list[int]:
    """An epoch or two over each of some loaders, left by a break, their workers kept, loaders deleted later."""
    loaders: list[Loader | None] = [some(loop, dice, dice.randint(2, 9)) for _ in range(dice.randint(2, 5))]
    sizes = []
    for place, batches in enumerate(loaders):
        assert batches is not None
        for _ in range(dice.choice([1, 1, 1, 2])):
            last = dice.choice([len(batches), dice.randint(2, len(batches))])
            for index, _ in enumerate(drawn(dice, batches), 1):
                loop.step()
                if index == last:
                    break
            sizes.append(last)
            evaluate(loop, dice, [one for one in loaders if one is not None and dice.random() < 0.3])
        del batches
        for earlier in range(place + 1):
            if dice.random() < 0.25:
                loaders[earlier] = None
    return sizes


def iterators_kept(loop: Loop, dice: random.Random) -> list[int]:
    """Some passes over each of some loaders, all broken off, their iterators kept."""
    kept, sizes = [], []
    for _ in range(dice.randint(2, 4)):
        batches = some(loop, dice, dice.randint(2, 9))
        for _ in range(dice.randint(1, 3)):
            kept.append(iter(batches))
            sizes.append(dice.randint(2, len(batches)))
            for _ in range(sizes[-1]):
                next(kept[-1])
                loop.step()
        if dice.random() < 0.3:
            kept.clear()
    return sizes


def in_turn_after_a_warm_up(loop: Loop, dice: random.Random) -> list[int]:
    batches, other = some(loop, dice, dice.randint(2, 9)), endless(some(loop, dice, dice.randint(4, 20)))
    alone, together, times = dice.randint(1, 3), dice.randint(1, 3), dice.randint(1, 2)
    for epoch in range(alone + together):
        for _ in batches:
            loop.step()
            for _ in range(times if epoch >= alone else 0):
                next(other)
                loop.step()
    return [len(batches)] * alone + [len(batches) * (times + 1)] * together


def zipped_before_another_phase(loop: Loop, dice: random.Random) -> list[int]:
    """Of the longer of the two, if it is drawn from first, a batch more is drawn than there are steps."""
    first, second, third = (some(loop, dice, dice.randint(2, 9)) for _ in range(3))
    together, alone = dice.randint(1, 3), dice.randint(1, 3)
    for _ in range(together):
        for _ in zip(first, second, strict=False):
            loop.step()
        evaluate(loop, dice, [third])
    for _ in range(alone):
        for _ in third:
            loop.step()
        evaluate(loop, dice, [first])
    return [min(len(first), len(second))] * together + [len(third)] * alone


SHAPES = {
    one_loader: 0.98,
    two_data_sets: 1,
    phases: 0.95,
    in_turn: 1,
    accumulation: 1,
    zipped: 1,
    one_after_the_other: 0.95,
    iterators_kept: 0.85,
    in_turn_after_a_warm_up: 1,
    zipped_before_another_phase: 1,
    slices: 0,
}
"""Shapes, and how many of a hundred are not declined."""


@pytest.mark.parametrize("shape", SHAPES)
def test_random_loops_are_right_or_declined(shape: Randomly) -> None:
    counts: Counter[str] = Counter()
    for seed in range(LOOPS):
        counts[right_or_declined(shape, random.Random(seed))] += 1
    assert counts["right"] >= SHAPES[shape] * LOOPS


@given(shape=st.sampled_from(list(SHAPES)), dice=st.randoms(use_true_random=False))
@settings(max_examples=500, deadline=timedelta(seconds=10))
def test_other_random_loops_each_time(shape: Randomly, dice: random.Random) -> None:
    right_or_declined(shape, dice)


def right_or_declined(shape: Randomly, dice: random.Random) -> str:
    """Which of the two a loop is, found step by step; the same is read from its log at once."""
    loop = Loop()
    expected = shape(loop, dice)
    found = loop.result()
    if isinstance(found, str):
        return "declined"
    assert found == expected
    assert segment(loop.log, over=True).starts == (0, *itertools.accumulate(expected))[: len(expected)]
    return "right"
