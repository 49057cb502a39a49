"""The recorder: attaches to a model, counts its training steps, hands over each epoch's activations."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.device_memory import StepHistory
from mlflow_dynamics.recording.distributed import Averages, Exchange, join
from mlflow_dynamics.recording.hooks import (
    ForwardPass,
    ForwardPassEnd,
    LayerHook,
    NormHook,
    forget_copied_hooks,
    never_compile_alone,
)
from mlflow_dynamics.recording.layers import choose_layers, type_name, unwrap
from mlflow_dynamics.recording.normalisation import NORMS
from mlflow_dynamics.recording.pending_epoch import PendingEpoch
from mlflow_dynamics.recording.scripting import Scriptable
from mlflow_dynamics.recording.torch_private import any_compiled, forget_compiled, set_to_zero, untraced
from mlflow_dynamics.records import Layer
from mlflow_dynamics.text import printable

logger = logging.getLogger(__name__)


class Recorder:
    """Records mean and standard deviation of each chosen layer's output at every training step.

    A training step is one `step()` of an optimizer that owns parameters of the model, after a training
    forward; what is recorded are the activations of the last training forward before it (the last micro-batch
    under gradient accumulation). Several calls of a layer within one forward are pooled as if their outputs
    were one tensor, each call with equal weight. Forwards in eval mode, without gradients or inside backward
    do not count, nor does a step that `GradScaler` skips. Of a model that several processes train, the writing
    rank's epochs hold the statistics of the global batch: every rank's part with equal weight.

    Attributes:
        exchange: with the other processes that train the model; None before the first step, and where there are none.
        averages: of the open epoch, to be taken over all ranks.
        epochs_ended: so many epochs were handed over.
        epoch_end: the step before which the open epoch was over, where that is known late; None where it is now.

    Nothing is attached to parameters, buffers or the optimizer object. Use as a context manager, or call
    `remove()`.

    Args:
        model: the model being trained, also wrapped by torch.compile or (Distributed)DataParallel.
        config: which layers, and how much of each batch.
        optimizer: count only this one's steps; None counts those of any that owns parameters of the model.
        start_step: the number of the first step, for a resumed training.

    Raises:
        ConfigError: a layer pattern matches nothing.
        RecordingError: the model has no layer to record.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RecordingConfig,
        *,
        optimizer: Optimizer | None = None,
        start_step: int = 0,
    ) -> None:
        self.model = unwrap(model)
        self.config = config
        self.step = start_step
        self._epoch_start = start_step
        self._boundary = Boundary(self.remove)
        self._history = StepHistory()
        self._optimizer = optimizer
        self._owners: WeakKeyDictionary[Optimizer, tuple[int, bool]] = WeakKeyDictionary()
        self._layers: tuple[Layer, ...] | None = None
        self._order: list[int] = []
        self._dead_reported = False
        self._joined = False
        self.exchange: Exchange | None = None
        self.averages: Averages = {}
        self.epochs_ended = 0
        self.epoch_end: int | None = None

        self._chosen = choose_layers(self.model, config)
        forget_copied_hooks(self.model)
        self._forward = ForwardPass(self.model, config.batch_samples, self._boundary)
        norms = [module for module in self.model.modules() if isinstance(module, NORMS)]
        self._hooks = [
            LayerHook(position, self._forward, _device_of(module, self.model))
            for position, (_, module) in enumerate(self._chosen)
        ]
        self._handles: list[Any] = [
            self.model.register_forward_pre_hook(self._forward),
            # Before the layers' own, since a norm may be one: the layer before it comes first.
            *(norm.register_forward_hook(NormHook(self._forward)) for norm in norms),
            *(
                module.register_forward_hook(hook)
                for (_, module), hook in zip(self._chosen, self._hooks, strict=True)
            ),
            self.model.register_forward_hook(ForwardPassEnd(self._forward)),
            # Traced with a step that is compiled it would have it compiled anew each time.
            register_optimizer_step_post_hook(untraced(self._after_step)),
            Scriptable(),
        ]
        _forget_compiled_graphs()

    @property
    def failure(self) -> Exception | None:
        """What stopped the recording, or None; training is never told."""
        return self._boundary.failure

    @property
    def called(self) -> bool:
        """Whether the model itself has made a training forward, not only layers of it."""
        return self._forward.called

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The recorded layers in forward order; final from the first `end_epoch` on, empty before that."""
        if self._layers is not None:
            return self._layers
        return self._describe(self._forward.seen)

    @property
    def chosen_layers(self) -> tuple[Layer, ...]:
        """The layers to be recorded, as the model lists them; of what shape their output is may not be known yet."""
        return self._describe([*range(len(self._chosen))])

    @property
    def open_steps(self) -> int:
        """How many training steps the open epoch has."""
        return self.step - self._epoch_start

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those whose steps are counted; final from the first step on, unless others join later."""
        if self._optimizer is not None:
            return [self._optimizer]
        return [optimizer for optimizer, (_, owns) in self._owners.items() if owns]

    def end_epoch(self, epoch: int) -> PendingEpoch:
        """Hand over what was recorded since the last call as epoch `epoch`; cheap, waits for nothing.

        After a failure of the recording the epoch is empty: half an epoch would be a wrong one.
        """
        if self._layers is None:
            unseen = [hook.position for hook in self._hooks if not hook.known]
            self._order = [*self._forward.seen, *unseen]
            self._layers = self._describe(self._order)
        pending = PendingEpoch(
            epoch,
            layers=self._layers,
            order=self._order,
            start=self._epoch_start,
            exchange=self.exchange,
            turn=self.epochs_ended,
            averages=self.averages,
            on_counts=self._report_dead,
        )
        self.averages = {}
        self.epochs_ended += 1
        self._boundary.run(self._hand_over, pending)
        return pending

    def _hand_over(self, pending: PendingEpoch) -> None:
        end = self.step if self.epoch_end is None else self.epoch_end
        if end == self._epoch_start:
            self._report_no_step(pending.epoch)
        self.epoch_end = None
        pending.steps, pending.copies = self._history.take(end)
        self._epoch_start = end

    def start_at(self, step: int) -> None:
        """Number the next step `step`: a training that carries on an earlier one continues its count."""
        self.step = self._epoch_start = step

    def discard(self) -> None:
        """Forget what was recorded since the last epoch ended, and its step numbers too."""
        self._history.clear()
        self._forward.fresh = False
        self.step = self._epoch_start

    def remove(self) -> None:
        """Detach from the model and from torch; what was handed over stays usable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def counts(self, optimizer: Optimizer, *, forward_to_come: bool = False) -> bool:
        """Whether a step of this optimizer now would be a training step.

        Args:
            forward_to_come: the step itself will run the forward pass, in its closure.
        """
        # `fresh`: of two optimizers that share one backward pass, only the first makes a step.
        return (self._forward.fresh or forward_to_come) and self._owns(optimizer)

    def holds(self, optimizer: Optimizer) -> bool:
        """Whether all parameters of this optimizer are the model's."""
        mine = {id(parameter) for parameter in self.model.parameters()}
        return all(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"])

    def attached_by(self, hook: object) -> bool:
        """Whether this hook on the model is ours."""
        return hook is self._forward

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._boundary.run(self._count_step, optimizer)

    def _count_step(self, optimizer: Optimizer) -> None:
        if not self.counts(optimizer):
            return
        self._forward.fresh = False
        if not self._joined:
            # Only now is it certain that the model has its wrapper and the processes know each other.
            self._joined = True
            self.exchange = join(self.model, [name for name, _ in self._chosen])
        self._forward.readings.settle()
        if self.step % self.config.record_every == 0:
            self._history.append(self.step, self._forward.slots)
        self.step += 1
        self._forward.wanted = self.step % self.config.record_every == 0
        set_to_zero(self._forward.slots)

    def _report_no_step(self, epoch: int) -> None:
        """Say once that an epoch is empty, and what is likely to be the reason."""
        if self._dead_reported:
            return
        self._dead_reported = True
        logger.warning(
            "Epoch %d has no training step that could be recorded: %s.",
            epoch,
            "the model was called, but none of its recorded layers as a module (layer(x), in place of "
            "layer.forward(x) or torch.func.vmap), or no optimizer made a step"
            if self._forward.called
            else "the model was not called as a module, in training mode (model.train()) and with gradients, or no "
            "optimizer with parameters of it made a step",
        )

    def _report_dead(self, counts: np.ndarray) -> None:
        """Say once, loudly, which layers recorded nothing in a whole epoch."""
        if self._dead_reported:
            return
        silent = np.flatnonzero(~(counts > 0).any(axis=0))
        dead = []
        for name, declined in (
            (printable(self.layers[i].name), self._hooks[self._order[i]].declined) for i in silent
        ):
            if declined is None:
                dead.append(name)
                continue
            self._dead_reported = True
            logger.warning(
                "The layer %s is not recorded: its output is %s, and only dense floating-point ones are. "
                "Leave the layer out with exclude=(...).",
                name,
                declined,
            )
        if dead:
            self._dead_reported = True
            logger.warning(
                "%d of %d layers recorded nothing in this epoch: %s. They were not called as modules in "
                "training mode; leave them out with exclude=(...), or name others with include=(...).",
                len(dead),
                len(self.layers),
                ", ".join(dead),
            )

    def _owns(self, optimizer: Optimizer) -> bool:
        if self._optimizer is not None:
            return optimizer is self._optimizer
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._owners.get(optimizer)
        if known is None or known[0] != size:
            mine = {id(parameter) for parameter in self.model.parameters()}
            owns = any(
                id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]
            )
            self._owners[optimizer] = known = (size, owns)
        return known[1]

    def _describe(self, order: list[int]) -> tuple[Layer, ...]:
        return tuple(
            Layer(
                index=index,
                name=self._chosen[position][0],
                type=type_name(self._chosen[position][1]),
                output_shape=self._hooks[position].shape,
                parameters=sum(p.numel() for p in self._chosen[position][1].parameters() if not is_lazy(p)),
            )
            for index, position in enumerate(order)
        )


never_compile_alone(Recorder, StepHistory)


def _device_of(module: nn.Module, model: nn.Module) -> torch.device:
    for owner in (module, model):
        for parameter in owner.parameters():
            if not parameter.is_meta:
                return parameter.device
    return torch.device("cpu")


def _forget_compiled_graphs() -> None:
    """Have code compiled again that does not contain our hooks: dynamo does not guard on them."""
    if any_compiled():
        logger.info(
            "The model may have been compiled before it was recorded: compiled graphs are built once more."
        )
        forget_compiled()
