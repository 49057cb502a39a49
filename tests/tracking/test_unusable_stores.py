"""A store that no second try makes usable: MLflow's own remedy is logged at once, and nobody waits for the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from torch import nn
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics import cli
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.recomputing import recompute, settings_of
from mlflow_dynamics.tracking import RunWriter
from mlflow_dynamics.tracking.runs import new_run
from mlflow_dynamics.tracking.store import connect
from mlflow_dynamics.watching import watch

UNUSABLE = {
    "file:///tmp/never-made/mlruns": "set `MLFLOW_ALLOW_FILE_STORE=true` to opt out of this exception",
    "s3://bucket/runs": "for how to run an MLflow server against one of the supported backend storage locations",
    "mssql+nodriver://me:secret@127.0.0.1:1/runs": "Can't load plugin: sqlalchemy.dialects:mssql.nodriver",
    "oracle://me:secret@127.0.0.1:1/runs": "127.0.0.1:1/runs",
    "uc:secret@127.0.0.1": "127.0.0.1",
    "mysql://me:secret@127.0.0.1:1/runs": "pip install mysqlclient",
    "mysql+asyncmy://me:secret@127.0.0.1:1/runs": "pip install asyncmy",
}


@pytest.fixture(params=UNUSABLE, ids=lambda uri: uri.partition(":")[0])
def remedy(request: pytest.FixtureRequest, own_mlflow: Path) -> str:
    """What the message ends with; the store is MLflow's present one."""
    mlflow.set_tracking_uri(request.param)
    return UNUSABLE[request.param]


def test_it_is_told_whole_by_who_begins_a_run_or_asks_for_one(remedy: str) -> None:
    before = Path.cwd().glob("**/*")
    known = set(before)
    for ask in (
        lambda: connect(mlflow.get_tracking_uri()),
        lambda: mlflow_dynamics.track(nn.Linear(2, 2)),
        lambda: mlflow_dynamics.load_metrics(["abc"]),
        lambda: mlflow_dynamics.search_runs(),
    ):
        with pytest.raises(TrackingError) as told:
            ask()
        assert remedy in str(told.value)
        assert "  " not in str(told.value)
        assert "secret" not in str(told.value)
    assert set(Path.cwd().glob("**/*")) == known


@pytest.mark.drawn
@pytest.mark.parametrize(
    "command", [["train", "--epochs", "1"], ["report", "abc"], ["watch", "abc"]], ids=" ".join
)
def test_a_command_says_it_in_one_sentence(
    remedy: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(command)
    assert left.value.code == cli.EXIT_BAD_INPUT
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert remedy in sentence


def test_a_run_begun_in_the_background_says_it_once_and_costs_nothing_at_the_end(
    remedy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mlflow_dynamics"):
        writer = RunWriter(new_run({}), spool_dir=tmp_path / "spool").start()
        writer.log_params({"lr": 0.1})
        wait_until(lambda: caplog.records)
        (record,) = caplog.records
        assert remedy in record.getMessage()
        begin = time.monotonic()
        assert writer.close(30) > 0
        assert time.monotonic() - begin < 5
    assert sum("fails (" in one.getMessage() for one in caplog.records) == 1


@pytest.mark.parametrize(
    "ask",
    [
        mlflow_dynamics.load_metrics,
        mlflow_dynamics.load_activations,
        settings_of,
        lambda run_id: list(recompute(run_id, MeasureConfig())),
        lambda run_id: list(watch(run_id)),
    ],
)
def test_a_run_that_is_asked_for_makes_no_database(
    ask: Callable[[str], object], tmp_path: Path, own_mlflow: Path
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(TrackingError, match="no such database is there"):
        ask("abc")
    assert not (tmp_path / "other.db").exists()
