"""Passes on to the trainings what torch, MLflow and the process tell while `autolog()` is on."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import mlflow
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mlflow_dynamics.autologging.cells import Cells
from mlflow_dynamics.autologging.log_lines import LogLines
from mlflow_dynamics.autologging.recorded_run import AutologConfig
from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.autologging.trainings import Trainings
from mlflow_dynamics.loop.epochs import EpochFinder
from mlflow_dynamics.loop.followed_training import FollowedTraining
from mlflow_dynamics.loop.replay import LoopLog
from mlflow_dynamics.loop.sources import LoaderWatch
from mlflow_dynamics.process_end import ProcessEnd, status_after
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Call, CriterionWatch, Origin
from mlflow_dynamics.recording.instances import instances_of
from mlflow_dynamics.recording.patching import Patch, places_of
from mlflow_dynamics.recording.torch_private import untraced

logger = logging.getLogger(__name__)

_NOTHING: Final = (
    "Nothing was recorded: torch's hooks saw no forward pass, in training mode and with gradients, of a module whose "
    "parameters an optimizer of torch.optim then stepped."
)


class Autologging:
    """Everything `autolog()` has switched on."""

    def __init__(self, config: AutologConfig) -> None:
        self._trained = False
        self._loop_log = None if config.loop_log is None else LoopLog(config.loop_log)
        self._logs = LogLines(config.silent)
        self._boundary = Boundary(self._detach)
        optimizers: list[Optimizer] = instances_of(Optimizer)
        script_metrics = ScriptMetrics(self._boundary)
        self._trainings = Trainings(
            config,
            self._boundary,
            EpochFinder if self._loop_log is None else self._loop_log.finder,
            script_metrics,
        )
        notices: dict[Callable[..., Any], Callable[[Mapping[str, Any]], None]] = {
            mlflow.start_run: self._trainings.run_begins,
            mlflow.end_run: self._trainings.run_ends,
        }
        self._attached: list[Any] = [
            script_metrics,
            LoaderWatch(self._trainings.batch, self._trainings.ended, self._boundary),
            CriterionWatch(self, self._boundary),
            Patch(Optimizer, "__init__", after=self._optimizer_made),
            *(
                Patch(module, name, before=self._before_run(function, notices[function]))
                for module, name, function in places_of(*notices)
            ),
            register_optimizer_step_pre_hook(untraced(self._before_step)),
            Cells(self._cell_begun, self._cell_ended),
        ]
        self._process = ProcessEnd(self.close, self._forked, on_sigterm=config.on_sigterm)
        for optimizer in optimizers:
            self._boundary.run(self._trainings.follow, optimizer)

    def switch_off(self) -> None:
        """Record the open epoch, end our run, and undo everything."""
        try:
            self._boundary.run(self._trainings.finish)
        finally:
            self._undo("FINISHED")

    def close(self, status: str | None) -> None:
        """Likewise when the script has ended, with this status (None: not known). An epoch that was cut is left out."""
        try:
            self._boundary.run(self._trainings.script_ended, status)
        finally:
            self._undo(status or "FINISHED")

    def _undo(self, status: str) -> None:
        if self._trained and not self._trainings.told and self._boundary.failure is None:
            logger.info(_NOTHING)
        self._detach()
        self._trainings.end_run(status)  # the run is still open if recording failed earlier
        self._process.remove()
        if self._loop_log is not None:
            self._loop_log.close()
        self._logs.remove()

    def _optimizer_made(self, _: None, optimizer: Optimizer, /, *args: Any, **kwargs: Any) -> None:
        self._boundary.run(self._trainings.follow, optimizer)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._process.not_yet()
        self._trained = True
        closure = len(args) > 1 and args[1] is not None  # the first argument is the optimizer
        self._boundary.run(self._trainings.step, optimizer, closure or kwargs.get("closure") is not None)

    def origin_of(self, values: Tensor) -> Origin | None:
        """The training whose model returned these values lately."""
        return self._trainings.origin_of(values)

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated."""
        if isinstance(call.owner, FollowedTraining):
            call.owner.evaluated(call)

    def unowned(self, call: Call, value: Tensor) -> None:
        """A criterion had this value on an input that no known model returned."""
        for training in self._trainings.here():
            training.unowned(call, value)

    def differentiated(self, call: Call | None) -> None:
        """Backward was called."""
        self._trained = True
        for training in self._trainings.here():
            training.differentiated(call)

    def _cell_begun(self) -> None:
        self._boundary.run(self._trainings.cell_begun)

    def _cell_ended(self, error: BaseException | None) -> None:
        self._process.not_yet()
        self._boundary.run(self._trainings.cell_ended, status_after(error))

    def _forked(self) -> None:
        self._trained = False
        self._boundary.run(self._trainings.forked)

    def _before_run(
        self, function: Callable[..., Any], notice: Callable[[Mapping[str, Any]], None]
    ) -> Callable[..., None]:
        """A function that calls `notice`, before each call of MLflow's function, with the arguments of that call."""

        def hear(args: Any, kwargs: Any) -> None:
            notice(inspect.signature(function).bind(*args, **kwargs).arguments)

        def before(*args: Any, **kwargs: Any) -> None:
            self._boundary.run(hear, args, kwargs)

        return before

    def _detach(self) -> None:
        for attached in self._attached:
            attached.remove()
        self._attached = []
        self._trainings.let_go()
