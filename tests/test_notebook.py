"""The notebook runs from its first cell to its last, and was committed as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.client import drivers
from nst.network import levels
from tests.toy_job import EXAMPLE, ToyJob

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "notebook.ipynb"


def test_the_cells_run_in_order(
    toy_job: ToyJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the toy network, whose row tasks the session has computed for this very pair."""
    monkeypatch.setitem(levels.LEVELS, "toy", toy_job.level)
    monkeypatch.setenv("NST_NOTEBOOK_QUALITY", "toy")
    monkeypatch.setenv("NST_BATCH_HOME", str(toy_job.home.root))
    monkeypatch.delenv("NST_BATCH_PASSPHRASE", raising=False)
    monkeypatch.setattr(drivers, "start_here", toy_job.play_back())
    before = toy_job.home.jobs()
    names: dict[str, object] = {}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert list(names["results"]) == [EXAMPLE]  # type: ignore[call-overload]
    assert 20 < float(str(names["psnr"])) < 60
    assert "dB PSNR" in capsys.readouterr().out
    assert toy_job.home.jobs() == before


def test_it_is_small_and_shows_pictures_of_a_run_without_errors() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    outputs = [
        output
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    # Nothing of the machine that it ran on.
    texts = [json.dumps(output) for output in outputs if output not in pictures]
    assert not any("/home" in text or "/tmp" in text for text in texts)
