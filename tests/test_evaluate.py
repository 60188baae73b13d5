"""`nst-batch evaluate`: figures, tables and sheets of pairs, as a user meets them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from jobs.cli.evaluate import HELD_OUT, SHEET, _refuse_overwriting
from jobs.client.held_out import held_out_pairs
from jobs.client.pictures import write_marked
from nst.errors import InputError
from nst.network import levels
from nst.network.weights import save_weights
from nst.pictures.color import ColorStatistics, colored
from nst.pictures.picture import Picture
from nst.pictures.sheet import GAP
from nst.training.vgg import LAYERS_16
from tests.command_line import refused, run
from tests.leveled_toy import random_leveled
from tests.toy import TOY_P_ERROR, TOY_SIZE, offer_toy, random_network, toy_network, toy_weights
from tests.training_data import LEVELED
from tests.user_pairs import folder_of, picture
from tests.vggs import random_arrays, write_npz

QUALITY = ["--quality", "toy"]


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("vgg") / "vgg.npz", random_arrays(LAYERS_16))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_weights(tmp_path_factory.mktemp("weights") / "toy.safetensors")


@pytest.fixture(autouse=True)
def toy_level(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_toy(monkeypatch, weights, tmp_path / "home")


def evaluate(vgg: Path, *arguments: str | Path | int) -> tuple[Result, dict[str, Any]]:
    """Run the command with the report on standard output."""
    result = run("evaluate", *arguments, "--vgg", vgg, *QUALITY, "--json", "-")
    assert result.exit_code in (0, 1), result.output
    return result, json.loads(result.stdout)


def test_report_table_and_sheet(vgg: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea", "wood"))
    out = tmp_path / "out"
    arguments = [source, *QUALITY, "--simulate", 3, "--out", out, "--json", tmp_path / "all.json"]
    result = run("evaluate", *arguments, "--vgg", vgg)
    assert result.exit_code == 0, result.output
    for word in ("untouched", "colours only", "preview", "simulated", "dB", "contrast lowered"):
        assert word in result.stdout
    report = json.loads((tmp_path / "all.json").read_text())
    assert [p["name"] for p in report["pairs"]] == ["sea", "wood"]
    assert (
        report["failed"] == [] and report["size"] == TOY_SIZE and report["p_error"] == TOY_P_ERROR
    )
    medians = report["medians"]
    assert list(medians) == ["untouched", "colours only", "preview", "simulated"]
    assert medians["preview"]["pictures"] == 2 and medians["simulated"]["pictures"] == 6
    assert medians["untouched"]["content"] == pytest.approx(0, abs=1e-9)
    assert "psnr_min" not in medians["preview"]
    assert 15 < medians["simulated"]["psnr_min"] <= medians["simulated"]["psnr_median"] < 60
    for label in medians:
        runs = [m for p in report["pairs"] for m in p["results"][label]]
        for key in ("content", "style", "grain", "blockiness"):
            values = [m[key] for m in runs]
            assert medians[label][key] == pytest.approx(np.median(values))
            worst = report["worst_tenth"][label][key]
            assert worst == pytest.approx(np.percentile(values, 90))
    assert report["spread"] == {} and report["half"] is None
    with Image.open(out / "evaluation.png") as sheet:
        # Two pairs beside each other, of four pictures each, enlarged twice.
        assert sheet.width > 2 * 4 * 2 * TOY_SIZE
        assert 2 * TOY_SIZE < sheet.height < 4 * TOY_SIZE
        first = slice(3 * GAP, 3 * GAP + 2 * TOY_SIZE, 2)
        at = np.asarray(sheet)[first, first]
    with Image.open(source / "content" / "sea.png") as content:
        square = content.crop((4, 0, 44, 40)).resize((TOY_SIZE, TOY_SIZE), Image.Resampling.BICUBIC)
    # Cutting and scaling in two steps rounds otherwise than in one.
    np.testing.assert_allclose(at.astype(int), np.asarray(square).astype(int), atol=1)


def test_weights_of_the_second_engine_are_measured(
    vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, weights = (
        folder_of(tmp_path / "pairs", ("sea", "wood")),
        tmp_path / "leveled.safetensors",
    )
    random_leveled(LEVELED).save(weights, {})
    result, report = evaluate(vgg, source, "--weights", weights)
    assert result.exit_code == 0, result.output
    medians = report["medians"]
    assert (report["engine"], medians["preview"]["pictures"]) == ("ckks", 2)
    # Its noise is far below what a level of circuits rounds away.
    assert medians["simulated"]["psnr_min"] is None or medians["simulated"]["psnr_min"] > 30
    _, other = evaluate(vgg, source)
    assert other["engine"] == "concrete"
    monkeypatch.setitem(levels.ONE_FOR_ALL, "ckks", weights)
    _, own = evaluate(vgg, source, "--engine", "ckks")
    assert (own["engine"], own["medians"]) == ("ckks", medians)
    assert medians["preview"] != other["medians"]["preview"]
    refused(run("evaluate", source, "--vgg", vgg, *QUALITY, "--weights", vgg), "cannot be read")


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_decrypted_pictures_are_measured_like_the_preview(
    fit: str, vgg: Path, tmp_path: Path
) -> None:
    """A folder of previews stands for one of decrypted pictures: it has the same files."""
    source, clear = folder_of(tmp_path / "pairs", ("sea", "wood"), width=70), tmp_path / "clear"
    assert run("preview", source, *QUALITY, "--fit", fit, "--out", clear).exit_code == 0
    _, report = evaluate(vgg, source, "--fit", fit, "--results", clear)
    decrypted = report["medians"]["decrypted"]
    assert decrypted["psnr_median"] is None and decrypted["psnr_min"] is None
    for key in ("content", "style", "grain"):
        assert decrypted[key] == pytest.approx(report["medians"]["preview"][key], rel=1e-4)

    with Image.open(clear / "sea.png") as png:
        brighter = np.asarray(png).astype(np.int16) + 10
    Image.fromarray(np.clip(brighter, 0, 255).astype(np.uint8)).save(clear / "sea.png")
    _, report = evaluate(vgg, source, "--fit", fit, "--results", clear)
    sea, wood = (p["results"]["decrypted"][0]["psnr"] for p in report["pairs"])
    assert wood is None and sea == pytest.approx(20 * np.log10(255 / 10), abs=1)


def test_missing_and_foreign_results_cost_only_themselves(vgg: Path, tmp_path: Path) -> None:
    source, clear = folder_of(tmp_path / "pairs", ("a", "b", "c", "d")), tmp_path / "clear"
    assert run("preview", source, *QUALITY, "--out", clear).exit_code == 0
    (clear / "a.png").unlink()
    picture(clear / "b.png", width=24, height=24)
    (clear / "c.png").write_bytes((clear / "c.png").read_bytes()[:99])
    result, report = evaluate(vgg, source, "--results", clear, "--simulate", 0)
    assert result.exit_code == 1
    assert report["medians"]["decrypted"]["pictures"] == 1
    assert report["medians"]["preview"]["pictures"] == 4
    assert "simulated" not in report["medians"]
    reasons = {f["name"]: f["reason"] for f in report["failed"]}
    assert list(reasons) == ["a", "b", "c"]
    assert "does not exist" in reasons["a"] and "24 x 24" in reasons["b"]
    for name, reason in reasons.items():
        assert f"failed {name}: {reason}" in result.stderr
    refused(
        run("evaluate", source, *QUALITY, "--vgg", vgg, "--results", clear / "a.png"), "no folder"
    )


def test_pairs_that_cannot_be_used_cost_only_themselves(
    vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged picture, one too narrow, and one that overflows at every contrast."""
    network = toy_network()
    stem = network.stages["stem"]
    loud = replace(stem, weight=np.full_like(stem.weight, 7))
    wild = tmp_path / "wild.safetensors"
    save_weights(replace(network, stages={**network.stages, "stem": loud}), wild, {})
    source = folder_of(tmp_path / "pairs", ("flat", "cut", "thin", "loud"))
    content = source / "content"
    Image.new("RGB", (40, 40), "teal").save(content / "flat.png")
    (content / "cut.png").write_bytes((content / "cut.png").read_bytes()[:60])
    Image.new("RGB", (80, 10), "teal").save(content / "thin.png")
    options = ["--weights", wild, "--fit", "letterbox", "--out", tmp_path / "out"]
    result, report = evaluate(vgg, source, *options)
    assert result.exit_code == 1
    reasons = {f["name"]: f["reason"] for f in report["failed"]}
    assert set(reasons) == {"cut", "thin", "loud"}
    assert "overflows" in reasons["loud"] and "narrow" in reasons["thin"]
    assert [p["name"] for p in report["pairs"]] == ["flat"]
    assert (tmp_path / "out" / "evaluation.png").exists()
    (content / "flat.png").unlink()
    refused(run("evaluate", source, *QUALITY, *options, "--vgg", vgg), "none of the", alone=False)


