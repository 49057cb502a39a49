"""Links into MLflow's UI, each of which asks for its model-training view.

Of itself the UI opens the GenAI one, as do the links that MLflow prints.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from mlflow.entities import Run

from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking import mlflow_private, names
from mlflow_dynamics.tracking.store import HTTP

_EXPERIMENT_ID: Final = "{experiment_id}"
_RUN_ID: Final = "{run_id}"

REPORT_AND_PICTURE: Final = (
    f"[Open the report](#/experiments/{_EXPERIMENT_ID}/runs/{_RUN_ID}/artifacts/{names.REPORT}"
    "?workflowType=machine_learning)",
    f"![Accuracy, loss and stability over the epochs](get-artifact?path={quote(names.GLANCE, safe='')}"
    f"&run_uuid={_RUN_ID})",
)
"""For a description, in Markdown and relative to the UI. The run's ids are filled in as it is sent: not before that is
it certain that MLflow has the run."""


def filled_in(text: str, run: Run) -> str:
    """A description with the run's ids in its links."""
    return text.replace(_EXPERIMENT_ID, quote(str(run.info.experiment_id), safe="")).replace(
        _RUN_ID, quote(str(run.info.run_id), safe="")
    )


def charts_of(run: Run, tracking_uri: str) -> str | None:
    """The address of a run's charts; None without a server."""
    return _address(tracking_uri, run, f"/runs/{quote(str(run.info.run_id), safe='')}/model-metrics")


def links_of(run: Run | None, tracking_uri: str) -> dict[str, str]:
    """What is linked -> address, of a run and of those beside it; empty without a server or a run."""
    if run is None:
        return {}
    found = {
        "This run in MLflow": charts_of(run, tracking_uri),
        "The runs of its experiment": _address(tracking_uri, run, "/runs", compareRunsMode="CHART"),
    }
    return {label: address for label, address in found.items() if address is not None}


def _address(tracking_uri: str, run: Run, path: str, **query: str) -> str | None:
    if urlsplit(tracking_uri).scheme not in HTTP:
        return None
    workspace = mlflow_private.get_request_workspace()
    asked = (
        ({} if workspace is None else {"workspace": workspace}) | {"workflowType": "machine_learning"} | query
    )
    return (
        f"{redact(tracking_uri).rstrip('/')}/#/experiments/{quote(str(run.info.experiment_id), safe='')}{path}"
        f"?{urlencode(asked, quote_via=quote)}"
    )
