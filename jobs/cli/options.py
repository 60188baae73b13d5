"""Options that several commands take."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from nst.errors import InputError, NstBatchError

if TYPE_CHECKING:
    from jobs.client.drivers import Place
    from nst.pictures.size import Size


def complete_quality(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Quality levels for a shell."""
    from nst.network.levels import LEVELS

    return [name for name in LEVELS if name.startswith(begun)]


def complete_auto_quality(ctx: click.Context, option: click.Parameter, begun: str) -> list[str]:
    """The same where the best level can be chosen."""
    return complete_quality(ctx, option, begun) + ["auto"] * "auto".startswith(begun)


def complete_job(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Jobs of this machine for a shell."""
    from jobs.client.home import Home

    try:
        books = Home.default().books()
    except NstBatchError:
        return []
    return [
        CompletionItem(book.job_id, help=f"{book.quality}, {book.created}")
        for book in books
        if book.job_id.startswith(begun)
    ]


quality_option = click.option(
    "--quality",
    "-q",
    default="low",
    show_default=True,
    shell_complete=complete_quality,
    help="draft 32, low 64, mid 128, high 192, ultra 256.",
)
auto_quality_option = click.option(
    "--quality",
    "-q",
    default="low",
    show_default=True,
    shell_complete=complete_auto_quality,
    help="draft 32, low 64, mid 128, high 192, ultra 256; auto is the best that --budget allows.",
)


class Duration(click.ParamType[float]):
    """A span of time as people write it: 8h, 90min, 1h30m; becomes seconds."""

    name = "time"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        """See `click.ParamType`."""
        if isinstance(value, float):
            return value
        parts = re.fullmatch(r"(?:([\d.]+) *h)? *(?:([\d.]+) *m(?:in)?)?", value.strip())
        try:
            given = [float(part or 0) for part in parts.groups()] if parts else [0.0, 0.0]
        except ValueError:
            given = [0.0, 0.0]
        seconds = 3600 * given[0] + 60 * given[1]
        if not seconds > 0:
            self.fail(f"{value!r} is no span of time such as 8h or 90min", parameter, context)
        return seconds


class SizeType(click.ParamType["Size"]):
    """A width and a height in pixels as people write them: 768x512, or 512 for a square."""

    name = "size"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Size:
        """See `click.ParamType`."""
        from nst.pictures.size import Size

        if isinstance(value, Size):
            return value
        try:
            return Size.parse(value)
        except InputError as error:
            self.fail(str(error), parameter, context)


size_option = click.option(
    "--size",
    type=SizeType(),
    metavar="WIDTHxHEIGHT",
    help="Pixels of contents and results.  [default: a square of the level's size]",
)
budget_option = click.option(
    "--budget",
    type=Duration(),
    metavar="TIME",
    default="8h",
    show_default=True,
    help="With --quality auto: what there is, as 8h or 90min.",
)
grid_option = click.option("--grid", is_flag=True, help="Every content with every style.")
fit_option = click.option(
    "--fit",
    type=click.Choice(["crop", "letterbox"]),
    default="crop",
    show_default=True,
    help="How contents of other proportions are brought to the size of the result.",
)
force_option = click.option("--force", is_flag=True, help="Replace pictures in the output folder.")
actors_option = click.option(
    "--actors",
    type=click.IntRange(min=1),
    show_default="all cores, or all CPUs that the cluster has",
    default=None,
    help="Ray actors, one core each.",
)


def require_auto(quality: str) -> None:
    """Raise click.UsageError if there is a --budget on this command line and no use for it."""
    source = click.get_current_context().get_parameter_source("budget")
    if quality != "auto" and source is ParameterSource.COMMANDLINE:
        raise click.UsageError("--budget needs --quality auto")


def notify_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add whom to tell of a job's end; the command gets `hook: Hook`, checked."""

    @click.option(
        "--notify-command",
        metavar="COMMAND",
        help="Run this here at the end, without a shell; job, state and counts as JSON on stdin.",
    )
    @click.option("--notify-url", metavar="URL", help="Post the same to this address.")
    @wraps(command)
    def folded(
        *arguments: Any, notify_command: str | None, notify_url: str | None, **options: Any
    ) -> Any:
        from jobs.execution.notify import Hook

        # The driver of a job has another working directory.
        hook = Hook(notify_command or "", notify_url or "", str(Path.cwd()))
        hook.check()
        return command(*arguments, hook=hook, **options)

    return folded


def number_of_actors(asked: int | None, place: Place) -> int:
    """How many actors to start: on a cluster, 0 leaves it to the driver."""
    return place.actors(asked)


def _strength(parameter: str) -> int:
    """Where a parameter of this call has its value from: the less, the stronger."""
    source = click.get_current_context().get_parameter_source(parameter)
    return int(source or ParameterSource.DEFAULT)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add where a job is to run; the command gets `place: Place | None`, None if nobody said."""

    @click.option(
        "--cluster", metavar="ADDRESS", help="Run on the Ray cluster at http://host:8265."
    )
    @click.option(
        "--cluster-python",
        metavar="PATH",
        help="Interpreter of the cluster that has this package.  [default: python]",
    )
    @click.option("--here", is_flag=True, help="Run on this machine.")
    @wraps(command)
    def folded(
        *arguments: Any,
        cluster: str | None,
        cluster_python: str | None,
        here: bool,
        **options: Any,
    ) -> Any:
        strengths = _strength("here"), _strength("cluster")
        place = place_of(here, cluster, cluster_python, *strengths)
        return command(*arguments, place=place, **options)

    return folded


def place_of(
    here: bool,
    cluster: str | None,
    cluster_python: str | None,
    here_strength: int,
    cluster_strength: int,
) -> Place | None:
    """Where a job is to run by these options, None if nobody said.

    What was said more strongly wins, the smaller number.

    Raises:
        click.UsageError: if both were said in one place.
    """
    from jobs.client.drivers import PYTHON, Place

    if here and cluster and here_strength == cluster_strength:
        raise click.UsageError("--here and --cluster exclude each other")
    if cluster and not (here and here_strength < cluster_strength):
        return Place(cluster, cluster_python or PYTHON)
    return Place() if here else None
