"""Tests of the circuit breaker of one host."""

from __future__ import annotations

import pytest

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.ratelimit.circuit_breaker import CircuitBreaker, silence_of

PAGE = "ab" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fresh() -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    return CircuitBreaker("img.old.example", clock), clock


def refuse(circuit: CircuitBreaker, times: int, status: int = 403) -> None:
    for _ in range(times):
        circuit.record_error(ErrorClass.FORBIDDEN, status)


def fail(circuit: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        circuit.record_error(ErrorClass.SERVER_ERROR, 502)


def page(circuit: CircuitBreaker, times: int, digest: str = PAGE) -> None:
    for _ in range(times):
        circuit.record_error(ErrorClass.NOT_IMAGE, 200, digest)


def test_opens_on_the_fiftieth_refusal_in_a_row() -> None:
    """50 refusals in a row open the circuit, 49 do not. The message names host, status and remedy."""
    circuit, _ = fresh()
    refuse(circuit, 49, 401)
    assert circuit.open_reason is None
    refuse(circuit, 1)
    assert circuit.open_reason is not None
    for part in ("img.old.example", "50", "403", "source.headers", "pending", "run the job again"):
        assert part in circuit.open_reason


@pytest.mark.parametrize(
    ("cls", "status", "breaks"),
    [
        (ErrorClass.NOT_FOUND, 404, True),
        (ErrorClass.NOT_IMAGE, 200, True),
        (ErrorClass.TRUNCATED, None, True),
        (ErrorClass.TIMEOUT, None, False),
        (ErrorClass.CONNECTION, None, False),
        (ErrorClass.RATE_LIMITED, 429, False),
        (ErrorClass.STORE_ERROR, 500, False),
        (ErrorClass.BAD_URL, None, False),
        (ErrorClass.FORBIDDEN, 407, True),
    ],
)
@pytest.mark.parametrize("trouble", [refuse, fail])
def test_what_breaks_a_row(trouble: object, cls: ErrorClass, status: int | None, breaks: bool) -> None:
    """A response about the object interrupts a row of refusals or 5xx. Silence, 429 and local errors do not."""
    circuit, _ = fresh()
    assert callable(trouble)
    trouble(circuit, 49)
    circuit.record_error(cls, status)
    trouble(circuit, 1)
    assert (circuit.open_reason is None) is breaks


def test_an_object_breaks_a_row() -> None:
    """One object among the failures keeps the circuit closed."""
    circuit, _ = fresh()
    for trouble in (refuse, fail):
        trouble(circuit, 49)
        circuit.record_ok()
        trouble(circuit, 49)
        circuit.record_ok()
    assert circuit.open_reason is None


def test_refusals_and_server_errors_are_counted_apart() -> None:
    """Refusals and 5xx are counted apart: 49 of each do not open the circuit."""
    circuit, _ = fresh()
    refuse(circuit, 49)
    fail(circuit, 49)
    assert circuit.open_reason is None
    fail(circuit, 1)
    assert circuit.open_reason is not None
    assert "server error" in circuit.open_reason
    assert "502" in circuit.open_reason


def test_one_page_in_more_than_five_percent_of_two_hundred_opens() -> None:
    """The 11th of 200 bodies with one digest opens the circuit."""
    circuit, _ = fresh()
    for n in range(200):
        if n % 20 == 19:
            page(circuit, 1)
        else:
            circuit.record_ok()
    assert circuit.open_reason is None
    page(circuit, 1)  # the body that leaves the window is an object
    assert circuit.open_reason is not None
    assert "11 of its last 200" in circuit.open_reason
    assert PAGE[:12] in circuit.open_reason


def test_few_bodies_need_eleven_pages() -> None:
    """At a host with few bodies, 11 of them are needed."""
    circuit, _ = fresh()
    page(circuit, 10)
    assert circuit.open_reason is None
    page(circuit, 1)
    assert circuit.open_reason is not None


def test_pages_that_differ_open_nothing() -> None:
    """Bodies that are not images, each with its own digest, do not open the circuit."""
    circuit, _ = fresh()
    for n in range(300):
        page(circuit, 1, f"{n:064x}")
        circuit.record_ok()
    assert circuit.open_reason is None


def test_pages_leave_the_window() -> None:
    """Pages before the last 200 bodies do not count."""
    circuit, _ = fresh()
    for _ in range(30):
        page(circuit, 9)
        for _ in range(200):
            circuit.record_ok()
    assert circuit.open_reason is None


def test_probes_come_after_growing_pauses() -> None:
    """The first probe is due after 30 s. Each failed probe doubles the interval, up to 5 minutes."""
    circuit, clock = fresh()
    assert not circuit.may_probe(clock.now)  # the circuit is closed
    refuse(circuit, 50)
    for pause in (30, 60, 120, 240, 300, 300):
        clock.now += pause - 0.5
        assert not circuit.may_probe(clock.now)
        clock.now += 0.5
        assert circuit.may_probe(clock.now)
        assert not circuit.may_probe(clock.now)
        refuse(circuit, 1)
    assert circuit.open_reason is not None


def test_an_object_closes_and_starts_afresh() -> None:
    """An object closes the circuit. Opening it again takes the full count, and the next probe 30 s."""
    for trouble, times in ((refuse, 50), (fail, 50), (page, 11)):
        circuit, clock = fresh()
        trouble(circuit, times)
        clock.now += 30
        assert circuit.may_probe()
        circuit.record_ok()
        assert circuit.open_reason is None
        refuse(circuit, 49)
        page(circuit, 10)
        assert circuit.open_reason is None
        refuse(circuit, 50)
        assert circuit.open_reason is not None
        clock.now += 30
        assert circuit.may_probe()


def test_an_answer_about_the_object_closes_refusals_but_no_page() -> None:
    """A 404 closes a circuit that refusals opened, but not one that a maintenance page opened."""
    circuit, _ = fresh()
    refuse(circuit, 50)
    circuit.record_error(ErrorClass.NOT_FOUND, 404)
    assert circuit.open_reason is None
    circuit, clock = fresh()
    page(circuit, 11)
    clock.now += 30
    assert circuit.may_probe()
    circuit.record_error(ErrorClass.NOT_FOUND, 404)
    assert circuit.open_reason is not None
    clock.now += 30  # not 60: that probe neither failed nor succeeded
    assert circuit.may_probe()


def test_what_was_in_flight_changes_nothing() -> None:
    """Refusals after the opening do not delay the first probe."""
    circuit, clock = fresh()
    refuse(circuit, 50)
    clock.now += 20
    refuse(circuit, 200)
    clock.now += 10
    assert circuit.may_probe()


def test_one_probe_doubles_the_pause_once() -> None:
    """Failures after that of a probe do not lengthen the interval again."""
    circuit, clock = fresh()
    refuse(circuit, 50)
    clock.now += 30
    assert circuit.may_probe()
    refuse(circuit, 20)
    clock.now += 60
    assert circuit.may_probe()


def test_a_probe_that_never_reports_costs_its_pause() -> None:
    """After a probe that was cancelled, the next one is due as usual."""
    circuit, clock = fresh()
    refuse(circuit, 50)
    clock.now += 30
    assert circuit.may_probe()
    clock.now += 30
    assert circuit.may_probe()


def silent(error_class: ErrorClass, message: str = "", *, no_response: bool = True) -> ObjectError:
    error = ObjectError(error_class, message)
    error.no_response = no_response
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (silent(ErrorClass.CONNECTION, "the connection to the origin failed (ECONNREFUSED)"), "refuses connections"),
        (silent(ErrorClass.CONNECTION, "reset"), "does not answer (reset)"),
        (silent(ErrorClass.TLS, "expired"), "does not answer (expired)"),
        (silent(ErrorClass.DNS), "does not resolve"),
        (silent(ErrorClass.TIMEOUT), "does not answer in time"),
        (silent(ErrorClass.TIMEOUT, no_response=False), ""),  # a body that comes too late
        (silent(ErrorClass.CONNECTION, no_response=False), ""),
        (silent(ErrorClass.BLOCKED_ADDRESS), ""),
        (silent(ErrorClass.INTERNAL), ""),
    ],
)
def test_what_a_silent_host_does(error: ObjectError, words: str) -> None:
    """Only a request without any response counts as silence."""
    assert silence_of(error) == words


