"""Loops put together at random, from what scripts do: their epochs are right or declined, never wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
from scripted_loop import Loader, Loop, ahead, endless

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
            loop.finder.backward()
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


@pytest.mark.parametrize(
    ("shape", "right"),
    [
        (one_loader, 0.98),
        (two_data_sets, 1),
        (phases, 0.95),
        (in_turn, 1),
        (accumulation, 1),
        (zipped, 1),
        (slices, 0),
    ],
)
def test_random_loops_are_right_or_declined(shape: Randomly, right: float) -> None:
    counts: Counter[str] = Counter()
    for seed in range(LOOPS):
        loop = Loop()
        expected = shape(loop, random.Random(seed))
        found = loop.result()
        if isinstance(found, str):
            counts["declined"] += 1
        else:
            assert found == expected, seed
            counts["right"] += 1
    assert counts["right"] >= right * LOOPS
