"""The user's data directory: keys, published models, and what only the client knows of its jobs.

Names, plain pictures and secret keys are here and nowhere else; folders are 0700, files 0600.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel

from jobs.client.pictures import Box
from nst.errors import InputError
from nst.folders import Folders, default_folder, explaining, make_private, subfolders
from nst.pictures.picture import Picture, PicturesOnDisk
from nst.pictures.size import Size
from nst.private import private_file, sweep

FORMAT = 2
JOB_FILE, PICTURES = "job.json", "pictures.npz"
UNREADABLE = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises of damaged files."""

log = logging.getLogger("nst-batch")


class DamagedJobError(InputError):
    """A job's folder is there, and its record is damaged or missing."""


class LocalPair(BaseModel):
    """A pair as the user knows it; pictures by their position in the job's picture file.

    Its result may hold those of other pairs as well, each in a lane of its own.
    """

    pair_id: str
    result: str
    lane: int = 0
    name: str
    content: int
    style: int
    box: Box


class SkippedPair(BaseModel):
    """A pair that was never submitted, and why."""

    name: str
    reason: str


class LocalJob(BaseModel):
    """What the client must remember of a job: names, key set, model, and its last driver.

    That is a process of this machine, or a submission to a cluster's Jobs API. With an `offer`, it
    is a service's, and the model is the one that was offered. `width` and `height`
    are those of the results in pixels; `publishable` results are deleted from the store when they
    are fetched.
    """

    format: int = FORMAT
    job_id: str
    created: str
    store: str
    offer: str = ""
    quality: str
    width: int
    height: int
    engine: str
    key_id: str
    model_id: str
    pairs: list[LocalPair]
    skipped: list[SkippedPair]
    publishable: bool = False
    driver_pid: int = 0
    cluster: str = ""
    cluster_python: str = ""
    submission: str = ""

    @property
    def size(self) -> Size:
        """Of contents and results."""
        return Size(self.width, self.height)


class JobPictures:
    """The prepared pictures of a job by position; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises InputError if it is missing or damaged."""
        self._path = path
        try:
            # As `numpy.load` does, which looks for a name in a list of all names, each time.
            self._archive = zipfile.ZipFile(path)
        except UNREADABLE as error:
            raise self._damaged(error) from error

    def __len__(self) -> int:
        return len(self._archive.namelist())

    def __getitem__(self, position: int) -> Picture:
        """A picture; raises InputError if it is missing or damaged."""
        try:
            with self._archive.open(_member(position)) as member:
                levels = np.lib.format.read_array(member)  # type: ignore[no-untyped-call]
        except UNREADABLE as error:
            raise self._damaged(error) from error
        return Picture(levels.astype(np.float32) / np.float32(255))

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self._path} is missing or damaged ({error}); submit the pairs again")


