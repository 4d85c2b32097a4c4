"""Kinds that are not checked as deep as `checks` asks: they are copied, the ledger says so, and the run counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.origin import Fault, Origin, Trouble
from demo.s3 import S3Server
from ferry.core.records import ErrorClass, Outcome, Status
from ferry.state.counts import count
from ferry.state.queries import folded_ledger
from tests.ferry.images.test_check import body
from tests.support import helpers
from tests.support.nights import World

pytestmark = pytest.mark.matrix

JXL, JP2, PSB = (
    f"only its length was checked: Ferry knows {name} only by its signature" for name in ("JPEG XL", "JPEG 2000", "PSB")
)
HEIC = "its structure was checked, its pixels were not: Ferry has no decoder for HEIC"
BODIES = {"a.jpg": "jpeg", "b.jxl": "jxl code stream", "c.heic": "heic", "d.jp2": "jp2", "e.bin": "psb"}


@pytest.fixture
def world(origin: Origin, s3: S3Server, bucket: str, tmp_path: Path) -> World:
    return World(origin, s3, bucket, tmp_path)


@pytest.mark.parametrize(
    ("checks", "messages"),
    [
        ("length", {}),
        ("image", {"b.jxl": JXL, "d.jp2": JP2, "e.bin": PSB}),
        ("decode", {"b.jxl": JXL, "c.heic": HEIC, "e.bin": PSB}),
    ],
)  # fmt: skip
def test_the_ledger_says_which_check_was_made(checks: str, messages: dict[str, str], world: World) -> None:
    """The objects are copied with their types. A delta run that finds them unchanged still says it, and counts them."""
    for key, name in BODIES.items():
        world.bodies[key] = body(name)
        world.origin.add(f"/{key}", body(name), content_type="application/octet-stream")
    for status in (Status.COPIED, Status.UNCHANGED):
        found = world.night(checks=checks)
        assert {outcome.status for outcome in found.values()} == {status}
        assert {key: outcome.message for key, outcome in found.items() if outcome.message} == messages
        with folded_ledger(world.state) as con:
            assert count(con).lesser_checks == len(messages)
    types = {key: outcome.content_type for key, outcome in found.items()}
    assert (types["b.jxl"], types["d.jp2"]) == ("image/jxl", "image/jp2")
    world.is_true()


def failed(world: World, name: str, checks: str, keep: float, *, sized: bool = False) -> Outcome:
    """Moves a body that ends with its connection, and no earlier sign of that."""
    world.bodies["a.bin"] = body(name)
    fault = Fault(Trouble.TRUNCATED_CLOSE, keep=keep)
    world.origin.add("/a.bin", body(name), fault=fault)
    columns = {"content_length": [str(int(len(body(name)) * keep))]} if sized else {}
    return world.night(columns, checks=checks)["a.bin"]


@pytest.mark.parametrize(
    ("name", "checks", "keep", "error"),
    [
        ("jxl code stream", "image", 1.0, ErrorClass.TRUNCATED),  # whether it was cut, nothing says
        ("jxl code stream", "decode", 1.0, ErrorClass.TRUNCATED),
        ("jp2", "image", 0.5, ErrorClass.TRUNCATED),
        ("jp2", "decode", 1.0, None),
        ("jpeg", "image", 1.0, None),
        ("jpeg", "image", 0.5, ErrorClass.TRUNCATED),
    ],
)
def test_a_body_whose_length_nobody_said(
    name: str, checks: str, keep: float, error: ErrorClass | None, world: World
) -> None:
    """Where only the length is checked there must be one: else a body that was cut would pass."""
    outcome = failed(world, name, checks, keep)
    assert outcome.error_class is error
    if error and name != "jpeg":
        assert "Add its size or a digest to the manifest" in str(outcome.message)


def test_a_size_in_the_manifest_is_a_length(world: World) -> None:
    """And so is a digest."""
    assert failed(world, "jxl code stream", "image", 1.0, sized=True).status is Status.COPIED


def test_half_a_jpeg_2000_is_not_decoded(world: World) -> None:
    """What level `image` cannot see, level `decode` does."""
    assert failed(world, "jp2", "decode", 0.5).status is Status.FAILED
    assert helpers.stored(world.s3, world.bucket) == {}
