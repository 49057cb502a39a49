"""Names: MLflow accepts all of them, paths stay in the run's folder, and epochs are read back from them."""

import os
from pathlib import Path

import mlflow
import mlflow.utils.validation as validation
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from tracking_records import measures

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.tracking import names, open_run
from mlflow_dynamics.tracking.run_record import RunRecord, read_run, save_run
from mlflow_dynamics.tracking.runs import new_run
from mlflow_dynamics.tracking.spool import open_folder
from mlflow_dynamics.tracking.store import stored_uri


def test_every_key_of_ours_is_one_that_mlflow_takes() -> None:
    keys = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    metrics = [*names.DYNAMICS_METRICS, *(key for key in keys if key.startswith(("train/", "validation/")))]
    assert len(metrics) == 20
    for key in metrics:
        validation._validate_metric(key, 1.0, 0, 0)
        names.check_key("metric", key)
    for tag in (
        names.TAG_SCHEMA_VERSION,
        *names.STATE_TAGS.values(),
        names.TAG_STOPPED_EARLY,
        names.TAG_LOCAL_ID,
    ):
        validation._validate_tag(tag, "1")
    assert names.MAX_KEY_LENGTH == validation.MAX_ENTITY_KEY_LENGTH
    assert len(set(names.DYNAMICS_METRICS)) == 13


def test_paths_of_an_epoch_go_there_and_back() -> None:
    assert names.activations_path(3) == "dynamics/activations/epoch=3/part-0.parquet"
    assert names.layer_measures_path(123_456) == "dynamics/layer_measures.parquet/epoch=123456/part-0.parquet"
    for epoch in (0, 99_999, 123_456):
        assert names.epoch_of(names.activations_path(epoch)) == epoch
    assert names.epoch_of("dynamics/activations/epoch=00003/part-0.parquet") == 3  # of an earlier version
    for path in ("dynamics/activations/epoch=3", "dynamics/layers.parquet", "xepoch=00003/part-0.parquet"):
        with pytest.raises(DataError, match="no epoch's file"):
            names.epoch_of(path)


@given(st.text(max_size=300))
def test_keys_that_we_take_mlflow_takes_too(key: str) -> None:
    try:
        names.check_key("metric", key)
    except ConfigError:
        return
    validation._validate_metric(key, 1.0, 0, 0)


@given(st.text(alphabet="ab./\\:%~ \x00é", max_size=12))
def test_artifact_paths_that_we_take_stay_in_the_folder(path: str) -> None:
    try:
        names.check_artifact_path(path)
    except ConfigError:
        return
    verify_artifact_path(path)
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\\b", "C:/x", "a/./b", "...", "..a/b"]
)
def test_artifact_paths_that_leave_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="relative path"):
        names.check_artifact_path(path)


def test_mlflow_would_refuse_what_leaves() -> None:
    with pytest.raises(MlflowException):
        verify_artifact_path("../x")


def test_undefined_measures_are_left_out_and_never_zero() -> None:
    metrics = names.measure_metrics(measures(0))
    assert names.STABILITY not in metrics
    assert metrics[names.INTEGRATION] == 1.0
    assert metrics[names.LAYERS_DROPPED] == 0.0


ANY_NAME = st.text(st.characters(codec=None), max_size=300)


@given(name=ANY_NAME, folder=ANY_NAME)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_names_a_run_and_its_store_what_run_json_says_is_read_back(
    name: str, folder: str, tmp_path: Path
) -> None:
    begun = new_run({f"tag {name}": name}, experiment_name=name, run_name=name)
    places = (f"sqlite:////{folder}/m.db", f"file:///{folder * 20}", f"http://host/{folder}")
    named = [RunRecord(tracking_uri=stored_uri(place), run_id=begun.local_id) for place in places]
    for run in (begun, *named):
        home = open_folder(tmp_path / run.name, create=True)
        save_run(home, run)
        assert read_run(home) == run


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_an_environment_that_cannot_be_decoded_names_what_can_be_read_back(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, variable, os.fsdecode(b"caf\xe9") * 60)
    run = new_run({"mlflow.source.name": os.fsdecode(b"caf\xe9")})
    home = open_folder(tmp_path / run.name, create=True)
    save_run(home, run)
    assert read_run(home) == run


def test_a_run_begins_in_an_experiment_whose_name_cannot_be_decoded(
    own_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_EXPERIMENT_NAME", os.fsdecode(b"caf\xe9"))
    run, owned = open_run()
    assert owned
    found = MlflowClient().get_run(str(run))
    mlflow.end_run()
    assert MlflowClient().get_experiment(found.info.experiment_id).name == r"caf\udce9"
