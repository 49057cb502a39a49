"""What the 54 kept runs answer to the paper's three claims: docs/findings.md and its figure, from the traces alone.

    python benchmarks/findings.py

A test compares the page with what this writes, and its figures with figures computed otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mlflow_dynamics.evaluation import read_traces, report
from mlflow_dynamics.evaluation.statistics import Clusters, interval, resampled, share_interval
from mlflow_dynamics.evaluation.traces import clusters_of, curves_of
from mlflow_dynamics.tracking import names

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "findings.md"
FIGURE: Final = ROOT / "docs" / "images" / "findings.png"
TRACES: Final = ROOT / "tests" / "data" / "warning_grid.csv"
Array = NDArray[np.float64]

RUN: Final = ["dataset", "model", "schedule", "seed"]
EASY, HARD = "cifar10", "tinyimagenet100"
LATE: Final = 15
"""Claim 1 is read from this epoch on: the second half, after the step schedule's first step."""

SETTLED: Final = 7
"""Epochs before are start-up: their windows hold the first steps."""

VOLATILE: Final = SETTLED + 4
"""The first epoch whose volatility is of epochs after start-up alone."""

AHEAD: Final = 5
"""Of the last so many epochs nothing is forecast: what a run still gains there is 0 or nearly so."""

MODERATE: Final = 0.3
"""A rank correlation that an answer of "no" must exclude."""

PERMUTATIONS: Final = 499
SEED: Final = 25


def curves(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A row a run, in the order of `RUN`, and a column an epoch."""
    return frame.pivot(index=RUN, columns="epoch", values=metric).sort_index()


def welch(a: Array, b: Array, *, level: float) -> tuple[float, float]:
    """Welch's interval of the difference of two means."""
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    degrees = parts.sum() ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(parts.sum())
    return float(a.mean() - b.mean() - half), float(a.mean() - b.mean() + half)


# ---- claim 1: integration separates the easy from the hard data set ----


class Difference(NamedTuple):
    """Of a reading between the easy and the hard data set: itself, in seed deviations, and its interval."""

    where: str
    value: float
    deviations: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"| {self.where} | {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] | {self.deviations:+.1f} |"


def differences(frame: pd.DataFrame, metric: str, by: Sequence[str]) -> list[Difference]:
    """Within each group of `by`, over the mean of each seed's late epochs; the intervals hold together at 95 %."""
    late = curves(frame, metric).loc[:, LATE:].mean(axis=1)
    groups = late.groupby([*by, "dataset", "seed"]).mean().groupby(list(by))
    found = []
    for key, group in groups:
        easy, hard = (group.xs(name, level="dataset").to_numpy() for name in (EASY, HARD))
        low, high = welch(easy, hard, level=1 - 0.05 / len(groups))
        pooled = np.sqrt((easy.var(ddof=1) + hard.var(ddof=1)) / 2)
        value = float(easy.mean() - hard.mean())
        found.append(Difference(", ".join(key), value, value / pooled, low, high))
    return found


def separates(found: Sequence[Difference]) -> str:
    """Whether all of these lie apart: no, where one surely lies less than half as far as the furthest."""
    if all(one.low > 0 for one in found):
        return "Yes"
    return "No" if any(one.high < max(d.value for d in found) / 2 for one in found) else "Cannot tell"


# ---- claim 2: volatility warns before the plateau ----


class Association(NamedTuple):
    """Of a reading with what a run still gains: rank correlation, its interval, an exact p-value."""

    value: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] | {self.p:.2f}"


def association(frame: pd.DataFrame, reading: pd.DataFrame, strata: Sequence[str]) -> Association:
    """Rank correlation within epochs and strata of a reading with the gain of accuracy that is still to come.

    The interval draws data sets with networks, all their runs together: what runs of one network have in common moves
    such a correlation more than anything else. p: how often it is as far from 0 with the readings of each data set
    and network replaced by those of another one (of the same stratum), over all ways to do so.
    """
    accuracy = curves(frame, names.VALIDATION_ACCURACY)
    gain = -accuracy.cummax(axis=1).sub(accuracy.max(axis=1), axis=0)
    epochs = [epoch for epoch in reading.columns if VOLATILE <= epoch <= reading.columns[-1] - AHEAD]

    def ranks(values: pd.DataFrame) -> pd.DataFrame:
        own = values[epochs].groupby(list(strata)).rank()
        return own - own.groupby(list(strata)).transform("mean")

    u, v = ranks(reading), ranks(gain)
    clusters = pd.factorize(u.index.droplevel(["schedule", "seed"]))[0].astype(np.int64)
    weights = resampled(clusters, np.random.default_rng(SEED))
    whole = np.vstack([np.full(len(u), 1 / len(u)), weights])
    uv, uu, vv = (whole @ (a * b).sum(axis=1).to_numpy() for a, b in ((u, v), (u, u), (v, v)))
    value, *draws = uv / np.sqrt(uu * vv)
    low, high = interval(np.array(draws), clusters)
    far = [abs(float((u.to_numpy()[moved] * v.to_numpy()).sum())) for moved in _exchanges(u.index, strata)]
    return Association(float(value), low, high, float(np.mean(np.array(far) >= far[0] * (1 - 1e-9))))


