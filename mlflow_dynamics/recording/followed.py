"""One model that a script is training: its recorder, its epochs, its losses."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Call, Origin
from mlflow_dynamics.recording.epochs import EpochFinder
from mlflow_dynamics.recording.hooks import Traceless, first_tensor, never_compile_alone, not_computing
from mlflow_dynamics.recording.loaders import Pass
from mlflow_dynamics.recording.losses import IN_TRAINING_MODE, LOADED, UNDRAWN, Losses
from mlflow_dynamics.recording.recorder import Recorder

logger = logging.getLogger(__name__)

_OUTPUTS: Final = 8
"""So many outputs of a model are remembered: of several views of a batch, say."""

_FEW_STEPS: Final = 3
"""So many in evaluation mode are no accident."""

_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _Output(NamedTuple):
    """What a model returned: a tensor, whether that was all, and whether in evaluation mode."""

    tensor: weakref.ref[Tensor]
    alone: bool
    evaluating: bool


class LastOutputs(Traceless):
    """A forward hook that knows the tensors which the model returned lately.

    Attributes:
        outputs: the last ones, the very last first.
        evaluated: the model was in evaluation mode once, since this was set to False.
    """

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary
        self.outputs: deque[_Output] = deque(maxlen=_OUTPUTS)
        self.evaluated = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.boundary.run(self._remember, module, output)

    def _remember(self, module: nn.Module, output: Any) -> None:
        self.evaluated |= not module.training
        tensor = first_tensor(output)
        if tensor is not None:
            self.outputs.appendleft(_Output(weakref.ref(tensor), tensor is output, not module.training))


never_compile_alone(LastOutputs)


class _Before(NamedTuple):
    """What came before a step that perhaps began a new epoch."""

    step: int
    learning_rate: float | None


class FollowedTraining:
    """What is known of a training without the script's help, on top of its recorder.

    Attributes:
        model: the model.
        recorder: attached to it.
        finder: where its epochs are.
        thread: in which it is trained.
        losses: from its criterion calls.
        steps: training steps of the open epoch.
        epochs: closed so far.
        learning_rate: of the optimizer's first group at the last step.
        optimizers: those alive that were made for the model.
        in_place: of another model, which was not called.
        set_back: the weights are, after an epoch or more, what they were before the first step.
        replaced: they were loaded after the last step.
        left: how the last notebook cell that trained it ended, as a run's status.
    """

    def __init__(self, model: nn.Module, config: RecordingConfig, boundary: Boundary) -> None:
        self.model = model
        self.name = type(model).__name__
        self.recorder = Recorder(model, config)
        self.finder = EpochFinder()
        self.losses = Losses()
        self.thread = threading.current_thread()
        self.steps = 0
        self.epochs = 0
        self.learning_rate: float | None = None
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.in_place = False
        self.set_back = False
        self.replaced = False
        self.left = "FINISHED"
        self._in_evaluation_mode = 0
        self._epochs_before_cell: int | None = None
        self._drawn: Pass | None = None
        self._before: _Before | None = None
        self._untrained: Tensor | None = None
        self._boundary = boundary
        self._outputs = LastOutputs(boundary)
        self._handles = [
            self.recorder.model.register_forward_hook(self._outputs),
            self.recorder.model.register_load_state_dict_post_hook(_Loaded(self)),
        ]

    def owns(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer was made for parameters of this model alone; if so, it is kept in mind."""
        if not self.recorder.holds(optimizer):
            return False
        self.optimizers.add(optimizer)
        return True

    @property
    def training(self) -> bool:
        """Whether the model is in training mode, with gradients."""
        return torch.is_grad_enabled() and self.recorder.model.training

    def batch(self, drawn: Pass) -> None:
        """A batch was drawn from some loader."""
        if self.replaced and self.training and self.epochs == 0 and not self.finder.goes_on(drawn):
            self._rehearsed()
        self._drawn = drawn
        self.finder.batch(drawn, training=self.training)

    def origin_of(self, values: Tensor) -> Origin | None:
        """The model, if it returned these values lately, perhaps in another shape, sample by sample."""
        for reference, alone, evaluating in self._outputs.outputs:
            output = reference()
            if output is not None and (values is output or _reshapes(values, output)):
                return Origin(self, output, alone, evaluating)
        return None

    def differentiated(self, call: Call | None) -> None:
        """Backward was called on a criterion's value, or on something that is not known to be one of ours."""
        self.finder.backward()
        # Another model's calls are not kept: while this one makes no step they would add up.
        self.losses.differentiated(call if call is not None and call.owner is self else None, self._drawn)

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated, on the batch drawn last."""
        drawn = self._drawn
        # Not before the first step, of an epoch that is closed, or of other weights than the last step's.
        if self.steps == 0 or drawn is None:
            return
        if self.replaced:
            self.losses.evaluated_in_vain(LOADED)
        elif not call.evaluating:
            self.losses.evaluated_in_vain(IN_TRAINING_MODE)
        elif drawn.loader == self.finder.primary:
            self.losses.evaluated_in_vain(UNDRAWN)
        else:
            self.losses.evaluated(call, drawn)

    def step(self, optimizer: Optimizer, *, closure: bool) -> None:
        """Take a step into the open epoch, with the losses behind it; those of a closure are still to come."""
        if self.finder.undecided == 1:
            self._before = _Before(self.recorder.step, self.learning_rate)
            self.losses.part()
        elif self.finder.undecided == 0:
            self._before = None
            self.losses.rejoin()
        if self.steps == 0 and self.epochs == 0:
            self._untrained = fingerprint(self.recorder.model)
            self._outputs.evaluated = False  # a summary of the model, say
        self.steps += 1
        self.replaced = False
        if self._epochs_before_cell is None:
            self._epochs_before_cell, self.left = self.epochs, "FINISHED"
        self.losses.step(optimizer, closure=closure)
        rate = optimizer.param_groups[0].get("lr")
        self.learning_rate = rate if isinstance(rate, float | int) else None

    def step_not_counted(self, optimizer: Optimizer) -> None:
        """An optimizer makes a step that is none of this training, or is made in evaluation mode."""
        outputs = self._outputs.outputs
        if optimizer not in self.optimizers or not outputs or not outputs[0].evaluating:
            return
        self._in_evaluation_mode += 1
        if self._in_evaluation_mode == _FEW_STEPS:
            logger.warning(
                "Steps of %s are made in evaluation mode and are not recorded: call model.train() before each epoch.",
                self.name,
            )

    def pause(self, status: str) -> bool:
        """A notebook's cell is over, with this status; whether the open epoch is complete.

        One that was not evaluated stays open for the next cell to do that, unless it is not the cell's first; so does
        one of which an evaluation goes on or has failed. A first epoch that was left early may be a rehearsal.
        """
        before, self._epochs_before_cell = self._epochs_before_cell, None
        if before is not None:
            self.left = status
        if self.steps == 0 or self.recorder.failure is not None or not self.finder.ended:
            return False
        if before == self.epochs and not self._outputs.evaluated:
            return False
        if any(
            one.unfinished or (status != "FINISHED" and not one.complete) for one in self.losses.evaluations
        ):
            return False
        rehearsal = self.epochs == 0 and not self.finder.complete
        return self.finder.whole or (status == self.left == "FINISHED" and not rehearsal)

    @property
    def trained_in_cell(self) -> bool:
        """Whether a step was made since the last pause."""
        return self._epochs_before_cell is not None

    def close_epoch(self, late: int) -> tuple[float | None, dict[str, tuple[float, float]]]:
        """Begin a new epoch; the last one's learning rate, and what is known with certainty of its losses.

        These are (sum, samples) each. Waits for the device once.

        Args:
            late: so many steps belong to the new one already.
        """
        before = self._before if late else None
        rate = self.learning_rate
        if before is not None:
            self.recorder.epoch_end, rate = before.step, before.learning_rate
        self._before = None
        self.steps = late
        self.epochs += 1
        evaluated, self._outputs.evaluated = self._outputs.evaluated, False
        return rate, self.losses.close(before_part=before is not None, evaluated=evaluated)

    def forget(self) -> None:
        """Drop the open epoch and everything learned about the loop."""
        self.recorder.discard()
        self.finder = EpochFinder()
        self.losses.forget()
        self._before = None
        self.steps = 0
        self.set_back = self.replaced = False

    def remove(self) -> None:
        """Detach from the model."""
        self.recorder.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _rehearsed(self) -> None:
        """The weights were replaced in a first epoch, and its pass was left: its steps were no part of a training."""
        self.replaced = False
        if not self.finder.complete:
            logger.info(
                "The first %d training steps of %s are not recorded: its weights were restored after them, as a "
                "learning-rate finder does.",
                self.steps,
                self.name,
            )
            self.forget()

    def restored(self) -> None:
        """The model's weights were replaced."""
        self.replaced = self.steps > 0
        if self.epochs == 0 and not self.finder.complete:
            return
        if self._untrained is not None:
            weights = fingerprint(self.recorder.model)
            self.set_back = weights is not None and torch.equal(weights, self._untrained)


