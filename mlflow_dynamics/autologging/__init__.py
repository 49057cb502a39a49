"""`autolog()` records any PyTorch training without a change to it, by torch's own hooks, and can undo everything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mlflow_dynamics.alerts import OnEvent
from mlflow_dynamics.arguments import check_arguments
from mlflow_dynamics.autologging.as_main import run_as_main
from mlflow_dynamics.autologging.listening import Autologging
from mlflow_dynamics.autologging.recorded_run import AutologConfig
from mlflow_dynamics.config import MeasureConfig, OnSigterm, RecordingConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.process_end import status_after

_autologging: Autologging | None = None


def autolog(
    *,
    log_every_n_epoch: int = 1,
    disable: bool = False,
    exclusive: bool = False,
    silent: bool = False,
    extra_tags: Mapping[str, str] | None = None,
    recording: RecordingConfig | None = None,
    measures: MeasureConfig | None = None,
    warning: WarningConfig | None = None,
    on_sigterm: OnSigterm = None,
    on_event: OnEvent | None = None,
    loop_log: str | Path | None = None,
) -> None:
    """Record the dynamics of every PyTorch training from here on, without a change to its code.

    The model is the outermost module that owns an optimizer's parameters. A training step is a step of that optimizer.
    An epoch is a pass over the DataLoader whose batches the model is trained on, or over the first of several that are
    drawn in turn. If epochs cannot be inferred, one warning says so and names the explicit ways. The active MLflow run
    is used; if there is none, a new run is created when the first epoch has ended, and ends with the training. Losses
    and accuracy (`train/loss`, `validation/loss`, `validation/accuracy`) are logged where the script's criterion calls
    tell them with certainty and the script does not log them itself; otherwise one log line says why not. If several
    processes train one model, the first of them writes the run, and only that one logs lines.

    The first five arguments are those of MLflow's own autolog functions, and mean the same.

    Args:
        log_every_n_epoch: write every n-th epoch's metrics.
        disable: undo everything: the open epoch is recorded, and the run is ended if it is ours.
        exclusive: record nothing while a run of the user's own is active.
        silent: show no log lines below errors.
        extra_tags: tags of each run that is made here.
        recording: which activations are recorded; None takes the defaults.
        measures: how the activations are measured; None takes the defaults.
        warning: the early warning of convergence, with its schedule and `stop_before_last_phase`; None takes the
            defaults. Mode "stop" only warns here, and says so: only a loop that asks (`track`) or a framework that is
            told (by a callback) can stop.
        on_sigterm: "end" ends the run as KILLED before SIGTERM or SIGHUP ends the process (docs/reliability.md); None
            leaves signals alone.
        on_event: a function of one `mlflow_dynamics.Event`, or the address of a webhook, that is told in the background
            when a run converges, is unsettled or diverges (docs/early-warning.md); None tells nobody.
        loop_log: a file to write for a bug report. Each line is one event that epochs are read from, as JSON: a batch
            drawn (its number and its loader's), a backward pass, a step. The file holds no data.

    Raises:
        ConfigError: an argument is not usable, or the file cannot be written.
    """
    check_arguments(
        log_every_n_epoch=log_every_n_epoch,
        disable=disable,
        exclusive=exclusive,
        silent=silent,
        extra_tags=extra_tags,
        recording=recording,
        measures=measures,
        warning=warning,
        on_sigterm=on_sigterm,
        on_event=on_event,
        loop_log=loop_log,
    )
    global _autologging
    if _autologging is not None:
        _autologging.switch_off()
        _autologging = None
    if not disable:
        _autologging = Autologging(
            AutologConfig(
                log_every_n_epoch=log_every_n_epoch,
                exclusive=exclusive,
                silent=silent,
                extra_tags=dict(extra_tags or {}),
                recording=recording or RecordingConfig(),
                measures=measures or MeasureConfig(),
                warning=warning or WarningConfig(),
                on_sigterm=on_sigterm,
                on_event=on_event,
                loop_log=None if loop_log is None else Path(loop_log),
            )
        )


def run_script(
    script: str,
    arguments: list[str],
    *,
    module: bool = False,
    on_sigterm: OnSigterm = None,
    loop_log: Path | None = None,
) -> None:
    """Run a training script as `python script arguments...` would, and record it as if it began with `autolog()`.

    The script's own exceptions and exit codes pass through; the run is ended with the matching status.

    Args:
        script: a file, or a folder or an archive with a `__main__.py`.
        arguments: the script's own arguments.
        module: `script` is a module's name, as for `python -m`.
        on_sigterm, loop_log: as for `autolog`.
    """
    global _autologging
    ended: BaseException | None = None
    process = os.getpid()
    autolog(on_sigterm=on_sigterm, loop_log=loop_log)
    try:
        run_as_main(script, arguments, module=module)
    except BaseException as error:
        ended = error
        raise
    finally:
        if (
            os.getpid() == process
        ):  # otherwise this is a process that the script forked, and the parent goes on
            # The script is over: an interrupt now means that the user has waited long enough for us.
            with suppress(KeyboardInterrupt):
                if _autologging is not None:
                    _autologging.close(status_after(ended))
            _autologging = None
