"""What the layers of the code hand each other: recorded layers, an epoch's activations, an epoch's measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One recorded layer: a row of `dynamics/layers.parquet`.

    Attributes:
        index: its row, in forward order, from 0.
        name: the module's qualified name in the model.
        type: the module's class name.
        output_shape: of one sample, without the batch dimension.
        parameters: the number of its own parameters.
    """

    index: int
    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, kw_only=True)
class EpochActivations:
    """The record of one epoch: each layer's mean and standard deviation at each recorded training step.

    Attributes:
        epoch: from 0.
        step: (steps,) int32, the global number of each recorded training step, ascending.
        mean: (layers, steps) float32, over batch, channels and positions of the layer's output.
        std: (layers, steps) float32, likewise.
        layers: what the rows of `mean` and `std` are.
    """

    epoch: int
    step: NDArray[np.int32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """All that is recorded of one epoch, live or read back from a run.

    Attributes:
        activations: what was recorded of the layers.
        metrics: what the training logged with the epoch, by key; no measures, which follow from the activations.
        timestamp_ms: milliseconds since 1970, when the epoch ended.
    """

    activations: EpochActivations
    metrics: Mapping[str, float]
    timestamp_ms: int

    @property
    def epoch(self) -> int:
        """Its number, from 0."""
        return self.activations.epoch


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All measures of one window. Undefined ones are NaN, and `reason` says why.

    Of a batch of windows each number is an array (...,), and each (layers,) one is (..., layers).

    Attributes:
        integration: mean over layers of the scaling exponent, about 0 to 2.
        global_integration: scaling exponent of the layers' mean z-scored signal, about 0 to 2.
        synchrony: mean order parameter, 0 to 1.
        metastability: standard deviation of the order parameter, 0 to 0.5.
        metastability_ratio: metastability over the floor of incoherent layers.
        metastability_unbiased: deviation of the squared order parameter, compares depths, about 0 to 0.5.
        stability: the combined index, 0 to 1.
        integration_low, integration_high: 95 % confidence interval of integration; NaN unless asked for.
        coupling_p: p-value of the synchrony among uncoupled layers, 0 to 1; NaN unless asked for.
        metastability_p: p-value of the metastability among linearly coupled layers, 0 to 1; NaN unless asked for.
        layers_dropped: layers left out because they were constant or not finite in the window.
        exponents: (layers,) each layer's own exponent, NaN where dropped.
        phase_coherence: (layers,) each layer's mean phase agreement with the others, -1 to 1, NaN where dropped.
        window: steps that the window holds (in the `epochs` protocol epochs); NaN where nobody says.
        start_up: whether the window is not full yet or holds some of the training's first steps; the measures then
            follow the window as much as the training, and nothing is judged or compared from them.
        reason: why something is NaN, or None.
    """

    integration: float
    synchrony: float
    metastability: float
    metastability_ratio: float
    stability: float
    global_integration: float = math.nan
    metastability_unbiased: float = math.nan
    integration_low: float = math.nan
    integration_high: float = math.nan
    coupling_p: float = math.nan
    metastability_p: float = math.nan
    layers_dropped: int
    exponents: NDArray[np.float64]
    phase_coherence: NDArray[np.float64]
    window: float = math.nan
    start_up: bool = False
    reason: str | None = None
