"""What the early warning finds is told to a function or a webhook of the user's, and hurts no training."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from foreign_detector import install
from test_watching import settling
from torch import nn
from torchrun import launch

import mlflow_dynamics
from mlflow_dynamics import alerts
from mlflow_dynamics.alerts import Alerts, Event, begins, post
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import State, Verdict, WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.watching import watch

WINDOW = MeasureConfig(window=64)


def verdict(epoch: int, state: State = "diverging", *, signal: int = 0) -> Verdict:
    message = f"Epoch {epoch}: Training diverges: the training loss is nan."
    return Verdict(
        epoch=epoch, signal=signal, score=math.nan, state=state, should_stop=False, message=message
    )


def tell(told: Alerts, epochs: int = 1) -> None:
    for epoch in range(epochs):
        told.tell(verdict(epoch), run_id="r1", title="swift-fox", metrics={"train/loss": math.nan, "x": 1.0})


EVENT = Event(kind="diverging", run_id="r1", epoch=3, text="swift-fox: ...", metrics={"x": math.inf})


class Webhook(ThreadingHTTPServer):
    """Answers /STATUS with that status, /busy with 503 until the third request, /hang and /drip hardly ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def address(self, path: str, *, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_port}/{path}"


class _Answer(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])), parse_constant=_refuse)
        self.server.asked.append((self.path, dict(self.headers), body))
        if self.path == "/hang":
            self.server.over.wait(60)
        while self.path == "/drip" and not self.server.over.wait(0.05):
            self.wfile.write(b"H")
        if self.path == "/busy":
            status = 503 if len(self.server.asked) < 3 else 204
        else:
            status = int(self.path[1:4]) if self.path[1:4].isdigit() else 500
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.address("200-elsewhere"))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr(alerts, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.3)
    running = Webhook()
    yield running
    running.over.set()
    running.shutdown()
    running.server_close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    return lambda: [line.getMessage() for line in caplog.records if line.name == alerts.__name__]


def test_a_state_begins_where_another_was_before_and_converging_not_anew_while_its_signal_lasts() -> None:
    assert begins(verdict(0), None)
    assert not begins(verdict(1), verdict(0))
    assert begins(verdict(3), verdict(2, "waiting"))
    assert not begins(verdict(1, "waiting"), None)
    waiting = verdict(4, "waiting", signal=1)  # stability was not defined in this epoch
    assert not begins(verdict(5, "converging", signal=1), waiting)
    assert begins(verdict(5, "diverging"), waiting)


def test_a_function_is_told_in_a_thread_of_its_own() -> None:
    told: list[tuple[Event, bool]] = []
    told_by = Alerts(
        lambda event: told.append((event, threading.current_thread() is threading.main_thread()))
    )
    tell(told_by, 2)
    told_by.finish()
    assert [(event.kind, event.run_id, event.epoch, main) for event, main in told] == [
        ("diverging", "r1", 0, False),
        ("diverging", "r1", 1, False),
    ]
    assert told[0][0].text == "swift-fox: Epoch 0: Training diverges: the training loss is nan."
    assert told[0][0].metrics.keys() == {"train/loss", "x"}


def test_whatever_a_function_raises_is_one_line_and_the_next_event_is_told(
    lines: Callable[[], list[str]],
) -> None:
    told: list[int] = []

    def hostile(event: Event) -> None:
        told.append(event.epoch)
        if event.epoch == 0:
            raise ValueError("no\nroom at http://me:hunter2@host")
        if event.epoch == 1:
            sys.exit(3)
        if event.epoch == 2:
            raise KeyboardInterrupt

    told_by = Alerts(hostile)
    tell(told_by, 4)
    told_by.finish()
    assert told == [0, 1, 2, 3]
    assert [line.partition(")")[0] for line in lines()] == [
        "on_event has failed (ValueError: no room at http://host",
        "on_event has failed (SystemExit: 3",
        "on_event has failed (KeyboardInterrupt: KeyboardInterrupt",
    ]


def test_one_that_hangs_holds_up_nobody_and_what_does_not_wait_is_said(
    lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "END_S", 0.2)
    over = threading.Event()
    told_by = Alerts(lambda _: over.wait(60))
    began = time.monotonic()
    tell(told_by)
    time.sleep(0.1)
    tell(told_by, alerts.MAX_WAITING + 1)
    told_by.finish()
    assert time.monotonic() - began < 5
    over.set()
    said = lines()
    assert len(said) == 2
    assert said[0].startswith("on_event is not told: 16 events wait already. swift-fox: Epoch 16:")
    assert said[1] == "on_event takes longer than 0.2 s: not all events of this run may be told."


