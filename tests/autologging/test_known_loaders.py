"""One loader for two models, one whose pass has begun before autolog() is called, and one that is none of torch's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from loops import train_batch
from recorded import steps_of_epochs
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _DatasetKind, _SingleProcessDataLoaderIter
from witness import Witness, loader, net, sgd

import mlflow_dynamics


def test_two_models_trained_one_after_the_other() -> None:
    mlflow_dynamics.autolog()
    batches, witnesses = loader(), [Witness(net(seed)) for seed in range(2)]
    for witness, epochs in zip(witnesses, (1, 2), strict=True):
        optimizer = sgd(witness.model)
        for epoch in range(epochs):
            for x, y in batches:
                train_batch(witness, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert steps_of_epochs() == [[6], [6, 6]]


def test_autolog_is_called_in_mid_epoch() -> None:
    witness, batches = Witness(net()), loader()
    optimizer = sgd(witness.model)
    for epoch in range(3):
        for index, (x, y) in enumerate(batches):
            if epoch == 0 and index == 2:
                mlflow_dynamics.autolog()
            train_batch(witness, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert steps_of_epochs() == [[4, 6, 6]]


class StandIn:
    """As fastai's: torch's iterator is given no DataLoader, but what has one of another kind as `d`."""

    _dataset_kind = _DatasetKind.Iterable
    _IterableDataset_len_called, _auto_collation, _index_sampler = None, False, itertools.count()
    num_workers, pin_memory, timeout, drop_last, in_order, persistent_workers = (
        0,
        False,
        0,
        False,
        True,
        False,
    )
    pin_memory_device, generator, prefetch_factor, worker_init_fn = "", None, None, None
    collate_fn = staticmethod(tuple)
    multiprocessing_context = None

    def __init__(self, d: Batches) -> None:
        self.d, self.dataset = d, self

    def _get_shared_seed(self) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(self.d.source)


class Batches:
    """Another kind of DataLoader."""

    def __init__(self, source: DataLoader[Any]) -> None:
        self.source = list(source)
        self.stand_in = StandIn(self)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Any]:
        yield from _SingleProcessDataLoaderIter(self.stand_in)


def test_a_loader_that_is_none_of_torchs() -> None:
    mlflow_dynamics.autolog()
    witness, batches = Witness(net()), Batches(loader())
    optimizer, before = sgd(witness.model), copy.deepcopy(witness.model.state_dict())
    for _, batch in zip(range(3), batches, strict=False):
        train_batch(witness, optimizer, *batch, -1)
    witness.model.load_state_dict(before)  # a learning-rate finder's: that needs the length
    for epoch in range(3):
        for x, y in batches:
            train_batch(witness, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert steps_of_epochs() == [[6, 6, 6]]
