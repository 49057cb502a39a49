"""Lets one of several processes claim a training that all of them may begin.

A claim is a tag of the claimant's own run. Others see that its owner lives, because it changes all the time. MLflow has
no compare-and-swap, so claimants are served as in Lamport's bakery (doi 10.1145/361082.361093), which only needs reads
that see every earlier write: each says that it is choosing, takes a number above all that it sees, and has the claim if
nobody that it sees after that is before it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import mlflow
import requests
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore

from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking.query import tagged_runs
from mlflow_dynamics.tracking.store import connect, connect_to_read, failing_as

TAG_CLAIMANT: Final = "dynamics.claims"
"""Tag of the runs that may hold claims."""

TAG_CLAIM: Final = "dynamics.claim."
"""The beginning of a claim's tag; then comes what is claimed."""

BEAT_S: Final = 10.0
"""So often does the owner change its claim."""

DEAD_AFTER_S: Final = 60.0
"""A claim that has not changed for so long, while the store answered, has no owner any more."""

LONGEST_LOOK_S: Final = 10.0
"""No more than this is counted between two looks at a claim: the store may not have answered in between."""

LONGEST_RELEASE_S: Final = 5.0
"""The longest wait for a change of a claim that is under way, when the claim is given up."""

CHOOSING_S: Final = 10.0
"""The longest wait for another claimant that is choosing its number."""

_UNANSWERED: Final = (MlflowException, requests.RequestException, OSError)


@dataclass(frozen=True)
class Claim:
    """A claim as the store has it.

    Attributes:
        run_id: the claimant's run.
        what: what is claimed.
        number: the place in the queue, from 1; 0 is still choosing.
        beat: changes while the owner lives.
        done: how many epochs the owner has trained.
        place: the machine, its start and the processes that can be seen there; empty if that cannot be said.
        process: the owner's process id and when it was started, in ticks of the machine's.
    """

    run_id: str
    what: str
    number: int = 0
    beat: int = 0
    done: int = 0
    place: str = ""
    process: str = ""

    def is_gone(self) -> bool:
        """Whether the owner is a process of this machine that has ended."""
        return bool(self.place) and self.place == _place() and self.process != _process(self.process)


def claims(experiment_id: str) -> list[Claim]:
    """Return all claims in an experiment.

    Raises:
        TrackingError: the store cannot be read.
    """
    return [
        found
        for run in tagged_runs(experiment_id, TAG_CLAIMANT, "true")
        for key, value in run.data.tags.items()
        if key.startswith(TAG_CLAIM)
        and (found := _read(run.info.run_id, key.removeprefix(TAG_CLAIM), value)) is not None
    ]


class Watch:
    """Tells the claims whose owner is dead, by its process or because they do not change. No clocks are compared."""

    def __init__(self) -> None:
        self._ages: dict[Claim, float] = {}
        self._looked = time.monotonic()

    def dead(self, seen: Iterable[Claim]) -> frozenset[Claim]:
        """Return those of the claims, as they are at this moment, whose owner is dead."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        self._ages = {claim: self._ages.get(claim, -passed) + passed for claim in seen}
        return frozenset(claim for claim, age in self._ages.items() if age > DEAD_AFTER_S or claim.is_gone())


class HeldClaim:
    """A claim that this process holds. `count` is called after each epoch."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._store = connect(mlflow.get_tracking_uri())
        self._ended = threading.Event()
        self._counted = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mlflow-dynamics-claim", daemon=True)
        started(self._thread)

    @property
    def done(self) -> int:
        """How many epochs were counted."""
        return self._claim.done

    def count(self) -> None:
        """Count an epoch, and say so in the store without waiting for it."""
        self._claim = replace(self._claim, done=self._claim.done + 1)
        self._counted.set()

    def release(self) -> None:
        """Give the claim up. If the store does not answer, it is found dead later."""
        self._ended.set()
        self._counted.set()
        if self._thread.is_alive():
            self._thread.join(LONGEST_RELEASE_S)
        with suppress(*_UNANSWERED):
            _withdraw(self._store, self._claim)

    def _beat(self) -> None:
        while not self._ended.wait(1.0):  # which bounds the requests of quick epochs
            self._counted.wait(BEAT_S)
            self._counted.clear()
            if not self._ended.is_set():
                with suppress(*_UNANSWERED):
                    _write(self._store, replace(self._claim, beat=time.time_ns()))