def test_a_webhook_gets_json_and_no_credentials_that_are_not_in_its_address(
    webhook: Webhook, own_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_mlflow / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(own_mlflow / "netrc"))
    post(webhook.address("200"), EVENT)
    post(webhook.address("200", user="you:p%40ss@"), EVENT)
    (path, headers, body), (_, others, _) = webhook.asked
    assert path == "/200"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "kind": "diverging", "run_id": "r1", "epoch": 3, "text": "swift-fox: ...", "metrics": {"x": None},
    }  # fmt: skip
    assert "Authorization" not in headers
    assert others["Authorization"] == "Basic eW91OnBAc3M="


@pytest.mark.parametrize(
    ("path", "tries", "reason"),
    [
        ("busy", 3, None),
        ("500", 3, "127.0.0.1: it answers 500"),
        ("404", 1, "127.0.0.1: it answers 404"),
        ("302", 1, "127.0.0.1: it answers 302"),
        ("hang", 3, "127.0.0.1: it does not answer in time"),
        ("drip", 3, "127.0.0.1: it does not answer in time"),
    ],
)
def test_a_webhook_is_tried_a_few_times_and_its_failure_is_one_line_without_its_address(
    webhook: Webhook, lines: Callable[[], list[str]], path: str, tries: int, reason: str | None
) -> None:
    told_by = Alerts(webhook.address(path, user="me:hunter2@"))
    tell(told_by)
    told_by.finish()
    assert [asked for asked, _, _ in webhook.asked] == [f"/{path}"] * tries
    assert [line.partition(") ")[0] for line in lines()] == (
        [f"on_event has failed ({reason}): swift-fox: Epoch 0: Training diverges: the training loss is nan."]
        if reason
        else []
    )


def test_where_nobody_listens_that_is_said(webhook: Webhook, lines: Callable[[], list[str]]) -> None:
    address = webhook.address("SECRET")
    webhook.shutdown()
    webhook.server_close()
    told_by = Alerts(address)
    tell(told_by)
    told_by.finish()
    (line,) = lines()
    assert line.startswith("on_event has failed (127.0.0.1: ConnectionError): ")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def train(on_event: Any, losses: list[float], **settings: Any) -> str:
    model, rng = network(), np.random.default_rng(0)
    with mlflow_dynamics.track(model, measures=WINDOW, on_event=on_event, **settings) as tracker:
        for epoch, loss in enumerate(losses):
            settling(model, epoch, rng)
            tracker.end_epoch(**{"train/loss": loss})
    return str(tracker.run_id)


def test_a_divergence_is_told_when_it_begins_and_again_when_it_begins_anew() -> None:
    told: list[Event] = []
    run_id = train(told.append, [2.0, math.nan, math.inf, 1.0, 1.0, 9.0, 9.0])
    assert [(event.kind, event.epoch, event.run_id) for event in told] == [
        ("diverging", 1, run_id),
        ("diverging", 5, run_id),
    ]
    name = mlflow.get_run(run_id).info.run_name
    assert told[1].text.startswith(f"{name}: Epoch 5: Training diverges: the training loss 9 is over 3 times")
    assert told[1].metrics["train/loss"] == 9.0
    assert 0 <= told[1].metrics["dynamics/stability"] <= 1


def test_convergence_is_told(own_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(own_mlflow / "installed"))
    told: list[Event] = []
    run_id = train(told.append, [1.0] * 6, warning=WarningConfig(detector="third"))
    assert [event.kind for event in told] == ["converging"]
    assert mlflow.get_run(run_id).data.tags["dynamics.converged_epoch"] == str(told[0].epoch)


def test_who_hangs_or_prints_holds_up_neither_training_nor_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alerts, "END_S", 0.3)
    over = threading.Event()

    def hang(event: Event) -> None:
        print(event.kind)
        over.wait(60)

    began = time.monotonic()
    run_id = train(hang, [2.0, math.nan, 1.0])
    assert time.monotonic() - began < 20
    over.set()
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert capsys.readouterr().out == "diverging\n"


def test_the_end_of_a_training_waits_until_its_last_event_is_told() -> None:
    told: list[int] = []

    def slowly(event: Event) -> None:
        time.sleep(2)
        told.append(event.epoch)

    train(slowly, [2.0, math.nan])
    assert told == [1]


def test_a_training_that_is_carried_on_tells_nothing_of_what_was_before() -> None:
    told: list[Event] = []
    run_id = train(told.append, [2.0, math.nan])
    model, rng = network(), np.random.default_rng(0)
    with mlflow_dynamics.track(model, resume=run_id, on_event=told.append) as tracker:
        for loss in (math.nan, 1.0, math.nan):
            settling(model, 0, rng)
            tracker.end_epoch(**{"train/loss": loss})
    assert [event.epoch for event in told] == [1, 4]


