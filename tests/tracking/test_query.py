"""Queries: the values are right, the same from a SQLite store as through a server, and errors are clear."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact import s3_artifact_repo
from tracking_records import activations, layers, write_epoch
from tracking_server import FaultyProxy

from mlflow_dynamics.cli import main
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.tracking import (
    RunWriter,
    load_activations,
    load_layers,
    load_metrics,
    load_metrics_table,
    metric_history,
    names,
    query,
    scan_activations,
    search_runs,
)


def record(experiment_id: str, name: str, epochs: int) -> str:
    client = MlflowClient()
    run_id = str(client.create_run(experiment_id, run_name=name).info.run_id)
    writer = RunWriter(run_id).start()
    writer.write_layers(layers())
    for epoch in range(epochs):
        write_epoch(writer, epoch)
        accuracy = {names.VALIDATION_ACCURACY: min(0.1 * epoch, 0.7)}
        writer.write_epoch(epoch, None, accuracy, None, int(time.time() * 1000))
    writer.log_params({"optimizer": name})
    writer.set_tags({names.TAG_CONVERGED_EPOCH: 4})
    assert writer.close(60) == 0
    return run_id


@pytest.fixture(params=["sqlite", "server"])
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An experiment "study" with runs sgd (12 epochs), adam (3), bare (no dynamics) and deleted."""
    if request.param == "server":
        mlflow.set_tracking_uri(request.getfixturevalue("server").uri)
    client = MlflowClient()
    name = f"study-{request.node.name}"
    experiment = client.create_experiment(name)
    runs = {"experiment": name, "id": experiment}
    runs["sgd"] = record(experiment, "sgd", 12)
    runs["adam"] = record(experiment, "adam", 3)
    runs["bare"] = str(client.create_run(experiment, run_name="bare").info.run_id)
    runs["deleted"] = str(client.create_run(experiment, run_name="deleted").info.run_id)
    client.delete_run(runs["deleted"])
    return runs


def test_queries_give_the_recorded_values(recorded: dict[str, str]) -> None:
    frame = load_metrics(
        [recorded["sgd"], recorded["adam"], recorded["bare"]], params=["optimizer"], tags=["absent"]
    )
    assert list(frame.columns[:3]) == ["run_id", "epoch", names.INTEGRATION]
    assert set(names.DYNAMICS_METRICS) <= set(frame.columns)
    assert len(frame) == 15
    assert frame["run_id"].drop_duplicates().tolist() == [recorded["sgd"], recorded["adam"]]
    assert frame["epoch"].tolist() == [*range(12), *range(3)]
    assert frame[names.TRAIN_LOSS].tolist() == [1 / (epoch + 1) for epoch in frame["epoch"]]
    assert frame[names.INTEGRATION].tolist() == [1 + epoch / 1000 for epoch in frame["epoch"]]
    assert frame[names.STABILITY].isna().all()
    assert frame["params.optimizer"].tolist() == ["sgd"] * 12 + ["adam"] * 3
    assert frame["tags.absent"].isna().all()

    by_experiment = load_metrics(
        experiment_names=recorded["experiment"],
        filter_string="params.optimizer = 'adam'",
        metrics=[names.TRAIN_LOSS],
    )
    assert list(by_experiment.columns) == ["run_id", "epoch", names.TRAIN_LOSS]
    assert by_experiment[names.TRAIN_LOSS].tolist() == [1, 1 / 2, 1 / 3]

    table = load_metrics_table(recorded["adam"])
    assert isinstance(table, pa.Table)
    assert table[names.STABILITY].null_count == 3

    found = search_runs(recorded["experiment"])
    assert found["run_name"].tolist() == ["bare", "adam", "sgd"]
    # All of them still train: what is there is there.
    assert set(found["status"]) == {"RUNNING"}
    sgd = found.set_index("run_name").loc["sgd"]
    assert sgd["plateau_epoch"] == 7
    assert sgd["warning_epoch"] == 4
    assert sgd["lead_time"] == 3
    assert sgd[names.INTEGRATION] == 1.011
    assert found.set_index("run_name")["plateau_epoch"].isna()["bare"]
    assert len(search_runs(recorded["experiment"], max_results=2)) == 2
    ordered = search_runs(recorded["experiment"], order_by=["params.optimizer DESC"], max_results=1)
    assert ordered["run_name"].tolist() == ["sgd"]

    table = load_activations(
        recorded["sgd"], epochs=[3, 7], layers=[1, "block4.conv"], columns=["epoch", "layer", "mean"]
    )
    assert table.schema.names == ["epoch", "layer", "mean"]
    assert table.num_rows == 2 * 2 * 20
    three = table.filter(pa.compute.equal(table["epoch"], 3)).to_pandas()
    np.testing.assert_array_equal(three.loc[three["layer"] == 4, "mean"], activations(3).mean[4])
    both = load_activations([recorded["sgd"], recorded["adam"]])
    assert both.num_rows == 15 * 100
    assert both.schema.names == ["run_id", "epoch", "step", "layer", "mean", "std"]
    assert load_activations(recorded["bare"]).num_rows == 0
    assert load_activations(recorded["bare"]).schema.names == both.schema.names
    assert load_layers(recorded["sgd"]) == layers()


