"""Which pairs a folder or CSV file stands for, and what the user hears of the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.client.pairs import NAME_BYTES, Pair, find_pairs, named_pairs, safe_name
from nst.errors import InputError


def touch(root: Path, *names: str) -> Path:
    """Creates empty files: pairs are found by name, no picture is opened."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(source: Path, grid: bool = False) -> list[str]:
    return [pair.name for pair in find_pairs(source, grid)[0]]


def error_of(source: Path, grid: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        find_pairs(source, grid)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(str(source))[1:-1] in message
    return message


def test_two_sides_match_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "content/b.JPG", "content/a.v1.png", "style/b.webp", "style/a.v1.tiff")
    pairs, skipped = find_pairs(tmp_path)
    assert pairs == [
        Pair("a.v1", tmp_path / "content/a.v1.png", tmp_path / "style/a.v1.tiff"),
        Pair("b", tmp_path / "content/b.JPG", tmp_path / "style/b.webp"),
    ]
    assert skipped == []


def test_hidden_files_other_suffixes_and_folders_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "content/a.jpg", "style/a.jpg", "content/.b.jpg", "content/notes.txt")
    (tmp_path / "content/folder.png").mkdir()
    pairs, skipped = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["a"]
    assert skipped == []


def test_unmatched_pictures_are_skipped_with_a_remedy(tmp_path: Path) -> None:
    touch(tmp_path, "content/a.jpg", "style/a.jpg", "content/b.jpg", "style/B.png")
    pairs, skipped = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["a"]
    reasons = {skip.name: skip.reason for skip in skipped}
    assert reasons.keys() == {"b", "B"}
    assert "content/b.jpg" in reasons["b"] and "no style" in reasons["b"]
    assert "style/B.png" in reasons["B"] and "no content" in reasons["B"]
    assert all("--grid" in reason for reason in reasons.values())


def test_nothing_matching_points_to_grid(tmp_path: Path) -> None:
    touch(tmp_path, "content/a.jpg", "style/b.jpg")
    assert "--grid" in error_of(tmp_path)
    assert names(tmp_path, grid=True) == ["a--b"]


def test_grid_takes_every_content_with_every_style(tmp_path: Path) -> None:
    touch(tmp_path, "content/y.jpg", "content/x.jpg", "style/x.jpg", "style/z.jpg")
    pairs, skipped = find_pairs(tmp_path, grid=True)
    assert [pair.name for pair in pairs] == ["x--x", "x--z", "y--x", "y--z"]
    assert (pairs[1].content.name, pairs[1].style.name) == ("x.jpg", "z.jpg")
    assert skipped == []


@pytest.mark.parametrize("grid", [False, True])
def test_two_pictures_of_one_stem_are_skipped_once(tmp_path: Path, grid: bool) -> None:
    touch(tmp_path, "content/a.jpg", "content/a.png", "style/a.jpg")
    touch(tmp_path, "content/b.jpg", "style/b.jpg")
    pairs, skipped = find_pairs(tmp_path, grid)
    assert {pair.content.name for pair in pairs} == {"b.jpg"}
    assert [skip.name for skip in skipped] == ["a"]
    assert "'a.jpg'" in skipped[0].reason and "'a.png'" in skipped[0].reason


@pytest.mark.parametrize("empty", ["content", "style"])
def test_a_side_without_pictures_is_named(tmp_path: Path, empty: str) -> None:
    touch(tmp_path, "content/a.jpg", "style/a.jpg")
    (tmp_path / empty / "a.jpg").unlink()
    assert f"{empty}' holds no pictures" in error_of(tmp_path)


def test_folder_a_pair(tmp_path: Path) -> None:
    touch(tmp_path, "two/content.PNG", "two/style.gif", "two/result.png", ".git/content.png")
    touch(tmp_path, "one/content.jpg", "one/style.jpg", "lone/content.jpg", "loose.jpg")
    touch(tmp_path, "many/content.jpg", "many/content.png", "many/style.jpg")
    pairs, skipped = find_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["one", "two"]
    assert pairs[1].content == tmp_path / "two/content.PNG"
    assert [skip.name for skip in skipped] == ["lone", "many"]
    assert "lone' has no style picture" in skipped[0].reason
    assert "keep only one" in skipped[1].reason


def test_grid_of_folders_a_pair(tmp_path: Path) -> None:
    touch(tmp_path, "a/content.jpg", "a/style.jpg", "b/content.jpg", "b/style.jpg")
    assert names(tmp_path, grid=True) == ["a--a", "a--b", "b--a", "b--b"]


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_of_pairs(tmp_path: Path, encoding: str, newline: str) -> None:
    touch(tmp_path, "in/été.jpg", "in/b,c.jpg", "s.png")
    lines = ["content,style,name", "in/été.jpg,s.png,Noël", "", '"in/b,c.jpg", s.png,']
    pairs, skipped = find_pairs(write_csv(tmp_path, newline.join(lines), encoding))
    assert [pair.name for pair in pairs] == ["Noël", "b,c--s"]
    assert pairs[0].content == tmp_path / "in/été.jpg"
    assert skipped == []


