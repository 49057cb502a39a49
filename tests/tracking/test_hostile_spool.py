"""A spool is not trusted: it can neither change a file outside a run's own folder nor send one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.queue_entry import Batch
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.spool import Spool, open_spool
from mlflow_dynamics.tracking.sync import sync, sync_in_background

SECRET = b"-----BEGIN PRIVATE KEY----- 5f1c0a9e77"
DEEP = b"[" * 200_000
TRIES = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Thief:
    """A server that some planted run.json names; it keeps every byte that it is sent."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        thief = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                thief.heard.append(f"{self.command} {self.path}\n{self.headers}".encode() + body)
                self.send_response(200)
                self.end_headers()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def thief() -> Iterator[Thief]:
    running = Thief()
    yield running
    running.server.shutdown()
    running.server.server_close()


class House:
    """A home with a key in it, and a checkout with a spool that a stranger has filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "home" / ".ssh" / "key"
        self.root = folder / "home" / "code" / "repo" / ".mlflow_dynamics"
        for path in (self.key, folder / "home" / ".config" / "file", folder / "home" / "0" / "7" / "file"):
            path.parent.mkdir(parents=True)
            path.write_bytes(SECRET)
            path.chmod(0o600)
        for number in ("00000003", ".00000004"):
            (folder / "home" / number / "artifacts").mkdir(parents=True)
            (folder / "home" / number / "artifacts" / "key").write_bytes(SECRET)
        self.root.mkdir(parents=True)
        self.root.chmod(0o700)

    def snapshot(self, *, without: Path | None = None) -> dict[str, tuple[object, ...]]:
        """Every path's kind, mode, owner, size, content and time, but of what may change: the spool's own listing."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if without is not None and path.is_relative_to(without):
                continue
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = path.readlink()
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            times = None if path == self.root else status.st_mtime_ns
            size = None if path == self.root else status.st_size
            found[str(path)] = (status.st_mode, status.st_uid, size, content, times)
        return found


def plant_fifo(path: Path, house: House) -> None:
    os.mkfifo(path, 0o600)


def plant_socket(path: Path, house: House) -> None:
    if len(os.fsencode(path.name)) > 100:  # none has so long a name
        os.mkfifo(path)
        return
    with socket.socket(socket.AF_UNIX) as one:
        before = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is at most 107 bytes long
        try:
            one.bind(path.name)
        finally:
            os.chdir(before)


def plant_foreign(path: Path, house: House) -> None:
    path.write_bytes(SECRET)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        path.chmod(0o666)


def plant_open(path: Path, house: House) -> None:
    path.mkdir()
    (path / "file").write_bytes(SECRET)
    path.chmod(0o777 | stat.S_ISVTX)


def plant_deep_folders(path: Path, house: House) -> None:
    for _ in range(150):
        path.mkdir()
        path = path / "d"


PLANTS: dict[str, Callable[[Path, House], object]] = {
    "link to a key": lambda path, house: path.symlink_to(house.key),
    "link to a home": lambda path, house: path.symlink_to(house.folder / "home"),
    "relative link": lambda path, house: path.symlink_to("../../../.."),
    "link to nothing": lambda path, house: path.symlink_to(house.folder / "new"),
    "hard link to a key": lambda path, house: path.hardlink_to(house.key),
    "fifo": plant_fifo,
    "socket": plant_socket,
    "foreign": plant_foreign,
    "open": plant_open,
    "deep folders": plant_deep_folders,
}
plants = st.sampled_from(sorted(PLANTS))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metrics", "params", "tags", "status", "run_id", "datasets", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
contents = st.one_of(
    st.sampled_from([DEEP, b"", b"\xff\xfe", b'{"params": [1]}', b'{"tags": {"a": "\\ud800"}}', b"null"]),
    st.just(b'{"metrics": [["a", 1.0, 0, 99999999999999999999999]]}'),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
)
file_names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..")) | st.sampled_from(
    ["..x", "a:b", "a\\b", "\x1b[2J", os.fsdecode(b"\xff"), "²"]
)
numbers = st.sampled_from(["00000000", "00000003", ".00000004", "²", "٣", "7", "9" * 200, "x", "00000012"])
batches = st.one_of(st.none(), st.just("whole"), contents, plants)
records = st.tuples(batches, st.dictionaries(file_names, plants | st.just("whole"), max_size=3))
queues = plants | st.dictionaries(numbers, plants | records, max_size=4)
runs = st.sampled_from(["ours", "ours", "ours", "thief's"]) | contents | plants
others = st.dictionaries(
    st.sampled_from(["lock", "rejected", "notes", ".run.json.abcdefgh", "\x1b[2J"]), plants, max_size=2
)


