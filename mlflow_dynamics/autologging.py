"""`autolog()`: any PyTorch training recorded without a change, on torch's own hooks; and everything undone."""

from __future__ import annotations

import atexit
import logging
import runpy
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import mlflow
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import ConvergenceMonitor
from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Call, CriterionWatch
from mlflow_dynamics.recording.discovery import is_recorded, models_of, optimizers_alive
from mlflow_dynamics.recording.distributed import first_process, writes_run
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.recording.loaders import LoaderWatch, Pass
from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.session import Tracker, closing
from mlflow_dynamics.tracking import NoRun, OpenedRun, RunWriter, names, open_run

logger = logging.getLogger(__name__)

EXPLICIT: Final = (
    "use mlflow_dynamics.track(model) with tracker.epoch(n) or tracker.end_epoch() to say where epochs end"
)

RIVAL_STEPS: Final = 50
"""A second model that makes so many steps while the first makes none is a new training, not the other half of one."""

_NO_LOADER: Final = "its training steps draw no batches from a DataLoader, so epochs are unknown"

_METRICS: Final = {
    "train_loss": names.TRAIN_LOSS,
    "validation_loss": names.VALIDATION_LOSS,
    "validation_accuracy": names.VALIDATION_ACCURACY,
}

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
) -> None:
    """Record the dynamics of every PyTorch training from here on, without a change to its code.

    The model is the outermost module that owns an optimizer's parameters; a training step is a step of that
    optimizer; an epoch is a pass over the DataLoader whose batches the model is trained on. Where epochs
    cannot be inferred, one warning says so and names the explicit ways. An active MLflow run is used, else
    one is created when the first epoch has ended, and ended with the training. Training and validation loss
    (`train/loss`, `validation/loss`, `validation/accuracy`) are logged where the script's criterion calls
    tell them with certainty. Of several processes that train one model the first writes the run, and
    only it logs lines.

    Args:
        log_every_n_epoch: write every n-th epoch's metrics.
        disable: undo everything: the epoch that is open is recorded, the run ended if it is ours.
        exclusive: record nothing while a run of the user's own is active.
        silent: no log lines below errors.
        recording: which activations; None takes the defaults.
        measures: how they are measured; None takes the defaults.
        early_stopping: "warn" logs the convergence signal, "off" does not; "stop" only warns
            too, and says so: a loop must ask (`track`) or be told (a framework's callback).
    """
    global _autologging
    if _autologging is not None:
        _autologging.close("FINISHED")
        _autologging = None
    if not disable:
        _autologging = Autologging(
            log_every_n_epoch=log_every_n_epoch,
            exclusive=exclusive,
            silent=silent,
            recording=recording or RecordingConfig(),
            measures=measures or MeasureConfig(),
            early_stopping=early_stopping,
        )


def run_script(path: str | Path, arguments: list[str]) -> None:
    """Run a training script as `python path arguments...` would, recorded as if its first line were `autolog()`.

    The script's own exceptions and exit codes pass through; the run is ended with the matching status.
    """
    script = Path(path)
    kept = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    autolog()
    status = "FAILED"
    try:
        runpy.run_path(str(script), run_name="__main__")
        status = "FINISHED"
    except SystemExit as stop:
        status = "FINISHED" if stop.code in (None, 0) else "FAILED"
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        sys.argv, sys.path[0] = kept
        if _autologging is not None:
            _autologging.status = status
        autolog(disable=True)


