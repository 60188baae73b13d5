"""Bare calls of a job's circuits: no Ray, no driver, one process on one core.

A machine that shares its cores with others is faster and slower from minute to minute, by more
than what a scheduler loses. `BareCalls` therefore calls the circuits bare while the job runs, again
and again, and lets the job's actors stand still meanwhile: both meet the same minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import concrete.compiler as runtime
import psutil

from benchmarks.measure import FOLDER, role_of, session_of
from benchmarks.run import circuits
from cluster.local import ACTOR_MALLOC
from jobs.execution.forecast import Forecaster, Offer
from jobs.execution.loading import EvaluatorLoader, job_plan, read_plan
from jobs.storage import layout
from jobs.storage.records import TaskTrace, read_job
from jobs.storage.store import open_store
from nst.ciphertext import Envelope
from nst.engines import get_engine
from nst.engines.concrete.server import CircuitEvaluator
from nst.engines.rates import rates_of
from nst.network.architecture import CONTENT, STYLE, STYLE_CODE, rows_read

EVERY_S = 15.0
"""Seconds of the job between two pauses."""
STOPS_IN_S = 1.0
"""Seconds after which a process that has not stopped is not waited for."""
LOCAL = 1e9
"""Bytes per second to the store, which here is a folder."""

Stages = dict[str, dict[str, float]]
"""By stage: `pbs` of one call, `rows` a pair has, `seconds` of one call."""


class Calls:
    """A job's circuits and keys, with arguments for every stage.

    Values do not matter for the time, so one row stands in for all arguments of a stage.

    Attributes:
        first: By stage, seconds of the call that made its result.
    """

    def __init__(self, store_url: str, job_id: str) -> None:
        store = open_store(store_url)
        job = read_job(store, job_id)
        self.plan = circuits(read_plan(store, job.model_id))
        evaluator = EvaluatorLoader(store_url, job.model_id, job.key_id)()
        assert isinstance(evaluator, CircuitEvaluator)
        self._evaluator = evaluator
        rows: dict[str, bytes] = {}
        for name, input_id in ((CONTENT, job.pairs[0].content), (STYLE, job.pairs[0].style)):
            blob = store.read(layout.encrypted_input(job_id, input_id))
            rows[name] = Envelope.unpack(blob, name).parts[0]
        self._arguments: dict[str, list[bytes]] = {}
        self.first: dict[str, float] = {}
        counts = {stage.name: stage.rows for stage in self.plan.circuits}
        for stage in self.plan.circuits:
            arguments = [
                rows[source]
                for source in stage.sources
                for _ in rows_read(stage.reads, 0, stage.stride, counts.get(source, 1))
            ]
            if stage.modulated:
                arguments.append(rows[STYLE_CODE])
            self._arguments[stage.name] = arguments
            if not self.first:
                self._evaluator.run(stage.name, arguments)  # Unpacks the keys.
            start = time.perf_counter()
            rows[stage.name] = self._evaluator.run(stage.name, arguments)
            self.first[stage.name] = time.perf_counter() - start

    def seconds(self, stage: str) -> float:
        """Time of one call of a stage."""
        start = time.perf_counter()
        self._evaluator.run(stage, self._arguments[stage])
        return time.perf_counter() - start

    def unlocked(self, stage: str) -> tuple[float, bytes]:
        """Time and result of one call that does not wait for other threads' calls."""
        start = time.perf_counter()
        arguments = [runtime.TransportValue.deserialize(row) for row in self._arguments[stage]]
        result = self._evaluator.evaluate(stage, arguments)
        return time.perf_counter() - start, bytes(result.serialize())

    def stages(self, seconds: dict[str, float]) -> Stages:
        """Seconds of a call beside what the plan says of the stage."""
        return {
            stage.name: {
                "pbs": stage.pbs_per_row,
                "rows": stage.rows,
                "seconds": seconds[stage.name],
            }
            for stage in self.plan.circuits
        }


def time_stages(store_url: str, job_id: str) -> Stages:
    """Seconds of one bare call of each stage in this process."""
    calls = Calls(store_url, job_id)
    return calls.stages(calls.first)


def bare_rate(stages: Stages) -> float:
    """PBS/s of one core on a pair's own mix of stages."""
    pbs = sum(s["pbs"] * s["rows"] for s in stages.values())
    return pbs / sum(s["seconds"] * s["rows"] for s in stages.values())


def environment() -> dict[str, str]:
    """Environment of a process that calls circuits as an actor does."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": ACTOR_MALLOC}


class BareProcess:
    """A process that calls circuits when it is asked to, and uses no core in between.

    Args:
        arguments: Of `serve` in `module`, which reads lines and answers each with one of JSON.
        module: Its name.
    """

    def __init__(self, *arguments: str, module: str = "benchmarks.bare") -> None:
        code = f"import sys; from {module} import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=FOLDER.parent,
            env=environment(),
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def peak_rss(self) -> int:
        """Largest resident memory so far in bytes, most of it circuits and keys."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def ask(self, line: str) -> None:
        """Start a call, by default of the stage of that name."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Seconds of the call; first of all, of the calls that made every stage's arguments."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def serve(store_url: str, job_id: str) -> None:
    """Body of a `BareProcess`."""
    calls = Calls(store_url, job_id)
    print(json.dumps(calls.stages(calls.first)), flush=True)
    for line in sys.stdin:
        print(calls.seconds(line.strip()), flush=True)


@dataclass
class Beside:
    """Bare calls made while a job stood still.

    Attributes:
        stages: PBS and rows of every stage; `seconds` are of its first call.
        alone: By stage, seconds of calls by the only process at work on the machine.
        together: The same with all processes at work at once.
        pauses: Unix times between which the job's actors stood still.
    """

    stages: Stages
    alone: dict[str, list[float]] = field(default_factory=dict)
    together: dict[str, list[float]] = field(default_factory=dict)
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def running(self, start: float, end: float) -> float:
        """Seconds between two Unix times in which the job did not stand still."""
        paused = sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.pauses)
        return end - start - paused

    def mean(self, calls: dict[str, list[float]]) -> Stages:
        """Mean seconds of `alone` or `together`."""
        return {
            name: {**stage, "seconds": statistics.fmean(calls[name])}
            for name, stage in self.stages.items()
        }

    def next_stage(self) -> str:
        """The stage whose calls so far stand for the largest part of a pair's time each."""

        def part(name: str) -> float:
            stage = self.stages[name]
            return stage["rows"] * stage["seconds"] / (len(self.alone.get(name, [])) + 0.5)

        return max(self.stages, key=part)


