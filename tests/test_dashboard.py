"""A watched run in a terminal: one small dashboard that is drawn anew, after the beginning of an id."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from mlflow_dynamics.cli import main
from mlflow_dynamics.dashboard import curve_of, dashboard
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import whole_id
from mlflow_dynamics.watching import watch


def recorded(epochs: int) -> str:
    with mlflow.start_run() as run:
        rows = [
            Metric(key, 0.5 + 0.01 * epoch, 0, epoch)
            for epoch in range(epochs)
            for key in (names.STABILITY, names.VALIDATION_ACCURACY)
        ]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=rows)
    return str(run.info.run_id)


def test_a_curve_goes_from_the_lowest_to_the_highest_with_gaps() -> None:
    assert curve_of([0.0, math.nan, 7.0, 3.0]) == "▁ █▄"
    assert curve_of([2.0, 2.0]) == "▁▁"
    assert curve_of([math.nan, math.inf]) == "  "


@pytest.mark.parametrize("width", [30, 80])
def test_every_line_fits_and_what_no_epoch_has_is_left_out(width: int, own_mlflow: Path) -> None:
    lines = dashboard(list(watch(recorded(100))), width=width)
    assert lines[0] == "epoch 99"
    assert [line[:10].strip() for line in lines[1:-1]] == ["validation", "stability"]
    assert max(map(len, lines)) <= max(width, 31)


def test_it_is_drawn_over_what_was_there_and_nothing_comes_before_an_error(
    own_mlflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["watch", recorded(3)])
    first, *again = capsys.readouterr().out.split("\x1b[4F\x1b[J")
    assert first.startswith("epoch 0\n")
    assert [one.partition("\n")[0] for one in again] == ["epoch 1", "epoch 2"]
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        main(["watch", "0" * 32])
    assert capsys.readouterr().out == ""


def test_the_beginning_of_an_id_is_enough(own_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = recorded(1)
    assert whole_id(run_id[:8]) == run_id
    assert whole_id(run_id) == run_id
    assert whole_id("0" * 31) == "0" * 31
    monkeypatch.setattr(
        "mlflow_dynamics.tracking.query._search", lambda *_, **__: 2 * [mlflow.get_run(run_id)]
    )
    with pytest.raises(TrackingError, match="begins the ids of several runs"):
        whole_id(run_id[:8])
