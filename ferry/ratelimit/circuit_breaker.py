"""One circuit per host: when a host refuses, fails or shows a maintenance page, its rows wait. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

from ferry.core import ErrorClass

RUN_LENGTH = 50  # refusals, or 5xx, in a row
BODIES = 200  # how many bodies the maintenance rule looks back
PAGES = 11  # of them: more than 5% of 200, and the least that fewer bodies are judged by
PROBE_FIRST_S = 30.0
PROBE_MAX_S = 300.0

# They tell of the way to the host, of the destination or of the row, not of whether the host refuses or fails.
_NO_ANSWER = frozenset(
    {
        ErrorClass.TIMEOUT,
        ErrorClass.DNS,
        ErrorClass.TLS,
        ErrorClass.CONNECTION,
        ErrorClass.RATE_LIMITED,
        ErrorClass.BLOCKED_ADDRESS,
        ErrorClass.STORE_ERROR,
        ErrorClass.UPLOAD_UNCONFIRMED,
        ErrorClass.EXISTS,
        ErrorClass.BAD_URL,
        ErrorClass.BAD_KEY,
        ErrorClass.BAD_LINE,
        ErrorClass.KEY_COLLISION,
        ErrorClass.DUPLICATE,
        ErrorClass.MISSING,
        ErrorClass.ALTERED,
        ErrorClass.INTERNAL,
    }
)


class Cause(StrEnum):
    """Why a circuit is open."""

    REFUSALS = "refusals"
    PAGE = "page"
    SERVER_ERRORS = "server_errors"


class CircuitBreaker:
    """Whether a host may be asked. The caller records what became of each request.

    It opens (SEMANTICS: error classes)
    - on 50 refusals (401, 403) in a row: any other answer breaks the row, silence does not;
    - on 50 5xx in a row, in the same sense;
    - when more than 5% of the host's last 200 bodies, and at least 11, are `not_image` with one digest.

    While it is open its rows stay pending and :meth:`may_probe` lets one through now and then: after
    30 s, then twice as long each time, at most 5 minutes. What closes it is what would have broken the
    row of refusals or of 5xx; for a maintenance page, an object. A probe that never reports costs
    only its pause.

    | open because of | the probe's result | then |
    |---|---|---|
    | any | ok | closes |
    | refusals, 5xx | 404 and other answers about the object itself | closes |
    | page | 404 and other answers about the object itself | stays open, same pause |
    | any | refusal, 5xx, 429, no answer; page: not_image | stays open, the pause doubles |
    """

    __slots__ = (
        "_bodies",
        "_cause",
        "_clock",
        "_host",
        "_next_probe",
        "_pages",
        "_pause_s",
        "_probing",
        "_reason",
        "_streak",
        "_streak_cause",
    )

    def __init__(self, host: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._streak = 0
        self._streak_cause: Cause | None = None
        self._bodies: deque[str | None] = deque()  # None: a body that was no such page
        self._pages: Counter[str] = Counter()
        self._cause: Cause | None = None
        self._reason: str | None = None
        self._pause_s = PROBE_FIRST_S
        self._next_probe = 0.0
        self._probing = False

    @property
    def open_reason(self) -> str | None:
        """None while requests may pass; else a sentence for people: what is wrong and what to do."""
        return self._reason

    @property
    def probing(self) -> bool:
        """A probe is under way; its end will say whether the others may pass."""
        return self._probing

    @property
    def probe_due(self) -> bool:
        """It is open, and its pause is over: :meth:`may_probe` would let one request through."""
        return self._cause is not None and self._clock() >= self._next_probe

    def may_probe(self, now: float | None = None) -> bool:
        """True once per pause while the circuit is open: the caller sends one request and records its end."""
        now = self._clock() if now is None else now
        if self._cause is None or now < self._next_probe:
            return False
        self._probing = True
        self._next_probe = now + self._pause_s
        return True

    def record_ok(self) -> None:
        """An object came from this host."""
        if self._cause is not None:
            self._close()
        self._streak, self._streak_cause = 0, None
        self._body(None)

    def record_error(self, error_class: ErrorClass, status_code: int | None, body_digest: str | None = None) -> None:
        """A try failed. ``body_digest`` is the SHA-256 of a whole body that came, for `not_image`."""
        cause: Cause | None = None
        if error_class is ErrorClass.FORBIDDEN and status_code in (400, 401, 403):  # 400: a store's ExpiredToken
            cause = Cause.REFUSALS
        elif error_class is ErrorClass.SERVER_ERROR:
            cause = Cause.SERVER_ERRORS
        answered = cause is None and error_class not in _NO_ANSWER
        page = body_digest if error_class is ErrorClass.NOT_IMAGE else None
        if self._cause is not None:
            self._while_open(answered, page is not None)
            return
        if answered:
            self._streak, self._streak_cause = 0, None
        elif cause is not None:
            self._streak = self._streak + 1 if cause is self._streak_cause else 1
            self._streak_cause = cause
            if self._streak >= RUN_LENGTH:
                self._open(cause, self._sentence(cause, status_code))
        if page is not None:
            self._body(page)
            seen = self._pages[page]
            if seen >= PAGES:
                self._open(Cause.PAGE, self._page_sentence(page, seen))

    def _while_open(self, answered: bool, page: bool) -> None:
        if self._cause is Cause.PAGE:
            failed = page or not answered
        else:
            if answered:
                self._close()
                return
            failed = True
        if failed and self._probing:  # what was in flight when it opened changes nothing
            self._pause_s = min(self._pause_s * 2, PROBE_MAX_S)
            self._next_probe = self._clock() + self._pause_s
        self._probing = False

    def _body(self, page: str | None) -> None:
        self._bodies.append(page)
        if page is not None:
            self._pages[page] += 1
        if len(self._bodies) > BODIES:
            oldest = self._bodies.popleft()
            if oldest is not None:
                self._pages[oldest] -= 1
                if not self._pages[oldest]:
                    del self._pages[oldest]

    def _open(self, cause: Cause, reason: str) -> None:
        self._cause, self._reason = cause, reason
        self._pause_s = PROBE_FIRST_S
        self._next_probe = self._clock() + self._pause_s
        self._probing = False

    def _close(self) -> None:
        """Starts afresh: what led to the opening is not held against the host again."""
        self._cause = self._reason = self._streak_cause = None
        self._streak = 0
        self._probing = False
        self._bodies.clear()
        self._pages.clear()

    def _sentence(self, cause: Cause, status_code: int | None) -> str:
        status = f"HTTP {status_code}" if status_code else "HTTP 5xx"
        if cause is Cause.REFUSALS:
            return (
                f"{self._host} refused {RUN_LENGTH} requests in a row ({status}); its rows stay pending. "
                "Check `source.headers` and whether it lets this machine in, then run the job again."
            )
        return (
            f"{self._host} answered {RUN_LENGTH} requests in a row with a server error (last {status}); its rows stay "
            "pending. Run the job again when it is well, perhaps with a lower `concurrency`."
        )

    def _page_sentence(self, page: str, seen: int) -> str:
        return (
            f"{self._host} answered {seen} of its last {len(self._bodies)} requests with one and the same body that is "
            f"no image (SHA-256 {page[:12]}): a maintenance or login page? Its rows stay pending. Look at one of "
            "them in a browser, then run the job again."
        )