def be_silent(circuit: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        circuit.record_error(ErrorClass.CONNECTION, None, silence="refuses connections")


def test_a_host_that_never_answers_is_named_and_given_up() -> None:
    """It is named after three requests. 60 s after the first one the circuit opens; a response closes it."""
    circuit, clock = fresh()
    be_silent(circuit, 2)
    assert circuit.silence == ""
    be_silent(circuit)
    assert circuit.silence == "refuses connections"
    clock.now += 59.9
    be_silent(circuit)
    assert circuit.open_reason is None
    clock.now += 0.1
    be_silent(circuit)
    assert circuit.is_hopeless
    assert circuit.open_reason is not None
    assert circuit.open_reason.startswith(
        "img.old.example refuses connections, and has not answered any request for 60 s"
    )
    clock.now += 30
    assert circuit.may_probe()
    be_silent(circuit)
    assert circuit.is_hopeless
    clock.now += 60
    assert circuit.may_probe()
    circuit.record_error(ErrorClass.FORBIDDEN, 403)
    assert (circuit.open_reason, circuit.silence, circuit.is_hopeless) == (None, "", False)


@pytest.mark.parametrize("error_class", [ErrorClass.NOT_FOUND, ErrorClass.RATE_LIMITED, ErrorClass.SERVER_ERROR, None])
def test_a_host_that_answered_once_is_not_given_up(error_class: ErrorClass | None) -> None:
    """After any response, silence opens no circuit: the host may be restarting."""
    circuit, clock = fresh()
    be_silent(circuit, 3)
    if error_class is None:
        circuit.record_ok()
    else:
        circuit.record_error(error_class, None)
    assert circuit.silence == ""
    for _ in range(10):
        clock.now += 30
        be_silent(circuit)
    assert (circuit.open_reason, circuit.silence) == (None, "")


def test_two_requests_open_nothing() -> None:
    """Two requests without a response, a minute apart, may be two broken objects."""
    circuit, clock = fresh()
    be_silent(circuit)
    clock.now += 100
    be_silent(circuit)
    assert circuit.open_reason is None