def plant(path: Path, what: object, house: House, whole: bytes) -> None:
    """Put a plant, given bytes, or (`whole`) what belongs there to a path."""
    if what is None:
        return
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif what == "whole":
        path.write_bytes(whole)
    else:
        with suppress(FileExistsError):
            PLANTS[str(what)](path, house)


def plant_queue(path: Path, queue: object, house: House) -> None:
    if not isinstance(queue, dict):
        plant(path, queue, house, b"")
        return
    path.mkdir()
    for number, record in queue.items():
        if not isinstance(record, tuple):
            plant(path / number, record, house, b"")
            continue
        batch, files = record
        (path / number / "artifacts").mkdir(parents=True)
        plant(path / number / "batch.json", batch, house, Batch(tags={"planted": "1"}).to_json())
        for name, file in files.items():
            plant(path / number / "artifacts" / name, file, house, b"planted")


def sent_to(folder: Path) -> bytes:
    """Every byte of a store."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


PLACES: dict[str, Callable[[str], object]] = {
    "queue": lambda what: what,
    "record": lambda what: {"00000000": what, "00000012": ("whole", {})},
    "batch": lambda what: {"00000000": (what, {}), "00000012": ("whole", {})},
    "file": lambda what: {"00000000": ("whole", {"a.png": what}), "00000012": ("whole", {})},
}


@pytest.mark.parametrize("what", sorted(PLANTS))
def test_no_kind_of_plant_in_no_place_is_followed_or_sent(
    what: str, thief: Thief, store: tuple[str, str, Path]
) -> None:
    for place in PLACES.values():
        check("ours", place(what), {}, "same", False, thief, store)
    check("ours", PLACES["record"]("whole"), {"lock": what}, "same", False, thief, store)


@TRIES
@given(
    run=runs,
    queue=queues,
    other=others,
    name=st.sampled_from(["same", "same", "same.1", "other"]),
    end=st.booleans(),
)
def test_nothing_outside_a_runs_own_folder_changes_and_no_key_leaves(
    run: object,
    queue: object,
    other: dict[str, str],
    name: str,
    end: bool,
    thief: Thief,
    store: tuple[str, str, Path],
) -> None:
    check(run, queue, other, name, end, thief, store)


def check(
    run: object,
    queue: object,
    other: dict[str, str],
    name: str,
    end: bool,
    thief: Thief,
    store: tuple[str, str, Path],
) -> None:
    """Send a planted spool in each way there is, and look at the whole house, the store and the thief."""
    uri, run_id, store_folder = store
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder))
        spool = house.root / name.replace("same", run_id)
        spool.mkdir()
        plant_queue(spool / "queue", queue, house)
        for path, what in other.items():
            plant(spool / path, what, house, b"")
        where = {"ours": uri, "thief's": thief.uri}.get(str(run), "")
        whole = {"schema_version": 1, "tracking_uri": where, "run_id": run_id, "owned": end}
        plant(spool / "run.json", json.dumps(whole).encode() if where else run, house, b"")
        outside, all_of_it = house.snapshot(without=spool), house.snapshot()

        thread = sync_in_background(house.root, own=house.root / "own", tracking_uri=uri)
        if thread is not None:
            thread.join()
        synced = sync(house.root, tracking_uri=uri, end_stale=end)

        assert house.snapshot(without=spool) == outside
        if run != "ours" or name == "other":
            assert house.snapshot() == all_of_it
            assert all(one.sent == 0 for one in synced)
        assert thief.heard == []
        assert SECRET not in sent_to(store_folder)
        # What is there in the end is named, or waits for another store; nothing of it blocks a queue. Where something
        # else lies in place of its lock, nobody can have it: it is left whole.
        again = sync(house.root, tracking_uri=uri)
        assert all(one.reason for one in again if one.tried and one.left)
        if "lock" not in other:
            assert sum(one.left for one in again if one.tried and one.run_id) == 0
        assert house.snapshot(without=spool) == outside


@TRIES
@given(
    what=plants | st.just("whole"),
    where=st.sampled_from(["root", "folder", "run.json", "lock", "queue", "rejected"]),
)
def test_a_run_is_recorded_whatever_lies_where_its_folder_should(
    what: str, where: str, store: tuple[str, str, Path]
) -> None:
    uri, run_id, _ = store
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder))
        spool = house.root / run_id
        if where == "root":
            house.root.rmdir()
            plant(house.root, what, house, DEEP)
        elif where == "folder":
            plant(spool, what, house, DEEP)
        else:
            spool.mkdir()
            plant(spool / where, what, house, DEEP)
        outside = house.snapshot(without=house.root)
        opened = open_spool(house.root, run_id, RunRecord(tracking_uri=uri, run_id=run_id))
        opened.put(Batch(tags={"a": "1"}), {"dynamics/layers.parquet": b"file"})
        (entry,) = [one for one in opened.entries() if one.artifact_paths()]
        assert entry.batch() == Batch(tags={"a": "1"})
        assert entry.read_artifact("dynamics/layers.parquet") == b"file"
        opened.batch_sent(entry)
        opened.artifact_sent(entry, "dynamics/layers.parquet")
        opened.finish(entry)
        assert opened.entries() == []
        opened.close()
        assert house.snapshot(without=house.root) == outside


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> tuple[str, str, Path]:
    """The user's own store, its folder, and a run of it."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(tmp_path / "mlflow.db", folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("planted", artifact_location=f"{folder}/artifacts")
    return uri, str(client.create_run(experiment).info.run_id), folder


