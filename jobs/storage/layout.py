"""Every key in a store, in one place. Nothing else in the program spells a path in a store."""

from __future__ import annotations

from nst.errors import StoreError

STORE = "store.json"


def server_zip(circuit_id: str) -> str:
    """Compiled circuits."""
    return f"circuits/{circuit_id}/server.zip"


def circuit_plan(circuit_id: str) -> str:
    """What they cost."""
    return f"circuits/{circuit_id}/plan.json"


def evaluation_keys(key_id: str) -> str:
    """Evaluation keys: they compute on ciphertexts and cannot decrypt them."""
    return f"keys/{key_id}/evaluation.key"


def job(job_id: str) -> str:
    """A job's record, written last by the client: a job without it was never submitted."""
    return f"jobs/{job_id}/job.json"


def state(job_id: str) -> str:
    """How far a job is."""
    return f"jobs/{job_id}/state.json"


def trace(job_id: str) -> str:
    """When each row task ran."""
    return f"jobs/{job_id}/trace.json"


def encrypted_input(job_id: str, input_id: str) -> str:
    """An encrypted picture."""
    return f"jobs/{job_id}/inputs/{input_id}.ct"


def result_row(job_id: str, pair_id: str, row: int) -> str:
    """One encrypted row of a result."""
    return f"jobs/{job_id}/results/{pair_id}/{row:03d}.ct"


def results(job_id: str) -> str:
    """Prefix of the markers of all finished pairs."""
    return f"jobs/{job_id}/results/"


def result(job_id: str, pair_id: str) -> str:
    """Marker of a finished pair: done or failed with its reason."""
    return f"jobs/{job_id}/results/{pair_id}.json"


def probe(token: str) -> str:
    """What `doctor` writes and deletes again."""
    return f"probe-{token}"


def require_key(store: str, key: str) -> None:
    """Raise StoreError unless a key names a blob inside the store.

    Ids in keys come out of records that others wrote.

    Args:
        store: Name of the store in the error.
        key: What should be a key.
    """
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreError(f"store {store}: {key!r} is no key; submit the job again")


def require_folder(store: str, prefix: str) -> None:
    """Raise StoreError unless a prefix names one folder, so that no wider one is deleted."""
    if not prefix.endswith("/"):
        raise StoreError(f"store {store}: {prefix!r} is no folder; nothing was deleted")
    require_key(store, prefix[:-1])
