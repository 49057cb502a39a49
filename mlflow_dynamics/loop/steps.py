"""What was drawn from DataLoaders between two training steps, and which of the batches the step may be on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from mlflow_dynamics.loop.events import BatchDrawn, EpochKey, LoaderGone, PassEnded

MOST_LOADERS: Final = 64
"""The greatest number of loaders that are remembered between two steps of a model."""

MOST_ENDED: Final = 128
"""After so many ends of passes, the ends that decide nothing are forgotten."""


class Draw(NamedTuple):
    """What was drawn from one loader since the last step, as a reader of epochs needs it.

    A draw holds no number of a batch, so the draws of all steps in the middle of a pass are equal.

    Attributes:
        loader: the loader's number.
        epoch: the epoch of the loader that its latest batch belongs to.
        length: the number of batches in one pass; None if it is not known.
        feeds: the step may be on this batch. (A pass that began and ended since the last step was an evaluation.)
        training: a batch was drawn in training mode.
        several: the pass has given more than one batch by now.
        drawn_out: the pass has given as many batches as the loader's length, or more.
        ended: no more batches can be drawn in the pass.
        exhausted: the pass has ended because no batch was left.
        gone: no more batches can be drawn from the loader.
    """

    loader: int
    epoch: EpochKey
    length: int | None
    feeds: bool
    training: bool
    several: bool
    drawn_out: bool
    ended: bool
    exhausted: bool
    gone: bool

    @property
    def done(self) -> bool:
        """Whether the pass has ended, or has given all its batches and its iterator is kept."""
        return self.ended or self.drawn_out

    @property
    def is_a_pass(self) -> bool:
        """Whether the pass is known to be more than one batch taken out of several."""
        return self.several or self.length == 1 or self.exhausted

    @property
    def only_looked_at(self) -> bool:
        """Whether one batch of several was taken and the pass left, as `next(iter(loader))` does."""
        return self.ended and not self.is_a_pass

    def aged(self, step: Step) -> Draw:
        """The draw, with what a later step knows of the end of its pass and its loader."""
        ends = [exhausted for pass_, exhausted in step.ended if pass_ == self.epoch[0]]
        return self._replace(
            ended=self.ended or bool(ends),
            exhausted=self.exhausted or any(ends),
            gone=self.gone or self.loader in step.gone,
        )


class Step(NamedTuple):
    """A training step.

    Attributes:
        draws: what was drawn since the step before, in the order of each loader's latest batch.
        fed: the draws that the step may be on.
        ended: the passes watched that had ended before this step, and whether each was exhausted.
        gone: the loaders watched from which no more batches could be drawn.
        looked: only one batch of several was taken from some loader.
    """

    draws: tuple[Draw, ...]
    fed: tuple[Draw, ...]
    ended: tuple[tuple[int, bool], ...] = ()
    gone: tuple[int, ...] = ()
    looked: bool = False


class _Drawn:
    """What was drawn from one loader since the last step, updated batch by batch.

    Attributes:
        latest: the latest batch of the pass that the step may be on.
        training: a batch was drawn in training mode.
        backwards: the number of backward passes when the pass was first drawn from.
        batches: the number of batches drawn in this pass since the last step.
        worked: backward was called between two of these batches.
    """

    __slots__ = ("backwards", "batches", "latest", "training", "worked")

    def __init__(self, latest: BatchDrawn, training: bool, backwards: int) -> None:
        self.latest = latest
        self.training = training
        self.backwards = backwards
        self.batches = 1
        self.worked = False


class _Run(NamedTuple):
    """Batches of one pass, from `first` to `last`, that all give the same draw.

    Attributes:
        first: the number of the first of these batches.
        last: the number of the last of these batches.
        draw: the draw that each of them gives.
        step: a step that has this draw alone.
    """

    first: int
    last: float
    draw: Draw
    step: Step


class Window:
    """Collects what is drawn until the next step. Its memory does not grow with the number of batches or passes.

    Attributes:
        training: the model is in training mode, with gradients enabled.
        backwards: the number of times that backward was called.
    """

    def __init__(self) -> None:
        self.training = False
        self._drawn: dict[int, _Drawn] = {}
        self.backwards = 0
        self._watched: dict[int, int] = {}
        self._runs: dict[int, _Run] = {}
        self._latest: dict[int, BatchDrawn] = {}
        self._ended: dict[int, bool] = {}
        self._gone: set[int] = set()
        self._last = Step((), ())
        # Whether a pass or a loader that is watched has ended.
        self._news = False

    def batch(self, event: BatchDrawn) -> None:
        """A batch was drawn."""
        training = self.training
        self._latest[event.pass_] = event
        drawn = self._drawn.pop(event.loader, None)
        if drawn is None:
            if len(self._drawn) == MOST_LOADERS:
                del self._drawn[next(iter(self._drawn))]
            drawn = _Drawn(event, training, self.backwards)
        elif drawn.latest.pass_ == event.pass_:
            drawn.latest = event
            drawn.batches += 1
            drawn.training |= training
            drawn.worked |= drawn.backwards != self.backwards
        elif training or not drawn.training or drawn.latest.pass_ in self._ended:
            drawn = _Drawn(event, training or drawn.training, self.backwards)
        # else: the training data are evaluated while a batch that was drawn earlier waits for its step
        self._drawn[event.loader] = drawn

    def knows_pass(self, pass_: int) -> bool:
        """Whether the end of the pass may matter."""
        return pass_ in self._latest

    def knows_loader(self, loader: int) -> bool:
        """Whether the end of the loader may matter."""
        return loader in self._drawn or loader in self._watched.values()

    def pass_ended(self, event: PassEnded) -> None:
        """A pass has ended."""
        self._ended[event.pass_] = event.exhausted
        self._news |= event.pass_ in self._watched
        if len(self._ended) > MOST_ENDED:
            self._forget()

    def loader_gone(self, event: LoaderGone) -> None:
        """No more batches can be drawn from a loader."""
        self._gone.add(event.loader)
        self._news |= event.loader in self._watched.values()

    def number(self, watched: Draw) -> int:
        """The number of the latest batch of a pass that is watched."""
        return self._latest[watched.epoch[0]].number

    def ended(self, watched: Draw) -> bool:
        """Whether a pass that is watched has ended."""
        return watched.epoch[0] in self._ended

    def exhausted(self, watched: Draw) -> bool:
        """Whether a pass that is watched has ended because no batch was left."""
        return self._ended.get(watched.epoch[0], False)

    def step(self) -> Step:
        """Begin a new window, and return the step that is made now."""
        window, self._drawn = self._drawn, {}
        in_order = list(window.values())  # at once: another thread may draw batches
        ended, watched = self._ended, self._watched
        if len(in_order) == 1 and not self._news and in_order[0].latest.pass_ not in ended:
            return self._run(in_order[0]).step
        draws, fed, looked, open_draw = [], [], False, None
        for drawn in in_order:
            pass_ = drawn.latest.pass_
            if not drawn.training and pass_ in ended and pass_ not in watched:
                open_draw, latest = None, drawn.latest  # an evaluation, or one batch taken; it has ended
                looked |= latest.number == 1 and latest.length != 1 and not ended[pass_]
                continue
            draw = self._ended_draw(drawn) if pass_ in ended else self._run(drawn).draw
            open_draw = None if draw.ended else draw
            if draw.feeds:
                fed.append(draw)
            elif draw.ended and pass_ not in watched:
                looked |= draw.only_looked_at
                continue
            draws.append(draw)
        if not fed and open_draw is not None:
            fed.append(open_draw)  # the model may be put into training mode only once the batch is there
        step = Step(
            tuple(draws),
            tuple(fed),
            tuple([(pass_, ended[pass_]) for pass_ in watched if pass_ in ended]) if self._news else (),
            tuple([loader for loader in watched.values() if loader in self._gone]) if self._news else (),
            looked,
        )
        if step != self._last:
            self._last = step
        return self._last  # the same object for equal steps, so that a reader recognises it at once

    def watch(self, draws: Iterable[Draw]) -> None:
        """Remember, until the next call, whether the passes and loaders of these draws end."""
        watched = self._watched = {draw.epoch[0]: draw.loader for draw in draws}
        self._news = any(pass_ in self._ended or loader in self._gone for pass_, loader in watched.items())
        self._runs = {pass_: run for pass_, run in self._runs.items() if pass_ in self._watched}
        self._forget()

    def _run(self, drawn: _Drawn) -> _Run:
        """The run of equal draws that this one belongs to. Its pass has not ended."""
        latest, training = drawn.latest, drawn.training
        number, length = latest.number, latest.length
        run = self._runs.get(latest.pass_)
        if run is not None and run.first <= number <= run.last and run.draw.training is training:
            return run
        several, drawn_out = number > 1, length is not None and number >= length
        gone = latest.loader in self._gone
        epoch = latest.epoch
        draw = Draw(latest.loader, epoch, length, training, training, several, drawn_out, False, False, gone)
        if number == 1:
            last: float = 1
        elif length is None:
            last = float("inf")
        else:  # the last batch of the first epoch is the first one with which the pass is drawn out
            last = (epoch[1] + 1) * length - (number < length)
        run = self._runs[latest.pass_] = _Run(number, last, draw, Step((draw,), (draw,)))
        return run

    def _ended_draw(self, drawn: _Drawn) -> Draw:
        latest, training = drawn.latest, drawn.training
        number, length, exhausted = latest.number, latest.length, self._ended[latest.pass_]
        several, drawn_out = number > 1, length is not None and number >= length
        # The step may be on the last batch of a pass, unless several batches were drawn without a backward pass.
        whole = several or length == 1 or exhausted
        feeds = training and (drawn.worked or (drawn.batches == 1 and whole))
        gone = latest.loader in self._gone
        return Draw(
            latest.loader, latest.epoch, length, feeds, training, several, drawn_out, True, exhausted, gone
        )

    def _forget(self) -> None:
        """Forget what has ended, except passes and loaders that are watched or were drawn from since the last step."""
        drawn = list(self._drawn.values())
        passes = {*self._watched, *(one.latest.pass_ for one in drawn)}
        for pass_ in [pass_ for pass_ in list(self._ended) if pass_ not in passes]:
            self._ended.pop(pass_, None)
            self._latest.pop(pass_, None)
            self._runs.pop(pass_, None)
        self._gone &= {*self._watched.values(), *(one.latest.loader for one in drawn)}
