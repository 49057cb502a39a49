"""The console script `mlflow-dynamics`. Wrong arguments are answered with one clear sentence."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_dynamics import __version__, extras
from mlflow_dynamics.completion import choices_of, file_of, values_of
from mlflow_dynamics.config import AUTO, OnSigterm
from mlflow_dynamics.errors import ConfigError, DynamicsError
from mlflow_dynamics.text import LOG_DATES, LOG_FORMAT, printable
from mlflow_dynamics.training.parameters import EngineConfig, GridConfig, TrainingConfig

if TYPE_CHECKING:
    from mlflow_dynamics.watching import WatchedEpoch

EXIT_BAD_INPUT = 2
EXIT_UNSENT = 3
EXIT_INTERRUPTED = 130


class _Optional(click.ParamType):
    """Either a value of another type, or one word that stands for None."""

    def __init__(self, kind: type, word: str) -> None:
        self.inner = click.types.convert_type(kind)
        self.word = word
        self.name = f"{kind.__name__}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or value == self.word:
            return None
        return self.inner.convert(value, param, ctx)


def _options_of(config: Any) -> Callable[[Any], Any]:
    """Return a decorator that adds one option for each field of a configuration, so that the two cannot differ."""

    def decorate(command: Any) -> Any:
        for option in reversed(dataclasses.fields(config)):
            kind = option.metadata.get("kind")
            command = click.option(
                f"--{option.name.replace('_', '-')}",
                type=type(option.default) if kind is None else _Optional(kind, option.metadata["word"]),
                default=option.default if kind is None else option.metadata["word"],
                metavar=choices_of(option.name, option.metadata.get("word")),
                help=option.metadata["help"],
                shell_complete=values_of,
            )(command)
        return command

    return decorate


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


# MLflow passes `-P batch_size=64` on as `--batch_size 64`. Underscores are read as dashes, so that both spellings
# work and click can suggest the nearest match for a misspelt parameter.
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 110,
    "show_default": True,
}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__)
@click.pass_context
def commands(context: click.Context) -> None:
    """See how a network's layers move together while it trains."""
    if context.invoked_subcommand != "run":  # the script sets up its own logging
        logging.basicConfig(format=LOG_FORMAT, datefmt=LOG_DATES)
        logging.getLogger("mlflow_dynamics").setLevel(logging.INFO)
        if not sys.stderr.isatty():  # tqdm reads this when it is imported, also by other libraries
            os.environ.setdefault("TQDM_DISABLE", "1")


@commands.command()
@_options_of(TrainingConfig)
def train(**parameters: Any) -> None:
    """Train one model, and record its dynamics in an MLflow run."""
    from mlflow_dynamics.training.launched import nothing_left_if_refused

    with nothing_left_if_refused("main"):
        extras.require("train", "mlflow-dynamics train")
        config = TrainingConfig(**parameters)
        from mlflow_dynamics.training.run import train_in_run

        train_in_run(config)


@commands.command(short_help="Train the cells of a grid file, only what is missing.")
@click.argument("file", type=click.Path(path_type=Path))
@_options_of(EngineConfig)
def grid(file: Path, **engine: Any) -> None:
    """Train those of a grid's cells that are missing, as child runs of one run.

    FILE is YAML: parameters of `train`, each with a value or a list of values. All combinations are trained.
    """
    _train_grid("grid", file, engine)


@commands.command(short_help="Train the paper's nine combinations, only what is missing.")
@_options_of(GridConfig)
@_options_of(EngineConfig)
def paper(**parameters: Any) -> None:
    """Train the paper's nine combinations as child runs of one run, without those that are trained already."""
    engine = {f.name: parameters.pop(f.name) for f in dataclasses.fields(EngineConfig)}
    _train_grid("paper", parameters, engine)


def _train_grid(command: str, cells: Path | dict[str, Any], engine: dict[str, Any]) -> None:
    from mlflow_dynamics.training.launched import nothing_left_if_refused

    with nothing_left_if_refused(command):
        extras.require("train", f"mlflow-dynamics {command}")
        engine_config = EngineConfig(**engine)
        from mlflow_dynamics.training.engines import engine_of
        from mlflow_dynamics.training.grid import train_grid
        from mlflow_dynamics.training.grid_file import paper_cells, read_grid

        found = read_grid(cells) if isinstance(cells, Path) else paper_cells(GridConfig(**cells))
        train_grid(found, engine_of(engine_config))


