"""Every key in a store, in one place. Nothing else in the program spells a path in a store.

store.json                          the store's format
models/MODEL/                       SHA256.json (plan), SHA256.zip (server bundle)
keys/KEY/                           evaluation.key
jobs/JOB/                           job.json, state.json, trace.json
jobs/JOB/inputs/                    INPUT.ct
jobs/JOB/results/ATTEMPT/PAIR/      PART.ct
jobs/JOB/checkpoints/GROUP/STAGE/   PART.ct
jobs/JOB/marks/                     pair-PAIR.json, ends.json, end.json, cancel.json
queue/                              JOB.json: jobs for a service
styles/STYLE/                       input.ct: styles that many jobs use
styles/STYLE/STAGE/                 PART.ct: what was computed of one

Of a service besides, whose offers are a store below it, offers/, and so is what each customer has,
customers/CUSTOMER/:

claims/CUSTOMER/JOB/                TURN.json
usage/CUSTOMER/                     DAY-SERVER.json
offers/named/                       NAME.json
offers/models/                      MODEL.json
offers/files/                       SHA256
"""

from __future__ import annotations

from nst.errors import StoreContentError

STORE = "store.json"
JOBS = "jobs/"
QUEUE = "queue/"
OFFERS = "offers/"
NAMED_OFFERS = "named/"
CUSTOMERS = "customers/"
STYLES = "styles/"
LIBRARY = "lib-"
"""How the ids of styles begin that are no job's own."""
NO_CUSTOMER = "-"
"""In a key, what stands for the service's own store: no customer can be called that."""


def model(model_id: str) -> str:
    """Prefix of a published model."""
    return f"models/{model_id}/"


def model_server(model_id: str, sha256: str) -> str:
    """A model's server bundle by its content: each build of a model has its own."""
    return f"{model(model_id)}{sha256}.zip"


def model_plan(model_id: str, sha256: str) -> str:
    """What the model costs, and its task graph, by its content."""
    return f"{model(model_id)}{sha256}.json"


def keys(key_id: str) -> str:
    """Prefix of a key set's public half."""
    return f"keys/{key_id}/"


def evaluation_keys(key_id: str) -> str:
    """Evaluation keys: they compute on ciphertexts and cannot decrypt them."""
    return f"{keys(key_id)}evaluation.key"


def whole_job(job_id: str) -> str:
    """Prefix of all that belongs to one job alone."""
    return f"{JOBS}{job_id}/"


def job(job_id: str) -> str:
    """A job's record, written last by the client: a job without it was never submitted."""
    return f"{whole_job(job_id)}job.json"


def state(job_id: str) -> str:
    """How far a job is."""
    return f"{whole_job(job_id)}state.json"


def trace(job_id: str) -> str:
    """When each task ran."""
    return f"{whole_job(job_id)}trace.json"


def encrypted_input(job_id: str, input_id: str) -> str:
    """An encrypted picture."""
    return f"{whole_job(job_id)}inputs/{input_id}.ct"


def results(job_id: str) -> str:
    """Prefix of the parts of all results."""
    return f"{whole_job(job_id)}results/"


def attempt_results(job_id: str, attempt: str) -> str:
    """Prefix of all parts that one driver has made, published or not."""
    return f"{results(job_id)}{attempt}/"


def attempt_result(job_id: str, attempt: str, result: str) -> str:
    """Prefix of the parts of a result that one driver has made."""
    return f"{attempt_results(job_id, attempt)}{result}/"


def result_part(job_id: str, attempt: str, result: str, part: int) -> str:
    """One encrypted part of a result."""
    return f"{attempt_results(job_id, attempt)}{part_in_attempt(result, part)}"


def part_in_attempt(result: str, part: int) -> str:
    """The end of the key of such a part, below the prefix of its attempt."""
    return f"{result}/{part:03d}.ct"


