"""Places that lie in each other: the state where objects are written or among those that are read, the destination
among what is listed.

By default the state lies beside the job's file, in `.ferry`, and with it the local Prefect server's database.
"""

from __future__ import annotations

import re

from ferry.core import UserError, below
from ferry.job import Job
from ferry.manifest import globs, matches_globs


def refuse_overlaps(job: Job, place: str) -> None:
    """Raises UserError where a row's key could be a file of the state (who writes the list would write the next plan),
    the other way round, and where a listing has the state's files with their addresses, or what the last run has moved,
    among what is to be moved."""
    if below(job.destination.uri, place) is not None:
        raise UserError(
            f"the state ({place}) lies in the destination ({job.destination.uri}): a row could replace its files. Give "
            "the destination a folder or a prefix of its own, or set `state` to another place"
        )
    if below(place, job.destination.uri) is not None:
        raise UserError(
            f"the destination ({job.destination.uri}) lies in the state ({place}): objects there would be taken for "
            "its files, and deleted. Give the job another `state`"
        )
    if not job.is_listed():
        return
    same_store = job.destination.uri.startswith("file:") or job.source.endpoint_url == job.destination.endpoint_url
    there = below(job.manifest, job.destination.uri)
    if there and same_store and _may_take(job, f"{there}/"):
        raise UserError(
            f"the destination ({job.destination.uri}) lies in what is to be moved ({job.manifest}): every run would "
            f"move what the last one did. Leave it out: `exclude: ['{there}/*']`"
        )
    inside = below(job.manifest, place)
    if inside is None or (place.startswith("s3://") and job.source.endpoint_url != job.destination.endpoint_url):
        return
    ours = [f"{inside}/plan/plan.json".lstrip("/")]
    if "/.ferry/" in f"/{inside}":
        ours.append(f"/{inside}".partition("/.ferry/")[0].lstrip("/") + "/.ferry/prefect/prefect.db")
    if any(matches_globs(key.lstrip("/"), *globs(job)) for key in ours):
        raise UserError(
            f"the state ({place}) lies in what is to be moved ({job.manifest}): its files, with the addresses in them, "
            "would be moved too. Leave them out with `exclude`, or set `state` to another place"
        )


def _may_take(job: Job, prefix: str) -> bool:
    """May a listing take keys that begin so? What an `include` begins with decides, up to its first wildcard."""
    begins = [re.split(r"[*?\[]", glob, maxsplit=1)[0] for glob in job.include]
    included = not begins or any(prefix.startswith(text) or text.startswith(prefix) for text in begins)
    return included and matches_globs(f"{prefix}x", [], globs(job)[1])
