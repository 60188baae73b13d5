"""Finds the content/style pairs a user means, in a folder or in a CSV file."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nst.errors import InputError
from nst.pictures.formats import SUFFIXES, why_left_out
from nst.plain import visible

NAME_BYTES = 200
"""Longest pair name: leaves room for a number and a suffix in the 255 bytes of a file name."""

RESERVED = ("evaluation", "gallery")
"""Names, without suffix, of what stands beside the results."""

SIDES = ("content", "style")
LAYOUTS = (
    "give a folder with content/ and style/, a folder with one sub-folder per pair that holds a "
    "content and a style picture, or a .csv file"
)


@dataclass(frozen=True)
class Pair:
    """A content picture to be painted in the style of another; the name is a safe file name."""

    name: str
    content: Path
    style: Path


@dataclass(frozen=True)
class Skipped:
    """Something that looks like a pair but is not; the reason is one line with the remedy."""

    name: str
    reason: str


Found = tuple[list[Pair], list[Skipped]]


def find_pairs(source: Path, grid: bool = False) -> Found:
    """Pairs of a folder or CSV file, sorted by name, and what had to be left out.

    Args:
        source: A folder with `content/` and `style/` (pictures matched by name without suffix),
            a folder with one sub-folder per pair, or a CSV file with the header
            `content,style[,name]` and paths relative to its own folder.
        grid: Take every content with every style.

    Raises:
        InputError: The source is missing, unreadable, of another kind, or holds no pair.
    """
    try:
        if source.is_dir():
            pairs, skipped = _read_folder(source, grid)
        elif not source.exists():
            raise InputError(f"{_quote(source)} does not exist: check the path")
        elif source.suffix.lower() == ".csv":
            pairs, skipped = _read_csv(source, grid)
        else:
            raise InputError(f"{_quote(source)} is neither a folder nor a .csv file: {LAYOUTS}")
    except OSError as error:
        where = _quote(Path(error.filename or source))
        raise InputError(
            f"{where} cannot be read ({error.strerror}): check that you may open it"
        ) from error
    if not pairs:
        problem = f" (first problem: {skipped[0].reason})" if skipped else ""
        raise InputError(f"{_quote(source)} holds no usable pair{problem}: {LAYOUTS}")
    return _with_distinct_names(pairs), skipped


def find_contents(source: Path, style: Path) -> Found:
    """Every picture of a folder, or of its `content/`, with the same style.

    Raises:
        InputError: The source is missing, unreadable, or holds no picture.
    """
    folder = source / "content" if (source / "content").is_dir() else source
    try:
        by_stem, left_out = _pictures_by_stem(folder)
    except OSError as error:
        raise InputError(
            f"{_quote(folder)} cannot be read ({error.strerror}): give a folder of contents"
        ) from error
    reasons = {**left_out, **{s: _ambiguous(p) for s, p in by_stem.items() if len(p) > 1}}
    pairs = [Pair(safe_name(s), p[0], style) for s, p in by_stem.items() if len(p) == 1]
    if not pairs:
        problem = next(iter(reasons.values()), f"add some ({', '.join(SUFFIXES)})")
        raise InputError(f"{_quote(folder)} holds no pictures: {problem}")
    return _with_distinct_names(pairs), [
        Skipped(safe_name(stem), reason) for stem, reason in sorted(reasons.items())
    ]


def named_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs of a caller's, under names that are safe for files and differ."""
    return _with_distinct_names([Pair(safe_name(p.name), p.content, p.style) for p in pairs])


def _read_folder(source: Path, grid: bool) -> Found:
    if all((source / side).is_dir() for side in SIDES):
        return _read_two_sides(source, grid)
    return _read_folder_a_pair(source, grid)


