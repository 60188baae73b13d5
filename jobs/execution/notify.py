"""Tells somebody that a job is over: a command on this machine, or a webhook.

What is told is ids and counts. A hook that fails is a warning; it never changes how a job ended.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from jobs.storage.records import JobState
from nst.errors import InputError

COMMAND_VARIABLE, URL_VARIABLE = "NST_BATCH_NOTIFY_COMMAND", "NST_BATCH_NOTIFY_URL"
FOLDER_VARIABLE = "NST_BATCH_NOTIFY_FOLDER"
"""How a driver is told: its command line can be read by everybody on its machine."""
VARIABLES = (COMMAND_VARIABLE, URL_VARIABLE, FOLDER_VARIABLE)
ATTEMPTS, PAUSE = 4, 1.0
"""How often a webhook is called that does not answer, and seconds before the second time."""
TIMEOUT = 10.0
"""Seconds for an answer."""
COMMAND_TIMEOUT = 60.0
"""Seconds for a command to end."""


@dataclass(frozen=True)
class Hook:
    """Whom to tell.

    Attributes:
        command: A program with arguments, run without a shell; gets the message as JSON on its
            standard input. Empty for none.
        url: Where the message is posted as JSON. Empty for nowhere.
        folder: Where the command runs: paths in it are the user's. Empty for the process's own.
    """

    command: str = ""
    url: str = ""
    folder: str = ""

    @staticmethod
    def from_environment() -> Hook:
        """What this process was started with."""
        return Hook(*(os.environ.get(name, "") for name in VARIABLES))

    def to_environment(self) -> dict[str, str]:
        """The variables for a process that is to tell."""
        values = (self.command, self.url, self.folder)
        return {name: value for name, value in zip(VARIABLES, values, strict=True) if value}

    def check(self) -> None:
        """Raise InputError if this can never work, so that nobody finds out in the morning."""
        if self.command:
            try:
                program = shlex.split(self.command)[0]
            except (ValueError, IndexError) as error:
                raise InputError(
                    f"--notify-command {self.command!r} is no command; check its quotation marks"
                ) from error
            if shutil.which(program) is None:
                raise InputError(f"--notify-command: no program {program}; check its path")
        if self.url:
            try:
                parts = urlsplit(self.url)
                good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                good = False
            if not good:
                raise InputError("--notify-url is no address; give https://host/path")


def message(job_id: str, state: JobState, status: str = "") -> dict[str, str | int]:
    """What is told of a job: nothing that only its owner may know."""
    return {
        "job": job_id,
        "state": status or state.status,
        "succeeded": state.pairs_done,
        "failed": state.pairs_failed,
    }


def notify(hook: Hook, told: dict[str, str | int]) -> Iterator[str]:
    """Tell, and yield a line for each way that did not work."""
    body = json.dumps(told)
    for what, tell, given in (
        ("notify command", _run, hook.command),
        ("notify URL", _post, hook.url),
    ):
        try:
            if given:
                tell(hook, body)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            yield f"{what}: {_reason(error)}"


def _run(hook: Hook, body: str) -> None:
    subprocess.run(
        shlex.split(hook.command),
        cwd=hook.folder or None,
        input=body,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_TIMEOUT,
    )


def _post(hook: Hook, body: str) -> None:
    request = urllib.request.Request(
        hook.url,
        data=body.encode(),
        headers={"Content-Type": "application/json", "User-Agent": "nst-batch"},
        method="POST",
    )
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=PAUSE),
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )
    for attempt in retrying:
        with attempt, urllib.request.urlopen(request, timeout=TIMEOUT):
            pass


def _may_pass(error: BaseException) -> bool:
    """Whether it may work in a moment: nobody answers, or somebody is too busy."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, OSError)


def _reason(error: Exception) -> str:
    """In one line, and without the URL or the command: both may hold secrets."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"did not end within {COMMAND_TIMEOUT:g} s"
    if isinstance(error, urllib.error.URLError):
        return f"does not answer ({error.reason})"
    return getattr(error, "strerror", None) or type(error).__name__
