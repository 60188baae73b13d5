"""The server of a service: takes jobs from the store, runs them, publishes their results.

One loop, a look every few seconds. Customers take turns: while others wait, a job that has had its
time is stopped after the end of its next pair and goes to the back of the queue; the driver that
takes it up again goes on where it was. Whatever a job does, the worst is that it fails itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from jobs.execution.launch import Launch, jobs_api
from jobs.execution.loading import ModelPin
from jobs.options import Target
from jobs.service.accounts import Accounts, Quota
from jobs.service.claims import Claims, Held
from jobs.service.metrics import Metrics
from jobs.service.offers import Offered, offer_of_model
from jobs.service.places import Place
from jobs.service.queue import Waiting, dequeue, is_queued, waiting
from jobs.storage import layout
from jobs.storage.records import (
    JobRecord,
    JobState,
    read_job,
    read_marks,
    read_state,
    write_record,
)
from jobs.storage.store import Store, open_store
from nst.engines import get_engine
from nst.errors import (
    CircuitError,
    ClusterError,
    NstBatchError,
    StoreContentError,
    StoreError,
    first_line,
)
from nst.machine import available_memory
from nst.parsing import is_id

log = logging.getLogger("nst-batch.service")
LOOK_EVERY = 5.0
"""Seconds between two looks at the queues."""
HEARTBEAT_EVERY = 15.0
ASK_EVERY = 5.0
"""Seconds between two questions to a cluster whether a driver runs."""
STOP_SECONDS = 20.0
"""For a driver to end by itself before it is killed."""
MOST_TURNS_WITHOUT_A_PAIR = 6
"""Turns after which a job makes room although no pair of it has ended."""
MOST_FAILURES = 3
"""Drivers of a job that may die before it is given up."""
MOST_CUSTOMERS = 100_000
SOON_S, AWAY_S = 60.0, 30.0
"""Seconds from now that `once` waits for, and until what is out of reach is tried again."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        actors: Of all drivers together; on a cluster, 0 is one per CPU.
        here: Whether drivers run on this machine, whose memory bounds how many actors they get.
        at_once: Jobs at a time.
        turn_s: Seconds after which a job makes room for another customer's.
        quota: What each customer may use.
    """

    actors: int
    here: bool
    at_once: int
    turn_s: float
    quota: Quota


class RunningDriver(Protocol):
    """A driver that this server has started."""

    def ended(self) -> bool:
        """Whether it runs no more."""
        ...

    def stop(self) -> None:
        """End it and wait for that."""
        ...


@dataclass
class Running:
    """A job at work.

    Attributes:
        customer: Whose, empty in the service's own store.
        unit: Who takes turns: the customer, or the key set.
        store: The customer's.
        job: Its record.
        held: This server's claim.
        driver: What runs it.
        cores: Actors that it was given.
        since: When it was started, by the monotonic clock.
        pairs_before: How many of its pairs had ended then.
    """

    customer: str
    unit: str
    store: Store
    job: JobRecord
    held: Held
    driver: RunningDriver
    cores: int
    since: float
    pairs_before: int
    renewed: float = field(default_factory=time.monotonic)


class Server:
    """A server of the jobs of one service."""

    def __init__(
        self,
        store_url: str,
        private: str,
        owner: str,
        limits: Limits,
        metrics: Metrics,
        start: Callable[[Launch], RunningDriver],
    ) -> None:
        """Open the service's store.

        Args:
            store_url: The service's, see `jobs.service.places`.
            private: Where server bundles are: a folder with one per model, or a store's URL.
            owner: Fingerprint of whose offers are served: no other's models are loaded.
            limits: What is taken on.
            metrics: Told what happens.
            start: Starts a driver: `LocalProcess`, or `ClusterJob` of a cluster.

        Raises:
            StoreError: if the store does not answer, or there is none.
        """
        self.store = open_store(store_url)
        self._offers = open_store(Place(store_url).offers)
        self.private, self.owner, self.limits = private, owner, limits
        self.metrics, self._start = metrics, start
        self.claims = Claims(self.store)
        self.accounts = Accounts(self.store, self.claims.server)
        self.running: list[Running] = []
        self.stopping = threading.Event()
        self._stores: dict[str, Store] = {}
        self._known: dict[str, dict[str, Waiting]] = {}
        self._served: dict[str, float] = {}
        """By unit, when it last had its turn."""
        self._said: dict[str, str] = {}
        """By customer, the last trouble: it is said once, not at each look."""
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def run(self, once: bool = False) -> None:
        """Serve until `stopping` is set, or with `once` until nothing is left to do here.

        Drivers are ended then; their jobs wait for the next server.
        """
        try:
            while not self.stopping.is_set():
                try:
                    busy = self.look()
                except StoreError as error:
                    log.warning("%s", error)
                    busy = True
                if once and not busy:
                    return
                self.stopping.wait(LOOK_EVERY)
        finally:
            for running in list(self.running):
                with suppress(NstBatchError):
                    self._put_back(running)

    def look(self) -> bool:
        """One look at what runs and what waits; returns whether there is any to be done soon.

        Raises:
            StoreError: if the service's store does not answer.
        """
        for running in list(self.running):
            with self._sparing_others(running.unit):
                self._attend(running)
        queue = list(self._waiting())
        mine = {(r.customer, r.job.job_id) for r in self.running}
        left = [(c, w) for c, w in queue if (c, w.job_id) not in mine]
        left.sort(key=lambda each: (self._served.get(_unit(*each), 0.0), each[1].since))
        for customer, job in left:
            unit = _unit(customer, job)
            if self._not_before.get(job.job_id, 0.0) > time.monotonic():
                continue
            if any(r.unit == unit for r in self.running) and any(
                _unit(*each) != unit for each in left
            ):
                continue  # One job of a customer's at a time while others wait.
            if not self._room(unit):
                break
            with self._sparing_others(unit):
                self._take(customer, job)
        self.metrics.looked(len(left), len(self.running))
        # A job that waits for tomorrow's quota keeps nobody.
        soon = time.monotonic() + SOON_S
        return bool(self.running) or any(
            self._not_before.get(job.job_id, 0.0) < soon for _, job in left
        )

    def _waiting(self) -> Iterator[tuple[str, Waiting]]:
        """All queues: each job with its customer, who is empty in the service's own store."""
        names = self.store.children(layout.CUSTOMERS, MOST_CUSTOMERS)
        for customer in ["", *(name for name in names if is_id(name))]:
            with self._sparing_others(customer):
                known = self._known.setdefault(customer, {})
                for job in waiting(self._store_of(customer), known):
                    yield customer, job

    def _store_of(self, customer: str) -> Store:
        if customer not in self._stores:
            place = Place(self.store.url, customer)
            self._stores[customer] = open_store(place.store) if customer else self.store
        return self._stores[customer]

    @contextmanager
    def _sparing_others(self, who: str) -> Iterator[None]:
        """Log what goes wrong with one customer's store or job: it is no other's."""
        try:
            yield
        except NstBatchError as error:
            if self._said.get(who) != str(error):
                self._said[who] = str(error)
                log.warning("customer %s: %s", who or layout.NO_CUSTOMER, error)

    def _room(self, unit: str) -> bool:
        """Whether another job may start; ends the turn of one that has had its time if not."""
        if len(self.running) < self.limits.at_once:
            return True
        late = [r for r in self.running if r.unit != unit and self._turn_is_over(r)]
        if not late:
            return False
        running = min(late, key=lambda r: r.since)
        with self._sparing_others(running.unit):
            log.info("job %s: its turn is over", running.job.job_id)
            self._put_back(running)
        return len(self.running) < self.limits.at_once

    def _turn_is_over(self, running: Running) -> bool:
        lasted = time.monotonic() - running.since
        if lasted < self.limits.turn_s:
            return False
        if lasted >= self.limits.turn_s * MOST_TURNS_WITHOUT_A_PAIR:
            return True
        return _ended_pairs(running.store, running.job) > running.pairs_before

    def _take(self, customer: str, job: Waiting) -> None:
        """Claim a job and start its driver, unless it is at its end or cannot be run."""
        held = self.claims.take(customer, job.job_id)
        if held is None:
            return
        store = self._store_of(customer)
        try:
            self._begin(customer, _unit(customer, job), store, held)
        except NstBatchError as error:
            if error.exit_code != StoreError.exit_code:
                self._give_up(store, held, first_line(error))
                return
            # A store or a cluster that is away says nothing of the job.
            self._not_before[job.job_id] = time.monotonic() + AWAY_S
            self.claims.release(held)
            raise
        except BaseException:
            self.claims.release(held)
            raise

    def _begin(self, customer: str, unit: str, store: Store, held: Held) -> None:
        """Start a driver for a job that is claimed.

        Raises:
            NstBatchError: if the job cannot be run, and why.
        """
        job_id, quota = held.job_id, self.limits.quota
        if not is_queued(store, job_id):
            self.claims.forget(held)
            return
        job = read_job(store, job_id, quota.pairs)
        marks = read_marks(store, job)
        if marks.cancelled:
            state = _state_of(store, job)
            if not state.finished:
                state.status = "cancelled"
                write_record(store, layout.state(job_id), state)
            self._close(store, held, "cancelled")
            return
        if 0 < quota.core_hours * 3600 <= self.accounts.today(customer):
            log.info("customer %s: the quota of the day is used up", customer)
            self._not_before[job_id] = time.monotonic() + 10 * HEARTBEAT_EVERY
            self.claims.release(held)
            return
        offered = offer_of_model(self._offers, job.model_id)
        if offered is None or offered.owner != self.owner:
            raise CircuitError(f"model {job.model_id} is not offered here any more; take another")
        actors = self._actors(offered)
        launch = Launch(store.url, job_id, self._pin(offered, job), actors)
        before = _ended_pairs(store, job)
        driver = self._start(launch)
        log.info("job %s: started, customer %s, %d actors", job_id, customer, actors)
        self.metrics.started()
        self.running.append(
            Running(
                customer=customer,
                unit=unit,
                store=store,
                job=job,
                held=held,
                driver=driver,
                cores=max(actors, 1),
                since=time.monotonic(),
                pairs_before=before,
            )
        )
        self._served[unit] = time.time()

    def _actors(self, offered: Offered) -> int:
        """Of one driver: its share, and no more than fit into this machine's memory."""
        share = self.limits.actors // self.limits.at_once
        if not self.limits.here:
            return share
        memory = available_memory()
        each = get_engine(offered.offer.engine).rates().actor_bytes
        fit = int(memory / each) if memory and each else share
        return max(min(share, fit), 1)

    def _pin(self, offered: Offered, job: JobRecord) -> ModelPin:
        offer, private = offered.offer, self.private
        folder = private if "://" in private else f"{private}/{offer.model_id}"
        return ModelPin(job.model_id, job.key_id, offer.plan, offer.server, folder)

    def _attend(self, running: Running) -> None:
        """Look after a job at work: its sign of life, its end."""
        job_id = running.job.job_id
        if time.monotonic() - running.renewed > HEARTBEAT_EVERY:
            if not self.claims.renew(running.held):
                log.warning("job %s: another server has it; left to that", job_id)
                running.driver.stop()
                self.running.remove(running)
                return
            running.renewed = time.monotonic()
        if not running.driver.ended():
            return
        self.running.remove(running)
        self._account(running)
        state = _state_of(running.store, running.job)
        left = state.pairs_total - state.pairs_done - state.pairs_failed
        if state.finished and not (state.status == "failed" and left):
            log.info("job %s: %s", job_id, state.status)
            self._close(running.store, running.held, state.status)
            return
        self._failures[job_id] = count = self._failures.get(job_id, 0) + 1
        if count >= MOST_FAILURES:
            reason = state.reason or f"{count} drivers of it have died"
            self._give_up(running.store, running.held, reason)
            return
        log.warning("job %s: its driver ended; it is tried again", job_id)
        self._not_before[job_id] = time.monotonic() + 5.0 * count
        self._requeue(running)

    def _put_back(self, running: Running) -> None:
        """Stop a job that is not at its end; it waits again."""
        running.driver.stop()
        self.running.remove(running)
        self._account(running)
        self._served[running.unit] = time.time()
        self._requeue(running)

    def _requeue(self, running: Running) -> None:
        job_id = running.job.job_id
        state = _state_of(running.store, running.job)
        if not state.finished or state.status == "failed":
            state.status, state.reason, state.pairs_running = "queued", "", []
            state.heartbeat = running.store.clock()
            write_record(running.store, layout.state(job_id), state)
        self.claims.release(running.held)

    def _account(self, running: Running) -> None:
        spent = (time.monotonic() - running.since) * running.cores
        self.metrics.spent(spent)
        self.accounts.add(running.customer, spent)

    def _give_up(self, store: Store, held: Held, reason: str) -> None:
        """End a job that cannot be run; its customer sees why, and may retry it."""
        log.warning("job %s: given up: %s", held.job_id, reason)
        # Its own record may be what is wrong with it.
        state = JobState()
        with suppress(StoreContentError):
            state = read_state(store, held.job_id)
        state.status, state.reason, state.pairs_running = "failed", reason, []
        write_record(store, layout.state(held.job_id), state)
        self._close(store, held, "failed")

    def _close(self, store: Store, held: Held, status: str) -> None:
        """Take a job that is at its end out of the queue."""
        self._failures.pop(held.job_id, None)
        self.metrics.ended(status)
        dequeue(store, held.job_id)
        self.claims.forget(held)


