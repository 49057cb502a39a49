"""The evaluation's figures of the 54 kept runs, computed once more in plain loops; rules fitted on other runs."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mlflow_dynamics.evaluation import read_traces, report
from mlflow_dynamics.evaluation.fitted import FORECAST, PER_SCHEDULE, fitted_rules
from mlflow_dynamics.evaluation.rules import PATIENCE, RULES, lost_at, outcomes, tuned
from mlflow_dynamics.evaluation.traces import Curves, clusters_of, curves_of

TRACES = Path(__file__).parents[1] / "data" / "warning_grid.csv"
CURVES = ("accuracy", "validation_loss", "training_loss", "rate", "score")
RUN = ["dataset", "model", "schedule", "seed"]
EPOCHS = 30


@cache
def kept() -> list[Curves]:
    return [curves for curves, _ in curves_of(read_traces(TRACES))]


@cache
def row(name: str) -> list[str]:
    line = next(line for line in report(read_traces(TRACES)).splitlines() if line.startswith(f"| {name} |"))
    return line.strip("| ").split(" | ")[1:]


def wide(metric: str) -> pd.DataFrame:
    """A row a run, a column an epoch, without the package."""
    return pd.read_csv(TRACES).pivot(index=RUN, columns="epoch", values=metric).sort_index()


def test_a_blind_fraction_loses_what_comes_after_its_last_epoch() -> None:
    accuracy = 100 * wide("validation/accuracy")
    lost = [(accuracy.max(axis=1) - accuracy.loc[:, :last].max(axis=1)).mean() for last in range(EPOCHS)]
    cells = row("blind fraction of the budget")
    # 5 % of 30 epochs are 1.5: half the runs stop after 28, half after 29.
    expected = [(lost[27] + lost[28]) / 2, lost[23], lost[20], lost[17]]
    assert [float(cell.split()[0]) for cell in cells] == pytest.approx(expected, abs=0.0051)


def patience_by_hand(values: list[float], patience: int) -> int | None:
    best, waited = -1.0, 0
    for epoch, value in enumerate(values):
        waited = 0 if value > best else waited + 1
        best = max(best, value)
        if waited >= patience:
            return epoch
    return None


def test_patience_at_equal_saving_is_what_plain_loops_give() -> None:
    """Tuned on all but the run's data set, network and schedule, `constant` and `step` being one, then interpolated."""
    accuracy = wide("validation/accuracy")
    saved, lost, cluster = [], [], []
    for (dataset, model, schedule, _), values in accuracy.iterrows():
        series = list(values)
        stops = [patience_by_hand(series, p) for p in range(1, 31)]
        last = [EPOCHS - 1 if stop is None else stop for stop in stops]
        saved.append([1 - (stop + 1) / EPOCHS for stop in last])
        lost.append([100 * (max(series) - max(series[: stop + 1])) for stop in last])
        cluster.append((dataset, model, "cosine" if schedule == "cosine" else "one start"))
    grid = [k / 100 for k in range(91)]
    means = []
    for target in grid:
        both = []
        for i in range(len(saved)):
            others = [k for k in range(len(saved)) if cluster[k] != cluster[i]]
            elsewhere = np.mean([saved[k] for k in others], axis=0)[::-1]  # more patience saves less
            both.append(
                [
                    np.interp(np.interp(target, elsewhere, range(30)), range(30), kind[i][::-1])
                    for kind in (saved, lost)
                ]
            )
        means.append(np.mean(both, axis=0))
    reached, points = np.array(means).T
    expected = np.interp([0.05, 0.2, 0.3, 0.4], reached, points)
    assert [float(cell.split()[0]) for cell in row(PATIENCE)] == pytest.approx(expected, abs=0.0051)


def test_intervals_are_those_of_a_bootstrap_of_whole_clusters() -> None:
    accuracy = 100 * wide("validation/accuracy")
    lost = (accuracy.max(axis=1) - accuracy.loc[:, :23].max(axis=1)).to_numpy()
    index = accuracy.index
    names = [(d, m, "cosine" if s == "cosine" else "one start") for d, m, s, _ in index]
    members = [np.flatnonzero([name == one for name in names]) for one in sorted(set(names))]
    assert sorted(map(len, members)) == [3] * 6 + [6] * 6
    rng = np.random.default_rng(11)
    draws = [
        lost[np.concatenate([members[k] for k in rng.integers(12, size=12)])].mean() for _ in range(4000)
    ]
    printed = [float(text.strip(" [],;")) for text in row("blind fraction of the budget")[1].split()]
    # Student's 2.20 for 12 clusters in place of 1.96, times sqrt(12/11): the 1.08th percentile.
    assert printed[1:] == pytest.approx(np.percentile(draws, [1.08, 98.92]), abs=0.06)