class Autologging:
    """Everything `autolog()` has switched on."""

    def __init__(
        self,
        *,
        log_every_n_epoch: int,
        exclusive: bool,
        silent: bool,
        recording: RecordingConfig,
        measures: MeasureConfig,
        early_stopping: EarlyStopping,
    ) -> None:
        self.status: str | None = None
        self._log_every_n_epoch = log_every_n_epoch
        self._exclusive = exclusive
        self._recording = recording
        self._measures = measures
        self._early_stopping = early_stopping
        self._trainings: list[FollowedTraining] = []
        self._active: FollowedTraining | None = None
        self._rival_stepped = False
        self._tracker: Tracker | None = None
        self._bound_run: str | None = None
        self._used_runs: set[str] = set()
        self._drawn: Pass | None = None
        self._logs = _LogLines(silent)
        self._boundary = Boundary(self._detach)
        self._attached: list[Any] = [
            LoaderWatch(self._batch, self._boundary),
            CriterionWatch(self, self._boundary),
            Patch(Optimizer, "__init__", self._around_optimizer),
            register_optimizer_step_pre_hook(self._before_step),
        ]
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self.close)
        for optimizer in optimizers_alive():
            self._boundary.run(self._follow, optimizer)

    def close(self, status: str = "FINISHED") -> None:
        """Record the open epoch unless the script failed in it, end our run, and undo everything."""
        status = self.status or status
        self._boundary.run(self._finish, status)
        self._detach()
        if self._tracker is not None:  # recording failed earlier
            self._tracker.close(status)
            self._tracker = None
        if sys.excepthook == self._on_exception:
            sys.excepthook = self._excepthook
        atexit.unregister(self.close)
        self._logs.remove()

    # ---- what torch tells us ----

    def _around_optimizer(self, original: Any) -> Any:
        def construct(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._boundary.run(self._follow, optimizer)

        return construct

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        closure = len(args) > 1 and args[1] is not None  # the first argument is the optimizer
        self._boundary.run(self._step, optimizer, closure or kwargs.get("closure") is not None)

    def _batch(self, drawn: Pass) -> None:
        self._drawn = drawn
        for training in self._trainings:
            training.batch(drawn)

    def owner_of(self, output: Tensor) -> FollowedTraining | None:
        """The training whose model returned this tensor last."""
        return next((training for training in self._trainings if training.returned(output)), None)

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated without gradients."""
        if isinstance(call.owner, FollowedTraining):
            call.owner.evaluated(call, self._drawn)

    def differentiated(self, call: Call | None) -> None:
        """Backward was called."""
        for training in self._trainings:
            training.differentiated(call)

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        self.status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self._excepthook(kind, error, traceback)

    # ---- what it means ----

    def _follow(self, optimizer: Optimizer) -> None:
        models = models_of(optimizer)
        if not models or any(training.recorder.model is models[0] for training in self._trainings):
            return
        if is_recorded(models[0]):  # by track() or a framework's callback
            return
        try:
            self._trainings.append(FollowedTraining(models[0], self._recording, self._boundary))
        except RecordingError as error:
            logger.info("Not recorded: %s", error)

    def _step(self, optimizer: Optimizer, closure: bool) -> None:
        counting = (t for t in self._trainings if t.recorder.counts(optimizer, forward_to_come=closure))
        training = next(counting, None)
        if training is None:
            return
        if is_recorded(training.recorder.model, besides=training.recorder):
            self._drop(training, "it is recorded by an explicit tracker or a framework's callback")
            return
        new_epoch = training.finder.step()
        if training is not self._active and not self._take_over(training, new_epoch):
            training.step(optimizer, closure=closure)
            return
        if self._rival_stepped:
            self._dismiss_rivals(training)
        if new_epoch:
            self._close_epoch(training)
        training.step(optimizer, closure=closure)
        if training.finder.lost:
            self._decline(training, _NO_LOADER)

    def _take_over(self, training: FollowedTraining, new_epoch: bool) -> bool:
        """Whether this training is the one to record from now on."""
        if self._active is None:
            return self._begin(training)
        run = mlflow.active_run()
        elsewhere = run is not None and run.info.run_id not in self._used_runs
        if not (elsewhere or new_epoch or training.steps >= RIVAL_STEPS):
            self._rival_stepped = True
            return False
        if self._active.epochs == 0 and not self._active.finder.complete:
            logger.info("%d steps of %s are not recorded: another training began before an epoch was complete.",
                        self._active.steps, self._active.name)  # fmt: skip
            self._active.forget()
        self._finish("FINISHED")
        return self._begin(training)

    def _begin(self, training: FollowedTraining) -> bool:
        run = mlflow.active_run()
        self._bound_run = None if run is None else run.info.run_id
        if run is not None and self._exclusive:
            self._drop(training, "exclusive=True and a run of your own is active")
            return False
        if self._bound_run in self._used_runs:
            self._drop(training, "the active run holds another model's dynamics; start a run for each")
            return False
        self._active = training
        self._rival_stepped = False
        return True

    def _dismiss_rivals(self, active: FollowedTraining) -> None:
        """Two models are trained in turn (a GAN): only the one that made the first step is recorded."""
        self._rival_stepped = False
        for rival in [t for t in self._trainings if t is not active and t.steps > 0]:
            self._drop(rival, f"it is trained in turn with {active.name}, whose dynamics are; {EXPLICIT}")

    def _close_epoch(self, training: FollowedTraining) -> None:
        if self._tracker is None:
            self._tracker = self._open(training)
        rate = training.learning_rate
        training.recorder.averages = {_METRICS[key]: value for key, value in training.close_epoch().items()}
        metrics = {} if rate is None else {names.LEARNING_RATE: float(rate)}
        self._tracker.end_epoch(**metrics)

    def _open(self, training: FollowedTraining) -> Tracker:
        if not writes_run(training.model):
            return Tracker(training.recorder, NoRun(), measures=self._measures, monitor=None, close=None)
        run = OpenedRun(self._bound_run, owned=False) if self._bound_run is not None else open_run()
        self._used_runs.add(run.run_id)
        finder = training.finder
        logger.info(
            "Recording %s (%d layers) into run %s. Epochs: passes over the DataLoader it is trained on, %s%s.",
            training.name,
            len(training.recorder.layers),
            run.run_id,
            "of unknown length" if finder.length is None else f"{finder.length} batches each",
            "; of several drawn in turn, the first" if finder.several else "",
        )
        if self._early_stopping == "stop":
            logger.warning(
                "early_stopping='stop' only warns here: autolog cannot end a loop that is not its own. Ask "
                "tracker.should_stop of mlflow_dynamics.track(model, early_stopping='stop') in your loop, or pass a "
                "framework's trainer the DynamicsCallback of mlflow_dynamics.integrations."
            )
        writer = RunWriter(run.run_id)
        monitor = None if self._early_stopping == "off" else ConvergenceMonitor(mode=self._early_stopping)
        return Tracker(
            training.recorder,
            writer,
            measures=self._measures,
            monitor=monitor,
            close=closing(writer, owned=run.owned),
            log_every_n_epoch=self._log_every_n_epoch,
        )

    def _finish(self, status: str) -> None:
        """The active training is over."""
        training, self._active = self._active, None
        if training is None:
            rivals = [t for t in self._trainings if t.steps > 0]
            training = rivals[0] if rivals and self._begin(rivals[0]) else None
            self._active = None
        if training is None:
            return
        if training.steps > 0 and status == "FINISHED" and training.recorder.failure is None:
            if training.finder.primary is None:
                self._decline(training, _NO_LOADER)
            else:
                self._close_epoch(training)
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close(status)
        training.remove()
        if training in self._trainings:
            self._trainings.remove(training)

    def _decline(self, training: FollowedTraining, reason: str) -> None:
        logger.warning("The dynamics of %s are not recorded: %s; %s.", training.name, reason, EXPLICIT)
        self._abandon(training)

    def _drop(self, training: FollowedTraining, reason: str) -> None:
        logger.info("%s is not recorded: %s.", training.name, reason)
        self._abandon(training)

    def _abandon(self, training: FollowedTraining) -> None:
        training.remove()
        training.steps = 0
        self._trainings.remove(training)
        if training is self._active:
            self._active = None

    def _detach(self) -> None:
        for attached in self._attached:
            attached.remove()
        self._attached = []
        for training in self._trainings:
            training.remove()
        self._trainings = []


class _LogLines:
    """Shows this package's log lines where the script has set up no logging, as MLflow does; or hides them."""

    def __init__(self, silent: bool) -> None:
        self._logger = logging.getLogger("mlflow_dynamics")
        self._level = self._logger.level
        self._handler: logging.Handler | None = None
        if silent or not first_process():
            self._logger.setLevel(logging.ERROR)
        elif not self._logger.hasHandlers():
            self._handler = logging.StreamHandler()
            # Processes that are not started by torchrun learn their rank later.
            self._handler.addFilter(lambda line: line.levelno >= logging.ERROR or first_process())
            self._handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
            self._logger.addHandler(self._handler)
            self._logger.setLevel(logging.INFO)

    def remove(self) -> None:
        """Leave logging as it was."""
        if self._handler is not None:
            self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)
