"""Reads many runs at once: tidy frames of metrics, and runs with their outcomes of convergence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.store.entities import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore

from mlflow_dynamics.checks import is_whole, require
from mlflow_dynamics.convergence.plateau import plateau_epoch
from mlflow_dynamics.deprecation import renamed
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.epoch_numbers import MARKS, epochs_of
from mlflow_dynamics.tracking.metric_history import metric_histories
from mlflow_dynamics.tracking.mlflow_private import experiment_id
from mlflow_dynamics.tracking.store import (
    connect_to_read,
    connect_to_read_runs,
    reading,
    whole_experiment,
    whole_run,
)

_GROUPS: Final = ("dynamics/", "train/", "validation/")
_RUN_COLUMNS: Final = ("run_id", "run_name", "experiment_id", "status", "start_time", "end_time")
_TODAY: Final = {earlier: key for key, earlier in names.EARLIER_KEYS.items()}
_PAGE: Final = 1_000
_IDS_PER_SEARCH: Final = 200
_RUN_ID: Final = re.compile(r"[\w-]{1,256}")

Found = TypeVar("Found", Run, Experiment)


@renamed(experiment="experiment_names")
def load_metrics(
    runs: str | Sequence[str] | None = None,
    *,
    experiment_names: str | Sequence[str] | None = None,
    filter_string: str = "",
    metrics: Sequence[str] | None = None,
    params: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> pd.DataFrame:
    """Load the metrics of many runs as one tidy frame with a row for each run and epoch.

    Args:
        runs: a run id, or several; None means all runs of `experiment_names` that pass `filter_string`.
        experiment_names: the name of an experiment, or several; if `runs` is None too, None means MLflow's active
            experiment.
        filter_string: a filter in MLflow's own search syntax.
        metrics: metric keys; None means every key below dynamics/, train/ and validation/.
        params: parameters that become columns `params.NAME`.
        tags: tags that become columns `tags.NAME`.

    Returns:
        Columns run_id, epoch, the metrics, then params and tags. Rows are in the order of `runs` (in a search, the
        newest run first) and then of epochs. A metric that a run lacks is NaN. If a metric was logged twice in an
        epoch, the later value counts. A value that a framework has logged with its global step stands in the row of the
        epoch in which it was logged. If it is not known what the steps of a run count, each step has a row without an
        epoch (missing). Runs that still train give their epochs so far. A frame without rows has its columns.

    Raises:
        TrackingError: a run of `runs` or an experiment is unknown or deleted, or the store cannot be read.
        ConfigError: `runs` is given together with `experiment_names` or `filter_string`.
    """
    found = find_runs(runs, experiment_names=experiment_names, filter_string=filter_string)
    keys = list(metrics) if metrics is not None else _keys(found)
    wide = _by_epoch(found, keys)
    for prefix, chosen in (("params", params), ("tags", tags)):
        for name in chosen:
            values = {run.info.run_id: getattr(run.data, prefix).get(name) for run in found}
            wide[f"{prefix}.{name}"] = wide["run_id"].map(values)
    return wide


@renamed(experiment="experiment_names")
def load_metrics_table(
    runs: str | Sequence[str] | None = None,
    *,
    experiment_names: str | Sequence[str] | None = None,
    filter_string: str = "",
    metrics: Sequence[str] | None = None,
    params: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> pa.Table:
    """Do what `load_metrics` does, but return an Arrow table. A metric that a run lacks is null."""
    frame = load_metrics(
        runs,
        experiment_names=experiment_names,
        filter_string=filter_string,
        metrics=metrics,
        params=params,
        tags=tags,
    )
    return pa.Table.from_pandas(frame, preserve_index=False)


@renamed(experiment="experiment_names")
def search_runs(
    experiment_names: str | Sequence[str] | None = None,
    filter_string: str = "",
    *,
    max_results: int | None = None,
    order_by: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Search runs and return their outcomes of convergence, one row each. The arguments are as in `mlflow.search_runs`.

    Args:
        experiment_names: the name of an experiment, or several; None means MLflow's active experiment.
        filter_string: a filter in MLflow's own search syntax.
        max_results: the largest number of runs; None means all.
        order_by: a term in MLflow's own search syntax, or several; None means the newest run first.

    Returns:
        Columns run_id, run_name, experiment_id, status, start_time and end_time (UTC); warning_epoch, unsettled_epoch
        and diverging_epoch (the first epoch of the convergence signal, of risen volatility and of divergence);
        stopped_early; plateau_epoch (the first epoch whose centred 5-epoch median of validation accuracy is within 0.5
        points of the best epoch's); lead_time (plateau_epoch - warning_epoch); the last value of each dynamics metric
        and of validation accuracy. A value that a run lacks is missing, not 0.

    Raises:
        TrackingError: an experiment is unknown or deleted, or the store cannot be read or refuses the filter.
        ConfigError: `max_results` is not a number of runs.
    """
    holds = max_results is None or is_whole(max_results, least=0)
    require(holds, "max_results", max_results, "a whole number of at least 0, or None")
    found = find_runs(
        None,
        experiment_names=experiment_names,
        filter_string=filter_string,
        order_by=[order_by] if isinstance(order_by, str) else order_by or (),
        max_results=max_results,
    )
    frame = pd.DataFrame.from_records([_describe(run) for run in found], columns=list(_RUN_COLUMNS))
    for column in ("start_time", "end_time"):
        # A date beyond the years that pandas can represent becomes missing.
        frame[column] = pd.to_datetime(frame[column], unit="ms", utc=True, errors="coerce")
    tags = [run.data.tags for run in found]
    frame["warning_epoch"] = _integers(names.epoch_in(one, names.TAG_CONVERGED_EPOCH) for one in tags)
    frame["unsettled_epoch"] = _integers(names.epoch_in(one, names.TAG_UNSETTLED_EPOCH) for one in tags)
    frame["diverging_epoch"] = _integers(names.epoch_in(one, names.TAG_DIVERGING_EPOCH) for one in tags)
    frame["stopped_early"] = [one.get(names.TAG_STOPPED_EARLY) == "true" for one in tags]
    frame["plateau_epoch"] = _plateaus(found)
    frame["lead_time"] = frame["plateau_epoch"] - frame["warning_epoch"]
    for key in (*names.DYNAMICS_METRICS, names.VALIDATION_ACCURACY):
        frame[key] = pd.Series([_latest(run, key) for run in found], dtype="float64")
    return frame


