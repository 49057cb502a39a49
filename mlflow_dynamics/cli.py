"""The console script `mlflow-dynamics`: arguments in, one clear sentence out when they are wrong."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlflow_dynamics import __version__
from mlflow_dynamics.errors import ConfigError, DynamicsError
from mlflow_dynamics.training.config import GridConfig, TrainingConfig

EXIT_BAD_INPUT = 2
EXIT_UNSENT = 3
EXIT_INTERRUPTED = 130


class _Optional(click.ParamType):
    """A value of another type, or the one word that stands for its absence."""

    def __init__(self, kind: type, word: str) -> None:
        self.inner = click.types.convert_type(kind)
        self.word = word
        self.name = f"{kind.__name__}|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or value == self.word:
            return None
        return self.inner.convert(value, param, ctx)


def _options_of(config: Any) -> Callable[[Any], Any]:
    """One option for every field of a configuration, so that the two cannot differ."""

    def decorate(command: Any) -> Any:
        for option in reversed(dataclasses.fields(config)):
            kind = option.metadata.get("kind")
            command = click.option(
                f"--{option.name.replace('_', '-')}",
                type=type(option.default) if kind is None else _Optional(kind, option.metadata["word"]),
                default=option.default if kind is None else option.metadata["word"],
                show_default=True,
                help=option.metadata["help"],
            )(command)
        return command

    return decorate


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


# MLflow passes `-P batch_size=64` on as `--batch_size 64`; with dashes and underscores alike, both spellings are
# taken and a misspelt parameter is answered with its nearest match.
_CONTEXT = {"token_normalize_func": lambda token: token.replace("_", "-"), "max_content_width": 110}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__)
@click.pass_context
def commands(context: click.Context) -> None:
    """See how a network's layers move together while it trains."""
    if context.invoked_subcommand != "run":  # logging in a script is the script's to set up
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("mlflow_dynamics").setLevel(logging.INFO)


@commands.command()
@_options_of(TrainingConfig)
def train(**parameters: Any) -> None:
    """Train one model, its dynamics recorded in an MLflow run."""
    config = TrainingConfig(**parameters)
    from mlflow_dynamics.training.run import train_in_run

    train_in_run(config)


@commands.command()
@_options_of(GridConfig)
def paper(**parameters: Any) -> None:
    """Train the paper's nine combinations as child runs of one run, only what is missing."""
    from mlflow_dynamics.training.grid import paper_cells, train_grid

    train_grid(paper_cells(GridConfig(**parameters)))


@commands.command()
@click.argument("run_id")
@click.option("--signal", help="rms, mean or std  [default: the run's own]")
@click.option("--protocol", help="steps, epochs or depth  [default: the run's own]")
@click.option("--window", type=int, help="training steps  [default: the run's own]")
@click.option("--estimator", help="dfa or hk  [default: the run's own, or the new protocol's]")
@click.option("--uncertainty/--no-uncertainty", default=None, help="also integration's interval and p-values")
@click.option("--log", "name", help="also log the measures beside the originals, as dynamics.NAME/...")
def recompute(run_id: str, name: str | None, **changes: Any) -> None:
    """Measure a recorded run anew, under another protocol, window, signal or estimator."""
    from mlflow_dynamics.recompute import log_recomputed, recompute, settings_of

    given = {key: value for key, value in changes.items() if value is not None}
    if "protocol" in given:
        given.setdefault("estimator", None)
    config = dataclasses.replace(settings_of(run_id), **given)
    epochs = []
    columns = ["integration", "metastability", "synchrony", "stability"]
    if config.uncertainty:
        columns += ["integration_low", "integration_high", "coupling_p", "metastability_p"]
    click.echo("epoch" + "".join(f"{column:>17}" for column in (*columns, "volatility")))
    for epoch in recompute(run_id, config):
        values = [getattr(epoch.measures, column) for column in columns]
        click.echo(f"{epoch.epoch:5d}" + "".join(f"{value:17.6f}" for value in (*values, epoch.volatility)))
        epochs.append(epoch)
    if name is not None:
        log_recomputed(run_id, epochs, name=name)


