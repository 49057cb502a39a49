"""The epochs of loops over one loader, told from draws, backward passes and steps alone."""

from __future__ import annotations

import itertools

import pytest
from scripted_loop import Loop, Shapes, ahead

from mlflow_dynamics.loop.events import Backward, Event, Stepped
from mlflow_dynamics.loop.reading import NO_PASSES

SHAPES = Shapes()
gives = SHAPES.gives


@gives([6, 6, 6])
def plain(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(3):
        for _ in batches:
            loop.step()


@gives([6, 6, 6])
def train_mode_is_set_inside_the_loop_and_a_test_set_evaluated(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    for _ in range(3):
        loop.training = False
        for _ in batches:
            loop.training = True
            loop.step()
        loop.evaluate(test, restore=False)


@gives([6, 6, 6])
def evaluated_after_each_step_and_train_mode_set_inside_the_loop(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    loop.training = False
    for _ in range(3):
        for _ in batches:
            loop.training = True
            loop.step()
            loop.evaluate(test, restore=False)


@gives([6, 6, 6])
def the_training_data_are_evaluated_too(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    for _ in range(3):
        for index in batches:
            loop.step()
            if index % 3 == 0:
                loop.evaluate(batches)
                loop.evaluate(test)


@gives([4, 4, 4])
def broken_off(loop: Loop) -> None:
    batches = loop.loader(10)
    for _ in range(3):
        for index in batches:
            if index == 5:
                break
            loop.step()


@gives([10, 10, 10])
def a_new_loader_each_epoch_broken_off(loop: Loop) -> None:
    for _ in range(3):
        for index in loop.loader(20):
            loop.step()
            if index == 10:
                break


@gives([10, 10, 10])
def a_new_loader_each_epoch_all_kept(loop: Loop) -> None:
    loaders = [loop.loader(20) for _ in range(3)]
    for batches in loaders:
        for index in batches:
            loop.step()
            if index == 10:
                break


@gives([6, 6, 4])
def while_true(loop: Loop) -> None:
    batches = loop.loader(6)
    stream = iter(batches)
    for _ in range(16):
        if next(stream, None) is None:
            stream = iter(batches)
            next(stream)
        loop.step()


@gives([6, 6, 6])
def one_iterator_for_all_epochs(loop: Loop) -> None:
    endless = loop.loader(18)
    stream = iter(endless)
    stream.length = 6
    for _ in range(18):
        next(stream)
        loop.step()


@gives([6, 6, 6])
def persistent_workers(loop: Loop) -> None:
    batches, test = loop.loader(6, persistent=True), loop.loader(3, persistent=True)
    for _ in range(3):
        for _ in batches:
            loop.step()
        loop.evaluate(test)


@gives([6, 6, 6])
def without_a_length(loop: Loop) -> None:
    batches = loop.loader(6, known=False)
    for _ in range(3):
        for _ in batches:
            loop.step()


@gives([6, 6, 6])
def one_batch_ahead(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    for _ in range(3):
        for _ in ahead(batches, 1):
            loop.step()
        loop.evaluate(test)


@gives([6, 6, 6])
def two_batches_ahead_a_new_loader_each_epoch(loop: Loop) -> None:
    for _ in range(3):
        for _ in ahead(loop.loader(6), 2):
            loop.step()


@gives([3, 3, 3])
def accumulation_whose_remainder_is_stepped_after_the_loop(loop: Loop) -> None:
    batches = loop.loader(7)
    for _ in range(3):
        for index in batches:
            loop.backward()
            if index % 3 == 0:
                loop.step(backward=False)
        loop.step(backward=False)


@gives([1, 1, 1])
def accumulation_of_a_whole_epoch(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(3):
        for _ in batches:
            loop.backward()
        loop.step(backward=False)


@gives([3, 3, 3])
def accumulation_with_a_remainder(loop: Loop) -> None:
    batches = loop.loader(10)
    for _ in range(3):
        for index in batches:
            loop.backward()
            if index % 3 == 0:
                loop.step(backward=False)


@gives([3, 3, 3])
def accumulation_with_a_remainder_and_a_new_loader_each_epoch(loop: Loop) -> None:
    for _ in range(3):
        batches = loop.loader(10)
        for index in batches:
            loop.backward()
            if index % 3 == 0:
                loop.step(backward=False)


@gives([3, 3, 3])
def accumulation_with_a_remainder_over_loaders_that_are_kept(loop: Loop) -> None:
    for batches in [loop.loader(10) for _ in range(3)]:
        for index in batches:
            loop.backward()
            if index % 3 == 0:
                loop.step(backward=False)


@gives([12, 12, 12])
def three_steps_on_each_batch(loop: Loop) -> None:
    batches, test = loop.loader(4), loop.loader(3)
    for _ in range(3):
        for _ in batches:
            for _ in range(3):
                loop.step()
        loop.evaluate(test)


@gives([300, 300, 300])
def more_steps_on_each_batch_than_there_are_batches(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(3):
        for _ in batches:
            for _ in range(50):
                loop.step()


@gives([1, 1, 1])
def one_batch_is_the_epoch(loop: Loop) -> None:
    batches, test = loop.loader(1), loop.loader(1)
    for _ in range(3):
        for _ in batches:
            loop.step()
        loop.evaluate(test)


@gives([1, 1, 1])
def one_batch_is_the_epoch_and_drawn_ahead(loop: Loop) -> None:
    batches = loop.loader(1)
    for _ in range(3):
        for _ in ahead(batches, 1):
            loop.step()


@gives([6, 6, 6])
def the_training_data_are_evaluated_while_a_batch_waits(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(3):
        for _ in ahead(batches, 1):
            loop.step()
            loop.evaluate(batches)


@gives([6, 6])
def looked_at_first(loop: Loop) -> None:
    batches, test = loop.loader(6), loop.loader(3)
    kept = iter(test)
    next(kept)
    next(iter(batches))
    for _ in range(2):
        for _ in batches:
            loop.step()


# ---- declined ----


@gives(NO_PASSES)
def slices_and_a_test_loader(loop: Loop) -> None:
    test = loop.loader(3)
    for _ in range(4):
        for _ in range(10):
            loop.step()
        loop.evaluate(test)


@gives(NO_PASSES)
def slices_and_a_test_loader_evaluated_first(loop: Loop) -> None:
    test = loop.loader(3)
    for _ in range(4):
        loop.evaluate(test)
        for _ in range(10):
            loop.step()


@gives(NO_PASSES)
def slices_and_a_test_loader_evaluated_sloppily(loop: Loop) -> None:
    test = loop.loader(3)
    for _ in range(4):
        loop.evaluate(test, sloppy=True)
        for _ in range(10):
            loop.step()


@gives(NO_PASSES)
def slices_and_one_batch_of_a_kept_iterator(loop: Loop) -> None:
    validation = iter(loop.loader(100))
    for _ in range(4):
        loop.evaluate(itertools.islice(validation, 1))
        for _ in range(10):
            loop.step()


@gives(NO_PASSES)
def slices_and_a_test_loader_and_one_step_an_epoch(loop: Loop) -> None:
    test = loop.loader(3)
    for _ in range(10):
        loop.step()
        loop.evaluate(test, restore=False)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("steps", [3, 40])
def test_a_new_iterator_for_each_step(persistent: bool, steps: int) -> None:
    loop = Loop()
    batches, test = loop.loader(6, persistent=persistent), loop.loader(3)
    for index in range(steps):
        next(iter(batches))
        loop.step()
        if index % 6 == 5:
            loop.evaluate(test)
    assert loop.result() == NO_PASSES
    assert loop.epochs == []


@gives(NO_PASSES)
def a_new_loader_for_each_step(loop: Loop) -> None:
    for _ in range(3):
        for _ in loop.loader(6):
            loop.step()
            break


@gives(NO_PASSES)
def loader_no_longer_drawn_from(loop: Loop) -> None:
    batches = loop.loader(6)
    for _ in range(2):
        for _ in batches:
            loop.step()
    for _ in range(30):
        loop.step()


@gives([7, 6])
def a_trial_step_first(loop: Loop) -> None:
    batches = loop.loader(6)
    next(iter(batches))
    loop.step()
    for _ in range(2):
        for _ in batches:
            loop.step()


@pytest.mark.parametrize("name", SHAPES.known)
def test_shape(name: str) -> None:
    SHAPES.check(name)


# ---- two models ----


def test_an_epoch_over_a_loader_that_is_gone_is_closed_at_once() -> None:
    loop = Loop()
    for epoch in range(3):
        for _ in loop.loader(6):
            loop.step()
            assert loop.epochs == [6] * epoch


def test_completeness_is_that_of_the_last_step() -> None:
    loop, other = Loop(), Loop()
    batches = loop.loader(6)
    for index in batches:
        loop.step()
        assert loop.finder.complete is (index == 6)
    for _ in batches:
        other.step()
        assert loop.finder.complete


def test_a_pass_broken_off_stays_incomplete() -> None:
    loop = Loop()
    batches = loop.loader(6)
    for index in batches:
        loop.step()
        if index == 4:
            break
    for _ in batches:
        assert not loop.finder.complete


def test_a_remainder_without_a_step_completes_the_epoch() -> None:
    loop = Loop()
    for index in loop.loader(7):
        if index % 3 == 0:
            loop.step()
        assert loop.finder.complete is (index == 7) or index < 3


def test_models_trained_in_turn_on_one_loader() -> None:
    models = [Loop(), Loop()]
    batches = models[0].loader(6)
    heard = models[0].hear

    def both(event: Event) -> None:
        heard(event)
        if not isinstance(event, Backward | Stepped):
            models[1].hear(event)

    models[0].hear = both  # type: ignore[method-assign]
    for _ in range(3):
        for model in models:
            for _ in batches:
                model.step()
    assert [model.result() for model in models] == [[6, 6, 6]] * 2
