"""Jobs without cryptography: a second engine, whose stages are hash functions, and its jobs.

Importing this adds the engine, as a version with two of them would have it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stored import pin_in_store
from cluster.types import Executor, Handle
from jobs.execution.driver import walk_job
from jobs.execution.inprocess import InProcessExecutor
from jobs.execution.loading import ModelPin
from jobs.execution.recorder import Recorder
from jobs.storage import layout
from jobs.storage.records import JobRecord, JobState, PairRecord, write_record
from jobs.storage.store import Store
from nst.ciphertext import Envelope
from nst.engines import ENGINES
from nst.engines.base import (
    CLIENT_FILE,
    PLAN_FILE,
    SERVER_FILE,
    Features,
    Json,
    KeyPair,
    Needs,
    Plan,
    PreparedContent,
    PreparedInput,
    PreparedStyle,
    Published,
    StoredBytes,
)
from nst.engines.cache import FILES, MANIFEST
from nst.engines.rates import Rates, StageRate
from nst.engines.tasks import (
    InputPart,
    PairIds,
    Seconds,
    Source,
    StageShape,
    Task,
    TaskGraph,
    lay_out,
)
from nst.errors import CircuitError
from nst.network.architecture import CELL, CONTENT, OUTPUT, STYLE
from nst.network.integers import IntegerNetwork
from nst.network.levels import QualityLevel
from nst.network.weights import load_weights, save_weights
from nst.pictures.picture import Picture
from nst.pictures.size import Size
from tests.plans import grid_of_pairs

SIZE, STYLE_SIZE = Size(32, 32), Size(16, 16)
POISON = b"poison"
"""A part that no stage takes."""


@dataclass(frozen=True)
class FakePlan:
    """See `nst.engines.base.Plan`.

    Attributes:
        parts: Of a content; a style and a result have half as many.
        part_bytes: Of a part of an input.
        result_bytes: Of a part of a result.
    """

    parts: int = 8
    part_bytes: int = 6
    result_bytes: int = 32
    model_id: str = "fa4e" * 4
    size: Size = SIZE
    style_size: Size = STYLE_SIZE
    evaluation_key_bytes: int = 4
    engine: str = "fake"
    pairs_per_result: int = 1

    @property
    def stored(self) -> StoredBytes:
        """See `Plan`."""
        sizes = self.part_bytes, self.part_bytes, self.result_bytes
        return StoredBytes(*sizes, self.parts, self.parts // 2, self.parts // 2)

    @property
    def stages(self) -> tuple[StageShape, ...]:
        """See `Plan`."""
        return (
            StageShape("look", self.parts // 2, 1.0, True),
            StageShape("code", 1, 2.0, True),
            StageShape("stem", self.parts, 3.0, False),
            StageShape("blur", self.parts, 4.0, False),
            StageShape("detail", self.parts, 2.0, False),
            StageShape("up", self.parts // 2, 5.0, False),
        )

    def at(self, size: Size) -> FakePlan:
        """See `Plan`."""
        if size != self.size:
            raise CircuitError(f"model {self.model_id} computes no {size}")
        return self

    def graph(self, pairs: Sequence[PairIds], seconds: Seconds | None = None) -> TaskGraph:
        """See `Plan`: convolutions read a part and its neighbours; the code is a checkpoint."""
        tasks: list[Task] = []
        stages = {stage.name: depth for depth, stage in enumerate(self.stages)}
        seconds = seconds or {stage.name: stage.work for stage in self.stages}

        def add(
            stage: str, group: str, rank: int, sources: Sequence[Sequence[Source]]
        ) -> list[int]:
            depth, first = stages[stage], len(tasks)
            for part, each in enumerate(sources):
                task = Task(
                    index=first + part,
                    stage=stage,
                    group=group,
                    part=part,
                    sources=tuple(each),
                    seconds=seconds[stage],
                    output_bytes=10 + depth,
                    rank=rank,
                    depth=depth,
                    checkpoint=stage == "code",
                )
                tasks.append(task)
            return list(range(first, len(tasks)))

        def near(made: Sequence[int], part: int) -> Sequence[int]:
            return made[max(part - 1, 0) : part + 2]

        wide, half = range(self.parts), range(self.parts // 2)

        def add_style(style: str, group: str, rank: int) -> int:
            look = add("look", group, rank, [[InputPart(style, i)] for i in half])
            (code,) = add("code", group, rank, [look])
            return code

        def add_result(content: str, group: str, rank: int, code: int) -> Sequence[int]:
            stem = add("stem", group, rank, [[InputPart(content, i), code] for i in wide])
            blur = add("blur", group, rank, [near(stem, i) for i in wide])
            detail = add("detail", group, rank, [[*near(blur, i), stem[i]] for i in wide])
            return add("up", group, rank, [detail[2 * i : 2 * i + 2] for i in half])

        return lay_out(pairs, tasks, add_style, add_result)

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """See `Plan`."""
        return ()

    def pack_result(self, key_id: str, part: bytes) -> Envelope:
        """See `Plan`."""
        return Envelope(key_id, self.model_id, (part,))

    def require_result(self, envelope: Envelope, what: str) -> None:
        """See `Plan`."""
        if len(envelope.parts) != 1:
            raise CircuitError(f"{what} is no part of a result")

    def to_dict(self) -> dict[str, Json]:
        """See `Plan`."""
        sizes = str(self.size), str(self.style_size)
        return {
            "engine": self.engine,
            "model_id": self.model_id,
            "sizes": [*sizes],
            "together": self.pairs_per_result,
        }

    def summary(self) -> dict[str, Json]:
        """See `Plan`."""
        return self.to_dict()


PLAN = FakePlan()


class FakeEngine:
    """See `nst.engines.base.Engine`."""

    name = "fake"
    package = "hashlib"
    widest = 1024
    unseen_contrast = 1.0
    client_modules: tuple[str, ...] = ()
    runtime = "hashlib"
    pairs_per_result = 1

    def typical_needs(self, size: Size) -> Needs:
        """See `Engine`."""
        return Needs(call=50, result=32 * PLAN.stored.result_parts, stored=200)

    def model_id(self, network: IntegerNetwork, level: QualityLevel, size: Size) -> str:
        """See `Engine`."""
        return hashlib.sha256(f"{level.name} {size}".encode()).hexdigest()[:16]

    load_network = staticmethod(load_weights)

    def style_size(self, level: QualityLevel) -> Size:
        """See `Engine`."""
        return level.square

    def save_network(self, network: IntegerNetwork, path: Path, card: dict[str, Json]) -> None:
        """See `Engine`."""
        save_weights(network, path, card)

    def publish(
        self, network: IntegerNetwork, level: QualityLevel, size: Size, folder: Path
    ) -> FakePlan:
        """See `Engine`; the client's bundle is the shape of features."""
        plan = FakePlan(
            model_id=self.model_id(network, level, size),
            size=size,
            style_size=level.square,
            pairs_per_result=self.pairs_per_result,
        )
        channels = network.stages[OUTPUT].stage.out_channels
        (folder / PLAN_FILE).write_text(json.dumps(plan.to_dict()))
        (folder / SERVER_FILE).write_bytes(b"model")
        (folder / CLIENT_FILE).write_text(
            json.dumps([channels, size.height // CELL, size.width // CELL])
        )
        return plan

    def read_plan(self, record: dict[str, Any]) -> FakePlan:
        """See `Engine`."""
        sizes = [Size.parse(text) for text in record["sizes"]]
        return FakePlan(
            model_id=record["model_id"],
            size=sizes[0],
            style_size=sizes[1],
            pairs_per_result=record["together"],
        )

    def rates(self) -> Rates:
        """See `Engine`: a second for a unit of work."""
        return Rates(
            machine="none",
            date="",
            command="",
            call_s=0,
            dispatch_s=0,
            overhead_s=0,
            actor_bytes=0,
            bytes_per_source_byte=0,
            stages={s.name: StageRate(work=s.work, seconds=s.work) for s in PLAN.stages},
        )

    def load(self, plan: FakePlan, server_bundle: bytes, evaluation_keys: bytes) -> FakeEvaluator:
        """See `Engine`."""
        return FakeEvaluator()

    def seal(self) -> None:
        """See `Engine`; there is nothing to hide."""

    def prepare_style(self, network: IntegerNetwork, style: Picture) -> PreparedStyle:
        """See `Engine`."""
        return PreparedStyle(PreparedInput(style, STYLE), np.zeros(1, np.float32))

    def prepare_content(
        self, network: IntegerNetwork, content: Picture, style: PreparedStyle
    ) -> PreparedContent:
        """See `Engine`."""
        return PreparedContent(PreparedInput(content, CONTENT), np.zeros((1, 1, 1), np.float32))

    def make_keys(self, client_bundle: Path) -> KeyPair:
        """See `Engine`."""
        return KeyPair(b"secret", b"keys")

    def cipher(self, published: Published, key_id: str, secret: bytes) -> FakeCipher:
        """See `Engine`."""
        return FakeCipher(published, key_id)


class FakeCipher:
    """Pictures and results as hashes."""

    def __init__(self, published: Published, key_id: str) -> None:
        self.key_id, self.plan = key_id, published.plan
        self.shape = json.loads(published.client_bundle.read_text())

    def encrypt_all(
        self, inputs: Iterable[Sequence[PreparedInput]]
    ) -> Generator[Envelope, None, None]:
        """See `Cipher`."""
        counts = {CONTENT: self.plan.stored.content_parts, STYLE: self.plan.stored.style_parts}
        for shared in inputs:
            assert len(shared) <= self.plan.pairs_per_result
            digest = hashlib.sha256(
                b"".join(each.picture.rgb.tobytes() for each in shared)
            ).digest()
            parts = tuple(digest + bytes([part]) for part in range(counts[shared[0].role]))
            yield Envelope(self.key_id, self.plan.model_id, parts)

    def decrypt_result(self, parts: Iterable[bytes], what: str) -> list[Features]:
        """See `Cipher`: levels that depend on every part, and on the lane."""
        digest = hashlib.sha256()
        for part in parts:
            envelope = Envelope.unpack(part, what)
            envelope.require(self.key_id, self.plan.model_id, what)
            digest.update(envelope.parts[0])
        rng = np.random.default_rng(list(digest.digest()))
        levels = rng.integers(0, 8, (self.plan.pairs_per_result, *self.shape))
        return list(levels.astype(np.float32))


class FakeEvaluator:
    """Stages as hash functions."""

    def run(self, stage: str, inputs: Sequence[bytes]) -> bytes:
        """See `Evaluator`."""
        if POISON in inputs:
            raise CircuitError(f"stage {stage} refused its ciphertexts")
        return hashlib.sha256(b"|".join([stage.encode(), *inputs])).digest()


ENGINES[FakeEngine.name] = FakeEngine()  # type: ignore[assignment]


class Meddling(InProcessExecutor):
    """Does something before one of its tasks."""

    def __init__(self, at: int, meddle: Callable[[], object]) -> None:
        super().__init__(FakeEvaluator())
        self.at, self.meddle = at, meddle
        self.tasks: list[Task] = []
        self.closed = False

    def submit(self, task: Task, inputs: Sequence[bytes]) -> None:
        """See `Executor`."""
        self.tasks.append(task)
        if len(self.tasks) == self.at:
            self.meddle()
        super().submit(task, inputs)

    def close(self) -> None:
        """See `Executor`."""
        self.closed = True


def fake_executor() -> InProcessExecutor:
    """An executor of fake stages."""
    return InProcessExecutor(FakeEvaluator())


def run_job(store: Store, job: JobRecord, executor: Executor[Handle], actors: int) -> JobState:
    """Do what is left of a job on an executor, by the model that is in its store."""
    plan = pin_in_store(store, job).job_plan(store, job)
    return walk_job(Recorder(store, job, actors), plan, executor)


def put_model(store: Store, plan: Plan, bundle: bytes) -> ModelPin:
    """Put a model into a store as a client would; gives what the client would name of it."""
    blob = json.dumps(plan.to_dict()).encode()
    pin = ModelPin(plan.model_id, "key", sha256(blob), sha256(bundle))
    store.write(layout.model_plan(plan.model_id, pin.plan), blob)
    store.write(layout.model_server(plan.model_id, pin.bundle), bundle)
    return pin


def sha256(blob: bytes) -> str:
    """In hex."""
    return hashlib.sha256(blob).hexdigest()


def cache_model(models: Path) -> Path:
    """Put the fake model into a user's cache, as if it had been built there; gives its folder."""
    folder = models / PLAN.model_id
    folder.mkdir(parents=True)
    blobs = {name: b"model" for name in FILES}
    blobs[PLAN_FILE] = json.dumps(PLAN.to_dict()).encode()
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob)
    digests = {name: sha256(blob) for name, blob in blobs.items()}
    (folder / MANIFEST).write_text(json.dumps(digests))
    return folder


def fake_job(
    store: Store,
    job_id: str = "job",
    pairs: Sequence[PairRecord] | None = None,
    poisoned: str = "",
) -> JobRecord:
    """Put a job into a store as a client would: by default 3 contents with 2 styles."""
    pairs = grid_of_pairs(3, 2) if pairs is None else pairs
    put_model(store, PLAN, b"model")
    store.write(layout.evaluation_keys("key"), b"keys")
    counts = {pair.content: PLAN.stored.content_parts for pair in pairs}
    counts |= {pair.style: PLAN.stored.style_parts for pair in pairs}
    for input_id, count in counts.items():
        parts = tuple(f"{input_id} {part}".encode() for part in range(count))
        if input_id == poisoned:
            parts = (*parts[:-1], POISON)
        envelope = Envelope("key", PLAN.model_id, parts)
        store.write(layout.encrypted_input(job_id, input_id), envelope.pack())
    job = JobRecord(
        job_id=job_id,
        created="2026-01-01T00:00:00+00:00",
        quality="toy",
        width=PLAN.size.width,
        height=PLAN.size.height,
        model_id=PLAN.model_id,
        key_id="key",
        pairs=list(pairs),
    )
    write_record(store, layout.job(job_id), job)
    return job
