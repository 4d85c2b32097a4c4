"""Whole jobs from every kind of source to every kind of destination, 500 objects each.

Sources are filled, and destinations read, by the provider's own library (tests/stores/libraries.py) or as plain files:
what Ferry says of its copies decides nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Callable, Iterator

import pytest
from PIL import Image

from demo.images import make_image
from demo.s3 import S3Server
from ferry.core.memory_budget import PART_BYTES
from tests.flows.project import Project
from tests.stores.places import EMULATORS, PYTHON, Destination, Directory, Objects, Place, S3Bucket, WebServer

pytestmark = pytest.mark.slow

OBJECTS = 500
DESTINATIONS = ("s3", "gcs", "azure", "directory")
SOURCES = (*DESTINATIONS, "http")
FOLDERS = ("shoes", "red shoes", "Schuhe/größe ÄÖÜ", "a+b", "100%", "50%25 off", "#1?x=1&y=2")
LARGE_PIXELS = 1_750  # a square of three bytes each: 9.2 MB


def bodies() -> dict[str, bytes]:
    """Returns JPEGs and PNGs of 240 bytes to 47 KB below odd folders, and one that is larger than a part."""
    found = {}
    for number in range(OBJECTS - 1):
        fmt, ending, most = ("png", "png", 145) if number % 5 == 0 else ("jpeg", "jpg", 1_000)
        width = 4 + random.Random(number).randrange(most)
        key = f"{FOLDERS[number % len(FOLDERS)]}/{number:04d} ä+%.{ending}"
        found[key] = make_image(fmt, number, width, 3 * width // 4 + 1)
    large = io.BytesIO()
    pixels = random.Random(0).randbytes(3 * LARGE_PIXELS**2)
    Image.frombytes("RGB", (LARGE_PIXELS, LARGE_PIXELS), pixels).save(large, "PNG", compress_level=0)
    found["large.png"] = large.getvalue()
    assert len(found["large.png"]) > PART_BYTES
    return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return Objects.write(tmp_path_factory.mktemp("objects"), bodies())


@pytest.fixture(scope="module")
def place(objects: Objects, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Returns the place with a name, which is started and filled once."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Place:
            if name == "directory":
                return Directory(tmp_path_factory.mktemp("directory"))
            if name == "http":
                return WebServer()
            if not PYTHON.exists():
                pytest.skip("the providers' libraries are not installed. Run `make stores`")
            if name == "s3":
                return S3Bucket(s3)
            server, bucket = EMULATORS[name]
            if (reason := server.missing()) is not None:
                pytest.skip(reason)
            return bucket(stack.enter_context(server()))

        @functools.cache
        def filled(name: str) -> Place:
            found = stack.enter_context(make(name))
            found.fill(objects)
            return found

        yield filled


@pytest.mark.parametrize("destination_name", DESTINATIONS)
@pytest.mark.parametrize("source_name", SOURCES)
def test_a_pair(
    source_name: str, destination_name: str, place: Callable[[str], Place], objects: Objects, project: Project
) -> None:
    """Each object arrives under its key with the bytes that were put at the source, and no other object is there."""
    source, destination = place(source_name), place(destination_name)
    assert isinstance(destination, Destination)
    prefix = f"from-{source_name}/"
    project.job(**source.source(project.folder), destination=destination.destination(prefix))
    ended = project.ferry("run", "job.yaml", "--json", env={**source.environment, **destination.environment})
    counts = ended.expect(0).json["counts"]
    assert (counts["planned"], counts["copied"]) == (OBJECTS, OBJECTS)
    assert destination.read(prefix) == objects.digests
