"""A service without cryptography: offers, customers, turns, and what a server survives."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobs.client import lifecycle
from jobs.client.drivers import driver_of
from jobs.client.fetch import fetch
from jobs.client.home import Home, LocalJob
from jobs.client.offered import Service, open_offered
from jobs.client.run import go_on, ready, start
from jobs.client.session import Session
from jobs.execution.driver import walk_job
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.launch import Launch
from jobs.execution.recorder import Recorder
from jobs.options import RetryOptions, SubmitOptions
from jobs.service import claims, serving
from jobs.service.accounts import Quota
from jobs.service.claims import Claims
from jobs.service.metrics import Metrics, served
from jobs.service.offers import Offered, read_offers
from jobs.service.owner import owner_of, signing_key
from jobs.service.places import Place, require_apart
from jobs.service.publishing import publish
from jobs.service.queue import is_queued
from jobs.service.serving import Limits, RunningDriver, Server
from jobs.storage import layout
from jobs.storage.records import read_job, read_marks, read_state, write_record
from jobs.storage.store import Store, open_store
from nst.engines.base import KeyPair
from nst.engines.tasks import Task
from nst.errors import CircuitError, InputError, StoreContentError, StoreError
from nst.model import Model
from tests.command_line import refused, run
from tests.fakes import FakeEngine, FakeEvaluator
from tests.toy import offer_toy, toy_weights
from tests.user_pairs import folder_of

MODEL = "fake-toy"
ENOUGH = Quota(pairs=10_000, core_hours=0.0)


@dataclass
class Studio:
    """A service and its owner.

    Attributes:
        root: Its store.
        owner: The owner's data directory.
        pairs: A customer's folder of two pairs.
    """

    root: Path
    owner: Home
    pairs: Path
    started: list[Launch] = field(default_factory=list)

    @property
    def offers(self) -> Store:
        return open_store(Place(str(self.root)).offers, create=True)

    def publish(self, name: str = MODEL, key: Ed25519PrivateKey | None = None) -> Offered:
        model = Model.load("toy", self.owner.models, engine=FakeEngine.name)
        open_store(str(self.root), create=True)
        key = key or signing_key(self.owner.signing_key)
        return publish(model, self.offers, key, str(self.owner.models), name, "a song")

    def customer(self, name: str) -> Customer:
        return Customer(self, name, Home(self.root.parent / f"home-{name}"))

    def server(
        self,
        begin: Callable[[Launch], RunningDriver] | None = None,
        turn_s: float = 600.0,
        at_once: int = 1,
        quota: Quota = ENOUGH,
    ) -> Server:
        limits = Limits(actors=2, here=False, at_once=at_once, turn_s=turn_s, quota=quota)
        owner = owner_of(self.owner.signing_key)
        private = str(self.owner.models)
        return Server(str(self.root), private, owner, limits, Metrics(), begin or self.walk)

    def walk(self, launch: Launch) -> RunningDriver:
        self.started.append(launch)
        return Walk(launch)


@dataclass
class Customer:
    """Of a service, with a data directory and a part of the store of their own."""

    studio: Studio
    name: str
    home: Home

    @property
    def url(self) -> str:
        return Place(str(self.studio.root), self.name).store

    def submit(self, source: Path | None = None, **options: object) -> tuple[Session, LocalJob]:
        chosen = SubmitOptions(model=MODEL, store=self.url, **options)  # type: ignore[arg-type]
        batch = ready(source or self.studio.pairs, chosen, self.home, self.url)
        session = Session.open(self.home, self.url, create=True)
        local, _ = start(batch, chosen, session)
        return session, local


class Walk:
    """A driver that is a thread of this process; each task takes its time."""

    def __init__(self, launch: Launch, seconds: float = 0.0) -> None:
        self.store, self.over = open_store(launch.store), threading.Event()
        self.stopped = False
        job = read_job(self.store, launch.job_id)
        plan = launch.pin.job_plan(self.store, job)
        recorder: Recorder[bytes] = Recorder(self.store, job, launch.actors)
        executor = Slow(FakeEvaluator(), lambda: self.stopped, seconds)

        def work() -> None:
            try:
                walk_job(recorder, plan, executor)
            except Stopped:
                pass
            finally:
                self.over.set()

        threading.Thread(target=work, daemon=True).start()

    def ended(self) -> bool:
        return self.over.is_set()

    def stop(self) -> None:
        self.stopped = True
        assert self.over.wait(10)


class Stopped(BaseException):
    """As a signal ends a driver: nothing of it is written."""


class Slow(InProcessExecutor):
    def __init__(
        self, evaluator: FakeEvaluator, stopped: Callable[[], bool], seconds: float
    ) -> None:
        super().__init__(evaluator)
        self._stopped, self._seconds = stopped, seconds

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        if self._stopped():
            raise Stopped
        time.sleep(self._seconds)
        super().submit(task, inputs)


class Dead:
    """A driver that dies at once."""

    def __init__(self, launch: Launch) -> None:
        pass

    def ended(self) -> bool:
        return True

    def stop(self) -> None:
        pass


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    offer_toy(monkeypatch, toy_weights(tmp_path / "toy.safetensors"), tmp_path / "home")
    monkeypatch.setattr(FakeEngine, "make_keys", lambda *_: KeyPair(b"secret", os.urandom(4)))
    monkeypatch.setattr(serving, "LOOK_EVERY", 0.02)
    pairs = folder_of(tmp_path / "pairs", ["lake", "sea"])
    return Studio(tmp_path / "studio", Home(tmp_path / "owner"), pairs)


def served_all(server: Server) -> None:
    server.run(once=True)


def test_a_customer_gets_pictures_and_the_owner_keeps_the_model(
    studio: Studio, tmp_path: Path
) -> None:
    studio.publish()
    ann = studio.customer("ann")
    session, local = ann.submit()
    assert read_state(session.store, local.job_id).status == "queued"
    served_all(studio.server())
    assert read_state(session.store, local.job_id).status == "succeeded"
    report = fetch(session, local, tmp_path / "out", force=False)
    assert sorted(report.done) == ["lake", "sea"] and not report.doubtful
    assert not is_queued(session.store, local.job_id)
    assert not open_store(str(studio.root)).list("claims/")
    lifecycle.delete(session, local)
    assert open_store(ann.url).list("") == [layout.STORE]


def test_what_a_customer_can_read_is_listed_here(studio: Studio) -> None:
    offered = studio.publish()
    ann = studio.customer("ann")
    _, local = ann.submit()
    served_all(studio.server())
    offer = offered.offer
    assert set(studio.offers.list("")) == {
        layout.STORE,
        layout.offer(MODEL),
        layout.offered_model(offer.model_id),
        *(layout.offer_file(sha) for sha in (offer.plan, offer.client, offer.last)),
    }
    bundle = (studio.owner.models / offer.model_id / "server.zip").read_bytes()
    everything = [p.read_bytes() for p in studio.root.rglob("*") if p.is_file()]
    everything += [p.read_bytes() for p in ann.home.root.rglob("*") if p.is_file()]
    assert bundle and bundle not in everything
    kinds = {key.split("/")[0] for key in open_store(ann.url).list("")}
    assert kinds == {layout.STORE, "jobs", "keys"}
    assert local.offer == offered.offer_id


def test_turns_are_taken_by_customers(studio: Studio, tmp_path: Path) -> None:
    studio.publish()
    many = folder_of(tmp_path / "many", [f"p{i:02}" for i in range(12)])
    ann, bob = studio.customer("ann"), studio.customer("bob")
    session_a, long = ann.submit(many)
    server = studio.server(lambda launch: Walk(launch, 0.004), turn_s=0.2)
    worker = threading.Thread(target=server.run, args=(True,))
    worker.start()
    while read_state(session_a.store, long.job_id).pairs_done < 1:
        time.sleep(0.02)
    session_b, short = bob.submit()
    while not read_state(session_b.store, short.job_id).finished:
        assert worker.is_alive()
        time.sleep(0.02)
    at_that_time = read_state(session_a.store, long.job_id)
    assert at_that_time.pairs_done < 12 and not at_that_time.finished
    worker.join(60)
    state = read_state(session_a.store, long.job_id)
    assert (state.status, state.pairs_done) == ("succeeded", 12)


def test_a_server_that_dies_is_followed_by_another(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    first = studio.server(lambda launch: Walk(launch, 0.05))
    assert first.look()
    second = studio.server()
    second.look()
    assert not second.running, "the first one's claim is alive"
    # The first dies without a word, and its driver with it.
    (running,) = first.running
    running.driver.stop()
    monkeypatch.setattr(claims, "STALE_AFTER", -1.0)
    served_all(second)
    assert read_state(session.store, local.job_id).status == "succeeded"
    assert not first.claims.renew(running.held)
    first.look()
    assert not first.running
    ends = read_marks(session.store, read_job(session.store, local.job_id)).ended
    assert {end.status for end in ends.values()} == {"succeeded"}


def test_a_claim_of_a_process_that_is_gone_is_not_waited_for(studio: Studio) -> None:
    store = open_store(str(studio.root), create=True)
    mine, other = Claims(store), Claims(store)
    held = mine.take("ann", "job")
    assert held and not other.take("ann", "job")
    key = layout.claim("ann", "job", held.turn)
    record = json.loads(store.read(key))
    store.write(key, json.dumps({**record, "pid": 2**22 + 1}).encode())
    taken = other.take("ann", "job")
    assert taken and taken.turn == held.turn + 1 and not mine.renew(held)
    other.release(taken)
    assert mine.take("ann", "job")


def test_of_two_servers_one_has_a_job(studio: Studio) -> None:
    store = open_store(str(studio.root), create=True)
    servers = [Claims(store) for _ in range(8)]
    barrier, got = threading.Barrier(8), []

    def race(one: Claims) -> None:
        barrier.wait()
        got.append(one.take("ann", "job"))

    threads = [threading.Thread(target=race, args=(one,)) for one in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([held for held in got if held]) == 1


def test_a_bad_job_fails_and_the_others_go_on(studio: Studio) -> None:
    studio.publish()
    ann, bob, eve = (studio.customer(name) for name in ("ann", "bob", "eve"))
    session_a, damaged = ann.submit()
    session_b, sound = bob.submit()
    session_e, foreign = eve.submit()
    session_a.store.write(layout.job(damaged.job_id), b"{" * 100)
    record = read_job(session_e.store, foreign.job_id)
    changed = record.model_copy(update={"model_id": "0" * 16})
    write_record(session_e.store, layout.job(foreign.job_id), changed)
    session_e.store.write("queue/no-marker.json", b"\0")
    session_e.store.write(layout.state(foreign.job_id), b"[" * 1000)
    served_all(studio.server())
    assert read_state(session_b.store, sound.job_id).status == "succeeded"
    state = read_state(session_a.store, damaged.job_id)
    assert state.status == "failed" and "damaged" in state.reason
    state = read_state(session_e.store, foreign.job_id)
    assert state.status == "failed" and "not offered" in state.reason
    assert not is_queued(session_a.store, damaged.job_id)


def test_a_store_that_is_away_fails_no_job(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    server = studio.server()

    def away(*_: object) -> None:
        raise StoreError("store s3://studio: no answer")

    with monkeypatch.context() as patched:
        patched.setattr(serving, "read_job", away)
        server.look()
    assert read_state(session.store, local.job_id).status == "queued"
    assert is_queued(session.store, local.job_id)
    served_all(studio.server())
    assert read_state(session.store, local.job_id).status == "succeeded"


def test_what_a_customer_remembers_is_theirs_alone(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.publish()
    home = Home(tmp_path / "new" / "home")
    monkeypatch.setenv("NST_BATCH_HOME", str(home.root))
    assert run("models", "--store", str(studio.root)).exit_code == 0
    made = (home.root.parent, home.root, home.root / "owners")
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_a_job_whose_drivers_die_is_given_up_and_can_be_retried(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    server = studio.server(Dead)
    for _ in range(serving.MOST_FAILURES):
        server._not_before.clear()
        server.look()
        server.look()
    state = read_state(session.store, local.job_id)
    assert state.status == "failed" and "drivers of it have died" in state.reason
    left, driver = go_on(session, local, RetryOptions())
    assert left == 2 and driver is not None and driver.alive()
    served_all(studio.server())
    assert read_state(session.store, local.job_id).status == "succeeded"


def test_quotas_bound_a_customer(studio: Studio) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    server = studio.server(quota=Quota(1, 0.0))
    served_all(server)
    assert read_state(session.store, local.job_id).status == "failed"
    go_on(session, local, RetryOptions())
    server = studio.server(quota=Quota(10, 1.0))
    server.accounts.add("ann", 3600.0)
    served_all(server)
    assert read_state(session.store, local.job_id).status == "queued"
    assert server.accounts.today("ann") == 3600.0 and server.accounts.today("bob") == 0.0
    session_b, other = studio.customer("bob").submit()
    served_all(server)
    assert read_state(session_b.store, other.job_id).status == "succeeded"


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(studio: Studio) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    state = lifecycle.cancel(session, local, patience=0.1)
    assert state.status == "cancelled"
    served_all(studio.server())
    assert read_state(session.store, local.job_id).status == "cancelled"
    go_on(session, local, RetryOptions())
    assert driver_of(session, local).alive()
    server = studio.server(lambda launch: Walk(launch, 0.3))
    worker = threading.Thread(target=server.run, args=(True,))
    worker.start()
    while read_state(session.store, local.job_id).status != "running":
        time.sleep(0.02)
    state = lifecycle.cancel(session, local)
    worker.join(30)
    assert state.status == "cancelled" and state.pairs_done < 2
    assert not is_queued(session.store, local.job_id) and not server.running
    go_on(session, local, RetryOptions())
    with pytest.raises(InputError, match="wait for it, or cancel it first"):
        go_on(session, local, RetryOptions())
    with pytest.raises(InputError, match="leave --cluster and --here out"):
        go_on(session, local, RetryOptions(cluster=""))


def test_a_server_lets_go_when_it_is_ended(studio: Studio) -> None:
    studio.publish()
    session, local = studio.customer("ann").submit()
    server = studio.server(lambda launch: Walk(launch, 0.05))
    worker = threading.Thread(target=server.run)
    worker.start()
    while not server.running:
        time.sleep(0.01)
    server.stopping.set()
    worker.join(20)
    assert not server.running and read_state(session.store, local.job_id).status == "queued"
    served_all(studio.server())
    assert read_state(session.store, local.job_id).pairs_done == 2


def test_offers_are_their_owners(studio: Studio, tmp_path: Path) -> None:
    first = studio.publish()
    ann = studio.customer("ann")
    service = Service.of(ann.home, ann.url)
    model = service.model(MODEL)
    assert model.offer_id == first.offer_id and model.plan.model_id == first.offer.model_id
    # Somebody who can write to the store offers under the same name.
    studio.publish(key=Ed25519PrivateKey.generate())
    with pytest.raises(InputError, match=r"not by the one that you know; .* --owner [0-9a-f]{32}"):
        service.model(MODEL)
    with pytest.raises(InputError, match="not by the one that you know"):
        service.offers()
    assert service.model(MODEL, owner=read_offers(studio.offers)[0][0].owner)
    # A job of theirs is not run by a server of the first owner.
    session, local = ann.submit(owner=read_offers(studio.offers)[0][0].owner)
    served_all(studio.server())
    assert "not offered" in read_state(session.store, local.job_id).reason
    assert open_offered(ann.home, first.offer_id).plan.model_id == first.offer.model_id


@pytest.mark.parametrize("kind", ["plan", "client", "last"])
def test_files_of_an_offer_are_those_that_were_signed(studio: Studio, kind: str) -> None:
    offer = studio.publish().offer
    studio.offers.write(layout.offer_file(getattr(offer, kind)), b"another")
    ann = studio.customer("ann")
    with pytest.raises(StoreContentError, match="is not what its owner signed; do not use it"):
        Service.of(ann.home, ann.url).model(MODEL)
    assert not ann.home.offered.exists() or not list(ann.home.offered.iterdir())


def test_a_changed_offer_is_refused(studio: Studio) -> None:
    studio.publish()
    key = layout.offer(MODEL)
    signed = json.loads(studio.offers.read(key))
    payload = json.loads(signed["payload"])
    signed["payload"] = json.dumps({**payload, "contrast": 0.01})
    studio.offers.write(key, json.dumps(signed).encode())
    ann = studio.customer("ann")
    said: list[str] = []
    assert Service.of(ann.home, ann.url).offers(say=said.append) == []
    assert "is not signed by the owner that it names" in said[0]
    with pytest.raises(StoreContentError, match="is not signed by the owner"):
        Service.of(ann.home, ann.url).model(MODEL)
    with pytest.raises(StoreContentError, match="offers no model 'none'"):
        Service.of(ann.home, ann.url).model("none")


def test_an_offer_on_disk_is_checked_again(studio: Studio) -> None:
    studio.publish()
    ann = studio.customer("ann")
    model = Service.of(ann.home, ann.url).model(MODEL)
    (ann.home.offered / model.offer_id / "client.zip").write_bytes(b"else")
    with pytest.raises(CircuitError, match=r"client\.zip was changed"):
        open_offered(ann.home, model.offer_id)


def test_the_private_place_is_not_below_the_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which customers read; give another --private"):
        require_apart(str(tmp_path / "store" / "x"), str(tmp_path / "store"))
    with pytest.raises(InputError, match="which customers read"):
        require_apart(
            "s3://bucket/nst/private?endpoint=http://h", "s3://bucket/nst?endpoint=http://h"
        )
    require_apart("s3://bucket/nst-private", "s3://bucket/nst")
    require_apart(str(tmp_path / "home"), "s3://bucket/nst")


@pytest.mark.parametrize(
    ("url", "root", "customer"),
    [
        ("/a/customers/ann", "/a", "ann"),
        ("/a/mycustomers/ann", "/a/mycustomers/ann", ""),
        ("customers/ann", ".", "ann"),
        ("/customers/ann/", "/", "ann"),
        ("s3://bucket/x/customers/ann?endpoint=http://h", "s3://bucket/x?endpoint=http://h", "ann"),
        ("s3://bucket/customers/ann", "s3://bucket", "ann"),
    ],
)
def test_a_place_is_a_service_and_a_customer(url: str, root: str, customer: str) -> None:
    place = Place.of(url)
    assert (place.root, place.customer) == (root, customer)
    again = Place.of(place.store)
    assert (again.root.removeprefix("./"), again.customer) == (root, customer)
    with pytest.raises(InputError, match="no customer is called"):
        Place.of("/a/customers/An n")


def test_health_and_figures(studio: Studio) -> None:
    metrics = Metrics()
    with served(metrics, 0) as port:
        metrics.looked(3, 1)
        metrics.ended("succeeded")
        assert urlopen(f"http://127.0.0.1:{port}/healthz").read() == b"ok\n"
        figures = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        assert "nst_batch_service_jobs_waiting 3.0" in figures
        assert 'nst_batch_service_jobs_ended_total{status="succeeded"} 1.0' in figures
        metrics._last -= 1000
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://127.0.0.1:{port}/healthz")
        with pytest.raises(InputError, match="cannot be had"), served(Metrics(), port):
            pass


def test_commands_of_both_sides(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ann = str(studio.root), studio.customer("ann")
    fake = ("--quality", "toy", "--engine", FakeEngine.name)
    monkeypatch.setenv("NST_BATCH_HOME", str(studio.owner.root))
    done = run("publish", *fake, "--store", root, "--price", "a song")
    assert done.exit_code == 0 and MODEL in done.output, done.output
    refused(
        run("publish", *fake, "--store", root, "--private", f"{root}/private"),
        "which customers read",
    )
    owner = owner_of(studio.owner.signing_key)
    monkeypatch.setenv("NST_BATCH_HOME", str(ann.home.root))
    listed = json.loads(run("models", "--store", ann.url, "--json").stdout)
    assert [(row["name"], row["owner"], row["price"]) for row in listed] == [
        (MODEL, owner, "a song")
    ]
    assert "a song" in run("models", "--store", root).output
    refused(run("serve", "--store", root), "has no owner's key")
    sent = run("submit", studio.pairs, "--store", ann.url, "--model", MODEL, "--no-wait")
    assert sent.exit_code == 0, sent.output
    (local,) = ann.home.jobs()
    assert "queued" in run("status", local.job_id).output
    assert "keeps its log" in run("logs", local.job_id).output
    refused(run("submit", studio.pairs, "--model", MODEL), "needs the service's --store")
    taken = ("--store", ann.url, "--model", MODEL)
    refused(run("submit", studio.pairs, *taken, "--quality", "toy"), "leave out --quality")
    refused(run("submit", studio.pairs, *taken, "--cluster", "http://h"), "leave out --cluster")
    refused(run("submit", studio.pairs, *taken, "--sample", 1), "--sample needs")
    served_all(studio.server())
    out = tmp_path / "out"
    assert run("fetch", local.job_id, "--out", out).exit_code == 0
    assert {path.name for path in out.glob("*.png")} >= {"lake.png", "sea.png"}
    monkeypatch.setenv("NST_BATCH_HOME", str(studio.owner.root))
    gone = run("publish", "--store", root, "--withdraw", MODEL)
    assert gone.exit_code == 0, gone.output
    assert studio.offers.list("") == [layout.STORE]


def test_a_sample_comes_first(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.publish()
    ann, out = studio.customer("ann"), tmp_path / "out"
    monkeypatch.setenv("NST_BATCH_HOME", str(ann.home.root))
    server = studio.server()
    worker = threading.Thread(target=server.run)
    worker.start()
    try:
        taken = ("--store", ann.url, "--model", MODEL, "--out", out, "--sample", 1)
        asked = run("submit", studio.pairs, *taken)
        refused(asked, "to go on with all pairs", alone=False)
        assert (out / "sample" / "lake.png").exists() and not (out / "lake.png").exists()
        taken = ("--store", ann.url, "--model", MODEL, "--out", tmp_path / "two", "--sample", 1)
        assert run("submit", studio.pairs, *taken, "--yes").exit_code == 0
        assert (tmp_path / "two" / "sea.png").exists()
    finally:
        server.stopping.set()
        worker.join(20)
