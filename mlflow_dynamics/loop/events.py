"""What torch tells about a training: the vocabulary of the log that epochs are read from.

Each training has a log of its own. It holds numbers and flags, never data.
"""

from __future__ import annotations

from dataclasses import dataclass

EpochKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mode:
    """From the next batch on, the model is in training mode with gradients enabled (`training`), or it is not."""

    training: bool


@dataclass(frozen=True, slots=True)
class BatchDrawn:
    """Batch `number`, counted from 1, was drawn in a pass over a loader of `length` batches (None: not known).

    A loader that replaces another one, to draw the same data in the same way, takes over the number of that one.
    Each pass has a number of its own, which no pass over any loader shares.
    """

    loader: int
    pass_: int
    number: int
    length: int | None

    @property
    def epoch(self) -> EpochKey:
        """A value that is equal for two batches exactly if they belong to the same epoch of the loader.

        One pass holds several epochs if the script keeps one iterator for all of them.
        """
        return self.pass_, (self.number - 1) // self.length if self.length else 0


@dataclass(frozen=True, slots=True)
class PassEnded:
    """No more batches can be drawn in a pass: none was left (`exhausted`), or a loop let go of the iterator."""

    pass_: int
    exhausted: bool


@dataclass(frozen=True, slots=True)
class LoaderGone:
    """No more batches can be drawn: the loader was deleted, its passes have ended, and no other can replace it."""

    loader: int


@dataclass(frozen=True, slots=True)
class Backward:
    """Backward was called."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """An optimizer is about to make a training step of the model."""


Event = Mode | BatchDrawn | PassEnded | LoaderGone | Backward | Stepped