def _exchanges(runs: pd.MultiIndex, strata: Sequence[str]) -> Iterator[list[int]]:
    """Each way to give the runs of one data set and network, seed by seed, the readings of another; first, none."""
    position = {run: i for i, run in enumerate(runs)}
    datasets, models = sorted({run[0] for run in runs}), sorted({run[1] for run in runs})
    kinds = list(itertools.product(datasets, models))
    blocks = [[kind for kind in kinds if kind[0] == d] for d in datasets] if "dataset" in strata else [kinds]
    for orders in itertools.product(*(itertools.permutations(block) for block in blocks)):
        to = {
            a: b
            for block, order in zip(blocks, orders, strict=True)
            for a, b in zip(block, order, strict=True)
        }
        yield [position[(*to[run[:2]], *run[2:])] for run in runs]


# ---- claim 3: integration and metastability reflect training styles ----


class Told(NamedTuple):
    """In how many runs the schedule is told from other runs' paths, with interval and, where asked for, p-value."""

    share: float
    low: float
    high: float
    p: float | None

    def __str__(self) -> str:
        p = "" if self.p is None else f", p {self.p:.3f}"
        return f"{self.share:.2f} [{self.low:.2f}, {self.high:.2f}]{p}"


def told(
    frame: pd.DataFrame, metrics: Sequence[str], clusters: Clusters, *, own_scale: bool, test: bool
) -> Told:
    """How often the nearest mean path of a schedule, over runs of other data sets *and* networks, is the run's own.

    A path is that of the epochs after start-up less its mean, over the deviation of the other runs' paths, or
    (`own_scale`) over its own. p: how often so many are told where the schedules' names are exchanged within each
    data set and network, all seeds alike.
    """
    tables = [curves(frame, metric) for metric in metrics]
    runs = tables[0].index
    paths = np.stack([table.loc[:, SETTLED:].to_numpy() for table in tables], axis=1)
    paths -= paths.mean(axis=2, keepdims=True)
    if own_scale:
        paths /= paths.std(axis=2, keepdims=True)
    schedules = sorted(set(runs.get_level_values("schedule")))
    label = np.array([schedules.index(name) for name in runs.get_level_values("schedule")])
    dataset, model = (runs.get_level_values(key).to_numpy() for key in ("dataset", "model"))
    kinds = [(d == dataset) & (m == model) for d, m in sorted(set(zip(dataset, model, strict=True)))]
    rng = np.random.default_rng(SEED)
    labels = np.tile(label, (1 + (PERMUTATIONS if test else 0), 1))
    for renamed in labels[1:]:
        for kind in kinds:
            renamed[kind] = rng.permutation(len(schedules))[label[kind]]
    right = np.zeros(labels.shape, dtype=bool)
    for kind in kinds:
        strangers = (dataset != dataset[kind][0]) & (model != model[kind][0])
        scaled = (paths / paths[strangers].std(axis=(0, 2), keepdims=True)).reshape(len(runs), -1)
        member = labels[:, strangers, None] == np.arange(len(schedules))
        means = np.einsum("prs,rd->psd", member / member.sum(axis=1, keepdims=True), scaled[strangers])
        # |x - m|^2 without |x|^2, which all means share
        distance = (means**2).sum(axis=2)[:, None] - 2 * np.einsum("rd,psd->prs", scaled[kind], means)
        right[:, kind] = distance.argmin(axis=2) == labels[:, kind]
    low, high = share_interval(right[0], clusters)
    shares = right.mean(axis=1)
    return Told(float(shares[0]), low, high, float((shares >= shares[0]).mean()) if test else None)


# ---- the page ----


