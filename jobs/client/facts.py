"""What a gallery says of a job and its pairs, in words."""

from __future__ import annotations

from jobs.client.costs import PairCost
from jobs.client.gallery import Summary
from jobs.client.home import JobBook
from jobs.client.watch import duration
from jobs.storage.records import JobState, PairState
from nst.pictures.size import Size
from nst.network.levels import QualityLevel


def job_summary(book: JobBook, level: QualityLevel, state: JobState) -> Summary:
    """What stands above the pairs of a job."""
    facts = [
        ("job", book.job_id),
        ("quality", quality_fact(level, book.canvas)),
        ("submitted", book.created[:16].replace("T", " ") + " UTC"),
        ("state", _state(state)),
    ]
    spent = state.last_task - state.first_task
    if state.pbs_done and spent > 0:
        actors = f"{state.actors} actor{'s' if state.actors > 1 else ''}"
        facts += [
            ("computed", f"{state.pbs_done:,} PBS in {duration(spent)}"),
            ("speed", f"{state.pbs_done / spent:,.0f} PBS/s on {actors}"),
        ]
    if state.reason:
        facts.append(("stopped", state.reason))
    return Summary("Stylized pictures", tuple(facts))


def _state(state: JobState) -> str:
    """A job's status; one that ran to its end has only lost some pairs."""
    ended = state.status == "failed" and not state.reason
    return "ended, pairs failed" if ended else state.status


def quality_fact(level: QualityLevel, canvas: Size | None = None) -> str:
    """A level and the size of its results: a canvas, or its own."""
    size = level.canvas(canvas)
    return f"{level.name}, {size.width} × {size.height} pixels"


def pair_facts(cost: PairCost) -> tuple[str, ...]:
    """What a pair took: times as far as they are known, and PBS."""
    shared = f"shared by {cost.sharing} pairs" if cost.sharing > 1 else ""
    style = f"{cost.style_pbs:,} for the style" + (f" {shared}" if shared else "")
    pbs = f"{cost.pbs:,} PBS + {style}"
    if cost.seconds is None or cost.core_seconds is None:
        return (pbs,)
    return (duration(cost.seconds), f"{cost.core_seconds:,.0f} core-seconds", pbs)


def waiting_note(book: JobBook, state: PairState) -> str:
    """Why a pair has no result yet, and what helps if it does not come by itself."""
    if state.status in ("running", "queued"):
        return state.status
    reason = f" ({state.reason})" if state.reason else ""
    return f"{state.status}{reason}; go on with: nst-batch retry {book.job_id}"
