"""Of several claimants one has the claim, and a dead owner does not keep it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking import claims as module
from mlflow_dynamics.tracking.claims import TAG_CLAIM, Claim, Watch, claims, held, open_to_claims


def claimant() -> str:
    run_id = MlflowClient().create_run("0").info.run_id
    open_to_claims(run_id)
    return str(run_id)


def tags(run_id: str) -> dict[str, str]:
    return {key: value for key, value in MlflowClient().get_run(run_id).data.tags.items() if TAG_CLAIM in key}


def test_one_of_two_has_the_claim_until_it_is_given_up() -> None:
    first, second = claimant(), claimant()
    with (
        held("0", first, "cell", dead=frozenset()) as mine,
        held("0", second, "cell", dead=frozenset()) as other,
    ):
        assert mine is not None
        assert other is None
        with held("0", second, "another", dead=frozenset()) as another:
            assert another is not None
        assert [(one.run_id, one.what, one.number) for one in claims("0")] == [(first, "cell", 1)]
    assert claims("0") == []
    assert tags(first) == tags(second) == {}
    with held("0", second, "cell", dead=frozenset()) as other:
        assert other is not None


def test_of_eight_at_the_same_time_never_more_than_one_has_the_claim_and_each_gets_it_in_the_end() -> None:
    had: list[str] = []
    together: list[int] = []
    holding = threading.Semaphore(1)
    start = threading.Barrier(8)

    def take(run_id: str) -> None:
        start.wait()
        while run_id not in had:
            with held("0", run_id, "cell", dead=frozenset()) as mine:
                if mine is not None:
                    together.append(holding.acquire(blocking=False))
                    time.sleep(0.05)
                    holding.release()
                    had.append(run_id)

    threads = [threading.Thread(target=take, args=(claimant(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(had) == 8
    assert all(together)


def test_who_comes_between_the_two_writes_of_another_waits_for_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither has seen the other when it began; the one that is served first is stopped while it chooses."""
    slow, quick = sorted([claimant(), claimant()])
    seen, write, chosen, go_on = module.claims, module._write, threading.Event(), threading.Event()
    looks = threading.local()

    def look(experiment_id: str) -> list[Claim]:
        looks.count = getattr(looks, "count", 0) + 1
        return [] if looks.count == 1 else seen(experiment_id)

    def stopped(store: object, claim: Claim) -> None:
        if claim.run_id == slow and claim.number:
            chosen.set()
            assert go_on.wait(30)
        write(store, claim)

    monkeypatch.setattr(module, "claims", look)
    monkeypatch.setattr(module, "_write", stopped)
    has: dict[str, bool] = {}

    def take(run_id: str) -> None:
        with held("0", run_id, "cell", dead=frozenset()) as mine:
            has[run_id] = mine is not None
            time.sleep(1)

    threads = [threading.Thread(target=take, args=(run_id,)) for run_id in (slow, quick)]
    threads[0].start()
    assert chosen.wait(30)
    threads[1].start()
    time.sleep(1)
    assert has == {}
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert has == {slow: True, quick: False}


def test_the_owner_shows_that_it_lives_and_what_it_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.2)
    with held("0", claimant(), "cell", dead=frozenset()) as mine:
        assert mine is not None
        (before,) = claims("0")
        mine.count()
        mine.count()
        deadline = time.monotonic() + 10
        while claims("0")[0].done != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        (after,) = claims("0")
        assert after.done == mine.done == 2
        assert after.beat != before.beat
        assert not after.is_gone()


def test_the_claim_of_a_process_that_was_killed_is_free_at_once() -> None:
    run_id = claimant()
    program = (
        f"import os, mlflow; mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})\n"
        "from mlflow_dynamics.tracking.claims import held\n"
        f"with held('0', {run_id!r}, 'cell', dead=frozenset()): print(os.getpid(), flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        process = int(owner.stdout.readline())
        watch = Watch()
        assert watch.dead(claims("0")) == frozenset()
        os.kill(process, signal.SIGKILL)
        owner.wait(30)
    dead = watch.dead(claims("0"))
    assert {claim.what for claim in dead} == {"cell"}
    second = claimant()
    with held("0", second, "cell", dead=frozenset()) as refused:
        assert refused is None
    with held("0", second, "cell", dead=dead) as mine:
        assert mine is not None
    with held("0", run_id, "cell", dead=dead) as again:
        assert again is not None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time passes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_an_owner_elsewhere_is_dead_when_its_claim_has_not_changed_for_a_minute(
    clock: Callable[[float], None],
) -> None:
    watch = Watch()
    away = Claim("run", "cell", number=1, beat=1, place="elsewhere", process="1 2")
    for _ in range(7):
        assert watch.dead([away]) == frozenset()
        clock(9.0)
    assert watch.dead([away]) == {away}
    assert watch.dead([replace(away, beat=2)]) == frozenset()


def test_a_time_in_which_nobody_could_look_does_not_make_an_owner_dead(
    clock: Callable[[float], None],
) -> None:
    watch = Watch()
    away = Claim("run", "cell", number=1, place="elsewhere", process="1 2")
    watch.dead([away])
    clock(3600.0)
    assert watch.dead([away]) == frozenset()


@pytest.mark.parametrize(
    "value", ["", "5", "[]", '{"number": "1"}', '{"nothing": 1}', '{"place": 5}', "[" * 9999]
)
def test_a_tag_that_is_no_claim_is_none(value: str) -> None:
    run_id = claimant()
    MlflowClient().set_tag(run_id, f"{TAG_CLAIM}cell", value)
    assert claims("0") == []


def test_a_claim_that_the_store_cannot_take_is_said() -> None:
    with (
        pytest.raises(TrackingError, match="What is trained at this moment cannot be asked of MLflow"),
        held("0", "absent", "cell", dead=frozenset()),
    ):
        pass
