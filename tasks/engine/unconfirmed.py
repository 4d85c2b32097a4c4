"""Uploads of this run that failed: what the next try finds under their key may be what arrived of them."""

from __future__ import annotations

from tasks.engine.errors import ObjectError
from tasks.engine.objects import Again, ErrorClass, Row


class Unconfirmed:
    """By row. The policies `skip` and `fail` leave an object alone that is there: not what arrived of our own.

    An object with the row's bytes that an upload of this run may have put there is `copied`, and not `unchanged`.
    """

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._sent: dict[str, str] = {}

    def note(self, row: Row, key: str) -> None:
        self._keys[row.row_id] = key

    def note_sent(self, row: Row, key: str) -> None:
        """An upload of this row has begun under this key, and its answer did not come or was an error."""
        self._sent[row.row_id] = key

    def sent(self, row: Row, key: str) -> bool:
        """May an object of this row have arrived under this key?"""
        return self._sent.get(row.row_id) == key

    def forget(self, row: Row) -> None:
        self._keys.pop(row.row_id, None)
        self._sent.pop(row.row_id, None)

    def ours(self, row: Row, key: str) -> bool:
        """Did an upload of this row go wrong under this key?"""
        return self._keys.get(row.row_id) == key

    def last_word(self, row: Row, error: ObjectError) -> ObjectError:
        """What a row that is given up failed of. An upload that went wrong is not forgotten for a timeout that came
        later: the outcome tells the next run, too, whose object that is (plan.reason_to_do)."""
        self._sent.pop(row.row_id, None)
        if self._keys.pop(row.row_id, None) is None or error.again is Again.NEVER:
            return error
        return ObjectError(
            ErrorClass.UPLOAD_UNCONFIRMED, f"an upload was not confirmed, and then: {error.message}",
            status_code=error.status_code, requests=error.requests,
        )  # fmt: skip
