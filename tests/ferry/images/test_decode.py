"""Decoder processes: what they inherit, what ends them, and that no body blocks their parent."""

from __future__ import annotations

import io
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ferry.core import WITHOUT_CREDENTIALS
from ferry.core.errors import ObjectError
from ferry.images import decode
from ferry.images.check import KINDS, check_image
from ferry.images.decode import MIB, DecoderPool
from tests.faults import bombs
from tests.ferry.images.test_check import body, saved
from tests.support.helpers import make_body

pytestmark = pytest.mark.matrix

JPEG = saved("JPEG")


@pytest.fixture(autouse=True)
def decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """A pool for this test alone; no decoder process runs before and after it."""
    end_children(decode._pool)
    made = DecoderPool()
    monkeypatch.setattr(decode, "_pool", made)
    assert not set(bombs.children())
    yield made
    end_children(made)
    assert not set(bombs.children())


def end_children(decoders: DecoderPool) -> None:
    for _ in range(decode.MAX_CHILDREN):
        child = decoders._idle.get(timeout=60)
        if child is not None:
            child.end()
    for _ in range(decode.MAX_CHILDREN):
        decoders._idle.put(None)


def decoded(data: Any) -> str:
    """Returns the verdict of level `decode` on a body that passes level `image`."""
    try:
        decode.decode_image(data, check_image(data))
    except ObjectError as error:
        return f"{error.error_class}: {error.message}"
    return "taken"


def child() -> Path:
    """Returns the directory in /proc of this test's only decoder process."""
    assert decoded(JPEG) == "taken"
    (found,) = bombs.children()
    return found


