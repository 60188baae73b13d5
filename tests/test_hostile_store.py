"""A store that lies in every record, size, frame, listing and id costs results, and nothing else.

`NST_BATCH_FUZZ` is the number of lies for a long run with new seeds (`make fuzz`); otherwise they
are few and always the same.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.stored import pin_in_store
from jobs.client.fetch import doubt, fetch
from jobs.client.home import Home, LocalJob
from jobs.client.pair_log import stages_of
from jobs.client.pairs import find_pairs
from jobs.client.preparation import prepare
from jobs.client.session import Session
from jobs.client.submit import submit
from jobs.client.view import Snapshot, table
from jobs.client.watch import describe
from jobs.execution.checkpoints import Checkpoints
from jobs.execution.driver import walk_job
from jobs.execution.loading import EvaluatorLoader
from jobs.execution.recorder import Recorder
from jobs.storage import layout, s3_http
from jobs.storage.local_store import LocalStore
from jobs.storage.records import JobRecord, PairEnd, read_job, read_marks, read_state, read_trace
from jobs.storage.s3_address import S3Address
from jobs.storage.s3_store import S3Store
from jobs.storage.store import check_format
from nst.ciphertext import Envelope
from nst.errors import CircuitError, NstBatchError, StoreContentError, StoreError
from nst.model import Model
from nst.network import levels
from nst.parsing import parse_json
from nst.pictures.picture import Picture
from nst.plain import plain
from tests.fakes import FakeEngine, fake_executor, run_job
from tests.toy import offer_toy, toy_weights
from tests.toy_job import EXAMPLES, NAME, ToyJob
from tests.user_pairs import folder_of

NAMES = ["lake", "sea"]
LONGEST = 10.0
"""Seconds that nothing may take."""
MOST_MEMORY = 100 << 20
"""Bytes that looking at a job of two pairs may add to a client's or a driver's memory."""
LIES = int(os.environ.get("NST_BATCH_FUZZ", "0"))
FUZZ = settings(
    max_examples=LIES or 60,
    derandomize=not LIES,
    deadline=LONGEST * 1000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
EVIL = "\x1b]0;x\x07\u202e[red]\x00"


@dataclass
class LyingStore(LocalStore):
    """A store with other blobs and keys than it has; a reader must say how much it takes."""

    root: Path
    blobs: dict[str, bytes] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    endless: bool = False

    def read(self, key: str, limit: int | None = None) -> bytes:
        assert limit is not None, f"{key} is read whatever its size"
        blob = self.blobs.get(key)
        if blob is None:
            return super().read(key, limit)
        if len(blob) > limit:
            raise StoreContentError(f"{plain(key)} is larger than {limit}")
        return blob

    def exists(self, key: str) -> bool:
        return key in self.blobs or super().exists(key)

    def list(self, prefix: str, limit: int = 10**6) -> list[str]:
        if self.endless:
            assert limit < 10**6, f"all of {prefix} is listed"
            raise StoreContentError(f"{prefix} lists more than {limit} names")
        return sorted({*super().list(prefix, limit), *(prefix + each for each in self.added)})


@dataclass(frozen=True)
class Ended:
    """A job of two pairs that has ended, with the keys of what a client reads of it."""

    session: Session
    book: LocalJob
    keys: list[str]
    out: Path

    def looked_at(self, store: LocalStore) -> set[str]:
        """All that a client does with it; the names of pairs whose results are there."""
        session, book = Session(self.session.home, store), self.book
        pairs, done = len(book.pairs), set[str]()

        def records() -> None:
            check_format(store)
            state = read_state(store, book.job_id, pairs)
            describe(state, time.time())
            job = read_job(store, book.job_id, pairs)
            table(Snapshot(book, state, read_marks(store, job).ended, ""))

        def trace() -> None:
            job = read_job(store, book.job_id, pairs)
            for run in stages_of(read_trace(store, book.job_id), job, book.pairs[0].pair_id):
                run.line()

        def results() -> None:
            report = fetch(session, book, self.out, force=True)
            done.update(report.done)
            for reason in report.failed.values():
                assert "\n" not in reason

        for look in (records, trace, results):
            try:
                look()
            except NstBatchError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
        return done


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        offer_toy(patch, toy_weights(folder / "toy.safetensors"), folder / "home")
        session = Session.open(Home(folder / "home"), str(folder / "store"), create=True)
        model = Model.load("toy", session.home.models, engine=FakeEngine.name)
        pairs, _ = find_pairs(folder_of(folder / "pairs", NAMES))
        book = submit(session, model, *prepare(pairs, model, "crop"))
        job = read_job(session.store, book.job_id)
        # What says the ends of many pairs is for these two.
        patch.setattr("jobs.storage.records.FEW", 0)
        patch.setattr("jobs.execution.recorder.FEW", 0)
        run_job(session.store, job, fake_executor(), 1)
        assert session.store.exists(layout.pair_ends(book.job_id))
        keys = session.store.list(layout.whole_job(book.job_id))
        read = [key for key in keys if "/inputs/" not in key] + [layout.STORE]
        yield Ended(session, book, read, folder / "out")


EVIL_VALUES = st.one_of(
    st.sampled_from(
        [
            *("NaN", "Infinity", "-Infinity", "1e999", "-1", "1e400", "0.5", "null", "true"),
            *("9" * 400, "9" * 5000, "-" + "9" * 30, "[]", "{}", '""', '"../../etc/passwd"'),
            *('"/etc/passwd"', json.dumps(EVIL), json.dumps("x" * 10**5), '"\\ud800"'),
            *("[" * 200 + "]" * 200, "[" * 10**5, '{"a":' * 10**4, "[" + "1," * 10**5 + "1]"),
        ]
    ),
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.text(max_size=20).map(json.dumps),
)


@st.composite
def twisted(draw: st.DrawFn, blob: bytes) -> bytes:
    """A blob with something else in it: another value in its JSON, other bytes, or too many."""
    kind = draw(st.sampled_from(["value", "value", "value", "flip", "cut", "other", "huge"]))
    start = 0 if blob[:1] in b"{[" else blob.find(b"{")
    end = blob.rfind(b"}", 0, 4096) + 1
    if kind == "value" and 0 <= start < end:
        # Wherever a value stands, by what surrounds it: the JSON need not stay any.
        text = blob[start:end].decode(errors="replace")
        places = [at + 1 for at, char in enumerate(text[:-1]) if char in ":[,"]
        at = draw(st.sampled_from(places))
        stop = min((text.find(c, at) for c in ",]}" if text.find(c, at) > 0), default=len(text))
        value = draw(EVIL_VALUES)
        return blob[:start] + (text[:at] + value + text[stop:]).encode() + blob[end:]
    if kind == "flip" and blob:
        at = draw(st.integers(0, len(blob) - 1))
        return blob[:at] + bytes([blob[at] ^ draw(st.integers(1, 255))]) + blob[at + 1 :]
    if kind == "cut":
        return blob[: draw(st.integers(0, len(blob)))]
    if kind == "huge":
        return draw(st.sampled_from([b"[", b" ", b"\x00"])) * (20 << 20)
    return draw(st.binary(max_size=200))


@FUZZ
@given(data=st.data())
def test_a_store_that_lies_costs_results_and_nothing_else(
    ended: Ended, data: st.DataObject
) -> None:
    store = LyingStore(Path(ended.session.store.url))
    for key in data.draw(st.sets(st.sampled_from(ended.keys), min_size=1, max_size=3)):
        true = ended.session.store.read(key)
        other = data.draw(st.sampled_from(ended.keys))
        store.blobs[key] = data.draw(
            st.one_of(twisted(true), st.just(ended.session.store.read(other)))
        )
    store.added = tuple(data.draw(st.lists(st.text(max_size=30), max_size=3)))
    store.endless = data.draw(st.booleans()) and data.draw(st.booleans())
    began = time.monotonic()
    with bounded_memory():
        done = ended.looked_at(store)
    assert time.monotonic() - began < LONGEST
    ours = {pair.name: pair.pair_id for pair in ended.book.pairs}
    whole = ("job.json", "state.json", "end.json", "ends.json")
    if not store.endless and not any(key.endswith(whole) for key in store.blobs):
        untouched = {n for n, i in ours.items() if not any(i in key for key in store.blobs)}
        assert untouched <= done, "one pair's damage is another's"


def test_parts_of_another_pair_or_row_are_refused(ended: Ended) -> None:
    store = ended.session.store
    parts = sorted(key for key in ended.keys if "/results/" in key)
    lies = LyingStore(Path(store.url), {parts[0]: store.read(parts[1])})
    assert len(ended.looked_at(lies)) == 1
    assert ended.looked_at(LyingStore(Path(store.url))) == set(NAMES)


@pytest.mark.parametrize(
    "text",
    ["NaN", "1e999", "[" * 10**5, "[" * 40 + "]" * 40, "9" * 5000, "{", ""],
)
def test_json_is_bounded_and_finite(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode())
    with pytest.raises(ValueError, match="more than 3"):
        parse_json(b"12345", 3)


@FUZZ
@given(data=st.data())
def test_envelopes_of_any_bytes_are_opened_or_refused(data: st.DataObject) -> None:
    good = Envelope("ab", "cd", (b"first", b"second"), 16, "job/pair/000.ct").pack()
    blob = data.draw(st.one_of(st.binary(max_size=300), twisted(good)))
    try:
        assert Envelope.unpack(blob, "it").pack() is not None
    except CircuitError as error:
        assert "\n" not in str(error)


def test_honest_results_of_a_trained_level_are_told_from_others(tmp_path: Path) -> None:
    """At the noise that ciphertexts add; shares of levels stand in docs/security.md."""
    model = Model.load("low", tmp_path)
    found, _ = find_pairs(EXAMPLES)
    pairs, _ = prepare(found[:3], model, "crop")
    rng = np.random.default_rng(0)
    made = [
        model.engine.simulate(model.network, model.level, pair.content, pair.style, rng)
        for pair in pairs
    ]
    pictures = [(p.content.input.picture, p.style.input.picture) for p in pairs]
    for (content, style), features in zip(pictures, made, strict=True):
        assert doubt(model, content, style, features) == ""
        for other in (features[:, ::-1], features[:, :, ::-1], *made):
            said = doubt(model, content, style, other)
            assert (said == "") == (other is features)
            assert other is features or "Do not report this" in said


def test_results_that_are_not_of_their_pictures_are_doubted_on_the_client_alone(
    toy_job: ToyJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    honest = fetch(toy_job.session, toy_job.local, tmp_path / "honest", force=False)
    assert honest.done == [NAME] and not honest.doubtful and not caplog.messages
    kept = toy_job.home.pictures(toy_job.local.job_id)
    home = Home(tmp_path / "home")
    home.root.mkdir()
    for name in ("keys", "models"):
        (home.root / name).symlink_to(toy_job.home.root / name)
    home.add_job(toy_job.local, [Picture(kept[i].rgb[:, ::-1].copy()) for i in range(len(kept))])
    store = toy_job.session.store
    before = store.list("")
    report = fetch(Session(home, store), toy_job.local, tmp_path / "out", force=False)
    assert report.done == report.doubtful == [NAME]
    (message,) = caplog.messages
    assert NAME in message and "Do not report this" in message
    assert "Do not report this" in report.gallery.read_text()
    assert store.list("") == before


@contextmanager
def bounded_memory() -> Iterator[None]:
    """AssertionError if what is done in this block takes too much at any time."""

    def of_process(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))

    before = of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    yield
    assert of_process("VmHWM") - before < MOST_MEMORY


HUGE = 1 << 40
"""Bytes of a file that has none on its disk."""


def put_in_place(path: Path, kind: str) -> None:
    """Something else than a blob, or one of a terabyte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    else:
        with path.open("wb") as file:
            file.truncate(HUGE)


