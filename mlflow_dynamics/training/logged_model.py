"""Logs the trained model in MLflow, as a logged model with the metrics of the epoch whose weights it has."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import mlflow
import torch
from mlflow.entities import (
    LoggedModel,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Run,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.tracking.abstract_store import AbstractStore
from torch import nn

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.threads import within
from mlflow_dynamics.tracking import RunWriter
from mlflow_dynamics.tracking.artifacts import believed_root, upload_all
from mlflow_dynamics.tracking.names import is_run_id
from mlflow_dynamics.tracking.store import (
    NOT_MLFLOW,
    SLOWEST_BYTES_PER_S,
    connect,
    failing_as,
    run_of,
)
from mlflow_dynamics.training.data import ImageDataset
from mlflow_dynamics.training.inputs import ImagePart

SENT_TIMEOUT_S: Final = 30.0
"""At the end of training, the longest time to wait until everything recorded before the model is sent."""

LOG_TIMEOUT_S: Final = 120.0
"""The longest time for all requests for a logged model, without the time for the bytes of its files."""

MAX_NAME: Final = 200
"""The most characters of a model's name, which is also the name of a folder."""

_PACKAGES: Final = ("mlflow", "torch", "torchvision", "timm")
_GROUPS: Final = {"train/": "training", "validation/": "validation", "dynamics/": None}
"""Beginning of a metric that belongs to the model -> purpose of the data set on which the metric was taken."""

_TAGS: Final = ("mlflow.user", "mlflow.source.")
"""The beginnings of the run's tags that the model gets too."""

_logger = logging.getLogger(__name__)


def model_name(title: str) -> str:
    """Turn a run's title into a name that MLflow accepts for a model: `resnet20-on-digits-sgd-onecycle-seed-0`."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", title).strip("-")[:MAX_NAME] or "model"


def log_model(
    writer: RunWriter,
    model: nn.Module,
    *,
    name: str,
    epoch: int,
    images: ImageDataset,
    inputs: Mapping[str, ImagePart],
) -> None:
    """Log the model in torch's export format, which can be loaded without pickle and without this package.

    The model becomes a logged model. If the server does not take one, or does not answer, the model is kept as files of
    the run, which are sent when the server answers.

    Args:
        writer: the run's writer.
        model: the model, with the weights of `epoch`.
        name: the model's name.
        epoch: the epoch whose metrics the model gets.
        images: the images of which the first two become the model's input example.
        inputs: purpose -> data set on which the metrics were taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / name
        described = _save(model, saved, images)
        paths = [path for path in saved.rglob("*") if path.is_file()]
        files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in paths}
    if writer.all_sent(SENT_TIMEOUT_S):
        assert writer.run_id is not None
        log = partial(_log, writer.run_id, described, files, name=name, epoch=epoch, inputs=inputs)
        size = sum(len(data) for data in files.values())
        try:
            with failing_as(f"MLflow at {redact(mlflow.get_tracking_uri())} takes no logged model"):
                within(LOG_TIMEOUT_S + size / SLOWEST_BYTES_PER_S, log)
            return
        except TrackingError as error:
            _logger.warning("%s. The model is kept as files of the run, in its folder %s.", error, name)
    writer.write_files({f"{name}/{path}": data for path, data in files.items()})


def _log(
    run_id: str,
    described: Model,
    files: Mapping[str, bytes],
    *,
    name: str,
    epoch: int,
    inputs: Mapping[str, ImagePart],
) -> None:
    # These are the steps of MLflow's own log_model, which is not used because it cannot name the data sets of metrics,
    # also takes other metrics of this step, such as the machine's load, and believes whatever the server answers.
    uri = mlflow.get_tracking_uri()
    store = connect(uri)
    run = run_of(store, run_id)
    tags = [LoggedModelTag(key, value) for key, value in run.data.tags.items() if key.startswith(_TAGS)]
    params = [LoggedModelParameter(key, value) for key, value in run.data.params.items()]
    logged = _whole(store.create_logged_model(run.info.experiment_id, name, run_id, tags, params))
    model_id = logged.model_id
    try:
        root = believed_root(logged.artifact_location, uri, owner="model", owner_id=model_id)
        store.log_outputs(run_id, [LoggedModelOutput(model_id, step=epoch)])
        store.log_batch(run_id, _metrics(store, run, model_id, epoch=epoch, inputs=inputs), [], [])
        described.run_id, described.model_id, described.model_uuid = run_id, model_id, model_id
        described.artifact_path = root
        upload_all(root, uri, {**files, MLMODEL_FILE_NAME: described.to_yaml().encode()})
    except Exception:
        with suppress(MlflowException, OSError):  # the first of two failures is the one to report
            store.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
        raise
    finalized = _whole(store.finalize_logged_model(model_id, LoggedModelStatus.READY))
    if finalized.status != LoggedModelStatus.READY:
        raise MlflowException(f"{NOT_MLFLOW}: model {model_id} is {finalized.status}")


def _whole(logged: LoggedModel) -> LoggedModel:
    """Return `logged` unchanged; raise MlflowException if it lacks its id or a place for its files."""
    if not is_run_id(logged.model_id) or not logged.artifact_location:
        raise MlflowException(f"{NOT_MLFLOW}: its model id is {logged.model_id!r:.100}")
    return logged


def _metrics(
    store: AbstractStore, run: Run, model_id: str, *, epoch: int, inputs: Mapping[str, ImagePart]
) -> list[Metric]:
    """Return the run's metrics of an epoch as metrics of a model, each with the data set on which it was taken."""
    return [
        Metric(
            point.key,
            point.value,
            point.timestamp,
            point.step,
            model_id=model_id,
            dataset_name=None if data is None else inputs[data].name,
            dataset_digest=None if data is None else inputs[data].digest,
            run_id=run.info.run_id,
        )
        for key in run.data.metrics
        for prefix, data in _GROUPS.items()
        if key.startswith(prefix)
        for point in store.get_metric_history(run.info.run_id, key)
        if point.step == epoch
    ]


def _save(model: nn.Module, folder: Path, images: ImageDataset) -> Model:
    described = Model()
    model = copy.deepcopy(model).cpu().eval()
    # The example has two images, because an example of one image would fix the batch size to one.
    example = torch.stack([images[i % len(images)][0] for i in range(2)])
    with torch.no_grad():
        output = model(example)
    mlflow.pytorch.save_model(
        model,
        folder,
        input_example=example.numpy(),
        signature=infer_signature(example.numpy(), output.numpy()),
        serialization_format="pt2",
        pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in _PACKAGES],
        mlflow_model=described,
    )
    return described
