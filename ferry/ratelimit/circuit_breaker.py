"""A circuit breaker for one host, which keeps its rows pending while the host refuses, fails or is in maintenance."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum

from ferry.core import ErrorClass, ObjectError

RUN_LENGTH = 50  # refusals (401, 403) or server errors (5xx) in a row that open the circuit
BODIES = 200  # recent bodies that the maintenance rule counts
PAGES = 11  # equal pages among them that open the circuit: more than 5% of 200
PROBE_FIRST_S = 30.0
PROBE_MAX_S = 300.0
SILENT_S = 60.0  # without any response open the circuit of a host that has never answered
SILENT_TRIES = 3  # requests without a response after which such a host is named

# Errors of the network, the destination or the row. They do not show whether the host refuses or fails.
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
        ErrorClass.LOST_ATTRIBUTE,
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
    SILENCE = "silence"


def silence_of(error: ObjectError) -> str:
    """Returns what a host does in place of an answer, such as `refuses connections`; "" if it has answered.

    A body that ends early or comes too late is an answer.
    """
    if not error.no_response:
        return ""
    if error.error_class is ErrorClass.DNS:
        return "does not resolve"
    if error.error_class is ErrorClass.TIMEOUT:
        return "does not answer in time"
    if error.error_class in (ErrorClass.TLS, ErrorClass.CONNECTION):
        return "refuses connections" if "ECONNREFUSED" in error.message else f"does not answer ({error.message})"
    return ""


class CircuitBreaker:
    """Decides whether requests to a host may be sent. The caller records the result of each request.

    The circuit opens
    - after 50 refusals (401, 403) in a row, which any other response interrupts, but silence does not;
    - after 50 server errors (5xx) in a row, in the same sense;
    - when 11 or more of the host's last 200 bodies are `not_image` with the same digest;
    - when the host has never answered, and its first request was 60 s ago.

    While it is open, its rows stay pending, and :meth:`may_probe` lets one probe through at intervals. The first
    interval is 30 s; each failed probe doubles it, up to 5 minutes. After refusals or 5xx, any response that would
    interrupt the row closes the circuit; after a maintenance page, only an object does. A probe without a recorded
    result costs only its interval.

    | open because of | result of the probe | then |
    |---|---|---|
    | any | ok | closes |
    | refusals, 5xx | 404 and other responses about the object itself | closes |
    | silence | any response | closes |
    | page | 404 and other responses about the object itself | stays open, same interval |
    | any | refusal, 5xx, 429, no response; page: not_image | stays open, the interval doubles |
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
        "_responded",
        "_silence",
        "_silent_since",
        "_silent_tries",
        "_streak",
        "_streak_cause",
    )

    def __init__(self, host: str, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._streak = 0
        self._streak_cause: Cause | None = None
        self._bodies: deque[str | None] = deque()  # None: an object
        self._pages: Counter[str] = Counter()
        self._cause: Cause | None = None
        self._reason: str | None = None
        self._pause_s = PROBE_FIRST_S
        self._next_probe = 0.0
        self._probing = False
        self._responded = False  # ever
        self._silent_since = 0.0  # the first request without a response
        self._silent_tries = 0
        self._silence = ""

    @property
    def silence(self) -> str:
        """What a host does that has never answered, such as `refuses connections`; "" for any other."""
        return self._silence if self._silent_tries >= SILENT_TRIES else ""

    @property
    def is_hopeless(self) -> bool:
        """Whether the circuit is open because the host has never answered."""
        return self._cause is Cause.SILENCE

    @property
    def open_reason(self) -> str | None:
        """None while the circuit is closed, else a sentence for the user: what is wrong and what to do."""
        return self._reason

    @property
    def probing(self) -> bool:
        """Whether a probe is in flight."""
        return self._probing

    @property
    def probe_due(self) -> bool:
        """Whether the circuit is open and its interval over, so that :meth:`may_probe` would allow a request."""
        return self._cause is not None and self._clock() >= self._next_probe

    def may_probe(self, now: float | None = None) -> bool:
        """Return True once per interval while the circuit is open; the caller then sends one request as a probe."""
        now = self._clock() if now is None else now
        if self._cause is None or now < self._next_probe:
            return False
        self._probing = True
        self._next_probe = now + self._pause_s
        return True

    def record_ok(self) -> None:
        """Record an object from this host."""
        self._respond()
        if self._cause is not None:
            self._close()
        self._streak, self._streak_cause = 0, None
        self._body(None)

    def record_error(
        self, error_class: ErrorClass, status_code: int | None, body_digest: str | None = None, silence: str = ""
    ) -> None:
        """Record a failed attempt. ``body_digest`` is the SHA-256 of the complete body, for `not_image`.

        ``silence`` is that of :func:`silence_of`.
        """
        if not silence:
            self._respond()
        cause: Cause | None = None
        if error_class is ErrorClass.FORBIDDEN and status_code in (
            400,
            401,
            403,
        ):  # a store answers 400 for ExpiredToken
            cause = Cause.REFUSALS
        elif error_class is ErrorClass.SERVER_ERROR:
            cause = Cause.SERVER_ERRORS
        answered = cause is None and error_class not in _NO_ANSWER
        page = body_digest if error_class is ErrorClass.NOT_IMAGE else None
        if self._cause is not None:
            self._while_open(answered, page is not None)
            return
        if silence and not self._responded:
            self._be_silent(silence)
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

    def _respond(self) -> None:
        """Notes a response of any kind."""
        if self._cause is Cause.SILENCE:
            self._close()
        self._responded, self._silent_tries, self._silence = True, 0, ""

    def _be_silent(self, silence: str) -> None:
        now = self._clock()
        if not self._silent_tries:
            self._silent_since = now
        self._silent_tries += 1
        self._silence = silence
        silent_s = now - self._silent_since
        if silent_s >= SILENT_S and self._silent_tries >= SILENT_TRIES:
            self._open(
                Cause.SILENCE,
                f"{self._host} {silence}, and has not answered any request for {silent_s:,.0f} s; its rows stay "
                "pending. Check the addresses in the manifest and the network of this machine, then run the job again.",
            )

    def _while_open(self, answered: bool, page: bool) -> None:
        if self._cause is Cause.PAGE:
            failed = page or not answered
        else:
            if answered:
                self._close()
                return
            failed = True
        if failed and self._probing:  # requests in flight when the circuit opened do not count
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
        """Close the circuit and clear all counts."""
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
                "Check `source.headers` and whether the host allows this machine, then run the job again."
            )
        return (
            f"{self._host} answered {RUN_LENGTH} requests in a row with a server error (last {status}); its rows stay "
            "pending. Run the job again when the host has recovered, perhaps with a lower `concurrency`."
        )

    def _page_sentence(self, page: str, seen: int) -> str:
        return (
            f"{self._host} answered {seen} of its last {len(self._bodies)} requests with the same body, which is "
            f"not an image (SHA-256 {page[:12]}). It may be a maintenance or login page. The host's rows stay pending. "
            "Open the URL of one of them in a browser, then run the job again."
        )
