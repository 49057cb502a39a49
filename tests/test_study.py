"""The protocol's study: its cells, the file of their steps, and what is said to be missing."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlflow_dynamics import load_activations
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.training.catalogue import NETWORKS
from mlflow_dynamics.training.grid import TAG_CELL
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.run import train_in_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import study
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return study


def test_the_protocols_cells_are_trainings_of_this_project(study: ModuleType) -> None:
    cells = study.cells()
    assert len({cell.digest() for cell in cells}) == len(cells) == 175
    assert Counter(cell.seed for cell in cells) == dict.fromkeys(range(5), 35)
    assert {cell.model for cell in cells} <= set(NETWORKS)


def test_cells_are_told_apart_by_the_columns_of_the_file(study: ModuleType) -> None:
    kinds = {tuple(getattr(cell, name) for name in study.VARIED) for cell in study.cells()}
    assert len(kinds) == 175


def made(study: ModuleType, cell: TrainingConfig, seed: int) -> object:
    rng = np.random.default_rng(seed)
    rms = np.exp(rng.uniform(-9, 9, (3, 500))).astype(np.float32)
    return study.Steps(cell.digest(), ("conv1", "conv2", "fc"), rms, -rms / 2)


def test_a_file_gives_back_each_number_to_eleven_digits(study: ModuleType, tmp_path: Path) -> None:
    first, second = study.cells()[:2]
    runs = [made(study, first, 0), made(study, second, 1)]
    runs[1].rms[0, 0], runs[1].rms[0, 1], runs[1].rms[0, 2] = np.nan, 1e6, 1e-9
    study.write(iter(runs), tmp_path / "steps.parquet")
    for ours, theirs in zip(study.read(tmp_path / "steps.parquet"), runs, strict=True):
        assert (ours.cell, ours.layers) == (theirs.cell, theirs.layers)
        for a, b in ((ours.rms, theirs.rms), (ours.mean, theirs.mean)):
            normal = np.isfinite(b) & (abs(b) > 6.2e-5) & (abs(b) < 65_504)
            assert normal.sum() > 1_000
            assert np.abs(a[normal] / b[normal] - 1).max() <= 2**-11
    assert ours.rms[0, :3].tolist() == pytest.approx([np.nan, np.inf, 0], nan_ok=True)
    table = pq.read_table(tmp_path / "steps.parquet")
    assert table["dataset"].to_pylist() == ["cifar10"] * 3 + ["tinyimagenet100"] * 3
    assert table["labels"].to_pylist() == ["given"] * 6


def test_what_lacks_is_named_with_its_seeds(study: ModuleType) -> None:
    cells = study.cells()
    assert study.missing({cell.digest() for cell in cells}) == []
    vits = {cell.digest() for cell in cells if cell.model != "small_vit" or cell.seed in (1, 3)}
    lacking = study.missing(vits)
    assert len(lacking) == 5
    assert lacking[0] == "small_vit on cifar10, labels given, adamw constant, 40 epochs: seeds 0 2 4"
    assert len(study.missing(set())) == 35


def test_the_steps_of_a_run_go_into_a_file_as_it_recorded_them(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"^None of the 25 chosen cells has a finished run"):
        study.export(tmp_path / "steps.parquet", [("model", "small_vit")])
    cell = study.cells()[0]
    small = replace(cell, dataset="digits", image_size=8, epochs=2, limit_train=256, limit_test=64)
    run_id = train_in_run(small, tags={TAG_CELL: cell.digest()})
    capsys.readouterr()
    study.export(tmp_path / "steps.parquet", [("model", "resnet20"), ("dataset", "cifar10")])
    said = capsys.readouterr().out
    assert said.startswith("1 of 40 runs, 0.0")
    assert float(said.split()[-1]) <= 2**-11
    (run,) = study.read(tmp_path / "steps.parquet")
    assert run.rms.shape == run.mean.shape == (len(run.layers), 8)
    assert (run.cell, run.layers[0], run.layers[-1]) == (cell.digest(), "conv1", "fc")
    row = load_activations(run_id, layers=["fc"], epochs=[1]).sort_by("step").to_pylist()[2]
    assert run.mean[-1, 6] == np.float16(row["mean"])
    assert run.rms[-1, 6] == np.float16(np.hypot(row["mean"], row["std"]))
    assert sum(line.endswith("seeds 1 2 3 4") for line in study.missing({run.cell})) == 1
