"""The page of findings: what its command writes, and its figures computed otherwise."""

from __future__ import annotations

import itertools
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.neighbors import NearestCentroid

from mlflow_dynamics.evaluation import read_traces
from mlflow_dynamics.evaluation.traces import clusters_of, curves_of

ROOT = Path(__file__).parents[1]
TRACES = ROOT / "tests" / "data" / "warning_grid.csv"
INTEGRATION, METASTABILITY = "dynamics/integration", "dynamics/metastability"


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import findings
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return findings


@cache
def frame() -> pd.DataFrame:
    return read_traces(TRACES)


@cache
def clusters() -> np.ndarray:
    return clusters_of([run for run, _ in curves_of(frame())])


def kept(metric: str, **where: str) -> np.ndarray:
    """(runs, epochs) by data set, model, schedule, seed."""
    rows = frame().sort_values(["dataset", "model", "schedule", "seed", "epoch"])
    for key, value in where.items():
        rows = rows[rows[key] == value]
    return rows[metric].to_numpy().reshape(-1, 30)


def test_the_page_is_what_its_command_writes(findings: ModuleType) -> None:
    assert (ROOT / "docs" / "findings.md").read_text() == findings.page(frame())


def test_each_answer_is_the_first_word_of_its_section() -> None:
    sections = (ROOT / "docs" / "findings.md").read_text().split("\n## ")[1:-1]
    assert len(sections) == 4
    for section in sections:
        _, _, first, *_ = section.split("\n")
        assert first.startswith(("**Yes", "**No.", "**Cannot tell.")), first


def test_a_difference_between_data_sets_is_that_of_seeds(findings: ModuleType) -> None:
    """With Welch's test as scipy has it: at the ends of the interval its p-value is the interval's."""
    for one in findings.differences(frame(), INTEGRATION, ["model", "schedule"]):
        model, schedule = one.where.split(", ")
        easy, hard = (
            kept(INTEGRATION, model=model, schedule=schedule, dataset=d)[:, 15:].mean(axis=1)
            for d in ("cifar10", "tinyimagenet100")
        )
        assert one.value == pytest.approx(easy.mean() - hard.mean())
        assert one.deviations == pytest.approx(
            one.value / math.hypot(easy.std(ddof=1), hard.std(ddof=1)) * 2**0.5
        )
        for end in (one.low, one.high):
            p = stats.ttest_ind(easy - end, hard, equal_var=False).pvalue
            assert p == pytest.approx(0.05 / 9, rel=1e-6)
    vgg = next(
        one for one in findings.differences(frame(), INTEGRATION, ["model"]) if one.where == "small_vgg"
    )
    easy, hard = (
        kept(INTEGRATION, model="small_vgg", dataset=d)[:, 15:].mean(axis=1).reshape(3, 3).mean(axis=0)
        for d in ("cifar10", "tinyimagenet100")
    )
    assert vgg.value == pytest.approx(easy.mean() - hard.mean())
    assert stats.ttest_ind(easy - vgg.high, hard, equal_var=False).pvalue == pytest.approx(0.05 / 3, rel=1e-6)


def test_what_separates_is_said_of_all_or_none(findings: ModuleType) -> None:
    def found(*intervals: tuple[float, float]) -> list[object]:
        return [findings.Difference("", (low + high) / 2, 1, low, high) for low, high in intervals]

    assert findings.separates(found((1, 3), (2, 4))) == "Yes"
    assert findings.separates(found((1, 3), (-1, 2))) == "Cannot tell"
    assert findings.separates(found((1, 3), (-1, 0.5))) == "No"


