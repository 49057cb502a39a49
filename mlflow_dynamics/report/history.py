"""Holds what a report is drawn from: the epochs of a run so far."""

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
"""The largest number of layers times epochs in a heat map. Beyond it, epochs are left out: a page must stay small."""


@dataclass(kw_only=True)
class RunHistory:
    """The epochs of a run so far.

    Attributes:
        title: the name of the run.
        definitions: the settings of recording and measuring, name -> value.
        links: links to the run and to the runs of its experiment, label -> address.
        layers: the names of the recorded layers, in forward order.
        metrics: for each epoch, a mapping metric key -> value, with the number of the epoch as `epoch`.
        exponents, phase_coherence: epoch -> (layers,) values, for the epochs that were measured.
        order: (steps,) the order parameter R(t) over the last window.
        converged_epoch: the first epoch with the convergence signal, or None.
        unsettled_epoch: the first epoch with risen volatility, or None.
        diverging_epoch: the first epoch of a divergence, or None.
        first_not_finite: the layer whose output ceased to be finite first, and the training step of that, or None.
        same_order: whether the data come in the same order each epoch (`measures.repetition`).
        running: whether the training goes on.
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
    same_order: bool = False
    running: bool = False

    def look_at(self, activations: EpochActivations) -> None:
        """Note the layers of an epoch, and where a layer's output ceased to be finite."""
        self.layers = self.layers or tuple(printable(layer.name) for layer in activations.layers)
        if self.metrics and activations.epoch <= self.metrics[-1]["epoch"]:
            self.first_not_finite = None
        if self.first_not_finite is None:
            self.first_not_finite = _first_not_finite(activations)

    def add(self, epoch: int, metrics: Mapping[str, float], measures: Measures) -> None:
        """Add an epoch. If the history already holds this epoch, it replaces that one and all later ones."""
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
        """Return the history as JSON, which can be handed to another process."""
        values = asdict(self)
        for key in ("exponents", "phase_coherence"):
            values[key] = {epoch: series.tolist() for epoch, series in values[key].items()}
        return json.dumps(values | {"order": self.order.tolist()}).encode()

    @classmethod
    def unpacked(cls, packed: bytes) -> RunHistory:
        """Return the history that `packed` has turned into JSON."""
        values = json.loads(packed)
        for key in ("exponents", "phase_coherence"):
            values[key] = {int(epoch): np.array(series) for epoch, series in values[key].items()}
        if values["first_not_finite"] is not None:
            values["first_not_finite"] = tuple(values["first_not_finite"])
        return cls(**values | {"layers": tuple(values["layers"]), "order": np.array(values["order"])})

    @property
    def measured(self) -> bool:
        """Whether an epoch was measured. Otherwise there is nothing to draw that MLflow does not show by itself."""
        return len(self.exponents) > 0

    @property
    def frame(self) -> pd.DataFrame:
        """The metrics, with a row for each epoch and a column for each metric."""
        return pd.DataFrame.from_records(self.metrics)

    @property
    def start_up(self) -> list[int]:
        """The epochs of start-up: their window is not full, or holds some of the training's first steps."""
        return [int(row["epoch"]) for row in self.metrics if row.get(names.START_UP) == 1.0]

    @property
    def plateau(self) -> int | None:
        """The epoch from which validation accuracy is flat, or None if it is never flat or is not logged."""
        frame = self.frame
        if names.VALIDATION_ACCURACY not in frame:
            return None
        position = plateau_epoch(frame[names.VALIDATION_ACCURACY])
        return None if position is None else int(frame["epoch"].iloc[position])

    def by_layer(self, values: Mapping[int, NDArray[np.float64]]) -> tuple[list[int], NDArray[np.float64]]:
        """Return `exponents` or `phase_coherence` as (epochs, array (layers, epochs)), evenly thinned.

        If epochs between two measured ones were not measured, the first of them is a column of NaN.
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
    """Return the layer whose output ceased to be finite first, and the step at which it did; None if there is none.

    If several layers ceased at one step, the first in forward order is returned. A layer that is not called at a step
    has NaN there as well. Therefore only layers count that are finite at every step up to one, and at no step from
    there on.
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
