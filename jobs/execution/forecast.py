"""What a job will take: time, memory, bytes and money, out of simulations of its task graph."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobs.execution.simulation import Machines, Simulated, critical_path, simulate
from jobs.storage.records import PairRecord
from nst.engines.base import Plan
from nst.engines.rates import Rates
from nst.engines.tasks import Seconds, StageShape, TaskGraph
from nst.errors import InputError

NIGHT_S = 8 * 3600.0
USEFUL = 1.05
"""Cores are useful to one pair until it is within 5 % of the fastest."""
BUSY = 0.85
"""Utilization from which more cores would be used."""
SATURATED = 0.9
"""Share of the time from which the driver, or what waits for bytes, is what limits a job."""
NIGHT_TASKS, JOB_TASKS = 200_000, 20_000
"""Most tasks simulated for a night, and as many of a job as at least are: more would only repeat
the same."""
MOST_PAIRS = 1_000_000
"""Of a job whose plan is told: their ids are all in memory."""

ASSUMED_MEMORY = 230e9
Limit = Literal["cores", "pairs", "driver", "network", "memory"]


@dataclass(frozen=True)
class Offer:
    """What a job may run on and what that costs.

    Attributes:
        cores_per_node: Cores of a node.
        bandwidth: Bytes per second between two nodes, and between nodes and store.
        uplink: Bytes per second between client and store.
        core_price: Dollars for an hour of a core.
        memory_bandwidth: Bytes per second of a node's memory, which all its cores share; by
            default assumed, as of a server with 12 channels of DDR5 at half their rate.
    """

    cores_per_node: int = 16
    bandwidth: float = 1250e6
    uplink: float = 12.5e6
    core_price: float = 0.04
    memory_bandwidth: float = ASSUMED_MEMORY


@dataclass(frozen=True)
class Wire:
    """Bytes between client and store: encrypted pictures up, encrypted results down."""

    up: int
    down: int


@dataclass(frozen=True)
class OnePair:
    """How far one pair scales.

    Attributes:
        path_s: Its critical path, by stage in order: no number of cores is faster.
        tasks: By stage, tasks that can run at the same time.
        useful_cores: The fewest cores on which it is within 5 % of the fastest.
        longest: The stage with the largest part in the path.
        halved_s: The path's length if that stage's tasks were cut in half.
    """

    path_s: dict[str, float]
    tasks: dict[str, int]
    useful_cores: int
    longest: str
    halved_s: float

    @property
    def critical_path_s(self) -> float:
        """Length of the critical path."""
        return sum(self.path_s.values())


@dataclass(frozen=True)
class OnCores:
    """A job on so many cores.

    Attributes:
        cores: Workers, one core each.
        pair_s: One pair alone: from the driver's first step to its last.
        pair_at_client_s: The same with its bytes up and down.
        job_s: All pairs, without the client's part.
        pairs_a_night: Pairs done in 8 hours of nothing else.
        core_hours: Cores times hours, which is what is paid for.
        utilization: Share of them spent in tasks.
        dollars: Their price.
        memory_bytes: Of all workers, and the results held.
        bytes_between_nodes: Ciphertexts fetched by one node from another.
        limit: What the job would be faster with more of; `pairs` if theirs do not fill the cores.
    """

    cores: int
    pair_s: float
    pair_at_client_s: float
    job_s: float
    pairs_a_night: int
    core_hours: float
    utilization: float
    dollars: float
    memory_bytes: int
    bytes_between_nodes: int
    limit: Limit


@dataclass(frozen=True)
class Estimate:
    """What a job will take.

    Attributes:
        pairs: How many.
        styles: Distinct encrypted styles.
        work_core_hours: Core-hours in tasks, on any number of cores.
        wire: Bytes between client and store.
        one_pair: How far one pair scales.
        on: The job by number of cores.
    """

    pairs: int
    styles: int
    work_core_hours: float
    wire: Wire
    one_pair: OnePair
    on: tuple[OnCores, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record."""
        record = asdict(self)
        record["one_pair"]["critical_path_s"] = self.one_pair.critical_path_s
        return record


