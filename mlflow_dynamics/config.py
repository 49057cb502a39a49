"""Frozen, keyword-only configuration: what is recorded and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from mlflow_dynamics.errors import ConfigError, unknown_choice

Signal = Literal["rms", "mean", "std"]
ProtocolName = Literal["steps", "epochs", "depth"]
Estimator = Literal["dfa", "hk"]
EarlyStopping = Literal["off", "warn", "stop"]

SIGNALS: Final = get_args(Signal)
PROTOCOLS: Final = get_args(ProtocolName)
ESTIMATORS: Final = get_args(Estimator)
EARLY_STOPPING: Final = get_args(EarlyStopping)

MIN_STEPS: Final = 64
"""Below this many steps in the window the measures of the `steps` and `depth` protocols are undefined."""


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Which activations are recorded, and how much of them.

    Attributes:
        record_every: record every n-th optimizer step (1 = all).
        batch_samples: at most this many samples of a batch enter a layer's statistics; None means the whole batch. A
            part of it is another signal: normalisation fixes the moments of the whole batch, not of a part, so the
            part's sampling noise, common to all layers, drowns the dynamics (docs/measures.md).
        include: glob patterns on layer names or types; empty means every weight layer.
        exclude: glob patterns on layer names or types that are left out.
        max_layers: a deeper network is thinned evenly to this many layers.
    """

    record_every: int = 1
    batch_samples: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_layers: int = 256

    def __post_init__(self) -> None:
        for name in ("record_every", "max_layers"):
            _require_positive(name, getattr(self, name))
        if self.batch_samples is not None:
            _require_positive("batch_samples", self.batch_samples)


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How recorded activations become measures (DESIGN: signal, window, protocol, estimator).

    Attributes:
        signal: what stands for a layer at a step: "rms" = sqrt(mean^2 + std^2), "mean" or "std".
        protocol: what plays the part of time: "steps", "epochs" or "depth".
        window: the last so many steps up to the end of the epoch enter the measures.
        estimator: of the integration exponent: "dfa" or "hk"; None means the protocol's own ("hk" for "epochs").
        uncertainty: also give integration's confidence interval and the p-values of the surrogate tests.
        volatility_window: volatility is the standard deviation of stability over this many epochs.
    """

    signal: Signal = "rms"
    protocol: ProtocolName = "steps"
    window: int = 512
    estimator: Estimator | None = None
    uncertainty: bool = False
    volatility_window: int = 5

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise unknown_choice("signal", self.signal, SIGNALS)
        if self.protocol not in PROTOCOLS:
            raise unknown_choice("protocol", self.protocol, PROTOCOLS)
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            raise unknown_choice("estimator", self.estimator, ESTIMATORS)
        if not _is_int(self.window) or self.window < MIN_STEPS:
            raise ConfigError(f"window={self.window!r} must be a whole number of at least {MIN_STEPS} steps.")
        if not _is_int(self.volatility_window) or self.volatility_window < 2:
            raise ConfigError(
                f"volatility_window={self.volatility_window!r} must be a whole number of at least 2 epochs."
            )

    @property
    def resolved_estimator(self) -> Estimator:
        """The estimator in use: the chosen one, else the protocol's own."""
        if self.estimator is not None:
            return self.estimator
        return "hk" if self.protocol == "epochs" else "dfa"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_positive(name: str, value: object) -> None:
    if not _is_int(value) or value < 1:  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} must be a whole number of at least 1.")
