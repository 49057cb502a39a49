"""MLflow's own UI, seen with a real browser: the charts of a run, and its report in the artifact viewer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from test_page import history
from torch import nn
from tracking_server import MlflowServer

import mlflow_dynamics
from mlflow_dynamics.cli import commands
from mlflow_dynamics.measures import measure
from mlflow_dynamics.report.artifacts import render
from mlflow_dynamics.report.at_a_glance import html_of
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the test extra")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.drawn,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]

WIDTH, HEIGHT = 1500, 950
MLFLOWS_OWN = ("/ajax-api/", "/static-files/")


def train(epochs: int = 4, steps: int = 70) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(model) as tracker:
        for epoch in range(epochs):
            for _ in range(steps):
                inputs = torch.randn(32, 8)
                loss = nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            tracker.end_epoch(**{"train/loss": loss.item(), "validation/accuracy": 0.8 if epoch else 0.5})


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Which has no runs but those to be seen."""
    with MlflowServer(tmp_path_factory.mktemp("browsed"), empty_store) as running:
        yield running


@pytest.fixture
def run(server: MlflowServer, own_mlflow: Path) -> mlflow.entities.Run:
    mlflow.set_tracking_uri(server.uri)
    with mlflow.start_run(run_name="seen <b>by</b> a browser"):
        train()
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=1)
    return found


@pytest.fixture
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def watched(page: sync_api.Page) -> list[str]:
    """Fills with what goes wrong in the page: uncaught exceptions, and errors on the console but for MLflow's own.

    (A server without users answers its UI's `users/current` with 404; the UI warns of its own translations.)
    """
    troubles: list[str] = []

    def listen(message: sync_api.ConsoleMessage) -> None:
        if message.type == "error" and not any(part in message.location["url"] for part in MLFLOWS_OWN):
            troubles.append(f"{message.location['url']}: {message.text}")

    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", listen)
    return troubles


