"""Random and mutated bodies: a verdict or an ObjectError, never anything else."""

from __future__ import annotations

import struct
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferry.core.errors import ObjectError
from ferry.images.check import KINDS, check_image, decode_image, sniff
from tests.ferry.images.test_check import SIGNATURES, VALID, body

NAMES = sorted(name for name in VALID if len(body(name)) < 20_000)


def survives(data: bytes) -> None:
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            decode_image(data, kind)
        except ObjectError as exc:
            assert str(exc).isprintable()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid image with bytes changed, removed, repeated, or another image's bytes put in."""
    data = bytearray(body(draw(st.sampled_from(NAMES))))
    for _ in range(draw(st.integers(1, 6))):
        # headers decide most: half of the changes go to the first 128 bytes
        last = min(len(data), 128) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, max(0, last - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at : at + 4] = draw(
                    st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\1\0"])
                )
            case 2:
                del data[at : at + draw(st.integers(1, 64))]
            case 3:
                data[at:at] = draw(st.binary(max_size=16))
            case _:
                other = body(draw(st.sampled_from(NAMES)))
                data[at : at + 40] = other[at : at + 40]
    return bytes(data)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_mutated_images(data: bytes) -> None:
    """A damaged image is judged, at both levels, whatever the damage."""
    survives(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    """Bytes of any kind get a verdict."""
    survives(data)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(SIGNATURES)), st.binary(max_size=300))
def test_signatures_before_random_bytes(name: str, tail: bytes) -> None:
    """A signature with anything behind it gets a verdict."""
    survives(body(name)[: SIGNATURES[name]] + tail)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="<>/svg!-[]?\"' \n=xmlDOCTYPEhtml&;", max_size=120))
def test_text_like_markup(text: str) -> None:
    """Markup in any disorder gets a verdict."""
    survives(text.encode())
    survives(b"<svg>" + text.encode())
    survives(text.encode("utf-16"))


@pytest.mark.parametrize("place", [2**63, 2**64 - 1])
def test_a_big_tiff_whose_directory_lies_nowhere(place: int) -> None:
    """A place of 64 bits that no index can be: found by the test above."""
    survives(b"II+\0\x08\0\0\0" + place.to_bytes(8, "little") + bytes(100))
    entry = struct.pack("<HHQQ", 322, 4, 1, 64)
    survives(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + entry + place.to_bytes(8, "little") + bytes(100))