@commands.command(short_help="Measure a recorded run anew, under other settings.")
@click.argument("run_id")
@click.option(
    "--signal",
    metavar=choices_of("signal"),
    shell_complete=values_of,
    help="what stands for a layer at a step  [default: the run's own]",
)
@click.option(
    "--protocol",
    metavar=choices_of("protocol"),
    shell_complete=values_of,
    help="what plays the part of time  [default: the run's own]",
)
@click.option("--window", type=_Optional(int, AUTO), help="training steps, or auto  [default: the run's own]")
@click.option(
    "--estimator",
    metavar=choices_of("estimator"),
    shell_complete=values_of,
    help="of the integration exponent  [default: the run's own, or the new protocol's]",
)
@click.option("--uncertainty/--no-uncertainty", default=None, help="also integration's interval and p-values")
@click.option("--log", "name", help="also log the measures beside the originals, as dynamics.NAME/...")
@click.pass_context
def recompute(context: click.Context, run_id: str, name: str | None, **changes: Any) -> None:
    """Measure a recorded run anew, under another protocol, window, signal or estimator."""
    from mlflow_dynamics.recomputing import log_recomputed, recompute, settings_of
    from mlflow_dynamics.tracking.query import whole_id

    run_id = whole_id(run_id)
    asked = click.core.ParameterSource.COMMANDLINE
    chosen = {key: value for key, value in changes.items() if context.get_parameter_source(key) is asked}
    if "protocol" in chosen:
        chosen.setdefault("estimator", None)
    config = dataclasses.replace(settings_of(run_id), **chosen)
    epochs = []
    columns = ["integration", "metastability", "synchrony", "stability"]
    if config.uncertainty:
        columns += ["integration_low", "integration_high", "coupling_p", "metastability_p"]
    click.echo("epoch" + "".join(f"{column:>17}" for column in (*columns, "volatility")) + "  start-up")
    for epoch in recompute(run_id, config):
        values = [getattr(epoch.measures, column) for column in columns]
        numbers = "".join(f"{value:17.6f}" for value in (*values, epoch.volatility))
        click.echo(f"{epoch.epoch:5d}{numbers}{'  yes' if epoch.measures.start_up else ''}")
        epochs.append(epoch)
    if name is not None:
        log_recomputed(run_id, epochs, name=name)


@commands.command(short_help="Follow a live run from outside, or look back at one.")
@click.argument("run_id")
@click.option(
    "--stop",
    is_flag=False,
    flag_value="true",
    default=False,
    type=bool,
    help="ask the run to stop on the signal",
)
@click.option(
    "--stop-before-last-phase",
    is_flag=False,
    flag_value="true",
    default=False,
    type=bool,
    help="under a smooth schedule do not wait for the last phase, also where the run itself would",
)
@click.option("--poll", default=10.0, help="seconds between two looks at a live run")
def watch(run_id: str, stop: bool, stop_before_last_phase: bool, poll: float) -> None:
    """Follow a live run from outside, or look back at one: each epoch and the warning's verdict.

    RUN_ID may be the beginning of an id. In a terminal, a dashboard is drawn anew after each epoch; elsewhere, each
    epoch is printed as a line.
    """
    from mlflow_dynamics.tracking.query import whole_id
    from mlflow_dynamics.training.launched import nothing_left
    from mlflow_dynamics.watching import watch

    with nothing_left("watch"):
        epochs = watch(
            whole_id(run_id), stop=stop, stop_before_last_phase=stop_before_last_phase, poll_s=poll
        )
        (_redraw if sys.stdout.isatty() else _print_verdicts)(epochs)


def _print_verdicts(epochs: Iterable[WatchedEpoch]) -> None:
    """Print a line for each epoch."""
    from mlflow_dynamics.tracking import names

    for number, epoch in enumerate(epochs):
        if number == 0:
            click.echo("epoch  stability  volatility  validation accuracy  signal  score  verdict")
        verdict = epoch.verdict
        stability, volatility, accuracy = (
            epoch.metrics.get(key, math.nan)
            for key in (names.STABILITY, names.VOLATILITY, names.VALIDATION_ACCURACY)
        )
        sentence = verdict.message.partition(": ")[2]
        click.echo(
            f"{verdict.epoch:5d}  {stability:9.4f}  {volatility:10.4f}  {accuracy:19.4f}"
            f"  {verdict.signal:6d}  {verdict.score:5.2f}  {sentence}"
        )


