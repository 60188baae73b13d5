"""Secret keys under a passphrase: the box, the key ring, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from jobs.cli import screen
from jobs.execution import launch
from nst.engines.base import Published
from nst.errors import InputError
from nst.folders import PASSPHRASE_VARIABLE, Folders
from nst.keyring import CARD_FILE, EVALUATION_FILE, SECRET_FILE, KeyCard, KeyRing
from nst.network.architecture import STYLE
from nst.private import MAKING
from nst.secret_box import FORMAT, MAGIC, SHORTEST, is_box, lock, unlock
from tests.command_line import refused, run
from tests.toy import encrypt, noise_input, offer_toy, toy_weights

PASSPHRASE = "correct horse bättery"
SECRET = bytes(range(256)) * 4
LABEL = "secret key abc"


def never(key_id: str) -> str:
    raise AssertionError(f"asked for the passphrase of {key_id}")


# The box


@pytest.fixture(scope="module")
def box() -> bytes:
    return lock(SECRET, PASSPHRASE, LABEL)


def test_a_box_opens_with_its_passphrase_and_hides_what_it_holds(box: bytes) -> None:
    assert unlock(box, PASSPHRASE, LABEL) == SECRET
    assert is_box(box) and not is_box(SECRET)
    assert not any(SECRET[i : i + 8] in box for i in range(256))


def test_the_same_secret_gives_another_box_each_time(box: bytes) -> None:
    other = lock(SECRET, PASSPHRASE, LABEL)
    head = len(MAGIC) + 4
    assert other[:head] == box[:head]
    assert other[head : head + 28] != box[head : head + 28]
    assert other[head + 28 :] != box[head + 28 :]


@pytest.mark.parametrize("passphrase", ["Correct horse bättery", PASSPHRASE + " ", ""])
def test_another_passphrase_is_refused(box: bytes, passphrase: str) -> None:
    with pytest.raises(InputError, match=f"wrong passphrase for {LABEL}") as caught:
        unlock(box, passphrase, LABEL)
    assert "\n" not in str(caught.value)


def test_another_label_is_refused(box: bytes) -> None:
    with pytest.raises(InputError, match="wrong passphrase"):
        unlock(box, PASSPHRASE, "secret key abd")


@pytest.mark.parametrize("place", ["salt", "nonce", "first", "middle", "tag"])
def test_a_changed_byte_is_noticed(box: bytes, place: str) -> None:
    at = {"salt": 8, "nonce": 24, "first": 36, "middle": len(box) // 2, "tag": len(box) - 1}
    changed = bytearray(box)
    changed[at[place]] ^= 1
    with pytest.raises(InputError, match="or its file is damaged"):
        unlock(bytes(changed), PASSPHRASE, LABEL)


def test_truncated_and_foreign_boxes_are_refused(box: bytes) -> None:
    with pytest.raises(InputError, match="truncated"):
        unlock(box[:50], PASSPHRASE, LABEL)
    with pytest.raises(InputError, match="damaged"):
        unlock(box[:-1], PASSPHRASE, LABEL)
    newer = MAGIC + (FORMAT + 1).to_bytes(4, "little") + box[8:]
    with pytest.raises(InputError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        unlock(newer, PASSPHRASE, LABEL)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(InputError, match=f"{SHORTEST} characters"):
        lock(SECRET, "x" * (SHORTEST - 1), LABEL)


def test_keyboards_may_compose_letters_differently(box: bytes) -> None:
    assert unlock(box, PASSPHRASE.replace("ä", "a\u0308"), LABEL) == SECRET


def test_a_passphrase_may_be_any_bytes() -> None:
    odd = b"not utf-8: \xff\xfe".decode("utf-8", "surrogateescape")
    assert unlock(lock(SECRET, odd, LABEL), odd, LABEL) == SECRET


# The key ring


@pytest.fixture
def ring(key_ring: KeyRing, key_card: KeyCard, tmp_path: Path) -> KeyRing:
    """A ring of its own with a copy of the shared key set."""
    shutil.copytree(key_ring.folder / key_card.key_id, tmp_path / "keys" / key_card.key_id)
    return KeyRing(tmp_path / "keys")


def secret_file(ring: KeyRing, card: KeyCard) -> Path:
    return ring.folder / card.key_id / SECRET_FILE


def test_protect_and_unprotect(ring: KeyRing, key_card: KeyCard, published: Published) -> None:
    key_id, path = key_card.key_id, secret_file(ring, key_card)
    before = path.read_bytes()
    names = sorted(p.name for p in path.parent.iterdir())
    evaluation = (path.parent / EVALUATION_FILE).read_bytes()
    assert ring.secret(key_id, never) == before

    ring.protect(key_id, PASSPHRASE)
    stored = path.read_bytes()
    assert ring.is_protected(key_id) and len(stored) > len(before)
    step = max(1, len(before) // 512)
    windows = {before[i : i + 32] for i in range(0, len(before) - 32, step)}
    assert not any(window in stored for window in windows)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == names
    assert (path.parent / EVALUATION_FILE).read_bytes() == evaluation

    asked: list[str] = []

    def ask(of: str) -> str:
        asked.append(of)
        return PASSPHRASE

    assert ring.secret(key_id, ask) == before
    assert asked == [key_id]
    assert encrypt(ring.cipher(key_id, published, ask), noise_input(STYLE)).parts

    ring.unprotect(key_id, ask)
    assert path.read_bytes() == before and not ring.is_protected(key_id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == names


def test_a_protected_key_is_refused_without_its_passphrase(
    ring: KeyRing, key_card: KeyCard, published: Published
) -> None:
    key_id, path = key_card.key_id, secret_file(ring, key_card)
    ring.protect(key_id, PASSPHRASE)
    stored = path.read_bytes()
    with pytest.raises(InputError, match=f"{key_id} has a passphrase"):
        ring.cipher(key_id, published)
    for act in (
        lambda: ring.cipher(key_id, published, lambda _: "something else"),
        lambda: ring.unprotect(key_id, lambda _: "something else"),
    ):
        with pytest.raises(InputError, match="wrong passphrase"):
            act()
    with pytest.raises(InputError, match="already"):
        ring.protect(key_id, "another passphrase")
    assert path.read_bytes() == stored


def test_a_secret_of_another_key_set_does_not_open(
    ring: KeyRing, key_card: KeyCard, published: Published
) -> None:
    ring.protect(key_card.key_id, PASSPHRASE)
    other = ring.folder / ("0" * 16)
    shutil.copytree(ring.folder / key_card.key_id, other)
    with pytest.raises(InputError, match="wrong passphrase"):
        ring.cipher(other.name, published, lambda _: PASSPHRASE)


@pytest.mark.parametrize("to_protected", [True, False])
def test_a_conversion_that_fails_changes_nothing(
    to_protected: bool, ring: KeyRing, key_card: KeyCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, path = key_card.key_id, secret_file(ring, key_card)
    if not to_protected:
        ring.protect(key_id, PASSPHRASE)
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(InputError, match="No space left") as caught:
        if to_protected:
            ring.protect(key_id, PASSPHRASE)
        else:
            ring.unprotect(key_id, lambda _: PASSPHRASE)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    files = {SECRET_FILE, EVALUATION_FILE, CARD_FILE}
    assert {each.name for each in path.parent.iterdir()} == files


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"key_id": 1}', b"\xff"])
def test_a_damaged_card_is_left_out_and_named(
    text: bytes, ring: KeyRing, key_card: KeyCard, caplog: pytest.LogCaptureFixture
) -> None:
    (ring.folder / "0f3c").mkdir()
    (ring.folder / "0f3c" / CARD_FILE).write_bytes(text)
    assert ring.list() == [key_card]
    (record,) = caplog.records
    assert "0f3c" in record.message and "\n" not in record.message
    assert ring.find(key_card.model_id) == key_card


def test_what_a_killed_conversion_left_is_no_obstacle(ring: KeyRing, key_card: KeyCard) -> None:
    partial = secret_file(ring, key_card).parent / f"{MAKING}abc"
    partial.write_bytes(b"half a key")
    ring.protect(key_card.key_id, PASSPHRASE)
    assert not partial.exists()


# The command line


@pytest.fixture
def home(
    key_ring: KeyRing,
    key_card: KeyCard,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A data directory with the toy level, its circuits and a copy of the shared key set."""
    home = tmp_path / "home"
    models = Folders(home).models
    models.mkdir(parents=True)
    (models / key_card.model_id).symlink_to(published.folder)
    shutil.copytree(key_ring.folder / key_card.key_id, home / "keys" / key_card.key_id)
    weights = toy_weights(tmp_path / "toy.safetensors")
    offer_toy(monkeypatch, weights, home)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    return home


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user types what a command is given as input."""
    monkeypatch.setattr(screen, "is_terminal", lambda: True)


def listed() -> dict[str, bool]:
    rows = json.loads(run("keys", "list", "--json").output)
    return {row["key_id"]: row["protected"] for row in rows}


@pytest.mark.usefixtures("terminal")
def test_keys_protect_list_unprotect(home: Path, key_card: KeyCard) -> None:
    key_id = key_card.key_id
    assert listed() == {key_id: False}
    assert "no passphrase" in run("keys", "list").output
    result = run("keys", "protect", key_id, typed=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert result.exit_code == 0, result.output
    assert PASSPHRASE not in result.output
    assert listed() == {key_id: True}
    assert "no passphrase" not in run("keys", "list").output
    refused(run("keys", "protect", key_id), "already", "unprotect")
    wrong = run("keys", "unprotect", key_id, typed="wrong wrong\n")
    refused(wrong, "wrong passphrase", key_id, alone=False)
    result = run("keys", "unprotect", key_id, typed=f"{PASSPHRASE}\n")
    assert result.exit_code == 0, result.output
    assert listed() == {key_id: False}
    refused(run("keys", "unprotect", key_id), "no passphrase")


@pytest.mark.usefixtures("terminal")
def test_a_mistyped_new_passphrase_is_asked_for_again(home: Path, key_card: KeyCard) -> None:
    typed = f"{PASSPHRASE}\n{PASSPHRASE}x\n{PASSPHRASE}\n{PASSPHRASE}\n"
    assert run("keys", "protect", key_card.key_id, typed=typed).exit_code == 0
    assert KeyRing(home / "keys").secret(key_card.key_id, lambda _: PASSPHRASE)


def test_keys_create_with_a_passphrase(
    home: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = ("keys", "create", "--quality", "toy", "--passphrase")
    refused(run(*create), "no terminal", PASSPHRASE_VARIABLE)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "short")
    refused(run(*create), f"{SHORTEST} characters")
    before = listed()
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    result = run(*create)
    assert result.exit_code == 0, result.output
    assert PASSPHRASE not in result.output
    (key_id,) = set(listed()) - set(before)
    assert listed()[key_id]
    folder = home / "keys" / key_id
    assert is_box((folder / SECRET_FILE).read_bytes())
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    KeyRing(home / "keys").cipher(key_id, published, lambda _: PASSPHRASE)


@pytest.mark.parametrize("command", ["protect", "unprotect"])
def test_an_unknown_key(home: Path, command: str) -> None:
    refused(run("keys", command, "0123456789abcdef"), "0123456789abcdef")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for side in ("content", "style"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        noise = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((40, 40), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "pairs" / side / "sea.png")
    return tmp_path / "pairs"


class Started:
    """Stands for a driver process, and keeps the environment it was given."""

    environments: list[dict[str, str]]

    def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
        self.pid = 0
        self.environments.append(env)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[Started]:
    monkeypatch.setattr(Started, "environments", [], raising=False)
    # Not Popen itself, which the compiler uses too.
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Started, DEVNULL=None))
    return Started


def submit(pairs: Path, store: Path, typed: str = "") -> Result:
    return run(
        "submit", pairs, "--quality", "toy", "--store", store, "--no-wait", typed=typed
    )  # fmt: skip


def test_submit_without_the_passphrase_uploads_nothing(
    home: Path, key_card: KeyCard, pairs: Path, tmp_path: Path, driver: type[Started]
) -> None:
    KeyRing(home / "keys").protect(key_card.key_id, PASSPHRASE)
    store = tmp_path / "store"
    refused(submit(pairs, store), key_card.key_id, "no terminal", PASSPHRASE_VARIABLE)
    assert [p.name for p in store.rglob("*") if p.is_file()] in ([], ["store.json"])
    assert driver.environments == []


def test_a_passphrase_in_the_environment_stays_on_the_client(
    home: Path,
    key_card: KeyCard,
    pairs: Path,
    tmp_path: Path,
    driver: type[Started],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    KeyRing(home / "keys").protect(key_card.key_id, PASSPHRASE)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "something else")
    refused(submit(pairs, tmp_path / "store"), "wrong passphrase", key_card.key_id)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    monkeypatch.setenv("NST_BATCH_TEST", "passed on")
    result = submit(pairs, tmp_path / "store")
    assert result.exit_code == 0, result.output
    (environment,) = driver.environments
    assert environment["NST_BATCH_TEST"] == "passed on"
    assert PASSPHRASE not in environment.values()
    written = [p for p in [*(tmp_path / "store").rglob("*"), *home.rglob("*")] if p.is_file()]
    assert not any(PASSPHRASE.encode() in p.read_bytes() for p in written)


@pytest.mark.usefixtures("terminal")
def test_fetch_and_retry_ask_for_the_passphrase(
    home: Path, key_card: KeyCard, pairs: Path, tmp_path: Path, driver: type[Started]
) -> None:
    KeyRing(home / "keys").protect(key_card.key_id, PASSPHRASE)
    result = submit(pairs, tmp_path / "store", typed=f"{PASSPHRASE}\n")
    assert result.exit_code == 0, result.output
    (job,) = [p.name for p in (home / "jobs").iterdir()]
    out = ("--out", tmp_path / "out")
    wrong = run("fetch", job, *out, typed="wrong wrong\n")
    refused(wrong, "wrong passphrase", key_card.key_id, alone=False)
    result = run("fetch", job, *out, typed=f"{PASSPHRASE}\n")
    assert result.exit_code == 0 and "not done yet: 1 pair" in result.output
    # Retrying asks before the driver starts, not when the job has ended.
    refused(run("retry", job, *out, typed="wrong wrong\n"), "wrong passphrase", alone=False)
    assert len(driver.environments) == 1


def test_a_passphrase_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prompt(text: str, **_: Any) -> str:
        asked.append(text)
        return PASSPHRASE

    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setattr(screen.click, "prompt", prompt)
    shown = screen.Screen()
    assert shown.passphrase("abc") == shown.passphrase("abc") == PASSPHRASE
    assert asked == ["Passphrase of key abc"]
