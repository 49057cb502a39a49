"""Several processes that train one model: each rank's part of an epoch is brought to the rank that writes the run.

Nothing here is a collective. Collectives are paired by their order, ours with those of the training, so a rank that
skips a step, has fewer batches, is not recorded or has died would make the others wait or mix up the pairs. Parts go
through the key-value store of the process group instead, over a connection of our own; a rank waits for them only in
the background and for a bounded time.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
from torch import distributed, nn

from mlflow_dynamics.recording.instances import instances_of
from mlflow_dynamics.recording.layers import unwrap
from mlflow_dynamics.recording.torch_private import CLONES_STORES, default_store
from mlflow_dynamics.redaction import redact_text

logger = logging.getLogger(__name__)

PART_TIMEOUT_S: Final = 30.0
"""The longest time that the writing rank waits, in the background, for the part of a rank that records."""

PRESENCE_TIMEOUT_S: Final = 5.0
"""The time given to a rank to say that it records, which it does at its first step."""

DECISION_TIMEOUT_S: Final = 60.0
"""The longest time that the other ranks wait for the writing rank's answer on stopping; then the training goes on."""

POLL_S: Final = 0.05
"""The time between two looks at the store, whose own wait would hold the connection and complain on stderr."""

VALUE_BYTES: Final = 4 * 1024**2
"""The most bytes of one value in the store, which closes the connection on a value of more than 8 MiB."""

MAX_UNTAKEN: Final = 64
"""The most parts of a rank that lie in the store unfetched; no further ones are added."""

Averages = Mapping[str, tuple[float, float]]
"""Name -> a sum, and the weight to divide the sum by."""

_attached: Counter[str] = Counter()


def first_process() -> bool:
    """Whether this is rank 0 of a job, or part of no job; the environment tells before torch is initialised."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return not launched or os.environ["RANK"] == "0"


def writes_run(model: nn.Module) -> bool:
    """Whether this process writes the run: the first of the processes that train the model does."""
    ranks = _ranks_of(model)
    return first_process() if ranks is None else distributed.get_rank() == ranks[0]


def _ranks_of(model: nn.Module) -> tuple[int, ...] | None:
    """The ranks whose parts make up the model's global batch, ascending; None if no wrapper tells them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    inner = unwrap(model)
    parallel = nn.parallel.DistributedDataParallel
    for module in (model, *inner.modules(), *instances_of(parallel)):
        if isinstance(module, parallel) and (
            module is model or unwrap(module) is inner or module in inner.modules()
        ):
            return tuple(sorted(distributed.get_process_group_ranks(module.process_group)))
    for parameter in inner.parameters():
        mesh = getattr(parameter, "device_mesh", None)  # a parameter sharded by fully_shard
        if mesh is not None:
            return tuple(sorted(mesh.mesh.flatten().tolist()))
    return None


