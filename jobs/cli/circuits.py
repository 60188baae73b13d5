"""`nst-batch circuits`: what a level's published model costs."""

from __future__ import annotations

import json

import click

from jobs.cli.config import ConfiguredGroup
from jobs.cli.examples import examples
from jobs.cli.options import takes
from jobs.options import BuildOptions, InspectOptions


@click.group(cls=ConfiguredGroup, epilog=examples("circuits inspect --quality low"))
def circuits() -> None:
    """Compiled circuits of the quality levels."""


@circuits.command("build", epilog=examples("circuits build --quality mid"))
@takes(BuildOptions)
def circuits_build(options: BuildOptions) -> None:
    """Compile the circuits of a level; done once per width and kept."""
    from jobs.client.home import Home
    from jobs.client.run import load_model

    folder = load_model(options, Home.default()).published.folder
    click.echo(f"circuits {folder.name} in {folder}")


@circuits.command(
    "inspect",
    epilog=examples("circuits inspect --quality low", "circuits inspect --quality low --json"),
)
@takes(InspectOptions)
def circuits_inspect(options: InspectOptions) -> None:
    """Show what the compiled circuits of a level cost."""
    from jobs.client.home import Home
    from jobs.client.run import load_model

    summary = load_model(options, Home.default()).plan.summary()
    if options.as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        rows = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
        for row in rows:
            name, *rest = row.items()
            costs = ", ".join(f"{_figure(count)} {what}" for what, count in rest)
            click.echo(f"  {name[1]!s:12} {costs}")
        if not rows:
            click.echo(f"{key:24} {_figure(value)}")


def _figure(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )
