"""What this program is made of, and how a shell completes its commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, TypeVar

import click

from jobs.cli.examples import examples

PROGRAM, VARIABLE = "nst-batch", "_NST_BATCH_COMPLETE"
Command = TypeVar("Command")


def versions() -> str:
    """This program's version, and those that keys, circuits and jobs depend on."""
    import platform

    from nst.engines.concrete.plan import FORMAT

    return "\n".join(
        [
            f"{PROGRAM} {version(PROGRAM)}",
            f"Concrete {version('concrete-python')}, Concrete ML {version('concrete-ml')}, "
            f"circuit format {FORMAT}",
            f"Ray {version('ray')}, Python {platform.python_version()}",
        ]
    )


def version_option(command: Command) -> Command:
    """Add --version, which says more than one version."""

    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            click.echo(versions())
            ctx.exit()

    add: Any = click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show versions, of Concrete and circuits too, and exit.",
    )
    return add(command)


@click.command(
    epilog=examples(
        "completion bash > ~/.local/share/bash-completion/completions/nst-batch",
        "completion zsh > ~/.zfunc/_nst-batch",
        "completion fish > ~/.config/fish/completions/nst-batch.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what SHELL needs to complete commands, options and jobs."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