def join(model: nn.Module, layers: Sequence[str]) -> Exchange | None:
    """The exchange of this training's parts; None if this process's part is the whole batch, or all that is known.

    Args:
        model: the model, with its wrapper.
        layers: names of the recorded layers; ranks that record other layers have no part in each other's epochs.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    ranks = _ranks_of(model)
    size = distributed.get_world_size()
    if ranks is None:
        if size > 1 and first_process():
            logger.warning(
                "Of %d processes rank 0 is recorded, with its own part of each batch: %s is wrapped neither by "
                "DistributedDataParallel nor by fully_shard.",
                size,
                type(unwrap(model)).__name__,
            )
        return None
    if len(ranks) == 1:
        return None
    if not CLONES_STORES:
        if distributed.get_rank() == ranks[0]:
            logger.warning(
                "Rank %d is recorded with its own part of each batch: the ranks of one model are recorded together "
                "from torch 2.6 on, and this is torch %s.",
                ranks[0],
                torch.__version__,
            )
        return None
    kind = hashlib.sha256(repr((type(unwrap(model)).__name__, tuple(layers), ranks)).encode()).hexdigest()[
        :16
    ]
    _attached[kind] += 1
    store = default_store()
    try:
        return Exchange(store, f"mlflow_dynamics/{kind}/{_attached[kind]}", ranks, distributed.get_rank())
    except distributed.DistError as error:
        if distributed.get_rank() == ranks[0]:
            logger.warning(
                "Rank %d is recorded with its own part of each batch: the process group's store cannot be used (%s).",
                ranks[0],
                _reason(error),
            )
        return None


class Exchange:
    """Brings one training's parts from every rank to the first rank.

    The store has these keys, under one name for each training. `here/RANK`: the rank takes part. `taken/RANK`: how many
    of the rank's parts were fetched. `EPOCH/RANK` and `EPOCH/RANK/PIECE`: a part on its way, deleted when fetched.
    `stop/EPOCH`: whether to stop after the epoch.

    Raises:
        DistError: the store does not answer.
    """

    def __init__(self, store: distributed.Store, name: str, ranks: tuple[int, ...], rank: int) -> None:
        self._home: distributed.Store | None = store  # kept alive, because the store may live in this process
        self._store = store.clone()
        self._store.set_timeout(timedelta(seconds=PART_TIMEOUT_S))
        self._name = name
        self._rank = rank
        self._writer = ranks[0]
        self._others = list(ranks[1:])
        self._present: set[int] = set()
        self._handed: Counter[int] = Counter()
        self._incomplete_told = False
        for key in [f"taken/{other}" for other in self._others] if self.writes else [f"here/{rank}"]:
            self._store.set(self._key(key), "0")

    @property
    def writes(self) -> bool:
        """Whether this is the writing rank, to which all parts go."""
        return self._rank == self._writer

    def pool(
        self, epoch: int, positions: np.ndarray, sums: np.ndarray, averages: Averages
    ) -> tuple[np.ndarray, Averages]:
        """Bring this rank's part of an epoch to the writing rank, and return there the parts of all ranks as one.

        Waits for at most PART_TIMEOUT_S, so a background thread has to call it. If a rank's part has not come by then,
        one log line says so, and that rank is not waited for again.

        Args:
            epoch: the epoch's number, the same on every rank.
            positions: (steps,) positions of the recorded steps within the epoch, ascending, the same on every rank.
            sums: (steps, layers, 4) as `hooks.MOMENTS` has them, with layers in the order of the model.
            averages: further averages over the epoch; a rank that lacks one does not count in it.

        Returns:
            On the writing rank: (steps, layers, 4) float64 sums over the ranks that made the step, and the averages
            over the ranks. On the other ranks: `sums` and `averages` as they are.
        """
        if not self.writes:
            self._hand_over(epoch, positions, sums, averages)
            return sums, averages
        total = _exact(sums)
        averaged = dict(averages)
        deadline = time.monotonic() + PART_TIMEOUT_S
        missing: dict[int, str] = {}
        for rank in list(self._others):
            try:
                part = self._fetch(epoch, rank, deadline)
            except distributed.DistError as error:
                missing[rank] = _reason(error)
                continue
            if part is None:
                missing[rank] = (
                    "nothing has come" if rank in self._present else "it does not record this model"
                )
                continue
            theirs, values, means = part
            for name, (amount, weight) in means.items():
                before = averaged.get(name, (0.0, 0.0))
                averaged[name] = before[0] + amount, before[1] + weight
            _, here, there = np.intersect1d(positions, theirs, assume_unique=True, return_indices=True)
            total[here] += _exact(values[there])
            if len(here) < len(positions):
                self._tell_incomplete(epoch, rank, len(here), len(positions))
        if missing:
            self._others = [rank for rank in self._others if rank not in missing]
            logger.warning(
                "From epoch %d on the statistics are those of rank %s alone, not of the whole global batch; missing: "
                "%s.",
                epoch,
                ", ".join(map(str, (self._rank, *self._others))),
                "; ".join(f"rank {rank} ({reason})" for rank, reason in missing.items()),
            )
        return total, averaged

    def agree(self, epoch: int, stop: bool) -> bool:
        """Whether to stop after `epoch`: the writing rank's answer, which is the same on all ranks.

        Ranks that decide differently would wait for each other for ever. So the first answer in the store holds for all
        ranks. A rank that has waited for DECISION_TIMEOUT_S answers that the training goes on.
        """
        key = f"stop/{epoch}"
        try:
            if not self.writes and not self._appears(key, time.monotonic() + DECISION_TIMEOUT_S):
                logger.warning("Rank %d has not said within %.0f s whether to stop after epoch %d: training goes on.",
                               self._writer, DECISION_TIMEOUT_S, epoch)  # fmt: skip
            answer = self._store.compare_set(self._key(key), "", "yes" if stop else "no")
        except distributed.DistError as error:
            logger.warning("The ranks cannot agree on stopping (%s): training goes on.", _reason(error))
            return False
        return bool(answer == b"yes")

    def close(self) -> None:
        """End the exchange."""
        self._home = None

    def _hand_over(self, epoch: int, positions: np.ndarray, sums: np.ndarray, averages: Averages) -> None:
        """Put this rank's part into the store, unless nobody fetches its parts."""
        try:
            taken = f"taken/{self._rank}"
            if not self._appears(taken, time.monotonic() + PRESENCE_TIMEOUT_S):
                return
            if self._handed[self._rank] - int(self._store.get(self._key(taken))) >= MAX_UNTAKEN:
                return
            packed = io.BytesIO()
            np.savez(packed, positions=positions, sums=sums, averages=np.array(json.dumps(averages)))
            data = packed.getvalue()
            pieces = [data[start : start + VALUE_BYTES] for start in range(0, len(data), VALUE_BYTES)]
            for number, piece in enumerate(pieces):
                # The store takes bytes too, although torch's stubs say otherwise.
                self._store.set(self._key(f"{epoch}/{self._rank}/{number}"), piece)  # type: ignore[arg-type]
            self._store.set(self._key(f"{epoch}/{self._rank}"), str(len(pieces)))
            self._handed[self._rank] += 1
        except distributed.DistError as error:
            # The writing rank, which misses the part, tells the user.
            logger.debug("Rank %d cannot hand over epoch %d: %s", self._rank, epoch, _reason(error))

    def _fetch(
        self, epoch: int, rank: int, deadline: float
    ) -> tuple[np.ndarray, np.ndarray, Averages] | None:
        """A rank's positions, sums and averages; None if they have not come in time."""
        if rank not in self._present:
            if not self._appears(f"here/{rank}", min(deadline, time.monotonic() + PRESENCE_TIMEOUT_S)):
                return None
            self._present.add(rank)
        key = f"{epoch}/{rank}"
        if not self._appears(key, deadline):
            return None
        keys = [f"{key}/{number}" for number in range(int(self._store.get(self._key(key))))]
        data = b"".join(self._store.get(self._key(piece)) for piece in keys)
        if not isinstance(_bare(self._store), distributed.FileStore):  # a FileStore keeps everything
            for old in (key, *keys):
                self._store.delete_key(self._key(old))
        self._handed[rank] += 1
        self._store.set(self._key(f"taken/{rank}"), str(self._handed[rank]))
        with np.load(io.BytesIO(data)) as part:
            return part["positions"], part["sums"], json.loads(str(part["averages"]))

    def _appears(self, key: str, deadline: float) -> bool:
        while not self._store.check([self._key(key)]):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _tell_incomplete(self, epoch: int, rank: int, found: int, steps: int) -> None:
        if not self._incomplete_told:
            self._incomplete_told = True
            logger.warning(
                "Epoch %d: rank %d recorded %d of this rank's %d steps; the statistics of the others are without it.",
                epoch,
                rank,
                found,
                steps,
            )

    def _key(self, key: str) -> str:
        return f"{self._name}/{key}"


def _exact(sums: np.ndarray) -> np.ndarray:
    """The sums in double precision; a single part's squared mean is computed in it: ranks' means differ by little."""
    sums = sums.astype(np.float64)
    sums[..., 3] = np.where(sums[..., 0] == 1, sums[..., 1] ** 2, sums[..., 3])
    return sums


def _bare(store: Any) -> Any:
    while isinstance(store, distributed.PrefixStore):
        store = store.underlying_store
    return store


def _reason(error: Exception) -> str:
    return redact_text(str(error).partition("\n")[0])
