"""What is known by now of a pass over a DataLoader."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_dynamics.loop.events import BatchDrawn


@dataclass(eq=False)
class Pass:
    """One pass of an iterator over its loader.

    Attributes:
        latest: the batch that was drawn last; its number is 0 before the first one is drawn.
        data: numbers of the data drawn. All loaders that draw the whole of one data set have the same numbers; a loader
            that draws a part has the numbers of the whole and further ones.
        asked: how often a batch was asked for; the time when no batch was left counts too.
        exhausted: no batch was left.
        ended: no more batches can be drawn: none was left, or the loop was left (by a break, say), which frees the
            iterator.
    """

    latest: BatchDrawn
    data: tuple[int, ...]
    asked: int = 0
    exhausted: bool = False
    ended: bool = False

    @property
    def loader(self) -> int:
        """The loader's number."""
        return self.latest.loader

    @property
    def serial(self) -> int:
        """The number of the pass."""
        return self.latest.pass_

    @property
    def length(self) -> int | None:
        """Batches of one epoch, len(loader); None if the loader has no length."""
        return self.latest.length

    @property
    def drawn(self) -> int:
        """Batches drawn so far."""
        return self.latest.number

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last batch drawn was the last of an epoch of the loader, where its length is known."""
        return self.length is not None and self.drawn > 0 and self.drawn % self.length == 0
