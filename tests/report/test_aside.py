"""The page of a run that trains is drawn by another process, and is the same page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from test_page import history

from mlflow_dynamics.report.artifacts import render
from mlflow_dynamics.report.aside import render_aside

HERE = Path(__file__).parent


def test_the_report_is_the_one_that_this_process_would_draw() -> None:
    drawn = render_aside(history(5).packed())
    assert drawn == render(history(5), pictures=True)


def test_what_cannot_be_drawn_is_left_for_the_next_time() -> None:
    assert render_aside(b"no history") is None


def test_a_training_has_its_page_before_its_end_and_loads_no_drawing_library(own_mlflow: Path) -> None:
    script = subprocess.run(
        [sys.executable, str(HERE / "drawn_training.py")],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        cwd=own_mlflow,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.splitlines()[-1] == "drawn without altair"