@pytest.fixture
def begun(ended: Ended, tmp_path: Path) -> tuple[Model, JobRecord, LyingStore]:
    """Another job of two pairs that no driver has had; its store has readers say how much."""
    session = Session.open(ended.session.home, str(tmp_path / "store"), create=True)
    model = Model.load("toy", session.home.models, engine=FakeEngine.name)
    pairs, _ = find_pairs(folder_of(tmp_path / "pairs", NAMES))
    book = submit(session, model, *prepare(pairs, model, "crop"))
    return model, read_job(session.store, book.job_id), LyingStore(tmp_path / "store")


def driven(begun: tuple[Model, JobRecord, LyingStore]) -> dict[str, PairEnd]:
    """What a driver makes of a job, in bounded time and memory."""
    model, job, store = begun
    began = time.monotonic()
    with bounded_memory():
        walk_job(Recorder(store, job, 1), model.plan, fake_executor())
    assert time.monotonic() - began < LONGEST
    return read_marks(store, job).ended


def test_a_driver_says_of_all_that_it_reads_how_much(
    begun: tuple[Model, JobRecord, LyingStore],
) -> None:
    assert {end.status for end in driven(begun).values()} == {"succeeded"}


@pytest.mark.parametrize("kind", ["pipe", "link", "huge"])
def test_an_input_that_is_none_costs_a_driver_its_pair(
    begun: tuple[Model, JobRecord, LyingStore], kind: str
) -> None:
    _, job, store = begun
    bad, good = job.pairs
    put_in_place(store.root / layout.encrypted_input(job.job_id, bad.content), kind)
    ends = driven(begun)
    assert ends[good.pair_id].status == "succeeded"
    said = "larger than" if kind == "huge" else "is a link or no regular file"
    assert ends[bad.pair_id].status == "failed" and said in ends[bad.pair_id].reason


