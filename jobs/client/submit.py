"""The client's half of a job's beginning: encrypt and upload."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

from jobs.client.home import BookPair, BookSkipped, Home, JobBook
from jobs.client.pairs import Skipped
from jobs.client.preparation import PreparedPair
from jobs.storage import layout
from jobs.storage.records import JobRecord, JobState, PairRecord, write_record
from jobs.storage.store import Store
from nst.network.architecture import CONTENT, STYLE
from nst.pictures.size import Size
from nst.engines.concrete.circuits import PLAN_FILE, SERVER_FILE, build_level
from nst.engines.concrete.client import AskPassphrase, KeyRing
from nst.errors import CircuitError, InputError, NstBatchError, StoreError
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.stylize import Picture

Progress = Callable[[int, int], None]
"""Told how many of how many pictures are encrypted."""


def new_id() -> str:
    """An opaque id: says nothing of what it stands for."""
    return secrets.token_hex(6)


def keep_until(created: datetime, days: int | None) -> str:
    """The moment, in ISO format, from which a job may be pruned; empty for never."""
    if days is None:
        return ""
    return (created + timedelta(days=days)).isoformat(timespec="seconds")


def submit(
    home: Home,
    store: Store,
    level: QualityLevel,
    network: IntegerNetwork,
    pairs: list[PreparedPair],
    skipped: list[Skipped],
    progress: Progress,
    ask: AskPassphrase | None = None,
    keep_days: int | None = None,
    canvas: Size | None = None,
) -> JobBook:
    """Encrypt pairs and put a job into a store; the job's record is written last.

    The client's book is written first, so that a job whose upload breaks off can be deleted.
    `ask` is called for the passphrase of a key set that has one, before anything is uploaded.
    After `keep_days` the job may be pruned; None keeps it until it is deleted. `canvas` is what
    the contents were prepared for, None for the level's size.

    Raises:
        CircuitError: if circuits or keys cannot be made.
        InputError: if the key set's passphrase is wrong or missing.
        StoreError: if the store cannot be written; what was is deleted, if that can be done.
    """
    canvas = level.canvas(canvas)
    circuits, plan = build_level(level, network, home.circuits, canvas)
    model_id = plan.model_id
    ring = KeyRing(home.keys)
    card = ring.find(model_id) or ring.create(circuits, level.name)
    cipher = ring.cipher(card.key_id, circuits, ask)
    inputs = _Inputs()
    records, book_pairs = [], []
    for pair in pairs:
        record = PairRecord(
            pair_id=new_id(),
            content=inputs.add(pair.content, CONTENT, pair.content_gain),
            style=inputs.add(pair.style, STYLE, pair.style_gain),
        )
        records.append(record)
        book_pairs.append(
            BookPair(
                pair_id=record.pair_id,
                name=pair.name,
                content=inputs.position(pair.content),
                style=inputs.position(pair.style),
                box=pair.box.to_list(),
            )
        )
    now = datetime.now(UTC)
    job = JobRecord(
        job_id=new_id(),
        created=now.isoformat(timespec="seconds"),
        keep_until=keep_until(now, keep_days),
        quality=level.name,
        height=plan.height,
        model_id=model_id,
        key_id=card.key_id,
        pairs=records,
    )
    book = JobBook(
        job_id=job.job_id,
        created=job.created,
        keep_until=job.keep_until,
        store=store.url,
        quality=level.name,
        width=canvas.width,
        height=canvas.height,
        key_id=card.key_id,
        model_id=model_id,
        pairs=book_pairs,
        skipped=[BookSkipped(name=s.name, reason=s.reason) for s in skipped],
    )
    home.save_job(book, inputs.pictures)
    try:
        upload_shared(home, store, model_id, card.key_id)
        progress(0, len(inputs.wanted))
        pixels = ((p.quantized(kind, gain), kind) for p, kind, gain in inputs.wanted.values())
        # The next ones are encrypted while one is uploaded.
        with closing(cipher.encrypt_all(pixels)) as envelopes:
            for done, (input_id, envelope) in enumerate(zip(inputs.wanted, envelopes, strict=True)):
                store.write(layout.encrypted_input(job.job_id, input_id), envelope.pack())
                progress(done + 1, len(inputs.wanted))
        write_record(store, layout.job(job.job_id), job)
        # Somebody may have deleted the last job that used them, before he could see this one.
        upload_shared(home, store, model_id, card.key_id)
    except BaseException:
        with contextlib.suppress(NstBatchError):
            store.delete_prefix(layout.whole_job(job.job_id))
            home.forget(job.job_id)
        raise
    return book


class _Inputs:
    """The encrypted pictures a job needs: each picture once in each role and contrast."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.wanted: dict[str, tuple[Picture, str, float]] = {}
        self._positions: dict[int, int] = {}
        self._ids: dict[tuple[int, str, float], str] = {}

    def position(self, picture: Picture) -> int:
        """Where a picture stands in the job's list of pictures."""
        if id(picture) not in self._positions:
            self._positions[id(picture)] = len(self.pictures)
            self.pictures.append(picture)
        return self._positions[id(picture)]

    def add(self, picture: Picture, kind: str, gain: float) -> str:
        """The id of an encrypted picture."""
        key = (self.position(picture), kind, gain)
        if key not in self._ids:
            self._ids[key] = new_id()
            self.wanted[self._ids[key]] = (picture, kind, gain)
        return self._ids[key]


def upload_shared(home: Home, store: Store, model_id: str, key_id: str, mend: bool = False) -> None:
    """Put circuits and evaluation keys into a store that does not have them.

    Args:
        home: The user's data directory, which has them.
        store: Where to.
        model_id: Which circuits.
        key_id: Which keys.
        mend: Read what the store has, and replace what is damaged or another's.

    Raises:
        CircuitError: if they are missing here, too.
        StoreError: if the store cannot be written.
    """
    folder = home.circuits / model_id
    for key, read in (
        (layout.server_zip(model_id), (folder / SERVER_FILE).read_bytes),
        (layout.circuit_plan(model_id), (folder / PLAN_FILE).read_bytes),
        (layout.evaluation_keys(key_id), lambda: KeyRing(home.keys).evaluation_keys(key_id)),
    ):
        there = store.exists(key)
        if there and not mend:
            continue
        try:
            blob = read()
        except (OSError, InputError) as error:
            if there:
                continue
            raise CircuitError(
                f"{key} is neither in the store nor in {home.root}; submit the pairs again"
            ) from error
        if not there or not _holds(store, key, blob):
            store.write(key, blob)


def _holds(store: Store, key: str, blob: bytes) -> bool:
    try:
        return store.read(key) == blob
    except StoreError:
        return False


def eta_seconds(state: JobState, now: float) -> float | None:
    """Seconds to the end at the job's own rate so far, or None before there is one."""
    spent = now - state.first_task
    if not state.first_task or not state.pbs_done or spent <= 0:
        return None
    return (state.pbs_total - state.pbs_done) / (state.pbs_done / spent)