def page(frame: pd.DataFrame) -> str:
    """The page, from the traces alone."""
    runs = [run for run, _ in curves_of(frame)]
    clusters = clusters_of(runs)
    head = f"""# What {len(runs)} runs say of the paper's claims

*Written by `python benchmarks/findings.py` from `tests/data/warning_grid.csv`; change that, not this. Every answer is
one of yes, no and cannot tell. What would tell is in [the protocol](protocol.md), whose runs are not made yet.*

**The runs.** ResNet-20, a small VGG and a small ViT; CIFAR-10 ("easy") and 100 classes of Tiny ImageNet ("hard");
constant, step and cosine schedules; three seeds: {len(runs)} runs of 30 epochs of 79 steps on 5,056 images, 2-core
x86-64 cloud VM, no GPU, 2026-11-26 (`benchmarks/warning_grid.py`). The seeds of one configuration are
drawn together, and with them a constant and a step schedule, which are one training until epoch 15:
{clusters.max() + 1} clusters of runs, not {len(runs)} independent ones; intervals are of 95 % and draw whole
clusters, unless it says otherwise ([how](early-warning.md#does-it-help)).

**The definitions are those of the day.** Windows of 512 steps (6.5 epochs; today they would be of 237), so that epochs
0 to 6 are start-up and are left out here; exponents by DFA with the boxes of then, which on made signals of 512 steps
differed from today's by at most 0.005. Global integration and unbiased metastability did not exist. The steps
themselves were not kept, so nothing can be measured anew. The rules of this page (which epochs, which strata, what
counts as no) were written with these runs at hand: its answers are to be confirmed on others, not read as a test laid
down before.
"""
    return "\n".join(
        [head, *_claim_1(frame), *_claim_2(frame, clusters), *_claim_3(frame, clusters), *_stopping(frame)]
    )


def _claim_1(frame: pd.DataFrame) -> list[str]:
    integration, metastability = (
        differences(frame, metric, ["model"]) for metric in (names.INTEGRATION, names.METASTABILITY)
    )
    everywhere = separates(integration)
    answer = "No" if everywhere == "No" else "Cannot tell"
    apart = [one.where for one in integration if one.low > 0]
    cells = differences(frame, names.INTEGRATION, ["model", "schedule"])
    return [
        "## 1. Integration separates easy from hard tasks",
        "",
        f"**{answer}.** On the easy set it lies higher for sure in {len(apart)} of {len(integration)} networks "
        f"({', '.join(apart)}); and with two tasks nothing says whether that is their difficulty.",
        "",
        f"Integration on the easy set less that on the hard one, mean of epochs {LATE} to 29, over the three "
        "schedules of each seed (n = 3 seeds on each set; Welch's intervals, which hold together at 95 %), and "
        "in seed standard deviations:",
        "",
        "| network | integration | seed sd |",
        "| --- | --- | --- |",
        *map(str, integration),
        "",
        "and by schedule (nine intervals that hold together):",
        "",
        "| network, schedule | integration | seed sd |",
        "| --- | --- | --- |",
        *map(str, cells),
        "",
        "![Integration of each run in the second half of training](images/findings.png)",
        "",
        "Metastability, the same way: "
        + "; ".join(f"{m.where} {m.value:+.3f} [{m.low:+.3f}, {m.high:+.3f}]" for m in metastability)
        + ". It has no common direction.",
        "",
        "*Not controlled:* the number of classes (10 and 100), the source of the images, the size of the loss "
        "and the learning rate relative to it. In a trial of seven other runs ([measures](measures.md)) labels "
        "that cannot be learned lay near the easy set by this reading. *In seed deviations* effects look large "
        "because seeds differ little; three seeds a cell are few, and single cells tell little by themselves.",
        "",
    ]


