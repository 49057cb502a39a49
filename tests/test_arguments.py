"""Arguments of a wrong type or value: one sentence that names the argument, before any run exists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.integrations import lightning, transformers
from mlflow_dynamics.recomputing import recompute
from mlflow_dynamics.watching import watch


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


class Unprintable:
    """Its own text is an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


WRONG = {
    "model": (None, 3, "resnet", [network()], nn.Module, {"a": network()}),
    "optimizer": ("sgd", network(), torch.optim.SGD, 0.1),
    "recording": ({}, {"record_every": 2}, 2, "all", MeasureConfig(), RecordingConfig),
    "measures": ({"window": 64}, 512, "dfa", RecordingConfig()),
    "warning": ({}, {"mode": "stop"}, "stop", True, Schedule(), WarningConfig),
    "mode": (True, None, "halt", 1, ["stop"], np.ones(3), b"stop"),
    "stop_before_last_phase": (1, "yes", None, np.ones(2)),
    "detector": (3, None, "", "volatilty", ["volatility"], np.ones(2), object),
    "schedule": ("cosine", {"name": "cosine"}, 30, torch.optim.lr_scheduler.StepLR),
    "log_every_n_epoch": (0, -1, 1.5, "2", None, True, float("nan"), [1]),
    "run_id": (5, "", "..", ".", "a/b", "a\nb", " ", "x" * 65, b"0", Path("x"), "local-/../x"),
    "resume": (5, "", "..", "a/b", "x" * 65, Path("x"), True),
    "on_sigterm": ("stop", True, 15, ["end"]),
    "on_event": (3, True, "", "slack", "ftp://host/x", "http://h:port/", b"http://h/", lambda: None),
    "loop_log": (3, True, ["loop.jsonl"], b"loop"),
    "tracking_uri": (3, "", " ", Path("x"), b"http://x", ["http://x"], "http://[::1", "http://h:port/"),
    "disable": ("yes", 1, None),
    "exclusive": ("yes", 1, None),
    "silent": ("no", 0, None),
    "extra_tags": ("team", ["team"], {"team": 3}, {3: "vision"}, {"": "x"}, {"a/../b": "x"}),
    "record_every": (0, "2", 1.5, None, True),
    "batch_samples": (0, "all", 1.5, False),
    "include": ("Linear", ("Linear", 3), {"Linear"}, None, ("",), 3),
    "exclude": ("Linear", [None], 3),
    "max_layers": (0, "many", None),
    "signal": ("RMS", None, 3, ["rms"], np.ones(2)),
    "protocol": ("step", None, 3),
    "window": (31, "512", 1e3),
    "estimator": ("DFA", 3, ["dfa"]),
    "uncertainty": ("True", 1, None),
    "volatility_window": (1, 2.5, "5"),
    "name": (None, 3, ["cosine"]),
    "planned_epochs": (0, "30", 1.5, True),
    "drop_epochs": (15, ("15",), (1.5,), (-1,), "15", None),
}
CALLED: tuple[Callable[..., Any], ...] = (
    mlflow_dynamics.track,
    mlflow_dynamics.autolog,
    lightning.DynamicsCallback,
    transformers.DynamicsCallback,
    RecordingConfig,
    MeasureConfig,
    Schedule,
    WarningConfig,
)
ARGUMENTS = [(call, name) for call in CALLED for name in inspect.signature(call).parameters]


@pytest.mark.parametrize(
    ("call", "name"), [pytest.param(c, n, id=f"{c.__module__}.{c.__name__}-{n}") for c, n in ARGUMENTS]
)
def test_a_wrong_argument_is_named_before_any_work_starts(
    call: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    model = network()
    others = {"model": model} if call is mlflow_dynamics.track else {}
    for value in (*WRONG[name], Unprintable()):
        with pytest.raises(ConfigError) as refused:
            call(**{**others, name: value})
        said = str(refused.value)
        assert said.startswith(f"{name}=")
        assert re.search("must be .|is not known; accepted: .", said), said
        assert "\n" not in said
        assert len(said) < 400
    assert mlflow.active_run() is None
    assert mlflow.search_runs(output_format="list") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not any(layer._forward_hooks for layer in model.modules())


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.binary(max_size=4),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just(object()),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([RecordingConfig, MeasureConfig, Schedule, WarningConfig]), st.data())
def test_any_field_is_taken_or_refused_in_a_sentence(kind: type, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(inspect.signature(kind).parameters)))
    said = f"{name}="
    try:
        kind(**{name: data.draw(anything)})
    except ConfigError as error:
        said = str(error)
    assert said.startswith(f"{name}=")
    assert "\n" not in said


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    assert RecordingConfig(record_every=np.int64(2)).record_every == 2
    assert Schedule(planned_epochs=np.int32(30), drop_epochs=[np.int64(3)]).planned_epochs == 30


@pytest.mark.parametrize("poll_s", [None, "x", "5", True, 10**400, float("nan"), -1, [1]])
def test_a_pause_that_is_none_is_named(poll_s: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^poll=.* must be a number of seconds above 0 and below 1,000,000\.$"
    ):
        list(watch("a" * 32, poll_s=poll_s))


@pytest.mark.parametrize("config", [5, None, MeasureConfig, {}])
def test_what_measures_anew_is_named(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"^config=.* must be a mlflow_dynamics\.MeasureConfig\.$"):
        recompute("a" * 32, config)


@pytest.mark.parametrize("max_results", [-1, "x", 1.5, True])
def test_a_number_of_runs_that_is_none_is_named(max_results: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^max_results=.* must be a whole number of at least 0, or None\.$"
    ):
        mlflow_dynamics.search_runs("Default", max_results=max_results)


def test_an_address_that_is_none_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"^tracking_uri=") as refused:
        mlflow_dynamics.track(network(), tracking_uri="http://me:hunter2@[::1", run_id="a" * 32)
    assert "hunter2" not in str(refused.value)