def fingerprint(model: nn.Module) -> Tensor | None:
    """The norm of each of the model's weights, on their device; None where one is not a plain tensor there."""
    parameters = [parameter for parameter in model.parameters() if not is_lazy(parameter)]
    if any(type(one) is not nn.Parameter or one.is_meta or one.is_sparse for one in parameters):
        return None
    weights = [parameter.detach() for parameter in parameters if parameter.dtype in _FLOATS]
    if len({weight.device for weight in weights}) != 1:
        return None
    if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    return torch.stack([norm.float() for norm in torch._foreach_norm(weights)])


def _reshapes(values: Tensor, output: Tensor) -> bool:
    """Whether these are all elements of the output, in the same memory and order, with the same first dimension."""
    if values.shape[:1] != output.shape[:1] or values.numel() != output.numel():
        return False
    if values.dtype != output.dtype or values.is_sparse or not_computing(values) or not_computing(output):
        return False
    return values.is_contiguous() and output.is_contiguous() and values.data_ptr() == output.data_ptr()


class _Loaded(Traceless):
    """The hook after `load_state_dict`."""

    def __init__(self, training: FollowedTraining) -> None:
        self._training = training

    def __call__(self, module: nn.Module, keys: Any) -> None:
        self._training._boundary.run(self._training.restored)
