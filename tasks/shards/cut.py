"""How a plan's chunks are cut into shards. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ferry.state import ChunkRef


def cut(refs: Sequence[ChunkRef], machines: int, least_rows: int, per_machine: int) -> list[list[ChunkRef]]:
    """Returns contiguous parts of the chunks with rows to do, with about equal numbers of these.

    | rows to do | machines | parts |
    |---|---|---|
    | any | 1 | one |
    | fewer than 2 x ``least_rows`` | any | one: starting a shard would take longer than it saves |
    | more | 2 or more | ``per_machine`` for each machine, but none with fewer than ``least_rows`` rows, up to a chunk |

    A part has at least one chunk. Chunks without rows to do are left out: the run itself reads their results.
    """
    todo = [ref for ref in refs if ref.done < ref.rows]
    rows = sum(ref.rows - ref.done for ref in todo)
    parts = min(machines * per_machine, rows // least_rows, len(todo)) if machines > 1 else 1
    if parts < 2:
        return [todo] if todo else []
    found: list[list[ChunkRef]] = [[]]
    before = 0
    for left, ref in zip(range(len(todo), 0, -1), todo, strict=True):
        full = before >= rows * len(found) / parts or left == parts - len(found)
        if found[-1] and full and len(found) < parts:
            found.append([])
        found[-1].append(ref)
        before += ref.rows - ref.done
    return found
