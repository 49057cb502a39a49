"""The evaluation of the early warning: its arithmetic, its honesty about tuning, and the page it is printed on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from mlflow_dynamics.cli import main
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.evaluation import for_terminal, read_experiment, read_traces, report
from mlflow_dynamics.evaluation.report import SAVES_EPOCHS
from mlflow_dynamics.evaluation.rules import PATIENCE, RULES, TARGETS, WARNING, Rule, outcome, outcomes, tuned
from mlflow_dynamics.evaluation.traces import Curves, clusters_of, curves_of
from mlflow_dynamics.tracking import names

ROOT = Path(__file__).parents[1]
TRACES = ROOT / "tests" / "data" / "warning_grid.csv"


@cache
def printed_of_all() -> str:
    return report(read_traces(TRACES))


def run(accuracy: list[float], configuration: str = "a", score: list[float] | None = None) -> Curves:
    values = np.array(accuracy)
    return Curves(
        configuration=(configuration,),
        accuracy=values,
        validation_loss=1 - values,
        training_loss=1 - values,
        rate=np.ones(len(values)),
        score=np.full(len(values), np.nan) if score is None else np.array(score),
        warned=None,
        plateau=None,
        tolerance=0.005,
    )


def test_a_stop_saves_what_comes_after_it_and_keeps_the_best_before() -> None:
    rising = run([0.1, 0.4, 0.3, 0.5])
    assert outcome(rising, 1) == pytest.approx((0.5, 10.0))
    assert outcome(rising, 2) == pytest.approx((0.25, 10.0))
    assert outcome(rising, None) == pytest.approx((0.0, 0.0))


def test_a_rule_is_tuned_on_other_clusters_than_the_runs_own() -> None:
    # The setting is the epoch of the stop in "a" runs and its mirror in "b" runs: what suits one betrays the other.
    rule = Rule(lambda one, s: int(s if one.configuration == ("a",) else 9 - s), range(10))
    runs = [run([0.1 * e + start for e in range(10)], name) for name, start in (("a", 0), ("b", 0.01))]
    found = tuned(outcomes(rule, runs), clusters_of(runs))
    # To save 0.2 elsewhere, a stop at epoch 7: for "a" tuned on "b" that is setting 2, a stop at epoch 2 at home.
    assert found[:, TARGETS.tolist().index(0.2), 0] == pytest.approx([0.7, 0.7])
    # Halfway between two settings, halfway between what they save.
    assert found[:, TARGETS.tolist().index(0.25), 0] == pytest.approx([0.65, 0.65])


def test_runs_that_share_epochs_are_one_cluster_and_a_run_is_not_tuned_on_its_twin() -> None:
    shared = [0.1, 0.2, 0.3]
    runs = [
        run([*shared, 0.4], "constant"),
        run([0.11, 0.2, 0.3, 0.4], "constant"),
        run([*shared, 0.9], "step"),
        run([0.12, 0.2, 0.3, 0.4], "cosine"),
    ]
    assert clusters_of(runs).tolist() == [0, 0, 0, 1]
    table = outcomes(Rule(lambda one, s: int(s), range(4)), runs)
    table[3, :, 0] = [0.9, 0.6, 0.3, 0.0]  # only the stranger decides for the other three
    for twin in (1, 2):
        other = table.copy()
        other[twin, :, 0] = 0
        moved = tuned(other, clusters_of(runs))[0] - tuned(table, clusters_of(runs))[0]
        assert not moved.any()


def test_the_rules_are_those_they_are_called() -> None:
    flat = run([0.1, 0.5, 0.5, 0.5, 0.5, 0.5], score=[np.nan, 0.2, 0.7, 1.2, 0.9, 2.0])
    assert RULES[PATIENCE].stop(flat, 2) == 3
    assert RULES[WARNING].stop(flat, 1.0) == 3
    assert RULES[WARNING].stop(flat, 5.0) is None
    assert RULES["blind fraction of the budget"].stop(flat, 0.5) == 2


def test_the_page_is_what_the_command_prints_from_the_traces(capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "--traces", str(TRACES)])
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "early-warning.md").read_text()
    assert f"<!-- evaluation -->\n{printed}\n<!-- end of evaluation -->" in page


def few(frame: pd.DataFrame) -> pd.DataFrame:
    """Six runs of two configurations."""
    return frame[
        (frame["dataset"] == "tinyimagenet100")
        & (frame["model"] == "small_vit")
        & (frame["schedule"] != "step")
    ]


def test_one_command_puts_the_evaluation_of_whatever_traces_there_are_into_the_page(tmp_path: Path) -> None:
    for folder in ("benchmarks", "docs/images", "tests/data"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("benchmarks/warning_page.py", "docs/early-warning.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    few(read_traces(TRACES)).to_csv(tmp_path / "tests" / "data" / "warning_grid.csv", index=False)
    subprocess.run([sys.executable, tmp_path / "benchmarks" / "warning_page.py"], check=True)
    before, after = ((root / "docs" / "early-warning.md").read_text() for root in (ROOT, tmp_path))
    assert after == before.replace(printed_of_all(), report(few(read_traces(TRACES))))
    assert after != before
    assert (tmp_path / "docs" / "images" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


SHARE = r"\d+ % \[\d+, \d+\] \(\d+ of \d+(; too few to tell, at least 16 are needed)?\)"
NUMBER = r"[-+]?\d+\.\d+"
MEAN = rf"{NUMBER} \[{NUMBER}, {NUMBER}\]"


def test_everything_that_is_claimed_has_its_interval_or_says_that_it_cannot_be() -> None:
    lines = printed_of_all().splitlines()
    assert re.match("54 runs of 18 configurations in 12 clusters", lines[0])
    assert re.match(f"Misses: it did not fire in {SHARE} of", lines[2])
    assert re.search(f"tolerance in {SHARE} of", lines[3])
    rows = [
        line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "saved |" not in line
    ][1:]
    assert len(rows) == len(RULES) + 3
    for name, *cells in rows:
        difference = "" if name.startswith("blind fraction of") else f"; {MEAN}"
        assert all(re.fullmatch(f"{MEAN}{difference}|saves less", cell) for cell in cells), cells


def test_a_handful_of_runs_gives_no_verdict() -> None:
    printed = report(few(read_traces(TRACES)))
    assert "cannot tell from 3 runs of 2 clusters, at least 6 are needed" in printed
    assert "too few to tell, at least 16 are needed" in printed
    assert printed.endswith("Verdict: cannot tell from 2 clusters of runs, at least 6 are needed.")


def test_what_cannot_fire_is_no_miss() -> None:
    """30 epochs with a step of the rate at the 15th leave the detector no 17 epochs on either side."""
    printed = printed_of_all()
    assert "in 4 of the 36 runs in which it can fire. In 18 it cannot" in printed
    steps = {
        curves.configuration[-1]
        for curves, _ in curves_of(read_traces(TRACES))
        if np.isnan(curves.score).all()
    }
    assert steps == {"step"}


def test_in_a_terminal_every_line_fits_and_nothing_is_left_out() -> None:
    markdown = report(few(read_traces(TRACES)))
    said = for_terminal(markdown, width=80)
    assert max(map(len, said.splitlines())) <= 80
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    header, _, *rules = rows
    for rule, *cells in rules:
        block = [rule, *(f"  {name}  {cell}" for name, cell in zip(header[1:], cells, strict=True))]
        assert "\n".join(block) in said
    assert said.splitlines()[-1] == markdown.splitlines()[-1]


def test_lightnings_count_has_rows_of_its_own_where_it_stops_elsewhere() -> None:
    frame = few(read_traces(TRACES)).copy()
    alike = report(frame)
    assert "so one row stands for both" in alike
    assert "as Lightning counts |" not in alike
    loss = frame.columns.get_loc("validation/loss")
    frame.iloc[10, loss] = np.nan
    apart = report(frame)
    assert "| patience on validation loss, as Lightning counts |" in apart
    assert "| patience on validation accuracy, as Lightning counts |" not in apart
    assert "which ends a run at a value that is not finite" in apart


def test_the_readme_claims_no_more_than_the_page() -> None:
    readme = (ROOT / "README.md").read_text()
    if not printed_of_all().endswith(f"Verdict: {SAVES_EPOCHS}."):
        assert "diagnostic" in readme
        assert SAVES_EPOCHS not in readme


def test_verdicts_of_a_trace_do_not_depend_on_the_order_of_its_rows() -> None:
    frame = read_traces(TRACES)
    shuffled = frame.sample(frac=1, random_state=0)
    for (one, _), (other, _) in zip(curves_of(frame), curves_of(shuffled), strict=True):
        np.testing.assert_array_equal(one.score, other.score)


def test_runs_of_an_experiment_are_read_as_traces_are(own_mlflow: Path) -> None:
    frame = read_traces(TRACES)
    some = frame[(frame["seed"] == 0) & (frame["dataset"] == "cifar10") & (frame["model"] == "small_vit")]
    metrics = [column for column in frame if "/" in column]
    for (schedule,), one in some.groupby(["schedule"]):
        with mlflow.start_run():
            mlflow.log_params({"dataset": "cifar10", "model": "small_vit", "schedule": schedule, "seed": 0})
            for row in one.to_dict("records"):
                values = {key: row[key] for key in metrics if row[key] == row[key]}
                mlflow.log_metrics(values, step=int(row["epoch"]))
    read = curves_of(read_experiment("Default"))
    assert len(read) == 3
    for (ours, _), (theirs, _) in zip(curves_of(some), read, strict=True):
        np.testing.assert_allclose(ours.score, theirs.score)
        assert ours.plateau == theirs.plateau
        assert ours.warned == theirs.warned


def test_runs_of_one_seed_that_differ_in_anything_else_stay_apart(own_mlflow: Path) -> None:
    metrics = {names.STABILITY: 0.4, names.TRAIN_LOSS: 1.0, names.VALIDATION_LOSS: 1.0}
    for optimizer, accuracy in (("sgd", 0.5), ("adam", 0.7)):
        with mlflow.start_run():
            mlflow.log_params({"dataset": "d", "model": "m", "schedule": "constant", "seed": 0})
            mlflow.log_param("optimizer", optimizer)
            for epoch in range(9):
                mlflow.log_metrics(metrics | {names.VALIDATION_ACCURACY: accuracy}, step=epoch)
    read = [(list(curves.accuracy), seed) for curves, seed in curves_of(read_experiment("Default"))]
    assert sorted(read) == [([0.5] * 9, "0"), ([0.7] * 9, "0")]


def test_rows_of_several_runs_are_never_joined_to_one(tmp_path: Path) -> None:
    frame = few(read_traces(TRACES))
    two = pd.concat([frame, frame], keys=["one", "two"], names=["optimizer"]).reset_index("optimizer")
    two.to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(
        DataError, match=r"more than one row of dataset tinyimagenet100, .*, seed 0, epoch 0: .*run_id"
    ):
        read_traces(tmp_path / "two.csv")
    two["run_id"] = two["optimizer"] + two["schedule"] + two["seed"].astype(str)
    two.to_csv(tmp_path / "two.csv", index=False)
    once, twice = curves_of(frame), curves_of(read_traces(tmp_path / "two.csv"))
    assert len(twice) == 2 * len(once)
    assert {len(curves.accuracy) for curves, _ in twice} == {len(curves.accuracy) for curves, _ in once}


def test_what_cannot_be_evaluated_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        read_traces(tmp_path / "nowhere.csv")
    pd.DataFrame({"epoch": [0]}).to_csv(tmp_path / "short.csv")
    with pytest.raises(DataError, match="lacks dataset, model, schedule, seed"):
        read_traces(tmp_path / "short.csv")
    frame = read_traces(TRACES)
    with pytest.raises(DataError, match="one configuration"):
        report(
            frame[
                (frame["model"] == "small_vit")
                & (frame["dataset"] == "cifar10")
                & (frame["schedule"] == "step")
            ]
        )


def test_either_traces_or_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["evaluate"])
    assert left.value.code == 2
    assert "Give either --traces FILE or --experiment NAME." in capsys.readouterr().err


def test_epochs_of_start_up_are_not_judged() -> None:
    """The window of the kept runs holds their first steps for 7 epochs."""
    frame = few(read_traces(TRACES))
    for curves, _ in curves_of(frame):
        assert np.isnan(curves.score[: 7 + 16]).all()
        assert np.isfinite(curves.score[7 + 16])
    for curves, _ in curves_of(frame.drop(columns=[names.START_UP])):
        assert np.isfinite(curves.score[16])