def _member(position: int) -> str:
    """A picture's name in the archive of its job, as NumPy has it."""
    return f"arr_{position}.npy"


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

    @property
    def offered(self) -> Path:
        """What this user has taken of offers of services, by their ids."""
        return self.root / "offered"

    def owner(self, service: str) -> Path:
        """The fingerprint of who offers models in a service's store.

        Args:
            service: The store's name.
        """
        name = hashlib.sha256(service.encode()).hexdigest()[:16]
        return self.root / "owners" / name

    @property
    def styles(self) -> Path:
        """Styles of the library, by their names."""
        return self.root / "styles"

    @property
    def signing_key(self) -> Path:
        """What this user signs offers with, as the owner of models."""
        return self.root / "signing.key"

    def scratch(self) -> PicturesOnDisk:
        """Room for prepared pictures of a job to be, which ends with this process.

        Raises:
            InputError: if there is none.
        """
        with explaining(self.root):
            make_private(self.root)
            return PicturesOnDisk(self.root)

    def driver_log(self, job_id: str) -> Path:
        """What a local driver printed."""
        return self._job(job_id) / "driver.log"

    def add_job(self, local: LocalJob, pictures: Sequence[Picture]) -> None:
        """Remember a job and its prepared pictures, so that the originals may move or go.

        Its file first: pictures that a killed process leaves belong to a job that can be deleted.
        """
        self._sweep()
        self.save_job(local)
        # What NumPy writes; it leaves its archive open when the disk is full, and a trace of that.
        with (
            self._writing(self._job(local.job_id) / PICTURES) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for position, picture in enumerate(pictures):
                with archive.open(_member(position), "w", force_zip64=True) as member:
                    levels = np.rint(picture.rgb * 255).astype(np.uint8)
                    np.lib.format.write_array(member, levels)  # type: ignore[no-untyped-call]

    def save_job(self, local: LocalJob) -> None:
        """Remember what has changed of a job."""
        with self._writing(self._job(local.job_id) / JOB_FILE) as file:
            file.write(local.model_dump_json().encode())

    def forget(self, job_id: str) -> None:
        """Remove all that is known of a job; raises InputError if something stays."""
        try:
            # This file last: as long as it is there, the job can be deleted again.
            for path in sorted(self._job(job_id).iterdir(), key=lambda p: p.name == JOB_FILE):
                path.unlink()
            self._job(job_id).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"cannot delete {self._job(job_id)} ({error.strerror}); remove it by hand"
            ) from error

    def jobs(self) -> list[LocalJob]:
        """All jobs, oldest first; one whose file is damaged is named in a warning and left out.

        What a killed process left of jobs and pictures is removed.

        Raises:
            InputError: if the folder cannot be read.
        """
        found = []
        self._sweep()
        for _, local in self.inspect():
            if isinstance(local, InputError):
                log.warning("%s", local)
            else:
                found.append(local)
        return sorted(found, key=lambda local: local.created)

    def inspect(self) -> Iterator[tuple[str, LocalJob | InputError]]:
        """Every job's id, and the job or why its file cannot be used.

        Raises:
            InputError: if the folder cannot be read.
        """
        for folder in subfolders(self.root / "jobs"):
            try:
                yield folder.name, self._read_job(folder / JOB_FILE)
            except InputError as error:
                yield folder.name, error

    def job(self, job_id: str) -> LocalJob:
        """One job.

        Raises:
            InputError: if this client never submitted it, or another version did.
            DamagedJobError: if its file is damaged or missing.
        """
        if self._job(job_id) not in subfolders(self.root / "jobs"):
            raise InputError(
                f"job {job_id!r} was not submitted from {self.root}; see nst-batch list"
            )
        return self._read_job(self._job(job_id) / JOB_FILE)

    def pictures(self, job_id: str) -> JobPictures:
        """The prepared pictures of a job; raises InputError if they are missing or damaged."""
        return JobPictures(self._job(job_id) / PICTURES)

    def _sweep(self) -> None:
        for folder in (self.root / "jobs").glob("*"):
            sweep(folder)

    def _job(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    @staticmethod
    def _read_job(path: Path) -> LocalJob:
        try:
            text = path.read_bytes()
            form = json.loads(text)["format"]
            if form == FORMAT:
                return LocalJob.model_validate_json(text)
        except FileNotFoundError as error:
            raise DamagedJobError(
                f"{path} is missing: a submit is at work or was stopped; if none is at work: "
                f"nst-batch delete {path.parent.name}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedJobError(
                f"{path} is damaged; restore it from your backup, or: "
                f"nst-batch delete {path.parent.name}"
            ) from error
        raise InputError(
            f"{path} has format {form}, this version reads {FORMAT}; "
            "use the version that submitted the job"
        )

    @contextmanager
    def _writing(self, path: Path) -> Iterator[BinaryIO]:
        """A file that only its owner may read, whole or not there; raises InputError."""
        with explaining(path):
            make_private(path.parent)
            with private_file(path) as file:
                yield file
