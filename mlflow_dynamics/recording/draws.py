"""What was drawn from DataLoaders between two training steps, and which of it the step may be on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.recording.loaders import Pass

MOST_LOADERS: Final = 64
"""A model that is not trained for long, while others are on ever new loaders, keeps no more of them in mind."""


@dataclass(slots=True)
class Drawn:
    """What was drawn from one loader since the last step.

    Attributes:
        origin: the latest pass.
        training: some batch was drawn with gradients enabled and the model in training mode.
        backwards: counted when the pass was first drawn from.
        batches: of this pass.
        worked: backward was called between two of them.
    """

    origin: Pass
    training: bool
    backwards: int
    batches: int = 1
    worked: bool = False

    @property
    def feeds(self) -> bool:
        """Whether the step may be on it: a pass begun and over since the last step was an evaluation, or a look."""
        if not self.training:
            return False
        return not self.origin.over or self.worked or (self.batches == 1 and not self.origin.lone)


class Draws:
    """Collects them, loader by loader, until the next step."""

    def __init__(self) -> None:
        self._drawn: dict[int, Drawn] = {}
        self._backwards = 0

    def batch(self, origin: Pass, *, training: bool) -> None:
        """A batch was drawn, with gradients enabled and the model in training mode or not."""
        drawn = self._drawn.pop(origin.loader, None)
        if drawn is None:
            if len(self._drawn) == MOST_LOADERS:
                del self._drawn[next(iter(self._drawn))]
            drawn = Drawn(origin, training, self._backwards)
        elif drawn.origin is origin:
            drawn.batches += 1
            drawn.training |= training
            drawn.worked |= drawn.backwards != self._backwards
        elif training or not drawn.training or drawn.origin.over:
            drawn = Drawn(origin, training or drawn.training, self._backwards)
        # else: the training data are evaluated while a batch drawn ahead waits for its step
        self._drawn[origin.loader] = drawn

    def backward(self) -> None:
        """Backward was called."""
        self._backwards += 1

    def take(self) -> list[Drawn]:
        """All since the last call, in the order of each loader's latest batch."""
        drawn, self._drawn = self._drawn, {}
        return list(drawn.values())  # at once: batches may be drawn in another thread


def feeding(window: list[Drawn]) -> list[Pass]:
    """The passes whose batches the step may be on."""
    passes = [drawn.origin for drawn in window if drawn.feeds]
    if not passes and window and not window[-1].origin.over:
        # The model may be put into training mode only once the batch is there.
        return [window[-1].origin]
    return passes
