"""The command line. Imports of heavy packages wait until a command needs them."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from jobs.cli import job, service
from jobs.cli.about import completion, version_option
from jobs.cli.circuits import circuits
from jobs.cli.config import ConfiguredGroup, config
from jobs.cli.doctor import doctor
from jobs.cli.estimate import estimate
from jobs.cli.evaluate import evaluate, export
from jobs.cli.examples import examples
from jobs.cli.keys import keys
from jobs.cli.screen import EXIT_SOME_FAILED, EXIT_USAGE, complain, warnings_shown
from jobs.cli.styles import styles
from jobs.cli.submit import demo, preview, submit
from jobs.cli.train import train
from nst.errors import InputError, NstBatchError

OUR_PACKAGES = ("nst", "jobs", "cluster")


class _Commands(ConfiguredGroup):
    """Prints errors as one line and turns them into exit codes."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """See `click.Group`; what the system refuses anywhere is one line as well."""
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                # What a full disk refuses, it must refuse here.
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            _discard_output()
            if error.errno == errno.EPIPE:
                sys.exit(EXIT_SOME_FAILED)
            where = f" {error.filename}" if error.filename else ""
            with suppress(OSError):
                click.echo(
                    f"error: the system refuses{where} ({error.strerror or error}); check free "
                    "space and permissions, and that disks are mounted",
                    err=True,
                )
            sys.exit(EXIT_USAGE)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            _end(error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_shown():
                _require_working_directory()
                return super().invoke(ctx)
        except click.UsageError as error:
            _end(error)
            raise
        except NstBatchError as error:
            complain(f"error: {error}")
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            # Of ours none is missing, unless the installation is damaged.
            missing = (error.name or "").partition(".")[0]
            if missing in OUR_PACKAGES:
                raise
            complain(
                f"error: this takes the package {missing}, which this installation has not: a "
                "client's or server's has no part that builds, trains or computes here; install "
                "nst-batch as a whole"
            )
            ctx.exit(EXIT_USAGE)


def _discard_output() -> None:
    """What standard output still holds would fail again when the interpreter ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _require_working_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working directory cannot be read ({error.strerror}); it may have been deleted: "
            "cd to another one"
        ) from error


def _end(error: click.UsageError) -> None:
    """End with wrong usage in one line; a group without a command shows its help instead."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return
    path = error.ctx.command_path if error.ctx else "nst-batch"
    message = error.format_message().rstrip(".")
    complain(f"error: {message[:1].lower()}{message[1:]}; see: {path} --help")
    raise click.exceptions.Exit(EXIT_USAGE)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("demo", "submit ./pairs --quality low --out ./stylized", "submit --help"),
)
@version_option
def main() -> None:
    """Style transfer on encrypted pictures, as a batch job.

    Options that no flag gives are taken from the environment and from nst-batch.toml: see config.

    Exit codes: 0 all done, 1 some pairs failed, 2 wrong usage or input, or damaged things,
    3 store or cluster out of reach.
    """


for _command in (
    *(circuits, completion, config, demo, doctor, estimate, evaluate, export, keys),
    *(preview, styles, submit, train, *job.COMMANDS, *service.COMMANDS),
):
    main.add_command(_command)
