"""A process that records epochs until it is killed: python recording_process.py URI RUN_ID SPOOL FIRST EPOCHS.

It prints the number of each epoch as soon as the writer has it. If RUN_ID is "new", `open_run` opens the run.
"""

import sys
from pathlib import Path

import mlflow
from tracking_records import layers, write_epoch

from mlflow_dynamics.tracking import RunWriter, end_run, open_run

uri, run_id, spool, first, epochs = sys.argv[1:]
mlflow.set_tracking_uri(uri)
owned = run_id == "new"
if owned:
    run_id, owned = open_run(experiment_name="killed", spool_dir=Path(spool))
writer = RunWriter(run_id, spool_dir=Path(spool)).start()
writer.write_layers(layers())
print(run_id, flush=True)
for epoch in range(int(first), int(epochs)):
    write_epoch(writer, epoch)
    print(epoch, flush=True)
if owned:
    end_run(writer, "FINISHED", 60)
else:
    writer.close(60)
