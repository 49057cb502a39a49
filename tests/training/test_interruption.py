"""After a training was interrupted, signals are handled as before."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mlflow_dynamics.training.interruption import ignore_interrupts, terminate_as_interrupt


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Iterator[None]:
    """A shell that runs the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def left_by(error: BaseException) -> None:
    with terminate_as_interrupt():
        ignore_interrupts()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_after_an_interrupted_training_ctrl_c_works_again(error: type[BaseException]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error):
        left_by(error())
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