class BareCalls:
    """Bare calls beside a job of as many actors as there are processes here.

    Attributes:
        found: What was measured, after `watch`.
    """

    def __init__(self, store_url: str, job_id: str, count: int, every: float = EVERY_S) -> None:
        self._processes = [BareProcess(store_url, job_id) for _ in range(count)]
        self._every = every
        first = [process.answer() for process in self._processes]
        self.found = Beside(first[0])

    def __enter__(self) -> BareCalls:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()

    @contextmanager
    def watch(self, session: int) -> Iterator[None]:
        """Call circuits bare again and again until the block ends.

        Args:
            session: Process id of the job's driver, which leads a session of its own.
        """
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(self._every):
                self._in_a_pause_of(session)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        self.measure_rest(1)

    def measure_rest(self, rounds: int) -> None:
        """Call every stage until it has been called so many times."""
        for _ in range(rounds):
            for stage in self.found.stages:
                if len(self.found.alone.get(stage, [])) < rounds:
                    self._measure(stage)

    def peak_rss(self) -> int:
        """Largest resident memory of one process so far, in bytes."""
        return max(process.peak_rss() for process in self._processes)

    def _in_a_pause_of(self, session: int) -> None:
        actors = [p for p in session_of(session) if role_of(p) == "actor"]
        start = time.time()
        for actor in actors:
            with suppress(psutil.Error):
                actor.suspend()
                _wait_until_stopped(actor)
        try:
            self._measure(self.found.next_stage())
        finally:
            for actor in actors:
                with suppress(psutil.Error):
                    actor.resume()
        self.found.pauses.append((start, time.time()))

    def _measure(self, stage: str) -> None:
        """Call a stage in one process and then in all at once."""
        first = self._processes[:1]
        for some, kept in ((first, self.found.alone), (self._processes, self.found.together)):
            for process in some:
                process.ask(stage)
            kept.setdefault(stage, []).extend(process.answer() for process in some)


def predicted_s(store_url: str, job_id: str, found: Beside, actors: int) -> float:
    """Seconds from first to last task that `nst-batch estimate` expects of the job.

    It is told the bare calls beside each other and nothing else of the job.
    """
    store = open_store(store_url)
    job = read_job(store, job_id)
    plan = job_plan(store, job)
    seconds = {name: s["seconds"] for name, s in found.mean(found.together).items()}
    shipped = get_engine(plan.engine).rates()
    rates = shipped.model_copy(update={"stages": rates_of(plan.stages, seconds)})
    forecaster = Forecaster(plan, rates, Offer(cores_per_node=actors, bandwidth=LOCAL))
    return forecaster.simulate(forecaster.graph(job.pairs), actors).wall_s


def _wait_until_stopped(process: psutil.Process) -> None:
    """A signal takes effect when its process is next on a core."""
    deadline = time.monotonic() + STOPS_IN_S
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.001)


def efficiency(trace: Sequence[TaskTrace], found: Beside, actors: int) -> dict[str, Any]:
    """A job against bare calls of the same tasks; times do not count pauses.

    Returns:
        `parallel_efficiency`: what the tasks take bare and alone on one core, over actors x the
        time from the first to the last task. `of_bare_together`: the same of bare calls in as many
        processes at once, the most that this machine's cores give beside each other.
        `idle_share`: of that time, when actors had no task. `slower_calls_share`: by how much
        the calls took longer than bare ones alone; `cpu_share` how much of their time they
        computed, the rest was other processes'.
    """
    wall = found.running(min(t.start for t in trace), max(t.end for t in trace))
    alone, together = (found.mean(calls) for calls in (found.alone, found.together))
    alone_s, together_s = (sum(s[t.stage]["seconds"] for t in trace) for s in (alone, together))
    busy = sum(found.running(task.start, task.end) for task in trace)
    pbs = sum(found.stages[task.stage]["pbs"] for task in trace)
    return {
        "actors": actors,
        "wall_s": wall,
        "pbs": pbs,
        "pbs_per_s": pbs / wall,
        "bare_s": alone_s,
        "busy_s": busy,
        "parallel_efficiency": alone_s / (actors * wall),
        "of_bare_together": together_s / (actors * wall),
        "idle_share": 1 - busy / (actors * wall),
        "slower_calls_share": busy / alone_s - 1,
        "cpu_share": sum(task.cpu_s for task in trace) / busy,
        "bare_pbs_per_s_one_core": bare_rate(alone),
        "bare_pbs_per_s_a_core_together": bare_rate(together),
        "bare_calls_s": {"alone": found.alone, "together": found.together},
        "paused_s": sum(end - start for start, end in found.pauses),
        "bare_stages": alone,
    }
