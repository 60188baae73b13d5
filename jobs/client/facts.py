"""What a gallery says of a job and its pairs, in words."""

from __future__ import annotations

from jobs.client.costs import PairCost
from jobs.client.gallery import Summary
from jobs.client.home import LocalJob
from jobs.client.watch import duration
from jobs.client.wording import many
from jobs.storage.records import JobState, PairState
from nst.pictures.size import Size


def job_summary(local: LocalJob, state: JobState) -> Summary:
    """What stands above the pairs of a job."""
    facts = [
        ("job", local.job_id),
        ("quality", quality_fact(local.quality, local.size)),
        ("submitted", local.created[:16].replace("T", " ") + " UTC"),
        ("state", _state(state)),
    ]
    spent = state.last_task - state.first_task
    if state.seconds_done and spent > 0:
        facts.append(("computed", f"in {duration(spent)} on {many(state.actors, 'actor')}"))
    if state.reason:
        facts.append(("stopped", state.reason))
    return Summary("Stylized pictures", tuple(facts))


def _state(state: JobState) -> str:
    """A job's status; one that ran to its end has only lost some pairs."""
    ended = state.status == "failed" and not state.reason
    return "ended, pairs failed" if ended else state.status


def quality_fact(quality: str, size: Size) -> str:
    """A level's name and the size of its results."""
    return f"{quality}, {size.width} × {size.height} pixels"


def pair_facts(cost: PairCost | None) -> tuple[str, ...]:
    """What a pair took, its style left out; nothing if that is not known."""
    if cost is None:
        return ()
    return (duration(cost.seconds), f"{cost.core_seconds:,.0f} core-seconds")


def waiting_note(local: LocalJob, state: PairState) -> str:
    """Why a pair has no result yet, and what helps if it does not come by itself."""
    if state.status in ("running", "queued"):
        return state.status
    reason = f" ({state.reason})" if state.reason else ""
    return f"{state.status}{reason}; go on with: nst-batch retry {local.job_id}"
