"""Nothing that leaves the client tells a pixel, a name or a byte of the secret key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from jobs.execution.loading import EvaluatorLoader
from nst.engines.base import PreparedInput, Role
from nst.engines.concrete.preparation import quantized
from nst.keyring import SECRET_FILE
from nst.network.integers import space_to_depth
from tests.toy_job import NAME, ToyJob

WINDOW = 24
"""Bytes of a secret that must not turn up; short enough to be met whole, too long for chance."""


def outside(job: ToyJob) -> list[bytes]:
    """Everything the store holds, keys of the store included, and all that actors received."""
    root = Path(job.local.store)
    files = [p for p in root.rglob("*") if p.is_file()]
    names = [p.relative_to(root).as_posix().encode() for p in files]
    return [*(p.read_bytes() for p in files), *names, *job.received]


def found(secret: bytes, blobs: list[bytes]) -> bool:
    return any(secret in blob for blob in blobs)


def test_the_search_finds_what_is_there(toy_job: ToyJob) -> None:
    blobs = outside(toy_job)
    assert found(toy_job.local.key_id.encode(), blobs)
    assert found(toy_job.local.pairs[0].pair_id.encode(), blobs)


def test_no_name_leaves_the_client(toy_job: ToyJob) -> None:
    assert toy_job.local.pairs[0].name == NAME
    blobs, folder = outside(toy_job), toy_job.folder
    for word in (NAME, "grandmother", "hospital", str(folder / "pairs"), str(folder / "home")):
        assert not found(word.encode(), blobs), word


def test_no_pixel_leaves_the_client(toy_job: ToyJob) -> None:
    blobs = outside(toy_job)
    pictures = toy_job.home.pictures(toy_job.local.job_id)
    for picture in (pictures[0], pictures[1]):
        raw = np.rint(picture.rgb * 255).astype(np.uint8)
        planes = [raw, raw.transpose(1, 2, 0), picture.rgb, picture.white]
        for role in get_args(Role):
            levels = quantized(PreparedInput(picture, role))
            cells = space_to_depth(levels)
            planes += [a.astype(kind) for a in (levels, cells) for kind in (np.int8, np.int64)]
        for plane in planes:
            data = np.ascontiguousarray(plane).tobytes()
            for start in range(0, len(data) - WINDOW, max(WINDOW, len(data) // 16)):
                window = data[start : start + WINDOW]
                # A window of one value throughout occurs anywhere and tells nothing.
                if len(set(window)) > 4:
                    assert not found(window, blobs)


def test_no_byte_of_the_secret_key_leaves_the_client(
    toy_job: ToyJob,
) -> None:
    secret = (toy_job.home.keys / toy_job.local.key_id / SECRET_FILE).read_bytes()
    words = np.frombuffer(secret[: len(secret) // 8 * 8], dtype="<u8")
    binary = np.concatenate([[0], (words <= 1).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(binary))
    # Concrete serializes a secret key as one 64-bit word a bit: long runs of zeros and ones.
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 400]
    assert runs, "the secret key was not recognized in its file"
    blobs = outside(toy_job)
    for start, end in runs:
        part = words[start:end]
        for at in range(0, len(part) - 64, 64):
            bits = part[at : at + 64]
            assert not found(bits.tobytes(), blobs)
            packed = np.packbits(bits.astype(np.uint8))
            assert not found(packed.tobytes(), blobs)
            assert not found(packed[::-1].tobytes(), blobs)


def test_client_files_are_the_owners_only(toy_job: ToyJob) -> None:
    home = toy_job.home
    for path in [*home.keys.rglob("*"), *(home.root / "jobs").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_store_needs_no_client(toy_job: ToyJob) -> None:
    """The loader that actors get names a store and two ids; nothing leads back to the client."""
    local = toy_job.local
    loader = EvaluatorLoader(local.store, local.model_id, local.key_id)
    assert str(toy_job.home.root) not in repr(loader)
