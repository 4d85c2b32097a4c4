"""S3: routing rules of a bucket's website, which replace the beginning of keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from ferry.core import UserError
from ferry.cutover.redirects.pairs import Pair, Pairs, Sight
from ferry.cutover.redirects.target import Limit, Target

MOST_RULES = 50
_BETTER = "use nginx-map, cloudflare-bulk-redirects, or the x-amz-website-redirect-location of each object"


class Rule(NamedTuple):
    """Replaces the beginning of a key. Paths are percent-encoded, without the first slash."""

    old: str
    site: str  # scheme and host of the new address
    new: str


class S3(Target):
    """The website configuration for `aws s3api put-bucket-website`."""

    name = "s3-routing"
    ending = ".json"
    sight = Sight(longest=4_000, longest_new=4_000, merge_slashes=False, queries=False, utf8=True)
    limits = (Limit(f"{MOST_RULES} rules, which replace prefixes of keys", "S3 API reference, PutBucketWebsite"),)

    def write(self, pairs: Pairs, out: BinaryIO) -> Sequence[str]:
        """Writes the rules. Raises UserError if rules cannot express the map."""
        rules: set[Rule] = set()
        for pair in pairs.select():
            rules.add(rule_of(pair))
            if len(rules) > MOST_RULES:
                raise UserError(
                    f"the redirects need more than the {MOST_RULES} routing rules that a bucket can have, which "
                    f"replace prefixes of keys; {_BETTER}"
                )
        ordered = sorted(rules, key=lambda rule: (-len(rule.old), rule))  # the first rule that fits counts
        for pair in pairs.select():
            first = next(rule for rule in ordered if pair.path[1:].startswith(rule.old))
            if f"{first.site}/{first.new}{pair.path[1 + len(first.old) :]}" != pair.new:
                raise UserError(f"a routing rule would lead {pair.host}{pair.path} to a wrong address; {_BETTER}")
        configuration = {
            "IndexDocument": {"Suffix": "index.html"},
            "RoutingRules": [_as_json(rule) for rule in ordered],
        }
        out.write((json.dumps(configuration, indent=2, ensure_ascii=False) + "\n").encode())
        return [
            f"{len(ordered)} rules. They redirect every key with their prefixes, also those of rows without a copy",
            "Set them with: aws s3api put-bucket-website --bucket BUCKET --website-configuration file://FILE. This "
            "replaces the bucket's website configuration, and applies to its website endpoint alone",
        ]


def rule_of(pair: Pair) -> Rule:
    """Returns the rule for one pair: the prefixes before the longest common end of whole path segments.

    Raises UserError if the new address has another file name, or a query.
    """
    new = urlsplit(pair.new)
    old_parts, new_parts = pair.path[1:].split("/"), new.path[1:].split("/")
    same = 0
    while same < min(len(old_parts), len(new_parts)) and old_parts[-1 - same] == new_parts[-1 - same]:
        same += 1
    if not same or new.query:
        raise UserError(
            f"routing rules replace only the beginning of a key, and {pair.host}{pair.path} ends otherwise than "
            f"{pair.new}; {_BETTER}"
        )
    old, replaced = ("".join(f"{part}/" for part in parts[: len(parts) - same]) for parts in (old_parts, new_parts))
    return Rule(old, f"{new.scheme}://{new.netloc}", replaced)


def _as_json(rule: Rule) -> dict[str, Any]:
    scheme, _, host = rule.site.partition("://")
    redirect = {
        "Protocol": scheme, "HostName": host, "ReplaceKeyPrefixWith": unquote(rule.new), "HttpRedirectCode": "301",
    }  # fmt: skip
    condition = {"Condition": {"KeyPrefixEquals": unquote(rule.old)}} if rule.old else {}
    return {**condition, "Redirect": redirect}
