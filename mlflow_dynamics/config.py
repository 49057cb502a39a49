"""Frozen, keyword-only configuration: what is recorded and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from mlflow_dynamics.checks import check_choice, check_flag, check_patterns, check_whole

Signal = Literal["rms", "mean", "std"]
ProtocolName = Literal["steps", "epochs", "depth"]
Estimator = Literal["dfa", "hk"]
WarningMode = Literal["off", "warn", "stop"]
OnSigterm = Literal["end"] | None

SIGNALS: Final = get_args(Signal)
PROTOCOLS: Final = get_args(ProtocolName)
ESTIMATORS: Final = get_args(Estimator)
WARNING_MODES: Final = get_args(WarningMode)

MIN_STEPS: Final = 32
"""Below this many steps in the window the measures of the `steps` and `depth` protocols are undefined."""


AUTO: Final = "auto"
"""How a window that follows the training is written down, on the command line and in a run."""


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
            check_whole(name, getattr(self, name))
        if self.batch_samples is not None:
            check_whole("batch_samples", self.batch_samples)
        for name in ("include", "exclude"):
            check_patterns(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How recorded activations become measures (DESIGN: signal, window, protocol, estimator).

    Attributes:
        signal: what stands for a layer at a step: "rms" = sqrt(mean^2 + std^2), "mean" or "std".
        protocol: what plays the part of time: "steps", "epochs" or "depth".
        window: the last so many steps up to the end of the epoch enter the measures; None follows the training: the
            last 3 epochs, but at least 32 and at most 512 steps.
        estimator: of the integration exponent: "dfa" or "hk"; None means the protocol's own ("hk" for "epochs").
        uncertainty: also give integration's confidence interval and the p-values of the surrogate tests.
        volatility_window: volatility is the standard deviation of stability over this many epochs.
    """

    signal: Signal = "rms"
    protocol: ProtocolName = "steps"
    window: int | None = None
    estimator: Estimator | None = None
    uncertainty: bool = False
    volatility_window: int = 5

    def __post_init__(self) -> None:
        check_choice("signal", self.signal, SIGNALS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        if self.estimator is not None:
            check_choice("estimator", self.estimator, ESTIMATORS)
        if self.window is not None:
            check_whole(
                "window", self.window, least=MIN_STEPS, what=" steps, or None to follow the training's epochs"
            )
        check_flag("uncertainty", self.uncertainty)
        check_whole("volatility_window", self.volatility_window, least=2, what=" epochs")

    @property
    def resolved_estimator(self) -> Estimator:
        """The estimator in use: the chosen one, else the protocol's own."""
        if self.estimator is not None:
            return self.estimator
        return "hk" if self.protocol == "epochs" else "dfa"
