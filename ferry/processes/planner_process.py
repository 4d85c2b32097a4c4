"""Child process for planning, pruning and folding, so that the memory of DuckDB and pandas is freed when it ends.

It reads requests as JSON from standard input and writes responses to standard output. So credentials appear neither in
arguments nor in the environment. The imports take half a second and are done once: each request runs in a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from ferry.core import Fatal, FerryError, Stopped, UserError, command, die_with_parent
from ferry.processes.ipc import Message, read_message, write_message
from ferry.state import for_a_while, patient

EXIT_USER, EXIT_FATAL, EXIT_BUG = 2, 4, 70


@dataclass(frozen=True, slots=True)
class PlanRequest(Message):
    """A request to the planner process, with the arguments of its work."""

    work: str  # plan, prune, finish, report
    ask: dict[str, Any]


class PlannerProcess:
    """The planner process. It starts at once, so that its imports run in parallel with other preparations.

    It has its own session, so that Ctrl-C reaches the run first. It ends with the thread that created it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = ""
        self.start()

    def start(self) -> None:
        """Starts the process unless it exists."""
        if self._process is None:
            self._process = subprocess.Popen(
                command("ferry.processes.planner_process", arrow=True),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True, cwd=Path(__file__).resolve().parents[2],
                # Idle threads of these libraries must not exist when it forks.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, request: PlanRequest) -> str:
        """Sends a request and returns the response. Raises UserError or Fatal as the work, Stopped after stop()."""
        if self._stopped:
            raise Stopped(self._stopped)
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write_message(self._process.stdin, 0, request.encode())
            answer = read_message(self._process.stdout)
        except BrokenPipeError:
            answer = None
        except BaseException:  # no caller waits for the response any more
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        if answer is None:
            code = self._process.wait()
            self.close()
            if self._stopped:
                raise Stopped(self._stopped)
            raise Fatal(f"the planning process ended unexpectedly (exit code {code}). Run the job again; it resumes")
        code, text = answer[0], answer[1].decode()
        if code == 0:
            return text
        raise UserError(text) if code == EXIT_USER else Fatal(text)

    def stop(self, why: str) -> None:
        """Kills the current work and refuses requests. Safe in a signal handler in the thread of :meth:`ask`."""
        if self._process is not None:
            self._stopped = why
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the session includes its fork

    def resume(self) -> None:
        """Accepts requests again after stop(). The next one starts a new process."""
        if self._stopped:
            self.close()
            self._stopped = ""

    def close(self) -> None:
        """Ends the process and frees its memory. The next request starts another."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _work(request: PlanRequest) -> str:
    from ferry.planning import Accesses, PlanOptions, make_plan
    from ferry.reconcile import finish_run, prune_removed
    from ferry.report import write_report

    state = patient(request.open_state(), for_a_while)
    if request.work == "prune":
        return json.dumps(prune_removed(request.job, state, request.source, request.destination, **request.ask))
    if request.work == "plan":
        access = Accesses(request.source, request.destination, request.auth)
        return make_plan(request.job, state, access, PlanOptions(**request.ask)).encode()
    if request.work == "report":
        return write_report(request.job, state, **request.ask)
    return json.dumps(finish_run(request.job, state, **request.ask))


def _answer(raw: bytes, out: BinaryIO) -> int:
    """Does the work, writes its result or error message to ``out``, and returns the exit code."""
    request: PlanRequest | None = None
    try:
        request = PlanRequest.decode(raw)
        code, text = 0, _work(request)
    except UserError as error:
        code, text = EXIT_USER, str(error)
    except FerryError as error:
        code, text = EXIT_FATAL, str(error)
    except Exception as error:  # noqa: BLE001 - a full disk or a bug, which is reported as Fatal
        from ferry.planning import from_planning

        known = from_planning(error, request.state if request else "")
        if known is None:
            traceback.print_exc()
            known = Fatal(f"planning ended unexpectedly ({type(error).__name__}: {error}); please report it")
        code, text = EXIT_FATAL, str(known)
    out.write(text.encode("utf-8", "backslashreplace"))
    out.flush()
    return code


def _answer_in_fork(raw: bytes) -> tuple[int, bytes]:
    """Answers a request in a fork of this process. Returns the exit code and the text."""
    ours, theirs = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        code = EXIT_BUG
        try:
            die_with_parent()
            if os.getppid() != parent:  # the parent ended before die_with_parent() took effect
                os._exit(EXIT_BUG)
            os.dup2(
                os.open(os.devnull, os.O_RDWR), sys.stdout.fileno()
            )  # the run reads the pipe until its last writer closes it
            with os.fdopen(theirs, "wb") as out:
                code = _answer(raw, out)
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        text = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return (
            EXIT_FATAL,
            f"planning was ended by {signal.Signals(-code).name}. Check that the machine has enough memory".encode(),
        )
    return code, text


def main() -> None:
    """Answers requests from standard input until it ends."""
    die_with_parent()
    import duckdb  # noqa: F401 - imported once, before the first fork

    import ferry.planning
    import ferry.reconcile  # noqa: F401

    while request := read_message(sys.stdin.buffer):
        write_message(sys.stdout.buffer, *_answer_in_fork(request[1]))
    os._exit(0)  # Python's own end would take 0.1 s for these libraries, and the run waits for it


if __name__ == "__main__":
    main()
