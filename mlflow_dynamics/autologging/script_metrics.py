"""Which of our metric keys the script logs itself: our metric is left out where it does."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mlflow import MlflowClient

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.tracking import names

logger = logging.getLogger(__name__)

_OURS: Final = frozenset(
    (names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY, names.LEARNING_RATE)
)


class ScriptMetrics:
    """Watches MLflow's client: everything in this process logs through it, except our own sender."""

    def __init__(self, boundary: Boundary) -> None:
        self._boundary = boundary
        self._logged: defaultdict[str, set[str]] = defaultdict(set)
        self._told: set[str] = set()
        self._patches = [
            Patch(MlflowClient, "log_metric", before=functools.partial(self._logs, _key_of)),
            Patch(MlflowClient, "log_batch", before=functools.partial(self._logs, _keys_of)),
        ]

    def remove(self) -> None:
        """Give MLflow its own functions back."""
        for patch in self._patches:
            patch.remove()

    def not_logged_by_script(self, run_id: str | None, metrics: Mapping[str, float]) -> dict[str, float]:
        """Our metrics without those whose keys the script logs to this run; logs once which keys these are."""
        theirs = self._logged.get(run_id or "", set()) & metrics.keys()
        untold = sorted(theirs - self._told)
        if untold:
            self._told.update(untold)
            logger.info("The script logs %s itself: ours is left out of its run.", ", ".join(untold))
        return {key: value for key, value in metrics.items() if key not in theirs}

    def _logs(
        self, keys: Callable[..., Iterable[str]], _: MlflowClient, /, *args: Any, **kwargs: Any
    ) -> None:
        self._boundary.run(self._note, keys, args, kwargs)

    def _note(
        self, keys: Callable[..., Iterable[str]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        run_id, given = (*args, None, None)[:2]
        run_id = kwargs.get("run_id", run_id)
        found = _OURS.intersection(keys(given, kwargs))
        if found:
            self._logged[run_id] |= found


def _key_of(given: Any, kwargs: dict[str, Any]) -> Iterable[str]:
    return (str(kwargs.get("key", given)),)


def _keys_of(given: Any, kwargs: dict[str, Any]) -> Iterable[str]:
    metrics = kwargs.get("metrics", given)
    # An iterator is not read here: MLflow must be able to read it.
    return (
        [str(getattr(metric, "key", "")) for metric in metrics] if isinstance(metrics, list | tuple) else ()
    )
