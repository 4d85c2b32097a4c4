"""Checksums in names and in JSON reveal damage, and files of an earlier Ferry without them are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ferry.core.errors import Damaged
from ferry.state.checksums import (
    checked_file_name,
    checked_name,
    decode_checked_json,
    encode_checked_json,
    matches_name,
    verified_path,
)
from tests.support.helpers import directory_state

DATA = b"some bytes of a Parquet file"


def test_a_name_fits_its_bytes_alone(tmp_path: Path) -> None:
    """Any flipped bit and any shorter file are found by the digest in the name."""
    path = tmp_path / "x"
    path.write_bytes(DATA)
    name = checked_name("outcomes/000001-c-00000", DATA)
    assert name == checked_file_name("outcomes/000001-c-00000", path)
    assert matches_name(name, path)
    for at in range(len(DATA) * 8):
        data = bytearray(DATA)
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        assert not matches_name(name, path)
    for size in range(len(DATA)):
        path.write_bytes(DATA[:size])
        assert not matches_name(name, path)


@pytest.mark.parametrize(
    "name",
    [
        "outcomes/000001-" + "a" * 32 + "-00000.parquet",
        "ledger/000001-1764061234567890123.parquet",
        "plan/manifest-000001.parquet",
        "plan/hints/" + "a" * 32 + ".parquet",
    ],
)
def test_names_of_an_earlier_ferry_prove_nothing(name: str, tmp_path: Path) -> None:
    """A name without a digest matches any content."""
    (tmp_path / "x").write_bytes(DATA)
    assert matches_name(name, tmp_path / "x")


def test_what_is_not_whole_is_named_with_the_advice(tmp_path: Path) -> None:
    """A damaged file raises Damaged with its name and the advice, a missing one FileNotFoundError."""
    state = directory_state(tmp_path)
    name = checked_name("plan/manifest-000001", DATA)
    with pytest.raises(FileNotFoundError):
        verified_path(state, name, "Do this")
    state.write(name, DATA)
    assert verified_path(state, name, "Do this").read_bytes() == DATA
    state.write(name, DATA[:-1])
    with pytest.raises(Damaged, match=rf"{name} is damaged.*Do this"):
        verified_path(state, name, "Do this")


def test_a_sealed_document_is_read_back() -> None:
    """Reformatted JSON still matches its digest; JSON with a changed value does not, whichever bit was flipped."""
    data = {"rows": 3, "where": {"key": None, "uri": "s3://b/\u00e9"}, "chunks": [{"done": 0}]}
    raw = encode_checked_json(data)
    assert decode_checked_json(raw) == data
    assert decode_checked_json(json.dumps(json.loads(raw)).encode()) == data
    wrong = 0
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        try:
            found = decode_checked_json(bytes(changed))
        except ValueError:
            continue
        # what is left: blanks, the case of a \\u escape, and the seal's own name, which is then an unknown key
        wrong += found != data and set(found) == set(data)
    assert not wrong