def find_runs(
    runs: str | Sequence[str] | None,
    *,
    experiment_names: str | Sequence[str] | None = None,
    filter_string: str = "",
    order_by: Sequence[str] = (),
    max_results: int | None = None,
) -> list[Run]:
    """Return the runs that `runs` names, in that order, or that a search finds. Raises as `load_metrics` does."""
    uri = mlflow.get_tracking_uri()
    with reading("The runs"):
        store = connect_to_read(uri) if runs is None else connect_to_read_runs(runs, uri)
        if runs is None:
            ids = _experiment_ids(store, experiment_names)
            return _search(store, ids, filter_string, order_by=order_by, max_results=max_results)
        if experiment_names is not None or filter_string:
            raise ConfigError("Give runs, or experiment_names and filter_string, not both.")
        return _runs_by_id(store, [runs] if isinstance(runs, str) else list(runs))


def whole_id(begun: str) -> str:
    """Return the id of the one run whose id begins so, or which was created for this local name.

    A whole id is returned unchanged, and so is what begins no id.

    Raises:
        TrackingError: several ids begin so, no run is created for a local name, or the store cannot be read.
    """
    if begun.startswith(names.LOCAL_PREFIX):
        return created_run(begun)
    if re.fullmatch("[0-9a-f]{4,31}", begun) is None:
        return begun
    with reading("The runs"):
        store = connect_to_read(mlflow.get_tracking_uri())
        found = _search(store, _everywhere(store), f"attributes.run_id LIKE '{begun}%'", max_results=3)
    if len(found) > 1:
        several = ", ".join(run.info.run_id for run in found)
        raise TrackingError(f"{begun!r} begins the ids of several runs, such as {several}; give more of it.")
    return str(found[0].info.run_id) if found else begun


