"""The documented dependencies are those of pyproject.toml, and doors that should be closed are."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "mlflow_dynamics/training"
SOURCES = sorted((ROOT / "mlflow_dynamics").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
"""Extra -> what it asks for; the core's under no name."""


def test_the_documented_dependencies_are_those_of_the_project() -> None:
    rows = re.findall(
        r"^\| (\S+) \| `([^`]+)` \| (.+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.M
    )
    assert [f"{name}{versions}" for name, versions, _ in rows] == [
        *DECLARED[""],
        *DECLARED["report"],
        *DECLARED["train"],
        *DECLARED["ray"],
    ]


MODULES = {
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "protobuf": "google",
    "scikit-learn": "sklearn",
    "vl-convert-python": "vl_convert",
}
"""A package -> its module, where the two have other names."""

PLACES = {
    "report": {"evaluation/figure.py", "report/artifacts.py", "report/bundle.py", "report/comparison.py",
               "report/figures.py", "report/page.py"},
    "train": {f"training/{path.relative_to(TRAINING)}" for path in TRAINING.rglob("*.py")},
    "ray": {"training/on_ray.py"},
    "lightning": {"integrations/lightning.py"},
    "transformers": {"integrations/transformers.py"},
}  # fmt: skip
"""Extra -> the modules that only those import who have it."""


def modules_of(extra: str) -> set[str]:
    """What the packages that an extra asks for, or the core, are imported as."""
    names = [re.split(r"[<>=\[]", one)[0].lower().replace("_", "-") for one in DECLARED[extra]]
    return {MODULES.get(name, name) for name in names}


def imported_by(path: Path) -> set[str]:
    """The top-level modules of others that a module imports, wherever in it; but for type checkers alone."""
    found: set[str] = set()
    ahead: list[ast.AST] = [ast.parse(path.read_text())]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            ahead += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
        ahead += ast.iter_child_nodes(node)
    return found - sys.stdlib_module_names - {"mlflow_dynamics", "__future__", "_typeshed"}


@pytest.mark.parametrize("module", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_module_imports_is_declared_where_it_is_used(module: Path) -> None:
    place = module.relative_to(ROOT / "mlflow_dynamics").as_posix()
    allowed = modules_of("").union(*(modules_of(extra) for extra in PLACES if place in PLACES[extra]))
    # The drawing process begins where the extra may be missing, and imports it last of all.
    allowed |= {"vl_convert"} if place == "report/drawing_process.py" else set()
    assert imported_by(module) <= allowed


@pytest.mark.parametrize("extra", ["", "report", "train", "ray"])
def test_what_is_declared_is_imported(extra: str) -> None:
    used = set().union(*(imported_by(module) for module in SOURCES))
    assert modules_of(extra) <= used


OPENED = {"as_main.py": ["exec"]}
"""What must be: `mlflow-dynamics run` runs the user's own script."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def open_doors(source: str) -> list[str]:
    """What loads pickles, calls a shell, evaluates text or listens for connections in a module's source."""
    found = []
    for name, call in calls(ast.parse(source)):
        given = keywords(call)
        last = name.rpartition(".")[2]
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(name)
        constant = call.args and isinstance(call.args[0], ast.Constant)
        if name in ("eval", "exec") and not constant:
            found.append(name)
        if name in ("os.system", "os.popen") or given.get("shell") == "True":
            found.append(name)
        if re.fullmatch(r"(pickle|cloudpickle|dill|joblib|marshal|shelve)\.(load|loads|open)", name):
            found.append(name)
        if last in ("read_pickle", "Unpickler", "unsafe_load") or given.get("allow_pickle") == "True":
            found.append(name)
        if last in (
            "create_server",
            "HTTPServer",
            "ThreadingHTTPServer",
            "TCPServer",
            "start_server",
            "listen",
        ):
            found.append(name)
    return found


@pytest.mark.parametrize("module", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_loads_a_pickle_calls_a_shell_or_listens(module: Path) -> None:
    assert open_doors(module.read_text()) == OPENED.get(module.name, [])


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
        "exec(text)",
        "ThreadingHTTPServer(('', 80), Handler)",
        "socket.create_server(('', 80))",
    ],
)
def test_the_test_above_can_fail(source: str) -> None:
    assert open_doors(source)


def test_what_the_tests_start_listens_on_the_loopback_address_alone() -> None:
    server = (ROOT / "tests/tracking_server.py").read_text()
    assert '"--host", "127.0.0.1"' in server
    for path in [
        *SOURCES,
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
        ROOT / "MLproject",
    ]:
        addresses = re.findall(r"\b(?:0\.0\.0\.0|INADDR_ANY)\b", path.read_text())
        assert addresses == [] or path == Path(__file__), path


def test_the_project_passes_parameters_to_a_shell_only_through_mlflow_which_quotes_them() -> None:
    from mlflow.projects._project_spec import EntryPoint

    parameters = {"model": {"type": "string", "default": "resnet20"}}
    entry = EntryPoint("main", parameters, "python -m mlflow_dynamics.cli train --model {model}")
    command = entry.compute_command({"model": "a; touch owned $(id) `id`"}, None)
    assert command.endswith("--model 'a; touch owned $(id) `id`'")
