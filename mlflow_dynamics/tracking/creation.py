"""A run created from its record, once, and its experiment."""

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
    """Create the run of a record, once: one that an earlier try created is found by its tag.

    Raises:
        TrackingError: its experiment is deleted.
        MlflowException: an answer is not whole, or of something else; the next try finds a run that was created.
    """
    experiment_id = _experiment_of(store, record)
    found = _found_in(store, experiment_id, record)
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
    # Its id is kept for good: the store has to know the run by it.
    run_id = whole_run(created).info.run_id
    return _ours(run_of(store, run_id), record)


def found_run(store: AbstractStore, record: RunRecord) -> Run | None:
    """The run that an earlier try has created for the record, if any has; raises likewise."""
    return _found_in(store, _experiment_of(store, record), record)


def _experiment_of(store: AbstractStore, record: RunRecord) -> str:
    if record.experiment_id is None:
        return _experiment_id(store, record.experiment_name or "Default")
    # To a search "nothing" is also what something says that is no MLflow: this it would not answer.
    whole_experiment(store.get_experiment(record.experiment_id), asked=record.experiment_id)
    return record.experiment_id


def _found_in(store: AbstractStore, experiment_id: str, record: RunRecord) -> Run | None:
    found = store.search_runs(
        [experiment_id], f"tags.`{names.TAG_LOCAL_ID}` = '{record.local_id}'", ViewType.ALL, max_results=1
    )
    return _ours(found[0], record) if found else None


def _ours(run: Run, record: RunRecord) -> Run:
    """`run` as it is; MlflowException where it is not the one that was created for the record."""
    if run.data.tags.get(names.TAG_LOCAL_ID) != record.local_id:
        raise MlflowException(f"{NOT_MLFLOW}: it gives another run than the one that was created")
    return whole_run(run)


def _made_up_name(record: RunRecord) -> str:
    """A name of MLflow's words: a local store that makes it up itself draws from the training's random numbers."""
    draw = random.Random(record.local_id)
    words = draw.choice(PREDICATES), draw.choice(NOUNS)
    return f"{'-'.join(words).lower()}-{draw.randint(0, 999)}"


def _experiment_id(store: AbstractStore, name: str) -> str:
    experiment = store.get_experiment_by_name(name)
    if experiment is None:
        try:
            store.create_experiment(name, None, tags=[ExperimentTag(*names.MODEL_TRAINING_KIND)])
        except MlflowException:
            # Another run has created it in between.
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
