"""Frozen, keyword-only configuration of recording and measuring."""

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
"""The measures of the `steps` and `depth` protocols are undefined if the window holds fewer steps than this."""


AUTO: Final = "auto"
"""The word for a window that follows the training, on the command line and in a run's parameters."""


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """The settings of recording: which activations are recorded, and how much of them.

    Attributes:
        record_every: every n-th optimizer step is recorded (1 = all).
        batch_samples: at most this many samples of a batch enter a layer's statistics; None means the whole batch.
            Part of a batch gives another signal: normalisation fixes the moments of the whole batch, not of a part, so
            the part's sampling noise, which all layers share, hides the dynamics (docs/measures.md).
        include: glob patterns of the names or types of layers to record; empty means every weight layer.
        exclude: glob patterns of the names or types of layers to leave out.
        max_layers: the largest number of layers recorded; from a deeper network, evenly spaced layers are chosen.
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
    """The settings of measuring: how recorded activations become measures.

    Attributes:
        signal: the number that represents a layer at a step: "rms" = sqrt(mean^2 + std^2), "mean" or "std".
        protocol: the axis that serves as time: "steps", "epochs" or "depth".
        window: the number of steps, up to the end of the epoch, that enter the measures; None follows the training:
            the last 3 epochs, but at least 32 and at most 512 steps.
        estimator: the estimator of the integration exponent, "dfa" or "hk"; None means the protocol's own ("hk" for
            "epochs", "dfa" for the others).
        uncertainty: integration's confidence interval and the p-values of the surrogate tests are computed too.
        volatility_window: the number of epochs over which volatility, the standard deviation of stability, is taken.
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
        """The estimator in use: the chosen one, or the protocol's own if none was chosen."""
        if self.estimator is not None:
            return self.estimator
        return "hk" if self.protocol == "epochs" else "dfa"
