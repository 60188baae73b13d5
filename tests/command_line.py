"""The command line as tests call it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from jobs.cli.main import main


def run(*arguments: object, typed: str = "") -> Result:
    """Call `nst-batch` in this process, with what a user types."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=typed)


def refused(result: Result, *words: str, code: int = 2, alone: bool = True) -> None:
    """The command ended with this code and one line of error with these words, no stack trace.

    That line is all there is, unless it may stand beside others, such as questions.
    """
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    lines = result.output.splitlines()
    (line,) = [x for x in lines if x.startswith("error: ")]
    assert not alone or lines == [line]
    for word in words:
        assert word in line, line


def namesakes(folder: Path) -> Path:
    """A user's own project, which has packages of our names."""
    for name in ("nst", "jobs", "cluster"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('not ours')\n")
    return folder
