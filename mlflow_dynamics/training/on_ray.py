"""Trains the cells of a grid as tasks of a Ray cluster: each on the first node with room for it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Final

import ray
from mlflow.environment_variables import MLFLOW_RUN_ID
from ray.exceptions import RayError, RayTaskError

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.training.engines import ENDING_S, LOOK_S, Cell, Engine, Outcome, train_apart
from mlflow_dynamics.training.interruption import ignore_interrupts
from mlflow_dynamics.training.parameters import EngineConfig

logger = logging.getLogger(__name__)

ANSWER_S: Final = 10.0


def connected(config: EngineConfig) -> Engine:
    """Connect to the cluster, or start one; return the engine.

    Raises:
        ConfigError: the cluster does not answer.
    """
    try:
        _require_answer(config.address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(config.address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(
            f"address={config.address!r}: no Ray cluster can be used there ({' '.join(str(error).split())}); start one "
            "(ray start --head), or give another address."
        ) from error
    gpus = config.gpus_per_cell
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
    asked = {"CPU": config.cpus_per_cell, "GPU": gpus}
    if not any(
        all(node["Resources"].get(kind, 0) >= number for kind, number in asked.items())
        for node in ray.nodes()
        if node["Alive"]
    ):
        logger.warning(
            "No node of the cluster has %s CPUs and %s GPUs: cells wait until one has", *asked.values()
        )
    return partial(on_ray, cpus=config.cpus_per_cell, gpus=gpus)


def _require_answer(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT, for which Ray itself waits minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), ANSWER_S).close()


def on_ray(more: Callable[[], Cell | None], *, cpus: float, gpus: float) -> Generator[Outcome, None, None]:
    """Train each cell in a task. Ray knows of all of them at once, and begins them as nodes have room."""
    # A task that is lost with its node is given to Ray again by the grid, which looks at the cell's claim before.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_train)
    settings = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MLFLOW_") and name != MLFLOW_RUN_ID.name
    }
    given: dict[ray.ObjectRef, Cell] = {}
    try:
        while True:
            while (cell := more()) is not None:
                given[task.remote(cell, settings)] = cell
            if not given:
                return
            for ended in ray.wait([*given], timeout=LOOK_S)[0]:
                cell = given.pop(ended)
                try:
                    yield ray.get(ended)
                except RayTaskError as error:
                    yield Outcome(cell=cell, state="failed", reason=str(error).strip().rpartition("\n")[2])
                except RayError as error:
                    reason = f"its task was lost ({type(error).__name__})"
                    yield Outcome(cell=cell, state="lost", reason=reason)
    finally:
        if given:
            ignore_interrupts()
            for one in given:
                ray.cancel(one)
            ray.wait([*given], num_returns=len(given), timeout=ENDING_S)


def _train(cell: Cell, settings: Mapping[str, str]) -> Outcome:
    os.environ.update(settings)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        return train_apart(cell)
    except FileNotFoundError as error:
        here = os.uname().nodename
        reason = f"{error.filename} is not there on {here}; a grid's folder is one that all nodes share"
        return Outcome(cell=cell, state="failed", reason=reason)
