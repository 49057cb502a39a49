"""Hostile input: whatever is typed, named or logged gives a result or one clear sentence, never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from pathlib import Path

import mlflow
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from torch import nn

import mlflow_dynamics
from mlflow_dynamics import cli
from mlflow_dynamics.convergence import ConvergenceMonitor, WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.records import Layer
from mlflow_dynamics.text import encodable
from mlflow_dynamics.tracking import RunWriter, load_activations, names, parquet
from mlflow_dynamics.tracking.activations import load_layers
from mlflow_dynamics.training.parameters import EngineConfig, GridConfig, TrainingConfig
from mlflow_dynamics.training.weights import _read as read_weights

EXAMPLES = 25
"""For each command that begins no run; hundreds found nothing that is not among the cases below."""

EXAMPLES_WITH_RUNS = 3

HOSTILE = (
    "",
    "none",
    "all",
    "nan",
    "-1",
    "0",
    "1e400",
    "9" * 30,
    "../..",
    "/",
    "a\nb",
    "\udcff",
    "<script>",
    "'; --",
    "x" * 5000,
    "--",
    "parquet:",
    "imagefolder:/",
    "true",
)
TINY = ["--limit-train", "16", "--limit-test", "8", "--epochs", "1"]

# No process can be given an argument with a null character, or with a surrogate that stands for no undecodable byte.
written = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
words = st.one_of(st.sampled_from(HOSTILE), written, st.integers().map(str), st.floats().map(str))


def options(*known: str) -> st.SearchStrategy[list[str]]:
    pairs = st.lists(st.tuples(st.sampled_from(known), words), max_size=3)
    return pairs.map(lambda given: [word for name, value in given for word in (f"--{name}", value)])


def fields(config: type, *, without: tuple[str, ...] = ()) -> list[str]:
    return [field.name.replace("_", "-") for field in dataclasses.fields(config) if field.name not in without]


COMMANDS = {
    # An unknown model or data set beside the hostile options: nothing is trained or downloaded for long.
    "train": (
        options(*fields(TrainingConfig, without=("model",))),
        ["--model", "absent"],
    ),
    "paper": (
        options(*fields(GridConfig, without=("easy_dataset", "hard_dataset"))),
        ["--easy-dataset", "absent", "--hard-dataset", "absent"],
    ),
    "grid": (options(*fields(EngineConfig)), ["absent.yaml"]),
    "recompute": (options("signal", "protocol", "window", "estimator", "log"), []),
    "watch": (options("stop", "poll"), []),
    "report": (options("experiment", "output"), []),
    "evaluate": (options("traces", "experiment", "filter", "figure"), []),
    "sync": (st.just([]), []),
    "run": (st.just([]), []),
    "--version": (st.just([]), []),
}


def assert_sentence_or_result(arguments: list[str]) -> None:
    status: object = 0
    raw = io.BytesIO()
    # As Python opens it; pytest's own refuses undecodable bytes.
    stderr = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace")
    try:
        with contextlib.redirect_stderr(stderr):
            cli.main(arguments)
    except SystemExit as left:
        status = left.code
    stderr.flush()
    said = raw.getvalue().decode()
    # What `run` runs ends as under Python, which may be with a sentence in place of a number.
    assert status in (0, cli.EXIT_BAD_INPUT, cli.EXIT_UNSENT) or (arguments[0], type(status)) == ("run", str)
    assert "Traceback" not in said
    if status == cli.EXIT_BAD_INPUT:
        assert said.count("Error: ") >= 1


@pytest.mark.drawn
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_typed_gets_a_result_or_a_sentence(
    command: str,
) -> None:
    optional, always = COMMANDS[command]

    @settings(
        max_examples=EXAMPLES_WITH_RUNS if command in ("train", "paper") else EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(optional, st.lists(words, max_size=2))
    def typed(chosen: list[str], positional: list[str]) -> None:
        assert_sentence_or_result([command, *chosen, *always, *positional])

    typed()


@pytest.fixture
def recorded() -> str:
    """A run with dynamics whose parameters somebody else has written."""
    with mlflow.start_run() as run:
        mlflow.log_param("dynamics/window", "abc")
    return str(run.info.run_id)


@pytest.mark.drawn
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["recompute", "RUN"], "dynamics/window='abc', which mlflow_dynamics does not write"),
        (["report", "RUN"], "dynamics/window='abc', which mlflow_dynamics does not write"),
        (["train", "--resume", "cut", *TINY], "is damaged; start the training anew"),
        (["train", "--resume", "../../cut", *TINY], "has no checkpoint in"),
        (["train", "--resume", "x" * 5000, *TINY], "has no checkpoint in"),
        (["train", "--device", "meta", *TINY], "device='meta' cannot be used"),
        (["train", "--seed", "9" * 30, *TINY], "must be 0 or more and at most"),
        (["train", "--batch-size", "9" * 30, *TINY], "must be at least 1 and at most"),
        (["train", "--learning-rate", "1e308", *TINY], "must be a finite number above 0, at most"),
        (["train", "--weight-decay", "1e308", *TINY], "must be a finite number of at least 0, at most"),
    ],
)
def test_what_once_was_a_traceback_is_a_sentence(
    arguments: list[str], part: str, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Path(".mlflow_dynamics/checkpoints")
    checkpoints.mkdir(parents=True)
    (checkpoints / "cut.pt").write_bytes(b"half of a checkpoint")
    Path("cut.pt").write_bytes(b"outside")
    with pytest.raises(SystemExit) as left:
        cli.main([recorded if word == "RUN" else word for word in arguments])
    assert left.value.code == cli.EXIT_BAD_INPUT
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert part in sentence


@pytest.mark.drawn
@pytest.mark.parametrize("option", ["--figure"])
def test_a_page_or_figure_that_cannot_be_written_is_a_sentence(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = Path(__file__).parent / "data" / "warning_grid.csv"
    with pytest.raises(SystemExit) as left:
        cli.main(["evaluate", "--traces", str(traces), option, "no/such/folder.png"])
    assert left.value.code == cli.EXIT_BAD_INPUT
    assert "no/such/folder.png cannot be written: No such file or directory." in capsys.readouterr().err


LAYER_NAMES = (
    "a/b",
    "/up",
    "line\nbreak",
    "<script>alert(1)</script>",
    "\"quoted\" & 'so'",
    "{{ jinja }}",
    "näme 漢字 🙂",
    "x" * 300,
    "*[!a]?",
    "\udcff",
    "a\x00b",
    "a\x1b[31m",
    "b\ufffe",
    " ",
)


class Hostile(nn.Module):
    """Linear layers in a row under hostile names."""

    def __init__(self) -> None:
        super().__init__()
        for name in LAYER_NAMES:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            inputs = layer(inputs)
        return inputs


@pytest.mark.drawn
def test_layers_of_any_name_are_recorded_drawn_and_found_again(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = Hostile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with mlflow_dynamics.track(model) as tracker:
        for _ in range(3):
            for _ in range(40):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
            tracker.end_epoch(**{names.TRAIN_LOSS: 1.0})
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    run_id = tracker.run_id
    assert run_id is not None
    found = [layer.name for layer in load_layers(run_id)]
    assert found == [name.replace("\udcff", r"\udcff").replace("\0", r"\x00") for name in LAYER_NAMES]
    for index, name in enumerate(found):
        table = load_activations(run_id, layers=[name])
        assert set(table["layer"].to_pylist()) == {index}
        assert table.num_rows == 120
    page = Path(MlflowClient().download_artifacts(run_id, names.REPORT)).read_text()
    assert "<script>alert(1)</script>" not in page
    cli.main(["report", run_id])
    assert "<script>alert(1)</script>" not in Path("report.html").read_text()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's, before it is refused
@given(st.binary(max_size=60))
@example(b"\x80\x00")
def test_a_checkpoint_of_any_bytes_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be read as weights|holds no state dict"):
        read_weights(path)


@given(st.lists(st.text(max_size=40).map(encodable), max_size=6))
def test_layers_of_any_name_are_written_and_read(texts: list[str]) -> None:
    import pyarrow as pa

    written = [
        Layer(index=index, name=name, type="Linear", output_shape=(4,), parameters=20)
        for index, name in enumerate(texts)
    ]
    assert parquet.read_layers(pa.BufferReader(parquet.layers_to_parquet(written))) == tuple(written)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(), st.none() | st.floats(), st.none() | st.floats()), max_size=40),
    st.sampled_from(["warn", "stop"]),
)
def test_any_series_of_numbers_gets_a_verdict(series: list[tuple], mode: str) -> None:
    monitor = ConvergenceMonitor(WarningConfig(mode=mode))
    for epoch, (stability, loss, rate) in enumerate(series):
        verdict = monitor.update(epoch, stability, loss=loss, learning_rate=rate)
        assert verdict.signal in (0, 1)
        assert verdict.message


def test_any_metric_is_recorded_or_refused_in_a_sentence(tmp_path: Path) -> None:
    writer = RunWriter("somewhere", tracking_uri="http://127.0.0.1:9", spool_dir=tmp_path).start()

    @settings(deadline=None, max_examples=200)
    @given(st.dictionaries(st.text(max_size=20), st.floats(), max_size=4), st.integers(0, 2**40))
    def log(metrics: dict[str, float], epoch: int) -> None:
        try:
            writer.write_epoch(epoch, None, metrics, None, 0)
        except ConfigError:
            return
        batch = writer._spool.entries()[-1].batch()
        assert batch is not None
        expected = [(key, repr(value), 0, epoch) for key, value in metrics.items()]
        assert [(key, repr(value), ms, step) for key, value, ms, step in batch.metrics] == expected

    log()
    writer.close(0)


def test_parameters_and_tags_of_any_text_block_no_queue() -> None:
    with mlflow.start_run() as run:
        writer = RunWriter(run.info.run_id).start()
        writer.log_params({"path": "undecodable \udcff", "zero": "a\0b"})
        writer.set_tags({"tag": "\udcff"})
        writer.write_epoch(0, None, {names.TRAIN_LOSS: 1.0}, None, 0)
        assert writer.close(30) == 0
    data = MlflowClient().get_run(run.info.run_id).data
    assert data.params == {"path": r"undecodable \udcff", "zero": r"a\x00b"}
    assert data.tags["tag"] == r"\udcff"
    assert data.metrics == {names.TRAIN_LOSS: 1.0}
