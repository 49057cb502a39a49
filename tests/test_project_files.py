"""MLproject, conda.yaml, pyproject.toml and the command line say the same thing."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mlflow_dynamics.cli import commands
from mlflow_dynamics.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def entry_points() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def test_conda_yaml_lists_the_requirements_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pip == project["dependencies"]
    (python,) = [e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python")]
    assert python.removeprefix("python=") == project["requires-python"].removeprefix(">=")


def test_main_has_the_parameters_and_defaults_of_the_training(entry_points: dict[str, dict]) -> None:
    parameters = entry_points["main"]["parameters"]
    expected = TrainingConfig().as_parameters()
    assert {name: str(p["default"]) for name, p in parameters.items()} == expected


def test_every_parameter_is_typed_as_its_field(entry_points: dict[str, dict]) -> None:
    types = {f.name: f.metadata.get("kind", type(f.default)) for f in dataclasses.fields(TrainingConfig)}
    for name, parameter in entry_points["main"]["parameters"].items():
        kind = types[name].__name__
        assert parameter["type"] == (kind if kind in ("int", "float", "bool") else "string"), name


@pytest.mark.parametrize("entry_point", ["main", "paper"])
def test_the_command_passes_every_parameter_to_an_option_that_exists(
    entry_points: dict[str, dict], entry_point: str
) -> None:
    command = entry_points[entry_point]["command"]
    passed = dict(re.findall(r"--([a-z0-9-]+) \{(\w+)\}", command))
    assert set(passed.values()) == set(entry_points[entry_point]["parameters"])
    assert all(option.replace("-", "_") == parameter for option, parameter in passed.items())
    subcommand = re.search(r"mlflow_dynamics\.cli (\w+)", command)
    assert subcommand is not None
    options = {option for p in commands.commands[subcommand[1]].params for option in p.opts}
    assert {f"--{option}" for option in passed} <= options
