"""What a notebook shows of a run, without a browser: a history in, HTML out."""

from __future__ import annotations

import math
import re
import subprocess
from xml.etree import ElementTree

import pytest
from test_page import HOSTILE, history
from warm_python import COLD

from mlflow_dynamics.report.at_a_glance import WIDTH, html_of, said_of
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names

SVG = re.compile(r"<svg.*?</svg>")


def charts(html: str) -> dict[str, ElementTree.Element]:
    """What a chart is called -> its SVG, which is well-formed."""
    found = [ElementTree.fromstring(svg) for svg in SVG.findall(html)]
    return {str(chart.find("text").text): chart for chart in found}


def told(epochs: int, loss: float = 1.0) -> RunHistory:
    found = RunHistory(title="swift-fox", definitions={}, running=True)
    found.metrics = [
        {"epoch": epoch, names.TRAIN_LOSS: loss * epoch, names.STABILITY: 0.5} for epoch in range(epochs)
    ]
    return found


def lines_of(chart: ElementTree.Element) -> list[str]:
    """The paths of the series: those in colours."""
    drawn = [path for path in chart.findall("path") if "color-mix" in path.attrib["style"]]
    return [path.attrib["d"] for path in drawn if "L" in path.attrib["d"]]


def test_it_says_what_the_run_came_to_and_draws_three_charts() -> None:
    run = history(12, start_up=2)
    run.links = {"This run in MLflow": "http://host/#/runs/a?b=1&c=2", "The runs": "http://host/#/"}
    run.diverging_epoch = 5
    html = html_of(run)
    assert '<a href="http://host/#/runs/a?b=1&amp;c=2"' in html
    assert html.count("<a ") == 1
    assert ">a run: 12 epochs</a>" in html
    assert all(line in html for line in said_of(run)[1:])
    found = charts(html)
    assert list(found) == ["Accuracy", "Loss", "Stability"]
    for title, chart in found.items():
        texts = [text.text for text in chart.findall("text")]
        assert {"start-up", "diverged 5", "warning 9", "epoch", "0", "11"} <= set(texts)
        assert ("validation" in texts) == (title == "Accuracy")
        assert f"{title} over the epochs. " in chart.attrib["aria-label"]
        assert "Diverged at epoch 5; plateau at epoch 8; warning at epoch 9" in chart.attrib["aria-label"]
        assert len(lines_of(chart)) == 1


def test_a_value_that_is_none_breaks_the_line_and_one_between_two_is_a_dot() -> None:
    run = told(7)
    for epoch in (2, 4, 5):
        run.metrics[epoch][names.TRAIN_LOSS] = math.nan
    (line,) = lines_of(charts(html_of(run))["Loss"])
    assert [len(part.split("L")) for part in line.split("M")[1:]] == [2, 1, 1]
    assert "nan" not in html_of(run)


@pytest.mark.parametrize("loss", [0.0, 1e-300, -1e308, 1.7e308])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_numbers_of_any_size_stay_in_the_chart(epochs: int, loss: float) -> None:
    run = told(epochs)
    for row, sign in zip(run.metrics, (1, -1, 1), strict=False):
        row[names.TRAIN_LOSS] = sign * loss
    chart = charts(html_of(run))["Loss"]
    for path in chart.findall("path"):
        numbers = [float(one) for one in re.findall(r"-?[\d.]+", path.attrib["d"])]
        assert all(0 <= one <= WIDTH for one in numbers)


def test_ten_thousand_epochs_are_thinned() -> None:
    html = html_of(told(10_000))
    assert len(html) < 20_000
    (line,) = lines_of(charts(html)["Loss"])
    assert line.count("L") <= WIDTH + 1


def test_before_the_first_epoch_there_is_the_name_alone() -> None:
    run = RunHistory(title="swift-fox", definitions={}, running=True)
    assert said_of(run) == ["swift-fox: 0 epochs so far"]
    assert "<svg" not in html_of(run)


def test_hostile_names_come_out_as_text() -> None:
    run = history(3, title=HOSTILE)
    run.links = {"This run in MLflow": f'http://host/"{HOSTILE}'}
    html = html_of(run)
    assert "<img" not in html
    assert 'host/"' not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_it_needs_no_library_of_the_extra() -> None:
    code = "import mlflow_dynamics.report.notebook, sys; print(*sys.modules)"
    done = subprocess.run([COLD, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"altair", "jinja2", "vl_convert", "torch", "IPython"})
