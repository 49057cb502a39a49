"""Starts a real MLflow server in its own process, and a proxy before it that injects faults on real sockets."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from waiting import wait_until


class OwnPort:
    """A port of the loopback address that no other process is given until `close`.

    A server that listens on the port must set SO_REUSEADDR, as servers do. While no server listens, connections are
    refused.
    """

    def __init__(self) -> None:
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.number = int(self._held.getsockname()[1])

    def close(self) -> None:
        self._held.close()


class MlflowServer:
    """`mlflow server` on the loopback address, in a `with` block. `kill` is kill -9 of the whole process group.

    Args:
        folder: the folder of the server's files.
        empty_store: an empty SQLite store, of which the server uses a copy; None means the store that `folder` holds.
        backend: the URI of another store.
        app: the plug-in that the server runs in place of its own application, such as "basic-auth".
        environment: further variables of the server's environment.
    """

    def __init__(
        self,
        folder: Path,
        empty_store: Path | None = None,
        *,
        backend: str | None = None,
        app: str | None = None,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if empty_store is not None:
            shutil.copy(empty_store, folder / "mlflow.db")
            with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
                database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")
        self.backend = backend or f"sqlite:///{folder}/mlflow.db"
        self.app = app
        self.environment = environment
        self._port = OwnPort()
        self.port = self._port.number
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._port.close()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.backend, "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += [] if self.app is None else ["--app-name", self.app]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self._wait_until_healthy()

    def kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            wait_until(lambda: not self._answers())  # the forks of `python` end after `python` itself

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            if self._answers():
                return
            time.sleep(0.1)
        raise AssertionError(f"the MLflow server at {self.uri} did not come up")

    def _answers(self) -> bool:
        with (
            suppress(OSError, http.client.HTTPException),
            closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)) as connection,
        ):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False


class Asked(NamedTuple):
    """A request as it arrives."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Lie:
    """An answer that the proxy gives in place of the server.

    Attributes:
        status, headers, body: the answer. The headers may hold a wrong Content-Length.
        forwarded: whether the real server gets the request all the same. The server's answer is thrown away.
        delay_s: seconds before the answer.
        drip_s: seconds between two bytes of the body; 0 sends the body at once.
        altered: turns the content of the real server's answer into the content that is sent. The status is the real
            server's, and all other attributes are ignored.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    forwarded: bool = False
    delay_s: float = 0.0
    drip_s: float = 0.0
    altered: Callable[[bytes], bytes] | None = None


class FaultyProxy:
    """Forwards requests to a real server, or misbehaves as `fault` says.

    Attributes:
        fault: None forwards. An integer is the status of the answer. "garbage" answers 200 without JSON. "hang" never
            answers. "lose" forwards the request, and drops the connection instead of passing the answer on. "late"
            forwards the request, and passes the answer on after `delay_s` seconds.
        faulty_paths: the fault affects only paths that contain this text.
        lies: request -> the `Lie` with which it is answered, or None for the real answer.
        requests: the number of requests so far.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self._port = OwnPort()
        self.port = self._port.number
        self.uri = f"http://127.0.0.1:{self.port}"
        self.fault: int | str | None = None
        self.faulty_paths = ""
        self.lies: Callable[[Asked], Lie | None] = lambda asked: None
        self.delay_s = 30.0
        self.requests = 0
        self._release = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.listen()

    def listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._release.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self) -> None:
        """Stop listening, until `listen` is called, which uses the same port."""
        self._release.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Stop listening for good."""
        self.refuse()
        self._port.close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests += 1
        lie = self.lies(Asked(request.command, request.path, dict(request.headers.items()), body))
        fault = self.fault if self.faulty_paths in request.path else None
        request.close_connection = True
        if fault == "hang":
            self._release.wait(120)
            return
        if lie is not None and not (lie.forwarded or lie.altered):
            self._tell(request, lie)
            return
        if isinstance(fault, int):
            self._answer(request, fault, b"injected fault")
            return
        if fault == "garbage":
            self._answer(request, 200, b"<html>This is not MLflow.</html>")
            return
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)) as upstream:
                headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
                upstream.request(request.command, request.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
        except (OSError, http.client.HTTPException):
            return
        if lie is not None and lie.altered is not None:
            content = lie.altered(content)
        elif lie is not None:
            self._tell(request, lie)
            return
        if fault == "late":
            self._release.wait(self.delay_s)
        if fault != "lose":
            self._answer(request, answer.status, content, answer.getheader("Content-Type"))

    @staticmethod
    def _tell(request: BaseHTTPRequestHandler, lie: Lie) -> None:
        time.sleep(lie.delay_s)
        try:
            request.send_response(lie.status)
            for name, value in ({"Content-Length": str(len(lie.body))} | dict(lie.headers)).items():
                request.send_header(name, value)
            request.end_headers()
            for byte in lie.body if lie.drip_s else ():
                request.wfile.write(bytes([byte]))
                request.wfile.flush()
                time.sleep(lie.drip_s)
            if not lie.drip_s:
                request.wfile.write(lie.body)
        except OSError:
            pass

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str | None = "text/html"
    ) -> None:
        try:
            request.send_response(status)
            request.send_header("Content-Type", kind or "application/json")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:
            pass
