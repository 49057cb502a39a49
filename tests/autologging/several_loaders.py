"""More loop shapes: several DataLoaders, and batches that are drawn unlike others. As in `loops`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from loops import EPOCHS, evaluate, loop, train_batch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from witness import Witness, loader, sgd


def endless(batches: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from batches


@loop
def train_mode_set_for_each_batch(w: Witness) -> None:
    batches, val_loader, optimizer = loader(), loader(10, seed=2), sgd(w.model)
    for epoch in range(EPOCHS):
        evaluate(w, val_loader, epoch - 1 if epoch else None)
        w.model.eval()
        for x, y in batches:
            w.model.train()
            train_batch(w, optimizer, x, y, epoch)
    evaluate(w, val_loader, EPOCHS - 1)


@loop
def two_loaders_in_turn(w: Witness) -> None:
    first, second, optimizer = loader(), endless(loader(16, seed=5)), sgd(w.model)
    val_loader = loader(10, seed=2)
    for epoch in range(EPOCHS):
        for x, y in first:
            train_batch(w, optimizer, x, y, epoch)
            train_batch(w, optimizer, *next(second), epoch)
        evaluate(w, val_loader, epoch)


@loop
def three_steps_on_a_replay_after_each(w: Witness) -> None:
    first, replay, optimizer = loader(16), endless(loader(40, seed=5)), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in first:
            train_batch(w, optimizer, x, y, epoch)
            for _ in range(3):
                train_batch(w, optimizer, *next(replay), epoch)


@loop
def architecture_search(w: Witness) -> None:
    """DARTS: a step of the architecture on a validation batch, then one of the weights."""
    train_queue, valid_queue = loader(shuffle=True), loader(20, seed=2, shuffle=True)
    weights = torch.optim.SGD(w.model[0].parameters(), lr=0.05)
    architecture = torch.optim.Adam(w.model[4].parameters(), lr=0.01)
    for epoch in range(EPOCHS):
        for x, y in train_queue:
            train_batch(w, architecture, *next(iter(valid_queue)), epoch)
            train_batch(w, weights, x, y, epoch)


@loop
def two_data_sets_per_epoch(w: Witness) -> None:
    first, second, optimizer = loader(), loader(16, seed=5), sgd(w.model)
    val_loader = loader(10, seed=2)
    for epoch in range(EPOCHS):
        for batches in (first, second):
            for x, y in batches:
                train_batch(w, optimizer, x, y, epoch)
        evaluate(w, val_loader, epoch)


@loop
def a_phase_after_another(w: Witness) -> None:
    """The first phase's last epoch, one of a single pass over a third loader, is known to be over a pass later."""
    optimizer, val_loader = sgd(w.model), loader(10, seed=2)
    phases = [loader(), loader(16, seed=5), loader(20, seed=6)]
    for epoch, batches in enumerate([phases[0], phases[0], phases[1], phases[2], phases[2]]):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
        evaluate(w, val_loader, epoch)


@loop
def a_phase_broken_off(w: Witness) -> None:
    optimizer, second = sgd(w.model), loader(16, seed=5)
    stream = endless(loader())
    for index in range(9):
        train_batch(w, optimizer, *next(stream), index // 6)
    for epoch in (2, 3):
        for x, y in second:
            train_batch(w, optimizer, x, y, epoch)


@loop
def a_new_loader_each_epoch_broken_off(w: Witness) -> None:
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(loader(shuffle=True)):
            if index == 4:
                break
            train_batch(w, optimizer, x, y, epoch)


@loop
def sloppy_evaluation_inside_an_epoch(w: Witness) -> None:
    """Neither eval() nor no_grad(): the test batches go through the model as if to train it."""
    batches, test_loader, optimizer = loader(), loader(10, seed=2), sgd(w.model)

    def test() -> None:
        for x, y in test_loader:
            F.cross_entropy(w.model(x), y).item()

    test()
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(batches):
            train_batch(w, optimizer, x, y, epoch)
            if index % 2 == 1:
                test()


@loop
def accumulation_with_a_remainder_and_a_new_loader_each_epoch(w: Witness) -> None:
    """The last batch of an epoch makes no step; its gradient goes into the next epoch's first, its loss does not."""
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(loader(28)):
            loss = F.cross_entropy(w.model(x), y)
            (loss / 3).backward()
            w.loss(epoch, loss, len(x))
            if index % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
                w.step(epoch)


@loop
def two_data_sets_per_epoch_in_new_loaders(w: Witness) -> None:
    sources, optimizer = [loader().dataset, loader(16, seed=5).dataset], sgd(w.model)
    for epoch in range(EPOCHS):
        for source in sources:
            for x, y in DataLoader(source, batch_size=4, shuffle=True):
                train_batch(w, optimizer, x, y, epoch)


@loop
def pairs_from_new_loaders_of_one_data_set(w: Witness) -> None:
    source, optimizer = loader().dataset, sgd(w.model)
    for epoch in range(EPOCHS):
        first, second = (DataLoader(source, batch_size=4, shuffle=True) for _ in range(2))
        for (x, y), (other, _) in zip(first, second, strict=True):
            train_batch(w, optimizer, 0.9 * x + 0.1 * other, y, epoch)


@loop
def phases_on_data_sets_in_new_loaders(w: Witness) -> None:
    sources, optimizer = [loader().dataset, loader(16, seed=5).dataset], sgd(w.model)
    for epoch in range(4):
        for x, y in DataLoader(sources[epoch // 2], batch_size=4, shuffle=True):
            train_batch(w, optimizer, x, y, epoch)
