"""The records that the package's modules hand each other: layers, an epoch's activations, an epoch's measures."""

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
        index: the layer's row, in forward order, from 0.
        name: the module's qualified name in the model.
        type: the module's class name.
        output_shape: the shape of the output for one sample, without the batch dimension.
        parameters: the number of the module's own parameters.
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
        epoch: the epoch's number, from 0.
        step: (steps,) int32, the global number of each recorded training step, ascending.
        mean: (layers, steps) float32, the mean over batch, channels and positions of the layer's output.
        std: (layers, steps) float32, the standard deviation over the same.
        layers: the layers to which the rows of `mean` and `std` belong.
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
        activations: the record of the layers.
        metrics: the metrics that the training logged with the epoch, by key, without the measures.
        timestamp_ms: when the epoch ended, in milliseconds since 1970.
    """

    activations: EpochActivations
    metrics: Mapping[str, float]
    timestamp_ms: int

    @property
    def epoch(self) -> int:
        """The epoch's number, from 0."""
        return self.activations.epoch


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All measures of one window. An undefined measure is NaN, and `reason` says why.

    For a batch of windows, each number is an array (...,), and each array (layers,) is an array (..., layers).

    Attributes:
        integration: mean over layers of the scaling exponent, about 0 to 2.
        global_integration: scaling exponent of the layers' mean z-scored signal, about 0 to 2.
        synchrony: mean order parameter, 0 to 1.
        metastability: standard deviation of the order parameter, 0 to 0.5.
        metastability_ratio: metastability divided by the metastability of incoherent layers.
        metastability_unbiased: deviation of the squared order parameter, comparable between depths, about 0 to 0.5.
        stability: the combined index, 0 to 1.
        integration_low, integration_high: 95 % confidence interval of integration; NaN unless asked for.
        coupling_p: p-value of the synchrony under uncoupled layers, 0 to 1; NaN unless asked for.
        metastability_p: p-value of the metastability under linearly coupled layers, 0 to 1; NaN unless asked for.
        layers_dropped: layers left out because they were constant or not finite in the window.
        exponents: (layers,) each layer's own exponent, NaN for a dropped layer.
        phase_coherence: (layers,) each layer's mean phase agreement with the others, -1 to 1, NaN for a dropped layer.
        window: the number of steps in the window (epochs in the `epochs` protocol); NaN if not known.
        start_up: the window is not full yet, or holds some of the training's first steps. The measures then depend on
            the window as much as on the training, and must not be judged or compared.
        reason: why a measure is NaN; None if none is.
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