def test_where_equal_saving_is_asked_for_equal_saving_is_compared() -> None:
    """A rule in place of itself with other settings loses the same at the same saving."""
    runs = kept()
    clusters = clusters_of(runs)
    weights = np.full((1, len(runs)), 1 / len(runs))
    rule = RULES["blind fraction of the budget"]
    many = dataclasses.replace(rule, settings=np.arange(1, 31) / 30)
    few = dataclasses.replace(rule, settings=[1 / 30, 10 / 30, 21 / 30, 1.0])
    asked = [0.3]
    found = [lost_at(asked, tuned(outcomes(one, runs), clusters), weights)[0] for one in (many, few)]
    assert found[0] == pytest.approx(found[1])
    assert np.isnan(lost_at([0.99], tuned(outcomes(few, runs), clusters), weights)).all()


def test_the_forecast_is_a_least_squares_fit_on_strangers() -> None:
    """Beside scikit-learn's, with the table of what is known put together by pandas."""
    frame = pd.read_csv(TRACES).sort_values([*RUN, "epoch"])
    by_run = frame.groupby(RUN)
    best = 100 * by_run["validation/accuracy"].cummax()
    gain = 100 * by_run["validation/accuracy"].transform("max") - best
    known = pd.DataFrame(
        {
            "time": (frame["epoch"] + 1) / EPOCHS,
            "squared": ((frame["epoch"] + 1) / EPOCHS) ** 2,
            "rate": frame["train/learning_rate"] / by_run["train/learning_rate"].cummax(),
            "best": best - best.groupby([frame[key] for key in RUN]).shift(5),
            "loss": np.log(frame["train/loss"]) - np.log(by_run["train/loss"].shift(5)),
        }
    )
    known["left"] = known["rate"] * (1 - known["time"])
    own = (frame["dataset"] == "cifar10") & (frame["model"] == "small_vit")
    strangers = (frame["dataset"] != "cifar10") & (frame["model"] != "small_vit")
    whole = known.notna().all(axis=1)
    fit = LinearRegression().fit(known[strangers & whole], gain[strangers & whole])
    expected = fit.predict(known[own & whole]).reshape(9, EPOCHS - 5)
    runs = kept()
    rule = fitted_rules(runs)[FORECAST]
    mine = [run for run in runs if run.configuration[:2] == ("cifar10", "small_vit")]
    for level in np.quantile(expected, [0.1, 0.5, 0.9]) + 1e-4:
        below = expected <= level
        stops = [int(one.argmax()) + 5 if one.any() else None for one in below]
        assert [rule.stop(run, level) for run in mine] == stops


@pytest.mark.parametrize("name", [FORECAST, PER_SCHEDULE])
def test_a_run_of_the_same_data_set_or_network_has_no_say_in_a_forecast(name: str) -> None:
    one, *others = kept()

    def with_other_curves(changed: list[bool]) -> list[Curves]:
        reversed_ = [dataclasses.replace(run, accuracy=run.accuracy[::-1]) for run in others]
        return [one, *(b if c else a for a, b, c in zip(others, reversed_, changed, strict=True))]

    def stops(runs: list[Curves]) -> list[int | None]:
        rule = fitted_rules(runs)[name]
        return [rule.stop(one, level) for level in np.linspace(0, 20, 50)]

    related = [
        any(a == b for a, b in zip(run.configuration[:2], one.configuration[:2], strict=True))
        for run in others
    ]
    assert sum(related) == 35
    assert stops(with_other_curves(related)) == stops(kept())
    assert stops(with_other_curves([not each for each in related])) != stops(kept())


def test_without_strangers_nothing_is_forecast() -> None:
    assert fitted_rules([run for run in kept() if run.configuration[0] == "cifar10"]) == {}
    short = [dataclasses.replace(run, **{key: getattr(run, key)[:3] for key in CURVES}) for run in kept()]
    assert list(fitted_rules(short)) == [PER_SCHEDULE]
