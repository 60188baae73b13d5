"""Options that several commands take."""

from __future__ import annotations

import click

quality_option = click.option(
    "--quality", "-q", default="low", show_default=True, help="draft 32, low 64, mid 128, high 192."
)
grid_option = click.option("--grid", is_flag=True, help="Every content with every style.")
fit_option = click.option(
    "--fit",
    type=click.Choice(["crop", "letterbox"]),
    default="crop",
    show_default=True,
    help="How pictures that are not square are made so.",
)
