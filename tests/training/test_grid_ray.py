"""A grid on a Ray cluster of two nodes, which are processes of this machine."""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import mlflow
import pytest
import warm_python
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from waiting import wait_until

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.claims import claims
from mlflow_dynamics.training.engines import TAG_CELL, engine_of
from mlflow_dynamics.training.grid import train_grid
from mlflow_dynamics.training.parameters import EngineConfig, TrainingConfig
from mlflow_dynamics.training.run import train_in_run

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning"
    ),  # of processes and files that Ray leaves to its own end
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[cluster_utils.Cluster]:
    """A head that trains nothing, and two nodes with room for one cell each."""
    monkeypatch.setattr(sys, "executable", warm_python.COLD)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    running = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        running.add_node(num_cpus=1)
    yield running
    ray.shutdown()
    running.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)


EPOCHS = 10


def small(seed: int, epochs: int) -> TrainingConfig:
    return TrainingConfig(epochs=epochs, limit_train=64, limit_test=32, seed=seed)


def runs() -> list[Run]:
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`{TAG_CELL}` != ''", output_format="list"
    )


def losses(run_id: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in MlflowClient().get_metric_history(run_id, "train/loss")]


def test_the_cell_of_a_node_that_dies_goes_on_on_another_from_its_checkpoint_as_if_trained_alone(
    cluster: cluster_utils.Cluster,
) -> None:
    engine = engine_of(EngineConfig(engine="ray", address=cluster.address))
    lost: list[str] = []
    begun: list[str] = []

    def kill_a_node() -> None:
        wait_until(lambda: sum(claim.done > 1 for claim in claims("0")) == 2)
        begun.extend(run.info.run_id for run in runs())
        trained = claims("0")
        node = next(node for node in cluster.list_all_nodes() if not node.head)
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: any(claim.is_gone() for claim in trained))
        lost.extend(claim.what for claim in trained if claim.is_gone())

    killing = threading.Thread(target=kill_a_node)
    killing.start()
    parent = train_grid([small(seed, EPOCHS) for seed in (0, 1)], engine)
    killing.join()
    found = runs()
    assert {run.info.run_id for run in found} == set(begun)
    assert Counter(run.data.params["seed"] for run in found) == {"0": 1, "1": 1}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {parent}
    assert all([step for step, _ in losses(run.info.run_id)] == [*range(EPOCHS)] for run in found)
    assert claims("0") == []
    (again,) = [run for run in found if run.data.tags[TAG_CELL] in lost]
    assert losses(train_in_run(small(int(again.data.params["seed"]), EPOCHS))) == losses(again.info.run_id)


def test_ctrl_c_ends_the_cells_on_their_nodes_as_killed(cluster: cluster_utils.Cluster) -> None:
    engine = engine_of(EngineConfig(engine="ray", address=cluster.address))

    def interrupt() -> None:
        wait_until(lambda: sum(claim.done > 0 for claim in claims("0")) == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        train_grid([small(seed, 500) for seed in (0, 1, 2)], engine)
    interrupting.join()
    assert [run.info.status for run in runs()] == ["KILLED", "KILLED"]
    assert claims("0") == []


def test_a_cluster_that_is_not_there_is_said_in_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"address='127.0.0.1:1': no Ray cluster can be used there"
    ) as refused:
        engine_of(EngineConfig(engine="ray", address="127.0.0.1:1"))
    assert "\n" not in str(refused.value)