def result_place(job_id: str, result: str, part: int) -> str:
    """What a part of a result says of itself, whichever driver made it."""
    return f"{job_id}/{part_in_attempt(result, part)}"


def checkpoints(job_id: str) -> str:
    """Prefix of all stored results of stages in the middle."""
    return f"{whole_job(job_id)}checkpoints/"


def checkpoint(job_id: str, group: str, stage: str, part: int) -> str:
    """One of them, of the result or the style that a group is."""
    return f"{checkpoints(job_id)}{group.replace(':', '-')}/{stage}/{part:03d}.ct"


def marks(job_id: str) -> str:
    """Prefix of all that a driver must know to take up a job: one listing tells it."""
    return f"{whole_job(job_id)}marks/"


def pair_end(job_id: str, pair_id: str) -> str:
    """Marker of a pair that has ended, made once: which parts are its result, or why it failed."""
    return f"{marks(job_id)}pair-{pair_id}.json"


def pair_ends(job_id: str) -> str:
    """What the markers of many pairs say, in one record."""
    return f"{marks(job_id)}ends.json"


def job_end(job_id: str) -> str:
    """Marker of a job whose pairs have all ended, made once."""
    return f"{marks(job_id)}end.json"


def cancellation(job_id: str) -> str:
    """Marker of a job that is to be stopped."""
    return f"{marks(job_id)}cancel.json"


def in_library(input_id: str) -> bool:
    """Whether an encrypted style is no job's own, but one that many jobs use."""
    return input_id.startswith(LIBRARY)


def library_style(style: str) -> str:
    """Prefix of a style that many jobs use, and of what was computed of it."""
    return f"{STYLES}{style}/"


def library_input(style: str) -> str:
    """Such a style, encrypted."""
    return f"{library_style(style)}input.ct"


def library_result(style: str, stage: str, part: int) -> str:
    """The result of a stage of such a style: later jobs read it and do not compute it."""
    return f"{library_style(style)}{stage}/{part:03d}.ct"


def queued(job_id: str) -> str:
    """Marker of a job that a service is to run; it goes when the job has ended."""
    return f"{QUEUE}{job_id}.json"


def offer(name: str) -> str:
    """In a store of offers: what is offered under a name, signed."""
    return f"{NAMED_OFFERS}{name}.json"


def offered_model(model_id: str) -> str:
    """In a store of offers: what a model was published with, whatever its name offers now."""
    return f"models/{model_id}.json"


def offer_file(sha256: str) -> str:
    """In a store of offers: a file of one by its content; nothing in it is secret."""
    return f"files/{sha256}"


def claims(customer: str, job_id: str) -> str:
    """Prefix of what says which server has a job; customers cannot write there."""
    return f"claims/{customer or NO_CUSTOMER}/{job_id}/"


def claim(customer: str, job_id: str, turn: int) -> str:
    """A server's claim, made once; one of a later turn takes the job away from it."""
    return f"{claims(customer, job_id)}{turn:06d}.json"


def usage(customer: str, day: str) -> str:
    """What a customer's jobs took on a day."""
    return f"usage/{customer or NO_CUSTOMER}/{day}.json"


def probes(token: str) -> str:
    """Prefix of what `doctor` writes and deletes again, as a job is deleted."""
    return f"probe-{token}/"


def probe(token: str) -> str:
    """The blob of such a prefix."""
    return f"{probes(token)}blob"


def require_key(store: str, key: str) -> None:
    """Raise StoreContentError unless a key names a blob inside the store.

    Ids in keys come out of records that others wrote.

    Args:
        store: Name of the store in the error.
        key: What should be a key.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreContentError(f"store {store}: {key!r} is no key; submit the job again")


def require_folder(store: str, prefix: str) -> None:
    """Raise StoreContentError unless a prefix names one folder, so that no wider one is deleted."""
    if not prefix.endswith("/"):
        raise StoreContentError(f"store {store}: {prefix!r} is no folder; nothing was deleted")
    require_key(store, prefix[:-1])
