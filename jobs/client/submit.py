"""The client's half of a job's beginning: encrypt and upload."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from jobs.client.drivers import pin_of
from jobs.client.home import LocalJob, LocalPair, SkippedPair
from jobs.client.pairs import Skipped
from jobs.client.preparation import PreparedPair
from jobs.client.session import Session
from jobs.client.styles import LibraryStyle
from jobs.execution.sharing import share
from jobs.storage import layout
from jobs.storage.records import JobRecord, write_record
from jobs.storage.store import Store
from nst.engines.base import PLAN_FILE, SERVER_FILE, PreparedInput
from nst.errors import CircuitError, InputError, NstBatchError, StoreError
from nst.model import Model
from nst.pictures.picture import Picture

Progress = Callable[[int, int], None]
"""Told how many of how many inputs, of one picture or more, are encrypted."""


def new_id() -> str:
    """An opaque id: says nothing of what it stands for."""
    return secrets.token_hex(6)


def submit(
    session: Session,
    model: Model,
    prepared: list[PreparedPair],
    skipped: list[Skipped],
    progress: Progress = lambda done, total: None,
    fresh_key: bool = False,
    style: LibraryStyle | None = None,
) -> LocalJob:
    """Encrypt pairs and put a job into a store; the job's record is written last.

    What the client remembers is written first, so that a job whose upload breaks off can be
    deleted. A passphrase is asked for before anything is uploaded.

    Args:
        session: Where to, and whose keys.
        model: What the pairs were prepared for.
        prepared: The pairs.
        skipped: Other pairs of the user's that could not be used, to be shown with the results.
        progress: Told how far the encryption is.
        fresh_key: Whether it has a key set of its own; one whose results may be published has.
        style: Of the library, that of all pairs; None if they bring their own.

    Raises:
        CircuitError: if the model or the keys cannot be made.
        InputError: if the key set's passphrase is wrong or missing.
        StoreError: if the store cannot be written; what was is deleted, if that can be done.
    """
    home, store, plan = session.home, session.store, model.plan
    job_id = new_id()
    own = job_id if fresh_key or model.level.exact else ""
    key_id = style.key_id if style else model.key_set(session.ring, own, session.ask).key_id
    cipher = model.cipher(session.ring, key_id, session.ask)
    pictures = _Pictures()
    laid_out = share(
        [(pictures.key(pair.content.input), pictures.key(pair.style.input)) for pair in prepared],
        plan.pairs_per_result,
        new_id,
    )
    if style:
        laid_out = laid_out.with_style(style.style_id)
    known = [
        LocalPair(
            pair_id=record.pair_id,
            result=record.result,
            lane=lane,
            name=pair.name,
            content=pictures.position(pair.content.input.picture),
            style=pictures.position(pair.style.input.picture),
            box=pair.box,
        )
        for pair, record, lane in zip(prepared, laid_out.records, laid_out.lanes, strict=True)
    ]
    wanted = {
        **{i: [prepared[k].content.input for k in of] for i, of in laid_out.contents.items()},
        **{i: [prepared[k].style.input for k in of] for i, of in laid_out.styles.items()},
    }
    job = JobRecord(
        job_id=job_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quality=model.level.name,
        width=plan.size.width,
        height=plan.size.height,
        model_id=plan.model_id,
        key_id=key_id,
        pairs=laid_out.records,
    )
    local = LocalJob(
        job_id=job.job_id,
        created=job.created,
        store=store.url,
        offer=model.offer_id,
        quality=model.level.name,
        width=model.size.width,
        height=model.size.height,
        engine=plan.engine,
        key_id=key_id,
        model_id=plan.model_id,
        pairs=known,
        skipped=[SkippedPair(name=s.name, reason=s.reason) for s in skipped],
        publishable=model.level.exact,
    )
    try:
        home.add_job(local, pictures.all)
        upload_shared(session, local)
        progress(0, len(wanted))
        # The next ones are encrypted while one is uploaded.
        with closing(cipher.encrypt_all(wanted.values())) as envelopes:
            for done, (input_id, envelope) in enumerate(zip(wanted, envelopes, strict=True)):
                store.write(layout.encrypted_input(job.job_id, input_id), envelope.pack())
                progress(done + 1, len(wanted))
        write_record(store, layout.job(job.job_id), job)
        # The last other job that used them may have been deleted before this one could be seen.
        upload_shared(session, local)
    except BaseException:
        with contextlib.suppress(NstBatchError):
            store.delete_prefix(layout.whole_job(job.job_id))
            if own:
                store.delete_prefix(layout.keys(key_id))
            session.ring.remove_own(key_id, job.job_id)
            home.forget(job.job_id)
        raise
    return local


class _Pictures:
    """The pictures of a job, each once."""

    def __init__(self) -> None:
        self.all: list[Picture] = []
        self._positions: dict[int, int] = {}

    def position(self, picture: Picture) -> int:
        """Where a picture stands in the job's list of pictures."""
        if id(picture) not in self._positions:
            self._positions[id(picture)] = len(self.all)
            self.all.append(picture)
        return self._positions[id(picture)]

    def key(self, prepared: PreparedInput) -> tuple[int, float]:
        """Equal for what is encrypted once in its role."""
        return self.position(prepared.picture), prepared.contrast


def upload_shared(session: Session, local: LocalJob, mend: bool = False) -> None:
    """Put a job's model and evaluation keys into a store that does not have them.

    A service has the model, and the job's store is no place for it.

    Args:
        session: Where to, and the data directory that has them.
        local: The job.
        mend: Read what the store has, and replace what is damaged or of another model or key set.

    Raises:
        CircuitError: if the model is missing here, or the keys are missing here and there.
        StoreError: if the store cannot be written.
    """
    home, store, ring = session.home, session.store, session.ring
    shared: dict[str, Callable[[], bytes]] = {
        layout.evaluation_keys(local.key_id): lambda: ring.evaluation_keys(local.key_id)
    }
    if not local.offer:
        pin = pin_of(home, local)
        server, plan = Path(pin.folder, SERVER_FILE), Path(pin.folder, PLAN_FILE)
        shared[layout.model_server(pin.model_id, pin.bundle)] = server.read_bytes
        shared[layout.model_plan(pin.model_id, pin.plan)] = plan.read_bytes
    for key, read in shared.items():
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
        return store.read(key, len(blob)) == blob
    except StoreError:
        return False