def test_a_live_run_that_tells_nobody_is_watched() -> None:
    told: list[Event] = []
    client = mlflow.MlflowClient()
    run = client.create_run("0", run_name="watched")
    for epoch, loss in enumerate([1.0, math.nan, math.nan]):
        client.log_metric(run.info.run_id, "dynamics/stability", 0.5, step=epoch)
        client.log_metric(run.info.run_id, "train/loss", loss, step=epoch)
    seen = watch(run.info.run_id, poll_s=0.05, on_event=told.append)
    assert [next(seen).verdict.state for _ in range(3)] == ["waiting", "diverging", "diverging"]
    client.log_metric(run.info.run_id, "dynamics/stability", 0.5, step=3)
    client.log_metric(run.info.run_id, "dynamics/stability", 1.5, step=4)
    client.set_terminated(run.info.run_id)  # as a script does that raises where its loss is none
    assert [epoch.verdict.state for epoch in seen] == ["waiting", "diverging"]
    assert [(event.kind, event.epoch) for event in told] == [("diverging", 1), ("diverging", 4)]
    assert told[0].text.startswith("watched: Epoch 1: ")
    told.clear()
    assert len(list(watch(run.info.run_id, on_event=told.append))) == 5
    assert told == []  # the run has long ended


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            3,
            True,
            "",
            "slack",
            "ftp://host/x",
            "file:///x",
            "http://",
            "http://h:port/",
            "http://[::1",
            "https:/h",
        ),
        *("http://a b/", "http://h/\n", b"http://h/", ["http://h/"], lambda: None, lambda a, b: None, Event),
    ],
)
def test_who_cannot_be_told_is_named_without_a_secret(wrong: Any) -> None:
    words = "must be a function that takes one event and is not async, the http"
    for call in (mlflow_dynamics.autolog, lambda **given: list(watch("a" * 32, **given))):
        with pytest.raises(ConfigError, match=f"^on_event=.* {words}") as refused:
            call(on_event=wrong)
        assert "\n" not in str(refused.value)
    if isinstance(wrong, str):
        assert wrong[8:] == "" or wrong[8:] not in str(refused.value)


def test_an_async_function_is_refused_and_one_of_c_is_taken() -> None:
    async def later(event: Event) -> None:
        """Never awaited."""

    with pytest.raises(ConfigError, match=r"^on_event=.* is not async"):
        mlflow_dynamics.track(network(), on_event=later)
    mlflow_dynamics.track(network(), on_event=[].append).close()


def test_without_a_warning_there_is_nothing_to_tell() -> None:
    with pytest.raises(
        ConfigError, match=r"on_event=.* WarningConfig\(mode='off'\) turns that off; leave one"
    ):
        mlflow_dynamics.track(network(), warning=WarningConfig(mode="off"), on_event=print)


SCRIPT = """
import math, sys, torch, mlflow_dynamics
from torch import nn
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(280, 3), torch.zeros(280, dtype=torch.long))
loader = torch.utils.data.DataLoader(data, batch_size=4)
model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
mlflow_dynamics.autolog(on_event=sys.argv[1])
for epoch in range(4):
    for inputs, targets in loader:
        loss = nn.functional.cross_entropy(model(inputs), targets) * (math.nan if epoch == 3 else 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
raise ValueError("loss is nan")
"""


def test_a_script_that_ends_where_its_loss_is_none_has_told_it(webhook: Webhook) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, webhook.address("200")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ValueError: loss is nan" in done.stderr
    assert [(body["kind"], body["epoch"]) for _, _, body in webhook.asked] == [("diverging", 3)]


RANKS = """
import json, math, sys, torch, mlflow_dynamics
from pathlib import Path
from torch import distributed, nn
distributed.init_process_group("gloo")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
told = []
with mlflow_dynamics.track(model, on_event=lambda event: told.append(event.epoch)) as tracker:
    for loss in (1.0, math.nan):
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
        tracker.end_epoch({"train/loss": loss})
Path(sys.argv[1], f"told {distributed.get_rank()}.json").write_text(json.dumps(told))
distributed.destroy_process_group()
"""


def test_of_several_processes_the_first_one_tells(own_mlflow: Path, empty_store: Path) -> None:
    folder = own_mlflow / "job"
    folder.mkdir()
    (folder / "ranks.py").write_text(RANKS)
    job = launch(folder / "ranks.py", folder, empty_store)
    assert job.code == 0, job.lines
    assert [job.told("told", rank) for rank in (0, 1)] == [[1], []]
