"""What a report is drawn from: a run's epochs so far, collected as it trains or read back from the store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence.plateau import plateau_epoch
from mlflow_dynamics.measures import SignalWindow, order_parameter
from mlflow_dynamics.records import Measures
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.activations import load_layers
from mlflow_dynamics.tracking.parquet import read_layer_measures
from mlflow_dynamics.tracking.query import find_runs, load_metrics
from mlflow_dynamics.tracking.replay import recorded_epochs
from mlflow_dynamics.tracking.store import download, list_folder

MAX_CELLS: Final = 40_000
"""A heat map of more layers times epochs is thinned to fewer epochs: a page must stay small."""


@dataclass(kw_only=True)
class RunHistory:
    """A run's epochs so far.

    Attributes:
        title: what the run is called.
        definitions: what was recorded and how it is measured, name -> value.
        layers: the recorded layers' names, in forward order.
        metrics: one mapping an epoch: metric key -> value, and `epoch`.
        exponents, phase_coherence: (layers,) of each measured epoch, by epoch.
        order: (steps,) the order parameter over the last window.
        converged_epoch: the first epoch with the convergence signal, or None.
        unsettled_epoch, diverging_epoch: likewise with risen volatility and of divergence.
    """

    title: str
    definitions: Mapping[str, str]
    layers: tuple[str, ...] = ()
    metrics: list[dict[str, float]] = field(default_factory=list)
    exponents: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    phase_coherence: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    order: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    converged_epoch: int | None = None
    unsettled_epoch: int | None = None
    diverging_epoch: int | None = None

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
    def plateau(self) -> int | None:
        """The epoch from which validation accuracy is flat, or None where it is not or is not logged."""
        frame = self.frame
        if names.VALIDATION_ACCURACY not in frame:
            return None
        position = plateau_epoch(frame[names.VALIDATION_ACCURACY])
        return None if position is None else int(frame["epoch"].iloc[position])

    def by_layer(self, values: Mapping[int, NDArray[np.float64]]) -> tuple[list[int], NDArray[np.float64]]:
        """(epochs, an array (layers, epochs)) of `exponents` or `phase_coherence`, evenly thinned."""
        epochs = sorted(values)
        columns = max(MAX_CELLS // max(len(values[epochs[0]]), 1), 2)
        if len(epochs) > columns:
            chosen = np.linspace(0, len(epochs) - 1, columns).round().astype(int)
            epochs = [epochs[i] for i in chosen]
        return epochs, np.stack([values[epoch] for epoch in epochs], axis=1)


def history_of(run_id: str, config: MeasureConfig) -> RunHistory:
    """A run's history read back from the store; `config` is how it was measured.

    Raises:
        TrackingError: the run is unknown, deleted, holds no activations or cannot be read.
        DataError: one of its files is damaged.
    """
    (run,) = find_runs([run_id])
    prefix = "dynamics/"
    definitions = {
        key.removeprefix(prefix): value for key, value in run.data.params.items() if key.startswith(prefix)
    }
    history = RunHistory(title=run.info.run_name or run_id, definitions=definitions)
    window = SignalWindow(config)
    epochs: dict[int, dict[str, float]] = {}
    for recorded in recorded_epochs(run_id):
        window.append(recorded.activations)
        epochs[recorded.activations.epoch] = {}
    history.layers = tuple(layer.name for layer in load_layers(run_id))
    for row in load_metrics([run_id]).drop(columns="run_id").to_dict("records"):
        epochs[int(row["epoch"])] = {str(key): float(value) for key, value in row.items() if value == value}
    history.metrics = [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]
    history.converged_epoch = names.epoch_in(run.data.tags, names.TAG_CONVERGED_EPOCH)
    history.unsettled_epoch = names.epoch_in(run.data.tags, names.TAG_UNSETTLED_EPOCH)
    history.diverging_epoch = names.epoch_in(run.data.tags, names.TAG_DIVERGING_EPOCH)
    for epoch, table in _layer_measures(run).items():
        history.exponents[epoch] = table["exponent"].to_numpy(dtype=np.float64)
        history.phase_coherence[epoch] = table["phase_coherence"].to_numpy(dtype=np.float64)
    history.order = last_order(window)
    return history


def last_order(window: SignalWindow) -> NDArray[np.float64]:
    """(steps,) the order parameter over the window; empty where it is not defined."""
    signals = window.signals()
    if 0 in signals.shape:
        return np.empty(0)
    order = order_parameter(signals)
    return order[np.isfinite(order)]


def _layer_measures(run: Run) -> dict[int, pd.DataFrame]:
    """Epoch -> what each layer measured, for the epochs at which the measures were defined."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet"
        for partition in list_folder(run, names.LAYER_MEASURES):
            artifact = f"{partition.path}/part-0.parquet"
            path.write_bytes(download(run, artifact))
            table = read_layer_measures(path).to_pandas().sort_values("layer")
            if table["exponent"].notna().any():
                found[names.epoch_of(artifact)] = table
    return found
