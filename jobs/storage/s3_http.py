"""How much of an S3 server's answers botocore takes in, and how long it waits for all of one."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Any

from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
from urllib3.exceptions import HTTPError

from nst.errors import StoreContentError

ANSWER_BYTES, REFUSAL_BYTES = 8 << 20, 64 << 10
"""A page of a listing, whose 1,000 names have 1,024 bytes and are escaped; why S3 refuses."""
ANSWER_SECONDS, BLOB_SECONDS = 120.0, 600.0
"""For all of an answer, and for a part of a blob: 8 MB at 14 kB a second."""
CHUNK = 64 << 10


class Bounded:
    """Botocore's HTTP session, in place of the one that a client has."""

    def __init__(self, session: Any, store: str) -> None:
        """Take the session, and the store's name for errors."""
        self._session, self._store = session, store

    def send(self, request: Any) -> Any:
        """An answer to a request; what is no blob has been read to its end.

        Raises:
            StoreContentError: if it is larger than it can be.
        """
        is_blob, request.stream_output = request.stream_output, True
        answer = self._session.send(request)
        if is_blob and answer.status_code < 300:
            answer.raw = _Timed(answer.raw, BLOB_SECONDS, request.url)
            return answer
        limit = ANSWER_BYTES if answer.status_code < 300 else REFUSAL_BYTES
        try:
            answer._content = self._whole(_Timed(answer.raw, ANSWER_SECONDS, request.url), limit)
        except (HTTPError, HTTPException, OSError) as error:
            raise ConnectionClosedError(endpoint_url=request.url, error=error) from error
        return answer

    def _whole(self, raw: _Timed, limit: int) -> bytes:
        taken = bytearray()
        while more := raw.read(CHUNK):
            taken += more
            if len(taken) > limit:
                raw.close()
                raise StoreContentError(
                    f"store {self._store}: an answer is larger than the {limit:,} bytes that it "
                    "can have; ask the server's operator"
                )
        return bytes(taken)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()


class _Timed:
    """A body that gives what has come; one that comes too slowly ends as one that does not come."""

    def __init__(self, raw: Any, seconds: float, url: str) -> None:
        self._raw, self._url, self._end = raw, url, time.monotonic() + seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def read(self, amount: int) -> bytes:
        if time.monotonic() > self._end:
            self._raw.close()
            raise ReadTimeoutError(endpoint_url=self._url)
        # Not `read`, which waits until all of it is there.
        blob: bytes = self._raw.read1(amount)
        return blob
