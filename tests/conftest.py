"""What several test files share: the toy network, its circuits, a key set, an evaluator, a job
that has run, and a real S3 server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from nst.engines.base import Evaluator, Published
from nst.engines.cache import ModelCache
from nst.engines.concrete.client import CircuitCipher
from nst.keyring import KeyCard, KeyRing
from nst.network.integers import IntegerNetwork
from tests.s3_server import S3Server
from tests.toy import load_evaluator, publish_toy, toy_network

if TYPE_CHECKING:
    from tests.toy_job import ToyJob

LONGEST = tuple(
    f"test_{name}.py"
    for name in (
        *(
            "faults",
            "train_ray",
            "service_walkthrough",
            "driver",
            "benchmarks",
            "cli",
            "api",
            "large",
        ),
        *("cluster_job", "executor", "circuits", "oracle", "notebook", "wheel"),
    )
)
"""Files that take a minute or more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes, begin with what takes longest, so that none is left with it alone.

    In one, what is fast comes where its name puts it, and a mistake is seen early.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {file: place for place, file in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def no_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The machine of a developer may have an nst-batch.toml."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def broken_pipes_are_survived() -> None:
    """Undo LLVM's handler, which a test that runs a circuit by itself has set."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@pytest.fixture(scope="session")
def network() -> IntegerNetwork:
    """The toy network."""
    return toy_network()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    """A cache that holds the published toy."""
    return ModelCache(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def published(network: IntegerNetwork, models: ModelCache) -> Published:
    """The toy network's circuits, built once for all tests."""
    return publish_toy(models, network)


@pytest.fixture(scope="session")
def key_ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    """A key ring in a folder of its own."""
    return KeyRing(tmp_path_factory.mktemp("home") / "keys")


@pytest.fixture(scope="session")
def key_card(key_ring: KeyRing, published: Published) -> KeyCard:
    """A key set for the toy's circuits, in the key ring."""
    return key_ring.create(published, "toy")


@pytest.fixture(scope="session")
def cipher(key_ring: KeyRing, key_card: KeyCard, published: Published) -> CircuitCipher:
    """Encryption and decryption under that key set."""
    cipher = key_ring.cipher(key_card.key_id, published)
    assert isinstance(cipher, CircuitCipher)
    return cipher


@pytest.fixture(scope="session")
def evaluator(key_ring: KeyRing, key_card: KeyCard, published: Published) -> Evaluator:
    """The toy's circuits with that key set's evaluation keys, in this process."""
    return load_evaluator(published, key_ring.evaluation_keys(key_card.key_id))


@pytest.fixture(scope="session")
def toy_job(
    published: Published,
    key_ring: KeyRing,
    key_card: KeyCard,
    tmp_path_factory: pytest.TempPathFactory,
) -> ToyJob:
    """A real pair of pictures stylized under encryption, from submission to result."""
    from tests.toy_job import run_toy_job

    folder = tmp_path_factory.mktemp("job")
    return run_toy_job(folder, published.folder, key_ring.folder / key_card.key_id)


BUCKET = "nst-tests"


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """An S3 server with an empty bucket, started once for all tests."""
    server = S3Server()
    try:
        server.start()
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.close()


@pytest.fixture
def s3_server(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """That server running, with its credentials in the environment and no others."""
    if not s3_process.running:
        s3_process.start()
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    return s3_process