def _redraw(epochs: Iterable[WatchedEpoch]) -> None:
    """Draw a dashboard in a terminal, and draw it anew after each epoch."""
    from mlflow_dynamics.dashboard import dashboard

    seen: list[WatchedEpoch] = []
    lines: list[str] = []
    for epoch in epochs:
        seen.append(epoch)
        up = (
            f"\x1b[{len(lines)}F\x1b[J" if lines else ""
        )  # moves to the beginning of the last dashboard and clears it
        lines = dashboard(seen, width=shutil.get_terminal_size().columns)
        click.echo(up + "\n".join(lines))


@commands.command(short_help="Draw one run's report anew, or compare several runs.")
@click.argument("run_ids", nargs=-1)
@click.option("--experiment", help="compare all runs of this experiment")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    help="where the page is written",
)
def report(run_ids: tuple[str, ...], experiment: str | None, output: Path) -> None:
    """Draw one run's report anew, or compare several runs, as one page that needs no network.

    The figures of a comparison are also written beside the page, as OUTPUT-NAME.png. (The figures of one run are in
    the run.) RUN_IDS may also be one argument with commas between the ids, or "none", as MLproject passes it, which
    means no ids. Under `mlflow run -e report` the page is also an artifact of the run that MLflow made for it.
    """
    run_ids = tuple(one for given in run_ids for one in given.split(",") if one not in ("", "none"))
    experiment = None if experiment == "none" else experiment
    if bool(run_ids) == bool(experiment):
        raise click.UsageError("Give either RUN_IDS or --experiment NAME.")
    from mlflow_dynamics.tracking.query import whole_id
    from mlflow_dynamics.training.launched import keep_in_launched_run, nothing_left_if_refused

    with nothing_left_if_refused("report"):
        extras.require("report", "mlflow-dynamics report")
        run_ids = tuple(map(whole_id, run_ids))
        title, files = (
            _one_report(run_ids[0], output) if len(run_ids) == 1 else _comparison(run_ids, experiment, output)
        )
        for path, content in files.items():
            _write(path, content)
            click.echo(f"Written: {path}")
        keep_in_launched_run("report", files, title=title)


def _one_report(run_id: str, output: Path) -> tuple[str, dict[Path, bytes]]:
    from mlflow_dynamics.recomputing import settings_of
    from mlflow_dynamics.report.artifacts import render
    from mlflow_dynamics.report.recorded import history_of
    from mlflow_dynamics.tracking import names

    history = history_of(run_id, settings_of(run_id))
    return f"Report of {history.title}", {output: render(history, pictures=False)[names.REPORT]}


def _comparison(
    run_ids: tuple[str, ...], experiment: str | None, output: Path
) -> tuple[str, dict[Path, bytes]]:
    from mlflow_dynamics.report.comparison import comparison_page, comparison_pictures, gather, load
    from mlflow_dynamics.report.ranking import ranked

    loaded = load(list(run_ids) or None, experiment=experiment)
    frame, runs = gather(loaded), ranked(loaded.runs, loaded.metrics)
    title = "Runs compared" if experiment is None else f"The runs of {experiment}"
    pictures = {
        output.with_name(f"{output.stem}-{name}.png"): png
        for name, png in comparison_pictures(frame, runs=runs).items()
    }
    return title, {output: comparison_page(frame, title=title, runs=runs).encode(), **pictures}


