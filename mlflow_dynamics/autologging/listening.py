"""What torch, MLflow and the process tell while `autolog()` is on, passed on to the trainings."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import mlflow
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mlflow_dynamics.autologging.cells import Cells
from mlflow_dynamics.autologging.log_lines import LogLines
from mlflow_dynamics.autologging.process_end import ProcessEnd
from mlflow_dynamics.autologging.recorded_run import AutologConfig
from mlflow_dynamics.autologging.runs import Runs
from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.autologging.trainings import Trainings
from mlflow_dynamics.recording.alive import alive
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Call, CriterionWatch, Origin
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.recording.loaders import LoaderWatch
from mlflow_dynamics.recording.losses import FOREIGN
from mlflow_dynamics.recording.patching import Patch, places_of
from mlflow_dynamics.recording.schedule import SchedulerWatch
from mlflow_dynamics.session import status_after

logger = logging.getLogger(__name__)

_NOTHING: Final = (
    "Nothing was recorded: torch's hooks saw no forward pass, in training mode and with gradients, of a module whose "
    "parameters an optimizer of torch.optim then stepped."
)


class Autologging:
    """Everything `autolog()` has switched on."""

    def __init__(self, config: AutologConfig) -> None:
        self._trained = False
        self._logs = LogLines(config.silent)
        self._boundary = Boundary(self._detach)
        optimizers: list[Optimizer] = alive(Optimizer)
        schedulers = SchedulerWatch(self._boundary, first=not optimizers)
        script_metrics = ScriptMetrics(self._boundary)
        self._trainings = Trainings(
            config.recording, self._boundary, Runs(config, schedulers, script_metrics)
        )
        notices: dict[Callable[..., Any], Callable[[Mapping[str, Any]], None]] = {
            mlflow.start_run: self._trainings.run_begins,
            mlflow.end_run: self._trainings.run_ends,
        }
        self._attached: list[Any] = [
            schedulers,
            script_metrics,
            LoaderWatch(self._trainings.batch, self._boundary),
            CriterionWatch(self, self._boundary),
            Patch(Optimizer, "__init__", self._around_optimizer),
            *(
                Patch(module, name, functools.partial(self._around_run, notices[function]))
                for module, name, function in places_of(*notices)
            ),
            register_optimizer_step_pre_hook(torch.compiler.disable(self._before_step)),
            Cells(self._cell_begun, self._cell_ended),
        ]
        self._process = ProcessEnd(self.close, self._forked)
        for optimizer in optimizers:
            self._boundary.run(self._trainings.follow, optimizer)

    def close(self, status: str) -> None:
        """Record the open epoch unless the script failed in the middle of it, end our run, and undo everything."""
        self._boundary.run(self._trainings.finish, status)
        if self._trained and not self._trainings.told and self._boundary.failure is None:
            logger.info(_NOTHING)
        self._detach()
        self._trainings.runs.end(status)  # still open where recording failed earlier
        self._process.remove()
        self._logs.remove()

    def _around_optimizer(self, original: Any) -> Any:
        def construct(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            self._boundary.run(self._trainings.follow, optimizer)

        return construct

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._process.not_yet()
        self._trained = True
        closure = len(args) > 1 and args[1] is not None  # the first argument is the optimizer
        self._boundary.run(self._trainings.step, optimizer, closure or kwargs.get("closure") is not None)

    def origin_of(self, values: Tensor) -> Origin | None:
        """The training whose model returned these values lately."""
        return self._trainings.origin_of(values)

    def evaluated(self, call: Call | None) -> None:
        """A criterion was evaluated."""
        if call is None:
            for training in self._trainings.here():
                training.losses.evaluated_in_vain(FOREIGN)
        elif isinstance(call.owner, FollowedTraining):
            call.owner.evaluated(call)

    def differentiated(self, call: Call | None) -> None:
        """Backward was called."""
        self._trained = True
        for training in self._trainings.here():
            training.differentiated(call)

    def _cell_begun(self) -> None:
        self._boundary.run(self._trainings.resume)

    def _cell_ended(self, error: BaseException | None) -> None:
        self._process.not_yet()
        self._boundary.run(self._trainings.pause, status_after(error))

    def _forked(self) -> None:
        self._trained = False
        self._boundary.run(self._trainings.leave_to_the_parent)

    def _around_run(self, notice: Callable[[Mapping[str, Any]], None], original: Any) -> Any:
        """`notice` hears of each call of MLflow's function before it, with the arguments that are given."""

        def hear(args: Any, kwargs: Any) -> None:
            notice(inspect.signature(original).bind(*args, **kwargs).arguments)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._boundary.run(hear, args, kwargs)
            return original(*args, **kwargs)

        return call

    def _detach(self) -> None:
        for attached in self._attached:
            attached.remove()
        self._attached = []
        self._trainings.let_go()
