"""Which interrupted training a new one goes on with."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.training.checkpoints import (
    TRAINED,
    best_path,
    checkpoint_path,
    keep_for,
    open_checkpoints,
    read_checkpoint,
    run_to_go_on_in,
    write_checkpoint,
)
from mlflow_dynamics.training.parameters import TrainingConfig

CONFIG = TrainingConfig(model="resnet18", epochs=4)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path) -> None:
    """An empty folder of checkpoints in the working folder."""
    open_checkpoints()


def interrupted(run_id: str, config: TrainingConfig, *, at: int = 0) -> None:
    torch.save({TRAINED: config.trained()}, checkpoint_path(run_id))
    os.utime(checkpoint_path(run_id), (at, at))


def test_auto_goes_on_in_the_last_run_of_the_same_training() -> None:
    auto = replace(CONFIG, resume="auto")
    assert run_to_go_on_in(auto) is None
    interrupted("first", CONFIG, at=1)
    interrupted("last", replace(auto, device="cpu", workers=2, run_name="a name"), at=3)
    interrupted("between", CONFIG, at=2)
    interrupted("other", replace(CONFIG, seed=1), at=4)
    assert run_to_go_on_in(auto) == "last"
    assert run_to_go_on_in(replace(auto, epochs=5)) is None
    assert run_to_go_on_in(CONFIG) is None


def test_auto_leaves_a_damaged_checkpoint_out_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    interrupted("same", CONFIG)
    checkpoint_path("damaged").write_bytes(b"half of a checkpoint")
    assert run_to_go_on_in(replace(CONFIG, resume="auto")) == "same"
    assert "is damaged" in caplog.text


def test_a_run_goes_on_with_the_parameters_that_it_had() -> None:
    interrupted("run", CONFIG)
    assert run_to_go_on_in(replace(CONFIG, resume="run", device="cpu")) == "run"
    with pytest.raises(ConfigError, match=r"is a training with epochs=4 \(not 5\), seed=0 \(not 1\); give"):
        run_to_go_on_in(replace(CONFIG, resume="run", epochs=5, seed=1))


def test_a_run_without_a_checkpoint_is_refused_with_those_that_have_one() -> None:
    interrupted("run", CONFIG)
    with pytest.raises(ConfigError, match=r"resume='nowhere' has no checkpoint .* resumed here: run\."):
        run_to_go_on_in(replace(CONFIG, resume="nowhere"))


def test_an_interrupt_in_the_middle_of_a_checkpoint_is_one_and_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_checkpoint(checkpoint_path("run"), {"epoch": 1})

    replacing = Folder.replacing

    @contextmanager
    def interrupted_writing(self: Folder, name: str) -> Iterator[io.BytesIO]:
        with replacing(self, name):
            yield Interrupted()

    class Interrupted(io.BytesIO):
        def write(self, data: object) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "replacing", interrupted_writing)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(checkpoint_path("run"), {"epoch": 2, "model": {"weight": torch.zeros(9)}})
    assert read_checkpoint(checkpoint_path("run")) == {"epoch": 1}


def test_what_was_kept_under_a_local_name_is_kept_for_the_run() -> None:
    interrupted("local", CONFIG)
    best_path("local").write_bytes(b"best")
    keep_for("run", "local")
    assert checkpoint_path("run").is_file()
    assert best_path("run").read_bytes() == b"best"
    assert not checkpoint_path("local").exists()
    keep_for("run", "run")
    assert checkpoint_path("run").is_file()
