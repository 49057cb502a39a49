"""Logs of users' trainings, kept as files: each gives the epochs it must."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scripted_loop import Loop
from test_epochs_random import one_after_the_other

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.loop.epochs import segment
from mlflow_dynamics.loop.replay import read_logs, write_log

REPLAYS = {
    # a, b (left by a break at batch 6 of 9, its workers kept), c, then `del a`, then d
    "four_loaders.jsonl": (0, 6, 12, 18),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_replay(name: str) -> None:
    (log,) = read_logs(Path(__file__).with_name("replays") / name)
    found = segment(log, over=True)
    assert (found.starts, found.doubt) == (REPLAYS[name], None)


def test_a_log_that_is_written_is_read_again(tmp_path: Path) -> None:
    logs = []
    for seed in range(2):
        loop = Loop()
        one_after_the_other(loop, random.Random(seed))
        logs.append(loop.log)
    file = tmp_path / "loop.jsonl"
    file.write_text("".join(write_log(log, training) for training, log in enumerate(logs)))
    assert read_logs(file) == logs


@pytest.mark.parametrize("line", ["", "[]", "{", '{"log": 0}', '{"log": 0, "event": "Stopped"}',
                                  '{"log": 0, "event": "Mode"}'])  # fmt: skip
def test_a_file_of_something_else_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "loop.jsonl"
    file.write_text('{"log": 0, "event": "Stepped"}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2, is no event of the loop; one is written by"):
        read_logs(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a log of the loop"):
        read_logs(tmp_path / "none.jsonl")