@contextmanager
def held(experiment_id: str, run_id: str, what: str, *, dead: Set[Claim]) -> Iterator[HeldClaim | None]:
    """Hold the claim on `what` for the block; yield None if another claimant has it.

    Args:
        experiment_id: the experiment in which claims count.
        run_id: the run of the claimant.
        what: what is claimed: letters, digits, '_', '-', '.', and no more than 200.
        dead: claims that do not count, unless they have changed.

    Raises:
        TrackingError: the store cannot be read or written.
    """
    with failing_as("What is trained at this moment cannot be asked of MLflow"):
        claim = _claimed(experiment_id, Claim(run_id, what, 0, time.time_ns(), 0, _place(), _process()), dead)
    if claim is None:
        yield None
        return
    mine = HeldClaim(claim)
    try:
        yield mine
    finally:
        mine.release()


def open_to_claims(run_id: str) -> None:
    """Let a run hold claims.

    Raises:
        TrackingError: the store refuses or fails.
    """
    with failing_as(f"Run {run_id} cannot be marked as a grid's"):
        connect_to_read(mlflow.get_tracking_uri()).set_tag(run_id, RunTag(TAG_CLAIMANT, "true"))


def _claimed(experiment_id: str, mine: Claim, dead: Set[Claim]) -> Claim | None:
    """Claim; return the claim, or None if another claimant was before this one."""
    store = connect_to_read(mlflow.get_tracking_uri())

    def others() -> list[Claim]:
        return [one for one in claims(experiment_id) if one.what == mine.what and one not in dead]

    if others():
        return None
    _write(store, mine)
    try:
        mine = replace(mine, number=1 + max((one.number for one in others()), default=0))
        _write(store, mine)
        deadline = time.monotonic() + CHOOSING_S
        while time.monotonic() < deadline:
            rest = [one for one in others() if one.run_id != mine.run_id]
            if any(one.number and (one.number, one.run_id) < (mine.number, mine.run_id) for one in rest):
                break
            if all(one.number for one in rest):
                return mine
            time.sleep(0.1)
    except BaseException:
        with suppress(*_UNANSWERED):
            _withdraw(store, mine)
        raise
    _withdraw(store, mine)
    return None


def _write(store: AbstractStore, claim: Claim) -> None:
    value = {key: value for key, value in asdict(claim).items() if key not in ("run_id", "what")}
    store.set_tag(claim.run_id, RunTag(TAG_CLAIM + claim.what, json.dumps(value)))


def _withdraw(store: AbstractStore, claim: Claim) -> None:
    store.delete_tag(claim.run_id, TAG_CLAIM + claim.what)  # type: ignore[attr-defined]  # MLflow's client needs it too


def _read(run_id: str, what: str, value: str) -> Claim | None:
    """Return the claim of a tag; None if somebody has written something else there."""
    try:
        claim = Claim(run_id, what, **json.loads(value))
        numbers = claim.number, claim.beat, claim.done
        return claim if all(type(one) is int for one in numbers) and _is_text(claim) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _is_text(claim: Claim) -> bool:
    return isinstance(claim.place, str) and isinstance(claim.process, str)


def _place() -> str:
    """Return what tells this machine, its start and its process ids from others; nothing where Linux does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process(like: str | None = None) -> str:
    """Return the id and start of a process that lives: this one, or the one whose id `like` begins with."""
    number = str(os.getpid()) if like is None else like.partition(" ")[0]
    try:
        fields = Path(f"/proc/{int(number)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return (
        "" if fields[0] in "ZX" else f"{number} {fields[19]}"
    )  # proc(5): state is the third, starttime the 22nd
