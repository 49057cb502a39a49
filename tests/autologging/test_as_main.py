"""A script under `mlflow-dynamics run` is what it is under `python`: each way beside plain Python, as processes."""

from __future__ import annotations

import os
import py_compile
import signal
import subprocess
import zipfile
from pathlib import Path

import mlflow
import pytest
from torchrun import launch
from warm_python import COLD

from mlflow_dynamics.tracking import load_activations

ROOT = Path(__file__).parents[2]

LOOK = """
import sys, __main__
def annotated(value: "text" = 1) -> int: ...
kind = type(__loader__).__name__
print(__file__, __name__, __package__, __spec__ and __spec__.name, __cached__, kind, sorted(globals()))
print(sys.argv, sys.path[0], annotated.__annotations__, globals() is vars(__main__), annotated.__module__)
import os
os.chdir("/")
print(open(__file__).read() == open("{file}").read() if os.path.exists(__file__) else "not a file")
import warnings
def warned():
    for level in (1, 2, 3):
        warnings.warn(f"level {level}", stacklevel=level)
warned()
import atexit
atexit.register(lambda: print(sys.argv, __main__.kind))
"""

SPAWNED = """
import multiprocessing
class Answer: pass
def work(answers):
    answers.put((__name__, Answer))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=work, args=(answers,))
    process.start()
    print(answers.get())
    process.join()
"""

FAILING_DATA = """
import torch, signal
from torch.utils.data import DataLoader

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return fail()

def draw():
    return next(iter(DataLoader(Data())))

"""

FILES = {
    "look.py": LOOK,
    "package/__init__.py": "",
    "package/__main__.py": LOOK,
    "package/part.py": LOOK,
    "package/beside.py": "value = 3",
    "package/relative.py": "from .beside import value\nprint(value, __package__)\nraise ValueError(value)",
    "names/only.py": "",
    "spawned.py": SPAWNED,
    "uncaught.py": "def inner():\n    1 / 0\n\ninner()",
    "interrupted.py": "raise KeyboardInterrupt",
    "syntax.py": "import sys\nprint('never'\n",
    "imports_syntax.py": "import syntax",
    "chained.py": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('v') from error",
    "hook.py": "import sys\nsys.excepthook = lambda kind, value, traceback: print(kind, traceback.tb_lineno)\n1 / 0",
    "exit.py": "import sys\nsys.exit('why')",
    "raised_exit.py": "raise SystemExit(3)",
    "terminated.py": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "forked.py": "import os, sys\nif os.fork() == 0:\n    sys.exit(4)\nprint(os.wait()[1])",
    "failing_data.py": f"""{FAILING_DATA}
def fail(): raise KeyError("item")
def chained():
    try:
        draw()
    except KeyError as error:
        raise ValueError("chained") from error
try:
    chained()
except ValueError as error:
    first = error
try:
    draw()
except KeyError as error:
    raise ExceptionGroup("several", [first, error])
""",
    "interrupted_data.py": f"{FAILING_DATA}\ndef fail(): signal.raise_signal(signal.SIGINT)\ndraw()",
}

WAYS = [
    "look.py",
    "./look.py",
    "link/to.py",
    "link/../look.py",
    "FOLDER/link/to.py",
    "compiled.pyc",
    "-m look",
    "-m package",
    "-m package.part",
    "./package/",
    "archive.zip",
    "spawned.py",
    "-m spawned",
    "uncaught.py",
    "-m package.relative",
    "interrupted.py",
    "-m interrupted",
    "syntax.py",
    "imports_syntax.py",
    "chained.py",
    "hook.py",
    "exit.py",
    "raised_exit.py",
    "terminated.py",
    "forked.py",
    "failing_data.py",
    "interrupted_data.py",
    "-m missing",
    "-m names",
    "names",
]

UNDER_RUN = """
import ctypes, gc, os, signal
from pathlib import Path
import git, IPython.display  # as MLflow does when a run begins
from mlflow_dynamics import autologging, cli

gc.collect()
gc.freeze()  # else each looks through all of torch as it ends

libc = ctypes.CDLL(None)
libc.on_exit(libc._exit, None)  # Python has ended by then: to take torch's own code down takes a quarter of a second
signal.signal(signal.SIGINT, signal.default_int_handler)
for number, way in enumerate(WAYS):
    if os.fork() == 0:
        os.dup2(os.open(f"{number}.txt", os.O_CREAT | os.O_RDWR), 1)
        os.dup2(1, 2)
        cli.main(["run", *way.split(), "a", "--b", "--", "-m"])
        break
    status = os.waitstatus_to_exitcode(os.wait()[1])
    Path(f"{number}.status").write_text(str(status))
"""
"""Each in a process of its own that has imported torch already, which takes seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for name, source in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source.replace("{file}", str(folder / name)))
    (folder / "link").mkdir()
    (folder / "link" / "to.py").symlink_to("../look.py")
    py_compile.compile(str(folder / "look.py"), cfile=str(folder / "compiled.pyc"))
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.write(folder / "look.py", "__main__.py")
    return folder


def python(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COLD, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=250, check=False,
        # A shell that runs this in the background has it ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.fixture(scope="module")
def under_run(folder: Path) -> dict[str, tuple[int, str]]:
    ways = [way.replace("FOLDER", str(folder)) for way in WAYS]
    done = python("-c", UNDER_RUN.replace("WAYS", repr(ways)), folder=folder)
    assert done.returncode == 0, done.stdout
    return {
        way: (int((folder / f"{number}.status").read_text()), (folder / f"{number}.txt").read_text())
        for number, way in enumerate(WAYS)
    }


@pytest.mark.parametrize("way", WAYS)
def test_a_script_is_run_and_ends_as_under_python(
    way: str, folder: Path, under_run: dict[str, tuple[int, str]]
) -> None:
    plain = python(*way.replace("FOLDER", str(folder)).split(), "a", "--b", "--", "-m", folder=folder)
    status, lines = under_run[way]
    assert lines == plain.stdout
    assert status == plain.returncode
    assert lines or status  # something was compared


def test_the_console_script_ends_as_python_does(folder: Path) -> None:
    script = "import sys; from mlflow_dynamics.cli import main; sys.exit(main())"
    plain = python("interrupted.py", folder=folder)
    ours = python("-c", script, "run", "interrupted.py", folder=folder)
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)


def test_a_script_that_is_not_there_is_one_sentence(folder: Path) -> None:
    ended = python("-m", "mlflow_dynamics.cli", "run", "nowhere.py", folder=folder)
    assert ended.returncode == 2
    assert "Error: There is no script 'nowhere.py' in this folder" in ended.stdout


DISTRIBUTED = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("gloo")
torch.manual_seed(0)
data = TensorDataset(torch.randn(256, 6), torch.randint(0, 3, (256,)))
loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(3):
    for images, targets in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
with open(f"{sys.argv[1]}/run {dist.get_rank()}.json", "w") as file:
    json.dump([__name__, __file__, sys.argv], file)
dist.destroy_process_group()
"""


def test_each_process_of_torchrun_runs_the_script_as_python_does(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # of another store
    folder = tmp_path / "job"
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(DISTRIBUTED)
    job = launch(script, folder, empty_store, "--lr", "1", under_run=True)
    assert job.code == 0, job.lines
    for rank in range(2):
        own = [str(script), str(folder), "--lr", "1"]
        assert job.told("run", rank) == ["__main__", str(script), own]
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    activations = load_activations(run.info.run_id, layers=[0])
    assert activations.num_rows == 3 * 32
