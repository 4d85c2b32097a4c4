"""`--set key=value`: single settings of a job, given with a command."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tasks.engine.errors import UserError
from tasks.engine.urls import short
from tasks.jobfile import read_yaml


def merged(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A job's mapping with ``settings`` in it: dotted keys, values as in YAML. ``data`` stays as it is.

    | data | setting | becomes |
    |---|---|---|
    | {checks: image} | `checks=decode` | {checks: decode} |
    | {} | `limits.concurrency=8` | {limits: {concurrency: 8}} |
    | {destination: s3://a/} | `destination.region=eu-1` | {destination: {uri: s3://a/, region: eu-1}} |
    | {state: x} | `state=` | {state: null}: as if it were left out |
    | {} | `limits.hosts={a.b: {concurrency: 2}}` | a key with dots in it is given in its mapping |
    """
    result = copy.deepcopy(data)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise UserError(
                f"--set {short(setting)}: write key=value, with dots for what lies deeper: limits.concurrency=8"
            )
        value = read_yaml(text, f"--set {short(path)}")
        place = result
        for number, key in enumerate(keys[:-1], 1):
            inner = place.get(key)
            if key == "destination" and number == 1 and isinstance(inner, str):
                inner = {"uri": inner}
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise UserError(
                    f"--set {short(path)}: `{short('.'.join(keys[:number]))}` is a value, not a mapping of keys"
                )
            place[key] = inner
            place = inner
        place[keys[-1]] = value
    return result
