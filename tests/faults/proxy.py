"""A proxy in front of the S3 server, which does to requests what the server itself cannot."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Refusal = tuple[int, str]
"""Status and S3's name for it."""
Answer = tuple[int, list[tuple[str, str]], bytes]
HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


class Proxy:
    """Passes requests on, refuses some, and gives old answers to listings.

    Attributes:
        refuse: Says of a request, by its method and path, how it is refused, if it is.
        lag: Seconds for which a listing does not show what happens.
        refused: How many requests were.
    """

    def __init__(self, endpoint: str) -> None:
        """Listen on the loopback interface, in front of a server."""
        self._server = urlsplit(endpoint).netloc
        self.refuse: Callable[[str, str], Refusal | None] = lambda method, path: None
        self.lag, self.refused = 0.0, 0
        self._listings: dict[str, deque[tuple[float, Answer]]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, content = proxy._answer(self, body)
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        refusal = self.refuse(request.command, request.path)
        if refusal is not None:
            self.refused += 1
            status, code = refusal
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            length = [("Content-Length", str(len(text)))]
            return status, length, b"" if request.command == "HEAD" else text
        answer = self._passed_on(request, body)
        lists = request.command == "GET" and "list-type=2" in request.path
        return self._of_before(request.path, answer) if lists and self.lag else answer

    def _passed_on(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self._server, timeout=60)
        try:
            # The host that was signed is the proxy's.
            connection.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            found = connection.getresponse()
            content = found.read()
            kept = [(n, v) for n, v in found.getheaders() if n.lower() not in HOP_BY_HOP]
            if not any(name.lower() == "content-length" for name, _ in kept):
                kept.append(("Content-Length", str(len(content))))
            return found.status, kept, content
        finally:
            connection.close()

    def _of_before(self, path: str, answer: Answer) -> Answer:
        """What a listing said so long ago; an empty one if nobody had asked."""
        now = time.monotonic()
        known = self._listings.setdefault(path, deque())
        known.append((now, answer))
        old = [found for when, found in known if now - when >= self.lag]
        if old:
            return old[-1]
        text = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        headers = [(n, v) for n, v in answer[1] if n.lower() != "content-length"]
        return 200, [*headers, ("Content-Length", str(len(text)))], text
