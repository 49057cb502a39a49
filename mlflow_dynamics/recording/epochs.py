"""Where one epoch ends and the next begins, from batches drawn and steps made."""

from __future__ import annotations

from typing import Final

from mlflow_dynamics.recording.loaders import Pass

STEPS_WITHOUT_BATCHES: Final = 1000
"""After so many steps (or two epochs' worth) without a batch from a DataLoader, epochs are not to be inferred."""


class EpochFinder:
    """Groups the training steps of one model into epochs: passes over the loader whose batches it is trained on.

    An epoch is closed lazily, by the first step of the next one, so that passes without steps (validation)
    make none. Of several loaders the primary one counts: that which was drawn from, in training, before the
    first step; of loaders drawn in turn (zipped), the first.
    """

    def __init__(self) -> None:
        self.primary: int | None = None
        self.length: int | None = None
        self.several = False
        self._window: dict[int, bool] = {}
        self._latest: dict[int, Pass] = {}
        self._open: tuple[int, int] | None = None
        self._steps = 0
        self._idle = 0

    def batch(self, drawn: Pass, *, training: bool) -> None:
        """A batch was drawn, with gradients enabled and the model in training mode or not."""
        self._window[drawn.loader] = self._window.get(drawn.loader, False) or training
        self._latest[drawn.loader] = drawn

    def step(self) -> bool:
        """A training step is about to be made; True if it begins a new epoch, so that the last one is over."""
        self._steps += 1
        window, self._window = self._window, {}
        trained = [loader for loader, training in window.items() if training]
        if self.primary not in window:
            candidates = trained or (list(window) if self.primary is None else [])
            if candidates:
                self.primary = candidates[-1] if self._steps == 1 else candidates[0]
        elif self._steps == 2 and len(trained) > 1:
            self.several = True
            self.primary, self._open = trained[0], None
        self._idle = 0 if self.primary in window else self._idle + 1
        if self.primary is None:
            return False
        current = self._latest[self.primary]
        self.length = current.length
        self._latest = {self.primary: current}
        before, self._open = self._open, current.epoch_key
        return before is not None and before != self._open

    @property
    def complete(self) -> bool:
        """Whether every batch of the open epoch has been drawn, as far as its length is known."""
        if self.primary is None or self.length is None:
            return True
        return self._latest[self.primary].drawn % self.length == 0

    @property
    def lost(self) -> bool:
        """Whether the steps come from no DataLoader: no epoch can be inferred."""
        limit = STEPS_WITHOUT_BATCHES if self.length is None else max(2 * self.length, 8)
        return self._idle > limit
