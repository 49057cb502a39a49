"""What may be written down of a tracking URI and of an error: never a secret."""

from __future__ import annotations

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from mlflow_dynamics.tracking.runs import named
from mlflow_dynamics.tracking.store import reason_of, redact

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://me:hunter2@host/base", "https://host/base"),
        ("https://hunter2@host/a@b", "https://host/a@b"),
        ("https://host/base?token=hunter2", "https://host/base"),
        ("postgresql://me:hunter2@host/runs", "postgresql://host/runs"),
        (
            "postgresql+psycopg2://me:hun/ter2@host:5432/runs?password=hunter2",
            "postgresql+psycopg2://host:5432/runs",
        ),
        ("mysql+pymysql://me:hunter2@x@host/runs", "mysql+pymysql://host/runs"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("sqlite:////home/mlflow.db?key=hunter2", "sqlite:////home/mlflow.db"),
        ("/home/me@work/runs", "/home/me@work/runs"),
        ("databricks", "databricks"),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact(shown) == shown


@given(
    st.sampled_from(["http", "https", "postgresql", "mysql+pymysql"]),
    st.text(st.characters(codec="ascii", exclude_characters="@?/ "), max_size=8),
)
def test_no_password_is_shown(scheme: str, around: str) -> None:
    assert SECRET not in redact(f"{scheme}://user:{around}{SECRET}{around}@host:1/base")


@pytest.mark.parametrize(
    "message",
    [
        "API request to https://me:hunter2@host/api/2.0/mlflow/runs/create failed with exception",
        "could not connect to postgresql://me:hun/hunter2@host/runs",
        "GET https://host/api?token=hunter2&x=1 answered 403",
        "HTTPConnectionPool(host='h', port=1): Max retries exceeded with url: /api/2.0?key=hunter2 (Caused by",
    ],
)
def test_the_reason_of_a_failure_names_no_secret(message: str) -> None:
    reason = reason_of(MlflowException(message))
    assert SECRET not in reason
    assert len(reason) <= 200


def test_a_run_is_named_by_its_link_only_behind_a_server_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    assert named(run) == run_id
    charts = f"experiments/0/runs/{run_id}/model-metrics?"
    mlflow.set_tracking_uri("https://me:hunter2@host/base/")
    assert named(run) == f"{run_id}: https://host/base/#/{charts}workflowType=machine_learning"
    monkeypatch.setenv("MLFLOW_WORKSPACE", "our team")
    assert named(run).endswith(f"/{charts}workspace=our%20team&workflowType=machine_learning")
