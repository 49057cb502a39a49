"""A training that its own code ends in the middle of the fourth epoch.

python exiting_training.py RECORDER ENDING [URI]: RECORDER is "autolog", "track", "open" (a tracker that is not closed),
"closing" (a tracker that is being closed when the signal comes) or "none". ENDING is "error", "interrupt", "raise" (a
SystemExit), a signal's name, "break" or an exit status. The environment variable ON_SIGTERM sets the recorder's
argument `on_sigterm`.
"""

import os
import signal
import sys
import threading
import time

import mlflow
from faulty_training import BATCHES, loader, network, train

import mlflow_dynamics

COMPLETE = 3


class Ending:
    """Ends the training at the tenth batch of its fourth pass over the data."""

    def __init__(self, ending: str) -> None:
        self.batches = loader()
        self.drawn = 0
        self.ending = ending

    def __iter__(self):  # type: ignore[no-untyped-def]
        for batch in self.batches:
            self.drawn += 1
            if self.drawn == COMPLETE * BATCHES + 10:
                if self.ending == "error":
                    raise ValueError("the user's own")
                if self.ending == "interrupt":
                    raise KeyboardInterrupt
                if self.ending == "raise":
                    raise SystemExit(3)
                if self.ending == "break":
                    return
                if self.ending.startswith("SIG"):
                    os.kill(os.getpid(), getattr(signal, self.ending))
                    continue  # of a handler that returns
                sys.exit(int(self.ending))
            yield batch


def main(recorder: str, ending: str) -> None:
    batches = Ending(ending)
    on_sigterm = os.environ.get("ON_SIGTERM")
    if recorder == "autolog":
        mlflow_dynamics.autolog(on_sigterm=on_sigterm)
    model = network()
    if recorder == "track":
        with mlflow_dynamics.track(model) as tracker:
            train(model, batches, epochs=COMPLETE + 1, tracker=tracker)  # type: ignore[arg-type]
    elif recorder == "open":
        tracker = mlflow_dynamics.track(model, on_sigterm=on_sigterm)
        train(model, batches, epochs=COMPLETE + 1, tracker=tracker)  # type: ignore[arg-type]
    elif recorder == "closing":
        tracker = mlflow_dynamics.track(model, on_sigterm=on_sigterm)
        train(model, loader(), epochs=COMPLETE, tracker=tracker)
        threading.Timer(0.05, os.kill, (os.getpid(), getattr(signal, ending))).start()
        tracker.close()
        time.sleep(10)
    else:
        train(model, batches, epochs=COMPLETE + 1)  # type: ignore[arg-type]


if __name__ == "__main__":
    if len(sys.argv) > 3:
        mlflow.set_tracking_uri(sys.argv[3])
    main(sys.argv[1], sys.argv[2])
