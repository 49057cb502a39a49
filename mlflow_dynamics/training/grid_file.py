"""Reads the cells of a grid from a YAML file: which trainings there are, each checked before anything starts.

A parameter of `train` has a value or a list of values. Every other name is a list of mappings: alternatives, each of
which sets several parameters together and may vary them in turn. All combinations are trained. Within an alternative a
parameter stands above the one of the same name outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import yaml

from mlflow_dynamics.errors import ConfigError, shown, unknown_choice
from mlflow_dynamics.training.catalogue import DATASETS
from mlflow_dynamics.training.models import input_size
from mlflow_dynamics.training.parameters import GridConfig, TrainingConfig

PAPER: Final = Path(__file__).with_name("paper.yaml")

MOST_CELLS: Final = 10_000
MOST_LEVELS: Final = 8

_FIELDS: Final = {f.name: f for f in fields(TrainingConfig) if f.name != "resume"}
"""Which training a cell goes on from is found by the grid."""

_WORDS: Final = {bool: "true or false", int: "a whole number", float: "a number"}

Values = Mapping[str, Any]


def read_grid(path: Path) -> list[TrainingConfig]:
    """Return the trainings of a grid file, each once, in the order of the file.

    Raises:
        ConfigError: the file cannot be read or declares no grid, or a cell is not a training that can be begun.
    """
    return _trainings(_cells(_content(path), path.name), path.name)


def paper_cells(config: GridConfig) -> list[TrainingConfig]:
    """Return the trainings of the paper's grid, `paper.yaml`, with what `config` says in place of the file's.

    Raises:
        ConfigError: a parameter is not usable.
    """
    try:
        seeds = [int(seed) for seed in config.seeds.split(",")]
    except ValueError:
        raise ConfigError(
            f"seeds={config.seeds!r} must be whole numbers with commas between, such as 0,1,2."
        ) from None
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name in _FIELDS}
    grid = {**_content(PAPER), "seed": seeds, **shared}
    datasets = {"cifar10": config.easy_dataset, "cifar100": config.hard_dataset}
    cells = [{**cell, "dataset": datasets[cell["dataset"]]} for cell in _cells(grid, "the paper's grid")]
    if config.vit_checkpoint is not None:
        local = {"pretrained": False, "checkpoint": config.vit_checkpoint}
        cells = [{**cell, **local} if cell.get("pretrained") else cell for cell in cells]
    return _trainings(cells, "the paper's grid")


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once in a mapping; otherwise the later would silently replace the earlier."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _content(path: Path) -> Values:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"The grid {str(path)!r} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The grid {str(path)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"The grid {str(path)!r} must be a mapping of train's parameters to values or lists of values, "
            "such as `seed: [0, 1, 2]`."
        )
    return content


def _cells(block: Values, where: str, level: int = 1) -> list[dict[str, Any]]:
    """Return the parameters of each cell of a block."""
    if level > MOST_LEVELS:
        raise ConfigError(f"{where}: alternatives are nested more than {MOST_LEVELS} deep.")
    choices: list[tuple[bool, list[dict[str, Any]]]] = []
    set_by: dict[str, str] = {}
    for name, given in block.items():
        values = given if isinstance(given, list) else [given]
        if not values:
            raise ConfigError(f"{where}: {name} is an empty list; give at least one value.")
        together = name not in _FIELDS and all(isinstance(value, dict) and value for value in values)
        if together:
            cells = [cell for value in values for cell in _cells(value, f"{where}: {name}", level + 1)]
            for parameter in {key for cell in cells for key in cell}:
                if set_by.setdefault(parameter, name) != name:
                    raise ConfigError(f"{where}: {parameter} is set by both {set_by[parameter]} and {name}.")
        else:
            cells = [{str(name): _value(name, value, where)} for value in values]
        choices.append((together, cells))
        if (count := math.prod(len(cells) for _, cells in choices)) > MOST_CELLS:
            raise ConfigError(f"{where}: these are {count} cells or more; a grid has at most {MOST_CELLS}.")
    order = [together for together, _ in choices]
    found = []
    for picked in product(*(cells for _, cells in choices)):
        cell: dict[str, Any] = {}
        for _, part in sorted(zip(order, picked, strict=True), key=itemgetter(0)):  # alternatives last
            cell |= part
        found.append(cell)
    return found


def _value(name: object, value: object, where: str) -> Any:
    """Return a parameter's value as `TrainingConfig` takes it."""
    if name not in _FIELDS:
        if isinstance(value, dict | list):
            raise ConfigError(f"{where}: {shown(name)} must be values of a parameter, or a list of mappings.")
        error = unknown_choice("parameter", name, ("those of `train`",), unlisted=_FIELDS)
        raise ConfigError(f"{where}: {error}")
    parameter: Field[Any] = _FIELDS[str(name)]
    kind, word = parameter.metadata.get("kind", type(parameter.default)), parameter.metadata.get("word")
    if word is not None and (value is None or value == word):
        return None
    if isinstance(value, bool) and kind is str:
        value = "on" if value else "off"  # which YAML reads as true and false
    if kind is bool and isinstance(value, bool):
        return value
    if not isinstance(value, bool) and (
        (kind is int and isinstance(value, int)) or (kind is float and isinstance(value, int | float))
    ):
        return kind(value)
    if kind is float and isinstance(value, str):  # YAML reads 1e-3, without a point, as text
        try:
            return float(value)
        except ValueError:
            pass
    if issubclass(kind, str | Path) and isinstance(value, str | Path):
        return kind(value)
    accepted = _WORDS.get(kind, "text") + ("" if word is None else f" or {word}")
    raise ConfigError(f"{where}: {name}={shown(value)} must be {accepted}.")


def _trainings(cells: Iterable[Values], where: str) -> list[TrainingConfig]:
    """Return the cells as trainings, the same one once."""
    found: dict[str, TrainingConfig] = {}
    tried: set[tuple[str, str]] = set()
    for number, cell in enumerate(cells, 1):
        try:
            training = TrainingConfig(**cell)
            if (names := (training.model, training.dataset)) not in tried:
                input_size(training.model)
                _require_dataset(training.dataset)
                tried.add(names)
        except ConfigError as error:
            said = ", ".join(f"{name} {value}" for name, value in cell.items())
            raise ConfigError(f"{where}: cell {number} ({said}): {error}") from error
        found.setdefault(training.digest(), training)
    return [*found.values()]


def _require_dataset(dataset: str) -> None:
    kind, colon, path = dataset.partition(":")
    if kind + (":PATH" if colon else "") not in DATASETS:
        raise unknown_choice("dataset", dataset, DATASETS)
    if colon and not Path(path).expanduser().is_dir():
        raise ConfigError(f"dataset={dataset!r} is not there: {path!r} is not a folder.")
