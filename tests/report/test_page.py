"""The report's page: small, complete, and text stays text."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlflow_dynamics.measures import measure
from mlflow_dynamics.report.artifacts import render
from mlflow_dynamics.report.figures import Panel, draw
from mlflow_dynamics.report.history import MAX_CELLS, RunHistory
from mlflow_dynamics.report.page import Table, page, picture, specification
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
    """The page without what is packed in it."""
    return re.sub(r'(<script type="text/plain" id="\w+">)[\w+/=]*', r"\1", html)


def unpacked(html: str, part: str) -> str:
    packed = re.search(rf'<script type="text/plain" id="{part}">([\w+/=]*)</script>', html)[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_the_page_holds_every_figure_and_needs_no_network() -> None:
    files = render(history(), pictures=True)
    html = files[names.REPORT].decode()
    drawn = ["glance", "overview", "path", "exponents", "phase_coherence", "order_parameter"]
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
        assert '<th scope="row">{}</th><td>{}</td>'.format(*row) in html


def test_300_epochs_of_160_layers_stay_below_a_megabyte() -> None:
    assert len(render(history(300, 160), pictures=False)[names.REPORT]) < 1_000_000


def test_more_epochs_are_thinned_to_as_many_columns() -> None:
    many = history(30, 2_000)
    epochs, matrix = many.by_layer(many.exponents)
    assert matrix.shape == (2_000, len(epochs)) == (2_000, MAX_CELLS // 2_000)
    assert (epochs[0], epochs[-1]) == (0, 29)
    np.testing.assert_array_equal(matrix[:, -1], many.exponents[29])


def test_hostile_names_come_out_as_text() -> None:
    hostile = history(name=HOSTILE, title=HOSTILE)
    table = Table(title=HOSTILE, header=[HOSTILE], rows=[[HOSTILE, (HOSTILE, HOSTILE)]])
    html = page(hostile.title, summary(hostile), [*draw(hostile), table], {HOSTILE: HOSTILE})
    assert "<img" not in written(html)
    assert '<th scope="row">&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; {{ 7 * 7 }}' in written(html)
    specs = json.loads(unpacked(html, "specs"))
    (rows,) = specs["exponents-0"]["datasets"].values()
    assert rows[0]["layer"] == f"0 {HOSTILE}0"


def layers_of(panel: Panel) -> list[dict[str, Any]]:
    spec = panel.chart.to_dict()
    data = [layer.get("data", spec.get("data")) for layer in spec["layer"]]
    return [
        {**layer, "rows": spec["datasets"][one["name"]]}
        for layer, one in zip(spec["layer"], data, strict=True)
    ]


def curve_of(panel: Panel) -> list[dict[str, Any]]:
    """What the line of a chart over epochs is drawn from."""
    return next(one["rows"] for one in layers_of(panel) if one["mark"]["type"] == "line")


def test_start_up_is_shaded_and_named_in_every_chart_over_epochs_and_faint_in_the_others() -> None:
    overview, *others = draw(history(start_up=3))
    for panel in overview.panels:
        (shade,) = (one for one in layers_of(panel) if one["mark"]["type"] == "rect")
        assert shade["rows"] == [{"from": 0, "to": 2.5}]
        assert "start-up" in [one["mark"].get("text") for one in layers_of(panel)]
    assert "haded: start-up" in overview.caption
    for figure in others:
        if figure.name != "order_parameter":
            assert "indexof([0, 1, 2], +datum.epoch) >= 0" in json.dumps(figure.panels[0].chart.to_dict())
            assert "Faint: start-up" in figure.caption
            assert picture(figure)
    assert "judged or compared: epochs 0 to 2." in summary(history(start_up=3))[1]
    over, not_over = (draw(history(start_up=epochs))[-1].caption for epochs in (3, 12))
    assert not over.endswith("start-up.")
    assert not_over.endswith("The last epoch still belongs to start-up.")
    assert not any("tart-up" in figure.caption for figure in draw(history()))


def test_what_was_raised_is_drawn_and_named_at_its_epoch_in_every_chart_over_epochs() -> None:
    raised = history(30)
    raised.diverging_epoch, raised.unsettled_epoch = 20, 12
    overview = draw(raised)[0]
    assert overview.caption == (
        "Plateau at epoch 8; warning at epoch 9; unsettled at epoch 12; diverged at epoch 20."
    )
    for panel in overview.panels:
        rules = [one["rows"] for one in layers_of(panel) if one["mark"]["type"] == "rule"]
        assert rules == [[{"epoch": epoch}] for epoch in (8, 9, 12, 20)]
        named = {
            one["mark"]["text"]: one["encoding"]["y"]["value"]
            for one in layers_of(panel)
            if one["mark"]["type"] == "text"
        }
        assert list(named) == ["plateau 8", "warning 9", "unsettled 12", "diverged 20"]
        # Names that would overlap are below each other, and all of them above the lines.
        assert len({named[text] for text in ("plateau 8", "warning 9", "unsettled 12")}) == 3
        (line,) = (one for one in layers_of(panel) if one["mark"]["type"] == "line")
        assert line["encoding"]["y"]["scale"]["range"][1] > max(named.values())
        assert all(
            one["mark"]["type"] == "text" or "strokeDash" in json.dumps(one) for one in layers_of(panel)
        )


def test_what_could_not_be_told_breaks_the_line_and_leaves_the_cells_empty() -> None:
    run = history(3)
    run.add(3, {names.TRAIN_LOSS: math.nan, names.VALIDATION_ACCURACY: 0.3}, measure(np.zeros((6, 10))))
    run.add(4, {names.TRAIN_LOSS: 0.5}, measure(np.zeros((6, 10))))
    again = history(6)
    run.add(5, again.metrics[5], measure(np.random.default_rng(5).normal(size=(6, 128))))
    accuracy, loss, integration, *_ = draw(run)[0].panels
    assert [row["epoch"] for row in curve_of(accuracy)] == [0, 1, 2, 3, 5]  # epoch 4 gave none
    assert [row["value"] is None for row in curve_of(loss)] == [False, False, False, True, False, False]
    told = [row["value"] is None for row in curve_of(integration) if row["series"] == "integration"]
    assert told == [False, False, False, True, True, False]
    epochs, matrix = run.by_layer(run.exponents)
    assert epochs == [0, 1, 2, 3, 5]
    assert np.isnan(matrix).all(axis=0).tolist() == [False, False, False, True, False]
    path = next(figure for figure in draw(run) if figure.name == "path")
    assert path.panels[0].chart.to_dict()["layer"][0]["mark"]["invalid"] == "break-paths-filter-domains"


def test_every_chart_says_what_it_shows_in_words() -> None:
    for figure in draw(history()):
        for panel in figure.panels:
            assert len(panel.chart.to_dict()["description"]) > 20
    assert (
        "validation: 0 at epoch 0, 0.8 at epoch 11, from 0 to 0.8."
        in (draw(history())[0].panels[0].chart.to_dict()["description"])
    )


def test_a_picture_of_several_charts_is_one_picture() -> None:
    overview = draw(history())[0]
    assert len(overview.panels) > 1
    assert picture(overview).startswith(b"\x89PNG")


def test_pictures_are_drawn_in_colours_of_their_own() -> None:
    for figure in draw(history(start_up=2)):
        assert "var(--" not in specification(figure)


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
