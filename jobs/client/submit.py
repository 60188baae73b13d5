"""The client's half of a job's beginning: encrypt, upload, start a driver."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from jobs.client.home import PASSPHRASE_VARIABLE, BookPair, BookSkipped, Home, JobBook
from jobs.client.pairs import Skipped
from jobs.client.preparation import PreparedPair
from jobs.storage import layout
from jobs.storage.records import JobRecord, JobState, PairRecord, write_record
from jobs.storage.store import Store
from nst.architecture import CONTENT, STYLE
from nst.circuits import PLAN_FILE, SERVER_FILE, build, load_plan
from nst.client import AskPassphrase, KeyRing
from nst.integer import IntegerNetwork
from nst.levels import QualityLevel
from nst.stylize import Picture

Progress = Callable[[int, int], None]
"""Told how many of how many pictures are encrypted."""


def new_id() -> str:
    """An opaque id: says nothing of what it stands for."""
    return secrets.token_hex(6)


def submit(
    home: Home,
    store: Store,
    level: QualityLevel,
    network: IntegerNetwork,
    pairs: list[PreparedPair],
    skipped: list[Skipped],
    progress: Progress,
    ask: AskPassphrase | None = None,
) -> JobBook:
    """Encrypt pairs and put a job into a store; the job's record is written last.

    The client remembers the job before anything of it is in the store, so that what a client that
    dies has uploaded can be found and deleted. `ask` is called for the passphrase of a key set
    that has one, before that.

    Raises:
        CircuitError: if circuits or keys cannot be made.
        InputError: if the key set's passphrase is wrong or missing.
        StoreError: if the store cannot be written.
    """
    circuits = build(network, level.size, level.p_error, home.circuits)
    plan = load_plan(circuits)
    ring = KeyRing(home.keys)
    card = ring.find(plan.circuit_id) or ring.create(circuits, level.name)
    cipher = ring.cipher(card.key_id, circuits, ask)

    job_id = new_id()
    pictures: list[Picture] = []
    positions: dict[int, int] = {}
    inputs: dict[tuple[int, str, float], str] = {}
    records, book_pairs = [], []

    def position(picture: Picture) -> int:
        if id(picture) not in positions:
            positions[id(picture)] = len(pictures)
            pictures.append(picture)
        return positions[id(picture)]

    def input_id(picture: Picture, kind: str, gain: float) -> str:
        return inputs.setdefault((position(picture), kind, gain), new_id())

    for pair in pairs:
        record = PairRecord(
            pair_id=new_id(),
            content=input_id(pair.content, CONTENT, pair.content_gain),
            style=input_id(pair.style, STYLE, pair.style_gain),
        )
        records.append(record)
        book_pairs.append(
            BookPair(
                pair_id=record.pair_id,
                name=pair.name,
                content=position(pair.content),
                style=position(pair.style),
                box=pair.box.to_list(),
            )
        )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    book = JobBook(
        job_id=job_id,
        created=created,
        store=store.url,
        quality=level.name,
        key_id=card.key_id,
        circuit_id=plan.circuit_id,
        pairs=book_pairs,
        skipped=[BookSkipped(name=s.name, reason=s.reason) for s in skipped],
    )
    home.save_job(book, pictures)

    _upload(store, layout.server_zip(plan.circuit_id), (circuits / SERVER_FILE).read_bytes())
    _upload(store, layout.circuit_plan(plan.circuit_id), (circuits / PLAN_FILE).read_bytes())
    _upload(store, layout.evaluation_keys(card.key_id), ring.evaluation_keys(card.key_id))
    for done, ((place, kind, gain), name) in enumerate(inputs.items()):
        progress(done, len(inputs))
        envelope = cipher.encrypt(pictures[place].quantized(kind, gain), kind)
        store.write(layout.encrypted_input(job_id, name), envelope.pack())
    progress(len(inputs), len(inputs))
    job = JobRecord(
        job_id=job_id,
        created=created,
        quality=level.name,
        circuit_id=plan.circuit_id,
        key_id=card.key_id,
        pairs=records,
    )
    write_record(store, layout.job(job_id), job)
    return book


def _upload(store: Store, key: str, blob: bytes) -> None:
    if not store.exists(key):
        store.write(key, blob)


def start_driver(home: Home, book: JobBook, actors: int) -> subprocess.Popen[bytes]:
    """Start a job's driver on this machine, in a session of its own so that Ctrl-C spares it."""
    log = home.driver_log(book.job_id)
    # The driver is a server: what opens the secret key is none of its business.
    environment = {k: v for k, v in os.environ.items() if k != PASSPHRASE_VARIABLE}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "jobs.execution.driver",
                book.store, book.job_id, "--actors", str(actors),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )  # fmt: skip
    home.save_book(book.model_copy(update={"driver_pid": process.pid}))
    return process


def eta_seconds(state: JobState, now: float) -> float | None:
    """Seconds to the end at the job's own rate so far, or None before there is one."""
    spent = now - state.first_task
    if not state.first_task or not state.pbs_done or spent <= 0:
        return None
    return (state.pbs_total - state.pbs_done) / (state.pbs_done / spent)