def _state_of(store: Store, job: JobRecord) -> JobState:
    """The state of a job; one that cannot be read says that it failed."""
    try:
        return read_state(store, job.job_id, len(job.pairs))
    except StoreContentError as error:
        return JobState(status="failed", pairs_total=len(job.pairs), reason=first_line(error))


def _ended_pairs(store: Store, job: JobRecord) -> int:
    state = _state_of(store, job)
    return state.pairs_done + state.pairs_failed


def _unit(customer: str, job: Waiting) -> str:
    """Who takes turns: a customer; in the service's own store, where all are one, a key set."""
    return customer or job.key_id


class LocalProcess:
    """A driver that is a process of this machine, and ends with this one."""

    def __init__(self, launch: Launch) -> None:
        # What a driver prints goes where this server's own lines go.
        self._process = launch.here(sys.stderr.buffer, subprocess.PIPE, ["--with-parent"])

    def ended(self) -> bool:
        """See `RunningDriver`."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """See `RunningDriver`; its actors end with it."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                return


class ClusterJob:
    """A driver that is a job of a Ray cluster, whose nodes must reach the private place."""

    def __init__(self, target: Target, launch: Launch) -> None:
        self._address = target.cluster
        self._submission = launch.on_cluster(target, launch.pin.folder)
        self._asked, self._over = -ASK_EVERY, False

    def ended(self) -> bool:
        """See `RunningDriver`; a cluster that is silent may run it."""
        if not self._over and time.monotonic() - self._asked > ASK_EVERY:
            self._asked = time.monotonic()
            with suppress(ClusterError), jobs_api(self._address) as client:
                self._over = client.get_job_status(self._submission).is_terminal()
        return self._over

    def stop(self) -> None:
        """See `RunningDriver`."""
        with suppress(ClusterError), jobs_api(self._address) as client:
            client.stop_job(self._submission)
        deadline = time.monotonic() + STOP_SECONDS
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(1.0)


@contextmanager
def until_signalled(server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT end a server at its next look: it stops its drivers and lets go."""

    def end(number: int, frame: object) -> None:
        server.stopping.set()

    before = [(each, signal.signal(each, end)) for each in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)
