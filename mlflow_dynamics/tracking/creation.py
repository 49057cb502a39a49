"""Creates the run of a record, once, and the experiment of the run."""

from __future__ import annotations

import random

from mlflow.entities import (
    ExperimentTag,
    LifecycleStage,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_USER

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.mlflow_private import NOUNS, PREDICATES
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.store import (
    NOT_MLFLOW,
    run_of,
    whole_experiment,
    whole_run,
)


def create_run(store: AbstractStore, record: RunRecord) -> Run:
    """Create the run of a record, or return the one that an earlier try has created, which is found by its tag.

    Raises:
        TrackingError: the experiment is deleted.
        MlflowException: an answer is incomplete or concerns something else. If the run was created all the same, the
            next try finds it.
    """
    experiment_id = _experiment_of(store, record)
    found = _find(store, experiment_id, record)
    if found is not None:
        return found
    tags = {**record.tags, names.TAG_LOCAL_ID: str(record.local_id)}
    created = store.create_run(
        experiment_id=experiment_id,
        user_id=tags.get(MLFLOW_USER, "unknown"),
        start_time=record.start_time,
        tags=[RunTag(key, value) for key, value in tags.items()],
        run_name=record.run_name or tags.get(MLFLOW_RUN_NAME) or _made_up_name(record),
    )
    # The id will be stored for good, so the store must be seen to know the run by this id.
    run_id = whole_run(created).info.run_id
    return _checked(run_of(store, run_id), record)


def found_run(store: AbstractStore, record: RunRecord) -> Run | None:
    """Return the run that an earlier try has created for the record, if any; raises as `create_run` does."""
    return _find(store, _experiment_of(store, record), record)


def _experiment_of(store: AbstractStore, record: RunRecord) -> str:
    if record.experiment_id is None:
        return _experiment_id(store, record.experiment_name or "Default")
    # A server that is not MLflow may answer a search with an empty list, but it cannot answer this request.
    whole_experiment(store.get_experiment(record.experiment_id), asked=record.experiment_id)
    return record.experiment_id


def _find(store: AbstractStore, experiment_id: str, record: RunRecord) -> Run | None:
    found = store.search_runs(
        [experiment_id], f"tags.`{names.TAG_LOCAL_ID}` = '{record.local_id}'", ViewType.ALL, max_results=1
    )
    return _checked(found[0], record) if found else None


def _checked(run: Run, record: RunRecord) -> Run:
    """Return `run` unchanged; raise MlflowException if it was not created for the record."""
    if run.data.tags.get(names.TAG_LOCAL_ID) != record.local_id:
        raise MlflowException(f"{NOT_MLFLOW}: it gives another run than the one that was created")
    return whole_run(run)


def _made_up_name(record: RunRecord) -> str:
    """Make up a run name of MLflow's words.

    If a local store made up the name, it would take random numbers from the training's generator.
    """
    draw = random.Random(record.local_id)
    words = draw.choice(PREDICATES), draw.choice(NOUNS)
    return f"{'-'.join(words).lower()}-{draw.randint(0, 999)}"


def _experiment_id(store: AbstractStore, name: str) -> str:
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        try:
            store.create_experiment(name, None, tags=[ExperimentTag(*names.MODEL_TRAINING_KIND)])
        except MlflowException:
            # Another process may have created the experiment in between.
            if store.get_experiment_by_name(name) is None:
                raise
        experiment = store.get_experiment_by_name(name)
    if experiment is None or whole_experiment(experiment).name != name:
        raise MlflowException(f"{NOT_MLFLOW}: asked for the experiment {name!r} it gives another")
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingError(
            f"The experiment {name!r} is deleted; restore it (mlflow experiments restore -x "
            f"{experiment.experiment_id}) or choose another name."
        )
    return str(experiment.experiment_id)
