"""The output of `train` in a terminal and elsewhere, and its last line after Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time

import mlflow
from warm_python import COLD

ROOM = struct.pack("HHHH", 24, 160, 0, 0)
# More epochs than a busy machine can train before the signal comes.
TRAINING = (
    "--epochs",
    "12",
    "--limit-train",
    "640",
    "--limit-test",
    "64",
    "--image-size",
    "8",
    "--seed",
    "3",
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0.01"}


def begun(*arguments: str, output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow_dynamics.cli", *arguments],
        env=os.environ | ENVIRONMENT | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        # A shell that runs this in the background has it ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def read_until(output: int, text: bytes | None) -> bytes:
    """What is written until this text comes; until the end with None."""
    read = b""
    while text is None or text not in read:
        try:
            more = os.read(output, 65536)
        except OSError:  # the end of a terminal
            break
        if not more:
            break
        read += more
    return read


def test_ctrl_c_on_a_terminal_says_how_to_go_on_and_so_it_goes_on() -> None:
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, ROOM)
    process = begun("train", *TRAINING, "--run-name", "a name", output=terminal)
    os.close(terminal)
    shown = read_until(ours, b"epoch 2:")  # as the bar says
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    shown += read_until(ours, b"--resume ")
    assert time.monotonic() - interrupted < 2
    shown += read_until(ours, None)
    assert process.wait(200) == 130
    screen = shown.decode()
    assert re.search(r"epoch 1: +\d+%\|", screen)
    told = re.findall(
        r"(.)\d{4}/\d\d/\d\d [\d:]+ (?:INFO|WARNING) mlflow_dynamics|(.)epoch +\d+  train loss",
        screen,
        re.DOTALL,
    )
    assert len(told) > 4
    assert {before or other for before, other in told} <= {"\n", "\r"}, screen  # nothing sticks to the bar

    (command,) = re.findall(r"goes on after its last whole epoch with: mlflow-dynamics (.*?)\r?\n", screen)
    assert "--run-name 'a name'" in command
    reading, writing = os.pipe()
    process = begun(*shlex.split(command), output=writing)
    os.close(writing)
    printed = read_until(reading, None).decode()
    assert process.wait(200) == 0, printed
    assert "epoch  11  train loss" in printed
    assert "\r" not in printed
    assert "%|" not in printed
    (whole,) = mlflow.search_runs(output_format="list")
    assert whole.info.status == "FINISHED"
    losses = mlflow.MlflowClient().get_metric_history(whole.info.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(12))


def test_interrupted_before_an_epoch_has_ended_it_can_only_begin_anew() -> None:
    reading, writing = os.pipe()
    process = begun("train", "--limit-test", "64", "--batch-size", "1", output=writing)
    os.close(writing)
    shown = read_until(reading, b"The run is")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    shown += read_until(reading, None)
    assert process.wait(200) == 130
    assert b"Interrupted. It was interrupted before an epoch had ended" in shown, shown


def test_other_libraries_draw_no_bars_either_where_nobody_sees_them() -> None:
    script = (
        "import os, sys; from mlflow_dynamics import cli\n"
        "try: cli.main(['sync'])\n"
        "except SystemExit: pass\n"
        "from mlflow.utils.file_utils import ArtifactProgressBar\n"
        "from torchvision.datasets.utils import tqdm\n"
        "for bar in (ArtifactProgressBar.files('files', 3).pbar, tqdm(total=3)): bar.update(); bar.close()\n"
    )
    done = subprocess.run([COLD, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "it/s" not in done.stderr
    assert "files" not in done.stderr
