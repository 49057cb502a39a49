"""Writes docs/findings.md, which says what the 54 kept runs answer to the paper's three claims, and draws its figure.

    python benchmarks/findings.py

Page and figure come from the traces alone. A test compares the page with the output of this script, and its numbers
with numbers that are computed in another way.
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
"""Claim 1 looks at the epochs from this one on: the second half, after the first step of the step schedule."""

SETTLED: Final = 7
"""The first epoch after start-up. The windows of earlier epochs hold the first steps."""

VOLATILE: Final = SETTLED + 4
"""The first epoch whose volatility comes from epochs after start-up alone."""

AHEAD: Final = 5
"""The number of last epochs that are left out, because a run gains nothing or nearly nothing after them."""

MODERATE: Final = 0.3
"""The rank correlation that counts as moderate. For the answer "no", the interval must lie below it."""

PERMUTATIONS: Final = 499
SEED: Final = 25


def curves(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a frame with a row for each run, in the order of `RUN`, and a column for each epoch."""
    return frame.pivot(index=RUN, columns="epoch", values=metric).sort_index()


def welch(a: Array, b: Array, *, level: float) -> tuple[float, float]:
    """Return Welch's interval of the difference of two means."""
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    degrees = parts.sum() ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(parts.sum())
    return float(a.mean() - b.mean() - half), float(a.mean() - b.mean() + half)


# ---- claim 1: integration separates the easy from the hard data set ----


class Difference(NamedTuple):
    """The difference of a reading between the easy and the hard data set.

    Attributes:
        where: the group of runs.
        value: the difference.
        deviations: the difference divided by the standard deviation of seeds.
        low, high: the interval of the difference.
    """

    where: str
    value: float
    deviations: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"| {self.where} | {self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] | {self.deviations:+.1f} |"


def differences(frame: pd.DataFrame, metric: str, by: Sequence[str]) -> list[Difference]:
    """Return the difference within each group of `by`, from the mean of each seed's late epochs.

    The intervals are widened so that all of them hold at once with 95 %.
    """
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
    """Return the answer to whether all differences are above 0.

    It is "No" if one of them is surely less than half of the largest.
    """
    if all(one.low > 0 for one in found):
        return "Yes"
    return "No" if any(one.high < max(d.value for d in found) / 2 for one in found) else "Cannot tell"


# ---- claim 2: volatility warns before the plateau ----


class Association(NamedTuple):
    """The rank correlation of a reading with the accuracy that a run still gains, its interval and exact p-value."""

    value: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] | {self.p:.2f}"


def association(frame: pd.DataFrame, reading: pd.DataFrame, strata: Sequence[str]) -> Association:
    """Return the rank correlation of a reading with the gain of accuracy that is still to come.

    Runs are ranked within an epoch and a stratum. For the interval, all runs of a network on a data set are drawn
    together, because what they have in common moves such a correlation more than anything else. p is the share of ways
    to exchange the readings between networks and data sets (of one stratum) in which the correlation is as far from 0.

    Args:
        frame: the traces.
        reading: a row for each run and a column for each epoch, as `curves` returns it.
        strata: the columns in which the runs of a stratum agree.
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
    """Yield each way to give the runs of a network and data set the readings of another, seed by seed; first, none."""
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
    """The share of runs whose schedule is guessed right, its interval and, if it was computed, its p-value."""

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
    """Return how often the nearest mean curve of a schedule is that of the run's own schedule.

    The mean curves are those of runs of other data sets *and* other networks. A curve holds the epochs after start-up,
    less its mean, divided by the standard deviation of the other runs' curves or, with `own_scale`, first by its own. p
    is the share of random exchanges of the schedules' names within each data set and network, all seeds alike, in which
    as many runs are guessed right. It is computed only with `test`.
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
        # This is |x - m|^2 without |x|^2, which is the same for all means.
        distance = (means**2).sum(axis=2)[:, None] - 2 * np.einsum("rd,psd->prs", scaled[kind], means)
        right[:, kind] = distance.argmin(axis=2) == labels[:, kind]
    low, high = share_interval(right[0], clusters)
    shares = right.mean(axis=1)
    return Told(float(shares[0]), low, high, float((shares >= shares[0]).mean()) if test else None)


# ---- the page ----


