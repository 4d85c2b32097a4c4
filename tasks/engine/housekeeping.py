"""What a state need not keep: files of chunks that no plan lists any more. Without this each night would leave some."""

from __future__ import annotations

import re
from collections.abc import Collection

from tasks.engine.state import State

_RESULT = re.compile(r"-([0-9a-f]{32})\.json\Z")  # of a chunk, by the end of its cache key; others are not ours


def forget_unlisted(state: State, digests: Collection[str]) -> None:
    """Deletes chunk files, and what Prefect's cache keeps of chunks, that are not of these chunks.

    Under the lease, after the plan with these chunks is in force. Outcomes stay: they are what happened.
    """
    listed, short = set(digests), {digest[:32] for digest in digests}
    old = [name for name in state.list("chunks") if name.removeprefix("chunks/").removesuffix(".parquet") not in listed]
    for name in state.list("results"):
        match = _RESULT.search(name)
        if match is not None and match[1] not in short:
            old.append(name)
    state.delete(old)
    state.forget_copies()