def test_the_ui_shows_the_charts_and_the_report(
    run: mlflow.entities.Run, server: MlflowServer, browser: sync_api.Browser, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    troubles = watched(page)
    base = f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

    page.goto(f"{base}/model-metrics")
    first = page.get_by_text("global_integration", exact=True).first
    first.wait_for(timeout=120_000)
    # What is not looked at in each run stands in a group of its own, after the measures.
    assert page.get_by_text("convergence_signal", exact=True).count() == 0
    for key in ("integration", "metastability", "stability"):
        first.hover()
        page.mouse.wheel(0, 400)  # charts below the window are not there yet
        page.get_by_text(key, exact=True).first.wait_for(timeout=120_000)
    page.mouse.wheel(0, -2000)
    page.screenshot(path=tmp_path / "charts.png")

    page.goto(f"{base}/artifacts/dynamics/report.html")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Training and its dynamics").wait_for(timeout=120_000)
    frame.locator("#overview-0 svg").wait_for(timeout=120_000)
    assert frame.locator("section .chart svg").count() == frame.locator("section .chart").count() >= 5
    for part in frame.locator("details").all():
        part.locator("summary").press("Enter")
    frame.locator("#exponents-0 svg").wait_for(timeout=120_000)
    frame.locator("#order_parameter-0 svg").wait_for(timeout=120_000)
    assert frame.locator(".chart svg").count() == frame.locator(".chart").count() >= 8
    # In the viewer's frame nothing may be wider than the frame.
    assert frame.locator("body").evaluate("body => body.scrollWidth <= window.innerWidth")
    assert frame.get_by_role("heading", name="seen <b>by</b> a browser").count() == 1
    page.screenshot(path=tmp_path / "report.png")
    page.goto("about:blank")  # else the viewer stays at the file that it shows
    page.goto(f"{base}/artifacts/dynamics/figures/overview.png")
    figure = page.get_by_alt_text("dynamics/figures/overview.png")
    figure.wait_for(state="attached", timeout=120_000)
    assert figure.evaluate("async image => (await image.decode(), image.naturalWidth)") > 500
    assert (tmp_path / "charts.png").stat().st_size > 20_000 < (tmp_path / "report.png").stat().st_size
    assert troubles == []


def test_the_description_shows_a_picture_and_opens_the_report(
    run: mlflow.entities.Run, server: MlflowServer, browser: sync_api.Browser
) -> None:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(
        f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    )
    page.get_by_text("Show more").click(timeout=120_000)
    picture = page.locator("img[src*=get-artifact]")
    assert picture.evaluate("async image => (await image.decode(), image.naturalWidth)") > 500
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Open the report").click()
    frame = opened.value.frame_locator("iframe")
    frame.get_by_role("heading", name="seen <b>by</b> a browser").wait_for(timeout=120_000)
    # The viewer lets no link out of its frame: the page shows none there.
    assert not frame.locator("nav").is_visible()


def test_child_runs_share_the_charts_of_their_experiment(
    server: MlflowServer, browser: sync_api.Browser, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(server.uri)
    experiment = mlflow.set_experiment("a grid").experiment_id
    with mlflow.start_run(run_name="parent"):
        for seed in range(2):
            with mlflow.start_run(run_name=f"child {seed}", nested=True):
                train(epochs=2)
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(
        f"{server.uri}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    # Only the runs that are listed are drawn, and children are not until their parent is opened.
    page.locator("[row-index='0'] button").first.click(timeout=120_000)
    page.get_by_text("dynamics/integration", exact=True).first.wait_for(timeout=120_000)
    for seed in range(2):
        page.get_by_text(f"child {seed} (dynamics/integration)").first.wait_for(timeout=120_000)
    page.screenshot(path=tmp_path / "children.png")


def test_the_comparison_page_is_drawn_without_a_server(
    run: mlflow.entities.Run, server: MlflowServer, browser: sync_api.Browser, tmp_path: Path
) -> None:
    with mlflow.start_run(run_name="another"):
        train()
    ids = [one.info.run_id for one in mlflow.search_runs(search_all_experiments=True, output_format="list")]
    written = tmp_path / "compared.html"
    done = CliRunner().invoke(commands, ["report", *ids, "--output", str(written)])
    assert done.exit_code == 0, done.output
    page = browser.new_page(viewport={"width": 1000, "height": HEIGHT})
    troubles = watched(page)
    page.goto(written.as_uri())
    page.locator(".chart svg").first.wait_for(timeout=120_000)
    assert page.locator(".chart svg").count() == page.locator(".chart").count() >= 2
    assert page.get_by_text("seen <b>by</b> a browser").count() > 0
    assert len(list(tmp_path.glob("compared-*.png"))) == page.locator(".chart[id$='-0']").count()
    assert page.get_by_role("link", name="another").get_attribute("href").startswith(server.uri)
    seen_by_everyone(page, tmp_path)
    assert troubles == []


def findings(page: sync_api.Page) -> list[str]:
    """What axe finds against WCAG 2.2 A and AA, and its own best practices, of all parts of a page."""
    for part in page.locator("details").all():
        part.evaluate("part => { part.open = true }")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))", timeout=60_000
    )
    return [
        f"{found['impact']}: {found['id']}: {found['nodes'][0]['html']:.200}"
        for found in Axe().run(page).response["violations"]
    ]


def test_a_report_is_read_by_everyone_at_every_width_by_day_and_night(
    browser: sync_api.Browser, tmp_path: Path
) -> None:
    written = tmp_path / "report.html"
    written.write_bytes(render(history(30, start_up=3, name="layer"), pictures=False)[names.REPORT])
    page = browser.new_page()
    troubles = watched(page)
    page.goto(written.as_uri())
    page.locator("section .chart svg").first.wait_for(timeout=120_000)
    seen_by_everyone(page, tmp_path)
    assert troubles == []


def seen_by_everyone(page: sync_api.Page, pictures: Path) -> None:
    """Nothing is cut off at any width, axe finds nothing, and night is dark."""
    section = page.locator("section").first
    for width in (1920, 1440, 560):
        page.set_viewport_size({"width": width, "height": 900})
        if width >= 1440:  # what matters is on one screen
            box = section.bounding_box()
            assert box["y"] + box["height"] < 900
        for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(13, 17, 23)")):
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=pictures / f"{width}-{scheme}.png")
            assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == paper
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert findings(page) == []
    wide = "element => element.scrollWidth > element.clientWidth"
    assert not page.locator("html").evaluate(wide)
    assert not any(chart.evaluate(wide) for chart in page.locator(".chart").all())


CONTRASTS = """lines => lines.map(line => {
  const luminance = colour => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(one => one / 255)
      .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05;
  };
  const seen = [getComputedStyle(line).stroke, getComputedStyle(document.body).backgroundColor].map(luminance);
  return Math.max(...seen) / Math.min(...seen);
})"""


