"""How the command is started, asked for help and completed."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from click.testing import CliRunner
from mlflow.utils.logging_utils import LOGGING_DATETIME_FORMAT, LOGGING_LINE_FORMAT
from warm_python import COLD

import mlflow_dynamics
from mlflow_dynamics import completion
from mlflow_dynamics.cli import commands
from mlflow_dynamics.text import LOG_DATES, LOG_FORMAT
from mlflow_dynamics.training.catalogue import DATASETS, MODELS


def started(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [COLD, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def test_the_package_is_a_command() -> None:
    assert started("-m", "mlflow_dynamics", "--version").strip().endswith(mlflow_dynamics.__version__)
    assert started("-m", "mlflow_dynamics", "-h").startswith("Usage: python -m mlflow_dynamics")


@pytest.mark.parametrize("command", [[], *([name] for name in commands.commands)])
def test_h_asks_for_help(command: list[str]) -> None:
    short, long = (CliRunner().invoke(commands, [*command, flag]) for flag in ("-h", "--help"))
    assert short.output == long.output
    assert (short.exit_code, short.output[:7]) == (0, "Usage: ")


def test_h_of_a_script_is_the_scripts() -> None:
    parsed = commands.commands["run"].make_context("run", [__file__, "-h"])
    assert parsed.params["arguments"] == ("-h",)


def help_of(*command: str) -> str:
    return CliRunner().invoke(commands, [*command, "-h"], terminal_width=80).output


def test_no_short_help_is_cut_at_80_columns() -> None:
    listed = help_of().partition("Commands:")[2].splitlines()
    assert len(listed) > len(commands.commands)
    assert not any("..." in line or len(line) > 80 for line in listed)


def test_help_shows_all_that_an_option_takes_and_its_default() -> None:
    said = help_of("train")
    for shown in ("[sgd|adam|adamw]", "[dfa|hk|auto]", "[off|warn|stop]", *MODELS, *DATASETS):
        assert shown in said
    assert "[rms|mean|std]" in help_of("recompute")
    assert "[default: report.html]" in help_of("report")
    for name, command in commands.commands.items():
        for option in command.params:
            if option.name in set(completion.VALUES) - completion.OPEN:
                assert all(value in (option.metavar or "") for value in completion.VALUES[option.name]()), (
                    name
                )


def test_log_lines_have_mlflows_format() -> None:
    assert (LOG_FORMAT, LOG_DATES) == (LOGGING_LINE_FORMAT, LOGGING_DATETIME_FORMAT)
    train = started("-c", "import sys; from mlflow_dynamics.cli import commands; import logging; "
                    "sys.argv[1:] = ['sync']; sys.stderr = sys.stdout; commands(['sync'], standalone_mode=False); "
                    "logging.getLogger('mlflow_dynamics').info('said')")  # fmt: skip
    assert re.search(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d INFO mlflow_dynamics: said$", train, re.MULTILINE)


COMPLETE = "import sys; sys.argv[0] = 'mlflow-dynamics'; from mlflow_dynamics.cli import main; main()"


def offered(words: str) -> list[str]:
    """What bash is told after these words, the last of which is begun."""
    asked = {"_MLFLOW_DYNAMICS_COMPLETE": "bash_complete", "COMP_WORDS": words}
    told = started("-c", COMPLETE, **asked, COMP_CWORD=str(len(words.split(" ")) - 1))
    return [line.partition(",")[2] for line in told.splitlines()]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("mlflow-dynamics re", ["recompute", "report"]),
        ("mlflow-dynamics train --model resnet5", ["resnet56", "resnet50"]),
        ("mlflow-dynamics train --dataset cifar", ["cifar10", "cifar100"]),
        ("mlflow-dynamics train --schedule o", ["onecycle"]),
        ("mlflow-dynamics train --augment ", ["true", "false"]),
        ("mlflow-dynamics train --estimator ", ["dfa", "hk", "auto"]),
        ("mlflow-dynamics train --detector v", ["volatility"]),
        ("mlflow-dynamics recompute --protocol ", ["steps", "epochs", "depth"]),
    ],
)
def test_values_are_completed(words: str, values: list[str]) -> None:
    assert offered(words) == values


def test_a_completed_name_is_a_parameter_of_some_command() -> None:
    parameters = {one.name for command in commands.commands.values() for one in command.params}
    assert set(completion.VALUES) <= parameters


def test_completion_loads_neither_torch_nor_mlflow() -> None:
    code = "import mlflow_dynamics.cli, sys; print(*sys.modules)"
    assert {"torch", "mlflow", "numpy"}.isdisjoint(started("-c", code).split())
