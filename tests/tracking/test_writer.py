"""The writer against a real server: nothing is lost or sent twice, nobody waits, and each change gives one message."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from faulty_training import warnings_of
from mlflow import MlflowClient
from tracking_records import activations, assert_complete, client_at, layers, measures, write_epoch
from tracking_server import Asked, FaultyProxy, Lie, MlflowServer
from waiting import wait_until

from mlflow_dynamics.errors import ConfigError, DataError, TrackingError
from mlflow_dynamics.tracking import RunWriter, end_run, names, open_run, spool
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.sender import Sender
from mlflow_dynamics.tracking.spool import Spool
from mlflow_dynamics.tracking.sync import sync


def new_run(uri: str) -> str:
    return str(MlflowClient(uri).create_run("0").info.run_id)


def test_all_that_is_written_is_in_mlflow_and_the_folder_is_gone(
    server: MlflowServer, tmp_path: Path
) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    writer.write_layers(layers())
    for epoch in range(5):
        write_epoch(writer, epoch)
    writer.log_params({"optimizer": "sgd", "depth": 20, "long": "x" * 7000})
    writer.set_tags({names.TAG_CONVERGED_EPOCH: 3})
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    writer.log_artifact(report)
    assert writer.close(30) == 0

    assert_complete(server.uri, run_id, 5)
    client = client_at(server.uri)
    run = client.get_run(run_id)
    assert run.data.params == {"optimizer": "sgd", "depth": "20", "long": "x" * 6000}
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "3"
    assert run.data.tags[names.TAG_SCHEMA_VERSION] == "1"
    assert run.info.status == "RUNNING"
    assert {file.path for file in client.list_artifacts(run_id, "dynamics")} == {
        names.ACTIVATIONS,
        names.LAYER_MEASURES,
        names.LAYERS,
        names.REPORT,
    }
    local = client.download_artifacts(run_id, names.activations_path(2), str(tmp_path))
    assert pq.ParquetFile(local).metadata.num_rows == 100
    assert list((tmp_path / ".mlflow_dynamics").iterdir()) == []


def test_writing_an_epoch_does_not_wait_for_a_server_that_hangs(proxy: FaultyProxy) -> None:
    run_id = new_run(proxy.uri)
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    proxy.fault = "hang"
    slowest = 0.0
    for epoch in range(100):
        began = time.perf_counter()
        write_epoch(writer, epoch)
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.5  # a quiet machine takes 2 ms; a busy one must not fail the test
    began = time.perf_counter()
    assert writer.close(1.0) > 90
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("fault", [429, 500, 503, 403, "garbage", "lose", "refuse"])
def test_after_each_fault_all_is_there_once_and_each_way_is_said_once(
    fault: int | str, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_dynamics")
    run_id = new_run(proxy.uri)
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: not writer._spool.entries())
    seen = proxy.requests
    if fault == "refuse":
        proxy.refuse()
    else:
        proxy.fault = fault
    for epoch in range(1, 10):
        write_epoch(writer, epoch)
    wait_until(lambda: writer._sender.failing)
    if fault != "refuse":
        wait_until(lambda: proxy.requests >= seen + 3)  # it is tried again
        proxy.fault = None
    else:
        proxy.listen()
    write_epoch(writer, 10)
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 11)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 2, messages
    begins = "MLflow at {} takes nothing" if fault == 403 else "Sending to MLflow at {} fails"
    assert messages[0].startswith(begins.format(proxy.uri))
    assert "takes records again" in messages[1]


def test_an_answer_that_comes_late_is_waited_for_by_nobody_but_the_sender(server: MlflowServer) -> None:
    class SlowProxy(FaultyProxy):
        def _handle(self, request) -> None:  # type: ignore[no-untyped-def]
            time.sleep(0.7)
            super()._handle(request)

    proxy = SlowProxy(server.port)
    run_id = new_run(server.uri)
    began = time.perf_counter()
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    assert time.perf_counter() - began < 0.7  # which is what one answer takes
    assert writer.close(60) == 0
    proxy.close()
    assert_complete(server.uri, run_id, 1)


def test_a_failing_artifact_store_does_not_hold_the_metrics_back(
    proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.fault, proxy.faulty_paths = 507, "mlflow-artifacts"
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    for epoch in range(4):
        write_epoch(writer, epoch)
    history = lambda: MlflowClient(proxy.uri).get_metric_history(run_id, names.TRAIN_LOSS)  # noqa: E731
    wait_until(lambda: len(history()) == 4)
    assert writer._spool.entries()
    proxy.fault = None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 4)
    assert len(warnings_of(caplog)) == 2


def test_a_file_that_is_too_large_for_the_server_waits_and_holds_nothing_back(
    proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.fault, proxy.faulty_paths = 413, names.REPORT
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    for epoch in range(4):
        write_epoch(writer, epoch)
        writer.write_files({names.REPORT: b"version %d" % epoch, names.figure_path("one"): b"png"})
    began = time.monotonic()
    assert writer.close(30) == 1
    assert time.monotonic() - began < 20
    assert_complete(proxy.uri, run_id, 4)
    refused, left = [record.getMessage() for record in caplog.records]
    assert f"refuses {names.REPORT} (413: a file of 9 bytes is too large for the server" in refused
    assert "1 records of run" in left
    assert "(413: a file of 9 bytes is too large for the server)" in left
    (unsent,) = sync(tracking_uri=proxy.uri)
    assert (unsent.left, unsent.reason) == (1, "413: a file of 9 bytes is too large for the server")
    proxy.fault = None
    (sent,) = sync(tracking_uri=proxy.uri)
    assert (sent.left, sent.reason) == (0, None)
    client = client_at(proxy.uri)
    assert Path(client.download_artifacts(run_id, names.REPORT)).read_text() == "version 3"


def test_a_server_killed_mid_run_and_restarted_has_everything(empty_store: Path, tmp_path: Path) -> None:
    with MlflowServer(tmp_path / "server", empty_store) as server:
        run_id = new_run(server.uri)
        writer = RunWriter(run_id, tracking_uri=server.uri).start()
        for epoch in range(30):
            if epoch == 10:
                server.kill()
            write_epoch(writer, epoch)
            if epoch < 12:
                time.sleep(0.02)
        server.start()
        assert writer.close(60) == 0
        assert_complete(server.uri, run_id, 30)


def test_a_run_deleted_while_it_trains_keeps_its_records_until_it_is_restored(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(server.uri)
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: not writer._spool.entries())
    client.delete_run(run_id)
    write_epoch(writer, 1)
    wait_until(lambda: writer._sender.failing)
    assert "is deleted: mlflow runs restore --run-id" in caplog.text
    client.restore_run(run_id)
    assert writer.close(60) == 0
    assert_complete(server.uri, run_id, 2)


def test_a_refused_parameter_is_set_aside_and_the_rest_goes_on(
    server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    writer.log_params({"depth": 20})
    writer.log_params({"depth": 56})
    write_epoch(writer, 0)
    assert writer.close(60) == 0
    assert_complete(server.uri, run_id, 1)
    assert MlflowClient(server.uri).get_run(run_id).data.params == {"depth": "20"}
    assert "refused a record" in caplog.text
    (reason,) = Path(".mlflow_dynamics", run_id, "rejected").glob("*/reason.txt")
    assert "Changing param values is not allowed" in reason.read_text()


@pytest.mark.parametrize("where", ["server", "sqlite"])
def test_a_resumed_run_that_repeats_epochs_has_none_twice(where: str, server: MlflowServer) -> None:
    uri = server.uri if where == "server" else mlflow.get_tracking_uri()
    run_id = new_run(uri)
    for begin, end in ((0, 4), (2, 7)):
        writer = RunWriter(run_id, tracking_uri=uri).start()
        for epoch in range(begin, end):
            write_epoch(writer, epoch)
            time.sleep(0.002)  # so that the repeated epoch has another timestamp
        assert writer.close(60) == 0
    assert_complete(uri, run_id, 7)


def test_values_that_are_not_finite_reach_mlflow(server: MlflowServer) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    for epoch, value in enumerate((1.0, math.nan, math.inf, -math.inf)):
        writer.write_epoch(epoch, None, {names.TRAIN_LOSS: value}, None, 1_000 + epoch)
    assert writer.close(30) == 0
    history = MlflowClient(server.uri).get_metric_history(run_id, names.TRAIN_LOSS)
    values = [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert values[2] > 1e308
    assert values[3] < -1e308


def test_a_clock_that_goes_backwards_changes_no_order(server: MlflowServer) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    for epoch in range(5):
        writer.write_epoch(epoch, None, {names.TRAIN_LOSS: float(epoch)}, None, 1_000_000 - 1_000 * epoch)
    assert writer.close(30) == 0
    client = MlflowClient(server.uri)
    assert client.get_run(run_id).data.metrics[names.TRAIN_LOSS] == 4.0
    assert len(client.get_metric_history(run_id, names.TRAIN_LOSS)) == 5


def test_a_server_that_was_never_there_gets_the_run_later_with_its_right_times(
    proxy: FaultyProxy, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuse()
    mlflow.set_tracking_uri(proxy.uri)
    before = int(time.time() * 1000)
    run_id, owned = open_run(experiment_name="offline", run_name="first", tags={"who": "me"})
    assert owned
    assert run_id.startswith("local-")
    assert mlflow.active_run() is None
    writer = RunWriter(run_id).start()
    assert writer.run_id is None
    for epoch in range(3):
        write_epoch(writer, epoch)
    after = int(time.time() * 1000)
    time.sleep(0.2)
    proxy.listen()
    assert end_run(writer, "FINISHED", 60) == 0

    assert writer.run_id is not None
    run = MlflowClient(server.uri).get_run(writer.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert before <= run.info.start_time <= after
    assert after <= run.info.end_time
    assert run.data.tags["who"] == "me"
    experiment = MlflowClient(server.uri).get_experiment_by_name("offline")
    assert experiment is not None
    assert experiment.experiment_id == run.info.experiment_id
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert_complete(server.uri, writer.run_id, 3)
    assert "takes no run (there is no connection)" in caplog.text
    assert len(warnings_of(caplog)) == 2


def test_nothing_to_send_is_no_sign_that_the_server_is_back(
    proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuse()
    record = RunRecord(tracking_uri=proxy.uri, run_id=None, local_id="x")
    sender = Sender(Spool(tmp_path / "local-x", record), proxy.uri, failed_before=True)
    sender.start()
    sender.finish(10)
    assert not sender.is_alive()
    assert sender.failing is not None
    assert caplog.records == []


def test_a_lost_answer_to_the_creation_makes_no_second_run(proxy: FaultyProxy, server: MlflowServer) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    proxy.fault, proxy.faulty_paths = "lose", "runs/create"
    run_id, _ = open_run(experiment_name="lost-answer")
    assert run_id.startswith("local-")
    proxy.fault = None
    writer = RunWriter(run_id).start()
    write_epoch(writer, 0)
    assert end_run(writer) == 0
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("lost-answer")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == writer.run_id


def test_two_runs_in_one_process_do_not_mix(server: MlflowServer) -> None:
    run_ids = [new_run(server.uri) for _ in range(2)]
    writers = [RunWriter(run_id, tracking_uri=server.uri).start() for run_id in run_ids]
    for epoch in range(6):
        write_epoch(writers[epoch % 2], epoch // 2)
    assert [writer.close(60) for writer in writers] == [0, 0]
    for run_id in run_ids:
        assert_complete(server.uri, run_id, 3)


def test_a_second_writer_of_a_run_finds_a_folder_of_its_own(server: MlflowServer, tmp_path: Path) -> None:
    run_id = new_run(server.uri)
    first, second = (RunWriter(run_id, tracking_uri=server.uri).start() for _ in range(2))
    first.set_tags({"first": "1"})
    second.set_tags({"second": "2"})
    assert first.close(30) == second.close(30) == 0
    tags = MlflowClient(server.uri).get_run(run_id).data.tags
    assert (tags["first"], tags["second"]) == ("1", "2")


def test_a_newer_report_takes_the_place_of_one_that_still_waits(proxy: FaultyProxy, tmp_path: Path) -> None:
    run_id = new_run(proxy.uri)
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    proxy.fault = 503
    report = tmp_path / "report.html"
    for version in range(5):
        report.write_text(f"version {version}")
        writer.log_artifact(report)
    waiting = list(Path(".mlflow_dynamics").glob("**/report.html"))
    assert [file.read_text() for file in waiting] == ["version 4"]
    proxy.fault = None
    assert writer.close(60) == 0
    local = client_at(proxy.uri).download_artifacts(run_id, names.REPORT, str(tmp_path))
    assert Path(local).read_text() == "version 4"


def test_beyond_the_bound_the_oldest_activations_go_and_numbers_stay(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.fault = 503
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    writer.write_layers(layers())
    monkeypatch.setattr(spool, "MAX_DISK_BYTES", 60_000)
    for epoch in range(20):
        write_epoch(writer, epoch)
    files = [file for file in Path(".mlflow_dynamics").glob("**/artifacts/**/*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 60_000
    kept = sorted(names.epoch_of(file.as_posix()) for file in files if "activations" in file.as_posix())
    assert kept
    assert kept == list(range(20 - len(kept), 20))
    assert caplog.text.count("the oldest activations go") == 1
    proxy.fault = None
    assert writer.close(60) == 0
    client = client_at(proxy.uri)
    assert len(client.get_metric_history(run_id, names.TRAIN_LOSS)) == 20
    assert len(client.list_artifacts(run_id, names.LAYER_MEASURES)) == 20
    assert len(client.list_artifacts(run_id, names.ACTIVATIONS)) == len(kept)


def test_credentials_reach_neither_log_nor_spool(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_dynamics")
    secret = f"http://user:hunter2@127.0.0.1:{server.port + 1 if server.port < 65535 else 1}"
    mlflow.set_tracking_uri(secret)
    run_id, _ = open_run()
    writer = RunWriter(run_id).start()
    write_epoch(writer, 0)
    writer.close(1)
    assert caplog.records
    assert "hunter2" not in caplog.text
    for path in tmp_path.rglob("*"):
        assert "hunter2" not in str(path)
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


def test_what_cannot_be_recorded_is_refused_in_one_sentence(server: MlflowServer, tmp_path: Path) -> None:
    writer = RunWriter(new_run(server.uri), tracking_uri=server.uri).start()
    with pytest.raises(ConfigError, match="metric key 'a//b'"):
        writer.write_epoch(0, None, {"a//b": 1.0}, None, 0)
    with pytest.raises(ConfigError, match=r"absent\.html cannot be recorded as an artifact: No such file"):
        writer.log_artifact(tmp_path / "absent.html")
    with pytest.raises(ConfigError, match="stays in the run's artifact folder"):
        writer.log_artifact(tmp_path / "absent.html", "../../elsewhere")
    with pytest.raises(ConfigError, match="status='DONE' is not known"):
        writer.end_run("DONE")
    writer.close(30)
    with pytest.raises(DataError, match=r"holds no run\.json"):
        RunWriter("local-unknown").start()


def test_the_measures_of_layers_are_beside_the_activations(server: MlflowServer, tmp_path: Path) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    writer.write_epoch(3, activations(3), {}, measures(3), 0)
    assert writer.close(30) == 0
    local = client_at(server.uri).download_artifacts(run_id, names.layer_measures_path(3), str(tmp_path))
    assert pq.ParquetFile(local).read()["phase_coherence"].to_pylist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_a_spool_that_another_holds_is_left_alone(tmp_path: Path) -> None:
    record = RunRecord(tracking_uri="sqlite:///x.db", run_id="abc")
    first = Spool(tmp_path / "abc", record)
    second = spool.open_spool(tmp_path, "abc", record)
    assert second.folder.name == "abc.1"
    first.close()
    second.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_that_ends_or_dies_takes_nothing_with_it(server: MlflowServer) -> None:
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    for epoch in range(4):
        child = os.fork()
        if child == 0:
            if epoch % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        os.waitpid(child, 0)
        write_epoch(writer, epoch)
    spool_folder = writer._spool.folder
    with pytest.raises(TrackingError, match="in use"):
        Spool(spool_folder)
    assert writer.close(30) == 0
    assert_complete(server.uri, run_id, 4)


def test_runs_of_several_threads_and_nested_runs_stay_apart(server: MlflowServer) -> None:
    mlflow.set_tracking_uri(server.uri)
    opened: dict[str, str] = {}

    def train(name: str) -> None:
        run_id, owned = open_run(experiment_name="threads", run_name=name)
        assert owned
        assert not run_id.startswith("local-")
        writer = RunWriter(run_id).start()
        for epoch in range(3):
            write_epoch(writer, epoch)
        assert end_run(writer, "FINISHED", 60) == 0
        opened[name] = run_id

    threads = [threading.Thread(target=train, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(opened.values())) == 4
    for run_id in opened.values():
        assert_complete(server.uri, run_id, 3)
        assert MlflowClient(server.uri).get_run(run_id).info.status == "FINISHED"

    with mlflow.start_run() as parent, mlflow.start_run(nested=True) as child:
        run_id, owned = open_run()
        assert (run_id, owned) == (child.info.run_id, False)
        writer = RunWriter(run_id).start()
        write_epoch(writer, 0)
        assert writer.close(30) == 0
    assert_complete(server.uri, child.info.run_id, 1)
    assert MlflowClient(server.uri).get_run(parent.info.run_id).data.metrics == {}


def test_the_run_that_mlflow_prepared_is_used(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(server.uri)
    prepared = new_run(server.uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", prepared)
    assert open_run() == (prepared, False)


def test_an_owned_run_is_the_active_one_until_it_ends(server: MlflowServer) -> None:
    mlflow.set_tracking_uri(server.uri)
    run_id, owned = open_run(experiment_name="owned")
    assert owned
    mlflow.log_metric("mine", 1.0)
    writer = RunWriter(run_id).start()
    assert end_run(writer, "FAILED", 30) == 0
    assert mlflow.active_run() is None
    run = MlflowClient(server.uri).get_run(run_id)
    assert run.data.metrics == {"mine": 1.0}
    assert run.info.status == "FAILED"
    last = mlflow.last_active_run()
    assert last is not None
    assert last.info.run_id == run_id


def test_a_server_that_fails_once_all_is_sent_holds_no_end_up(proxy: FaultyProxy) -> None:
    """Nor are its words printed: MLflow's own end waits minutes, and prints the run's name as it comes."""
    mlflow.set_tracking_uri(proxy.uri)
    run_id, owned = open_run()
    assert owned
    writer = RunWriter(run_id).start()
    write_epoch(writer, 0)

    def fail_after_the_end(asked: Asked) -> Lie | None:
        status = MlflowClient(f"http://127.0.0.1:{proxy.upstream_port}").get_run(run_id).info.status
        return Lie(status=503) if status == "FINISHED" and "/runs/update" in asked.path else None

    proxy.lies = fail_after_the_end
    began = time.monotonic()
    assert end_run(writer, "FINISHED", 30) == 0
    assert time.monotonic() - began < 10
    assert mlflow.active_run() is None


def test_ending_a_run_whose_server_is_gone_waits_no_longer_than_asked(proxy: FaultyProxy) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    run_id, owned = open_run()
    assert owned
    writer = RunWriter(run_id).start()
    write_epoch(writer, 0)
    wait_until(lambda: not writer._spool.entries())
    proxy.refuse()
    began = time.monotonic()
    assert end_run(writer, "FINISHED", 1.0) == 1
    assert time.monotonic() - began < 10
    assert mlflow.active_run() is None
    proxy.listen()
    wait_until(lambda: not writer._sender.is_alive())
    sync()
    assert MlflowClient(proxy.uri).get_run(run_id).info.status == "FINISHED"
