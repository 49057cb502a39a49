"""How a process ended is told as MLflow has it, whichever way it did: each ending in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENDINGS = {
    "by itself": ("pass", ["FINISHED"]),
    "an error": ("raise ValueError", ["FAILED"]),
    "an error shown by a hook of the script's": ("sys.excepthook = lambda *error: None; 1 / 0", ["FAILED"]),
    "an interrupt": ("raise KeyboardInterrupt", ["KILLED"]),
    "sys.exit(3)": ("sys.exit(3)", ["FAILED"]),
    "sys.exit('why')": ("sys.exit('why')", ["FAILED"]),
    "sys.exit(0.0), whose status is 1": ("sys.exit(0.0)", ["FAILED"]),
    "sys.exit(256), whose status is 0": ("sys.exit(256)", ["FINISHED"]),
    "sys.exit()": ("sys.exit()", ["FINISHED"]),
    "exit(3)": ("exit(3)", ["FAILED"]),
    "quit()": ("quit()", ["FINISHED"]),
    "raise SystemExit(3), of which no trace is left": ("raise SystemExit(3)", ["None"]),
    "an exit that was caught": ("caught(sys.exit, 3)", ["FINISHED"]),
    "an exit that was caught before another": ("caught(sys.exit, 3); end.not_yet(); raise SystemExit", ["None"]),
    "another thread's exit": ("in_thread(sys.exit, 3); raise SystemExit", ["None"]),
    "a fork that multiprocessing does not know": ("os.fork()", ["FINISHED"]),
    "watching no more": ("end.remove(); assert sys.exit is original; sys.exit(3)", []),
    "a forked child": ("forked(sys.exit, 3); forked(int, 0)", ["forked", "FAILED", "forked", "FINISHED", "FINISHED"]),
    "a forked child that fails": ("forked(int, 'x')", ["forked", "FAILED", "FINISHED"]),
}  # fmt: skip

SCRIPT = f"""
import multiprocessing, os, sys, threading, warnings
from mlflow_dynamics.process_end import ProcessEnd

warnings.simplefilter("ignore")
original = sys.exit

def caught(function, *args):
    try:
        function(*args)
    except SystemExit:
        pass

def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()

def forked(function, *args):
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    child.join()

def ended(status):
    tell(status)
    os._exit(0)  # taking down an interpreter with torch in it takes seconds

for number, (ending, _) in enumerate({list(ENDINGS.values())!r}):
    process = os.fork()
    if process == 0:
        tell = lambda word: print(number, word, flush=True)
        end = ProcessEnd(ended, lambda: tell("forked"))
        exec(ending)
        break
    os.waitpid(process, 0)
"""


def test_every_ending_is_told_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told: dict[str, list[str]] = {name: [] for name in ENDINGS}
    for line in ended.stdout.splitlines():
        number, word = line.split()
        told[list(ENDINGS)[int(number)]].append(word)
    assert told == {name: words for name, (_, words) in ENDINGS.items()}, ended.stderr
