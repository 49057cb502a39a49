"""Trainings that end in the middle of an epoch: MLflow has the complete epochs, and the run says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import mlflow
import pytest
from exiting_training import COMPLETE, main
from faulty_training import assert_every_epoch_once, loader, network, train
from mlflow import MlflowClient
from mlflow.entities import Run
from tracking_server import MlflowServer

import mlflow_dynamics
from mlflow_dynamics import cli
from mlflow_dynamics.errors import ConfigError

HERE = Path(__file__).parent
SCRIPT = HERE / "exiting_training.py"

ENDINGS = {
    "error": (ValueError, "FAILED"),
    "interrupt": (KeyboardInterrupt, "KILLED"),
    "3": (SystemExit, "FAILED"),
    "0": (SystemExit, "FINISHED"),
}


@pytest.fixture(scope="module")
def untracked() -> list[float]:
    """The losses of the complete epochs without this project."""
    return train(network(), loader(), epochs=COMPLETE)


@pytest.fixture
def experiment(server: MlflowServer, request: pytest.FixtureRequest) -> str:
    """An experiment of the test's own, and the active one."""
    mlflow.set_tracking_uri(server.uri)
    return str(mlflow.set_experiment(request.node.name.replace("[", " ").replace("]", "")).experiment_id)


def only_run(experiment: str) -> Run:
    (run,) = MlflowClient().search_runs([experiment])
    return run


DRAWN = pytest.mark.drawn
"""Some of each way to end draw their report last, as they do where the drawing libraries are installed."""


@pytest.mark.parametrize("ending", ["error", pytest.param("interrupt", marks=DRAWN), "3", "0"])
def test_a_tracked_training_left_by_an_exception(
    ending: str, experiment: str, untracked: list[float]
) -> None:
    error, status = ENDINGS[ending]
    with pytest.raises(error):
        main("track", ending)
    run = only_run(experiment)
    assert run.info.status == status
    assert mlflow.active_run() is None
    assert_every_epoch_once(mlflow.get_tracking_uri(), run.info.run_id, untracked)


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `run` leaves to its script until the process ends is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules["__main__"])


@pytest.mark.usefixtures("main_module")
@pytest.mark.parametrize("ending", ["error", "interrupt", "3"])
def test_a_script_under_run_left_by_an_exception(
    ending: str, experiment: str, untracked: list[float]
) -> None:
    error, status = ENDINGS[ending]
    with pytest.raises(error) as left:
        cli.main(["run", str(SCRIPT), "none", ending])
    if error is SystemExit:
        assert left.value.code == 3
    run = only_run(experiment)
    assert run.info.status == status
    assert mlflow.active_run() is None
    assert_every_epoch_once(mlflow.get_tracking_uri(), run.info.run_id, untracked)


BARE = {
    "error": "raise ValueError",
    "interrupt": "raise KeyboardInterrupt",
    "SIGINT": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "SIGTERM": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "SIGHUP": "import os, signal; os.kill(os.getpid(), signal.SIGHUP)",
    "raise": "raise SystemExit(3)",
    "3": "import sys; sys.exit(3)",
    "0": "import sys; sys.exit(0)",
    "break": "pass",
}
"""The same endings without torch, MLflow and us."""

STATUSES = {"error": "FAILED", "3": "FAILED", "raise": "FAILED", "0": "FINISHED", "break": "FINISHED"}


