"""Which pairs share ciphertexts: one ciphertext may hold many small pictures, each in a lane."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from jobs.storage.records import PairRecord


@dataclass
class Shared:
    """Pairs as a job has them, and what each of its encrypted pictures holds.

    Attributes:
        records: The pairs, in the user's order.
        lanes: Theirs, in the same order.
        contents: By input id, the positions of the pairs whose contents it holds, lane by lane.
        styles: Likewise; one style by itself serves all lanes.
    """

    records: list[PairRecord] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    contents: dict[str, tuple[int, ...]] = field(default_factory=dict)
    styles: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def with_style(self, style: str) -> Shared:
        """The same with a style that is encrypted already, in place of the one of all pairs."""
        records = [record.model_copy(update={"style": style}) for record in self.records]
        return Shared(records, self.lanes, self.contents, {})


def share(
    pairs: Sequence[tuple[Hashable, Hashable]], most: int, new_id: Callable[[], str]
) -> Shared:
    """Lay out pairs; what is the same is encrypted once.

    Args:
        pairs: Content and style of each, by whatever tells pictures apart.
        most: How many pairs may share ciphertexts.
        new_id: Gives ids of pairs, inputs and results.
    """
    shared, records = Shared(), {}
    ids: dict[tuple[str, tuple[Hashable, ...]], str] = {}

    def input_of(role: str, holds: tuple[Hashable, ...]) -> tuple[str, bool]:
        new = (role, holds) not in ids
        return ids.setdefault((role, holds), new_id() if new else ""), new

    lanes = {}
    for batch in _batches([style for _, style in pairs], most):
        contents = tuple(pairs[index][0] for index in batch)
        styles = tuple(pairs[index][1] for index in batch)
        # One style serves any number of contents, other batches' as well.
        alike = len(set(styles)) == 1
        content, new_content = input_of("content", contents)
        style, new_style = input_of("style", styles[:1] if alike else styles)
        if new_content:
            shared.contents[content] = batch
        if new_style:
            shared.styles[style] = batch[:1] if alike else batch
        result = new_id()
        for lane, index in enumerate(batch):
            pair_id = result if most == 1 else new_id()
            lanes[index] = lane
            records[index] = PairRecord(
                pair_id=pair_id, content=content, style=style, result=result
            )
    shared.records = [records[index] for index in range(len(pairs))]
    shared.lanes = [lanes[index] for index in range(len(pairs))]
    return shared


def sharing(pairs: Sequence[PairRecord], most: int) -> list[PairRecord]:
    """The same pairs, which share nothing yet, as they are where so many may share ciphertexts."""
    if most == 1:
        return list(pairs)
    return share([(pair.content, pair.style) for pair in pairs], most, numbers()).records


def numbers() -> Callable[[], str]:
    """Ids for what is only planned: numbers in place of those that encryption would draw."""
    counted = count()
    return lambda: str(next(counted))


def _batches(styles: Sequence[Hashable], most: int) -> Iterator[tuple[int, ...]]:
    """Positions of the pairs that share ciphertexts.

    As many as fit of one style are together, since their style is then computed once for all of
    them; what is left over of each style is put together in order.
    """
    by_style: dict[Hashable, list[int]] = {}
    for index, style in enumerate(styles):
        by_style.setdefault(style, []).append(index)
    left: list[int] = []
    for members in by_style.values():
        whole = len(members) // most * most
        yield from (tuple(members[at : at + most]) for at in range(0, whole, most))
        left += members[whole:]
    yield from (tuple(left[at : at + most]) for at in range(0, len(left), most))
