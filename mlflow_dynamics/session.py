"""`track()` opens the run of a training, and joins the training's recorder and run log in a tracker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from mlflow_dynamics.alerts import OnEvent
from mlflow_dynamics.arguments import check_arguments
from mlflow_dynamics.config import MeasureConfig, OnSigterm, RecordingConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.errors import ConfigError, DynamicsError
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.distributed import writes_run
from mlflow_dynamics.recording.layers import other_layer
from mlflow_dynamics.report.notebook import LiveFigure
from mlflow_dynamics.run_log import RunLog
from mlflow_dynamics.termination import TERMINATIONS
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import (
    RunWriter,
    beside_run,
    end_run,
    open_run,
    reopen_run,
    run_to_resume,
)
from mlflow_dynamics.tracking.joining import holds_training, whole_record
from mlflow_dynamics.tracking.recorded_epochs import recorded_layers
from mlflow_dynamics.tracking.settings import settings_to_carry_on

if TYPE_CHECKING:
    from mlflow.entities import Run
    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)


def track(
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    recording: RecordingConfig | None = None,
    measures: MeasureConfig | None = None,
    warning: WarningConfig | None = None,
    log_every_n_epoch: int = 1,
    run_id: str | None = None,
    resume: str | None = None,
    tracking_uri: str | None = None,
    on_sigterm: OnSigterm = None,
    on_event: OnEvent | None = None,
) -> Tracker:
    """Record the dynamics of a training of `model` in an MLflow run: the active run, or a new one if none is active.

    A run holds one training. If the active run holds a training already, this one gets a run nested under it. If the
    active run belongs to another tracker that was not closed, this training gets a run of its own.

    If several processes train the model, call `track` on every rank: the first rank writes the run; the others hand
    their parts over to it and have no run.

    ```python
    with mlflow_dynamics.track(model) as tracker:
        for epoch in range(epochs):
            train_one_epoch(model)
            tracker.end_epoch()
    ```

    Args:
        model: the model, before or after torch.compile and DistributedDataParallel.
        optimizer: count only the steps of this optimizer; None counts the steps of any optimizer that owns model
            parameters.
        recording: which activations are recorded; None takes the defaults.
        measures: how the activations are measured; None takes the defaults.
        warning: the early warning of convergence, and whether `Tracker.should_stop()` obeys it; None takes the
            defaults. If no schedule is given, it is read from the optimizer's scheduler when the first epoch ends, as
            far as that is certain.
        log_every_n_epoch: write every n-th epoch's metrics (activations are always kept).
        run_id: record into this run, which the caller ends.
        resume: carry on the training that this run holds, such as a preempted training from its checkpoint. Epochs and
            steps are counted on, window and detector are restored from the record, and the run's own settings hold. An
            epoch that the run already holds is not recorded again.
        tracking_uri: the store that holds the run; None is MLflow's own.
        on_sigterm: "end" ends the run as KILLED before SIGTERM or SIGHUP ends the process (docs/reliability.md); None
            leaves signals alone.
        on_event: a function of one `mlflow_dynamics.Event`, or the address of a webhook, that is told in the background
            when the run converges, is unsettled or diverges (docs/early-warning.md); None tells nobody.

    Raises:
        ConfigError: an argument is not usable, or differs from a setting of the run to resume.
        RecordingError: the model has no layer that could be recorded.
        TrackingError: the run to resume cannot be read, or neither the store nor the spool's disk can take a new run.
        DataError: a file of the run to resume is damaged.
    """
    check_arguments(
        model=model,
        optimizer=optimizer,
        recording=recording,
        measures=measures,
        warning=warning,
        log_every_n_epoch=log_every_n_epoch,
        run_id=run_id,
        resume=resume,
        tracking_uri=tracking_uri,
        on_sigterm=on_sigterm,
        on_event=on_event,
    )
    if resume is not None and run_id not in (None, resume):
        raise ConfigError(f"run_id={run_id!r} and resume={resume!r} are two runs; give one of them.")
    earlier = None if resume is None else run_to_resume(resume, tracking_uri=tracking_uri)
    warning = warning or WarningConfig()
    if earlier is not None:
        recording, measures, warning = settings_to_carry_on(earlier, recording, measures, warning)
    recorder = Recorder(model, recording or RecordingConfig(), optimizer=optimizer)
    if not writes_run(model):
        return Tracker(recorder, None, close=None).start()
    with TERMINATIONS.beginning() if on_sigterm == "end" else nullcontext():
        try:
            if earlier is not None:
                earlier = whole_record(earlier, tracking_uri=tracking_uri)
                if holds_training(earlier):
                    require_same_layers(earlier, recorder, tracking_uri=tracking_uri)
                run = reopen_run(earlier, joined=run_id is not None)
            elif resume is not None:
                run = beside_run(resume, tracking_uri=tracking_uri)
            else:
                run = open_run(run_id, tracking_uri=tracking_uri)
            writer = RunWriter(run.run, tracking_uri=tracking_uri, owned=run.owned).start()
        except DynamicsError:
            recorder.remove()
            raise
        run_log = RunLog(
            writer,
            recording=recorder.config,
            measures=measures or MeasureConfig(),
            warning=warning,
            log_every_n_epoch=log_every_n_epoch,
            on_event=on_event,
        )
        close = closing(writer, owned=run.owned)
        tracker = Tracker(
            recorder,
            run_log,
            close=close,
            reads_schedule=warning.reads_schedule,
            figure=LiveFigure(run_log.so_far),
        ).start()
        if earlier is not None and holds_training(earlier):
            try:
                tracker.carry_on(earlier.info.run_id, tracking_uri=tracking_uri)
            except DynamicsError:
                tracker.close("FAILED")
                raise
        tracker.close_at_exit(on_sigterm)
        return tracker


def require_same_layers(run: Run, recorder: Recorder, *, tracking_uri: str | None) -> None:
    """Refuse to carry on the training of another model, before anything of the run is changed.

    Raises:
        ConfigError: the model has other layers than the run.
        TrackingError: the run cannot be read.
        DataError: the run's list of layers is damaged.
    """
    other = other_layer(recorder.chosen_layers, recorded_layers(run, tracking_uri=tracking_uri))
    if other is not None:
        raise ConfigError(f"resume={run.info.run_id!r} holds the training of a model with other layers, such as "
                          f"{other}; give the run of this model, or leave resume out.")  # fmt: skip


def closing(writer: RunWriter, *, owned: bool) -> Callable[[str, float], object]:
    """A function of (status, timeout in seconds) that ends the run if it is `owned`, and closes the writer."""
    if owned:
        return partial(end_run, writer)
    return lambda _status, timeout_s: writer.close(timeout_s)
