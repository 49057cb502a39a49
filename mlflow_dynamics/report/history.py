"""What a report is drawn from: a run's epochs so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count, pairwise
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.convergence.plateau import plateau_epoch
from mlflow_dynamics.records import EpochActivations, Measures
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names

MAX_CELLS: Final = 40_000
"""A heat map of more layers times epochs is thinned to fewer epochs: a page must stay small."""


@dataclass(kw_only=True)
class RunHistory:
    """A run's epochs so far.

    Attributes:
        title: what the run is called.
        definitions: what was recorded and how it is measured, name -> value.
        links: to the run and to those beside it, what is linked -> address.
        layers: the recorded layers' names, in forward order.
        metrics: one mapping an epoch: metric key -> value, and `epoch`.
        exponents, phase_coherence: (layers,) of each measured epoch, by epoch.
        order: (steps,) the order parameter over the last window.
        converged_epoch: the first epoch with the convergence signal, or None.
        unsettled_epoch, diverging_epoch: likewise with risen volatility and of divergence.
        first_not_finite: the layer, and the training step, at which a layer's output first was not finite that had been
            before.
        running: the training goes on.
    """

    title: str
    definitions: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    metrics: list[dict[str, float]] = field(default_factory=list)
    exponents: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    phase_coherence: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    order: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    converged_epoch: int | None = None
    unsettled_epoch: int | None = None
    diverging_epoch: int | None = None
    first_not_finite: tuple[str, int] | None = None
    running: bool = False

    def look_at(self, activations: EpochActivations) -> None:
        """Take in which layers an epoch was recorded of, and where their outputs ceased to be finite."""
        self.layers = self.layers or tuple(printable(layer.name) for layer in activations.layers)
        if self.metrics and activations.epoch <= self.metrics[-1]["epoch"]:
            self.first_not_finite = None
        if self.first_not_finite is None:
            self.first_not_finite = _first_not_finite(activations)

    def add(self, epoch: int, metrics: Mapping[str, float], measures: Measures) -> None:
        """Take in an epoch; one that was there before is replaced, with all after it."""
        self.metrics = [row for row in self.metrics if row["epoch"] < epoch]
        for series in (self.exponents, self.phase_coherence):
            for later in [known for known in series if known >= epoch]:
                del series[later]
        self.metrics.append({"epoch": epoch, **metrics})
        if measures.reason is None:
            self.exponents[epoch] = measures.exponents
            self.phase_coherence[epoch] = measures.phase_coherence
        if self.converged_epoch is not None and epoch <= self.converged_epoch:
            self.converged_epoch = None
        if self.converged_epoch is None and metrics.get(names.CONVERGENCE_SIGNAL):
            self.converged_epoch = epoch

    def packed(self) -> bytes:
        """As text, to be handed to another process."""
        values = asdict(self)
        for key in ("exponents", "phase_coherence"):
            values[key] = {epoch: series.tolist() for epoch, series in values[key].items()}
        return json.dumps(values | {"order": self.order.tolist()}).encode()

    @classmethod
    def unpacked(cls, packed: bytes) -> RunHistory:
        """The history that was packed."""
        values = json.loads(packed)
        for key in ("exponents", "phase_coherence"):
            values[key] = {int(epoch): np.array(series) for epoch, series in values[key].items()}
        if values["first_not_finite"] is not None:
            values["first_not_finite"] = tuple(values["first_not_finite"])
        return cls(**values | {"layers": tuple(values["layers"]), "order": np.array(values["order"])})

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw that MLflow does not show by itself."""
        return len(self.exponents) > 0

    @property
    def frame(self) -> pd.DataFrame:
        """One row an epoch, one column a metric."""
        return pd.DataFrame.from_records(self.metrics)

    @property
    def start_up(self) -> list[int]:
        """The epochs whose window is not full or holds some of the training's first steps."""
        return [int(row["epoch"]) for row in self.metrics if row.get(names.START_UP) == 1.0]

    @property
    def plateau(self) -> int | None:
        """The epoch from which validation accuracy is flat, or None where it is not or is not logged."""
        frame = self.frame
        if names.VALIDATION_ACCURACY not in frame:
            return None
        position = plateau_epoch(frame[names.VALIDATION_ACCURACY])
        return None if position is None else int(frame["epoch"].iloc[position])

    def by_layer(self, values: Mapping[int, NDArray[np.float64]]) -> tuple[list[int], NDArray[np.float64]]:
        """(epochs, an array (layers, epochs)) of `exponents` or `phase_coherence`, evenly thinned.

        Where epochs between two of them were not measured, the first of these is there, as NaN.
        """
        known = sorted(values)
        columns = max(MAX_CELLS // max(len(values[known[0]]), 1), 2)
        chosen = np.unique(np.linspace(0, len(known) - 1, min(columns, len(known))).round().astype(int))
        epochs: list[int] = []
        for before, position in pairwise([chosen[0], *chosen]):
            if known[position] - known[before] != position - before:
                epochs.append(next(one for one in count(known[before]) if one not in values))
            epochs.append(known[position])
        undefined = np.full(len(values[known[0]]), np.nan)
        return epochs, np.stack([values.get(epoch, undefined) for epoch in epochs], axis=1)


def _first_not_finite(activations: EpochActivations) -> tuple[str, int] | None:
    """The first layer in forward order among those that cease to be finite first, and the step at which they do.

    A layer that is not called at a step is no number there either: only a layer counts that is finite at every step up
    to one, and at none from there on.
    """
    finite = np.isfinite(activations.mean) & np.isfinite(activations.std)
    steps = finite.shape[1]
    after = finite.sum(axis=1)
    ceased = (
        (after > 0)
        & (after < steps)
        & np.array([row[:end].all() for row, end in zip(finite, after, strict=True)])
    )
    if not ceased.any():
        return None
    first = int(np.argmin(np.where(ceased, after, steps)))
    return printable(activations.layers[first].name), int(activations.step[after[first]])
