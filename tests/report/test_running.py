"""A run that still trains, of which little is recorded yet: its page, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.cli import main
from mlflow_dynamics.config import WarningMode
from mlflow_dynamics.convergence import WarningConfig

pytestmark = pytest.mark.drawn

TOO_FEW, ENOUGH = 15, 70
"""Training steps an epoch; the measures need 32."""


def train(epochs: int, steps: int, mode: WarningMode) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(model, warning=WarningConfig(mode=mode)) as tracker:
        for _ in range(epochs):
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(8, 8)), torch.randint(0, 2, (8,))).backward()
                optimizer.step()
            tracker.end_epoch()


@pytest.mark.parametrize(
    ("epochs", "steps", "mode", "last", "charts"),
    [
        (1, TOO_FEW, "off", "After epoch 0: nothing measured.", []),
        (2, TOO_FEW, "warn", "After epoch 1: nothing measured.", []),
        (
            1,
            ENOUGH,
            "warn",
            "After epoch 0: integration",
            ["overview", "path", "exponents", "order_parameter"],
        ),
        # Volatility needs five epochs after the four of start-up.
        (9, ENOUGH, "off", "After epoch 8: integration", ["overview", "path", "exponents"]),
    ],
)
def test_the_page_of_a_running_run_shows_what_is_there(
    epochs: int, steps: int, mode: WarningMode, last: str, charts: list[str], tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        train(epochs, steps, mode)
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
        main(["report", run.info.run_id, "--output", str(tmp_path / "page.html")])
    html = (tmp_path / "page.html").read_text()
    assert f'<th scope="row">epochs</th><td>{epochs}</td>' in html
    assert last in html
    assert ("<h3>Volatility</h3>" in html) == (epochs == 9)
    for name in charts:
        assert f'id="{name}-0"' in html
    assert ('class="chart"' in html[html.rindex("<body>") :]) == bool(charts)


def test_a_run_before_its_first_epoch_has_no_page_yet(capsys: pytest.CaptureFixture[str]) -> None:
    with mlflow.start_run() as run:
        train(0, 0, "warn")
        with pytest.raises(SystemExit):
            main(["report", run.info.run_id])
        assert f"Error: Run '{run.info.run_id}' holds no activations" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main(["report", "--experiment", "Default"])
        assert "Error: None of the 1 runs holds dynamics/integration" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["unknown", "deleted", "without dynamics"])
def test_a_run_that_has_no_page_is_one_clear_sentence(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", 1.0)
    run_id = "0" * 32 if state == "unknown" else run.info.run_id
    if state == "deleted":
        mlflow.delete_run(run_id)
    said = {
        "unknown": f"Error: Run '{run_id}' cannot be read: Run with id={run_id} not found",
        "deleted": f"Error: Run '{run_id}' is deleted",
        "without dynamics": f"Error: Run '{run_id}' holds no activations",
    }
    with pytest.raises(SystemExit) as ended:
        main(["report", run_id])
    assert ended.value.code == 2
    assert said[state] in capsys.readouterr().err
