"""What `doctor` finds, in a sound installation and in broken ones."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.client import doctor
from jobs.client.doctor import BASE_BYTES, RAY_BYTES, check_bandwidth, check_memory, needs_of
from jobs.client.home import JOB_FILE, PICTURES, Home
from jobs.storage.local_store import LocalStore
from jobs.storage.s3_store import S3Store
from jobs.storage.store import open_store
from nst.engines import get_engine
from nst.engines.base import Published
from nst.engines.cache import ModelCache
from nst.engines.concrete import ConcreteEngine
from nst.errors import StoreError
from nst.folders import make_private
from nst.keyring import CARD_FILE, EVALUATION_FILE, SECRET_FILE, KeyCard, KeyRing
from nst.machine import memory_bandwidth
from nst.model import Model
from nst.network import levels
from nst.network.integers import IntegerNetwork
from nst.pictures.size import Size
from tests.command_line import refused, run
from tests.conftest import BUCKET
from tests.s3_server import S3Server, free_ports
from tests.test_costs import LOCAL
from tests.toy import TOY_SQUARE, offer_toy, toy_level, toy_weights

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"(ok  |warn|FAIL)  \S.*")
AVAILABLE_MEMORY = doctor.available_memory
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory on a machine with enough of everything."""
    weights = toy_weights(tmp_path / "toy.safetensors")
    offer_toy(monkeypatch, weights, tmp_path / "home")
    monkeypatch.setattr(doctor, "available_memory", lambda: 64 * 10**9)
    monkeypatch.setattr(doctor, "memory_bandwidth", lambda _: 40e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    return tmp_path / "home"


def diagnosed(*arguments: str | Path) -> Result:
    return run("doctor", "--quality", "toy", "--actors", 2, *arguments)


def findings(result: Result) -> list[str]:
    """All lines that are not ok; checks the form of every line."""
    lines = result.output.splitlines()
    assert lines
    for line in lines:
        assert LINE.fullmatch(line), line
        assert line.startswith("ok") or " -> " in line, line
    return [line for line in lines if not line.startswith("ok")]


def s3_arguments(server: S3Server, bucket: str = BUCKET) -> tuple[str, ...]:
    url = f"s3://{bucket}/{secrets.token_hex(4)}"
    return ("--store", url, "--endpoint-url", server.endpoint)


def test_a_sound_machine_with_a_folder(home: Path) -> None:
    result = diagnosed()
    assert result.exit_code == 0, result.output
    assert findings(result) == []
    for word in ("python", "pyarrow", "ray", "keys", "memory", "disk", "conditional", "clock"):
        assert word in result.output
    assert LocalStore(home / "store").list("") == []
    names = [check["what"] for check in json.loads(diagnosed("--json").stdout)["checks"]]
    assert len(set(names)) == len(names), "each line says what it is about"


def test_a_sound_machine_with_two_stores(s3_server: S3Server, tmp_path: Path) -> None:
    arguments = s3_arguments(s3_server)
    used = open_store(f"{arguments[1]}?endpoint={s3_server.endpoint}", create=True)
    used.write("a", b"1")
    before = used.list("")
    result = diagnosed(*arguments)
    assert result.exit_code == 0, result.output
    assert findings(result) == []
    assert "credentials  from env" in result.output
    assert used.list("") == before
    for secret in (s3_server.access_key, s3_server.secret_key):
        assert secret not in result.output
    both = diagnosed(
        "--store", f"{arguments[1]}?endpoint={s3_server.endpoint}", "--store", tmp_path
    )
    assert both.exit_code == 0 and findings(both) == []


def test_json(home: Path) -> None:
    result = diagnosed("--json", "--store", home / "elsewhere")
    report = json.loads(result.output)
    assert report["ok"] and result.exit_code == 0
    assert {c["status"] for c in report["checks"]} == {"ok"}
    (home / "elsewhere" / "store.json").write_text('{"format": 99}')
    result = diagnosed("--json", "--store", home / "elsewhere")
    report = json.loads(result.output)
    assert not report["ok"] and result.exit_code == 3
    (failed,) = [c for c in report["checks"] if c["status"] == "FAIL"]
    assert "99" in failed["detail"] and failed["advice"] and failed["unreachable"]


def test_stores_out_of_reach(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    result = diagnosed(*s3_arguments(s3_server, "no-such-bucket"))
    (line,) = findings(result)
    assert result.exit_code == 3 and "aws s3 mb s3://no-such-bucket" in line

    silent = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = diagnosed("--store", f"s3://{BUCKET}/a", "--endpoint-url", silent)
    (line,) = findings(result)
    assert result.exit_code == 3 and "does not answer" in line and "--endpoint-url" in line

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets.token_hex(20))
    result = diagnosed(*s3_arguments(s3_server))
    (line,) = findings(result)
    assert result.exit_code == 3 and "credentials are wrong" in line

    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    result = diagnosed(*s3_arguments(s3_server))
    (line,) = findings(result)
    assert result.exit_code == 3 and "AWS_ACCESS_KEY_ID" in line


def test_options_of_s3_need_a_store_in_s3() -> None:
    result = diagnosed("--profile", "studio")
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and "profile" in result.output


def test_a_store_that_ignores_conditions(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = S3Store._put

    def unconditional(store: S3Store, *arguments: Any, **conditions: str) -> None:
        put(store, *arguments)

    monkeypatch.setattr(S3Store, "_put", unconditional)
    result = diagnosed(*s3_arguments(s3_server))
    (line,) = findings(result)
    assert result.exit_code == 2
    assert line.startswith("FAIL") and "If-None-Match" in line and "published twice" in line


@pytest.mark.parametrize(
    ("offset", "status", "code"), [(-20, "ok", 0), (300, "warn", 0), (-3600, "FAIL", 2)]
)
def test_clocks(
    offset: float, status: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(LocalStore, "clock", lambda _: time.time() + offset)
    result = diagnosed("--store", tmp_path / "store")
    (line,) = [x for x in result.output.splitlines() if ": clock" in x]
    assert line.startswith(status) and result.exit_code == code


def test_temporary_credentials_are_warned_of(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Store, "credentials", lambda _: ("env", True))
    result = diagnosed(*s3_arguments(s3_server))
    (line,) = findings(result)
    assert result.exit_code == 0 and line.startswith("warn") and "cannot renew" in line


def test_keys(home: Path, key_ring: KeyRing, key_card: KeyCard) -> None:
    home.mkdir(mode=0o700)
    (home / "keys").symlink_to(key_ring.folder)
    result = diagnosed()
    assert result.exit_code == 0 and findings(result) == []
    assert "back this folder up" in result.output
    folder = key_ring.folder / key_card.key_id
    secret = folder / "secret.key"
    secret.chmod(0o644)
    folder.chmod(0o755)
    try:
        result = diagnosed()
    finally:
        secret.chmod(0o600)
        folder.chmod(0o700)
    assert result.exit_code == 2
    assert ["chmod 700" in findings(result)[0], "chmod 600" in findings(result)[1]] == [True, True]


@pytest.mark.parametrize("card", ["{}", "[]", "no json"])
def test_damaged_keys(home: Path, card: str) -> None:
    lost, damaged = home / "keys" / "aaaa", home / "keys" / "bbbb"
    for folder in (lost, damaged):
        make_private(folder)
        for name in ("evaluation.key", "secret.key"):
            (folder / name).touch(mode=0o600)
        (folder / "key.json").write_text(card)
    (lost / "secret.key").unlink()
    result = diagnosed()
    first, second = findings(result)
    assert result.exit_code == 2
    assert "aaaa" in first and "secret.key missing" in first and "backup" in first
    assert "bbbb" in second and "key.json is damaged" in second


def test_keys_of_another_version(
    home: Path,
    key_ring: KeyRing,
    key_card: KeyCard,
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_private(home / "models")
    (home / "models" / key_card.model_id).symlink_to(published.folder)
    # That key set alone: other tests have made more in the ring, of other circuits.
    make_private(home / "keys")
    (home / "keys" / key_card.key_id).symlink_to(key_ring.folder / key_card.key_id)
    assert findings(diagnosed()) == []
    monkeypatch.setattr(ConcreteEngine, "runtime", "concrete-python 99.0")
    result = diagnosed()
    (line,) = findings(result)
    assert result.exit_code == 0 and line.startswith("warn") and key_card.key_id in line
    assert "99.0" in line
    shutil.copytree(published.folder, home / "copy")
    (home / "copy" / "plan.json").write_text("{}")
    (home / "models" / key_card.model_id).unlink()
    (home / "copy").replace(home / "models" / key_card.model_id)
    (line,) = findings(diagnosed())
    assert line.startswith("warn") and "is damaged" in line and "delete " in line


@pytest.mark.parametrize(
    ("package", "found", "words"),
    [("pyarrow", "26.0.0", "pyarrow<26"), ("ray", None, "not installed")],
)
def test_wrong_versions(
    package: str, found: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name != package:
            return real(name)
        if found is None:
            raise doctor.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "version", version)
    result = diagnosed()
    (line,) = findings(result)
    assert result.exit_code == 2 and words in line


def test_a_level_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(diagnosed("--quality", "best"), "best", "draft")
    bare = replace(toy_level(tmp_path / "none.safetensors"), name="bare")
    monkeypatch.setitem(levels.LEVELS, "bare", bare)
    result = diagnosed("--quality", "bare")
    (line,) = findings(result)
    assert result.exit_code == 2 and "none.safetensors" in line
    assert "conditional writes" in result.output


def test_memory() -> None:
    each = 10**9
    need = BASE_BYTES + 2 * each
    assert check_memory(2 * need, 2, each, 0).status == "ok"
    tight = check_memory(need, 2, each, 0)
    assert tight.status == "warn" and tight.advice == "submit with --actors 1"
    assert check_memory(need - 1, 2, each, 0).status == "FAIL"
    assert check_memory(BASE_BYTES, 2, each, 0).advice.startswith("free memory")
    assert check_memory(None, 2, each, 0).status == "warn"


def test_a_larger_size_takes_more_memory(home: Path) -> None:
    def needed(*size: str) -> float:
        (line,) = [x for x in diagnosed(*size).output.splitlines() if x[6:].startswith("memory")]
        number, unit = line.split(" need ")[1].split()[:2]
        return float(number) * {"MB": 1e6, "GB": 1e9}[unit]

    # Three times the width: two actors and what is in flight grow, circuits and keys do not.
    assert 1.2 * needed() < needed("--size", "96x32") < 3 * needed()
    assert "96 x 32 pixels" in diagnosed("--size", "96x32").output


def test_the_bandwidth_of_memory() -> None:
    rates = get_engine("concrete").rates()
    each = rates.streamed_bytes_per_s
    assert check_bandwidth(4 * each, 4, rates).status == "ok"
    slow = check_bandwidth(2 * each, 4, rates)
    assert slow.status == "warn" and "tasks take 2.0 times as long" in slow.detail
    assert check_bandwidth(1.0, 4, get_engine("ckks").rates()).status == "ok"
    assert 1e8 < memory_bandwidth(2) < 1e13


def test_free_memory_is_known() -> None:
    available = AVAILABLE_MEMORY()
    assert available is not None and 10**7 < available < 10**14


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**6))
    result = diagnosed("--store", tmp_path / "not" / "yet")
    home_line, temporary_line, store_line = findings(result)
    assert result.exit_code == 2
    assert "NST_BATCH_HOME" in home_line and "TMPDIR" in temporary_line
    assert "room for 0" in store_line and "--store" in store_line


def test_what_is_guessed_is_what_was_measured(
    network: IntegerNetwork, models: ModelCache, published: Published, tmp_path: Path
) -> None:
    record = json.loads((ROOT / "benchmarks" / "low.json").read_text())
    planned = json.loads((ROOT / "benchmarks" / "bytes.json").read_text())["levels"]["low"]
    engine = ConcreteEngine()

    def actor_bytes(call: int) -> int:
        return RAY_BYTES + engine.rates().actor_bytes_of(call)

    low = engine.typical_needs(Size.square(64))
    assert low.stored == pytest.approx(planned["stored_when_done"], rel=0.2)
    memory = BASE_BYTES + record["actors"] * actor_bytes(low.call) + low.stored
    assert memory == pytest.approx(record["peak_rss_bytes"], rel=0.2)
    # A model that is built tells exactly.
    built = Model(toy_level(), network, models, TOY_SQUARE)
    assert built.built == published.plan
    exact, guessed = needs_of(built), engine.typical_needs(TOY_SQUARE)
    assert published.plan.stored.result < exact.stored < exact.result / 3
    assert exact.call < guessed.call
    absent = Model(toy_level(), network, ModelCache(tmp_path / "none"), TOY_SQUARE)
    assert needs_of(absent) == guessed and not (tmp_path / "none").exists()


@pytest.mark.parametrize(("address", "code"), [("http://127.0.0.1:{port}", 3), ("ftp://h", 2)])
def test_a_cluster_that_cannot_be_used(
    address: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(port=free_ports(1)[0])
    given = diagnosed("--cluster", address)
    (line,) = findings(given)
    assert given.exit_code == code and address in line and "http://host:8265" in line
    # The one that jobs would go to is looked at unasked.
    monkeypatch.setenv("NST_BATCH_CLUSTER", address)
    assert diagnosed().output == given.output


def test_a_proxy_before_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    given = diagnosed("--cluster", "http://head.example:8265")
    (line,) = findings(given)
    assert given.exit_code == 3 and "HTTP_PROXY" in line and "add head.example to NO_PROXY" in line


@pytest.mark.parametrize(
    ("mode", "status", "says"), [(0o777, "FAIL", "write"), (0o755, "warn", "read")]
)
@pytest.mark.parametrize("name", ["", "keys", "models", "jobs"])
def test_folders_that_others_enter(
    home: Path, name: str, mode: int, status: str, says: str
) -> None:
    make_private(home / name)
    assert findings(diagnosed()) == []
    (home / name).chmod(mode)
    (line,) = findings(diagnosed())
    assert line.startswith(status) and f"others may {says}" in line and "chmod 700" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_named(home: Path) -> None:
    make_private(home / "keys" / "planted")
    for name in (SECRET_FILE, EVALUATION_FILE, CARD_FILE):
        (home / "keys" / "planted" / name).touch(0o600)
    for path in (home / "keys", *(home / "keys").rglob("*")):
        os.chown(path, 12345, 12345)
    found = findings(diagnosed())
    assert sum("belongs to another user" in line for line in found) == 3
    assert all(line.startswith("FAIL") for line in found)


def test_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "b" / "home" / "keys")
        open_store(str(tmp_path / "c" / "store"), create=True).write("jobs/1/x", b"")
        Home(tmp_path / "d" / "home").save_job(LOCAL)
    finally:
        os.umask(before)
    for name in ("b", "c", "d"):
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_server_that_deletes_one_by_one_only(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise StoreError("store s: cannot delete; give s3:DeleteObject")

    assert findings(diagnosed(*s3_arguments(s3_server))) == []
    monkeypatch.setattr(S3Store, "_delete_batch", denied)
    result = diagnosed(*(arguments := s3_arguments(s3_server)))
    (line,) = findings(result)
    assert result.exit_code == 3 and "s3:DeleteObject" in line
    store = open_store(f"{arguments[1]}?endpoint={s3_server.endpoint}", create=True)
    assert not [key for key in store.list("") if "probe" in key]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (JOB_FILE, "{", "restore it from your backup, or: nst-batch delete job"),
        (JOB_FILE, None, "if none is at work: nst-batch delete job"),
        (PICTURES, "plain", "submit the pairs again"),
    ],
)
def test_damaged_jobs(home: Path, name: str, text: str | None, words: str) -> None:
    Home(home).add_job(LOCAL, [])
    assert findings(diagnosed()) == []
    path = home / "jobs" / LOCAL.job_id / name
    path.unlink() if text is None else path.write_text(text)
    result = diagnosed()
    (line,) = findings(result)
    assert result.exit_code == 0 and line.startswith(f"warn  job {LOCAL.job_id}") and words in line
