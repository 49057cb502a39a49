"""`autolog()`: any PyTorch training recorded without a change, on torch's own hooks; and everything undone."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from mlflow_dynamics.autologging.listening import Autologging
from mlflow_dynamics.autologging.recorded_run import AutologConfig
from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence.detectors import OURS
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.session import status_after

_autologging: Autologging | None = None


def autolog(
    *,
    log_every_n_epoch: int = 1,
    disable: bool = False,
    exclusive: bool = False,
    silent: bool = False,
    recording: RecordingConfig | None = None,
    measures: MeasureConfig | None = None,
    early_stopping: EarlyStopping = "warn",
    detector: str = OURS,
) -> None:
    """Record the dynamics of every PyTorch training from here on, without a change to its code.

    The model is the outermost module that owns an optimizer's parameters; a training step is a step of that
    optimizer; an epoch is a pass over the DataLoader whose batches the model is trained on, over the first of
    several that are drawn in turn. Where epochs cannot be inferred, one warning says so and names the explicit
    ways. An active MLflow run is used, else one is created when the first epoch has ended, and ended with the
    training. Training and validation loss (`train/loss`, `validation/loss`, `validation/accuracy`) are logged
    where the script's criterion calls tell them with certainty and the script does not log them itself; where
    not, one log line says why. Of several processes that train one model the first writes the run, and only it
    logs lines.

    Args:
        log_every_n_epoch: write every n-th epoch's metrics.
        disable: undo everything: the epoch that is open is recorded, the run ended if it is ours.
        exclusive: record nothing while a run of the user's own is active.
        silent: no log lines below errors.
        recording: which activations; None takes the defaults.
        measures: how they are measured; None takes the defaults.
        early_stopping: "warn" logs the convergence signal, "off" does not; "stop" only warns
            too, and says so: a loop must ask (`track`) or be told (a framework's callback).
        detector: the name of an installed convergence detector.

    Raises:
        ConfigError: an unknown way of stopping or detector.
    """
    monitor_for(early_stopping, detector=detector)
    _switch_off("FINISHED")
    global _autologging
    if not disable:
        _autologging = Autologging(
            AutologConfig(
                log_every_n_epoch=log_every_n_epoch,
                exclusive=exclusive,
                silent=silent,
                recording=recording or RecordingConfig(),
                measures=measures or MeasureConfig(),
                early_stopping=early_stopping,
                detector=detector,
            )
        )


def run_script(path: str | Path, arguments: list[str]) -> None:
    """Run a training script as `python path arguments...` would, recorded as if its first line were `autolog()`.

    The script's own exceptions and exit codes pass through; the run is ended with the matching status.
    """
    script = Path(path)
    kept = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    autolog()
    ended: BaseException | None = None
    try:
        runpy.run_path(str(script), run_name="__main__")
    except BaseException as error:
        ended = error
        raise
    finally:
        sys.argv, sys.path[0] = kept
        _switch_off(status_after(ended))


def _switch_off(status: str) -> None:
    global _autologging
    if _autologging is not None:
        _autologging.close(status)
        _autologging = None
