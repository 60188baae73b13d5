"""Posts the end of a job to a webhook: ids and counts, and nothing that only its owner may know.

A webhook that fails is a warning; it never changes how a job ended.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from jobs.storage.records import JobState
from nst.errors import InputError

URL_VARIABLE = "NST_BATCH_NOTIFY_URL"
"""How a driver gets the address: every user of its machine can read its command line."""
ATTEMPTS, PAUSE = 4, 1.0
"""How often a webhook is called that does not answer, and seconds before the second call."""
TIMEOUT = 10.0
"""Seconds for an answer."""


def require_url(url: str) -> None:
    """Raise InputError if an address can never work: found now, and not at the end of the job."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InputError("--notify-url is no address; give https://host/path")


def message(job_id: str, state: JobState) -> dict[str, str | int]:
    """What is posted."""
    return {
        "job": job_id,
        "state": state.status,
        "succeeded": state.pairs_done,
        "failed": state.pairs_failed,
    }


def notify(url: str, told: dict[str, str | int]) -> str:
    """Post a message; returns the problem in one line, empty if there was none."""
    request = urllib.request.Request(
        url,
        data=json.dumps(told).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "nst-batch"},
        method="POST",
    )
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=PAUSE),
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )
    try:
        for attempt in retrying:
            with attempt, urllib.request.urlopen(request, timeout=TIMEOUT):
                pass
    except (OSError, ValueError) as error:
        return f"notify URL: {_reason(error)}"
    return ""


def _may_pass(error: BaseException) -> bool:
    """Whether it may work in a moment: there is no answer, or the server is too busy."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, OSError)


def _reason(error: Exception) -> str:
    """In one line, and without the URL, which may hold a secret."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return f"does not answer ({error.reason})"
    return getattr(error, "strerror", None) or type(error).__name__
