"""Requests to a Prefect server's API without Prefect's client."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

TRIES = 20
WITHIN_S = 90  # of an answer: SQLite alone lets a request wait 60 s for its lock


def ask(url: str, path: str, body: dict[str, Any], method: str = "POST") -> Any:
    """Post to ``path`` of the server at ``url``, and return the answer. Tries again while the database is busy."""
    request = urllib.request.Request(
        f"{url}/api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
    )
    for left in range(TRIES, 0, -1):
        try:
            with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or left == 1:
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")
