"""Nothing that leaves the client tells a pixel, a name or a byte of the secret key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.client.home import Home, JobBook
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.submit import submit
from jobs.execution.driver import run_job
from jobs.execution.graph import Task
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import EvaluatorLoader
from jobs.storage.records import JobRecord, read_record
from jobs.storage.store import LocalStore, open_store
from nst.architecture import CONTENT, STYLE
from nst.client import SECRET_FILE
from nst.integer import space_to_depth
from nst.levels import QualityLevel
from tests.toy import TOY_P_ERROR, TOY_SIZE, toy_network, toy_weights

NAMES = ("grandmother-in-hospital",)
WINDOW = 24
"""Bytes of a secret that must not turn up; short enough to be met whole, too long for chance."""


class RecordingExecutor(InProcessExecutor):
    """Keeps everything that an actor is ever handed."""

    def __init__(self, evaluator: Any) -> None:
        super().__init__(evaluator)
        self.received: list[bytes] = []

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        self.received += [repr(task).encode(), *inputs]
        super().submit(task, inputs)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, JobBook, Path, list[bytes]]:
    """A job that has run: its home, book and pictures, and all that its actors received."""
    folder = tmp_path_factory.mktemp("private")
    rng = np.random.default_rng(5)
    for side in ("content", "style"):
        (folder / "pairs" / side).mkdir(parents=True)
        for name in NAMES:
            noise = rng.integers(0, 256, (TOY_SIZE, TOY_SIZE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / "pairs" / side / f"{name}.png")
    weights = toy_weights(folder / "toy.safetensors")
    level = QualityLevel("toy", TOY_SIZE, weights, TOY_P_ERROR)
    network = toy_network()
    pairs, _ = find_pairs(folder / "pairs")
    ready, skipped = prepare(pairs, network, TOY_SIZE, "crop")
    home = Home(folder / "home")
    store = open_store(str(folder / "store"))
    book = submit(home, store, level, network, ready, skipped, lambda *_: None)
    record = read_record(store, f"jobs/{book.job_id}/job.json", JobRecord)
    loader = EvaluatorLoader(store.url, book.circuit_id, book.key_id)
    executor = RecordingExecutor(loader())
    assert run_job(store, record, executor, 1).status == "succeeded"
    return home, book, folder, [repr(loader).encode(), *executor.received]


def outside(folder: Path, received: list[bytes]) -> list[bytes]:
    """Everything the store holds, keys of the store included, and all that actors received."""
    files = [p for p in (folder / "store").rglob("*") if p.is_file()]
    names = [p.relative_to(folder / "store").as_posix().encode() for p in files]
    return [*(p.read_bytes() for p in files), *names, *received]


def found(secret: bytes, blobs: list[bytes]) -> bool:
    return any(secret in blob for blob in blobs)


def test_the_search_finds_what_is_there(job: tuple[Home, JobBook, Path, list[bytes]]) -> None:
    _, book, folder, received = job
    assert found(book.key_id.encode(), outside(folder, received))
    assert found(book.pairs[0].pair_id.encode(), outside(folder, received))


def test_no_name_leaves_the_client(job: tuple[Home, JobBook, Path, list[bytes]]) -> None:
    _, book, folder, received = job
    assert book.pairs[0].name == NAMES[0]
    blobs = outside(folder, received)
    for word in (NAMES[0], "grandmother", "hospital", str(folder / "pairs"), str(folder / "home")):
        assert not found(word.encode(), blobs), word


def test_no_pixel_leaves_the_client(job: tuple[Home, JobBook, Path, list[bytes]]) -> None:
    home, book, folder, received = job
    blobs = outside(folder, received)
    for picture in home.pictures(book.job_id):
        raw = np.rint(picture.rgb * 255).astype(np.uint8)
        planes = [raw, raw.transpose(1, 2, 0), picture.rgb, picture.white]
        for role in (CONTENT, STYLE):
            quantized = picture.quantized(role, 1.0)
            cells = space_to_depth(quantized)
            planes += [a.astype(kind) for a in (quantized, cells) for kind in (np.int8, np.int64)]
        for plane in planes:
            data = np.ascontiguousarray(plane).tobytes()
            for start in range(0, len(data) - WINDOW, max(WINDOW, len(data) // 16)):
                window = data[start : start + WINDOW]
                # A window of one value throughout occurs anywhere and tells nothing.
                if len(set(window)) > 4:
                    assert not found(window, blobs)


def test_no_byte_of_the_secret_key_leaves_the_client(
    job: tuple[Home, JobBook, Path, list[bytes]],
) -> None:
    home, book, folder, received = job
    secret = (home.keys / book.key_id / SECRET_FILE).read_bytes()
    words = np.frombuffer(secret[: len(secret) // 8 * 8], dtype="<u8")
    binary = np.concatenate([[0], (words <= 1).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(binary))
    # Concrete serializes a secret key as one 64-bit word a bit: long runs of zeros and ones.
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 400]
    assert runs, "the secret key was not recognized in its file"
    blobs = outside(folder, received)
    for start, end in runs:
        part = words[start:end]
        for at in range(0, len(part) - 64, 64):
            bits = part[at : at + 64]
            assert not found(bits.tobytes(), blobs)
            packed = np.packbits(bits.astype(np.uint8))
            assert not found(packed.tobytes(), blobs)
            assert not found(packed[::-1].tobytes(), blobs)


def test_client_files_are_the_owners_only(job: tuple[Home, JobBook, Path, list[bytes]]) -> None:
    home, _, _, _ = job
    for path in [*home.keys.rglob("*"), *(home.root / "jobs").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_store_needs_no_client(job: tuple[Home, JobBook, Path, list[bytes]]) -> None:
    """The loader that actors get names a store and two ids; nothing leads back to the client."""
    home, book, folder, _ = job
    loader = EvaluatorLoader(LocalStore(folder / "store").url, book.circuit_id, book.key_id)
    assert str(home.root) not in repr(loader)