def test_what_is_written_is_the_users_alone(store: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run_id, _ = store
    before = os.umask(0)
    try:
        spool = Spool(tmp_path / "spool" / run_id, RunRecord(tracking_uri=uri, run_id=run_id))
        spool.put(Batch(tags={"a": "1"}), {"dynamics/figures/one.png": b"png"})
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [tmp_path / "spool", *(tmp_path / "spool").rglob("*")]
    }
    assert len(modes) == 11
    for path, mode in modes.items():
        assert mode == (0o700 if (tmp_path / path).is_dir() else 0o600), path
    spool.close()


def test_a_folder_that_others_can_write_is_named_with_what_to_do(
    store: tuple[str, str, Path], tmp_path: Path
) -> None:
    uri, run_id, _ = store
    spool = Spool(tmp_path / "spool" / run_id, RunRecord(tracking_uri=uri, run_id=run_id))
    spool.put(Batch(tags={"a": "1"}))
    spool.close()
    for folder in (spool.folder, spool.folder.parent):
        folder.chmod(0o775)
        (left,) = sync(tmp_path / "spool", tracking_uri=uri)
        assert left.reason == (
            f"{folder} is left alone: others can write it; `chmod -R go-w` on it, if what is in it is yours."
        )
    spool.folder.chmod(0o755)
    spool.folder.parent.chmod(0o755)
    (sent,) = sync(tmp_path / "spool", tracking_uri=uri)
    assert (sent.sent, sent.left, sent.reason) == (1, 0, None)


@pytest.mark.parametrize("run_id", ["..", "", ".", "a/../../b", "a" * 80, "a\0"])
def test_a_run_id_is_no_path(run_id: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="must be the id of an MLflow run"):
        open_spool(tmp_path / "spool", run_id, RunRecord(tracking_uri="http://host:1", run_id=run_id))
    assert sorted(tmp_path.rglob("*")) == before
