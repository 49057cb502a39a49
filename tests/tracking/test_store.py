"""Redaction: no secret of a tracking URI or of an error is written down."""

from __future__ import annotations

import importlib.util
import time
from urllib.parse import quote

import mlflow
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from mlflow_dynamics.redaction import redact, redact_text
from mlflow_dynamics.tracking.runs import named, new_run
from mlflow_dynamics.tracking.store import reason_of

SECRET = "hunter2"
HOST = "mlflow.example.org:5000"

schemes = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc", "s3"])
around = st.one_of(st.text(max_size=8), st.text("@:/?#&=% ;\\\n'\"[]", max_size=8))
users = st.builds("{}{}{}{}".format, around, st.sampled_from(["", "u:"]), st.just(SECRET), around)
tails = st.sampled_from(
    ["", "/", "/base/runs", "/base?token=hunter2", "/#/experiments?x=hunter2", "?a=1&key=hunter2"]
)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://me:hunter2@host/base", "https://host/base"),
        ("https://host/a%40b", "https://host/a%40b"),
        ("https://hunter2@host/a@b", "https://b"),
        ("http://user:hunter2/hunter2@h", "http://h"),
        ("postgresql://u:hunter2?hunter2@h/db", "postgresql://h/db"),
        ("file://u:hunter2@h/x", "file://h/x"),
        ("sqlite+pysqlcipher://:hunter2@/runs.db", "sqlite+pysqlcipher:///runs.db"),
        ("https://host/base?token=hunter2@hunter2", "https://..."),
        ("https://host/base#access_token=hunter2", "https://host/base"),
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
        ("git@github.com:me/x.git", "git@github.com:me/x.git"),
        ("http:/u:hunter2@h", "h"),
        ("postgresql:/u:hunter2@h/db", "h/db"),
        ("uc:hunter2@h", "h"),
        ("uc:hunter2?hunter2@h", "..."),
        ("u:hunter2@h:5000", "h:5000"),
        ("//u:hunter2@h/x", "h/x"),
        ("/work/https//u:hunter2@h", "h"),
        ("file:////u:hunter2@h/x", "file://h/x"),
        ("file:/x?token=hunter2", "file:/x"),
        ("sqlite:////x.db#hunter2", "sqlite:////x.db"),
        ("sqlite:///x.db;key=hunter2", "sqlite:///x.db"),
        ("https://host/base;token=hunter2", "https://host/base"),
    ],
)
def test_a_uri_is_shown_without_its_secrets(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert redact(shown) == shown


@settings(max_examples=1000)
@given(schemes, users, tails)
@example("http", "user:hunter2/cret", "")
@example("http", "u:p@hunter2?a=b", "/base?token=hunter2")
def test_no_password_is_shown_and_the_host_is(scheme: str, user: str, tail: str) -> None:
    shown = redact(f"{scheme}://{user}@{HOST}{tail}")
    assert SECRET not in shown
    assert redact(shown) == shown
    # What reads like a query may be one, and then what follows its @ is no host.
    assume(shown != f"{scheme}://...")
    assert shown.startswith(f"{scheme}://{HOST}")


@settings(max_examples=1000)
@given(schemes, users, tails, st.sampled_from(["", "no answer from http://first.example.org/x: ", "why? "]))
def test_no_password_is_in_the_reason_of_a_failure_and_the_host_is(
    scheme: str, user: str, tail: str, before: str
) -> None:
    said = f"{before}cannot reach {scheme}://{user}@{HOST}{tail} (timeout)"
    reason = reason_of(MlflowException(said))
    assert SECRET not in reason
    assert SECRET not in reason_of(OSError(f"{said}; see {scheme}://{user}@{HOST}{tail}"))
    assert HOST in reason
    assert "\n" not in reason
    assert len(reason) <= 200
    assert reason.isprintable()


@settings(max_examples=1000)
@given(
    st.sampled_from(["http:/", "postgresql:/", "uc:", "//", "https//", "file:////", "http:\\\\", ""]),
    around,
    around,
)
def test_no_password_is_shown_of_an_address_whose_form_is_wrong(start: str, before: str, after: str) -> None:
    uri = f"{start}u:{before}{SECRET}{after}@host/x"
    assert SECRET not in redact(uri)
    assert redact(redact(uri)) == redact(uri)


@settings(max_examples=1000)
@given(
    st.sampled_from(["sqlite:////x.db", "file:///x", "http://h/x", "/api/2.0/x"]),
    st.sampled_from(["?token=", "#key=", "?a=b&key="]),
    around,
)
def test_no_query_is_in_a_text_though_blanks_be_in_it(place: str, query: str, before: str) -> None:
    assume("@" not in before)  # what stands before it may be a password, and what follows it a host
    assert SECRET not in redact_text(f"cannot open '{place}{query}{before} {SECRET}': it failed")


def test_a_long_text_takes_no_time() -> None:
    began = time.thread_time()
    redact_text("://" * 100_000 + "/" * 100_000)
    assert time.thread_time() - began < 1


def test_the_cause_is_left_of_a_text_that_quotes_a_query() -> None:
    said = "API request to http://h/x?token=a b failed: url: /x?token=a b (Caused by Nothing('refused'))"
    assert redact_text(said) == "API request to http://h/x (Caused by Nothing('refused'))"


@given(users)
def test_no_password_of_an_encoded_uri_is_shown(user: str) -> None:
    assert SECRET not in redact_text(f"sent to /login/next/{quote(f'http://{user}@host/x', safe='')} instead")


def test_the_tags_of_a_run_tell_where_its_code_is_from_without_the_password() -> None:
    record = new_run({"mlflow.source.git.repoURL": "https://me:hunter2@git.host/x.git", "mine": "a://b@c"})
    assert record.tags == {"mlflow.source.git.repoURL": "https://git.host/x.git", "mine": "a://b@c"}


@pytest.mark.parametrize(
    "message",
    [
        "API request to https://me:hunter2@host/api/2.0/mlflow/runs/create failed with exception",
        "could not connect to postgresql://me:hun/hunter2@host/runs",
        "GET https://host/api?token=hunter2&x=1 answered 403",
        "the database answers: bad dsn postgresql://u:hunter2 hunter2@h/runs",
        "redirected to https://login.host/#access_token=hunter2&state=1",
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
    if importlib.util.find_spec("mlflow.utils.workspace_context"):  # from MLflow 3.6 on
        monkeypatch.setenv("MLFLOW_WORKSPACE", "our team")
        assert named(run).endswith(f"/{charts}workspace=our%20team&workflowType=machine_learning")
