"""MLproject, conda.yaml, pyproject.toml and the command line say the same thing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from mlflow_dynamics.cli import commands
from mlflow_dynamics.training.parameters import TrainingConfig

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

ROOT = Path(__file__).parents[1]


@pytest.fixture
def entry_points() -> dict[str, dict]:
    return yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def test_conda_yaml_lists_the_requirements_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["all"] == ["mlflow-dynamics[report,train]"]
    asked = [*project["dependencies"], *extras["report"], *extras["train"]]
    # What an extra asks for too it asks for in a later version.
    assert pip == list({re.split(r"[<>=]", one)[0]: one for one in asked}.values())
    (python,) = [e for e in environment["dependencies"] if isinstance(e, str) and e.startswith("python")]
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python="))


def test_python_env_yaml_is_conda_yaml_without_conda() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert project["python_env"] == "python_env.yaml"
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert environment["dependencies"] == pip
    assert f"python={environment['python']}" in conda


def test_main_has_the_parameters_and_defaults_of_the_training(entry_points: dict[str, dict]) -> None:
    parameters = entry_points["main"]["parameters"]
    expected = {**TrainingConfig().as_parameters(), "run_name": "auto"}
    assert {name: str(p["default"]) for name, p in parameters.items()} == expected


def test_every_parameter_is_typed_as_its_field(entry_points: dict[str, dict]) -> None:
    types = {f.name: f.metadata.get("kind", type(f.default)) for f in dataclasses.fields(TrainingConfig)}
    for name, parameter in entry_points["main"]["parameters"].items():
        kind = types[name].__name__
        assert parameter["type"] == (kind if kind in ("int", "float", "bool") else "string"), name


@pytest.mark.parametrize("entry_point", ["main", "paper", "grid"])
def test_the_command_passes_every_parameter_to_an_option_that_exists(
    entry_points: dict[str, dict], entry_point: str
) -> None:
    command = entry_points[entry_point]["command"]
    passed = dict(re.findall(r"--([a-z0-9-]+) \{(\w+)\}", command))
    assert set(passed.values()) == set(entry_points[entry_point]["parameters"]) - {"file"}
    assert all(option.replace("-", "_") == parameter for option, parameter in passed.items())
    subcommand = re.search(r"mlflow_dynamics\.cli (\w+)", command)
    assert subcommand is not None
    options = {option for p in commands.commands[subcommand[1]].params for option in p.opts}
    assert {f"--{option}" for option in passed} <= options
