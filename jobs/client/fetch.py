"""The client's half of a job's end: download, decrypt, finish, write pictures and a gallery.

Pairs go through one after the other, so that a job may have more pictures than fit into memory.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import floor
from pathlib import Path

import numpy as np

from jobs.client import lifecycle
from jobs.client.costs import pair_costs
from jobs.client.facts import job_summary, pair_facts, quality_fact, waiting_note
from jobs.client.gallery import (
    GALLERY,
    Entry,
    Summary,
    further_pages,
    sheet_name,
    write_gallery,
)
from jobs.client.home import Home, LocalJob, LocalPair
from jobs.client.offered import open_offered
from jobs.client.pairs import Pair, Skipped
from jobs.client.pictures import Fit, cut_out, is_own, write_png
from jobs.client.preparation import prepared_pairs
from jobs.client.session import Session
from jobs.client.wording import many
from jobs.storage import layout
from jobs.storage.records import (
    JobState,
    PairEnd,
    TaskTrace,
    pair_states,
    read_job,
    read_marks,
    read_state,
    read_trace,
)
from jobs.storage.store import Store
from nst.ciphertext import Envelope, most_bytes
from nst.engines.base import Cipher, Features, Plan
from nst.errors import CircuitError, InputError, NstBatchError, StoreError
from nst.model import Model
from nst.pictures.picture import Picture

MOST_NAMED = 5
MOST_TRACED = 200_000
"""Tasks whose times are read: of more, what each pair took is left out."""
log = logging.getLogger("nst-batch")


LEAST_AGREEMENT = 0.6
"""Share of levels in which a result agrees with the same network computed in the clear. Honest
results do in 80 to 89 %, swapped, replayed, upside-down or foreign ones in 26 to 41 %."""


@dataclass
class Fetched:
    """What was written into a folder: names of pairs, by outcome; doubtful ones are done, too."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    gallery: Path = Path()
    deleted: bool = False
    """Whether the job is gone, so that what was written may be published."""


def fetch(session: Session, local: LocalJob, out: Path, force: bool) -> Fetched:
    """Decrypt what is ready of a job into PNG files named after the pairs, and a gallery.

    A pair whose result cannot be decrypted counts as failed; the others are written.

    Raises:
        InputError: if the output folder cannot be written or holds pictures already, or the key
            set's passphrase is wrong or missing.
        CircuitError: if the job's model is neither this installation's nor cached.
    """
    make_folder(out)
    refuse_overwriting(out, [pair.name for pair in local.pairs], force)
    state, entries = decrypted(session, local)
    report = _write(entries, job_summary(local, state), out)
    if local.publishable and not report.waiting:
        _delete_published(session, local, report)
    return report


def _delete_published(session: Session, local: LocalJob, report: Fetched) -> None:
    """Delete a job whose results may be published, unless some could be computed again."""
    if any(pair.name in report.failed for pair in local.pairs):
        log.warning(
            "pairs failed, so the job's ciphertexts stay in the store; before you publish: "
            "nst-batch retry %s --failed, or nst-batch delete %s",
            *(local.job_id, local.job_id),
        )
        return
    lifecycle.delete(session, local)
    report.deleted = True


def preview(
    pairs: list[Pair], skipped: Iterable[Skipped], model: Model, fit: Fit, out: Path, force: bool
) -> Fetched:
    """Compute in the clear what a job of pairs will produce, and write it as `fetch` does.

    Args:
        pairs: What the user asked for.
        skipped: What of it could not be used, to be shown in the gallery.
        model: Which network, and the size of contents and results.
        fit: How contents of other proportions are brought to that size.
        out: Where to.
        force: Replace pictures that are there.

    Raises:
        InputError: if the output folder cannot be written or holds pictures already.
    """
    make_folder(out)
    refuse_overwriting(out, [pair.name for pair in pairs], force)

    def entries() -> Iterator[Entry]:
        for item in chain(prepared_pairs(pairs, model, fit), skipped):
            if isinstance(item, Skipped):
                yield Entry.skipped(item.name, item.reason)
                continue
            content = cut_out(item.content.input.picture.rgb, item.box)
            result = cut_out(item.preview(model), item.box)
            yield Entry(item.name, "succeeded", content, item.style.input.picture.rgb, result)

    quality = ("quality", quality_fact(model.level.name, model.size))
    return _write(entries(), Summary("Previews, computed in the clear", (quality,)), out)