@pytest.mark.parametrize(
    ("paper", "ink"), [("#fff", "#1f2328"), ("#111", "#e0e0e0"), ("#1e1e1e", "#ccc"), ("#383838", "#ddd")]
)
def test_a_notebooks_figure_is_read_by_everyone_by_day_and_night(
    browser: sync_api.Browser, tmp_path: Path, paper: str, ink: str
) -> None:
    run = history(30, start_up=3)
    run.links = {"This run in MLflow": "http://localhost:5000/#/runs"}
    shown = f"<main><h1>of a notebook</h1>{html_of(run)}</main>"
    page = browser.new_page(viewport={"width": 920, "height": 300})
    page.set_content(
        f'<html lang="en"><title>cell</title><body style="background:{paper};color:{ink}">{shown}'
    )
    page.screenshot(path=tmp_path / "figure.png")
    lines = page.locator("svg path[style*=color-mix]")
    assert lines.count() >= 6
    assert min(lines.evaluate_all(CONTRASTS)) >= 3  # WCAG 2.2, 1.4.11
    assert findings(page) == []
    for chart in page.locator("svg").all():  # nothing is cut off
        box = chart.bounding_box()
        for text in chart.locator("text").all():
            inner = text.bounding_box()
            assert inner["x"] >= box["x"] - 1
            assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1
            assert inner["y"] + inner["height"] <= box["y"] + box["height"] + 1


HOSTILE = "<img src=x onerror=alert(1)>"


def test_hostile_names_are_drawn_and_shown_on_hover_as_text(
    browser: sync_api.Browser, tmp_path: Path
) -> None:
    layers = tuple(f"{HOSTILE}{number}" for number in range(4))
    hostile = RunHistory(title=HOSTILE, definitions={HOSTILE: HOSTILE}, layers=layers)
    for epoch in range(3):
        measures = measure(np.random.default_rng(epoch).normal(size=(4, 128)))
        hostile.add(epoch, names.measure_metrics(measures) | {names.VALIDATION_ACCURACY: 0.5}, measures)
    written = tmp_path / "hostile.html"
    written.write_bytes(render(hostile, pictures=False)[names.REPORT])
    page = browser.new_page(viewport={"width": 560, "height": HEIGHT})
    troubles = watched(page)
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.goto(written.as_uri())
    page.get_by_text("Scaling exponent of each layer").click()
    cell = page.locator("#exponents-0 .mark-rect path").first
    cell.wait_for(timeout=120_000)
    cell.hover()
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=120_000)
    shown = tooltip.inner_text()
    assert f"0 {HOSTILE}0" in shown
    assert f"{hostile.exponents[0][0]:.2f}".rstrip("0") in shown
    assert page.locator("#exponents-0").get_by_text("onerror=alert(1)>").count() >= len(layers)
    assert page.locator("img").count() == 0
    assert troubles == []


def test_the_link_that_a_training_logs_opens_its_charts_in_the_model_training_view(
    server: MlflowServer, browser: sync_api.Browser, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(server.uri)
    with caplog.at_level("INFO", "mlflow_dynamics"):
        train()
    first, last = re.findall(r"http://\S+", caplog.text)
    assert first == last
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(first)
    page.get_by_text("metastability", exact=True).first.wait_for(timeout=120_000)
    # Of the GenAI side bar, which the link shows without what it asks for.
    assert page.get_by_text("Sessions", exact=True).count() == 0
    experiment = first.partition("/runs/")[0]
    page.goto(f"{experiment}?{first.partition('?')[2]}")
    page.wait_for_url("**/runs?**", timeout=120_000)


def test_the_run_says_what_happened_and_its_experiment_is_one_of_model_training(
    run: mlflow.entities.Run,
) -> None:
    described = run.data.tags["mlflow.note.content"]
    assert described.startswith("**Dynamics.** Best validation accuracy 0.")
    assert len(described.split("\n\n")) == 5
    experiment = mlflow.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_description_of_the_users_own_stays(server: MlflowServer) -> None:
    mlflow.set_tracking_uri(server.uri)
    with mlflow.start_run(description="mine") as run:
        train()
    assert mlflow.get_run(run.info.run_id).data.tags["mlflow.note.content"] == "mine"