def _claim_2(frame: pd.DataFrame, clusters: Clusters) -> list[str]:
    accuracy = curves(frame, names.VALIDATION_ACCURACY).cummax(axis=1)
    loss = np.log(curves(frame, names.TRAIN_LOSS))
    readings = {
        "volatility": curves(frame, names.VOLATILITY),
        "stability": curves(frame, names.STABILITY),
        "accuracy gained in the last 5 epochs": accuracy - accuracy.shift(5, axis=1),
        "fall of log training loss in the last 5 epochs": loss.shift(5, axis=1) - loss,
    }
    rows = {
        name: [association(frame, reading, strata) for strata in (["schedule", "dataset"], ["schedule"])]
        for name, reading in readings.items()
    }
    first = rows["volatility"][0]
    answer = "No" if first.high < MODERATE else "Yes" if first.low > 0 and first.p < 0.05 else "Cannot tell"
    as_now = [run for run, _ in curves_of(frame)]
    able = [run for run in as_now if np.isfinite(run.score).any()]
    flat = [run for run in able if run.plateau is not None]
    in_time = [run for run in flat if np.isfinite(run.score[: run.plateau]).any()]
    constant = [run for run in as_now if run.configuration[-1] == "constant"]
    rising = sum(run.plateau is None for run in constant)
    before = [run for run, _ in curves_of(frame.drop(columns=[names.START_UP]))]
    both = np.array([run.plateau is not None and run.warned is not None for run in before])
    lead = np.array(
        [run.plateau - run.warned for run in before if run.plateau is not None and run.warned is not None]
    )
    _, own = np.unique(clusters[both], return_inverse=True)
    low, high = interval(resampled(own, np.random.default_rng(SEED)) @ lead, own)
    return [
        "## 2. Volatility warns before the plateau",
        "",
        f"**{answer}.** At equal epoch, volatility does not rank runs by what they still gain: rank correlation "
        f"{first.value:+.2f} [{first.low:+.2f}, {first.high:+.2f}], where a reading that warns would lie well "
        "above 0.",
        "",
        "*The warning itself* cannot tell here, as it is now: it leaves start-up out and then needs 17 epochs, "
        f"so it can fire in {len(able)} of {len(as_now)} runs (none with a step schedule), and before the plateau "
        f"in {len(in_time)} of the {len(flat)} of these that have one; it fires in "
        f"{sum(run.warned is not None for run in as_now)}. Start-up judged as well, as until 2026-11, it fires in "
        f"{sum(run.warned is not None for run in before)} and comes {-lead.mean():.1f} epochs [{-high:.1f}, "
        f"{-low:.1f}] *after* the plateau (n = {len(lead)} runs with both, {own.max() + 1} clusters).",
        "",
        "*Volatility, without a threshold.* Rank correlation of a reading with the points of validation accuracy that "
        f"a run still gains, among runs of one epoch, schedule and (left) data set, epochs {VOLATILE} to {29 - AHEAD} "
        "together. Intervals draw whole networks on a data set (6 clusters; such intervals held 0 for 82 to 98 % of "
        "60 readings made at random, so trust p before them). p, exact: the readings of each data set and network "
        "replaced by those of another, in all 36 (left) or 720 ways; 1/36 = 0.03 is the least it can be on the left.",
        "",
        "| reading | within data sets | p | within schedules alone | p |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {one} | {other} |" for name, (one, other) in rows.items()),
        "",
        "Only the first row was asked; the others are beside it for scale, four readings tried, none corrected for.",
        "",
        "*Not controlled:* the plateau (its tolerance lies below what accuracy moves by from epoch to epoch in the "
        f"constant-rate runs of CIFAR-10, so its epoch is partly chance); 30 epochs, in which {rising} of the "
        f"{len(constant)} constant-rate runs have none; the window of 6.5 epochs, which smooths whatever volatility "
        "there is.",
        "",
    ]


def _claim_3(frame: pd.DataFrame, clusters: Clusters) -> list[str]:
    readings = {
        "integration and metastability": [names.INTEGRATION, names.METASTABILITY],
        "integration": [names.INTEGRATION],
        "metastability": [names.METASTABILITY],
        "training loss": [names.TRAIN_LOSS],
        "validation loss": [names.VALIDATION_LOSS],
        "validation accuracy": [names.VALIDATION_ACCURACY],
    }
    rows = {
        name: [
            told(frame, metrics, clusters, own_scale=own_scale, test=len(metrics) > 1)
            for own_scale in (False, True)
        ]
        for name, metrics in readings.items()
    }
    asked = rows["integration and metastability"]
    surely = all(one.low > 1 / 3 and one.p is not None and one.p < 0.05 for one in asked)
    answer = "Yes" if surely else "No" if any(one.high < 0.5 for one in asked) else "Cannot tell"
    return [
        "## 3. Integration and metastability reflect training styles",
        "",
        f"**{answer}, of the learning rate's schedule; of anything else these runs cannot tell.** From the paths "
        f"of runs of another data set and another network the schedule is told in {asked[0].share:.0%} or "
        f"{asked[1].share:.0%} of {len(clusters)} runs (by chance in 33 %), depending on how paths are scaled.",
        "",
        f"Nearest mean path of epochs {SETTLED} to 29, less its mean; Wilson's intervals; p from {PERMUTATIONS} "
        "exchanges of the schedules' names within each data set and network:",
        "",
        "| path of | in units of the other runs | each in its own units |",
        "| --- | --- | --- |",
        *(f"| {name} | {one} | {other} |" for name, (one, other) in rows.items()),
        "",
        "Integration alone tells it in {:.2f} and {:.2f}, the training loss in {:.2f} and {:.2f}: whether the "
        "layers tell more than the loss hangs on the scaling.".format(
            *(one.share for name in ("integration", "training loss") for one in rows[name])
        ),
        "",
        "*Not controlled:* the schedule *is* the learning rate, which a run logs anyway; that layers' "
        "fluctuations follow the rate is what is shown. The optimizer goes with the network here (AdamW on the "
        "ViT alone), so optimizers cannot be told from architectures. No fine-tuning, no augmentation, no batch "
        "size was varied.",
        "",
    ]


