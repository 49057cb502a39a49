"""Grid files: which cells they declare, and one sentence for what is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.training.grid_file import paper_cells, read_grid
from mlflow_dynamics.training.parameters import EngineConfig, GridConfig, TrainingConfig

ROOT = Path(__file__).parents[2]


def cells(tmp_path: Path, text: str) -> list[TrainingConfig]:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    return read_grid(file)


def test_all_combinations_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = cells(tmp_path, "epochs: 3\nseed: [0, 1]\nmodel: [resnet20, vgg16]")
    assert [(cell.seed, cell.model, cell.epochs) for cell in found] == [
        (0, "resnet20", 3),
        (0, "vgg16", 3),
        (1, "resnet20", 3),
        (1, "vgg16", 3),
    ]


def test_alternatives_set_parameters_together_vary_them_and_stand_above_what_is_outside(
    tmp_path: Path,
) -> None:
    found = cells(
        tmp_path,
        """
        learning_rate: 0.1
        seed: [0, 1]
        network:
          - {model: resnet20, optimizer: [sgd, adam]}
          - {model: vgg16, learning_rate: 1e-3, seed: 7}
        """,
    )
    assert [(cell.model, cell.optimizer, cell.learning_rate, cell.seed) for cell in found] == [
        ("resnet20", "sgd", 0.1, 0),
        ("resnet20", "adam", 0.1, 0),
        ("vgg16", "sgd", 1e-3, 7),
        ("resnet20", "sgd", 0.1, 1),
        ("resnet20", "adam", 0.1, 1),
    ]


def test_alternatives_of_different_names_are_combined_and_may_be_nested(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        """
        part:
          - task: [{labels: given}, {labels: random, epochs: 2}]
            network: [{model: resnet20}, {model: vgg16, learning_rate: 0.03}]
          - {model: resnet20, epochs: 80}
        """,
    )
    assert [(cell.labels, cell.model, cell.epochs) for cell in found] == [
        ("given", "resnet20", 30),
        ("given", "vgg16", 30),
        ("random", "resnet20", 2),
        ("random", "vgg16", 2),
        ("given", "resnet20", 80),
    ]


def test_words_are_those_of_the_command_line_and_what_yaml_reads_otherwise_is_understood(
    tmp_path: Path,
) -> None:
    (cell,) = cells(
        tmp_path, "early_stopping: off\nlimit_train: all\nwindow: auto\nweight_decay: 1e-4\nlearning_rate: 1"
    )
    assert (cell.early_stopping, cell.limit_train, cell.window) == ("off", None, None)
    assert (cell.weight_decay, cell.learning_rate) == (1e-4, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "modle: resnet20",
            r"parameter='modle' is not known; accepted: those of `train`\. Did you mean 'model'\?",
        ),
        (
            "model: resnet21",
            r"grid.yaml: cell 1 \(model resnet21\): model='resnet21' is not known.* Did you mean 'resnet2",
        ),
        ("dataset: cifar11", r"dataset='cifar11' is not known.* Did you mean 'cifar1"),
        ("dataset: 'parquet:nowhere'", r"dataset='parquet:nowhere' is not there"),
        ("epochs: [1, 0]", r"cell 2 \(epochs 0\): epochs=0 must be"),
        ("epochs: 1.5", r"epochs=1.5 must be a whole number\."),
        ("epochs: true", r"epochs=True must be a whole number\."),
        ("limit_train: many", r"limit_train='many' must be a whole number or all\."),
        ("learning_rate: fast", r"learning_rate='fast' must be a number\."),
        ("augment: 1", r"augment=1 must be true or false\."),
        ("model: 20", r"model=20 must be text\."),
        ("seed: []", r"seed is an empty list"),
        ("seed: [[0, 1]]", r"seed=\[0, 1\] must be a whole number"),
        ("seed: {from: 0}", r"seed=\{'from': 0\} must be a whole number"),
        ("resume: auto", r"parameter='resume' is not known"),
        ("network: [{model: vgg16}, 3]", r"'network' must be values of a parameter, or a list of mappings"),
        ("network: [{}]", r"'network' must be values of a parameter, or a list of mappings"),
        ("network: [{modle: vgg16}]", r"grid.yaml: network: parameter='modle' .* Did you mean 'model'"),
        ("a: [{seed: 1}]\nb: [{seed: 2}]", r"seed is set by both a and b"),
        ("seed: 1\nseed: 2", r"'seed' stands twice.*line 1"),
        ("seed: [0", r"is not YAML: .*line 1"),
        ("- seed", r"must be a mapping"),
        ("", r"must be a mapping"),
        ("x: &x [{x: *x}]", r"nested more than 8 deep"),
        ("? [1]\n: 2", r"parameter=|is not YAML"),
        ("seed: &s [" + ", ".join(map(str, range(200))) + "]\nepochs: *s", r"40000 cells or more"),
        ("when: 2026-13-45", r"parameter='when' is not known|is not YAML"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        cells(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml' cannot be read: No such file"):
        read_grid(tmp_path / "absent.yaml")
    (tmp_path / "grid.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_grid(tmp_path / "grid.yaml")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["resnet20", "off", "1e-3", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["seed", "epochs", "model", "augment", "checkpoint", "window", "net", "part"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(grid=values)
def test_whatever_a_file_holds_it_gives_different_cells_or_one_sentence(
    grid: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(grid))
    said, found = "", []
    try:
        found = read_grid(file)
    except ConfigError as refused:
        said = str(refused)
    assert "\n" not in said
    assert bool(found) is not bool(said)
    assert len({cell.digest() for cell in found}) == len(found)


axes = st.dictionaries(
    st.sampled_from(["seed", "epochs", "batch_size", "record_every"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    min_size=1,
)


@settings(deadline=None)
@given(axes=axes)
def test_there_are_as_many_cells_as_combinations(
    axes: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "axes.yaml"
    file.write_text(yaml.safe_dump(axes, sort_keys=False))
    found = [tuple(getattr(cell, name) for name in axes) for cell in read_grid(file)]
    assert found == sorted(
        found, key=lambda cell: [axes[name].index(v) for name, v in zip(axes, cell, strict=True)]
    )
    count = 1
    for alternatives in axes.values():
        count *= len(alternatives)
    assert len(set(found)) == len(found) == count


def test_the_protocols_grid_is_that_of_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cifar10", "tinyimagenet100"):
        (tmp_path / "shared/data" / name).mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.S)
    page: dict[str, Any] = {}
    exec(code, page)
    grid = read_grid(ROOT / "examples/protocol_grid.yaml")
    assert {cell.digest() for cell in grid} == {cell.digest() for cell in page["cells"]}
    assert len(grid) == 175
    assert [cell.seed for cell in grid] == sorted(cell.seed for cell in grid)


def test_the_papers_grid_is_nine_different_combinations() -> None:
    grid = paper_cells(GridConfig())
    assert len({cell.digest() for cell in grid}) == len(grid) == 9
    assert {cell.dataset for cell in grid} == {"cifar10", "cifar100"}
    assert all(cell.pretrained == cell.model.startswith("vit") for cell in grid)
    assert {(cell.epochs, cell.batch_size) for cell in grid} == {(60, 128)}
    pairs = {cell.model for cell in grid if cell.dataset == "cifar100"}
    assert pairs <= {cell.model for cell in grid if cell.dataset == "cifar10"}


def test_the_papers_cells_are_known_again_by_what_trained_them_before_they_stood_in_a_file() -> None:
    resnet, *_, vit, _ = paper_cells(GridConfig())
    assert resnet == TrainingConfig(
        model="resnet18", dataset="cifar10", epochs=60, batch_size=128, learning_rate=0.1
    )
    assert vit == TrainingConfig(
        model="vit_base_patch16_224",
        dataset="cifar100",
        epochs=60,
        batch_size=128,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=1e-4,
        weight_decay=0.05,
        pretrained=True,
    )


def test_the_papers_grid_by_seeds_on_other_data(tmp_path: Path) -> None:
    grid = paper_cells(GridConfig(seeds="0,1", easy_dataset=f"parquet:{tmp_path}", limit_train=64))
    assert [cell.seed for cell in grid] == [0] * 9 + [1] * 9
    assert {cell.dataset for cell in grid} == {f"parquet:{tmp_path}", "cifar100"}
    assert {cell.limit_train for cell in grid} == {64}


def test_a_local_file_replaces_the_vits_download(tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    weights.touch()
    vits = [cell for cell in paper_cells(GridConfig(vit_checkpoint=weights)) if cell.model.startswith("vit")]
    assert len(vits) == 2
    assert all(cell.checkpoint == weights and not cell.pretrained for cell in vits)


def test_seeds_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seeds='0;1' must be whole numbers"):
        paper_cells(GridConfig(seeds="0;1"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "dask"}, r"engine='dask' is not known; accepted: local, ray\."),
        ({"jobs": 0}, r"jobs=0 must be at least 1"),
        ({"engine": "ray", "jobs": 2}, r"jobs is not for engine=ray"),
        ({"gpus_per_cell": 1.0}, r"gpus_per_cell is not for engine=local"),
        ({"engine": "ray", "cpus_per_cell": -1.0}, r"must be at least 0"),
        ({"engine": "ray", "cpus_per_cell": float("nan")}, r"must be at least 0"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**given)