def _read_two_sides(source: Path, grid: bool) -> Found:
    by_side: list[dict[str, Path]] = []
    reasons: dict[str, str] = {}
    for side in SIDES:
        by_stem, left_out = _pictures_by_stem(source / side)
        if not by_stem:
            raise InputError(
                f"{_quote(source / side)} holds no pictures: "
                + next(iter(left_out.values()), f"add some ({', '.join(SUFFIXES)})")
            )
        ambiguous = {stem: _ambiguous(paths) for stem, paths in by_stem.items() if len(paths) > 1}
        reasons = {**left_out, **ambiguous, **reasons}
        by_side.append({stem: paths[0] for stem, paths in by_stem.items() if len(paths) == 1})
    skipped = [Skipped(safe_name(stem), reason) for stem, reason in sorted(reasons.items())]
    contents, styles = by_side
    if grid:
        return _cross(contents.items(), styles.items()), skipped

    # A name that cannot be used on one side has its reason; the other side is not blamed as well.
    one_sided = (contents.keys() ^ styles.keys()) - reasons.keys()
    for stem in sorted(one_sided):
        here, there = SIDES if stem in contents else SIDES[::-1]
        picture = contents.get(stem) or styles[stem]
        skipped.append(
            Skipped(
                safe_name(stem),
                f"{here} {_quote(picture)} has no {there} of the same name: "
                f"add {_quote(Path(there, stem + picture.suffix))} or use --grid",
            )
        )
    matched = sorted(contents.keys() & styles.keys())
    if one_sided and not matched:
        raise InputError(
            f"{_quote(source)}: no picture in content/ has the name of one in style/: "
            "rename them to match, or use --grid for every content with every style"
        )
    return [Pair(safe_name(stem), contents[stem], styles[stem]) for stem in matched], skipped