@commands.command()
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
@click.option("--poll", default=10.0, show_default=True, help="seconds between two looks at a live run")
def watch(run_id: str, stop: bool, stop_before_last_phase: bool, poll: float) -> None:
    """Follow a live run from outside, or look back at one: each epoch and the warning's verdict."""
    from mlflow_dynamics.watching import watch

    click.echo("epoch  stability  volatility  validation accuracy  signal  score  verdict")
    for epoch in watch(run_id, stop=stop, stop_before_last_phase=stop_before_last_phase, poll_s=poll):
        verdict = epoch.verdict
        sentence = verdict.message.partition(": ")[2]
        click.echo(
            f"{verdict.epoch:5d}  {epoch.stability:9.4f}  {epoch.volatility:10.4f}  {epoch.validation_accuracy:19.4f}"
            f"  {verdict.signal:6d}  {verdict.score:5.2f}  {sentence}"
        )


@commands.command()
@click.argument("run_ids", nargs=-1)
@click.option("--experiment", help="compare all runs of this experiment")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="report.html")
def report(run_ids: tuple[str, ...], experiment: str | None, output: Path) -> None:
    """Draw one run's report anew, or compare several runs, as one page that needs no network.

    A comparison's figures are also written beside its page, as OUTPUT-NAME.png (one run's lie in the run).
    RUN_IDS may also be one argument with commas between; "none", as MLproject passes it, is like leaving out.
    """
    run_ids = tuple(one for given in run_ids for one in given.split(",") if one not in ("", "none"))
    experiment = None if experiment == "none" else experiment
    files: dict[Path, bytes] = {}
    if bool(run_ids) == bool(experiment):
        raise click.UsageError("Give either RUN_IDS or --experiment NAME.")
    if len(run_ids) == 1:
        from mlflow_dynamics.recompute import settings_of
        from mlflow_dynamics.report.artifacts import render
        from mlflow_dynamics.report.history import history_of
        from mlflow_dynamics.tracking import names

        history = history_of(run_ids[0], settings_of(run_ids[0]))
        files[output] = render(history, pictures=False)[names.REPORT]
    else:
        from mlflow_dynamics.report.comparison import comparison_page, comparison_pictures, gather

        frame = gather(list(run_ids) or None, experiment=experiment)
        title = "Runs compared" if experiment is None else f"The runs of {experiment}"
        files[output] = comparison_page(frame, title=title).encode()
        for name, png in comparison_pictures(frame).items():
            files[output.with_name(f"{output.stem}-{name}.png")] = png
    for path, content in files.items():
        _write(path, content)
        click.echo(f"Written: {path}")


@commands.command()
@click.option("--traces", type=click.Path(path_type=Path), help="a CSV file of epochs")
@click.option("--experiment", help="or the runs of an MLflow experiment")
@click.option("--filter", "filter_string", default="", help="of these, in MLflow's search syntax")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="also draw a PNG")
def evaluate(traces: Path | None, experiment: str | None, filter_string: str, figure: Path | None) -> None:
    """Compare the early warning with other stopping rules on finished runs."""
    if (traces is None) == (experiment is None):
        raise click.UsageError("Give either --traces FILE or --experiment NAME.")
    from mlflow_dynamics import evaluation

    if traces is not None:
        frame = evaluation.read_traces(traces)
    else:
        frame = evaluation.read_experiment(str(experiment), filter_string)
    click.echo(evaluation.report(frame))
    if figure is not None:
        drawn = io.BytesIO()
        evaluation.figure(frame).save(drawn, format="png")
        _write(figure, drawn.getvalue())


@commands.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def sync(folder: Path | None) -> None:
    """Send what earlier runs could not send, each value once."""
    from mlflow_dynamics.tracking.sync import sync

    runs = sync(folder)
    for run in runs:
        rest = f", {run.left} left" if run.left else ""
        reason = f" ({run.reason})" if run.reason else ""
        click.echo(f"{run.run_id or run.folder.name}: {run.sent} records sent{rest}{reason}")
    if not runs:
        click.echo("Nothing is waiting to be sent.")
    if any(run.left or run.reason for run in runs):
        sys.exit(EXIT_UNSENT)


@commands.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(script: Path, arguments: tuple[str, ...]) -> None:
    """Run any training SCRIPT with its own ARGUMENTS, unmodified, its dynamics recorded."""
    from mlflow_dynamics.autologging import run_script

    run_script(script, list(arguments))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what the user got wrong ends in one sentence and exit status 2."""
    try:
        commands.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except DynamicsError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