@pytest.mark.parametrize(
    ("way", "ending", "on_sigterm"),
    [
        ("autolog", "SIGINT", None),
        ("autolog", "raise", None),
        pytest.param("run", "SIGINT", None, marks=DRAWN),
        ("open", "3", None),
        pytest.param("autolog", "SIGTERM", "end", marks=DRAWN),
        ("open", "SIGHUP", "end"),
        ("closing", "SIGTERM", "end"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("autolog", "0", None),
                ("autolog", "break", None),
                ("autolog", "error", None),
                ("autolog", "interrupt", None),
                ("autolog", "3", None),
                ("run", "raise", None),
                ("run", "error", None),
                ("run", "SIGTERM", "end"),
                ("track", "SIGINT", None),
                ("track", "raise", None),
                ("open", "SIGINT", None),
                ("open", "raise", None),
            ]
        ),
    ],
)
def test_a_process_ends_as_the_script_alone_and_without_the_epoch_it_was_in(
    way: str, ending: str, on_sigterm: str | None, untracked: list[float], own_mlflow: Path
) -> None:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE), str(HERE.parent)]),
    }
    command, recorder = [sys.executable, str(SCRIPT)], way
    if way == "run":
        option = [] if on_sigterm is None else ["--on-sigterm", on_sigterm]
        command, recorder = [sys.executable, "-m", "mlflow_dynamics.cli", "run", *option, str(SCRIPT)], "none"
    elif on_sigterm is not None:
        environment["ON_SIGTERM"] = on_sigterm

    def end(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments, env=environment, cwd=own_mlflow, capture_output=True, text=True, timeout=200,
            # A shell that runs this in the background has it ignore Ctrl-C, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    bare = end(sys.executable, "-c", BARE[ending])
    ended = end(*command, recorder, ending)
    assert ended.returncode == bare.returncode, ended.stderr
    if bare.stderr:
        assert bare.stderr.splitlines()[-1] in ended.stderr
    if way == "closing" and "there was no time" in ended.stderr:  # on a busy machine; nothing is lost
        mlflow_dynamics.sync(own_mlflow / ".mlflow_dynamics")
    run = only_run("0")
    status = "FINISHED" if way == "closing" else STATUSES.get(ending, "KILLED")
    assert run.info.status == status, ended.stderr
    assert_every_epoch_once(mlflow.get_tracking_uri(), run.info.run_id, untracked)


@pytest.mark.usefixtures("main_module")
@pytest.mark.parametrize(
    "raised", [click.UsageError("its own"), EOFError(), ConfigError("its own")], ids=repr
)
def test_an_error_of_a_script_under_run_is_no_error_of_the_command_line(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import builtins\nraise builtins.raised")
    monkeypatch.setattr("builtins.raised", raised, raising=False)
    with pytest.raises(type(raised)) as left:
        cli.main(["run", str(script)])
    assert left.value is raised


@pytest.mark.slow
def test_a_script_with_autolog_as_its_first_line_left_by_an_exception(
    server: MlflowServer, untracked: list[float], tmp_path: Path
) -> None:
    client = MlflowClient(server.uri)
    endings = ("error", "interrupt", "3")
    processes = {}
    for ending in endings:
        environment = os.environ | {
            "MLFLOW_EXPERIMENT_NAME": f"autolog {ending}",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE), str(HERE.parent)]),
        }
        processes[ending] = subprocess.Popen(
            [sys.executable, str(SCRIPT), "autolog", ending, server.uri],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
    for ending, process in processes.items():
        _, errors = process.communicate(timeout=200)
        assert process.returncode != 0
        assert "Recording stopped" not in errors
        experiment = client.get_experiment_by_name(f"autolog {ending}")
        assert experiment is not None, errors
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == ENDINGS[ending][1]
        mlflow.set_tracking_uri(server.uri)
        assert_every_epoch_once(server.uri, run.info.run_id, untracked)


@pytest.mark.parametrize(
    ("moment", "epochs", "status"),
    [
        pytest.param("exit", 1, "FINISHED", marks=DRAWN),
        ("1", 3, "FAILED"),
        pytest.param("0", 3, "FINISHED", marks=pytest.mark.slow),
        pytest.param("error", 3, "FAILED", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_the_last_moment_is_complete(
    moment: str, epochs: int, status: str, own_mlflow: Path, tmp_path: Path
) -> None:
    """One that begins while Python exits; one of a child process, which ends without `atexit`.

    Where the script failed after its last epoch was complete, that is recorded too.
    """
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE), str(HERE.parent)]),
    }
    script = subprocess.run(
        [sys.executable, str(HERE / "last_moment_training.py"), moment],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    run = only_run("0")
    assert run.info.status == status, script.stderr
    losses = train(network(), loader(), epochs=epochs)
    assert_every_epoch_once(mlflow.get_tracking_uri(), run.info.run_id, losses)
    assert "Recording stopped" not in script.stderr
    assert not list((tmp_path / ".mlflow_dynamics").iterdir())