def test_what_cannot_be_found_is_one_clear_sentence(
    recorded: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow 2's server says of a file that it has not that it failed (500), which is tried again for minutes.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for unknown in ("0" * 32, "a'; DROP TABLE runs --", ""):
        for call in (load_metrics, load_activations):
            with pytest.raises(TrackingError, match="There is no run"):
                call([recorded["sgd"], unknown])
    restored_by = f"is deleted; mlflow runs restore --run-id {recorded['deleted']}"
    for call in (load_metrics, load_metrics_table, load_activations, scan_activations, load_layers):
        with pytest.raises(TrackingError, match=restored_by):
            call(recorded["deleted"])
    MlflowClient().delete_experiment(MlflowClient().create_experiment(f"{recorded['experiment']}, gone"))
    with pytest.raises(TrackingError, match="gone' is deleted; mlflow experiments restore --experiment-id"):
        search_runs(f"{recorded['experiment']}, gone")
    with pytest.raises(TrackingError, match="There is no experiment 'nowhere'"):
        search_runs("nowhere")
    with pytest.raises(TrackingError, match="The runs cannot be read"):
        search_runs(recorded["experiment"], "this is no filter")
    with pytest.raises(ConfigError, match="not both"):
        load_metrics(recorded["sgd"], experiment_names="study")
    with pytest.raises(ConfigError, match=r"columns='mena' is not known.*Did you mean 'mean'"):
        load_activations(recorded["sgd"], columns=["mena"])
    with pytest.raises(ConfigError, match=r"layers='block9\.conv' is not known.*Did you mean 'block"):
        load_activations(recorded["sgd"], layers=["block9.conv"])
    with pytest.raises(TrackingError, match=r"dynamics/layers\.parquet of run .* cannot be read"):
        load_layers(recorded["bare"])


def test_a_local_name_leads_to_the_run_that_was_created_for_it(recorded: dict[str, str]) -> None:
    name = f"{names.LOCAL_PREFIX}0123456789abcdef"
    with pytest.raises(TrackingError, match="is not in MLflow yet; send it with"):
        query.whole_id(name)
    MlflowClient().set_tag(recorded["adam"], names.TAG_LOCAL_ID, "0123456789abcdef")
    assert query.whole_id(name) == recorded["adam"]


def test_one_term_of_an_order_is_given_as_text_or_in_a_list(recorded: dict[str, str]) -> None:
    one, several = (
        search_runs(recorded["experiment"], order_by=order)["run_name"].to_list()
        for order in ("attributes.run_name DESC", ["attributes.run_name DESC"])
    )
    assert one == several == ["sgd", "bare", "adam"]


def test_runs_are_found_in_experiments_beyond_the_first_page(
    recorded: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    for number in range(3):  # A store lists those that were changed last first.
        client.create_experiment(f"{recorded['experiment']}, later {number}")
    monkeypatch.setattr(query, "_PAGE", 2)
    assert len(load_metrics(recorded["sgd"])) == 12
    assert query.whole_id(recorded["sgd"][:12]) == recorded["sgd"]


def test_runs_of_earlier_versions_are_read_under_the_names_of_today(recorded: dict[str, str]) -> None:
    client = MlflowClient()
    old = str(client.create_run(recorded["id"], run_name="old").info.run_id)
    for epoch in range(3):
        for key, earlier in names.EARLIER_KEYS.items():
            # Its last epoch was recorded by this version.
            client.log_metric(old, key if epoch == 2 else earlier, epoch + 0.5, 1_000 + epoch, epoch)
    for key, earlier in names.EARLIER_KEYS.items():
        frame = load_metrics([old, recorded["adam"]])
        assert earlier not in frame
        assert frame.loc[frame["run_id"] == old, key].to_list() == [0.5, 1.5, 2.5]
        frame = load_metrics(old, metrics=[earlier])
        assert frame.columns.to_list() == ["run_id", "epoch", earlier]
        assert frame[earlier].to_list() == [0.5, 1.5, 2.5]
        assert frame["epoch"].to_list() == [0, 1, 2]
    found = search_runs(recorded["experiment"]).set_index("run_id")
    assert found.loc[old, names.CONVERGENCE_SCORE] == 2.5


def test_nothing_found_is_an_empty_frame_with_its_columns(recorded: dict[str, str]) -> None:
    frame = load_metrics(recorded["bare"])
    assert frame.empty
    assert list(frame.columns) == ["run_id", "epoch", *names.DYNAMICS_METRICS]
    assert frame["epoch"].dtype == "Int64"
    none = search_runs(recorded["experiment"], "params.optimizer = 'none'")
    assert none.empty
    assert {"warning_epoch", "plateau_epoch", *names.DYNAMICS_METRICS} <= set(none.columns)


def test_many_runs_scan_as_one_data_set(recorded: dict[str, str], tmp_path: Path) -> None:
    data_set = scan_activations([recorded["sgd"], recorded["adam"]], folder=tmp_path / "kept")
    table = data_set.to_table(filter=pa.dataset.field("run_id") == recorded["adam"])
    assert table.num_rows == 300
    assert set(table["run_id"].to_pylist()) == {recorded["adam"]}
    assert data_set.count_rows() == 1500


@pytest.fixture
def s3_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An S3-compatible store with the bucket "shelf", to which MLflow is pointed; the requests it has answered."""
    pytest.importorskip("moto", reason="moto is in the test extra")
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    answered: list[str] = []
    monkeypatch.setattr(
        "werkzeug.serving.WSGIRequestHandler.log_request",
        lambda handler, *_: answered.append(f"{handler.command} {handler.path}"),
    )
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="shelf")
    yield answered
    store.stop()


def without_a_bucket(_recorded: str, _monkeypatch: pytest.MonkeyPatch) -> str:
    elsewhere = MlflowClient().create_experiment("elsewhere", artifact_location="s3://nowhere/runs")
    return str(MlflowClient().create_run(elsewhere).info.run_id)


def without_credentials(recorded: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    return recorded


def without_the_store(recorded: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    return recorded


@pytest.mark.drawn
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (without_a_bucket, "The specified bucket does not exist"),
        (without_credentials, "Unable to locate credentials"),
        (without_the_store, "Could not connect to the endpoint URL"),
    ],
)
def test_a_store_of_objects_that_cannot_be_read_is_one_clear_sentence(
    broken: Callable[[str, pytest.MonkeyPatch], str],
    reason: str,
    s3_requests: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = MlflowClient().create_experiment("remote", artifact_location="s3://shelf/runs")
    run_id = broken(record(experiment, "sgd", 1), monkeypatch)
    # What boto3 and MLflow remember of the earlier settings.
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    sentence = rf"of run '{run_id}' cannot be read from s3://\S+: .*{reason}"
    for read in (load_activations, scan_activations, load_layers):
        with pytest.raises(TrackingError, match=sentence):
            read(run_id)
    with pytest.raises(SystemExit):
        main(["report", run_id])
    said = capsys.readouterr().err
    assert re.search(rf"^Error: dynamics/activations {sentence}", said, re.MULTILINE)
    assert "Traceback" not in said


def test_a_store_of_objects_is_scanned_where_it_lies(s3_requests: list[str]) -> None:
    experiment = MlflowClient().create_experiment("remote", artifact_location="s3://shelf/runs")
    run_id = record(experiment, "sgd", 4)
    s3_requests.clear()
    table = load_activations(run_id, epochs=[2], layers=[1], columns=["epoch", "layer", "mean"])
    np.testing.assert_array_equal(table["mean"].to_numpy(), activations(2).mean[1])
    read = [request for request in s3_requests if request.startswith("GET") and "part-0" in request]
    assert read
    assert all(re.search("epoch(=|%3D)2/", request) for request in read)
    assert scan_activations(run_id).count_rows() == 400


def test_duckdb_and_polars_read_many_runs_in_one_query() -> None:
    duckdb = pytest.importorskip("duckdb")
    polars = pytest.importorskip("polars")
    runs = [record("0", "sgd", 3), record("0", "adam", 2)]
    recorded = scan_activations(runs)
    query = "SELECT run_id, count(*), avg(std) FROM recorded WHERE epoch = 1 GROUP BY run_id"
    with duckdb.connect() as connection:
        connection.register("recorded", recorded)
        by_duckdb = {run_id: (rows, std) for run_id, rows, std in connection.execute(query).fetchall()}
    frame = polars.scan_pyarrow_dataset(recorded).filter(polars.col("epoch") == 1).group_by("run_id")
    by_polars = frame.agg(polars.len(), polars.col("std").mean()).collect()
    expected = float(activations(1).std.mean())
    for found in (by_duckdb, {run_id: (rows, std) for run_id, rows, std in by_polars.iter_rows()}):
        assert found.keys() == set(runs)
        for rows, std in found.values():
            assert rows == 100
            assert std == pytest.approx(expected, rel=1e-6)


def test_a_damaged_file_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = record("0", "sgd", 3)
    (path,) = tmp_path.rglob("activations/epoch=1/part-0.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    table = load_activations(run_id)
    assert sorted(set(table["epoch"].to_pylist())) == [0, 2]
    assert "Epoch 1 of run" in caplog.text
    assert "truncated or not a Parquet file" in caplog.text


def test_only_the_epochs_asked_for_are_fetched(proxy: FaultyProxy) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    run_id = record("0", "sgd", 10)
    before = proxy.requests
    load_activations(run_id, epochs=[4])
    assert proxy.requests - before <= 8


def test_a_server_without_the_bulk_endpoint_and_cut_answers_give_the_same(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    runs = [record("0", "sgd", 4), record("0", "adam", 6)]
    expected = load_metrics(runs)
    assert len(expected) == 10
    proxy.fault, proxy.faulty_paths = 404, "get-history-bulk"
    pd.testing.assert_frame_equal(load_metrics(runs), expected)
    proxy.fault = None
    monkeypatch.setattr(metric_history, "ROWS_PER_REQUEST", 5)
    pd.testing.assert_frame_equal(load_metrics(runs), expected)


def test_the_later_of_two_values_at_a_step_counts_and_nan_stays_nan() -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, names.TRAIN_LOSS, 2.0, timestamp=2000, step=0)
    client.log_metric(run_id, names.TRAIN_LOSS, 1.0, timestamp=1000, step=0)
    client.log_metric(run_id, names.TRAIN_LOSS, math.nan, timestamp=3000, step=1)
    frame = load_metrics(run_id, metrics=[names.TRAIN_LOSS])
    assert frame[names.TRAIN_LOSS].tolist()[0] == 2.0
    assert math.isnan(frame[names.TRAIN_LOSS].tolist()[1])


@pytest.mark.parametrize("text", ["soon", "2.5", "-1", "", "²"])
def test_text_in_a_tag_that_holds_an_epoch_is_no_epoch(text: str) -> None:
    client = MlflowClient()
    client.set_tag(client.create_run("0").info.run_id, names.TAG_CONVERGED_EPOCH, text)
    client.set_tag(client.create_run("0").info.run_id, names.TAG_CONVERGED_EPOCH, "7")
    found = search_runs(experiment_names="Default")["warning_epoch"]
    assert len(found) == 2
    assert found.dropna().tolist() == [7]


def test_a_server_that_is_gone_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="The runs cannot be read"):
        load_metrics(["0" * 32])