@pytest.mark.parametrize("kind", ["pipe", "link", "huge"])
def test_parts_of_another_driver_that_are_none_are_computed_again(
    begun: tuple[Model, JobRecord, LyingStore], kind: str
) -> None:
    _, job, store = begun
    for pair in job.pairs:
        put_in_place(store.root / layout.result_part(job.job_id, "other", pair.result, 0), kind)
    assert {end.status for end in driven(begun).values()} == {"succeeded"}


def test_a_checkpoint_has_the_size_of_its_task(
    begun: tuple[Model, JobRecord, LyingStore],
) -> None:
    model, job, store = begun
    graph = model.plan.graph(job.pairs, model.seconds)
    checkpoints = Checkpoints(store, job, bytes)
    task = next(task for task in graph.tasks if task.checkpoint)
    key = layout.checkpoint(job.job_id, task.group, task.stage, task.part)
    envelope = Envelope(job.key_id, job.model_id, (bytes(task.output_bytes),))
    store.write(key, envelope.pack())
    assert list(checkpoints.stored(graph).values()) == [key]
    assert checkpoints.read(key) == envelope.parts[0]
    put_in_place(store.root / key, "huge")
    with bounded_memory(), pytest.raises(StoreContentError, match="larger than"):
        checkpoints.read(key)
    checkpoints.close()


