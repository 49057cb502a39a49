"""The loop shapes of public training scripts. None knows of recording; each tells the witness what it does.

A loop takes a witness, trains `witness.model`, and calls `witness.step(epoch)` after each training step,
`witness.loss(epoch, ...)` for each batch whose loss it would report, and sets `witness.validation[epoch]`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from witness import Witness, data, loader, sgd

EPOCHS = 3
LOOPS: dict[str, Callable[[Witness], None]] = {}


def loop(function: Callable[[Witness], None]) -> Callable[[Witness], None]:
    LOOPS[function.__name__] = function
    return function


def evaluate(w: Witness, batches: DataLoader[Any], epoch: int | None = None) -> None:
    criterion = nn.CrossEntropyLoss()
    w.model.eval()
    total = right = count = 0
    with torch.no_grad():
        for x, y in batches:
            output = w.model(x)
            total += criterion(output, y).item() * len(x)
            right += (output.argmax(1) == y).sum().item()
            count += len(x)
    w.model.train()
    if epoch is not None:
        w.validation[epoch] = (total / count, right / count)


def train_batch(w: Witness, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epoch: int) -> None:
    optimizer.zero_grad()
    loss = F.cross_entropy(w.model(x), y)
    loss.backward()
    optimizer.step()
    w.step(epoch)
    w.loss(epoch, loss, len(x))


@loop
def train_and_test_functions(w: Witness) -> None:
    """pytorch/examples mnist: log-softmax outside the model's layers, nll_loss, summed in test."""
    model = w.model
    model.append(nn.LogSoftmax(1))
    train_loader, test_loader = loader(22, shuffle=True), loader(10, seed=2)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)

    def train(epoch: int) -> None:
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(x), y)
            loss.backward()
            optimizer.step()
            w.step(epoch)
            w.loss(epoch, loss, len(x))

    def test(epoch: int) -> None:
        model.eval()
        loss = correct = 0
        with torch.no_grad():
            for x, y in test_loader:
                output = model(x)
                loss += F.nll_loss(output, y, reduction="sum").item()
                correct += output.argmax(1, keepdim=True).eq(y.view(-1, 1)).sum().item()
        w.validation[epoch] = (loss / 10, correct / 10)

    for epoch in range(EPOCHS):
        train(epoch)
        test(epoch)
        scheduler.step()