def page(frame: pd.DataFrame) -> str:
    """Return the text of the page, from the traces alone."""
    runs = [run for run, _ in curves_of(frame)]
    clusters = clusters_of(runs)
    head = f"""# What {len(runs)} runs say of the paper's claims

*Written by `python benchmarks/findings.py` from `tests/data/warning_grid.csv`: change the script, not this page. Every
question is answered by yes, no or cannot tell. [The protocol](protocol.md) describes the study that could tell; its
runs are not made yet.*

**The runs.** Three networks (ResNet-20, a small VGG and a small ViT) were trained on two data sets (CIFAR-10, called
"easy" here, and 100 classes of Tiny ImageNet, called "hard"), under three schedules of the learning rate (constant,
step and cosine), with three seeds each. These are {len(runs)} runs of 30 epochs; an epoch has 79 steps and 5,056 images
(`benchmarks/warning_grid.py`, 2-core x86-64 cloud VM, no GPU, 2026-11-26).

**How to read the numbers.**

- *0.5 [0.3, 0.8]* is a value and its 95 % interval: the range of true values that fit the runs. If the study were made
  again and again, about 95 of 100 such intervals would hold the true value. If the interval of a difference holds 0,
  the difference may be chance.
- *p* is the share of random rearrangements of the runs that give at least as strong a result. A small p (below 0.05)
  speaks against chance; a large p says that chance alone easily does as much.
- Runs that are alike must not count as independent, so they are put into one *cluster*: all seeds of one
  configuration, and the runs under a constant and a step schedule, which are the same training until epoch 15. The
  {len(runs)} runs make {clusters.max() + 1} clusters. Unless the text says otherwise, intervals are computed over
  clusters ([how](early-warning.md#does-it-help)).
- [The measures](measures.md) says what integration, metastability, stability and volatility are.

**The measures were defined as on that day.** Windows had 512 steps (6.5 epochs; today they would have 237). So epochs 0
to 6 are start-up and are left out here. The exponents came from DFA with the box sizes of that day; on made signals of
512 steps they differed from today's by at most 0.005. Global integration and unbiased metastability did not exist. The
steps themselves were not kept, so nothing can be measured anew.

**The rules of this page are younger than the runs.** Which epochs count, which runs are compared with which, and what
counts as a no was decided with these runs at hand. So the answers must be confirmed on other runs. They are not the
result of a test that was planned before.
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
        f"**{answer}.** Integration is surely higher on the easy set in {len(apart)} of {len(integration)} networks "
        f"({', '.join(apart)}). And with only two data sets, nothing says whether their difficulty is the reason.",
        "",
        f"The table shows integration on the easy set minus integration on the hard set, as the mean over epochs "
        f"{LATE} to 29 and over the three schedules of each seed. It compares 3 seeds on each set, by Welch's "
        "intervals for the difference of two means. They are widened, so that all intervals of the table hold at once "
        "with 95 %. The last column gives the difference in standard deviations between seeds.",
        "",
        "| network | difference of integration | in deviations of seeds |",
        "| --- | --- | --- |",
        *map(str, integration),
        "",
        "The same for each schedule by itself (nine intervals that hold at once):",
        "",
        "| network, schedule | difference of integration | in deviations of seeds |",
        "| --- | --- | --- |",
        *map(str, cells),
        "",
        "![Integration of each run in the second half of training](images/findings.png)",
        "",
        "The same difference of metastability: "
        + "; ".join(f"{m.where} {m.value:+.3f} [{m.low:+.3f}, {m.high:+.3f}]" for m in metastability)
        + ". The networks do not agree on its direction.",
        "",
        "*Not controlled:* The two sets also differ in the number of classes (10 and 100), the source of the images, "
        "the size of the loss and the learning rate relative to the loss. In a trial of seven other runs "
        "([measures](measures.md)), integration with labels that cannot be learned was near that of the easy set. "
        "Numbers in deviations of seeds look large because seeds differ little. Three seeds for a row are few, and a "
        "single row tells little by itself.",
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
        f"**{answer}.** Among runs at the same epoch, volatility does not show which of them still gain accuracy. The "
        f"rank correlation of volatility with the gain to come is {first.value:+.2f} [{first.low:+.2f}, "
        f"{first.high:+.2f}]. (A rank correlation is 1 if both have the same order, 0 if the orders have nothing to "
        f"do with each other, and -1 if they are opposite. The answer is no if the interval lies below {MODERATE}.) "
        "The correlation of a reading that warns of the plateau would be well above 0.",
        "",
        "*The warning itself, as it is now, cannot be judged on these runs.* It leaves start-up out and then needs 17 "
        f"epochs. So it can fire in {len(able)} of {len(as_now)} runs (in none with a step schedule), and before the "
        f"plateau in {len(in_time)} of the {len(flat)} of these that have a plateau. It fires in "
        f"{sum(run.warned is not None for run in as_now)} runs. If start-up is judged too, as it was until 2026-11, "
        f"the warning fires in {sum(run.warned is not None for run in before)} runs and comes {-lead.mean():.1f} "
        f"epochs [{-high:.1f}, {-low:.1f}] *after* the plateau ({len(lead)} runs that have both, {own.max() + 1} "
        "clusters).",
        "",
        "*Volatility without the threshold of the warning.* The table shows the rank correlation of a reading with "
        "the points of validation accuracy that a run still gains. Runs are ranked among the runs of the same epoch "
        f"and schedule and, in the left half, of the same data set; epochs {VOLATILE} to {29 - AHEAD} are taken "
        "together. For the intervals, all runs of a network on a data set are one cluster (6 clusters). In a check "
        "with 60 readings made at random, such intervals held the true value 0 for 82 to 98 % of the readings, so "
        "trust p more than the intervals. p is exact: the readings of each network on a data set are replaced by "
        "those of another, in all 36 ways (left) or 720 ways (right). On the left, the least possible p is "
        "1/36 = 0.03.",
        "",
        "| reading | within a data set and schedule | p | within a schedule | p |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {one} | {other} |" for name, (one, other) in rows.items()),
        "",
        "Only the first row answers the question. The others are there for comparison. Four readings were tried, and "
        "p is not corrected for that.",
        "",
        "*Not controlled:* The epoch of a plateau is partly chance, because accuracy moves from epoch to epoch by "
        "more than the plateau's tolerance in the constant-rate runs of CIFAR-10. Runs of 30 epochs are short: "
        f"{rising} of the {len(constant)} constant-rate runs have no plateau. The window of 6.5 epochs smooths "
        "volatility.",
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
        f"**{answer}, the schedule of the learning rate. For other styles, these runs cannot tell.** The schedule of "
        f"a run can be guessed from its curves of integration and metastability, rightly in {asked[0].share:.0%} or "
        f"{asked[1].share:.0%} of {len(clusters)} runs, depending on how the curves are scaled. Chance would be right "
        "in 33 %.",
        "",
        f"A curve here is that of epochs {SETTLED} to 29, less its mean. It is compared with the mean curve of each "
        "schedule, over runs of another data set *and* another network; the nearest one is the guess. The table shows "
        f"the share of right guesses with Wilson's interval for shares. p comes from {PERMUTATIONS} random exchanges "
        "of the schedules' names within each network on a data set.",
        "",
        "| curve of | scaled by the spread of the other runs | scaled by its own spread |",
        "| --- | --- | --- |",
        *(f"| {name} | {one} | {other} |" for name, (one, other) in rows.items()),
        "",
        "Integration alone is right in {:.2f} and {:.2f} of the runs, the training loss in {:.2f} and {:.2f}. So it "
        "depends on the scaling whether the layers tell more than the loss.".format(
            *(one.share for name in ("integration", "training loss") for one in rows[name])
        ),
        "",
        "*Not controlled:* The schedule *is* the learning rate, which a run logs anyway. So what is shown is that the "
        "fluctuations of the layers follow the rate. The optimizer goes with the network here (only the ViT has "
        "AdamW), so optimizers cannot be told from architectures. Fine-tuning, augmentation and batch size were not "
        "varied.",
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
        "The rules are compared at exactly the same saving of epochs. A cell shows the points of best validation "
        "accuracy that a rule loses and, after the semicolon, how much more (+) or less (-) it loses than a blind "
        'fraction, which stops every run after the same part of its epochs. "saves less" means that the rule cannot '
        "save so much. [All rules](early-warning.md#does-it-help) are in early-warning.md.",
        "",
        *rows,
        "",
        "*Not controlled:* The budget of 30 epochs was chosen in advance. A blind fraction is good if all runs have "
        "the same length and the plan of the rate fits this length. The forecast knows time, rate and the last moves "
        "of accuracy and loss. Its form was chosen among some twenty forms that were tried on these runs. If neither "
        "the data set nor the network of a run was in the fit, no form lost less than a blind fraction at 40 %. If "
        "only the pair of both was left out of the fit, a few forms did, by up to 0.3 points at 20 %. An earlier "
        "trial, whose code was not kept, gave 0.42, 1.22 and 2.27 points at 20, 30 and 40 %; it is not reproduced. "
        "Rules that need gradients or the steps of each layer (Mahsereci et al. 2017, arXiv 1703.09580; Ahmad et al., "
        "arXiv 2403.02473) cannot be tried, because gradients and steps were not kept.",
        "",
        "## What these runs cannot answer",
        "",
        "- Is it difficulty, class count or learnability that moves integration? This needs tasks that differ in one "
        "of them at a time.",
        "- Does a warning come before a plateau? This needs trainings that have a plateau, of 60 epochs and more "
        "after start-up.",
        "- What do optimizers do on one network? What do skip connections, normalisation and depth do?",
        "- What holds for networks and data of full size?",
        "",
        "[The protocol](protocol.md) is laid down for these questions, before its runs are made.",
        "",
    ]


def figure(frame: pd.DataFrame) -> alt.FacetChart:
    """Return the figure: each run's integration in the second half, by network, schedule and data set."""
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