def _read_folder_a_pair(source: Path, grid: bool) -> Found:
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    for folder in sorted(source.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        by_stem, left_out = _pictures_by_stem(folder)
        counts = {side: len(by_stem.get(side, ())) for side in SIDES}
        name = safe_name(folder.name)
        for side, count in counts.items():
            if count == 0:
                reason = f"{_quote(folder)} has no {side} picture: add one named {side}.jpg or .png"
                skipped.append(Skipped(name, left_out.get(side, reason)))
            elif count > 1:
                skipped.append(Skipped(name, _ambiguous(by_stem[side])))
        if all(count == 1 for count in counts.values()):
            pairs.append(Pair(name, by_stem["content"][0], by_stem["style"][0]))
    if grid:
        contents = [(pair.name, pair.content) for pair in pairs]
        return _cross(contents, [(pair.name, pair.style) for pair in pairs]), skipped
    return pairs, skipped


def _read_csv(source: Path, grid: bool) -> Found:
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{_quote(source)} is not UTF-8 text: save it as CSV UTF-8") from error
    # Spreadsheets of many languages separate by semicolons.
    first = text.split("\n", 1)[0]
    delimiter = next((d for d in ",;\t" if set(SIDES) <= _columns(first.split(d))), ",")
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    try:
        header = [column.strip().lower() for column in reader.fieldnames or ()]
        if not set(SIDES) <= set(header):
            raise InputError(
                f"{_quote(source)} lacks the columns content and style: "
                "make its first line content,style or content,style,name, separated by commas"
            )
        reader.fieldnames = header
        for row in reader:
            item = _read_row(source, reader.line_num, row)
            if isinstance(item, Pair):
                pairs.append(item)
            else:
                skipped.append(item)
    except csv.Error as error:
        raise InputError(
            f"{_quote(source)} line {reader.reader.line_num} is not valid CSV ({error}): correct it"
        ) from error
    if grid:
        # The same picture stands in many rows of a list of pairs, but is one of the grid.
        contents = dict.fromkeys(pair.content for pair in pairs)
        styles = dict.fromkeys(pair.style for pair in pairs)
        pairs = _cross(((p.stem, p) for p in contents), ((p.stem, p) for p in styles))
    return pairs, skipped


def _columns(cells: Iterable[str]) -> set[str]:
    return {cell.strip().strip('"').lower() for cell in cells}


def _read_row(source: Path, line: int, row: dict[str, str | None]) -> Pair | Skipped:
    label, where = f"line {line}", f"{_quote(source)} line {line}"
    cells = {side: (row[side] or "").strip() for side in SIDES}
    for side, cell in cells.items():
        if not cell:
            return Skipped(label, f"{where} has no {side}: fill in the path of a picture")
    found = {side: _on_disk(source.parent, cell) for side, cell in cells.items()}
    for side, path in found.items():
        if not _is_file(path):
            missing = _quote(Path(cells[side]))
            return Skipped(label, f"{where}: no {side} file {missing}: correct the path")
    content, style = (found[side] for side in SIDES)
    name = (row.get("name") or "").strip() or f"{content.stem}--{style.stem}"
    return Pair(safe_name(name), content, style)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a cell may hold anything, such as a name longer than names can be
        return False


def _on_disk(folder: Path, cell: str) -> Path:
    """The path of a cell, with accents and separators as the disk has them."""
    path = folder / cell
    if "\\" in cell and not _is_file(path):
        cell = cell.replace("\\", "/")
        path = folder / cell
    if _is_file(path):
        return path
    path = folder
    for part in Path(cell).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path = next((path / form for form in forms if os.path.lexists(path / form)), path / part)
    return path


def _pictures_by_stem(folder: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Pictures by their names without suffix, and of what else looks like some, the reasons."""
    by_stem: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in SUFFIXES and path.is_file():
            by_stem.setdefault(composed(path.stem), []).append(path)
        else:
            others.append(path)
    left_out: dict[str, str] = {}
    for path in others:
        stem = composed(path.name if path.is_dir() else path.stem)
        # Beside a picture of its name, such as a photograph beside its raw file, it is not missed.
        if (path.is_dir() or stem not in by_stem) and (reason := _why_left_out(path)):
            left_out.setdefault(stem, reason)
    return by_stem, left_out


def _why_left_out(path: Path) -> str:
    """Why a picture, or a folder of some, is left out; empty for anything else."""
    if not path.is_dir():
        reason = why_left_out(path)
        return f"{_quote(path)} {reason}" if reason else ""
    if any(each.suffix.lower() in SUFFIXES for each in path.rglob("*")):
        return f"{_quote(path)} is a folder, whose pictures are left out: move them out of it"
    return ""


def composed(name: str) -> str:
    """One form for names that look the same: macOS takes accents apart, others do not."""
    return unicodedata.normalize("NFC", name)


def _cross(contents: Iterable[tuple[str, Path]], styles: Iterable[tuple[str, Path]]) -> list[Pair]:
    """Every named content with every named style."""
    right = list(styles)
    return [
        Pair(safe_name(f"{c}--{s}"), content, style)
        for c, content in contents
        for s, style in right
    ]


def _with_distinct_names(pairs: list[Pair]) -> list[Pair]:
    # Results may lie on a disk that does not tell capitals from small letters.
    taken = set(RESERVED)
    distinct = []
    for pair in sorted(pairs, key=lambda pair: (pair.name, pair.content, pair.style)):
        name, number = pair.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{pair.name}-{number}"
        taken.add(name.casefold())
        distinct.append(Pair(name, pair.content, pair.style))
    return sorted(distinct, key=lambda pair: pair.name)


def safe_name(name: str) -> str:
    """The name as one that is safe for a file: no separators, controls, leading dots."""
    # Surrogates stand for bytes that are not UTF-8: they could not be printed or stored.
    kept = "".join(
        "_" if char in "/\\" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char
        for char in visible(composed(name))
    )
    short = kept.lstrip(". ").encode()[:NAME_BYTES].decode(errors="ignore").rstrip()
    return short or "unnamed"


def _ambiguous(paths: list[Path]) -> str:
    names = " and ".join(_quote(Path(path.name)) for path in paths)
    return f"{_quote(paths[0].parent)} holds {names}, which share a name: keep only one of them"


def _quote(path: Path) -> str:
    """The path in quotes, on one line even if its name is not."""
    return repr(str(path))
