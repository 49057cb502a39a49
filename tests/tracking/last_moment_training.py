"""Trainings whose run begins or ends with their process.

python last_moment_training.py exit: trains one epoch, which is recorded while Python exits. From Python 3.12 on, no
thread can be started then. python last_moment_training.py STATUS: a child process trains, and ends with this exit
status or, for "error", with an exception.
"""

import atexit
import multiprocessing
import sys
import threading

from faulty_training import loader, network, train

import mlflow_dynamics

EPOCHS = 3


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def train_in_child(ending: str) -> None:
    mlflow_dynamics.autolog()
    train(network(), loader(), epochs=EPOCHS)
    if ending == "error":
        raise ValueError("the user's own")
    sys.exit(int(ending))


if __name__ == "__main__":
    if sys.argv[1] == "exit":
        mlflow_dynamics.autolog()
        train(network(), loader(), epochs=1)
        atexit.register(setattr, threading.Thread, "start", refuse)
    else:
        child = multiprocessing.get_context("spawn").Process(target=train_in_child, args=(sys.argv[1],))
        child.start()
        child.join()
