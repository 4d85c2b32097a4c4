"""The child process that plans, counts and folds: DuckDB's and pandas' memory ends with it.

It reads one request as JSON from standard input (credentials come that way, not by argument or
environment) and writes one answer to standard output.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.engine.errors import Fatal, FerryError, UserError
from tasks.engine.job import Job
from tasks.engine.store import Access

EXIT_USER, EXIT_FATAL = 2, 4


@dataclass(frozen=True, slots=True)
class Request:
    """What the child is to do, and with what."""

    work: str  # plan, finish
    job: Job
    state: str
    cache_root: str
    source: Access
    destination: Access
    ask: dict[str, Any]

    def encode(self) -> bytes:
        return json.dumps(
            {
                "work": self.work, "job": self.job.model_dump(mode="json"), "state": self.state,
                "cache_root": self.cache_root, "source": asdict(self.source),
                "destination": asdict(self.destination), "ask": self.ask,
            }
        ).encode()  # fmt: skip

    @classmethod
    def decode(cls, raw: bytes) -> Request:
        data = json.loads(raw)
        for side in ("source", "destination"):
            keys = data[side]["keys"]
            data[side] = Access(**{**data[side], "keys": tuple(keys) if keys else None})
        return cls(**{**data, "job": Job.model_validate(data["job"])})


def run_child(request: Request) -> str:
    """Runs the work in a child process and returns its answer. Raises UserError or Fatal as the work did.

    The child has its own session, so that a Ctrl-C reaches the run first, and dies with its parent.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.engine.child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    try:
        out, err = process.communicate(request.encode())
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode == 0:
        return out.decode()
    if process.returncode == EXIT_USER:
        raise UserError(out.decode())
    if process.returncode == EXIT_FATAL:
        raise Fatal(out.decode())
    tail = err.decode(errors="replace").strip().splitlines()[-1:] or [f"signal {-process.returncode}"]
    raise Fatal(f"planning ended unexpectedly ({tail[0]})")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


def _work(request: Request) -> str:
    from tasks.engine.finish import finish
    from tasks.engine.planner import Accesses, Ask, make_plan
    from tasks.engine.state import open_state

    state = open_state(request.state, request.destination, Path(request.cache_root))
    if request.work == "plan":
        access = Accesses(request.source, request.destination)
        return make_plan(request.job, state, access, Ask(**request.ask)).encode()
    return json.dumps(finish(request.job, state, **request.ask))


def main() -> int:
    _die_with_parent()
    try:
        sys.stdout.write(_work(Request.decode(sys.stdin.buffer.read())))
    except UserError as error:
        sys.stdout.write(str(error))
        return EXIT_USER
    except FerryError as error:
        sys.stdout.write(str(error))
        return EXIT_FATAL
    return 0


if __name__ == "__main__":
    sys.exit(main())
