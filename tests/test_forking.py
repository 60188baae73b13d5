"""Work spread over forked processes: order, deaths, and randomness that is never used twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nst.engines.base import Cipher, PreparedInput
from nst.engines.concrete import client
from nst.forking import PIPE_BYTES, spread
from nst.pictures.picture import Picture
from tests.toy import TOY_SIZE, encrypt


def process_and_item() -> Callable[[int], bytes]:
    return lambda item: f"{os.getpid()} {item}".encode()


def test_results_come_in_order_from_several_processes() -> None:
    out = [line.decode().split() for line in spread(range(7), process_and_item, 3)]
    assert [int(item) for _, item in out] == list(range(7))
    workers = {int(process) for process, _ in out}
    assert len(workers) == 3 and os.getpid() not in workers


def test_results_larger_than_a_pipe() -> None:
    out = spread(range(6), lambda: lambda item: bytes([item]) * 300_000, 3)
    assert list(out) == [bytes([item]) * 300_000 for item in range(6)]


@pytest.mark.parametrize("count", [0, 1])
def test_little_work_stays_in_this_process(count: int) -> None:
    out = spread(range(count), process_and_item, 8)
    assert list(out) == [f"{os.getpid()} {item}".encode() for item in range(count)]


def test_a_process_that_dies_leaves_its_share_to_this_one() -> None:
    here = os.getpid()

    def dies_at_four() -> Callable[[int], bytes]:
        def work(item: int) -> bytes:
            if item == 4 and os.getpid() != here:
                os.kill(os.getpid(), 9)
            return bytes([item])

        return work

    assert list(spread(range(8), dies_at_four, 2)) == [bytes([item]) for item in range(8)]


def test_what_fails_in_a_process_is_raised_here() -> None:
    def refuses() -> Callable[[int], bytes]:
        def work(item: int) -> bytes:
            raise ValueError(f"no {item}")

        return work

    with pytest.raises(ValueError, match="no 0"):
        list(spread(range(4), refuses, 2))


def test_no_process_works_on_when_the_rest_is_not_wanted() -> None:
    out = spread(range(10**6), process_and_item, 2)
    workers = {int(next(out).split()[0]) for _ in range(2)}
    out.close()
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_processes_wait_for_who_takes_their_results(tmp_path: Path) -> None:
    def counts() -> Callable[[int], bytes]:
        def work(item: int) -> bytes:
            (tmp_path / str(item)).touch()
            return bytes(PIPE_BYTES // 4)

        return work

    out = spread(range(100), counts, 2)
    next(out)
    time.sleep(1)
    # Both have filled their pipes, and each has one more in its hands.
    assert 4 <= len(list(tmp_path.iterdir())) <= 12
    assert len(list(out)) == 99


def test_no_process_repeats_the_randomness_of_another(
    cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = PreparedInput(Picture(np.zeros((3, TOY_SIZE, TOY_SIZE), np.float32)), "style")
    seen: set[bytes] = set()
    for processes in (4, 4, 1):
        monkeypatch.setattr(client, "cores", lambda processes=processes: processes)
        envelope = encrypt(cipher, blank)
        # Equal rows: their ciphertexts differ by their randomness alone.
        seen |= set(envelope.parts)
    assert len(seen) == 3 * len(envelope.parts)
