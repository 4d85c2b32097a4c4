"""Check for overlapping locations: the state in the source or destination, and the destination in the source.

By default the state is beside the job's file, in `.ferry`, together with the local Prefect server's database.
"""

from __future__ import annotations

import re

from ferry.core import UserError, below, in_bucket
from ferry.job import Job
from ferry.manifest import globs, matches_globs


def refuse_overlaps(job: Job, state: str) -> None:
    """Raises UserError if the state's URI, the destination and a listed source overlap.

    | overlap | danger |
    |---|---|
    | state in the destination | a row's key may name a file of the state, such as the next plan |
    | destination in the state | objects are taken for files of the state, and deleted |
    | destination in the listed source | each run transfers the objects of the last one |
    | state in the listed source | its files, which contain unredacted addresses, are transferred |
    """
    if below(job.destination.uri, state) is not None:
        raise UserError(
            f"the state ({state}) is in the destination ({job.destination.uri}), so a row could replace its files. "
            "Give the destination a folder or prefix of its own, or set `state` to another location"
        )
    if below(state, job.destination.uri) is not None:
        raise UserError(
            f"the destination ({job.destination.uri}) is in the state ({state}), so objects could be taken for its "
            "files and deleted. Set `state` to another location"
        )
    if not job.is_listed():
        return
    same_store = job.destination.uri.startswith("file:") or job.source.endpoint_url == job.destination.endpoint_url
    folder = below(job.manifest_address, job.destination.uri)
    if folder and same_store and _may_include(job, f"{folder}/"):
        raise UserError(
            f"the destination ({job.destination.uri}) is in the listed source ({job.manifest_address}), so every run "
            f"would transfer the objects of the last one. Exclude it: `exclude: ['{folder}/*']`"
        )
    folder = below(job.manifest_address, state)
    if folder is None or (in_bucket(state) and job.source.endpoint_url != job.destination.endpoint_url):
        return
    examples = [f"{folder}/plan/plan.json".lstrip("/")]
    if "/.ferry/" in f"/{folder}":
        examples.append(f"/{folder}".partition("/.ferry/")[0].lstrip("/") + "/.ferry/prefect/prefect.db")
    if any(matches_globs(key.lstrip("/"), *globs(job)) for key in examples):
        raise UserError(
            f"the state ({state}) is in the listed source ({job.manifest_address}), so its files, with the addresses "
            "in them, would be transferred. Leave them out with `exclude`, or set `state` to another location"
        )


def _may_include(job: Job, prefix: str) -> bool:
    """Returns whether a listing may include keys with this prefix, by each `include` up to its first wildcard."""
    starts = [re.split(r"[*?\[]", glob, maxsplit=1)[0] for glob in job.include]
    included = not starts or any(prefix.startswith(text) or text.startswith(prefix) for text in starts)
    return included and matches_globs(f"{prefix}x", [], globs(job)[1])
