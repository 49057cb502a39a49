"""Measures what recording costs a training step: the recorder's own time, and the ratio to a step without recording.

The own time is measured by a clock around every entry from torch into the recorder (hooks and optimizer hook). On a
GPU, this is time of the host, for which the GPU need not wait. In a compiled model, no entry is left that could be
timed. The ratio comes from pairs of a bare and a recorded step of two equal models, in random order. Beside it stands
the same ratio of two bare models, which shows how far ratios differ by chance. In one thread on a CPU, all times are
the processor time of that thread, which other work on the machine lengthens less. On a GPU, a pair has five steps of
each model with one wait at the end, as in trainings.

    python benchmarks/recording.py --model resnet20 --pairs 200
    python benchmarks/recording.py --model resnet18 --device cuda --batch 512 --image 224 --precision bfloat16
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.hooks import ForwardPass, ForwardPassEnd, LayerHook, NormHook


class Block(nn.Module):
    """A basic block of the CIFAR ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet20() -> nn.Module:
    """Return ResNet-20 for 32x32 images (He et al. 2016, arXiv 1512.03385, section 4.2)."""
    stages = [
        Block(*shape) for n, m, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2)) for shape in _stage(n, m, s)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _stage(inputs: int, outputs: int, stride: int) -> list[tuple[int, int, int]]:
    return [(inputs, outputs, stride), (outputs, outputs, 1), (outputs, outputs, 1)]


def vit(name: str, image: int) -> nn.Module:
    """Return timm's ViT, with patches of 4 x 4 pixels for small images."""
    patch = 16 if image >= 128 else 4
    return timm.create_model(f"{name}_patch16_224", img_size=image, patch_size=patch, num_classes=10)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": lambda image: resnet20(),
    "resnet18": lambda image: torchvision.models.resnet18(num_classes=10),
    "vit_tiny": partial(vit, "vit_tiny"),
    "vit_small": partial(vit, "vit_small"),
    "vit_base": partial(vit, "vit_base"),
}
STEPS_BETWEEN_WAITS = 5


class OwnTime:
    """Measures the time of every entry from torch into the recorders that are made from now on."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._now = now
        for owner in (ForwardPass, ForwardPassEnd, LayerHook, NormHook):
            owner.__call__ = self._timed(owner.__call__)
        Recorder._after_step = self._timed(Recorder._after_step)

    def _timed(self, entry: Callable[..., None]) -> Callable[..., None]:
        def timed(owner: Any, *args: Any) -> None:
            start = self._now()
            entry(owner, *args)
            self.seconds += self._now() - start

        return timed


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return name -> median over `options.pairs` pairs of steps."""
    cuda = options.device == "cuda"
    now = time.thread_time if not cuda and options.threads == 1 else time.perf_counter
    clock = None if options.compile else OwnTime(now)
    steps = STEPS_BETWEEN_WAITS if cuda else 1
    precision = getattr(torch, options.precision)
    models = {}
    for kind in ("bare", "again", "recorded"):
        torch.manual_seed(0)
        model = MODELS[options.model](options.image).to(options.device)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
        models[kind] = (model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    recorder = Recorder(
        models["recorded"][0],
        RecordingConfig(record_every=options.record_every, max_layers=options.max_layers),
    )
    calls = {kind: torch.compile(model) if options.compile else model for kind, (model, _) in models.items()}
    images = torch.randn(options.batch, 3, options.image, options.image, device=options.device)
    if options.channels_last:
        images = images.to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (options.batch,), device=options.device)

    def step(kind: str) -> float:
        _, optimizer = models[kind]
        start = now()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(options.device, dtype=precision, enabled=precision != torch.float32):
                loss = nn.functional.cross_entropy(calls[kind](images), targets)
            loss.backward()
            optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        return (now() - start) / steps

    for kind in 2 * list(models):
        step(kind)
    own, times = [], {kind: [] for kind in models}
    order = list(models)
    for _ in range(options.pairs):
        random.shuffle(order)
        for kind in order:
            if clock is not None:
                clock.seconds = 0.0
            times[kind].append(step(kind))
            if kind == "recorded":
                own.append(float("nan") if clock is None else clock.seconds / steps)
    handed = time.perf_counter()
    recorder.end_epoch(0)
    handed = time.perf_counter() - handed
    bare = statistics.median(times["bare"])
    ratios = [a / b for a, b in zip(times["recorded"], times["bare"], strict=True)]
    noise = [a / b for a, b in zip(times["again"], times["bare"], strict=True)]
    return {
        "layers": len(recorder.layers),
        "step_ms": bare * 1e3,
        "own_ms": statistics.median(own) * 1e3,
        "own_percent": 100 * statistics.median(own) / bare,
        "ratio": statistics.median(ratios),
        "ratio_bare": statistics.median(noise),
        "ratio_se": 1.2533 * statistics.stdev(ratios) / len(ratios) ** 0.5,
        "end_epoch_ms": handed * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--record-every", type=int, default=1)
    parser.add_argument("--max-layers", type=int, default=RecordingConfig().max_layers)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image", type=int, default=32, help="side in pixels")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for key, value in measure(options).items():
        print(f"{key:14s} {value:.4g}")


if __name__ == "__main__":
    main()
