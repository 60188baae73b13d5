"""A real browser without a window, where one is installed: Debian's chromium and its driver."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.local import socket_base

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A selenium driver of a browser with a new profile in a folder.

    Without a browser a test is skipped; it fails where the environment says that this is CI.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        missing = "no chromium with chromedriver here (apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        # A new profile asks Google and a search engine all the same: no name resolves, no proxy.
        "host-resolver-rules=MAP * ~NOTFOUND",
        "no-proxy-server",
        "hide-scrollbars",
        "force-device-scale-factor=1",
        f"user-data-dir={folder}",
    ):
        options.add_argument(f"--{switch}")
    # Both paths are given, so selenium looks for nothing in the network.
    service = webdriver.ChromeService(driver, env={**os.environ, "TMPDIR": socket_base()})
    page = webdriver.Chrome(options, service)
    try:
        yield page
    finally:
        page.quit()


def requests_of(page: Any) -> set[str]:
    """Addresses that the page has asked for since this was last called."""
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }


def set_scheme(page: Any, scheme: str) -> None:
    """What the system says of light and dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def set_width(page: Any, width: int, height: int, mobile: bool = False) -> None:
    """The size of the window in CSS pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