def test_held_out_pairs_are_those_training_never_saw(vgg: Path, tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / "photos" / f"p{i:02}.png", i)
        picture(tmp_path / "paintings" / f"q{i:02}.png", 50 + i)
    folders = ["--content-dir", tmp_path / "photos", "--style-dir", tmp_path / "paintings"]
    out = tmp_path / "out"
    result, report = evaluate(vgg, *folders, "--count", 7, "--simulate", 0, "--out", out)
    assert result.exit_code == 0
    names = [p["name"] for p in report["pairs"]]
    pairs = held_out_pairs(tmp_path / "photos", tmp_path / "paintings", 7)
    assert names == [p.name for p in pairs] and len(set(names)) == 7
    held_out = {"p00", "p16", "p32"}
    assert {p.content.stem for p in pairs} <= held_out
    assert [p.style.stem for p in pairs] == ["q00", "q16", "q32", "q00", "q16", "q32", "q00"]
    # What it writes down, submit and preview take, and the results have the same names.
    clear = tmp_path / "clear"
    assert run("preview", out / "pairs.csv", *QUALITY, "--out", clear).exit_code == 0
    _, again = evaluate(vgg, *folders, "--count", 7, "--simulate", 0, "--results", clear)
    assert again["medians"]["preview"] == report["medians"]["preview"]
    assert again["medians"]["decrypted"]["pictures"] == 7
    assert again["failed"] == []


