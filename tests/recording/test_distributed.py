"""Real processes under torchrun, gloo on CPU: one run, and in it the numbers of a single process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed_training import BATCH, EPOCHS, RANKS, STEPS, data, epoch, network, sgd
from torch.utils.data import DataLoader
from torchrun import Job, launch

from mlflow_dynamics import load_activations, load_metrics
from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.records import EpochActivations
from mlflow_dynamics.tracking import load_layers
from mlflow_dynamics.tracking.sync import sync

SCRIPT = Path(__file__).parent / "distributed_training.py"
WAYS = ("bare", "track", "uneven", "sharded", "not wrapped", "tensor parallel", "first rank only")


@pytest.fixture(scope="module")
def job(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All the ways that end well, in one job: starting processes takes longer than training in them."""
    made = launch(SCRIPT, tmp_path_factory.mktemp("job"), empty_store, *WAYS)
    assert made.code == 0, made.lines
    return made


def single_process() -> list[EpochActivations]:
    """What one process records that trains on the global batches."""
    model = network()
    optimizer = sgd(model)
    whole = data()
    found = []
    with Recorder(model, RecordingConfig()) as recorder:
        for number in range(EPOCHS):
            for _ in epoch(model, optimizer, iter(DataLoader(whole, batch_size=BATCH * RANKS))):
                pass
            found.append(recorder.end_epoch(number).result())
    return found


def recorded(run_id: str, column: str) -> np.ndarray:
    """(layers, epochs * steps) of a run."""
    table = load_activations(run_id).to_pandas().sort_values(["layer", "epoch", "step"])
    return table[column].to_numpy().reshape(3, -1)


def assert_that_of_one_process(run_id: str, steps: slice = slice(None)) -> None:
    one = single_process()
    for column in ("mean", "std"):
        expected = np.concatenate([getattr(part, column)[:, steps] for part in one], axis=1)
        of_run = recorded(run_id, column).reshape(3, EPOCHS, STEPS)[:, :, steps].reshape(3, -1)
        np.testing.assert_allclose(of_run, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("how", ["track", "sharded"])
def test_the_statistics_are_those_of_one_process_on_the_global_batches(job: Job, how: str) -> None:
    run_id = job.use(how)
    assert_that_of_one_process(run_id)
    steps = load_activations(run_id, layers=[0]).to_pandas().sort_values("step")["step"]
    assert steps.tolist() == list(range(EPOCHS * STEPS))
    assert load_metrics([run_id])["dynamics/stability"].iloc[-1] > 0


def test_the_comparison_can_fail(job: Job) -> None:
    with pytest.raises(AssertionError):
        assert_that_of_one_process(job.use("not wrapped"))


@pytest.mark.parametrize("how", ["track", "first rank only"])
def test_losses_are_bit_for_bit_those_without_recording(job: Job, how: str) -> None:
    for rank in range(RANKS):
        assert job.told(how, rank)["losses"] == job.told("bare", rank)["losses"]


def test_one_rank_writes_the_run_and_all_get_the_same_answer(job: Job) -> None:
    first, second = (job.told("track", rank) for rank in range(RANKS))
    assert first["run"] == job.use("track")
    assert second["run"] is None
    assert first["stops"] == second["stops"] == [False] * EPOCHS


def test_a_rank_that_does_not_record_is_missed_once_and_kept_nobody_waiting(job: Job) -> None:
    run_id = job.use("first rank only")
    own = recorded(run_id, "std")
    assert own.shape == (3, EPOCHS * STEPS)
    with pytest.raises(AssertionError):
        assert_that_of_one_process(run_id)
    assert job.lines.count("missing: rank 1 (it does not record this model)") == 1


def test_steps_that_a_rank_with_fewer_batches_does_not_make_are_those_of_the_others(job: Job) -> None:
    run_id = job.use("uneven")
    assert recorded(run_id, "mean").shape == (3, EPOCHS * STEPS)
    one = single_process()[0]
    of_run = recorded(run_id, "mean")[:, :STEPS]
    np.testing.assert_allclose(of_run[:, : STEPS - 4], one.mean[:, : STEPS - 4], rtol=2e-4, atol=2e-5)
    assert not np.allclose(of_run[:, -4:], one.mean[:, -4:], rtol=1e-2)
    assert job.lines.count("rank 1 recorded 20 of this rank's 24 steps") == 1


def test_without_a_wrapper_the_first_rank_is_recorded_alone_and_says_so(job: Job) -> None:
    job.use("not wrapped")
    assert job.lines.count("wrapped neither by DistributedDataParallel nor by fully_shard") == 1


def test_layers_of_a_sharded_model_have_the_types_that_the_user_wrote(job: Job) -> None:
    layers = load_layers(job.use("sharded"))
    assert [layer.type for layer in layers] == ["Conv2d", "Linear", "Linear"]


def test_outputs_spread_over_the_ranks_are_declined_and_the_training_goes_on(job: Job) -> None:
    assert len(job.told("tensor parallel", 0)["losses"]) == EPOCHS * STEPS
    assert job.lines.count("RecordingError: A layer's output is a DTensor") == RANKS


def test_autolog_records_one_run_with_the_loss_of_all_ranks_and_only_the_first_speaks(
    empty_store: Path, tmp_path: Path, job: Job
) -> None:
    folder = tmp_path / "autolog"
    folder.mkdir()
    made = launch(SCRIPT, folder, empty_store, "autolog", "autolog sharded")
    assert made.code == 0, made.lines
    for how, name in (("autolog", "Sequential"), ("autolog sharded", "FSDPSequential")):
        assert_that_of_one_process(made.use(how))
        assert made.lines.count(f"Recording {name} (3 layers) into a new run") == 1
    losses = np.array([made.told("autolog", rank)["losses"] for rank in range(RANKS)])
    for rank in range(RANKS):
        assert losses[rank].tolist() == job.told("bare", rank)["losses"]
    logged = load_metrics([made.use("autolog")])["train/loss"]
    np.testing.assert_allclose(logged, losses.reshape(RANKS, EPOCHS, STEPS).mean(axis=(0, 2)), rtol=1e-5)


def test_epochs_before_a_rank_died_are_kept(empty_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dies"
    folder.mkdir()
    made = launch(SCRIPT, folder, empty_store, "dies")
    assert made.code != 0
    sync(folder / ".mlflow_dynamics", tracking_uri=f"sqlite:///{folder}/mlflow.db")
    run_id = made.use("dies")
    one = single_process()
    of_run = recorded(run_id, "std")
    np.testing.assert_allclose(
        of_run[:, : 2 * STEPS], np.concatenate([one[0].std, one[1].std], axis=1), rtol=2e-4
    )


@pytest.mark.slow
def test_compiled_models_record_the_same(empty_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    ways = ("compiled", "compiled sharded")
    made = launch(SCRIPT, folder, empty_store, *ways)
    assert made.code == 0, made.lines
    for how in ways:
        assert_that_of_one_process(made.use(how))
