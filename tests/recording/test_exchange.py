"""The exchange between ranks over a real store, without a training around it."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from torch import distributed

from mlflow_dynamics.recording import distributed as exchanging
from mlflow_dynamics.recording.distributed import Exchange
from mlflow_dynamics.recording.pending_epoch import pooled


@pytest.fixture
def store() -> distributed.TCPStore:
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))


@pytest.fixture
def ranks(store: distributed.TCPStore) -> tuple[Exchange, Exchange]:
    return Exchange(store, "training", (0, 1), 0), Exchange(store, "training", (0, 1), 1)


def part(values: np.ndarray) -> np.ndarray:
    """The sums of (steps, layers, samples) as the hooks make them."""
    mean, variance = values.mean(axis=-1), values.var(axis=-1)
    return np.stack([np.ones_like(mean), mean, variance, mean * mean], axis=-1).astype(np.float32)


def keys(store: distributed.TCPStore) -> list[str]:
    return sorted(key for key in store.list_keys() if key.startswith("training/"))


def test_two_parts_have_the_moments_of_their_union(ranks: tuple[Exchange, Exchange]) -> None:
    first, second = ranks
    random = np.random.default_rng(0)
    ours, theirs = random.normal(100, 1, (7, 3, 50)), random.normal(100.5, 2, (7, 3, 50))
    second.pool(0, np.arange(7), part(theirs), {"loss": (30.0, 10), "validation": (4.0, 2)})
    sums, averages = first.pool(0, np.arange(7), part(ours), {"loss": (5.0, 5)})
    union = np.concatenate([ours, theirs], axis=-1)
    mean, std = pooled(sums)
    np.testing.assert_allclose(mean, union.mean(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(std, union.std(axis=-1), rtol=1e-4)
    assert averages == {"loss": (35.0, 15), "validation": (4.0, 2)}


def test_a_part_of_many_pieces_arrives_and_nothing_stays_in_the_store(
    ranks: tuple[Exchange, Exchange], store: distributed.TCPStore
) -> None:
    first, second = ranks
    before = keys(store)
    sums = part(np.random.default_rng(0).normal(size=(3000, 256, 2)))
    assert sums.nbytes > 2 * exchanging.VALUE_BYTES
    second.pool(4, np.arange(3000), sums, {})
    total, _ = first.pool(4, np.arange(3000), sums, {})
    np.testing.assert_allclose(total, 2 * sums, rtol=1e-5)
    assert keys(store) == before


def test_a_part_that_does_not_come_is_waited_for_once_and_told_once(
    ranks: tuple[Exchange, Exchange], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exchanging, "PART_TIMEOUT_S", 0.3)
    sums = part(np.ones((2, 1, 4)))
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            began = time.monotonic()
            total, _ = ranks[0].pool(epoch, np.arange(2), sums, {})
            assert (time.monotonic() - began > 0.3) == (epoch == 0)
            np.testing.assert_array_equal(total, sums)
    (record,) = caplog.records
    assert "missing: rank 1 (nothing has come)" in record.getMessage()


def test_a_store_that_has_gone_leaves_the_own_part(caplog: pytest.LogCaptureFixture) -> None:
    gone = distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))
    client = distributed.TCPStore("127.0.0.1", gone.port, is_master=False, timeout=timedelta(seconds=20))
    first, second = (Exchange(client, "training", (0, 1), rank) for rank in (0, 1))
    del gone
    sums = part(np.ones((2, 1, 4)))
    second.pool(0, np.arange(2), sums, {})
    with caplog.at_level(logging.WARNING):
        total, _ = first.pool(0, np.arange(2), sums, {})
        assert first.agree(0, True) is False
    np.testing.assert_array_equal(total, sums)
    assert "missing: rank 1" in caplog.records[0].getMessage()


def test_parts_that_nobody_fetches_do_not_pile_up(
    store: distributed.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "PRESENCE_TIMEOUT_S", 0.1)
    second = Exchange(store, "training", (0, 1), 1)
    second.pool(0, np.arange(2), part(np.ones((2, 1, 4))), {})
    assert keys(store) == ["training/here/1"]  # nobody has said that parts are wanted
    Exchange(store, "training", (0, 1), 0)
    for epoch in range(exchanging.MAX_UNTAKEN + 20):
        second.pool(epoch, np.arange(2), part(np.ones((2, 1, 4))), {})
    assert len(keys(store)) == 2 + 2 * exchanging.MAX_UNTAKEN


def test_all_ranks_stop_or_none_does_whoever_asks_first(
    ranks: tuple[Exchange, Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks
    with ThreadPoolExecutor() as pool:
        early = pool.submit(second.agree, 0, False)
        time.sleep(0.2)
        assert first.agree(0, True) is True
        assert early.result() is True
    monkeypatch.setattr(exchanging, "DECISION_TIMEOUT_S", 0.1)
    assert second.agree(1, False) is False
    assert first.agree(1, True) is False  # too late: the other rank trains on, and would wait for this one
    assert first.agree(2, True) is True
    assert second.agree(2, False) is True


def test_waiting_for_a_part_holds_up_no_answer(
    ranks: tuple[Exchange, Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "PART_TIMEOUT_S", 3.0)
    first, _ = ranks
    waiting = threading.Thread(target=first.pool, args=(0, np.arange(1), part(np.ones((1, 1, 4))), {}))
    waiting.start()
    time.sleep(0.2)
    began = time.monotonic()
    first.agree(0, False)
    assert time.monotonic() - began < 2.5
    waiting.join()
