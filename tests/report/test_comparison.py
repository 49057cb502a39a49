"""The comparison page: numbers of known answer, and it says what the runs cannot show."""

from __future__ import annotations

import re
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Metric
from scipy import stats

from mlflow_dynamics.cli import main
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.report.comparison import comparison_page, gather, integration_by_task, limits
from mlflow_dynamics.tracking import names

HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_run(integration: float, *, warning: int | None = 4, **params: str) -> str:
    """A run of 10 epochs whose accuracy is flat from epoch 6."""
    with mlflow.start_run(run_name=HOSTILE) as run:
        mlflow.log_params(
            {"dataset": "easy", "model": "a", "optimizer": "sgd", "schedule": "cosine"} | params
        )
        now = time.time_ns() // 1_000_000
        rows = []
        for epoch in range(10):
            values = {
                names.INTEGRATION: integration if epoch >= 5 else 9.0,
                names.METASTABILITY: 0.2,
                names.CONVERGENCE_SIGNAL: float(warning is not None and epoch >= warning),
                names.VALIDATION_ACCURACY: 0.9 if epoch >= 6 else 0.1 * epoch,
            }
            rows += [Metric(key, value, now, epoch) for key, value in values.items()]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=rows)
    return run.info.run_id


def test_numbers_of_known_answer() -> None:
    runs = [make_run(value) for value in (1.2, 1.3, 1.25)] + [make_run(1.0, dataset="hard", warning=None)]
    other = make_run(2.0, optimizer="adam")
    assert len(integration_by_task(gather([*runs, other]))) == 3
    frame = gather(runs)
    assert list(frame["integration"]) == pytest.approx([1.2, 1.3, 1.25, 1.0])
    assert list(frame["lead_time"][:3]) == [2, 2, 2]
    assert np.isnan(frame["lead_time"][3])
    easy, hard = integration_by_task(frame).itertuples()
    expected = stats.t.interval(0.95, 2, loc=1.25, scale=stats.sem([1.2, 1.3, 1.25]))
    assert (easy.low, easy.high) == pytest.approx(expected)
    assert np.isnan(hard.low)
    said = " ".join(limits(frame))
    assert "1 of 2 combinations were trained once" in said
    assert "1 of 4 runs have no lead time" in said
    assert "one data set" not in said
    assert "one architecture" in said


def test_the_command_writes_one_page_for_an_experiment(tmp_path: Path) -> None:
    mlflow.set_experiment("several")
    for value in (1.2, 1.3):
        make_run(value)
    output = tmp_path / "compared.html"
    main(["report", "--experiment", "several", "--output", str(output)])
    html = output.read_text()
    assert "All runs have one data set" in html
    for name in ("integration", "lead", "styles"):
        assert f'id="{name}-0"' in html
    body = html[html.index("<body>") :]
    assert "<img" not in body
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", body)
    assert len(html) < 1_500_000
    for name in ("integration", "lead", "styles"):
        assert (tmp_path / f"compared-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_dynamics_are_refused_in_one_sentence() -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0)
    with pytest.raises(TrackingError, match="None of the 1 runs holds dynamics/integration"):
        gather([run.info.run_id])


def test_the_project_compares_by_ids_with_commas_between(tmp_path: Path) -> None:
    ids = ",".join(make_run(value) for value in (1.2, 1.3))
    output = tmp_path / "compared.html"
    main(["report", ids, "--experiment", "none", "--output", str(output)])
    assert "2 runs." in output.read_text()
    with pytest.raises(SystemExit):
        main(["report", "none", "--experiment", "none"])


def test_three_hundred_runs_fit_on_a_page() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [
            {
                "run_id": "0" * 32,
                "run_name": f"resnet18 on cifar100, seed {number}",
                "dataset": f"data{number % 2}",
                "model": f"model{number % 5}",
                "optimizer": ("sgd", "adamw")[number % 3 == 0],
                "schedule": "cosine",
                "integration": rng.uniform(0.5, 1.5),
                "metastability": rng.uniform(0, 0.3),
                "warning_epoch": 20.0,
                "plateau_epoch": 30.0,
                "lead_time": 10.0,
            }
            for number in range(300)
        ]
    )
    assert len(comparison_page(frame, title="many")) < 1_500_000