class Forecaster:
    """Simulates jobs of one model on machines whose rates were measured.

    Args:
        plan: The model, at the size of the contents.
        rates: Measured times.
        offer: What is to be had, at which price.
    """

    def __init__(self, plan: Plan, rates: Rates, offer: Offer) -> None:
        self.plan, self.rates, self.offer = plan, rates, offer
        self.seconds = rates.seconds(plan.stages)
        self.single = self.graph(self.distinct_pairs(1))
        self.actor_bytes = rates.actor_bytes_of(largest_call(self.single))

    def distinct_pairs(self, count: int) -> list[PairRecord]:
        """Pairs of pictures of their own each, as many to a ciphertext as it takes."""
        return distinct_pairs(count, self.plan.pairs_per_result)

    def graph(self, pairs: Sequence[PairRecord]) -> TaskGraph:
        """The task graph of pairs, costed at the rates."""
        return self.plan.graph(pairs, self.seconds)

    def estimate(self, pairs: Sequence[PairRecord], cores: Sequence[int]) -> Estimate:
        """What these pairs will take, by number of cores.

        Raises:
            InputError: if they are too many to be simulated.
        """
        require_few(len(pairs))
        return Estimate(
            pairs=len(pairs),
            styles=len({pair.style for pair in pairs}),
            work_core_hours=core_seconds(self.plan.stages, self.seconds, pairs) / 3600,
            wire=self.wire(pairs),
            one_pair=self.one_pair(),
            on=tuple(self._on(pairs, count) for count in cores),
        )

    def job(self, pairs: Sequence[PairRecord], cores: int) -> Simulated:
        """A job of pairs on so many cores.

        Of a large one the beginning is simulated, and the rest of its work is done at the rate
        between that and half of it, so that memory and time do not grow with the pairs.
        """
        together = self.plan.pairs_per_result
        least = -(-JOB_TASKS // len(self.single.tasks))
        few = together * max(least, self._filling(self.alone_s(cores), cores))
        if len(pairs) <= 2 * few:
            return self.simulate(self.graph(pairs), cores)
        half, whole = (self.simulate(self.graph(pairs[:n]), cores) for n in (few, 2 * few))
        # By work and not by pairs: those of the beginning may share fewer styles than all do.
        work = core_seconds(self.plan.stages, self.seconds, pairs) * self.slowdown(cores)
        left = work - whole.busy_s
        return whole.continued(half, left / (whole.busy_s - half.busy_s))

    def alone_s(self, cores: int) -> float:
        """Seconds of one pair alone on so many cores."""
        return self.simulate(self.single, cores).wall_s

    def _filling(self, alone: float, cores: int) -> int:
        """How many results fill so many cores, with room, if one alone takes so many seconds."""
        return math.ceil(5 * cores * alone / self.single.seconds) + 8

    def slowdown(self, cores: int) -> float:
        """How many times longer tasks take because cores of a node share its memory."""
        together = min(cores, self.offer.cores_per_node)
        return self.rates.slowdown(together, self.offer.memory_bandwidth)

    def simulate(self, graph: TaskGraph, cores: int) -> Simulated:
        """A graph on so many cores of what is offered."""
        machines = Machines(
            cores=cores,
            cores_per_node=self.offer.cores_per_node,
            bandwidth=self.offer.bandwidth,
            dispatch_s=self.rates.dispatch_s,
            overhead_s=self.rates.overhead_s,
            slowdown=self.slowdown(cores),
        )
        return simulate(graph, machines, self.plan.stored)

    def wire(self, pairs: Sequence[PairRecord]) -> Wire:
        """Bytes between client and store; every distinct encrypted picture goes up once."""
        contents, styles = {pair.content for pair in pairs}, {pair.style for pair in pairs}
        stored = self.plan.stored
        return Wire(
            up=len(contents) * stored.content + len(styles) * stored.style,
            down=len({pair.result for pair in pairs}) * stored.result,
        )

    def one_pair(self) -> OnePair:
        """How far a pair scales that is alone on the machines."""
        tasks = self.single.tasks
        path = [tasks[i].stage for i in critical_path(self.single).tasks]
        path_s = {stage: self.seconds[stage] * path.count(stage) for stage in path}
        longest = max(path_s, key=path_s.__getitem__)
        halved = {**self.seconds, longest: self.seconds[longest] / 2}
        counted = {stage.name: stage.tasks for stage in self.plan.stages}
        most = 4 * max(counted.values())
        counts = sorted({n for k in range(12) for n in (2**k, 3 * 2**k) if n <= most})
        took = {n: self.simulate(self.single, n).wall_s for n in counts}
        fastest = min(took.values())
        return OnePair(
            path_s=path_s,
            tasks=counted,
            useful_cores=next(n for n in counts if took[n] <= USEFUL * fastest),
            longest=longest,
            halved_s=critical_path(self.plan.graph(self.distinct_pairs(1), halved)).seconds,
        )

    def pairs_a_night(self, pairs: Sequence[PairRecord], cores: int) -> int:
        """Pairs done in 8 hours, if there is no end of such pairs.

        The rate is that between a job which fills the cores and one twice as long, so that
        filling and draining them counts once.
        """
        together = self.plan.pairs_per_result
        most = NIGHT_TASKS // len(self.single.tasks)
        few = together * max(min(self._filling(self.alone_s(cores), cores), most // 3), 1)
        first = self.simulate(self.graph(repeated(pairs, few)), cores)
        if first.wall_s >= NIGHT_S:
            return bisect_right(first.pair_done_s, NIGHT_S)
        second = self.simulate(self.graph(repeated(pairs, 2 * few)), cores)
        each = (second.wall_s - first.wall_s) / few
        return few + int((NIGHT_S - first.wall_s) / each)

    def _on(self, pairs: Sequence[PairRecord], cores: int) -> OnCores:
        alone_s, job = self.alone_s(cores), self.job(pairs, cores)
        core_hours = cores * job.wall_s / 3600
        wire = self.wire(self.distinct_pairs(1))
        return OnCores(
            cores=cores,
            pair_s=alone_s,
            pair_at_client_s=alone_s + (wire.up + wire.down) / self.offer.uplink,
            job_s=job.wall_s,
            pairs_a_night=self.pairs_a_night(pairs, cores),
            core_hours=core_hours,
            utilization=job.busy_s / (cores * job.wall_s),
            dollars=core_hours * self.offer.core_price,
            memory_bytes=cores * self.actor_bytes + job.peak_live_bytes,
            bytes_between_nodes=job.bytes_between_nodes,
            limit="memory" if self.slowdown(cores) > 1 else limit_of(job, cores),
        )


def core_seconds(
    stages: Sequence[StageShape], seconds: Seconds, pairs: Sequence[PairRecord]
) -> float:
    """Of all tasks of pairs, without laying them out; `TaskGraph.seconds` is the same.

    Args:
        stages: Of the network.
        seconds: Of one task of each.
        pairs: What is to be done.
    """
    results, styles = len({pair.result for pair in pairs}), len({pair.style for pair in pairs})
    return math.fsum(
        (styles if stage.style else results) * stage.tasks * seconds[stage.name] for stage in stages
    )


def require_few(pairs: int) -> None:
    """Raise InputError if so many pairs are too many to plan."""
    if pairs > MOST_PAIRS:
        raise InputError(
            f"{pairs:,} pairs are too many to simulate: estimate {MOST_PAIRS:,} and multiply"
        )


def distinct_pairs(count: int, together: int = 1) -> list[PairRecord]:
    """Pairs with a content and a style of their own each; so many share ciphertexts.

    Raises:
        InputError: if they are too many.
    """
    require_few(count)
    return [
        PairRecord(pair_id=f"p{i}", content=f"c{n}", style=f"s{n}", result=f"r{n}")
        for i, n in ((i, i // together) for i in range(count))
    ]


def repeated(pairs: Sequence[PairRecord], count: int) -> list[PairRecord]:
    """So many pairs: the given ones over and over, each time of other pictures.

    Raises:
        InputError: if they are too many.
    """
    require_few(count)
    out = []
    for i in range(count):
        turn, pair = i // len(pairs), pairs[i % len(pairs)]
        out.append(PairRecord(**{k: f"{v}-{turn}" for k, v in pair.model_dump().items()}))
    return out


def largest_call(graph: TaskGraph) -> int:
    """Most bytes of sources and result of one task."""
    return max(
        task.output_bytes
        + sum(graph.tasks[s].output_bytes for s in task.sources if isinstance(s, int))
        for task in graph.tasks
    )


def limit_of(job: Simulated, cores: int) -> Limit:
    """What a simulated job on so many cores would be faster with more of."""
    if job.busy_s >= BUSY * cores * job.wall_s:
        return "cores"
    if job.driver_s >= SATURATED * job.wall_s:
        return "driver"
    if job.waited_s >= 0.5 * (cores * job.wall_s - job.busy_s):
        return "network"
    return "pairs"