def _stopping(frame: pd.DataFrame) -> list[str]:
    lines = report(frame).splitlines()
    rows = [
        line
        for line in lines
        if line.startswith(("| rule", "| ---", "| early", "| patience on validation acc"))
    ]
    rows += [line for line in lines if line.startswith(("| blind", "| forecast"))]
    verdict = next(line for line in lines if line.startswith("Verdict: ")).removeprefix("Verdict: ")
    forecast = next(line for line in lines if line.startswith("Forecast: ")).removeprefix("Forecast: ")
    answer = "Yes" if "saves epochs" in verdict else "Cannot tell" if "cannot tell" in verdict else "No"
    return [
        "## Does the warning, or a forecast, save epochs?",
        "",
        f"**{answer}.** The warning: {verdict} A forecast fitted on other runs: {forecast}",
        "",
        "Points of best validation accuracy lost at exactly the same saving, and after the semicolon the "
        "difference to a blind fraction of the budget ([all rules](early-warning.md#does-it-help)):",
        "",
        *rows,
        "",
        "*Not controlled:* 30 epochs under a budget that was chosen in advance; a blind fraction is good where "
        "all runs have the same length and the rate's plan is part of it. The forecast knows time, rate and the "
        "last moves of accuracy and loss; its form was chosen among some twenty that were tried on these runs. "
        "With neither data set nor network in the fit none lost less than a blind fraction at 40 %; with only "
        "the pair of both left out a few did, by up to 0.3 points at 20 %. An earlier trial, whose code was not "
        "kept, gave 0.42, 1.22 and 2.27 points at 20, 30 and 40 %, and is not reproduced. Rules that need "
        "gradients or each layer's steps (Mahsereci et al. 2017, arXiv 1703.09580; Ahmad et al., arXiv "
        "2403.02473) cannot be tried: neither was kept.",
        "",
        "## What these runs cannot answer",
        "",
        "Whether difficulty, class count or learnability moves integration (needs tasks in which these come apart); "
        "whether a warning comes before a plateau (needs trainings that have one, of 60 epochs and more after "
        "start-up); optimizers on one network; what skip connections, normalisation or depth do; anything about "
        "full-size networks and data. [The protocol](protocol.md) is laid down for these, before its runs.",
        "",
    ]


def figure(frame: pd.DataFrame) -> alt.FacetChart:
    """Each run's integration in the second half, by network, schedule and data set."""
    late = curves(frame, names.INTEGRATION).loc[:, LATE:].mean(axis=1).rename("integration").reset_index()
    late["task"] = late["dataset"].map({EASY: "CIFAR-10", HARD: "100 classes of Tiny ImageNet"})
    return (
        alt.Chart(late)
        .mark_point(filled=True, size=45, opacity=0.8)
        .encode(
            x=alt.X("schedule:N", title="schedule of the learning rate"),
            xOffset="task:N",
            y=alt.Y(
                "integration:Q", scale=alt.Scale(zero=False), title="integration, second half of training"
            ),
            color=alt.Color("task:N", title="a dot is a training", legend=alt.Legend(labelLimit=300)),
        )
        .properties(width=170, height=240)
        .facet(column=alt.Column("model:N", title=None))
    )


def main() -> None:
    frame = read_traces(TRACES)
    PAGE.write_text(page(frame), encoding="utf-8")
    figure(frame).save(FIGURE, format="png")


if __name__ == "__main__":
    main()
