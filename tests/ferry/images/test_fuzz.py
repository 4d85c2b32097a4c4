"""Random bodies: a kind or an ObjectError, never another exception. tests/faults/test_fuzz.py has damaged images."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferry.core.errors import ObjectError
from ferry.images.check import KINDS, check_image, sniff
from ferry.images.decode import decode_image
from tests.ferry.images.test_check import SIGNATURES, body


def survives(data: bytes) -> None:
    """Asserts that both levels give a verdict, whose message is printable."""
    kind = None
    try:
        kind = check_image(data)
    except ObjectError as exc:
        assert str(exc)
        assert str(exc).isprintable()
        kind = sniff(data)
    if kind is None:
        return
    assert kind in KINDS
    try:
        decode_image(data, kind)
    except ObjectError as exc:
        assert str(exc).isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    """Random bytes get a verdict."""
    survives(data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SIGNATURES)), st.binary(max_size=300))
def test_signatures_before_random_bytes(name: str, tail: bytes) -> None:
    """A signature before random bytes gets a verdict."""
    survives(body(name)[: SIGNATURES[name]] + tail)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="<>/svg!-[]?\"' \n=xmlDOCTYPEhtml&;", max_size=120))
def test_text_like_markup(text: str) -> None:
    """Markup in any disorder gets a verdict."""
    survives(text.encode())
    survives(b"<svg>" + text.encode())
    survives(text.encode("utf-16"))


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_a_big_tiff_whose_directory_lies_nowhere(offset: int) -> None:
    """A directory at an offset of 64 bits, beyond every index, gets a verdict."""
    survives(b"II+\0\x08\0\0\0" + offset.to_bytes(8, "little") + bytes(100))
    entry = struct.pack("<HHQQ", 322, 4, 1, 64)
    survives(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + entry + offset.to_bytes(8, "little") + bytes(100))
