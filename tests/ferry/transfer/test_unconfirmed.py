"""Whose object stands under a key after an upload of this run went wrong."""

from __future__ import annotations

import pytest

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.transfer.conflict import Unconfirmed
from tests.support.helpers import make_row

ROW, OTHER = make_row(1), make_row(2)


def test_only_the_row_and_the_key_of_the_upload() -> None:
    """An object is this run's where the same row was sent to the same key, and no other."""
    uploads = Unconfirmed()
    assert not uploads.ours(ROW, "a")
    assert not uploads.sent(ROW, "a")
    uploads.note(ROW, "a")
    assert [uploads.ours(ROW, "a"), uploads.ours(ROW, "b"), uploads.ours(OTHER, "a")] == [True, False, False]
    assert not uploads.sent(ROW, "a")
    uploads.note_sent(ROW, "b")
    assert [uploads.sent(ROW, "b"), uploads.sent(ROW, "a"), uploads.sent(OTHER, "b")] == [True, False, False]


def test_a_row_that_is_copied_is_forgotten() -> None:
    """What stands under its key later is not what arrived of the upload that went wrong."""
    uploads = Unconfirmed()
    uploads.note(ROW, "a")
    uploads.note_sent(ROW, "a")
    uploads.forget(ROW)
    assert not uploads.ours(ROW, "a")
    assert not uploads.sent(ROW, "a")
    uploads.forget(OTHER)


@pytest.mark.parametrize(
    ("noted", "error_class", "expected"),
    [
        (False, ErrorClass.TIMEOUT, ErrorClass.TIMEOUT),
        (False, ErrorClass.NOT_FOUND, ErrorClass.NOT_FOUND),
        (True, ErrorClass.TIMEOUT, ErrorClass.UPLOAD_UNCONFIRMED),
        (True, ErrorClass.NOT_FOUND, ErrorClass.NOT_FOUND),
    ],
)
def test_what_a_row_that_is_given_up_failed_of(noted: bool, error_class: ErrorClass, expected: ErrorClass) -> None:
    """Of its unconfirmed upload, unless a later error says that no further try helps; and the row is forgotten."""
    uploads = Unconfirmed()
    if noted:
        uploads.note(ROW, "a")
    uploads.note_sent(ROW, "a")
    error = uploads.last_word(ROW, ObjectError(error_class, "it failed", status_code=404, requests=3))
    assert (error.error_class, error.status_code, error.requests) == (expected, 404, 3)
    assert not uploads.ours(ROW, "a")
    assert not uploads.sent(ROW, "a")