def tagged_runs(experiment_id: str, tag: str, value: str) -> list[Run]:
    """Return the runs of an experiment that have this tag, the newest first.

    Raises:
        TrackingError: the store cannot be read.
    """
    with reading("The runs"):
        return _search(connect_to_read(mlflow.get_tracking_uri()), [experiment_id], _tag_filter(tag, value))


def created_run(name: str) -> str:
    """Return the id of the MLflow run that was created for a local name. An id is returned unchanged.

    Raises:
        TrackingError: the run is not created yet, or the store cannot be read.
    """
    if not name.startswith(names.LOCAL_PREFIX):
        return name
    with reading(f"What {name!r:.100} has become"):
        store = connect_to_read(mlflow.get_tracking_uri())
        tagged = _tag_filter(names.TAG_LOCAL_ID, name.removeprefix(names.LOCAL_PREFIX))
        found = _search(store, _everywhere(store), tagged, max_results=1)
    if not found:
        raise TrackingError(f"Run {name!r} is not in MLflow yet; send it with: mlflow-dynamics sync")
    return str(found[0].info.run_id)


def _tag_filter(tag: str, value: str) -> str:
    return f"tags.`{tag}` = '{value}'"


def _runs_by_id(store: AbstractStore, run_ids: list[str]) -> list[Run]:
    everywhere = _everywhere(store, ViewType.ALL)
    found: dict[str, Run] = {}
    for start in range(0, len(run_ids), _IDS_PER_SEARCH):
        some = [one for one in run_ids[start : start + _IDS_PER_SEARCH] if _RUN_ID.fullmatch(str(one))]
        quoted = ", ".join(f"'{one}'" for one in some)
        if some:
            page = _search(store, everywhere, f"attributes.run_id IN ({quoted})", ViewType.ALL)
            found.update({run.info.run_id: run for run in page})
    for run_id in run_ids:
        if run_id not in found:
            raise TrackingError(f"There is no run {run_id!r} in {redact(mlflow.get_tracking_uri())}.")
        if found[run_id].info.lifecycle_stage == LifecycleStage.DELETED:
            raise TrackingError(
                f"Run {run_id!r} is deleted; mlflow runs restore --run-id {run_id} brings it back."
            )
    return [found[run_id] for run_id in run_ids]


def _everywhere(store: AbstractStore, view: int = ViewType.ACTIVE_ONLY) -> list[str]:
    """Return the ids of all experiments."""
    found = _paged(
        lambda size, token: store.search_experiments(view, size, page_token=token),
        lambda one: (one.experiment_id, one),
    )
    return list(found)


def _search(
    store: AbstractStore,
    experiment_ids: list[str],
    filter_string: str,
    view: int = ViewType.ACTIVE_ONLY,
    order_by: Sequence[str] = (),
    max_results: int | None = None,
) -> list[Run]:
    found = _paged(
        lambda size, token: store.search_runs(
            experiment_ids, filter_string, view, size, list(order_by), token
        ),
        lambda run: (run.info.run_id, whole_run(run)),
        most=max_results,
    )
    return list(found.values())


def _paged(
    page_of: Callable[[int, str | None], PagedList[Found]],
    named: Callable[[Found], tuple[str, Found]],
    *,
    most: int | None = None,
) -> dict[str, Found]:
    """Return what a store gives in pages, by id. A page without anything new is the last one, whatever it says."""
    found: dict[str, Found] = {}
    token = None
    while most is None or len(found) < most:
        page = page_of(_PAGE if most is None else min(_PAGE, most - len(found)), token)
        before = len(found)
        found |= dict(map(named, page))
        token = page.token
        if not token or len(found) == before:
            break
    return found


