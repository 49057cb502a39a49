"""Reads metric histories of many runs at once: from the tables of a SQL store, or in bulk from a server.

`MlflowClient.get_metric_history` asks for one metric of one run. Here, one request asks for one metric of a hundred
runs (the server's limit), and one query asks for all metrics of five hundred runs. A server takes longer than a local
store, because it makes an object and a JSON text of each value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.dbmodels.models import SqlMetric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.rest_utils import verify_rest_response
from sqlalchemy import select

from mlflow_dynamics.tracking.store import NOT_MLFLOW, HttpStore, ask, connect_to_read, reading

COLUMNS: Final = ("run_id", "key", "step", "timestamp", "value")
_TYPES: Final = {"step": "int64", "timestamp": "int64", "value": "float64"}
RUNS_PER_QUERY: Final = 500
RUNS_PER_REQUEST: Final = 100
ROWS_PER_REQUEST: Final = 25_000
REQUESTS_AT_ONCE: Final = 4
BULK_ENDPOINT: Final = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
"""The endpoint from which MLflow's own UI draws its charts. A server that lacks it is asked run by run."""

Row = tuple[str, str, int, int, float]


def metric_histories(tracking_uri: str, run_ids: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Return every logged value of `keys` in `run_ids`, one row each: run_id, key, step, timestamp (ms), value.

    Runs that do not exist or lack a metric give no rows. A NaN that was logged comes back as NaN.

    Raises:
        TrackingError: the store cannot be read, or gives a value that is not a number.
    """
    with reading("The metrics"):
        store = connect_to_read(tracking_uri)
        if isinstance(store, SqlAlchemyStore):
            rows = _from_tables(store, run_ids, keys)
        elif isinstance(store, HttpStore):
            rows = _from_server(store, run_ids, keys)
        else:
            rows = _one_by_one(store, run_ids, keys)
        return pd.DataFrame.from_records(list(rows), columns=list(COLUMNS)).astype(_TYPES)


def _from_tables(store: SqlAlchemyStore, run_ids: Sequence[str], keys: Sequence[str]) -> Iterator[Row]:
    columns = (SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step, SqlMetric.timestamp, SqlMetric.value)
    with store.ManagedSessionMaker() as session:
        for some in _chunks(run_ids, RUNS_PER_QUERY):
            query: Any = select(*columns, SqlMetric.is_nan).where(
                SqlMetric.run_uuid.in_(some), SqlMetric.key.in_(list(keys))
            )
            for *row, is_nan in session.execute(query):
                if is_nan:
                    row[-1] = math.nan
                yield tuple(row)


def _from_server(store: HttpStore, run_ids: Sequence[str], keys: Sequence[str]) -> Iterator[Row]:
    def fetch(request: tuple[str, Sequence[str]]) -> list[Row]:
        return list(_bulk(store, *request))

    requests = [(key, some) for some in _chunks(run_ids, RUNS_PER_REQUEST) for key in keys]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for rows in pool.map(fetch, requests):
            yield from rows


def _bulk(store: HttpStore, key: str, run_ids: Sequence[str]) -> Iterator[Row]:
    parameters = {"run_id": list(run_ids), "metric_key": key, "max_results": ROWS_PER_REQUEST}
    response = ask(store.get_host_creds(), BULK_ENDPOINT, "GET", params=parameters)
    if response.status_code == 404:
        yield from _one_by_one(store, run_ids, [key])
        return
    points = _points(verify_rest_response(response, BULK_ENDPOINT).json, key, run_ids)
    if len(points) < ROWS_PER_REQUEST:
        yield from points
    elif len(run_ids) > 1:
        # The answer may be cut off at the server's limit, so ask for half of the runs at a time.
        half = len(run_ids) // 2
        yield from _bulk(store, key, run_ids[:half])
        yield from _bulk(store, key, run_ids[half:])
    else:
        yield from _one_by_one(store, run_ids, [key])


def _points(answer: Callable[[], Any], key: str, run_ids: Sequence[str]) -> list[Row]:
    try:
        points = [
            (point["run_id"], key, int(point["step"]), int(point["timestamp"]), float(point["value"]))
            for point in answer()["metrics"]
        ]
        unasked = {run_id for run_id, *_ in points} - set(run_ids)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise MlflowException(f"{NOT_MLFLOW}: it holds a value of {key} that is none") from error
    if unasked:
        raise MlflowException(f"{NOT_MLFLOW}: it holds values of other runs than were asked for")
    return points


def _one_by_one(store: AbstractStore, run_ids: Sequence[str], keys: Sequence[str]) -> Iterator[Row]:
    for run_id in run_ids:
        for key in keys:
            for metric in store.get_metric_history(run_id, key):
                yield run_id, key, metric.step, metric.timestamp, metric.value


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
