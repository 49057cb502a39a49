"""The epochs of loops over several loaders, told from draws, backward passes and steps alone."""

from __future__ import annotations

import itertools

import pytest
from scripted_loop import Loop, Shapes, ahead, endless

from mlflow_dynamics.loop.reading import TANGLED

SHAPES = Shapes()
gives = SHAPES.gives


@gives([6, 6])
def many_loaders_looked_at_first(loop: Loop) -> None:
    batches, looks = loop.loader(6), [iter(loop.loader(2)) for _ in range(100)]
    for look in looks:
        next(look)
    for _ in range(2):
        for _ in batches:
            loop.step()


@gives([6, 6])
def validated_every_second_step(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    for _ in range(2):
        for index in batches:
            loop.step()
            if index % 2 == 0:
                loop.evaluate(test)


@gives([6, 6, 6])
def evaluated_sloppily_every_second_step(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    loop.evaluate(test, sloppy=True)
    for _ in range(3):
        for index in batches:
            loop.step()
            if index % 2 == 0:
                loop.evaluate(test, sloppy=True)


@gives([6, 6, 6])
def evaluated_sloppily_with_batches_drawn_ahead(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    for _ in range(3):
        for _ in ahead(batches, 1):
            loop.step()
            loop.evaluate(test, sloppy=True)


@gives([6, 6, 6])
def one_validation_batch_of_a_kept_iterator_and_batches_drawn_ahead(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(100)
    validation = iter(test)
    for _ in range(3):
        for _ in ahead(batches, 1):
            loop.step()
            loop.evaluate(itertools.islice(validation, 1))


@gives([6, 6, 6])
def zipped(loop: Loop) -> None:
    labelled, unlabelled = loop.loader(6), loop.loader(10)
    for _ in range(3):
        for _ in zip(labelled, unlabelled, strict=False):
            loop.step()


@gives([6, 6, 4, 4])
def zipped_before_another_phase_the_workers_kept(loop: Loop) -> None:
    """A batch of the first loader is left when its pass ends, and waits while the third is drawn from."""
    first, second, third = loop.loader(8, persistent=True), loop.loader(6), loop.loader(4)
    for _ in range(2):
        for _ in zip(first, second, strict=False):
            loop.step()
    for _ in range(2):
        for _ in third:
            loop.step()


@gives([12, 12])
def zipped_with_a_step_on_each(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(6)
    for _ in range(2):
        for _ in zip(first, second, strict=True):
            loop.step()
            loop.step()


@gives([12, 12, 12])
def drawn_in_turn(loop: Loop) -> None:
    first, second = loop.loader(6), endless(loop.loader(4))
    for _ in range(3):
        for _ in first:
            loop.step()
            next(second)
            loop.step()


@gives([18, 18, 18])
def three_drawn_in_turn(loop: Loop) -> None:
    first, *others = loop.loader(6), endless(loop.loader(4)), endless(loop.loader(10))
    for _ in range(3):
        for _ in first:
            loop.step()
            for other in others:
                next(other)
                loop.step()


@gives([24, 24, 24])
def three_steps_on_a_replay_after_each(loop: Loop) -> None:
    first, replay = loop.loader(6), endless(loop.loader(20))
    for _ in range(3):
        for _ in first:
            loop.step()
            for _ in range(3):
                next(replay)
                loop.step()


@gives(TANGLED)
def three_steps_on_a_replay_of_two_batches_after_each(loop: Loop) -> None:
    first, replay = loop.loader(6), endless(loop.loader(2))
    for _ in first:
        loop.step()
        for _ in range(3):
            next(replay)
            loop.step()


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_architecture_search(persistent: bool, steps: int) -> None:
    """Both steps may be the model's own: the weights' and the architecture's."""
    loop = Loop()
    train, valid = loop.loader(6), loop.loader(5, persistent=persistent)
    for _ in range(4):
        for _ in train:
            next(iter(valid))
            for _ in range(steps):
                loop.step()
    assert loop.result() == [6 * steps] * 4


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_batches_from_new_iterators_after_each_step(persistent: bool, times: int) -> None:
    loop = Loop()
    first, replay = loop.loader(6), loop.loader(5, persistent=persistent)
    for _ in range(3):
        for _ in first:
            loop.step()
            for _ in range(times):
                next(iter(replay))
                loop.step()
    assert loop.result() == [6 + 6 * times] * 3


@gives([10, 10, 10])
def two_data_sets_per_epoch(loop: Loop) -> None:
    first, second, test = loop.loader(4), loop.loader(6), loop.loader(3)
    for _ in range(3):
        for batches in (first, second):
            for _ in batches:
                loop.step()
        loop.evaluate(test)


@gives([104, 104, 104])
def two_data_sets_per_epoch_of_very_different_size(loop: Loop) -> None:
    first, second = loop.loader(4), loop.loader(100)
    for _ in range(3):
        for batches in (first, second):
            for _ in batches:
                loop.step()


@gives(TANGLED)
def three_data_sets_per_epoch(loop: Loop) -> None:
    loaders = [loop.loader(4) for _ in range(3)]
    for _ in range(3):
        for batches in loaders:
            for _ in batches:
                loop.step()


@gives(TANGLED)
def two_phases_of_one_epoch_the_second_left_by_a_break_its_iterator_kept(loop: Loop) -> None:
    first, second, third = loop.loader(6), iter(loop.loader(6)), loop.loader(4)
    for batches in (first, itertools.islice(second, 3), third, third):
        for _ in batches:
            loop.step()


@gives([6, 6, 4, 4, 4])
def a_phase_after_another(loop: Loop) -> None:
    for batches, epochs in ((loop.loader(6), 2), (loop.loader(4), 3)):
        for _ in range(epochs):
            for _ in batches:
                loop.step()


@gives([6, 6, 3, 4, 4])
def a_phase_broken_off_in_mid_pass(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(4)
    stream = endless(first)
    for _ in range(15):
        next(stream)
        loop.step()
    for _ in range(2):
        for _ in second:
            loop.step()


@gives([3, 4, 4])
def a_first_epoch_broken_off_before_another_phase(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(4)
    for index in first:
        loop.step()
        if index == 3:
            break
    for _ in range(2):
        for _ in second:
            loop.step()


@gives([6, 6, 4, 6, 6])
def back_to_the_first_loader(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(4)
    for batches in (first, first, second, first, first):
        for _ in batches:
            loop.step()


@gives(TANGLED)
def back_to_a_loader_left_after_one_epoch(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(4)
    for batches in (first, second, second, first, first):
        for _ in batches:
            loop.step()


@gives(TANGLED)
def two_data_sets_in_another_order_each_epoch(loop: Loop) -> None:
    first, second = loop.loader(6), loop.loader(4)
    for epoch in (first, second), (second, first), (first, second):
        for batches in epoch:
            for _ in batches:
                loop.step()


@gives([6, 6, 6])
def zipped_with_itself(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(3):
        for _ in zip(batches, batches, strict=True):
            loop.step()


@gives(TANGLED)
def drawn_in_turn_with_itself(loop: Loop) -> None:
    batches = loop.loader(6)
    other = endless(batches)
    for _ in range(3):
        for _ in batches:
            loop.step()
            next(other)
            loop.step()


@gives([2, 2, 3, 2, 3])
def stepped_after_every_fifth_batch_of_a_rival(loop: Loop) -> None:
    """The generator of a Wasserstein GAN, whose critic makes the other steps."""
    batches = loop.loader(12)
    seen = 0
    for _ in range(5):
        for _ in batches:
            loop.backward()
            seen += 1
            if seen % 5 == 0:
                loop.step()


@gives([6, 6, 12, 12])
def drawn_in_turn_after_a_warm_up(loop: Loop) -> None:
    first, second = loop.loader(6), endless(loop.loader(4))
    for epoch in range(4):
        for _ in first:
            loop.step()
            if epoch > 1:
                next(second)
                loop.step()


@pytest.mark.parametrize("name", SHAPES.known)
def test_shape(name: str) -> None:
    SHAPES.check(name)