@pytest.mark.parametrize("what", ["keys", "plan", "bundle"])
def test_an_actor_loads_no_more_than_a_model_has(
    begun: tuple[Model, JobRecord, LyingStore], what: str
) -> None:
    _, job, store = begun
    pin = pin_in_store(store, job)
    key = {
        "keys": layout.evaluation_keys(job.key_id),
        "plan": layout.model_plan(job.model_id, pin.plan),
        "bundle": layout.model_server(job.model_id, pin.bundle),
    }[what]
    put_in_place(store.root / key, "huge")
    with bounded_memory(), pytest.raises(StoreContentError, match="larger than"):
        EvaluatorLoader(store.url, pin)()


Answer = tuple[int, dict[str, str], Iterable[bytes]]


@contextmanager
def lying_server(answer: Callable[[str], Answer]) -> Iterator[S3Store]:
    """A store on an S3 server that answers as told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for chunk in body:
                    self.wfile.write(chunk)
            except OSError:
                pass

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        yield S3Store(S3Address.parse(f"s3://bucket/p?endpoint={endpoint}"), patience=1)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def forever(chunk: bytes = bytes(1 << 16)) -> Iterator[bytes]:
    while True:
        yield chunk


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    "content_range",
    [
        *("bytes 0-9/99999999999999", "bytes 0-9/-1", "bytes 5-14/20", "bytes 0-9/5", "0-9"),
        *("bytes 0-9/NaN", "bytes */*", "bytes 0-9/" + "9" * 5000, ""),
    ],
)
def test_false_ranges_are_refused(content_range: str) -> None:
    headers = {"Content-Range": content_range, "Content-Length": "10", "ETag": '"e"'}
    answer = 206, headers, [bytes(10)]
    with lying_server(lambda _: answer) as store, pytest.raises(StoreError, match=r"^[^\n]+$"):
        store.read("a/b", 1000)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("length", ["", "9" * 12])
def test_endless_bodies_are_cut_off(length: str) -> None:
    began = time.monotonic()
    answer = 200, {"ETag": '"e"', **({"Content-Length": length} if length else {})}, forever()
    with lying_server(lambda _: answer) as store, pytest.raises(StoreError, match=r"^[^\n]+$"):
        store.read("a/b", 1000)
    assert time.monotonic() - began < LONGEST


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", [200, 403, 404])
@pytest.mark.parametrize("length", ["", "9" * 12])
def test_answers_that_are_no_blob_are_cut_off(status: int, length: str) -> None:
    headers = {"Content-Length": length} if length else {}
    began = time.monotonic()
    refused = pytest.raises(StoreError, match=r"^[^\n]+larger than the [0-9,]+ bytes[^\n]+$")
    with lying_server(lambda _: (status, headers, forever(b" " * (1 << 16)))) as store:
        with bounded_memory(), refused:
            store.list("m/")
        # A blob has the size that its reader says.
        with bounded_memory(), refused if status > 200 else pytest.raises(StoreError):
            store.read("a/b", 10)
    assert time.monotonic() - began < LONGEST


def trickle() -> Iterator[bytes]:
    """A byte at a time, each sooner than a socket gives up."""
    while True:
        time.sleep(0.05)
        yield b" "


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", [200, 403])
def test_answers_that_come_a_byte_at_a_time_are_given_up(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_http, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(s3_http, "BLOB_SECONDS", 0.5)
    headers = {"Content-Length": "100000", "ETag": '"e"'}
    with lying_server(lambda _: (status, headers, trickle())) as store:
        for ask in (lambda: store.list("m/"), lambda: store.read("a/b", 100_000)):
            began = time.monotonic()
            with pytest.raises(StoreError, match=r"^[^\n]+does not answer[^\n]+$"):
                ask()
            assert time.monotonic() - began < LONGEST


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("keys", ["p/{}", "{}", ""])
def test_endless_listings_are_cut_off(keys: str) -> None:
    numbers = count()

    def page(_: str) -> Answer:
        names = [keys.format(f"m/{next(numbers)}") for _ in range(10)] if keys else []
        contents = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in names)
        body = (
            "<ListBucketResult><IsTruncated>true</IsTruncated>"
            f"<NextContinuationToken>{next(numbers)}</NextContinuationToken>{contents}"
            "</ListBucketResult>"
        )
        return 200, {"Content-Length": str(len(body))}, [body.encode()]

    began = time.monotonic()
    endless = pytest.raises(StoreError, match=r"^[^\n]+(does not end|lists more than)[^\n]*$")
    with lying_server(page) as store, endless:
        store.list("m/", 50)
    assert time.monotonic() - began < LONGEST


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("body", [b"", b"<a>", b"<ListBucketResult><Contents/></ListBucketResult>"])
def test_answers_without_sense_are_one_line(body: bytes) -> None:
    with lying_server(lambda _: (200, {"Content-Length": str(len(body))}, [body])) as store:
        for ask in (
            lambda: store.list("m/"),
            lambda: store.children("m/"),
            lambda: store.delete_prefix("m/"),
            store.clock,
            lambda: store.read("a", 10),
        ):
            try:
                ask()
            except StoreError as error:
                assert "\n" not in str(error)
