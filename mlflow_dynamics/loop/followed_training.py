"""One model that a script is training: its recorder, its epochs, its losses."""

from __future__ import annotations

import logging
import threading
import weakref
from array import array
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.loop.epochs import EpochFinder
from mlflow_dynamics.loop.events import LoaderGone, PassEnded
from mlflow_dynamics.loop.loss_log import LossLog
from mlflow_dynamics.loop.losses import FOREIGN, IN_TRAINING_MODE, LOADED, UNDRAWN
from mlflow_dynamics.loop.outputs import LastOutputs, holders, reshapes
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Call, Origin, claim
from mlflow_dynamics.recording.hooks import Traceless
from mlflow_dynamics.recording.recorder import Recorder
from mlflow_dynamics.recording.torch_private import norms, untraced
from mlflow_dynamics.text import printable

logger = logging.getLogger(__name__)

_FEW_STEPS: Final = 3
"""The number of steps in evaluation mode at which the user is warned: so many are no accident."""

_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class FollowedTraining:
    """A training that is followed without the script's help: its recorder, and what is known of its epochs and losses.

    Attributes:
        model: the model.
        recorder: the recorder attached to the model.
        finder: finds the training's epochs.
        thread: the thread that made the last step.
        losses: the losses, known from the model's criterion calls.
        steps: the number of training steps in the open epoch.
        epochs: the number of epochs closed so far.
        shortest: the number of training steps in the shortest of the closed epochs.
        optimizers: the optimizers made for the model that are alive.
        in_place: this model is followed in place of a module that is never called itself.
        set_back: the weights are again, after an epoch or more, what they were before the first step.
        replaced: the weights were loaded after the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RecordingConfig,
        boundary: Boundary,
        new_finder: Callable[[], EpochFinder] = EpochFinder,
    ) -> None:
        self.model = model
        self.name = printable(type(model).__name__)
        self.recorder = Recorder(model, config)
        self._new_finder = new_finder
        self.finder = new_finder()
        self.losses = LossLog()
        self.thread = threading.current_thread()
        self.steps = 0
        self.epochs = 0
        self.shortest: int | None = None
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.in_place = False
        self.set_back = False
        self.replaced = False
        self._in_evaluation_mode = 0
        self._drawn: Pass | None = None
        # For each step of the open epoch, its number and its learning rate (NaN if there is none).
        self._numbers, self._rates = array("q"), array("d")
        self._untrained: Tensor | None = None
        self._boundary = boundary
        self._outputs = LastOutputs(holders(self.recorder.model), untraced(self._returned), boundary)
        self._unowned = WeakTensorKeyDictionary()
        self._handles = [
            *self._outputs.handles,
            self.recorder.model.register_load_state_dict_post_hook(_Loaded(self)),
        ]

    def owns(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer was made for parameters of this model alone; such an optimizer is remembered."""
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
        self._drawn = drawn
        self.finder.batch(drawn.latest, training=self.training)

    def ended(self, event: PassEnded | LoaderGone) -> None:
        """A pass or a loader has ended."""
        self.finder.end(event)

    def origin_of(self, values: Tensor) -> Origin | None:
        """This training, if its model returned these values lately, perhaps in another shape of the same samples."""
        for reference, alone, evaluating in self._outputs.outputs:
            output = reference()
            if output is not None and (values is output or reshapes(values, output)):
                return Origin(self, output, alone, evaluating)
        return None

    def differentiated(self, call: Call | None) -> None:
        """Backward was called on a criterion's value (`call`), or on something else (None)."""
        self.finder.backward()
        # Calls on another model's output are not kept: they would pile up while this model makes no step.
        self.losses.differentiated(call if call is not None and call.owner is self else None, self._drawn)

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated, on the batch drawn last."""
        drawn = self._drawn
        # An evaluation before the first step of the open epoch does not belong to that epoch.
        if self.steps == 0 or drawn is None:
            return
        if self.replaced:
            self.losses.evaluation_rejected(LOADED)
        elif not call.evaluating:
            self.losses.evaluation_rejected(IN_TRAINING_MODE)
        elif drawn.loader == self.finder.primary:
            self.losses.evaluation_rejected(UNDRAWN)
        else:
            self.losses.evaluated(call, drawn)

    def unowned(self, call: Call, value: Tensor) -> None:
        """A criterion had this value on an input that no known model returned: the model may yet return the value."""
        if torch.is_grad_enabled():  # the graph leads from the value to the call
            return
        self.losses.evaluation_rejected(FOREIGN)
        self._unowned[value] = call

    def _returned(self, value: Tensor, evaluating: bool) -> None:
        """The model returned a single number, which may be the value of a criterion that the model called itself."""
        call = claim(value, self, evaluating=evaluating)
        unowned: Call | None = self._unowned.pop(
            value, None
        )  # counted once: a part of the model may have returned the value to the model
        if unowned is not None:
            call = replace(unowned, owner=self, evaluating=evaluating)
        if call is not None and (evaluating or not torch.is_grad_enabled()):
            self.evaluated(call)

    def step(self, optimizer: Optimizer, *, closure: bool) -> None:
        """Count a step to the open epoch, with the losses it is made on; a closure's losses are still to come."""
        if self.steps == 0 and self.epochs == 0:
            self._untrained = fingerprint(self.recorder.model)
            self._outputs.evaluated = (
                False  # an earlier call was no validation, but a summary of the model, say
            )
        self.steps += 1
        self.replaced = False
        self.losses.step(
            optimizer,
            closure=closure,
            perhaps_begins=self.finder.perhaps_begins,
            settled=self.finder.open_from is None,
        )
        rate = optimizer.param_groups[0].get("lr")
        self._numbers.append(self.recorder.step)
        self._rates.append(rate if isinstance(rate, float | int) else nan)

    def step_not_counted(self, optimizer: Optimizer) -> None:
        """An optimizer makes a step that does not belong to this training, or that is made in evaluation mode."""
        outputs = self._outputs.outputs
        if optimizer not in self.optimizers or not outputs or not outputs[0].evaluating:
            return
        self._in_evaluation_mode += 1
        if self._in_evaluation_mode == _FEW_STEPS:
            logger.warning(
                "Steps of %s are made in evaluation mode and are not recorded: call model.train() before each epoch.",
                self.name,
            )

    @property
    def evaluated_in_epoch(self) -> bool:
        """Whether the model was in evaluation mode in the open epoch."""
        return self._outputs.evaluated

    def close_epoch(self, late: int) -> tuple[float | None, dict[str, tuple[float, float]]]:
        """Begin a new epoch. Returns the ended epoch's learning rate, and its losses that are known with certainty.

        Each loss is (sum, samples). Waits for the device once.

        Args:
            late: the number of steps already made that belong to the new epoch.
        """
        made = self.steps - late
        if late:
            self.recorder.epoch_end = self._numbers[made]
        rate = self._rates[made - 1]
        del self._numbers[:made], self._rates[:made]
        self.shortest = made if self.shortest is None else min(self.shortest, made)
        self.steps = late
        self.epochs += 1
        evaluated, self._outputs.evaluated = self._outputs.evaluated, False
        return None if isnan(rate) else rate, self.losses.close(late, evaluated=evaluated)

    def forget(self) -> None:
        """Drop the open epoch and everything learned about the loop."""
        self.recorder.discard()
        self.finder = self._new_finder()
        self.losses.forget()
        del self._numbers[:], self._rates[:]
        self.steps = 0
        self.shortest = None
        self.set_back = self.replaced = False

    def remove(self) -> None:
        """Detach from the model."""
        self.recorder.remove()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def restored(self) -> None:
        """The model's weights were replaced."""
        self.replaced = self.steps > 0
        if self.epochs == 0 and not self.finder.complete:
            return
        if self._untrained is not None:
            weights = fingerprint(self.recorder.model)
            self.set_back = weights is not None and torch.equal(weights, self._untrained)


def fingerprint(model: nn.Module) -> Tensor | None:
    """The norm of each of the model's weights, on their device; None if they are not plain tensors on one device."""
    parameters = [parameter for parameter in model.parameters() if not is_lazy(parameter)]
    if any(type(one) is not nn.Parameter or one.is_meta or one.is_sparse for one in parameters):
        return None
    weights = [parameter.detach() for parameter in parameters if parameter.dtype in _FLOATS]
    if len({weight.device for weight in weights}) != 1:
        return None
    if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    return torch.stack([norm.float() for norm in norms(weights)])


class _Loaded(Traceless):
    """The hook after `load_state_dict`."""

    def __init__(self, training: FollowedTraining) -> None:
        self._training = training

    def __call__(self, module: nn.Module, keys: Any) -> None:
        self._training._boundary.run(self._training.restored)