def test_csv_without_names_in_another_column_order(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "s.jpg")
    (pair,), _ = find_pairs(write_csv(tmp_path, "style, content\ns.jpg,a.jpg\n"))
    assert pair == Pair("a--s", tmp_path / "a.jpg", tmp_path / "s.jpg")


def test_bad_csv_rows_are_skipped_by_line_number(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "s.jpg")
    text = "content,style\na.jpg\na.jpg,gone.jpg\n\na.jpg,s.jpg\n,s.jpg\n"
    pairs, skipped = find_pairs(write_csv(tmp_path, text))
    assert [pair.name for pair in pairs] == ["a--s"]
    assert [skip.name for skip in skipped] == ["line 2", "line 3", "line 6"]
    assert "line 2 has no style" in skipped[0].reason
    assert "line 3" in skipped[1].reason and "'gone.jpg'" in skipped[1].reason
    assert "line 6 has no content" in skipped[2].reason


def test_a_csv_cell_that_cannot_be_a_path_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "s.jpg")
    _, skipped = find_pairs(write_csv(tmp_path, f"content,style\n{'x' * 300},s.jpg\na.jpg,s.jpg\n"))
    assert [skip.name for skip in skipped] == ["line 2"]


def test_grid_of_a_csv_crosses_distinct_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "s.jpg", "t.jpg")
    path = write_csv(tmp_path, "content,style\na.jpg,s.jpg\nb.jpg,s.jpg\nb.jpg,t.jpg\n")
    assert names(path, grid=True) == ["a--s", "a--t", "b--s", "b--t"]


def test_equal_names_are_numbered(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "s.jpg")
    rows = "".join(f"{stem}.jpg,s.jpg,same\n" for stem in "cab")
    pairs, _ = find_pairs(write_csv(tmp_path, "content,style,name\n" + rows))
    assert [(pair.name, pair.content.stem) for pair in pairs] == [
        ("same", "a"),
        ("same-2", "b"),
        ("same-3", "c"),
    ]


def test_a_number_never_meets_a_given_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "s.jpg")
    rows = "".join(f"a.jpg,s.jpg,{name}\n" for name in ("x", "x", "x-2"))
    found = names(write_csv(tmp_path, "content,style,name\n" + rows))
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["contact-sheet", "gallery", "evaluation"])
def test_no_pair_has_the_name_of_a_file_beside_the_results(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"content/{name}.jpg", f"style/{name}.jpg")
    assert names(tmp_path) == [f"{name}-2"]
    (pair,) = named_pairs([Pair(name, tmp_path / "a", tmp_path / "b")])
    assert pair.name == f"{name}-2"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("a\\b", "a_b"),
        ("a\nb\x00\u2028c", "a_b__c"),
        ("..", "unnamed"),
        (".hidden", "hidden"),
        ("été 日本 🎨", "été 日本 🎨"),
        ("bad\udcff", "bad_"),
    ],
)
def test_names_are_safe_as_file_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_fit_into_a_file_name() -> None:
    short = safe_name("é" * 300)
    assert short and set(short) == {"é"}
    assert len(short.encode()) <= NAME_BYTES


def test_reasons_stay_on_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "content/a.jpg", "style/a.jpg", "content/two\nlines.jpg")
    _, (skip,) = find_pairs(tmp_path)
    assert "\n" not in skip.name + skip.reason


def test_missing_source(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "gone")


def test_a_file_that_is_not_csv(tmp_path: Path) -> None:
    assert "neither a folder nor a .csv" in error_of(touch(tmp_path, "a.jpg") / "a.jpg")


@pytest.mark.parametrize("layout", [[], ["loose.jpg"], ["content/a.jpg"], ["x/content.jpg"]])
def test_no_pair_at_all(tmp_path: Path, layout: list[str]) -> None:
    assert "content/ and style/" in error_of(touch(tmp_path, *layout))


def test_only_ambiguous_pictures_give_their_reason(tmp_path: Path) -> None:
    touch(tmp_path, "content/a.jpg", "content/a.png", "style/a.jpg")
    assert "keep only one" in error_of(tmp_path)


@pytest.mark.parametrize("text", ["", "a.jpg,s.jpg\n", "content;style\na.jpg;s.jpg\n"])
def test_csv_without_its_header(tmp_path: Path, text: str) -> None:
    assert "content,style" in error_of(write_csv(tmp_path, text))


def test_csv_without_rows(tmp_path: Path) -> None:
    assert "no usable pair" in error_of(write_csv(tmp_path, "content,style\n"))


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    assert "UTF-8" in error_of(write_csv(tmp_path, "content,style\né.jpg,s.jpg\n", "latin-1"))


def test_csv_with_a_broken_field(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "content,style\na.jpg," + "s" * 200_000)
    assert "line 2 is not valid CSV" in error_of(path)


def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "content/a.jpg", "style/a.jpg")

    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    message = error_of(tmp_path)
    assert str(tmp_path / "content") in message and "Permission denied" in message
