"""The report's page: small, complete, and text stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mlflow_dynamics.measures import measure
from mlflow_dynamics.report.artifacts import render
from mlflow_dynamics.report.figures import draw
from mlflow_dynamics.report.history import MAX_CELLS, RunHistory
from mlflow_dynamics.report.page import page, picture
from mlflow_dynamics.report.summary import summary
from mlflow_dynamics.tracking import names

HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \" ' & \u2028"


def history(
    epochs: int = 12, layers: int = 6, *, name: str = "conv", title: str = "a run", start_up: int = 0
) -> RunHistory:
    rng = np.random.default_rng(0)
    found = RunHistory(
        title=title,
        definitions={"window": "512", name: name},
        layers=tuple(f"{name}{i}" for i in range(layers)),
        order=rng.uniform(size=492),
    )
    for epoch in range(epochs):
        measures = replace(measure(rng.normal(size=(layers, 128))), start_up=epoch < start_up)
        metrics = names.measure_metrics(measures) | {
            names.TRAIN_LOSS: 1 / (epoch + 1),
            names.VALIDATION_ACCURACY: min(0.1 * epoch, 0.8),
            names.VOLATILITY: 0.01,
            names.CONVERGENCE_SIGNAL: float(epoch >= 9),
        }
        found.add(epoch, metrics, measures)
    return found


def written(html: str) -> str:
    """The page without the library in it."""
    return html[: html.index("</style>")] + html[html.index("<body>") :]


def test_the_page_holds_every_figure_and_needs_no_network() -> None:
    files = render(history(), pictures=True)
    html = files[names.REPORT].decode()
    drawn = ["glance", "overview", "volatility", "path", "exponents", "phase_coherence", "order_parameter"]
    for name in drawn:
        assert name == "glance" or f'id="{name}-0"' in html
        assert files[names.figure_path(name)].startswith(b"\x89PNG")
    assert len(files) == 1 + len(drawn)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", written(html))
    assert "early warning fired at epoch 9" in html
    for row in (
        ("stability", "clip(integration / 1.5, 0, 1) (1 - 2 metastability)"),
        ("layers", "6"),
        ("window", "512"),
    ):
        assert "<td>{}</td><td>{}</td>".format(*row) in html


def test_200_epochs_of_256_layers_stay_below_a_megabyte_and_a_half() -> None:
    assert len(render(history(200, 256), pictures=False)[names.REPORT]) < 1_500_000


def test_more_epochs_are_thinned_to_as_many_columns() -> None:
    many = history(30, 2_000)
    epochs, matrix = many.by_layer(many.exponents)
    assert matrix.shape == (2_000, len(epochs)) == (2_000, MAX_CELLS // 2_000)
    assert (epochs[0], epochs[-1]) == (0, 29)
    np.testing.assert_array_equal(matrix[:, -1], many.exponents[29])


def test_hostile_names_come_out_as_text() -> None:
    hostile = history(name=HOSTILE, title=HOSTILE)
    html = page(
        hostile.title, summary(hostile), draw(hostile), {HOSTILE: [[HOSTILE]]}, {HOSTILE: "http://a/"}
    )
    assert "<img" not in written(html)
    assert "<td>&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; {{ 7 * 7 }}" in written(html)
    specs = json.loads(re.search(r"const specs = (.*);\n", html)[1])
    rows = specs["exponents-0"]["data"]["values"]
    assert rows[0]["layer"] == f"0 {HOSTILE}0"


def test_start_up_is_shaded_in_every_chart_over_epochs_and_told() -> None:
    for figure in draw(history(start_up=3)):
        for chart in figure.charts:
            spec = json.dumps(chart.to_dict())
            if figure.name in ("overview", "volatility"):
                assert '[{"from": 0, "to": 0.5}, {"from": 0.5, "to": 1.5}, {"from": 1.5, "to": 2.5}]' in spec
            elif figure.name != "order_parameter":
                assert "indexof([0, 1, 2], +datum.epoch) >= 0" in spec
        assert figure.name == "order_parameter" or "tart-up" in figure.caption
        assert not figure.charts or figure.name in ("overview", "volatility") or picture(figure)
    assert "judged or compared: epochs 0 to 2." in summary(history(start_up=3))[1]
    over, not_over = (draw(history(start_up=epochs))[-1].caption for epochs in (3, 12))
    assert not over.endswith("start-up.")
    assert not_over.endswith("The last epoch still belongs to start-up.")
    assert not any("tart-up" in figure.caption for figure in draw(history()))


def test_a_picture_of_several_charts_is_one_picture() -> None:
    overview = draw(history())[0]
    assert len(overview.charts) > 1
    assert picture(overview).startswith(b"\x89PNG")


def test_a_run_that_says_little_has_a_page_too() -> None:
    bare = RunHistory(title="bare", definitions={})
    bare.add(0, {names.TRAIN_LOSS: 1.0}, measure(np.zeros((3, 10))))
    assert not bare.measured
    assert [figure.name for figure in draw(bare)] == ["overview"]
    assert summary(bare)[1] == "The early warning was off."


def test_an_epoch_told_again_replaces_what_came_after() -> None:
    again = history(5)
    again.add(2, {names.TRAIN_LOSS: 9.0}, measure(np.random.default_rng(1).normal(size=(6, 128))))
    assert list(again.frame["epoch"]) == [0, 1, 2]
    assert sorted(again.exponents) == [0, 1, 2]


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_summary_of_next_to_nothing(epochs: int) -> None:
    assert len(summary(history(epochs))) == 3