def _experiment_ids(store: AbstractStore, experiment: str | Sequence[str] | None) -> list[str]:
    if experiment is None:
        return [experiment_id()]
    ids = []
    for name in [experiment] if isinstance(experiment, str) else experiment:
        one = store.get_experiment_by_name(name)
        if one is None:
            raise TrackingError(f"There is no experiment {name!r} in {redact(mlflow.get_tracking_uri())}.")
        if one.lifecycle_stage == LifecycleStage.DELETED:
            raise TrackingError(
                f"Experiment {name!r} is deleted; mlflow experiments restore --experiment-id {one.experiment_id} "
                "brings it back."
            )
        ids.append(whole_experiment(one).experiment_id)
    return ids


def _latest(run: Run, key: str) -> float:
    earlier = run.data.metrics.get(names.EARLIER_KEYS.get(key, key), math.nan)
    return float(run.data.metrics.get(key, earlier))


def _keys(runs: Iterable[Run]) -> list[str]:
    own = {key for run in runs for key in run.data.metrics if key.startswith(_GROUPS)}
    return [*names.DYNAMICS_METRICS, *sorted(own.difference(names.DYNAMICS_METRICS, _TODAY))]


def _by_epoch(runs: Sequence[Run], keys: Sequence[str]) -> pd.DataFrame:
    """Return a row for each run and epoch, in the order of the runs, with a column for each key."""
    today = [_TODAY.get(key, key) for key in keys]
    run_ids = [run.info.run_id for run in runs]
    logged = {key for run in runs for key in run.data.metrics}
    # The order of the keys is that of their requests; a key that no run has would cost a request for nothing.
    asked = [one for key in dict.fromkeys((*today, *MARKS)) for one in (key, names.EARLIER_KEYS.get(key))]
    long = metric_histories(mlflow.get_tracking_uri(), run_ids, [one for one in asked if one in logged])
    long["key"] = long["key"].replace(_TODAY)
    epoch = epochs_of(long)
    # Values without an epoch get a row for each step, apart from the rows of the epochs.
    long = long.assign(known=epoch.notna(), at=epoch.fillna(long["step"]))[long["key"].isin(today)]
    row = ["run_id", "known", "at"]
    long = long.sort_values("timestamp", kind="stable").drop_duplicates([*row, "key"], keep="last")
    wide = long.set_index([*row, "key"])["value"].unstack("key")
    wide = wide.reindex(columns=today).set_axis(list(keys), axis=1).astype("float64").reset_index()
    wide.insert(1, "epoch", wide.pop("at").astype("Int64").where(wide.pop("known").astype(bool)))
    wide = wide.astype({"run_id": "str"})
    order = {run_id: position for position, run_id in enumerate(run_ids)}
    return wide.sort_values(
        ["run_id", "epoch"],
        key=lambda one: one.map(order) if one.name == "run_id" else one,
        kind="stable",
        ignore_index=True,
    )


def _plateaus(runs: Sequence[Run]) -> pd.Series:
    validated = [run for run in runs if names.VALIDATION_ACCURACY in run.data.metrics]
    accuracy = _by_epoch(validated, [names.VALIDATION_ACCURACY]).dropna(subset=["epoch"])
    found: dict[str, int | None] = {}
    for run_id, one in accuracy.groupby("run_id"):
        position = plateau_epoch(one[names.VALIDATION_ACCURACY])
        found[str(run_id)] = None if position is None else int(one["epoch"].iloc[position])
    return _integers(found.get(run.info.run_id) for run in runs)


def _integers(values: Iterable[int | None]) -> pd.Series:
    return pd.Series(list(values), dtype="Int64")


def _describe(run: Run) -> tuple[object, ...]:
    return tuple(getattr(run.info, column) for column in _RUN_COLUMNS)
