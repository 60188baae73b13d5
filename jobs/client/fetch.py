"""The client's half of a job's end: download, decrypt, finish, write pictures and a gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from jobs.client.costs import pair_costs
from jobs.client.facts import job_summary, pair_facts, waiting_note
from jobs.client.gallery import Entry, write_contact_sheet, write_gallery
from jobs.client.home import BookPair, Home, JobBook, box_of
from jobs.client.pictures import Floats, cut_out, write_png
from jobs.storage import layout
from jobs.storage.records import (
    JobState,
    PairEnd,
    pair_states,
    read_job,
    read_marks,
    read_state,
)
from jobs.storage.store import Store
from nst.network.architecture import CELL
from nst.engines.concrete.circuits import build_level
from nst.engines.concrete.client import AskPassphrase, Cipher, KeyRing
from nst.errors import CircuitError, InputError, NstBatchError
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.stylize import Picture, finish

GALLERY, SHEET = "gallery.html", "contact-sheet.png"


@dataclass
class Fetched:
    """What a fetch brought: names of pairs, by outcome."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    gallery: Path = Path()


def fetch(
    home: Home,
    store: Store,
    book: JobBook,
    level: QualityLevel,
    network: IntegerNetwork,
    out: Path,
    force: bool,
    ask: AskPassphrase | None = None,
) -> Fetched:
    """Decrypt what is ready of a job into PNG files named after the pairs, and a gallery.

    A pair whose result cannot be decrypted counts as failed; the others are written. `ask` is
    called for the passphrase of a key set that has one.

    Raises:
        InputError: if the output folder cannot be written or holds pictures already, or the key
            set's passphrase is wrong or missing.
        CircuitError: if this installation's circuits are not the job's.
    """
    make_folder(out)
    refuse_overwriting(out, [pair.name for pair in book.pairs], force)
    state, results = decrypted(home, store, book, level, network, ask)
    report, entries = Fetched(gallery=out / GALLERY), []
    for entry in results:
        entries.append(entry)
        if entry.status == "waiting":
            report.waiting.append(entry.name)
        elif entry.result is None:
            report.failed[entry.name] = entry.note
        else:
            write_png(entry.result, out / f"{entry.name}.png", force=True)
            report.done.append(entry.name)
    write_gallery(entries, job_summary(book, level, state), report.gallery)
    write_contact_sheet(entries, out / SHEET)
    return report


def decrypted(
    home: Home,
    store: Store,
    book: JobBook,
    level: QualityLevel,
    network: IntegerNetwork,
    ask: AskPassphrase | None = None,
) -> tuple[JobState, Iterator[Entry]]:
    """A job's state, and its pairs one after the other: decrypted, failed, or waiting.

    Raises:
        InputError: if the key set's passphrase is wrong or missing.
        CircuitError: if this installation's circuits are not the job's.
    """
    circuits, plan = build_level(level, network, home.circuits, book.canvas)
    if circuits.name != book.model_id:
        raise CircuitError(
            f"job {book.job_id} ran on circuits {book.model_id}, this version has "
            f"{circuits.name}; fetch it with the version that submitted it"
        )
    cipher = KeyRing(home.keys).cipher(book.key_id, circuits, ask)
    # The state first: pairs that end in between are shown as what they are.
    state = read_state(store, book.job_id)
    ended = read_marks(store, read_job(store, book.job_id)).ended
    states = pair_states([pair.pair_id for pair in book.pairs], state, ended)
    costs = pair_costs(store, book.job_id, plan, book.pairs)
    pictures = home.pictures(book.job_id)

    def entry_of(pair: BookPair) -> Entry:
        content, style = pictures[pair.content], pictures[pair.style]
        box = box_of(pair)
        shown = (cut_out(content.rgb, box), style.rgb)
        record = ended.get(pair.pair_id)
        if record is None:
            note = waiting_note(book, states[pair.pair_id])
            return Entry(pair.name, "waiting", *shown, None, note)
        try:
            result = _result(store, book, pair, record, cipher, network, content, style)
        except NstBatchError as error:
            return Entry(pair.name, "failed", *shown, None, str(error))
        facts = pair_facts(costs[pair.pair_id])
        return Entry(pair.name, "succeeded", *shown, cut_out(result, box), facts=facts)

    skipped = [Entry(s.name, "failed", None, None, None, s.reason) for s in book.skipped]
    return state, chain(map(entry_of, book.pairs), skipped)


def _result(
    store: Store,
    book: JobBook,
    pair: BookPair,
    record: PairEnd,
    cipher: Cipher,
    network: IntegerNetwork,
    content: Picture,
    style: Picture,
) -> Floats:
    if record.status == "failed":
        raise InputError(record.reason)
    rows, cells = (side // CELL for side in content.rgb.shape[1:])
    if record.rows != rows:
        raise CircuitError(
            f"result of {pair.name} has {record.rows} rows, not {rows}; submit the pair again"
        )
    blobs = (
        store.read(layout.result_row(book.job_id, record.attempt, pair.pair_id, row))
        for row in range(record.rows)
    )
    levels = cipher.decrypt_result(blobs, pair.name)
    if levels.shape[1:] != (rows, cells):
        raise CircuitError(f"result of {pair.name} has another size; submit the pair again")
    return finish(network, content, style, levels)


def make_folder(out: Path) -> None:
    """Create an output folder; raises InputError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {out} ({error.strerror}); choose another --out") from error


def refuse_overwriting(out: Path, names: list[str], force: bool) -> None:
    """Before any work: raise InputError if a picture would be replaced without `--force`."""
    taken = [name for name in names if (out / f"{name}.png").exists()]
    if taken and not force:
        raise InputError(
            f"{out} already holds {taken[0]}.png"
            + (f" and {len(taken) - 1} more" if len(taken) > 1 else "")
            + "; use --force or another --out"
        )
