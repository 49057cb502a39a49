"""Names: all are ones that MLflow takes; paths stay in the run's folder."""

import mlflow.utils.validation as validation
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from tracking_records import measures

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.tracking import names


def test_every_key_of_ours_is_one_that_mlflow_takes() -> None:
    keys = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    metrics = [*names.DYNAMICS_METRICS, *(key for key in keys if key.startswith(("train/", "validation/")))]
    assert len(metrics) == 16
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
    assert len(set(names.DYNAMICS_METRICS)) == 9


def test_paths_of_an_epoch_go_there_and_back() -> None:
    assert names.activations_path(3) == "dynamics/activations/epoch=00003/part-0.parquet"
    assert names.layer_measures_path(123_456) == "dynamics/layer_measures.parquet/epoch=123456/part-0.parquet"
    for epoch in (0, 99_999, 123_456):
        assert names.epoch_of(names.activations_path(epoch)) == epoch
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
