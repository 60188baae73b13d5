"""Health and figures of a server, for Prometheus, on the loopback interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from nst.errors import InputError

LATE = 120.0
"""Seconds without a look at the store after which a server is not well."""
HOST = "127.0.0.1"

Answer = Callable[[str, list[tuple[str, str]]], object]


class Metrics:
    """What a server has done so far, and when it last looked at the store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"nst_batch_service_{name}", what, registry=self.registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"nst_batch_service_{name}", what, labels, registry=self.registry)

        self._waiting = gauge("jobs_waiting", "Jobs in the queues")
        self._running = gauge("jobs_running", "Jobs at work on this server")
        self._looked = gauge("last_look_seconds", "When the store was last looked at")
        self._started = counter("drivers_started", "Drivers that this server started")
        self._ended = counter("jobs_ended", "Jobs at their end, by state", "status")
        self._spent = counter("core_seconds", "Core-seconds given to jobs")
        self.begun = time.time()
        self._last = self.begun

    def looked(self, waiting: int, running: int) -> None:
        """The store has been looked at."""
        self._last = time.time()
        self._looked.set(self._last)
        self._waiting.set(waiting)
        self._running.set(running)

    def started(self) -> None:
        """A driver has been started."""
        self._started.inc()

    def ended(self, status: str) -> None:
        """A job is at its end."""
        self._ended.labels(status).inc()

    def spent(self, core_s: float) -> None:
        """A driver has ended after so many core-seconds."""
        self._spent.inc(core_s)

    @property
    def well(self) -> bool:
        """Whether the store has been looked at lately."""
        return time.time() - self._last < LATE

    def application(self, environ: dict[str, object], start: Answer) -> Iterable[bytes]:
        """WSGI: /healthz says 200 or 503, /metrics the figures."""
        if environ.get("PATH_INFO") == "/healthz":
            status = "200 OK" if self.well else "503 Service Unavailable"
            start(status, [("Content-Type", "text/plain")])
            return [b"ok\n" if self.well else b"the store has not been looked at\n"]
        if environ.get("PATH_INFO") == "/metrics":
            return make_wsgi_app(self.registry)(environ, start)
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/healthz, /metrics\n"]


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of each request."""


@contextmanager
def served(metrics: Metrics, port: int | None) -> Iterator[int]:
    """Answer for metrics on a port of the loopback interface; 0 takes any, None answers nowhere.

    Raises:
        InputError: if the port is taken.
    """
    if port is None:
        yield 0
        return
    try:
        server = make_server(HOST, port, metrics.application, handler_class=_Silent)
    except OSError as error:
        raise InputError(f"port {port} cannot be had ({error.strerror}); give another") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