def program(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Replaces the program of the children. ``answer`` runs for each request, with its ``line`` and ``data``."""
    code = (
        "import json, os, signal, sys, time\nread, write, bodies = sys.stdin.buffer, sys.stdout.buffer, 0\n"
        "while line := read.readline():\n    data = read.read(json.loads(line)[3])\n    bodies += 1\n"
        f"    {answer}\n    write.flush()\n"
    )
    monkeypatch.setattr(decode, "COMMAND", [sys.executable, "-c", code])


def test_this_process_never_loads_pillow(tmp_path: Path) -> None:
    """Neither a check nor a decode loads Pillow here, nor does `ferry.transfer`."""
    (tmp_path / "a.jpg").write_bytes(JPEG)
    code = (
        "import sys; import ferry.images as i, ferry.transfer; data = open(sys.argv[1], 'rb').read(); "
        "i.decode_image(data, i.check_image(data)); print(any(name.startswith('PIL') for name in sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_what_a_child_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child has pipes but no socket, no credentials in its environment, and limits on memory, files and core dumps.

    It is in a session of its own, so that a terminal does not send it Ctrl-C.
    """
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret1")
    with socket.create_server(("127.0.0.1", 0)):
        pid = child()
    opened = {str(path.readlink()) for path in (pid / "fd").iterdir()}
    assert {name.partition(":")[0] for name in opened} <= {"pipe", "/dev/null"}
    names = {line.partition(b"=")[0].decode() for line in (pid / "environ").read_bytes().split(b"\0") if line}
    assert names <= WITHOUT_CREDENTIALS
    limits = {line[:26].strip(): line[26:].split() for line in (pid / "limits").read_text().splitlines()[1:]}
    assert limits["Max file size"][:2] == limits["Max core file size"][:2] == ["0", "0"]
    assert int(limits["Max address space"][1]) < decode.TOTAL_BYTES
    assert int(limits["Max cpu time"][0]) <= decode.DECODE_S + 5
    assert os.getsid(int(pid.name)) == int(pid.name)


@pytest.mark.parametrize("name", ["jpeg", "tiff", "gif animated", "ico", "svg", "svgz", "jp2", "qoi"])
def test_a_body_has_one_verdict_wherever_it_lies(name: str, tmp_path: Path) -> None:
    """A body in memory, mapped or in the spool has the same verdict, complete and damaged."""
    data = body(name)
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 9] = bytes(9)
    kind = check_image(data)
    for part in (data, bytes(damaged), data[: len(data) // 2]):
        (tmp_path / "body").write_bytes(part)
        spooled = make_body(part, tmp_path)
        spooled.path, spooled.data = tmp_path / "body", None
        verdicts = set()
        with (
            (tmp_path / "body").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            spooled.buffer() as in_spool,
        ):
            for view in (part, mapped, in_spool):
                try:
                    decode.decode_image(view, kind)
                    verdicts.add("taken")
                except ObjectError as error:
                    verdicts.add(str(error))
        assert len(verdicts) == 1
        assert part is not data or verdicts == {"taken"}


def test_a_child_serves_many_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child decodes MAX_BODIES bodies, also damaged ones, each with its own processor time; then another one does."""
    monkeypatch.setattr(decode, "MAX_BODIES", 11)
    damaged = bombs.png(8, 8, before=bombs.png_chunk(b"iCCP", bombs.HUNDRED_MB))
    first = child()
    for _ in range(3):
        assert "not_image" in decoded(damaged)
        assert decoded(JPEG) == "taken"
        assert child() == first
    assert decoded(JPEG) == "taken"
    assert child() != first


@pytest.mark.slow
def test_a_child_that_was_ended_is_replaced() -> None:
    """A child that the system kills between two bodies is replaced without an effect on the next body."""
    for _ in range(3):
        pid = child()
        os.kill(int(pid.name), signal.SIGKILL)
        assert decoded(JPEG) == "taken"


def test_the_fault_of_an_earlier_body_is_not_the_next_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that passes in a new child is accepted although its first child crashed."""
    program(monkeypatch, "write.write(b'null\\n') if bodies == 1 else os.kill(os.getpid(), signal.SIGSEGV)")
    assert [decoded(JPEG) for _ in range(5)] == ["taken"] * 5


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashes its decoder (SIGSEGV)"),
        ("os.abort()", "crashes its decoder (SIGABRT)"),
        ("os.close(1); time.sleep(60)", "crashes its decoder (SIGKILL)"),
        ("sys.exit(3)", "takes more than 1,024 MiB of memory to decode, or its pixels are damaged"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "takes more than 30 s of processor"),
        ("os.kill(os.getpid(), signal.SIGALRM)", "takes more than 30 s of processor"),
        ("time.sleep(60)", "takes more than 30 s of processor"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "takes more than 30 s of processor"),
        ("write.write(b'no answer\\n')", "crashes its decoder (SIGKILL)"),
        ("write.write(b'x' * 1_000_000)", "crashes its decoder (SIGKILL)"),
    ],
)
def test_a_body_that_ends_or_holds_its_child(answer: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For anything that the child does, the row fails with a reason, and the next body is decoded."""
    monkeypatch.setattr(decode, "WAIT_S", 1)
    program(monkeypatch, f"\n    if len(data) > 1000:\n        {answer}\n    else: write.write(b'null\\n')")
    started = time.monotonic()
    for _ in range(2):
        verdict = decoded(saved("JPEG", size=(200, 200)))
        assert verdict.startswith("too_large: the JPEG ")
        assert why in verdict
        assert decoded(saved("JPEG", size=(8, 8))) == "taken"
    assert time.monotonic() - started < 50


def test_a_child_that_does_not_read_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that reads no input is ended after WAIT_S, also with a body that is larger than a pipe."""
    monkeypatch.setattr(decode, "WAIT_S", 1)
    monkeypatch.setattr(decode, "COMMAND", [sys.executable, "-c", "import time; time.sleep(100)"])
    assert "takes more than" in decoded(bombs.jpeg_of_exif(4 * MIB))


@pytest.mark.parametrize("command", [[sys.executable, "-c", "raise SystemExit(1)"], ["/nowhere/python"]])
def test_a_child_that_cannot_work_is_a_bug_and_no_verdict(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder process that cannot run is a RuntimeError, not damage and not a failure of the origin."""
    monkeypatch.setattr(decode, "COMMAND", command)
    with pytest.raises(RuntimeError, match="a decoder process"):
        decoded(JPEG)


def test_nothing_is_left_of_children_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that ended leave no descriptors."""
    program(monkeypatch, "sys.exit(3)")
    decoded(JPEG)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert decoded(JPEG) != "taken"
    assert len(list(Path("/proc/self/fd").iterdir())) <= before  # those of earlier tests may be closed meanwhile


@pytest.mark.slow
def test_time_is_limited() -> None:
    """The limit on processor time ends Pillow's quadratic reading of TIFF directories, without a second try."""
    data = bombs.tiff_of_directories(60_000)
    started = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "DECODE_S", 1)
        assert "takes more than 1 s of processor" in decoded(data)
    assert decoded(JPEG) == "taken"
    assert time.process_time() - started < 2


@pytest.mark.slow
def test_memory_is_limited_and_one_may_have_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that exceeds a child's share is decoded alone with all the memory; one that needs more is refused.

    Threads that all need all the memory do not deadlock.
    """
    monkeypatch.setattr(decode, "TOTAL_BYTES", 80 * MIB)
    small, large, larger = flat(1_000, 1_000), flat(4_000, 3_500), flat(6_000, 6_000)  # 4, 56 and 144 MB
    with ThreadPoolExecutor(4) as threads:
        ends = list(threads.map(decoded, [small, large, larger] * 2, timeout=300))
    assert ends[0::3] == ends[1::3] == ["taken"] * 2
    assert set(ends[2::3]) == {
        "too_large: the PNG takes more than 80 MiB of memory to decode, or its pixels are damaged; "
        "`checks: image` accepts it by its structure"
    }


def flat(width: int, height: int, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {"method": 0}),
        ("WEBP", {"lossless": True, "method": 0}),
        ("AVIF", {"speed": 10}),
        ("JPEG2000", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "lzma"}),
        ("BMP", {}),
    ],
)
def test_a_lack_of_memory_is_not_damage(form: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With any amount of memory, the picture passes or is `too_large`, although libraries barely report a lack."""
    data, ends = flat(3_000, 2_000, form, **options), []
    for total in (8, 48, 320):
        monkeypatch.setattr(decode, "TOTAL_BYTES", total * MIB)
        monkeypatch.setattr(decode, "_pool", made := DecoderPool())
        ends.append(decoded(data))
        for _ in range(decode.MAX_CHILDREN):
            if (left := made._idle.get()) is not None:
                left.end()
        assert ends[-1] == "taken" or ends[-1].startswith("too_large"), ends
    assert ends[-1] == "taken"


@pytest.mark.slow
def test_a_drawing_has_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on memory also holds for an SVG, whose names and attributes fill the parser's tables."""
    data = b"<svg " + b" ".join(b"a%d=''" % n for n in range(500_000)) + b"/>"
    assert decoded(data) == "taken"
    monkeypatch.setattr(decode, "_pool", made := DecoderPool())
    monkeypatch.setattr(decode, "TOTAL_BYTES", 60 * MIB)
    assert "too_large: the SVG takes more than 60 MiB of memory" in decoded(data)
    assert made._idle.get() is None


def test_every_decoder_exists() -> None:
    """Each kind's decoder is the XML parser or a format that the installed Pillow can open."""
    Image.init()
    assert {kind.decoder for kind in KINDS} - {"", "SVG", "SVGZ"} <= set(Image.OPEN)
