"""One click away: a run's description links to its report, and the report back to the run, under its name of now."""

from __future__ import annotations

import mlflow
import pytest
import torch
from mlflow.entities import Run
from torch import nn
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics.recomputing import settings_of
from mlflow_dynamics.report import live
from mlflow_dynamics.report.recorded import history_of
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.links import links_of

pytestmark = pytest.mark.drawn


def train(*, renamed: str | None = None, epochs: int = 2) -> Run:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow.start_run(run_name="before") as run, mlflow_dynamics.track(model) as tracker:
        for epoch in range(epochs):
            if epoch == 1 and renamed is not None:
                mlflow.set_tag("mlflow.runName", renamed)
            for _ in range(40):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 2, (8,))).backward()
                optimizer.step()
            tracker.end_epoch()
            tracker.wait(epoch)
            wait_until(lambda: not tracker._run_log.writer._spool.entries())
    return mlflow.get_run(run.info.run_id)


def test_the_description_links_to_the_report_of_the_run_by_its_last_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "END_DRAWING_S", 120.0)
    run = train(renamed="after")
    described = run.data.tags[names.TAG_DESCRIPTION].split("\n\n")
    address = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/dynamics/report.html"
    assert described[1] == f"[Open the report]({address}?workflowType=machine_learning)"
    assert described[-1].endswith(
        f"(get-artifact?path=dynamics%2Ffigures%2Fglance.png&run_uuid={run.info.run_id})"
    )
    written = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{names.REPORT}")
    assert "<h1>after</h1>" in written
    pictures = [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, names.FIGURES)]
    assert names.GLANCE in pictures


def test_what_is_not_drawn_is_not_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "unmet", lambda extra: ["altair"])
    run = train()
    described = run.data.tags[names.TAG_DESCRIPTION]
    assert described.startswith(names.DESCRIPTION)
    assert "](" not in described


def test_a_page_links_to_its_run_and_experiment_at_a_server_and_nowhere_without() -> None:
    run = train(epochs=1)
    assert history_of(run.info.run_id, settings_of(run.info.run_id)).links == {}
    links = links_of(run, "http://somebody:secret@mlflow.example/at/")
    assert links == {
        "This run in MLflow": f"http://mlflow.example/at/#/experiments/{0}/runs/"
        f"{run.info.run_id}/model-metrics?workflowType=machine_learning",
        "The runs of its experiment": "http://mlflow.example/at/#/experiments/0/runs?workflowType=machine_learning"
        "&compareRunsMode=CHART",
    }
