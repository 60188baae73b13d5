"""The user's data directory: keys, compiled circuits, and what only the client knows of its jobs.

Names, plain pictures and secret keys are here and nowhere else; folders are 0700, files 0600.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from jobs.client.pictures import Box
from nst.pictures.size import Size
from nst.errors import InputError
from nst.folders import HOME_VARIABLE, Folders, default_folder
from nst.stylize import Picture

FORMAT = 1
BOOK = "book.json"


class BookPair(BaseModel):
    """A pair as the user knows it; pictures by their position in the job's picture file."""

    pair_id: str
    name: str
    content: int
    style: int
    box: list[int]


class BookSkipped(BaseModel):
    """A pair that was never submitted, and why."""

    name: str
    reason: str


class JobBook(BaseModel):
    """What the client must remember of a job: names, key, circuits, and its last driver.

    That is a process of this machine, or a submission to a cluster's Jobs API. `width` and `height`
    are those of the results in pixels, 0 in a job whose results are squares of its level's size.
    """

    format: int = FORMAT
    job_id: str
    created: str
    store: str
    quality: str
    width: int = 0
    height: int = 0
    key_id: str
    model_id: str
    pairs: list[BookPair]
    skipped: list[BookSkipped]
    keep_until: str = ""
    driver_pid: int = 0
    cluster: str = ""
    cluster_python: str = ""
    submission: str = ""

    @property
    def canvas(self) -> Size | None:
        """Size of contents and results, None for that of the level."""
        return Size(self.width, self.height) if self.width else None


class Home(Folders):
    """Owns every path on the client."""

    @staticmethod
    def default() -> Home:
        """`$NST_BATCH_HOME`, or the platform's place for a user's data."""
        return Home(default_folder())

    @property
    def store(self) -> Path:
        """The store used when none is named."""
        return self.root / "store"

    def driver_log(self, job_id: str) -> Path:
        """What a local driver printed."""
        return self._job(job_id) / "driver.log"

    def save_job(self, book: JobBook, pictures: list[Picture]) -> None:
        """Remember a job and its prepared pictures, so that the originals may move or go."""
        levels = [np.rint(p.rgb * 255).astype(np.uint8) for p in pictures]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, *levels)
        self._write(self._job(book.job_id) / "pictures.npz", buffer.getvalue())
        self.save_book(book)

    def save_book(self, book: JobBook) -> None:
        """Remember a changed book."""
        self._write(self._job(book.job_id) / BOOK, book.model_dump_json().encode())

    def forget(self, job_id: str) -> None:
        """Remove all that is known of a job; raises InputError if something stays."""
        try:
            # The book last: as long as it is there, the job can be deleted again.
            for path in sorted(self._job(job_id).iterdir(), key=lambda p: p.name == BOOK):
                path.unlink()
            self._job(job_id).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"cannot delete {self._job(job_id)} ({error.strerror}); remove it by hand"
            ) from error

    def books(self) -> list[JobBook]:
        """All jobs, oldest first."""
        found = [self._read_book(p) for p in (self.root / "jobs").glob(f"*/{BOOK}")]
        return sorted(found, key=lambda book: book.created)

    def book(self, job_id: str) -> JobBook:
        """One job.

        Raises:
            InputError: if this client never submitted it.
        """
        path = self._job(job_id) / BOOK
        if not path.is_file():
            raise InputError(
                f"job {job_id!r} was not submitted from {self.root}; see nst-batch list"
            )
        return self._read_book(path)

    def pictures(self, job_id: str) -> list[Picture]:
        """The prepared pictures of a job.

        Raises:
            InputError: if they are missing or damaged.
        """
        path = self._job(job_id) / "pictures.npz"
        try:
            with np.load(path) as file:
                # Earlier versions, whose pictures were all of one size, wrote one array.
                known = "pictures" in file
                found = file["pictures"] if known else [file[f"arr_{i}"] for i in range(len(file))]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error}); submit the pairs again"
            ) from error
        return [Picture(p.astype(np.float32) / np.float32(255)) for p in found]

    def _job(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    @staticmethod
    def _read_book(path: Path) -> JobBook:
        try:
            book = JobBook.model_validate_json(path.read_text())
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is damaged; submit the pairs again") from error
        if book.format != FORMAT:
            raise InputError(
                f"{path} has format {book.format}, this version reads {FORMAT}; "
                "use the version that submitted the job"
            )
        return book

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_suffix(".partial")
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            partial.replace(path)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}); set {HOME_VARIABLE} to another folder"
            ) from error


def box_of(pair: BookPair) -> Box:
    """The region of the canvas that holds a pair's content."""
    return Box.from_list(pair.box)