@loop
def imagenet_style_meters(w: Witness) -> None:
    """pytorch/examples imagenet: meters, validate() before the first epoch as with --evaluate's dry run."""
    train_loader, val_loader = loader(shuffle=True, drop_last=True), loader(9, seed=3)
    criterion = nn.CrossEntropyLoss()
    optimizer = sgd(w.model)
    evaluate(w, val_loader)
    for epoch in range(EPOCHS):
        w.model.train()
        seen, total = 0, 0.0
        for x, y in train_loader:
            output = w.model(x)
            loss = criterion(output, y)
            total, seen = total + loss.item() * x.size(0), seen + x.size(0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.step(epoch)
            w.loss(epoch, loss, len(x))
        evaluate(w, val_loader, epoch)


@loop
def epoch_inside_a_class(w: Witness) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.batches, self.optimizer = loader(), sgd(w.model)

        def fit(self) -> None:
            for epoch in range(EPOCHS):
                self.fit_epoch(epoch)

        def fit_epoch(self, epoch: int) -> None:
            for x, y in self.batches:
                train_batch(w, self.optimizer, x, y, epoch)

    Trainer().fit()


@loop
def warmup_scheduler_per_step(w: Witness) -> None:
    batches, optimizer = loader(), sgd(w.model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=8)
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
            scheduler.step()


@loop
def accumulation_with_a_shorter_last_group(w: Witness) -> None:
    batches, optimizer = loader(27), sgd(w.model)  # 7 batches in groups of 3, 3 and 1, the last of 3 samples
    for epoch in range(EPOCHS):
        optimizer.zero_grad()
        for index, (x, y) in enumerate(batches):
            loss = F.cross_entropy(w.model(x), y)
            w.loss(epoch, loss, len(x))
            (loss / 3).backward()
            if (index + 1) % 3 == 0 or index + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
                w.step(epoch)


@loop
def resume_from_a_checkpoint(w: Witness) -> None:
    """Weights are loaded before the first step, and the script's own epoch numbers begin at 2."""
    checkpoint = copy.deepcopy(w.model.state_dict())
    optimizer = sgd(w.model)
    w.model.load_state_dict(checkpoint)
    optimizer.load_state_dict(sgd(w.model).state_dict())
    batches = loader()
    for start in range(2, 2 + EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, start - 2)


class Prefetcher:
    """NVIDIA's data prefetcher, as many scripts copy it: always one batch ahead."""

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches = iter(batches)
        self.preload()

    def preload(self) -> None:
        self.ready = next(self.batches, None)

    def next(self) -> Any:
        ready = self.ready
        self.preload()
        return ready


@loop
def prefetcher_and_tqdm(w: Witness) -> None:
    batches, optimizer = loader(shuffle=True), sgd(w.model)
    for epoch in range(EPOCHS):
        prefetcher = Prefetcher(batches)
        bar = tqdm(total=len(batches), disable=True)
        item = prefetcher.next()
        while item is not None:
            train_batch(w, optimizer, *item, epoch)
            bar.update()
            item = prefetcher.next()


@loop
def tqdm_around_the_loader(w: Witness) -> None:
    batches, optimizer = loader(num_workers=2, persistent_workers=True), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in tqdm(batches, disable=True):
            train_batch(w, optimizer, x, y, epoch)


@loop
def while_true_by_iterations(w: Witness) -> None:
    batches, optimizer = loader(shuffle=True), sgd(w.model)
    stream = iter(batches)
    iteration = 0
    while True:
        try:
            x, y = next(stream)
        except StopIteration:
            stream = iter(batches)
            x, y = next(stream)
        train_batch(w, optimizer, x, y, iteration // len(batches))
        iteration += 1
        if iteration == 15:
            break


@loop
def infinite_generator(w: Witness) -> None:
    def forever(batches: DataLoader[Any]) -> Iterator[Any]:
        while True:
            yield from batches

    batches, optimizer = loader(), sgd(w.model)
    stream = forever(batches)
    for iteration in range(16):
        train_batch(w, optimizer, *next(stream), iteration // len(batches))


class RepeatSampler:
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from iter(self.sampler)


class MultiEpochsDataLoader(DataLoader[Any]):
    """timm.data.loader.MultiEpochsDataLoader: one iterator serves all epochs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._DataLoader__initialized = False
        self.batch_sampler = RepeatSampler(self.batch_sampler)
        self._DataLoader__initialized = True
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            yield next(self.iterator)


@loop
def one_iterator_for_all_epochs(w: Witness) -> None:
    batches, val_loader = MultiEpochsDataLoader(data(), batch_size=4), loader(8, seed=2)
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
        evaluate(w, val_loader, epoch)


@loop
def evaluation_every_k_steps(w: Witness) -> None:
    """The last evaluation of the epoch counts."""
    batches, val_loader, optimizer = loader(), loader(10, seed=2), sgd(w.model)
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(batches):
            train_batch(w, optimizer, x, y, epoch)
            if index % 2 == 1:
                evaluate(w, val_loader, epoch)


@loop
def validation_every_second_epoch(w: Witness) -> None:
    batches, val_loader, optimizer = loader(), loader(10, seed=2), sgd(w.model)
    for epoch in range(4):
        w.model.train()
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
        if epoch % 2 == 1:
            evaluate(w, val_loader, epoch)


@loop
def two_loaders_zipped(w: Witness) -> None:
    labelled, unlabelled, optimizer = loader(), loader(40, seed=5), sgd(w.model)
    for epoch in range(EPOCHS):
        for (x, y), (u, _) in zip(labelled, unlabelled, strict=False):
            optimizer.zero_grad()
            consistency = F.mse_loss(w.model(u + 0.1).softmax(1), w.model(u).softmax(1).detach())
            (F.cross_entropy(w.model(x), y) + 0.1 * consistency).backward()
            optimizer.step()
            w.step(epoch)


@loop
def distillation(w: Witness) -> None:
    """A teacher network in eval mode, its loss added: the training loss is not the criterion's alone."""
    teacher = copy.deepcopy(w.model).eval()
    batches, optimizer = loader(), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            with torch.no_grad():
                soft = teacher(x).softmax(1)
            output = w.model(x)
            loss = 0.5 * F.cross_entropy(output, y) + 0.5 * F.kl_div(
                output.log_softmax(1), soft, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.step(epoch)


@loop
def exponential_moving_average(w: Witness) -> None:
    """The averaged copy is what is evaluated: its loss is not the model's."""
    averaged = torch.optim.swa_utils.AveragedModel(w.model)
    batches, val_loader, optimizer = loader(), loader(10, seed=2), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
            averaged.update_parameters(w.model)
        averaged.eval()
        with torch.no_grad():
            for x, y in val_loader:
                F.cross_entropy(averaged(x), y)


@loop
def early_break(w: Witness) -> None:
    batches, optimizer = loader(), sgd(w.model)
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(batches):
            if index == 4:
                break
            train_batch(w, optimizer, x, y, epoch)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from data(19)


@loop
def iterable_data_without_length(w: Witness) -> None:
    batches, optimizer = DataLoader(Stream(), batch_size=4), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)


@loop
def grad_scaler_that_skips(w: Witness) -> None:
    batches, optimizer = loader(), sgd(w.model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(batches):
            optimizer.zero_grad()
            loss = F.cross_entropy(w.model(x), y)
            w.loss(epoch, loss, len(x))
            scaler.scale(loss).backward()
            skipped = epoch == 1 and index == 2
            if skipped:
                next(w.model.parameters()).grad.fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
            if not skipped:
                w.step(epoch)


@loop
def learning_rate_finder_first(w: Witness) -> None:
    batches, optimizer = loader(), sgd(w.model)
    before = copy.deepcopy(w.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for index, (x, y) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-4 * 2**index
        optimizer.zero_grad()
        F.cross_entropy(w.model(x), y).backward()
        optimizer.step()
        if index == 3:
            break
    w.model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)


@loop
def looks_at_the_data_and_the_model_first(w: Witness) -> None:
    """A peek into both loaders, a summary's forward pass, and a new loader for every epoch."""
    next(iter(loader(shuffle=True)))
    next(iter(loader(10, seed=2)))
    w.model(torch.zeros(2, 3, 8, 8))
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        batches = loader(8 + 4 * epoch)
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)


@loop
def two_optimizers_for_one_model(w: Witness) -> None:
    batches = loader()
    optimizers = (
        torch.optim.SGD(w.model[0].parameters(), lr=0.05),
        torch.optim.AdamW(w.model[4].parameters()),
    )
    for epoch in range(EPOCHS):
        for x, y in batches:
            loss = F.cross_entropy(w.model(x), y)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            w.step(epoch)
            w.loss(epoch, loss, len(x))
