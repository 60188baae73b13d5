"""The library of styles: encrypted once, and computed once, for any number of jobs."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from jobs.client.home import Home
from jobs.client.pairs import safe_name
from jobs.client.pictures import png_bytes, read_picture
from jobs.client.session import Session
from jobs.storage import layout
from nst.errors import InputError
from nst.folders import explaining, subfolders
from nst.keyring import KeyCard
from nst.model import Model
from nst.parsing import is_id
from nst.pictures.picture import Picture, to_image
from nst.private import private_folder, sweep, write_private

CARD, PICTURE = "style.json", "style.png"

log = logging.getLogger("nst-batch")


class DamagedStyleError(InputError):
    """A style's folder is there, and its record is damaged or missing."""


class LibraryStyle(BaseModel):
    """A style that is in a store, encrypted under a key set for a model.

    `offer` is that of a service's model, empty for a model of one's own.
    """

    style_id: str
    name: str
    created: str
    store: str
    key_id: str
    model_id: str
    quality: str
    offer: str = ""


def add(session: Session, model: Model, name: str, path: Path) -> LibraryStyle:
    """Encrypt a style and put it into a store; jobs under its key set use it from then on.

    Args:
        session: Where to, and whose keys.
        model: What will compute it.
        name: What the user calls it; it stays here.
        path: A picture.

    Raises:
        InputError: if there is such a style, the picture cannot be used, or the passphrase is
            wrong or missing.
        CircuitError: if the model or its keys cannot be made.
        StoreError: if the store cannot be written.
    """
    folder = folder_of(session.home, name)
    if folder.exists():
        raise InputError(f"there is a style {name!r} already; remove it, or take another name")
    rgb, _ = read_picture(path, model.style_size, "crop")
    picture = Picture(rgb)
    try:
        prepared = model.prepare_style(picture)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    card: KeyCard = model.key_set(session.ring, "", session.ask)
    cipher = model.cipher(session.ring, card.key_id, session.ask)
    style = LibraryStyle(
        style_id=layout.LIBRARY + secrets.token_hex(6),
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        store=session.store.url,
        key_id=card.key_id,
        model_id=model.plan.model_id,
        quality=model.level.name,
        offer=model.offer_id,
    )
    (envelope,) = cipher.encrypt_all([[prepared.input]])
    sweep(session.home.styles)
    # What the client remembers comes first: a style in the store that nobody knows stays there.
    with explaining(folder), private_folder(folder) as partial:
        write_private(partial / CARD, style.model_dump_json().encode())
        write_private(partial / PICTURE, png_bytes(to_image(rgb)))
    try:
        session.store.write(layout.library_input(style.style_id), envelope.pack())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return style


def folder_of(home: Home, name: str) -> Path:
    """Where a style is kept; raises InputError if none can be called that."""
    if not name or safe_name(name) != name:
        raise InputError(f"no style can be called {name!r}: give a name like that of a file")
    return home.styles / name


def listed(home: Home) -> list[LibraryStyle]:
    """All styles by name; one whose record is damaged is named in a warning and left out.

    Raises:
        InputError: if the folder cannot be read.
    """
    found = []
    for folder in subfolders(home.styles):
        try:
            found.append(open_style(home, folder.name))
        except InputError as error:
            log.warning("%s", error)
    return found


def open_style(home: Home, name: str) -> LibraryStyle:
    """A style of the library.

    Raises:
        InputError: if there is none of that name.
        DamagedStyleError: if its record is damaged.
    """
    folder = folder_of(home, name)
    if not folder.is_dir():
        raise InputError(f"no style {name!r} in {home.styles}; see: nst-batch styles list")
    try:
        style = LibraryStyle.model_validate(json.loads((folder / CARD).read_bytes()))
        if not (is_id(style.style_id) and layout.in_library(style.style_id)):
            raise ValueError("no id of a style")
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise DamagedStyleError(
            f"style {folder} is damaged; nst-batch styles remove {name}, and add it again"
        ) from error
    return style


def picture_of(home: Home, name: str) -> Path:
    """The picture of a style, as it was encrypted."""
    return folder_of(home, name) / PICTURE


def remove(home: Home, name: str, session: Session | None) -> None:
    """Remove a style from its store and from here; jobs that wait for it will fail.

    Args:
        home: The data directory.
        name: Of the style.
        session: Its store; None removes it from here alone, as one whose record is damaged.

    Raises:
        InputError: if there is none, or it cannot be removed.
        StoreError: if the store does not answer; it stays then.
    """
    folder = folder_of(home, name)
    if session is not None:
        style = open_style(home, name)
        session.store.delete_prefix(layout.library_style(style.style_id))
    with explaining(folder, "remove"):
        shutil.rmtree(folder)


def require_usable(style: LibraryStyle, model: Model, store: str) -> None:
    """Raise InputError unless jobs of a model in a store can use a style."""
    if style.store != store:
        raise InputError(
            f"style {style.name!r} is in store {style.store}; submit to that, or add it here"
        )
    if style.model_id != model.plan.model_id:
        raise InputError(
            f"style {style.name!r} was encrypted for another model or size ({style.quality}); add "
            "it for this one, under another name"
        )
