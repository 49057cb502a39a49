"""The documented dependencies are those of pyproject.toml, and doors that should be closed are."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "mlflow_dynamics").rglob("*.py"))


def test_the_documented_dependencies_are_those_of_the_project() -> None:
    rows = re.findall(
        r"^\| (\S+) \| `([^`]+)` \| (.+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.M
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [f"{name}{versions}" for name, versions, _ in rows] == declared


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
        if name in ("eval", "exec", "os.system", "os.popen") or given.get("shell") == "True":
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
    assert open_doors(module.read_text()) == []


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
