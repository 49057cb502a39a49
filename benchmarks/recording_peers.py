"""Measures what looking at activations costs a training step on the CPU: this project beside the usual other ways.

The candidates take turns in one process and thread, in random order, on copies of one model. The table gives the
median processor time of a step, and the median over the rounds of its ratio to the bare step of the same round. The
time is that of all threads of the process. The ratio of a second bare model shows how far ratios differ by chance. Work
that wandb and TorchInstruments do in processes of their own is not counted. The candidates record different things:

    mlflow_dynamics   mean and deviation of each weight layer
    moments           mean, deviation, extremes and share of zeros of each weight layer's output, as composer's
                      ActivationMonitor, read to the host
    histograms        torch.histc with 64 bins of each weight layer's output, read to the host
    wandb.watch       log="all", log_freq=1: histograms of parameters and gradients; a run that is offline
    torchlens         one traced forward pass beside each step
    TorchInstruments  statistics and histograms of every module's output and gradient; at its default once a minute
                      (what falls between the samples is not seen), or at every step

    pip install wandb torchlens torchinstruments
    python benchmarks/recording_peers.py --model resnet18 --batch 64 --rounds 20

Packages that are not installed are left out.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec

import torch
from recording import MODELS
from torch import Tensor, nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder

WEIGHT_LAYERS = (nn.Conv2d, nn.Linear)


class Candidate:
    """A copy of the model, with what looks at its activations. `step` trains the copy on one batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.after_step: Callable[[Tensor], None] = lambda images: None

    def step(self, images: Tensor, targets: Tensor) -> float:
        began = time.process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), targets).backward()
        self.optimizer.step()
        self.after_step(images)
        return time.process_time() - began


def ours(candidate: Candidate) -> None:
    Recorder(candidate.model, RecordingConfig())


def hooked(look: Callable[[Tensor], object]) -> Callable[[Candidate], None]:
    """Return a function that puts a forward hook, which calls `look`, on every weight layer of a candidate."""

    def attach(candidate: Candidate) -> None:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            look(output.detach())

        for module in candidate.model.modules():
            if isinstance(module, WEIGHT_LAYERS):
                module.register_forward_hook(hook)

    return attach


def moments(output: Tensor) -> list[float]:
    zeros = (output == 0).float().mean()
    return torch.stack([output.mean(), output.std(), output.min(), output.max(), zeros]).tolist()


def histogram(output: Tensor) -> list[float]:
    return list(torch.histc(output.float(), bins=64).tolist())


def watched_by_wandb(candidate: Candidate) -> None:
    import wandb

    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(silent=True))
    run.watch(candidate.model, log="all", log_freq=1)
    # `watch` gathers values, which only the next `log` writes.
    candidate.after_step = lambda images: run.log({})


def traced_by_torchlens(candidate: Candidate) -> None:
    import torchlens

    traced = copy.deepcopy(candidate.model)

    def trace(images: Tensor) -> None:
        torchlens.trace(traced, images)

    candidate.after_step = trace


def instrumented(interval: timedelta) -> Callable[[Candidate], None]:
    def attach(candidate: Candidate) -> None:
        from torchinstruments import inject_observer

        inject_observer(candidate.model, interval=interval, output_dir=tempfile.mkdtemp())

    return attach


CANDIDATES: dict[str, Callable[[Candidate], None]] = {
    "bare": lambda candidate: None,
    "bare again": lambda candidate: None,
    "mlflow_dynamics": ours,
    "moments": hooked(moments),
    "histograms": hooked(histogram),
    "wandb.watch": watched_by_wandb,
    "torchlens": traced_by_torchlens,
    "TorchInstruments": instrumented(timedelta(minutes=1)),
    "TorchInstruments, every step": instrumented(timedelta(microseconds=1)),
}
PACKAGES = {
    "wandb.watch": "wandb",
    "torchlens": "torchlens",
    "TorchInstruments": "torchinstruments",
    "TorchInstruments, every step": "torchinstruments",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = "offline"
    image = 32
    model = MODELS[options.model](image)
    candidates = {}
    for name, attach in CANDIDATES.items():
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            continue
        candidates[name] = Candidate(copy.deepcopy(model))
        attach(candidates[name])
    images = torch.randn(options.batch, 3, image, image)
    targets = torch.randint(0, 10, (options.batch,))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(options.rounds + 1):
        for name in random.sample(list(candidates), len(candidates)):
            seconds = candidates[name].step(images, targets)
            if turn > 0:  # the first round warms up
                times[name].append(seconds)
    print(f"| {options.model}, batch {options.batch} | step | ratio to bare |\n| --- | --- | --- |")
    for name, seconds in times.items():
        ratio = statistics.median(mine / bare for mine, bare in zip(seconds, times["bare"], strict=True))
        print(f"| {name} | {1000 * statistics.median(seconds):.0f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