@commands.command(short_help="Compare the early warning with other stopping rules.")
@click.option("--traces", type=click.Path(path_type=Path), help="a CSV file of epochs")
@click.option("--experiment", help="or the runs of an MLflow experiment")
@click.option("--filter", "filter_string", default="", help="of these, in MLflow's search syntax")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="also draw a PNG")
def evaluate(traces: Path | None, experiment: str | None, filter_string: str, figure: Path | None) -> None:
    """Compare the early warning with other stopping rules on finished runs.

    The output is Markdown; in a terminal, its lines are made to fit.
    """
    if (traces is None) == (experiment is None):
        raise click.UsageError("Give either --traces FILE or --experiment NAME.")
    from mlflow_dynamics import evaluation

    if figure is not None:
        extras.require("report", "mlflow-dynamics evaluate --figure")
    if traces is not None:
        frame = evaluation.read_traces(traces)
    else:
        frame = evaluation.read_experiment(str(experiment), filter_string)
    said = evaluation.report(frame)
    if sys.stdout.isatty():
        said = evaluation.for_terminal(said, width=shutil.get_terminal_size().columns)
    click.echo(said)
    if figure is not None:
        from mlflow_dynamics.evaluation.figure import figure as draw

        drawn = io.BytesIO()
        draw(frame).save(drawn, format="png")
        _write(figure, drawn.getvalue())


@commands.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tracking-uri", help="the store whose runs are sent, with its password  [default: MLFLOW_TRACKING_URI]"
)
@click.option(
    "--end-stale",
    is_flag=True,
    help="also end, as KILLED, runs begun by a recording whose process is dead and that are still RUNNING",
)
def sync(folder: Path | None, tracking_uri: str | None, end_stale: bool) -> None:
    """Send what earlier runs could not send, each value once.

    FOLDER is the spool; the default is .mlflow_dynamics. Its content is not trusted: records and credentials go only to
    the store that you name, or to MLflow's own. Runs of another store are counted and not sent.
    """
    from mlflow_dynamics.tracking.sync import SyncedRun, sync

    def tell(run: SyncedRun) -> None:
        if run.tried and not (run.running and run.sent == 0 and run.reason is None):
            rest = f", {run.left} left" if run.left else ""
            end = ", ended as KILLED" if run.ended else ""
            reason = f" ({run.reason})" if run.reason else ""
            _say(f"{run.run_id or run.folder.name}: {run.sent} records sent{end}{rest}{reason}")

    runs = sync(folder, tracking_uri=tracking_uri, end_stale=end_stale, tell=tell)
    for reason, count in Counter(run.reason for run in runs if not run.tried).items():
        _say(f"Not tried: {count} runs ({reason})")
    running = sum(run.running for run in runs)
    if running:
        _say(f"Left RUNNING by a process that is dead: {running} runs; `sync --end-stale` ends them.")
    if not runs:
        click.echo("Nothing is waiting to be sent.")
    if any(run.left or run.reason for run in runs):
        sys.exit(EXIT_UNSENT)


def _say(line: str) -> None:
    """Print a line that quotes text written by others, without control characters that would steer a terminal."""
    click.echo(printable(line, limit=len(line)))


@commands.command(
    short_help="Run any training script, unmodified, its dynamics recorded.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--on-sigterm",
    type=click.Choice(["end"]),
    help="end the run as KILLED before SIGTERM or SIGHUP ends the script  [default: leave signals alone]",
)
@click.option(
    "--record-loop",
    "loop_log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="for a bug report, also write which batch was drawn and which step made when, without data",
)
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as for python -m")
@click.argument("script", shell_complete=file_of)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    script: str, arguments: tuple[str, ...], module: bool, on_sigterm: OnSigterm, loop_log: Path | None
) -> Callable[[], None]:
    """Run any unmodified training SCRIPT with its own ARGUMENTS, and record its dynamics.

    As with `python`, SCRIPT is a file, a folder or an archive with a `__main__.py`, or a module's name after -m.
    Several processes are started by `torchrun --no-python --nproc-per-node 2 mlflow-dynamics run SCRIPT`.
    """
    if not (module or os.path.exists(script)):  # noqa: PTH110 - Path.exists raises if the name is too long
        raise click.UsageError(
            f"There is no script {script!r} in this folder; a module's name is given after -m."
        )
    from mlflow_dynamics.autologging import run_script

    if loop_log is not None:
        _write(loop_log, b"")
    return functools.partial(
        run_script, script, list(arguments), module=module, on_sigterm=on_sigterm, loop_log=loop_log
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A mistake of the user ends in one sentence and exit status 2.

    A script under `run` ends as it would without us: its errors and interrupts are passed on unchanged.
    """
    try:
        script = commands.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except (DynamicsError, ImportError) as error:
        reason = error if isinstance(error, DynamicsError) else extras.unusable(error)
        click.echo(f"Error: {reason}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    if callable(script):
        script()


if __name__ == "__main__":
    main()