def _write(entries: Iterable[Entry], summary: Summary, out: Path) -> Fetched:
    """Pictures of entries as they come, then gallery and contact sheet."""
    report = Fetched()

    def written() -> Iterator[Entry]:
        for entry in entries:
            if entry.status == "waiting":
                report.waiting.append(entry.name)
            elif entry.result is None:
                report.failed[entry.name] = entry.note
            else:
                write_png(entry.result, out / f"{entry.name}.png", force=True)
                report.done.append(entry.name)
                if entry.note:
                    report.doubtful.append(entry.name)
            yield entry

    report.gallery = write_gallery(written(), summary, out)
    if report.doubtful:
        log.warning(
            "%s not what the network makes of the pictures: %s; the server computed something "
            "else. Do not report this to whoever runs it, and do not submit again by habit: see "
            "docs/security.md",
            many(len(report.doubtful), "result") + (" is" if len(report.doubtful) == 1 else " are"),
            ", ".join(report.doubtful[:MOST_NAMED])
            + (" …" if report.doubtful[MOST_NAMED:] else ""),
        )
    return report


def decrypted(session: Session, local: LocalJob) -> tuple[JobState, Iterator[Entry]]:
    """A job's state, and its pairs one after the other: decrypted, failed, or waiting.

    Raises:
        InputError: if the key set's passphrase is wrong or missing.
        CircuitError: if the job's model is neither this installation's nor cached.
    """
    home, store = session.home, session.store
    model = model_of(home, local)
    cipher = model.cipher(session.ring, local.key_id, session.ask)
    # The state first: pairs that end in between are shown as what they are.
    count = len(local.pairs)
    state = read_state(store, local.job_id, count)
    ended = read_marks(store, read_job(store, local.job_id, count)).ended
    states = pair_states([pair.pair_id for pair in local.pairs], state, ended)
    costs = pair_costs(_trace(store, local, model.plan), model.plan, local.pairs)
    pictures = home.pictures(local.job_id)
    results = _Results(store, local, model, cipher)

    def entry_of(pair: LocalPair) -> Entry:
        try:
            content, style = pictures[pair.content], pictures[pair.style]
        except InputError as error:
            return Entry.skipped(pair.name, str(error))
        shown = cut_out(content.rgb, pair.box), style.rgb
        end = ended.get(pair.pair_id)
        if end is None:
            note = waiting_note(local, states[pair.pair_id])
            return Entry(pair.name, "waiting", *shown, None, note)
        try:
            features = results.features(pair, end)
            result = model.finish(content, style, features)
        except NstBatchError as error:
            return Entry(pair.name, "failed", *shown, None, str(error))
        facts = pair_facts(costs.get(pair.pair_id))
        note = doubt(model, content, style, features, 1.0 if local.publishable else LEAST_AGREEMENT)
        if note and local.publishable:
            # Whatever differs may be a question about the key, and published it is the answer.
            return Entry(pair.name, "failed", *shown, None, note)
        return Entry(pair.name, "succeeded", *shown, cut_out(result, pair.box), note, facts)

    skipped = (Entry.skipped(s.name, s.reason) for s in local.skipped)
    return state, chain(map(entry_of, local.pairs), skipped)


def model_of(home: Home, local: LocalJob) -> Model:
    """The model that a job was submitted with.

    Raises:
        CircuitError: if it is neither this installation's nor cached.
    """
    if local.offer:
        return open_offered(home, local.offer, local.size)
    model = Model.load(local.quality, home.models, local.size, local.engine)
    try:
        return model.as_submitted(local.model_id)
    except CircuitError as error:
        raise CircuitError(
            f"job {local.job_id}: {error}; fetch it with the version that submitted it"
        ) from error


