"""A training that the user's own code ends in the middle of its fourth epoch.

python exiting_training.py RECORDER ENDING [URI]: RECORDER is "autolog", "track" or "none"; ENDING is "error",
"interrupt" or an exit status. Prints the losses of the complete epochs.
"""

import sys

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
                sys.exit(int(self.ending))
            yield batch


def main(recorder: str, ending: str) -> None:
    batches = Ending(ending)
    if recorder == "autolog":
        mlflow_dynamics.autolog()
    model = network()
    if recorder == "track":
        with mlflow_dynamics.track(model) as tracker:
            train(model, batches, epochs=COMPLETE + 1, tracker=tracker)  # type: ignore[arg-type]
    else:
        train(model, batches, epochs=COMPLETE + 1)  # type: ignore[arg-type]


if __name__ == "__main__":
    if len(sys.argv) > 3:
        mlflow.set_tracking_uri(sys.argv[3])
    main(sys.argv[1], sys.argv[2])
