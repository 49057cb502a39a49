"""The comparison page: numbers of known answer, and it says what the runs cannot show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Metric, Run, RunData, RunInfo
from scipy import stats

from mlflow_dynamics.cli import main
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.report.comparison import (
    comparison_page,
    comparison_pictures,
    draw,
    gather,
    integration_by_task,
    limits,
    load,
)
from mlflow_dynamics.report.page import Table, page
from mlflow_dynamics.report.paper_questions import styles_apart, tasks_apart, warning_leads
from mlflow_dynamics.report.ranking import LOADED, curves, ranked, table
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.settings import MEANING, recorded_parameters

pytestmark = pytest.mark.drawn

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=alert(1)>"


def make_run(
    integration: float, *, warning: int | None = 4, window: int = 300, start_up: int = 1, **params: Any
) -> str:
    """A run of 10 epochs, the first `start_up` of them start-up, whose accuracy is flat from epoch 6."""
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
                names.WINDOW: window,
                names.START_UP: float(epoch < start_up),
                names.CONVERGENCE_SIGNAL: float(warning is not None and epoch >= warning),
                names.VALIDATION_ACCURACY: 0.9 if epoch >= 6 else 0.1 * epoch,
            }
            rows += [Metric(key, value, now, epoch) for key, value in values.items()]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=rows)
    return run.info.run_id


def compared(runs: list[str]) -> pd.DataFrame:
    return gather(load(runs))


def test_numbers_of_known_answer() -> None:
    runs = [make_run(value) for value in (1.2, 1.3, 1.25)] + [make_run(1.0, dataset="hard", warning=None)]
    other = make_run(2.0, optimizer="adam")
    assert len(integration_by_task(compared([*runs, other]))) == 3
    frame = compared(runs)
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


def runs_of(
    dataset: str, optimizer: str, *integration: float, lead: float = 2.0, window: str = "300"
) -> list[dict[str, object]]:
    same = {"dataset": dataset, "model": "a", "optimizer": optimizer, "schedule": "cosine", "lead_time": lead}
    same |= dict.fromkeys(MEANING, "as always") | {"window": window}
    return [same | {"integration": value, "metastability": value / 10} for value in integration]


def test_each_question_is_answered_by_counts_or_not_at_all() -> None:
    easy, hard = runs_of("easy", "sgd", 1.2, 1.21, 1.22), runs_of("hard", "sgd", 0.8, 0.81, lead=-1.0)
    frame = pd.DataFrame(easy + hard + runs_of("easy", "adam", 1.19, 1.23, 1.2))
    assert tasks_apart(frame).startswith("The data sets' intervals lie apart in 1 of the 1 trainings")
    assert warning_leads(frame) == (
        "It came before in 6 of the 8 runs that have both; the median lead is 2 epochs."
    )
    said = styles_apart(frame)
    assert said.startswith(
        "The styles' intervals lie apart by integration in 0 and by metastability in 0 of the 1"
    )
    frame = pd.DataFrame(easy + runs_of("easy", "adam", 0.9, 0.91, 0.92) + runs_of("hard", "sgd", 0.8))
    assert "by integration in 1 and by metastability in 1 of the 1" in styles_apart(frame)
    assert tasks_apart(frame).startswith("These runs cannot tell")
    frame = pd.DataFrame(runs_of("easy", "sgd", 1.2, lead=np.nan))
    for answer in (tasks_apart, warning_leads, styles_apart):
        assert answer(frame).startswith("These runs cannot tell")


def test_epochs_of_start_up_count_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runs = [make_run(1.2, start_up=9), make_run(1.3, start_up=10)]
    frame = compared(runs)
    assert list(frame["run_id"]) == runs[:1]
    assert frame["integration"][0] == pytest.approx(1.2)
    assert "1 of 2 runs hold no dynamics/integration after their start-up" in caplog.text
    # Of ten epochs 0 to 4 read 9.0; the second half of those after start-up begins in epoch 4.
    assert compared([make_run(1.2, start_up=0)])["integration"][0] == pytest.approx(1.2)
    assert compared([make_run(9.0, start_up=3)])["integration"][0] == pytest.approx(9.0)


def test_runs_of_different_windows_have_pictures_of_several_charts_too() -> None:
    loaded = load([make_run(1.2, window=132), make_run(1.3, window=45)])
    frame = gather(loaded)
    runs = ranked(loaded.runs, loaded.metrics)
    assert [len(figure.panels) for figure in draw(frame) if figure.name == "styles"] == [2]
    drawn = comparison_pictures(frame, runs=runs)
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    assert {"integration", "styles"} < drawn.keys()


def test_a_single_value_lies_on_an_axis_that_says_so() -> None:
    (style,) = (figure.panels for figure in draw(compared([make_run(1.25)])) if figure.name == "styles")
    low, high = style[0].chart.to_dict()["encoding"]["x"]["scale"]["domain"]
    assert low < 1.25 < high < 1.4


def test_windows_of_different_length_are_not_compared() -> None:
    frame = compared([make_run(1.2), make_run(1.3, window=48), make_run(1.4, window=48)])
    assert list(frame["window"]) == ["300", "48", "48"]
    assert [row.runs for row in integration_by_task(frame).itertuples()] == [1, 2]
    said = [one for one in limits(frame) if one.startswith("The runs' windows differ (48, 300 steps).")]
    assert len(said) == 1
    assert "windows differ" not in " ".join(limits(frame[frame["window"] == "48"]))
    easy, hard = (
        runs_of("easy", "sgd", 1.2, 1.21, window="48"),
        runs_of("hard", "sgd", 0.8, 0.81, window="300"),
    )
    assert tasks_apart(pd.DataFrame(easy + hard)).startswith("These runs cannot tell")
    hard = [run | {"window": "48"} for run in hard]
    assert not tasks_apart(pd.DataFrame(easy + hard)).startswith("These")
    hard = [run | {"estimator": "hk"} for run in hard]
    assert tasks_apart(pd.DataFrame(easy + hard)).startswith("These runs cannot tell")
    styled = [run | {"dataset": "easy", "optimizer": "adam"} for run in hard]
    assert styles_apart(pd.DataFrame(easy + styled)).startswith("These runs cannot tell")


@pytest.mark.parametrize(
    ("recording", "measures", "told"),
    [
        ({}, {"estimator": "hk"}, "estimator: dfa, hk"),
        ({}, {"signal": "std"}, "signal: rms, std"),
        ({}, {"protocol": "depth"}, "protocol: depth, steps"),
        ({"record_every": 2}, {}, "record_every: 1, 2"),
        ({"batch_samples": 8}, {}, "batch_samples: 8, None"),
        ({"exclude": ("fc",)}, {}, "exclude: ('fc',), ()"),
    ],
)
def test_runs_that_were_not_measured_alike_are_not_compared(
    recording: dict[str, Any], measures: dict[str, Any], told: str
) -> None:
    usual = recorded_parameters(RecordingConfig(), MeasureConfig())
    other = recorded_parameters(RecordingConfig(**recording), MeasureConfig(**measures))
    frame = compared([make_run(value, **usual) for value in (0.9, 1.0)] + [make_run(0.7, **other)])
    assert sorted(row.runs for row in integration_by_task(frame).itertuples()) == [1, 2]
    assert len([one for one in limits(frame) if f"not measured alike ({told})." in one]) == 1
    key, value = told.split(": ")[0], frame[told.split(":")[0]].iloc[2]
    styles = draw(frame)[2]
    assert sorted(len(panel.chart.data) for panel in styles.panels) == [1, 2]
    assert {panel.chart.title for panel in styles.panels} >= {f"{key} {value}"}
    # Both tables have a column for it.
    assert comparison_page(frame, title="different").count(f'<th scope="col">{key}</th>') == 2
    alike = frame[:2]
    assert not any("measured alike" in one for one in limits(alike))
    assert len(draw(alike)[2].panels) == 1
    assert f'<th scope="col">{key}</th>' not in comparison_page(alike, title="alike")


def test_a_way_of_measuring_is_one_however_it_was_asked_for() -> None:
    usual = make_run(
        1.0, **recorded_parameters(RecordingConfig(), MeasureConfig(uncertainty=True, window=300))
    )
    project = make_run(
        1.1,
        signal="rms",
        protocol="steps",
        estimator="auto",
        batch_samples="all",
        **{"dynamics/max_layers": "256"},
    )
    assert [row.runs for row in integration_by_task(compared([usual, project])).itertuples()] == [2]
    # A run that says nothing of how it was measured is not taken for one that does.
    assert len(integration_by_task(compared([usual, make_run(1.2)]))) == 2


def test_a_question_without_a_chart_is_on_the_page_all_the_same(tmp_path: Path) -> None:
    run_id = make_run(1.2, warning=None)
    output = tmp_path / "page.html"
    main(["report", f"{run_id},{make_run(1.3, warning=None)}", "--output", str(output)])
    html = output.read_text()
    assert "Does the warning come before the plateau?" in html
    assert "These runs cannot tell: none has both a warning and a plateau" in html
    assert 'id="lead-0"' not in html
    assert not (tmp_path / "page-lead.png").exists()


def test_the_command_writes_one_page_for_an_experiment(tmp_path: Path) -> None:
    mlflow.set_experiment("several")
    for value in (1.2, 1.3):
        make_run(value, model=HOSTILE)
    output = tmp_path / "compared.html"
    main(["report", "--experiment", "several", "--output", str(output)])
    html = output.read_text()
    assert "All runs have one data set" in html
    for name in ("curves", "integration", "lead", "styles"):
        assert f'id="{name}-0"' in html
    assert "<img" not in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)
    assert len(html) < 1_000_000
    for name in ("curves", "integration", "lead", "styles"):
        assert (tmp_path / f"compared-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_dynamics_are_refused_in_one_sentence() -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0)
    with pytest.raises(TrackingError, match="None of the 1 runs holds dynamics/integration"):
        compared([run.info.run_id])


def test_runs_that_still_train_count_so_far_and_runs_without_dynamics_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended, running = make_run(1.2), make_run(1.3)
    mlflow.MlflowClient().update_run(running, status="RUNNING")
    with mlflow.start_run() as bare:
        mlflow.log_metric("loss", 1.0)
    frame = compared([ended, running, bare.info.run_id])
    assert list(frame["run_id"]) == [ended, running]
    assert "1 of 3 runs hold no dynamics/integration after their start-up and are left out" in caplog.text
    assert "1 of 2 runs have not ended: their numbers are those of the epochs so far." in limits(frame)
    assert not any("not ended" in one for one in limits(compared([ended])))


def test_the_project_compares_by_ids_with_commas_between(tmp_path: Path) -> None:
    ids = ",".join(make_run(value) for value in (1.2, 1.3))
    output = tmp_path / "compared.html"
    main(["report", ids, "--experiment", "none", "--output", str(output)])
    assert "2 runs." in output.read_text()
    with pytest.raises(SystemExit):
        main(["report", "none", "--experiment", "none"])


@pytest.mark.slow
def test_mlflow_run_has_the_comparison_as_an_entry_point(tmp_path: Path) -> None:
    for value in (1.2, 1.3):
        make_run(value)
    output = tmp_path / "compared.html"
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", "-e", "report"]
    command += ["-P", "experiment=Default", "-P", f"output={output}"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    store = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PATH": path}
    subprocess.run(command, check=True, env=os.environ | store)
    assert "2 runs." in output.read_text()


def cells_of(table: Table) -> list[dict[str, str]]:
    plain = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in table.rows]
    return [dict(zip(table.header, row, strict=True)) for row in plain]


def run_of(name: str, accuracy: list[float], *, status: str = "FINISHED", **params: Any) -> str:
    """A run of that accuracy by epoch that holds no measures."""
    with mlflow.start_run(run_name=name) as run:
        mlflow.log_params(params)
        now = time.time_ns() // 1_000_000
        rows = [Metric(names.VALIDATION_ACCURACY, value, now, epoch) for epoch, value in enumerate(accuracy)]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=rows)
    mlflow.MlflowClient().update_run(run.info.run_id, status=status)
    return run.info.run_id


def test_all_runs_are_in_the_table_by_their_best_accuracy_with_what_differs() -> None:
    ids = [
        run_of("killed", [0.2, 0.4], status="KILLED", lr=0.1, batch=8),
        run_of("none", [], lr=0.1, batch=8),
        make_run(1.2, lr=0.2, batch=8),  # best is 0.9 at epoch 6
        run_of("best", [0.5, 0.95, 0.9], lr=0.3, batch=8),
    ]
    mlflow.MlflowClient().set_tag(ids[0], names.TAG_DIVERGING_EPOCH, "1")
    loaded = load(ids)
    runs = ranked(loaded.runs, loaded.metrics)
    cells = cells_of(table(runs, pd.DataFrame({"run_id": [ids[2]], "integration": ["1.200"]})))
    assert [row["id"] for row in cells] == [ids[i][:8] for i in (3, 2, 0, 1)]
    assert [row["best accuracy"] for row in cells] == ["0.950", "0.900", "0.400", "-"]
    assert [row["at epoch"] for row in cells] == ["1", "6", "1", "-"]
    assert [row["came to"] for row in cells] == [
        "no measures after start-up",
        "",
        "diverged at epoch 1, no measures after start-up, killed",
        "no measures after start-up",
    ]
    assert [row["integration"] for row in cells] == ["-", "1.200", "-", "-"]
    assert [row["lr"] for row in cells] == ["0.3", "0.2", "0.1", "0.1"]
    assert "batch" not in cells[0]
    html = comparison_page(gather(loaded), title="all", runs=runs)
    assert "4 runs. Best validation accuracy 0.950: best, at epoch 1." in html


def test_a_run_has_one_colour_in_every_chart_and_its_start_up_is_not_drawn() -> None:
    loaded = load([run_of("first", [0.95]), *(make_run(value, start_up=2) for value in (1.2, 1.3))])
    figure = curves(ranked(loaded.runs, loaded.metrics), alike=True)
    specs = {panel.title: panel.chart.to_dict() for panel in figure.panels}
    assert list(specs) == ["Validation accuracy", "Integration", "Metastability"]
    colours = [spec["encoding"]["color"]["scale"] for spec in specs.values()]
    assert colours[0] == colours[1] == colours[2]
    assert len(set(colours[0]["domain"])) == 3  # of runs of one name too
    (rows,) = specs["Integration"]["datasets"].values()
    told = [row["value"] is not None for row in rows]
    assert told == 2 * [False, False, *8 * [True]]
    assert "not measured alike" in curves(ranked(loaded.runs, loaded.metrics), alike=False).caption


def test_a_page_of_many_long_runs_stays_small() -> None:
    ids = [f"{number:032x}" for number in range(300)]
    epochs = np.arange(300.0)
    rng = np.random.default_rng(0)
    keys = [*LOADED, names.START_UP]
    metrics = {
        run_id: pd.DataFrame({"epoch": epochs, **{key: rng.uniform(size=300) for key in keys}})
        for run_id in ids
    }
    info = {"experiment_id": "0", "user_id": "", "status": "FINISHED", "start_time": 0, "end_time": 1}
    runs = [
        Run(RunInfo(run_id=run_id, lifecycle_stage="active", run_name="many", **info), RunData())
        for run_id in ids
    ]
    figure = curves(ranked(runs, metrics), alike=True)
    assert figure.caption.endswith("Drawn are the best 100 of 300 runs.")
    assert len(page("many", [], [figure], {})) < 1_000_000


def test_three_hundred_runs_fit_on_a_page() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [
            {
                "run_id": "0" * 32,
                "status": "FINISHED",
                "run_name": f"resnet18 on cifar100, seed {number}",
                "dataset": f"data{number % 2}",
                "model": f"model{number % 5}",
                "optimizer": ("sgd", "adamw")[number % 3 == 0],
                "schedule": "cosine",
                "window": "512",
                **dict.fromkeys(MEANING, "as always"),
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