def test_pairs_of_strong_styles(vgg: Path, tmp_path: Path) -> None:
    for i in range(33):
        picture(tmp_path / "photos" / f"p{i:02}.png", i)
    for i in range(7):
        picture(tmp_path / "strong" / f"s{i}.png", 50 + i)
    folders = ["--content-dir", tmp_path / "photos", "--strong-dir", tmp_path / "strong"]
    out, counted = tmp_path / "out", ["--count", 7, "--simulate", 0]
    seen = []
    for half in ("deciding", "choosing"):
        result, report = evaluate(
            vgg, *folders, "--half", half, *counted, "--out", out / half, "--magnify", 1
        )
        assert result.exit_code == 0 and "spread: " in result.stderr
        assert report["half"] == half and len(report["pairs"]) == 7
        # Few styles give no more than that there is a spread.
        assert 0 <= report["spread"]["colours only"] < 1 and report["spread"]["preview"] > 0
        with Image.open(out / half / "evaluation.png") as sheet:
            assert 3 * 3 * TOY_SIZE < sheet.width < 3 * 3 * 2 * TOY_SIZE
        seen.append({p["name"].split("--")[1] for p in report["pairs"]})
    assert not set.intersection(*seen) and set.union(*seen) == {f"s{i}" for i in range(7)}
    _, default = evaluate(vgg, *folders, *counted)
    assert default["half"] == "deciding"
    trained = ["--style-dir", tmp_path]
    refused(run("evaluate", "--vgg", vgg, *QUALITY, *folders, *trained), "trained on")


def test_colours_only_takes_the_colours_of_the_style(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    content, style = (Picture(0.3 + 0.4 * rng.random((3, 32, 32), np.float32)) for _ in range(2))
    made = ColorStatistics.of(colored(content.white, style.statistics))
    np.testing.assert_allclose(made.mean, style.statistics.mean, atol=1e-3)
    np.testing.assert_allclose(made.covariance, style.statistics.covariance, atol=2e-3)


def test_more_noise_with_a_larger_p_error(vgg: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea", "wood"))
    found = []
    for p_error in ("0.002", "0.3"):
        _, report = evaluate(vgg, source, "--p-error", p_error)
        found.append(report["medians"]["simulated"]["psnr_median"])
    assert found[1] < found[0]


def test_wrong_usage(vgg: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pairs", ("sea",))
    side = source / "content"
    base = ["evaluate", "--vgg", vgg, *QUALITY]
    refused(run(*base), "PAIRS")
    refused(run(*base, source, "--content-dir", side), "PAIRS")
    refused(run(*base, "--content-dir", side), "PAIRS")
    refused(run(*base, source, "--content-dir", side, "--style-dir", side), "PAIRS")
    refused(run(*base, "--grid", "--content-dir", side, "--style-dir", side), "--grid")
    refused(run(*base, "--strong-dir", side), "PAIRS")
    refused(run(*base, source, "--strong-dir", side), "PAIRS")
    both = ["--content-dir", side, "--style-dir", side]
    refused(run(*base, *both, "--half", "choosing"), "--half")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run(*base, "--content-dir", empty, "--style-dir", empty), "empty")
    refused(run("evaluate", source, *QUALITY, "--vgg", source / "none.pth"), "none.pth")
    refused(run("evaluate", source, "--vgg", vgg, "--quality", "best"), "best", "draft")
    refused(run(*base, source, "--weights", tmp_path / "none.safetensors"), "none.safetensors")
    (tmp_path / "file").write_text("in the way")
    refused(run(*base, source, "--out", tmp_path / "file"), "file")
    refused(run(*base, source, "--json", empty / "no" / "all.json"), "all.json", alone=False)


def test_weights_for_another_size_are_refused(vgg: Path, tmp_path: Path) -> None:
    path = tmp_path / "three.safetensors"
    architecture = replace(toy_network().architecture, style_stride=3)
    save_weights(random_network(architecture), path, {})
    source = folder_of(tmp_path / "pairs", ("sea",))
    refused(run("evaluate", source, "--vgg", vgg, *QUALITY, "--weights", path), "three.safetensors")


def test_files_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / HELD_OUT).write_bytes(b"content,style\n")
    _refuse_overwriting(tmp_path, None)
    _refuse_overwriting(tmp_path, b"content,style\n")
    with pytest.raises(InputError, match=r"pairs\.csv is not of this command"):
        _refuse_overwriting(tmp_path, b"content,style,name\n")
    (tmp_path / SHEET).write_bytes(b"mine")
    with pytest.raises(InputError, match=r"evaluation\.png is not of this command"):
        _refuse_overwriting(tmp_path, None)
    write_marked(Image.new("RGB", (8, 8)), tmp_path / SHEET)
    _refuse_overwriting(tmp_path, None)