def test_volatility_and_the_remaining_gain_are_correlated_as_ranks_in_plain_loops_are(
    findings: ModuleType,
) -> None:
    volatility, accuracy = kept("dynamics/volatility"), kept("validation/accuracy")
    gain = accuracy.max(axis=1, keepdims=True) - np.maximum.accumulate(accuracy, axis=1)
    kinds = list(itertools.product(["c", "t"], ["r", "v", "w"], ["constant", "cosine", "step"], range(3)))

    def correlation(order: np.ndarray) -> float:
        u, v = [], []
        for epoch, dataset, schedule in itertools.product(
            range(11, 25), "ct", ["constant", "cosine", "step"]
        ):
            rows = np.array([i for i, kind in enumerate(kinds) if kind[0] == dataset and kind[2] == schedule])
            for values, into in ((volatility[order], u), (gain, v)):
                ranks = stats.rankdata(values[rows, epoch])
                into += list(ranks - ranks.mean())
        return float(np.corrcoef(u, v)[0, 1])

    found = findings.association(
        frame(), findings.curves(frame(), "dynamics/volatility"), ["schedule", "dataset"]
    )
    assert found.value == pytest.approx(correlation(np.arange(54)))
    networks = np.arange(54).reshape(2, 3, 9)
    far = [
        abs(correlation(np.stack([networks[0, list(a)], networks[1, list(b)]]).ravel()))
        for a, b in itertools.product(itertools.permutations(range(3)), repeat=2)
    ]
    assert len(far) == 36
    assert found.p == pytest.approx(np.mean(np.array(far) >= far[0] - 1e-9))


def test_readings_made_at_random_are_not_associated_more_often_than_said(findings: ModuleType) -> None:
    rng = np.random.default_rng(1)
    like = findings.curves(frame(), "dynamics/volatility")
    held, small = 0, 0
    for _ in range(24):
        # As alike over epochs, and among the runs of a network, as the layers' measures are.
        level = rng.standard_normal((6, 1, 1, 1)) / 2 + rng.standard_normal((6, 3, 3, 1))
        made = pd.DataFrame(np.broadcast_to(level, (6, 3, 3, 30)).reshape(54, 30), like.index, like.columns)
        found = findings.association(frame(), made, ["schedule", "dataset"])
        held += found.low <= 0 <= found.high
        small += found.p <= 0.05
    assert small <= 4
    assert held >= 19


@pytest.mark.parametrize("own_scale", [False, True])
@pytest.mark.parametrize("metrics", [[INTEGRATION, METASTABILITY], ["train/loss"]])
def test_schedules_are_told_as_scikit_learns_nearest_centroid_tells_them(
    findings: ModuleType, metrics: list[str], own_scale: bool
) -> None:
    paths = np.stack([kept(metric)[:, 7:] for metric in metrics], axis=1)
    paths = paths - paths.mean(axis=2, keepdims=True)
    if own_scale:
        paths = paths / paths.std(axis=2, keepdims=True)
    schedule = np.tile(np.repeat([0, 1, 2], 3), 6)
    right = []
    for dataset, model in itertools.product(range(2), range(3)):
        kind = np.repeat(np.arange(6), 9)
        strangers = (kind // 3 != dataset) & (kind % 3 != model)
        scaled = (paths / paths[strangers].std(axis=(0, 2), keepdims=True)).reshape(54, -1)
        fit = NearestCentroid().fit(scaled[strangers], schedule[strangers])
        own = kind == 3 * dataset + model
        right += list(fit.predict(scaled[own]) == schedule[own])
    found = findings.told(frame(), metrics, clusters(), own_scale=own_scale, test=False)
    assert found.share == pytest.approx(np.mean(right))
    assert found.low < found.share < found.high


def test_paths_made_at_random_do_not_tell_the_schedule(findings: ModuleType) -> None:
    rng = np.random.default_rng(2)
    p = []
    for _ in range(5):
        made = frame().copy()
        made[INTEGRATION] = rng.standard_normal(len(made))
        p.append(findings.told(made, [INTEGRATION], clusters(), own_scale=False, test=True).p)
    assert min(p) > 0.01
    assert max(p) > 0.3