def doubt(
    model: Model,
    content: Picture,
    style: Picture,
    features: Features,
    least: float = LEAST_AGREEMENT,
) -> str:
    """Why a result cannot be that of its pair; empty if it can. Whoever made it is not told.

    Args:
        model: What should have computed it.
        content: As it was encrypted.
        style: Likewise.
        features: The result.
        least: Share of levels that agree if it can.
    """
    unknown = "" if least < 1 else "what it should be cannot be computed here"
    try:
        expected = model.prepare_content(content, model.prepare_style(style)).features
    except InputError:
        return unknown
    if expected.shape != features.shape:
        return unknown
    agreement = float(np.mean(np.abs(features - expected) < 0.5))
    if agreement >= least:
        return ""
    return (
        f"only {floor(100 * agreement)}% as computed in the clear: swapped, replayed or of another "
        "network. Do not report this to the server"
    )


def _trace(store: Store, local: LocalJob, plan: Plan) -> list[TaskTrace]:
    """When a job's tasks ran, if they fit into memory; no result depends on it."""
    tasks = len(local.pairs) * sum(stage.tasks for stage in plan.stages)
    if tasks > MOST_TRACED:
        return []
    try:
        return read_trace(store, local.job_id, tasks)
    except StoreError as error:
        log.warning("%s", error)
        return []


class _Results:
    """Reads and decrypts every result once, and keeps it while pairs that share it are to come."""

    def __init__(self, store: Store, local: LocalJob, model: Model, cipher: Cipher) -> None:
        self._store, self._local, self._model, self._cipher = store, local, model, cipher
        self._left = Counter(pair.result for pair in local.pairs)
        self._kept: dict[tuple[str, str], list[Features]] = {}

    def features(self, pair: LocalPair, end: PairEnd) -> Features:
        """Of a pair that has ended.

        Raises:
            InputError: if it has failed.
            CircuitError: if its result cannot be decrypted.
            StoreError: if the store does not give it.
        """
        key = pair.result, end.attempt
        if key not in self._kept:
            self._kept[key] = self._cipher.decrypt_result(self._parts(pair, end), pair.name)
        lanes = self._kept[key]
        self._left[pair.result] -= 1
        if not self._left[pair.result]:
            self._kept = {k: v for k, v in self._kept.items() if k[0] != pair.result}
        return lanes[pair.lane]

    def _parts(self, pair: LocalPair, end: PairEnd) -> Iterator[bytes]:
        """The packed parts of a pair's result."""
        if end.status == "failed":
            raise InputError(end.reason)
        plan, job_id = self._model.plan, self._local.job_id
        wanted = plan.stored.result_parts
        if end.parts != wanted:
            raise CircuitError(
                f"result of {pair.name} has {end.parts} parts, not {wanted}; submit the pair again"
            )
        for part in range(wanted):
            what = f"part {part} of {pair.name}"
            key = layout.result_part(job_id, end.attempt, pair.result, part)
            blob = self._store.read(key, most_bytes(1, plan.stored.result_part))
            envelope = Envelope.unpack(blob, what)
            envelope.require_place(layout.result_place(job_id, pair.result, part), what)
            plan.require_result(envelope, what)
            yield blob


def make_folder(out: Path) -> None:
    """Create an output folder; raises InputError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {out} ({error.strerror}); choose another --out") from error


def refuse_overwriting(out: Path, names: list[str], force: bool) -> None:
    """Before any work: raise InputError if a file would be replaced without `--force`.

    Gallery and contact sheet of an earlier call are replaced: they show what is there then.
    """
    taken = [f"{name}.png" for name in names if os.path.lexists(out / f"{name}.png")]
    shown = [out / GALLERY, out / sheet_name(names), *(path for _, path in further_pages(out))]
    taken += [path.name for path in shown if not is_own(path)]
    if taken and not force:
        raise InputError(
            f"{out} already holds {taken[0]}"
            + (f" and {len(taken) - 1} more" if len(taken) > 1 else "")
            + "; use --force or another --out"
        )
