"""Wrong answers of a server, for every call that recording, reading and sending make."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import strategies as st
from tracking_server import Asked, Lie

CALLS = (
    "/experiments/get-by-name",
    "/experiments/get?",
    "/experiments/create",
    "/experiments/set-experiment-tag",
    "/runs/create",
    "/runs/get?",
    "/runs/search",
    "/runs/log-batch",
    "/runs/update",
    "/metrics/get-history",
    "/mlflow-artifacts/artifacts?",
    "/mlflow-artifacts/artifacts/",
)
"""Part of the path of each call."""

FOREIGN = "0123456789abcdef0123456789abcdef"
IDS = ("", " ", ".", "..", "../..", "/etc", "a/b", "a\nb", "\0", "x" * 65, "local-1", "é", FOREIGN)
LOGIN = Lie(body=b"<html>Please log in.</html>", headers={"Content-Type": "text/html"})
STATUSES = (200, 201, 204, 301, 302, 303, 307, 308, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 504)


def run_answer(run_id: str, *, experiment_id: str = "0", artifact_uri: str = "mlflow-artifacts:/0") -> bytes:
    """What `runs/create` and `runs/get` answer, of whichever run."""
    info = {
        "run_id": run_id,
        "run_uuid": run_id,
        "experiment_id": experiment_id,
        "artifact_uri": artifact_uri,
        "status": "RUNNING",
        "start_time": "1",
        "lifecycle_stage": "active",
    }
    return json.dumps({"run": {"info": info, "data": {}, "inputs": {}}}).encode()


def bodies(outside: Path) -> st.SearchStrategy[bytes]:
    """Of any form; `outside` is a folder that nobody has to write to."""
    places = [
        str(outside),
        outside.as_uri(),
        f"{outside}/../{FOREIGN}/artifacts",
        f"{outside}/{FOREIGN}#/..",
        f"FILE://{outside}/{FOREIGN}",
        "runs:/x",
        "mlruns/0",
    ]
    pages = [
        b"",
        b" \n",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"<html>Please log in.</html>",
        b"[" * 200_000,
        b'{"run": ' * 10_000,
        b'{"run": null}',
        b'{"run": {"info": {}}}',
        b'{"run": {"info": {"status": "x", "start_time": "soon"}}}',
        b'{"runs": [{}]}',
        b'{"experiment": {}}',
        b'{"experiment": {"experiment_id": ".."}}',
        b'{"metrics": [{"key": "train/loss", "value": "abc", "step": "1e99"}]}',
        b'{"files": [{"path": "../../x", "is_dir": false}]}',
        b'{"files": 5}',
        b'{"error_code": ["x"], "message": {}}',
        b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}',
        b"\xff\xfe\x00",
        *(run_answer(run_id) for run_id in IDS),
        *(run_answer(FOREIGN, artifact_uri=place) for place in places),
        run_answer(FOREIGN, experiment_id=".."),
    ]
    return st.one_of(st.sampled_from(pages), st.binary(max_size=40))


def lies(outside: Path, elsewhere: str) -> st.SearchStrategy[Lie]:
    """Of any status, body, length, header and (short) delay; `elsewhere` is another server."""
    headers = st.sampled_from(
        [
            {"Location": f"{elsewhere}/login"},
            {"Location": "//[", "Content-Type": "text/html; charset=none"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            {"Content-Length": "100000"},
            {"Content-Length": "1"},
            {"Content-Length": "-1"},
            {"Transfer-Encoding": "chunked"},
            {"Retry-After": "3600"},
            {"Set-Cookie": "a=b", "WWW-Authenticate": "Basic"},
            {},
        ]
    )
    return st.builds(
        Lie,
        status=st.sampled_from(STATUSES),
        headers=headers,
        body=bodies(outside),
        forwarded=st.booleans(),
        delay_s=st.sampled_from([0, 0, 0.05]),
    )


def told(answers: Mapping[str, Lie]) -> Callable[[Asked], Lie | None]:
    """For `FaultyProxy.lies`: each call's own lie, by a part of its path."""
    return lambda asked: next((lie for call, lie in answers.items() if call in asked.path), None)
