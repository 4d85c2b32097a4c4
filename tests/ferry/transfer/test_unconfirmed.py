"""Records of this run's uploads that were not confirmed."""

from __future__ import annotations

import pytest

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.transfer.conflict import UnconfirmedUploads
from tests.support.helpers import make_row

ROW, OTHER = make_row(1), make_row(2)


def test_only_the_row_and_the_key_of_the_upload() -> None:
    """A record counts only for its row and key."""
    uploads = UnconfirmedUploads()
    assert not uploads.has_failed(ROW, "a")
    assert not uploads.may_have_arrived(ROW, "a")
    uploads.note_failed(ROW, "a")
    tried = ((ROW, "a"), (ROW, "b"), (OTHER, "a"))
    assert [uploads.has_failed(*upload) for upload in tried] == [True, False, False]
    assert not uploads.may_have_arrived(ROW, "a")
    uploads.note_sent(ROW, "b")
    tried = ((ROW, "b"), (ROW, "a"), (OTHER, "b"))
    assert [uploads.may_have_arrived(*upload) for upload in tried] == [True, False, False]


def test_a_row_that_is_copied_is_forgotten() -> None:
    """A copied row has no records any more."""
    uploads = UnconfirmedUploads()
    uploads.note_failed(ROW, "a")
    uploads.note_sent(ROW, "a")
    uploads.forget(ROW)
    assert not uploads.has_failed(ROW, "a")
    assert not uploads.may_have_arrived(ROW, "a")
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
    """A row fails for its unconfirmed upload, unless the last error is permanent."""
    uploads = UnconfirmedUploads()
    if noted:
        uploads.note_failed(ROW, "a")
    uploads.note_sent(ROW, "a")
    error = uploads.final_error(ROW, ObjectError(error_class, "it failed", status_code=404, requests=3))
    assert (error.error_class, error.status_code, error.requests) == (expected, 404, 3)
    assert not uploads.has_failed(ROW, "a")
    assert not uploads.may_have_arrived(ROW, "a")
