"""A signal ends what is recorded first and then does what it would have done: each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mlflow_dynamics
from mlflow_dynamics.errors import ConfigError

SCRIPT = """
import ctypes, os, signal, sys, time
from mlflow_dynamics.termination import TERMINATIONS

def tell(*words):
    print(*words, flush=True)

def end():
    tell("ended")
    TERMINATIONS.remove(end)

def own(number, frame):
    tell("own", number, frame is not None)


number = int(sys.argv[1])
{before}
TERMINATIONS.add(end)
{after}
tell("still there")
"""

KILL = "os.kill(os.getpid(), number)"

CASES = {
    "it dies of it": ("", KILL, ["ended"], True),
    "a handler of the script's": ("signal.signal(number, own)", KILL, ["ended", "own {n} True", "still there"], False),
    "one that is ignored": ("signal.signal(number, signal.SIG_IGN)", KILL, ["still there"], False),
    "one that has replaced ours": ("", f"signal.signal(number, own); {KILL}", ["own {n} True", "still there"], False),
    "nothing is recorded any more": ("", f"TERMINATIONS.remove(end); {KILL}", [], True),
    "the main thread hangs in C": (
        "import threading",
        f"threading.Timer(0.2, lambda: {KILL}).start(); [ctypes.CDLL(None).sleep(60) for _ in range(9)]",
        ["ended"],
        True,
    ),
    "what is to be ended hangs": ("end = lambda: time.sleep(60)", KILL, [], True),
    "the signal of a forked child": (
        "",
        "child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(1)\ntime.sleep(0.5)\n"
        "os.kill(child, number)\nstatus = os.waitpid(child, 0)[1]\ntell(os.waitstatus_to_exitcode(status) == -number)",
        ["True", "still there"],
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_what_is_recorded_and_then_the_process(case: str, number: signal.Signals) -> None:
    before, after, told, dies = CASES[case]
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before, after=after), str(int(number))],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.stdout.splitlines() == [line.format(n=int(number)) for line in told], ended.stderr
    assert ended.returncode == (-number if dies else 0), ended.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("other", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_that_comes_while_another_ends_what_is_recorded_waits_for_it(other: signal.Signals) -> None:
    slow = "def end():\n    TERMINATIONS.remove(end)\n    time.sleep(1)\n    tell('ended')"
    again = f"import threading; threading.Timer(0.3, os.kill, (os.getpid(), {int(other)})).start(); {KILL}"
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=slow, after=again), str(int(signal.SIGTERM))],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.stdout == "ended\n", ended.stderr
    assert ended.returncode in (-signal.SIGTERM, -other), ended.stderr


CLOSING = """
def end():
    closing.wait(60)

import threading
closing = threading.Event()
{before}
TERMINATIONS.add(end)
{after}
threading.Timer(0.2, lambda: [os.kill(os.getpid(), number), time.sleep(0.2), os.kill(os.getpid(), number)]).start()
with TERMINATIONS.hurrying():
    try:
        time.sleep(30)
    except KeyboardInterrupt as error:
        tell("hurried", type(error).__name__, TERMINATIONS.begun)
    time.sleep(1)
    tell("closed")
closing.set()
tell("still there")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("handled", [False, True])
def test_a_signal_that_comes_while_the_script_itself_ends_what_is_recorded_acts_when_it_is_ended(
    handled: bool, number: signal.Signals
) -> None:
    before = "signal.signal(number, own)" if handled else ""
    script = SCRIPT.partition("{before}")[0] + CLOSING
    ended = subprocess.run(
        [sys.executable, "-c", script.format(before=before, after=""), str(int(number))],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    told = ["hurried Hurried True", "closed"]
    if handled:
        told += [f"own {int(number)} True"] * 2 + ["still there"]
    assert ended.stdout.splitlines() == told, ended.stderr
    assert ended.returncode == (0 if handled else -number), ended.stderr


BEGINNING = """
{before}
with TERMINATIONS.beginning():
    os.kill(os.getpid(), number)
    tell("begins", TERMINATIONS.begun)
    TERMINATIONS.add(end)
tell("still there", TERMINATIONS.begun)
"""


@pytest.mark.parametrize("handled", [False, True])
def test_a_signal_that_comes_while_a_recording_begins_ends_it_when_it_has_begun(handled: bool) -> None:
    before = "signal.signal(number, own)" if handled else ""
    script = SCRIPT.partition("{before}")[0] + BEGINNING
    number = signal.SIGTERM
    ended = subprocess.run(
        [sys.executable, "-c", script.format(before=before), str(int(number))],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    told = ["begins True", "ended"]
    if handled:  # what the script's own handler has dealt with hurries nothing that comes later
        told += [f"own {int(number)} True", "still there False"]
    assert ended.stdout.splitlines() == told, ended.stderr
    assert ended.returncode == (0 if handled else -number), ended.stderr


def test_a_way_to_take_signals_that_is_not_known_is_answered_in_one_sentence() -> None:
    model = torch.nn.Linear(2, 2)
    for function in (mlflow_dynamics.autolog, lambda **given: mlflow_dynamics.track(model, **given)):
        with pytest.raises(ConfigError, match=r"^on_sigterm='stop' must be None .* or 'end' "):
            function(on_sigterm="stop")
