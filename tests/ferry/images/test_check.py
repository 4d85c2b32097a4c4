"""Levels `image` and `decode` on valid, unusual, damaged and hostile bodies."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import mmap
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.images.check import KINDS, check_image, kind_of_type, lesser_check, level_of, sniff
from ferry.images.decode import decode_image
from tests.faults import bombs

pytestmark = pytest.mark.matrix

Image.init()  # otherwise Pillow knows only the formats that earlier tests have used
EXIF_TIFF = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


def picture(mode: str = "RGB", size: tuple[int, int] = (33, 21), seed: int = 1) -> Image.Image:
    """Returns seeded noise, which does not compress, so that truncation anywhere removes data."""
    rng = random.Random(seed)
    base = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    if mode == "I;16":
        return Image.frombytes("I;16", size, rng.randbytes(size[0] * size[1] * 2))
    return base.convert(mode)


def saved(form: str, mode: str = "RGB", size: tuple[int, int] = (33, 21), **options: object) -> bytes:
    out = io.BytesIO()
    picture(mode, size).save(out, form, **options)
    return out.getvalue()


def animated(form: str, frames: int = 3, **options: object) -> bytes:
    out = io.BytesIO()
    first, *rest = (picture(size=(33, 21), seed=n) for n in range(frames))
    first.save(out, form, save_all=True, append_images=rest, **options)
    return out.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_segment(jpeg: bytes, extra: bytes) -> bytes:
    return jpeg[:2] + extra + jpeg[2:]


def exif_thumbnail() -> bytes:
    """Returns a JPEG whose EXIF contains a complete JPEG with its end marker."""
    return with_segment(saved("JPEG"), segment(0xE1, b"Exif\0\0" + EXIF_TIFF + saved("JPEG", size=(16, 16))))


def frame_at(jpeg: bytes) -> int:
    return next(at for at in (jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) if at >= 0)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def dnl() -> bytes:
    """Returns a JPEG whose height is after the scan."""
    data = saved("JPEG")
    height_at = frame_at(data) + 5
    return patched(data, height_at, b"\0\0")[:-2] + segment(0xDC, data[height_at : height_at + 2]) + b"\xff\xd9"


def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png_of(width: int, height: int, depth: int, colour: int, interlace: int, raw: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def adam7() -> bytes:
    """Returns an interlaced 8-bit grey PNG, written pass by pass."""
    width, height, raw = 20, 13, b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns = len(range(x, width, dx))
        for row in range(y, height, dy):
            if columns:
                raw += b"\0" + bytes((row * 7 + column * 3) & 255 for column in range(columns))
    return png_of(width, height, 8, 0, 1, raw)


def bmp_rle() -> bytes:
    body = b"\x05\x01\0\0" * 2 + b"\0\x01"
    palette = bytes(1024)
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 5, 2, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def psd(compression: int) -> bytes:
    rng = random.Random(2)
    rows = [rng.randbytes(12) for _ in range(3 * 9)]
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 9, 12, 8, 3) + bytes(12) + struct.pack(">H", compression)
    if compression == 0:
        return head + b"".join(rows)
    packed = [bytes([len(row) - 1]) + row for row in rows]
    return head + struct.pack(f">{len(packed)}H", *map(len, packed)) + b"".join(packed)


def cur() -> bytes:
    data = saved("ICO", size=(32, 32), bitmap_format="bmp", sizes=[(32, 32)])
    return patched(data, 2, b"\x02\0")


def box(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + tag + body


JXL_BOXES = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")


def heic() -> bytes:
    """Returns the boxes of an AVIF with HEIC's brand, which is all that level `image` reads."""
    return saved("AVIF").replace(b"ftypavif", b"ftypheic", 1)


def tiff_with_sub_ifd() -> bytes:
    """Returns a TIFF as in raw photos: only the sub-directory has a strip."""
    top = struct.pack("<H", 1) + struct.pack("<HHII", 330, 4, 1, 26) + bytes(4)
    below = struct.pack("<H", 2) + struct.pack("<HHII", 273, 4, 1, 56) + struct.pack("<HHII", 279, 4, 1, 9) + bytes(4)
    return b"II*\0\x08\0\0\0" + top + below + b"123456789"


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>é</title><path d="M0 0h9v9z"/></svg>'
SVG_ODD = (
    '<?xml version="1.0"?>\n<!-- a > b </svg> -->\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://x/svg11.dtd">'
    '<s:svg xmlns:s="http://www.w3.org/2000/svg" data-x="a>b"><s:svg/><s:svg x="1"><s:g/></s:svg >'
    "<s:style><![CDATA[ </s:svg> ]]></s:style><?php </s:svg> ?></s:svg>"
)

# name: (kind, body). Each is valid to its last byte; truncation anywhere must be found.
EXACT: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg": ("JPEG", lambda: saved("JPEG")),
    "jpeg grey": ("JPEG", lambda: saved("JPEG", "L")),
    "jpeg progressive": ("JPEG", lambda: saved("JPEG", progressive=True)),
    "jpeg restarts": ("JPEG", lambda: saved("JPEG", restart_marker_blocks=1)),
    "jpeg cmyk": ("JPEG", lambda: saved("JPEG", "CMYK")),
    "jpeg exif thumbnail": ("JPEG", exif_thumbnail),
    "jpeg icc, comment": ("JPEG", lambda: saved("JPEG", icc_profile=b"\xff\xd9" * 40_000, comment=b"\xff\xd9 hello")),
    "png": ("PNG", lambda: saved("PNG")),
    "png palette": ("PNG", lambda: saved("PNG", "P")),
    "png 1 bit": ("PNG", lambda: saved("PNG", "1")),
    "png 16 bit": ("PNG", lambda: saved("PNG", "I;16")),
    "png rgba": ("PNG", lambda: saved("PNG", "RGBA")),
    "png interlaced": ("PNG", adam7),
    "apng": ("PNG", lambda: animated("PNG")),
    "gif": ("GIF", lambda: saved("GIF", "P")),
    "gif grey": ("GIF", lambda: saved("GIF", "L", (200, 90))),
    "gif animated": ("GIF", lambda: animated("GIF", loop=0, comment=b"\x3b\x3b")),
    "webp": ("WebP", lambda: saved("WEBP")),
    "webp lossless": ("WebP", lambda: saved("WEBP", lossless=True)),
    "webp alpha, exif": ("WebP", lambda: saved("WEBP", "RGBA", exif=b"Exif\0\0" + EXIF_TIFF)),
    "webp animated": ("WebP", lambda: animated("WEBP")),
    "avif": ("AVIF", lambda: saved("AVIF")),
    "avif animated": ("AVIF", lambda: animated("AVIF")),
    "bmp": ("BMP", lambda: saved("BMP")),
    "bmp palette": ("BMP", lambda: saved("BMP", "P")),
    "bmp rle": ("BMP", bmp_rle),
    "ico": ("ICO", lambda: saved("ICO", size=(48, 48))),
    "ico bitmaps": ("ICO", lambda: saved("ICO", size=(48, 48), bitmap_format="bmp")),
    "cur": ("CUR", cur),
    "tiff": ("TIFF", lambda: saved("TIFF")),
    "svg": ("SVG", lambda: SVG.encode()),
    "svg bom": ("SVG", lambda: b"\xef\xbb\xbf" + SVG.encode()),
    "svg utf-16": ("SVG", lambda: SVG.encode("utf-16")),
    "svg odd": ("SVG", lambda: SVG_ODD.encode()),
    "svg root alone": ("SVG", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "svgz": ("SVGZ", lambda: gzip.compress(SVG.encode() * 1, mtime=0)),
}
# Valid, and decoded if Pillow can; truncation may not be visible, or the last byte has no data.
LOOSE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "mpo": ("JPEG", lambda: animated("MPO")),
    "jpeg, zeros behind": ("JPEG", lambda: saved("JPEG") + bytes(500)),
    "jpeg, another behind": ("JPEG", lambda: exif_thumbnail() + saved("JPEG")),
    "jpeg, newline behind": ("JPEG", lambda: saved("JPEG") + b"\r\n"),
    "png, text behind": ("PNG", lambda: saved("PNG") + b"trailer"),
    "gif, zeros behind": ("GIF", lambda: saved("GIF", "P") + bytes(9)),
    "webp, zeros behind": ("WebP", lambda: saved("WEBP") + bytes(9)),
    "avif, zeros behind": ("AVIF", lambda: saved("AVIF") + bytes(9)),
    "svg, white space and comment behind": ("SVG", lambda: SVG.encode() + b"\n<!-- made by hand -->\n"),
    "tiff lzw": ("TIFF", lambda: saved("TIFF", compression="tiff_lzw")),
    "tiff deflate": ("TIFF", lambda: saved("TIFF", compression="tiff_adobe_deflate")),
    "tiff jpeg": ("TIFF", lambda: saved("TIFF", compression="jpeg")),
    "tiff fax": ("TIFF", lambda: saved("TIFF", "1", compression="group4")),
    "tiff 16 bit": ("TIFF", lambda: saved("TIFF", "I;16")),
    "tiff float": ("TIFF", lambda: saved("TIFF", "F")),
    "tiff cmyk": ("TIFF", lambda: saved("TIFF", "CMYK")),
    "tiff many strips": ("TIFF", lambda: saved("TIFF", size=(60, 90), strip_size=500)),
    "tiff big": ("TIFF", lambda: saved("TIFF", big_tiff=True)),
    "tiff pages": ("TIFF", lambda: animated("TIFF")),
}
# Valid at level `image`; Pillow has no decoder, or none for this variant.
UNDECODABLE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg arithmetic": ("JPEG", lambda: patched(saved("JPEG"), frame_at(saved("JPEG")) + 1, b"\xc9")),
    "jpeg 12 bit": ("JPEG", lambda: patched(saved("JPEG"), frame_at(saved("JPEG")) + 4, b"\x0c")),
    "jpeg height behind": ("JPEG", dnl),
    "png, bad checksum in a text chunk": (
        "PNG",
        lambda: png_of(1, 1, 8, 0, 0, b"\0\0", chunk(b"tEXt", b"a\0b")[:-1] + b"\x00"),
    ),
    "heic": ("HEIC", heic),
    "tiff of a camera": ("TIFF", tiff_with_sub_ifd),
}
# Known only by their signature: level `image` does not find truncation. Level `decode` does if Pillow has a decoder.
BY_SIGNATURE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jp2": ("JPEG 2000", lambda: saved("JPEG2000")),
    "j2k tiles": ("JPEG 2000 code stream", lambda: saved("JPEG2000", no_jp2=True, tile_size=(16, 16))),
    "icns": ("ICNS", lambda: saved("ICNS", size=(32, 32))),
    "dds": ("DDS", lambda: saved("DDS", "RGBA")),
    "dds blocks": ("DDS", lambda: saved("DDS", "RGBA", (32, 20), pixel_format="DXT5")),
    "qoi": ("QOI", lambda: saved("QOI")),
    "psd raw": ("PSD", lambda: psd(0)),
    "psd packed": ("PSD", lambda: psd(1)),
    "pbm": ("PBM", lambda: saved("PPM", "1")),
    "pbm plain": ("PBM", lambda: b"P1\n3 2\n101010\n"),
    "pgm": ("PGM", lambda: saved("PPM", "L")),
    "pgm plain": ("PGM", lambda: b"P2 3 2 9 1 2 3\n4 5 6"),
    "pgm 16 bit, comment": ("PGM", lambda: b"P5\n# made by hand\n3 2\n# again\n65535\n" + bytes(range(12))),
    "ppm": ("PPM", lambda: saved("PPM")),
    "pfm": ("PFM", lambda: saved("PPM", "F")),
}
WITHOUT_DECODER: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jxl container": ("JPEG XL", lambda: JXL_BOXES + box(b"jxlp", b"\0\0\0\0ab") + box(b"jxlp", b"\x80\0\0\x01c")),
    "jxl code stream": ("JPEG XL", lambda: b"\xff\x0a\xfa\x1f\x41\x91" + bytes(10)),
    "jpeg xr": ("JPEG XR", lambda: b"II\xbc\x01\x08\0\0\0" + bytes(30)),
    "psb": ("PSB", lambda: patched(psd(0), 4, b"\0\2")),
    "pam": (
        "PAM",
        lambda: b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 4\n# c\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(16),
    ),
}
VALID = EXACT | LOOSE | UNDECODABLE | BY_SIGNATURE | WITHOUT_DECODER


@functools.cache
def body(name: str) -> bytes:
    return VALID[name][1]()


def refusal(data: bytes | mmap.mmap) -> ObjectError:
    with pytest.raises(ObjectError) as caught:
        check_image(data)
    return caught.value


def decode_refusal(data: bytes) -> ObjectError:
    with pytest.raises(ObjectError) as caught:
        decode_image(data, check_image(data))
    return caught.value


@pytest.mark.parametrize("name", VALID)
def test_valid_images_are_accepted(name: str) -> None:
    """Each valid image, also an unusual one, passes with the kind of its signature."""
    data, kind = body(name), VALID[name][0]
    found = check_image(data)
    assert found.name == kind
    assert found in KINDS
    assert sniff(data) == sniff(data[:HEAD]) == found


HEAD = 2048


@pytest.mark.parametrize("name", VALID)
def test_a_mapped_file_is_checked_like_bytes(name: str, tmp_path: Path) -> None:
    """A mapped file gives the same verdict, complete and truncated, and can be closed afterwards."""
    data = body(name)
    for part in (data, data[: len(data) // 2]):
        path = tmp_path / "body"
        path.write_bytes(part)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            verdicts = []
            for view in (part, mapped):
                try:
                    verdicts.append(check_image(view).name)
                except ObjectError as exc:
                    verdicts.append(str(exc))
            assert verdicts[0] == verdicts[1]
            if part is data and name in EXACT | LOOSE:
                decode_image(mapped, check_image(mapped))


@pytest.mark.parametrize("name", EXACT | LOOSE | BY_SIGNATURE)
def test_valid_images_decode(name: str) -> None:
    """An image that Pillow or the XML parser can read passes level `decode`."""
    decode_image(body(name), check_image(body(name)))


@pytest.mark.parametrize(
    ("name", "image", "decode"),
    [
        ("jpeg", "image", "decode"),
        ("svgz", "image", "decode"),
        ("cur", "image", "decode"),
        ("heic", "image", "image"),
        ("jp2", "length", "decode"),
        ("psd raw", "length", "decode"),
        ("pgm plain", "length", "decode"),
        ("jxl code stream", "length", "length"),
        ("jpeg xr", "length", "length"),
        ("psb", "length", "length"),
        ("pam", "length", "length"),
    ],
)
def test_how_deep_a_kind_is_checked(name: str, image: str, decode: str) -> None:
    """The table of level_of. An image that is checked less deeply than asked for passes, with a note."""
    kind = check_image(body(name))
    decode_image(body(name), kind)
    assert (level_of(kind, decode=False), level_of(kind, decode=True)) == (image, decode)
    for asked, level in (("image", image), ("decode", decode)):
        note = lesser_check(kind, decode=asked == "decode")
        assert (note is None) == (level == asked)
        if level == "length":
            assert note == f"only its length was checked: Ferry knows {kind.name} only by its signature"
    by_type = kind_of_type(kind.mime)
    assert by_type is not None
    assert level_of(by_type, decode=False) == image


def test_what_has_no_decoder_is_said() -> None:
    """The structure of a HEIC is checked; at level `decode` a note says that its pixels were not."""
    note = lesser_check(check_image(body("heic")), decode=True)
    assert note == "its structure was checked, its pixels were not: Ferry has no decoder for HEIC"
    assert kind_of_type(None) is None
    assert kind_of_type("text/html") is None


@pytest.mark.parametrize("name", [name for name in BY_SIGNATURE if not name.startswith(("pbm plain", "pgm"))])
def test_cuts_that_only_a_decoder_finds(name: str) -> None:
    """A truncated body that is known only by its signature passes level `image` but not level `decode`."""
    half = body(name)[: len(body(name)) // 2]  # longer than the header
    assert check_image(half).name == VALID[name][0]
    decode_refusal(half)


@pytest.mark.parametrize("name", BY_SIGNATURE | WITHOUT_DECODER)
def test_a_signature_alone_is_not_an_image(name: str) -> None:
    """A body that ends with or within its signature is refused."""
    for length in range(13):
        refusal(body(name)[:length])


@pytest.mark.parametrize(
    "text",
    ["qoif", "icns of the day", "DDS server error", "8BPS", "P5 is a plan", "P2 10 x 20", "P6 10 20 error", "P7 332",
     "Pf 1 2", "BMX is a sport", "RIFF", "GIF89", "II* ", "MM"],
)  # fmt: skip
def test_text_that_begins_as_a_signature_does(text: str) -> None:
    """An error page in plain text is refused, although it begins like a signature."""
    assert (
        refusal((text + ". The server is busy; please try again later.\n").encode()).error_class is ErrorClass.NOT_IMAGE
    )


@pytest.mark.parametrize("name", EXACT)
def test_every_cut_is_found(name: str) -> None:
    """No proper prefix of an image passes."""
    data = body(name)
    step = max(1, len(data) // 4000)
    for length in sorted({*range(0, len(data), step), *range(max(0, len(data) - 400), len(data))}):
        error = refusal(data[:length])
        assert error.error_class in (ErrorClass.TRUNCATED, ErrorClass.NOT_IMAGE)
        if length >= 64 and not name.startswith(("svg", "avif")):
            assert error.error_class is ErrorClass.TRUNCATED, (length, str(error))


@pytest.mark.parametrize("name", [n for n in LOOSE if n.startswith("tiff")])
def test_every_cut_of_a_tiff_that_removes_something_is_found(name: str) -> None:
    """All data of a directory, pixels and text, must be there; alignment bytes at the end may be missing."""
    data = body(name)
    step, padding = max(1, len(data) // 3000), 15 if name == "tiff pages" else 1
    for length in (*range(8, len(data) - padding, step), len(data) - padding - 1):
        assert refusal(data[:length]).error_class is ErrorClass.TRUNCATED


def test_a_cut_before_the_first_end_marker_of_a_multi_picture_jpeg_is_found() -> None:
    """A multi-picture JPEG ends with its first picture; the others may be missing."""
    mpo = body("mpo")
    first = mpo.find(b"\xff\xd9", mpo.find(b"\xff\xda")) + 2
    ends = {"mpo": first, "jpeg, another behind": len(exif_thumbnail()), "jpeg, zeros behind": len(saved("JPEG"))}
    for name, end in ends.items():
        data = body(name)
        assert end < len(data)
        assert check_image(data[:end]).name == "JPEG"
        for length in (*range(2, end, 7), end - 1):
            refusal(data[:length])


NOT_IMAGES = {
    **dict.fromkeys(
        ("BLP", "DIB", "IM", "MSP", "PCX", "SGI", "SPIDER", "TGA", "XBM"), "without a signature of its own"
    ),
    "PDF": "a document",
    "EPS": "a document: a program in PostScript",
    "PALM": "no signature; Pillow itself cannot read what it writes",
    "BUFR": "meteorological data, which Pillow writes through a handler that it does not include",
    "GRIB": "meteorological data; the same",
    "HDF5": "a scientific container; the same",
    "WMF": "a drawing program; the same",
}


@pytest.mark.parametrize("format_", sorted(set(Image.SAVE) | set(Image.SAVE_ALL)))
def test_every_format_that_pillow_writes(format_: str) -> None:
    """Each is accepted in every mode that Pillow writes, and half of it is refused if its structure is known.

    A format without a signature of its own is not an image.
    """
    written = 0
    for mode in ("RGB", "RGBA", "P", "L", "1", "F"):
        out = io.BytesIO()
        try:
            picture("RGB", (40, 32)).convert(mode).save(out, format_)
        except (OSError, ValueError):  # this format has no such mode
            continue
        written += 1
        if format_ in NOT_IMAGES:
            assert refusal(out.getvalue()).error_class is ErrorClass.NOT_IMAGE
        elif level_of(check_image(out.getvalue()), decode=False) == "image":
            refusal(out.getvalue()[: len(out.getvalue()) // 2])
    assert written or format_ in NOT_IMAGES


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the body is empty (zero bytes)"),
        (bytes(5000), "a run of zero bytes, not an image"),
        (b" \r\n ", "nothing but white space, not an image"),
        (b"<!DOCTYPE html><html><head><title>Not found</title>", "an HTML page (“Not found”), not an image"),
        (b"\n <HTML><body>\xc3\xa9</body>", "an HTML page, not an image"),
        (b"<html><title>a\x1b[31mb &amp; c</title>", "an HTML page (“a\ufffd[31mb & c”), not an image"),
        (b"<html><title>see https://x/?sig=1</title>", "an HTML page, not an image"),
        (b"<html><title>" + b"x" * 90 + b"</title>", f"an HTML page (“{'x' * 59}…”), not an image"),
        (
            b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0//EN" "x"><html><title>Hi</title>',
            "an HTML page (“Hi”), not an image",
        ),
        (b"<!-- cached --><!doctype HTML><p>no</p>", "an HTML page, not an image"),
        (b'<html><svg xmlns="http://www.w3.org/2000/svg"></svg>', "an HTML page, not an image"),
        (b'{"error": "no such image"}', "JSON, not an image"),
        (b'[\n {"a": 1}]', "JSON, not an image"),
        (
            b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>',
            "an XML document (<Error>: AccessDenied), not an image",
        ),
        (b"<rss version='2.0'>", "an XML document (<rss>), not an image"),
        (b"Not found\n", "plain text, not an image"),
        ("Nicht verfügbar".encode(), "plain text, not an image"),
        ("<html><title>é</title>".encode("utf-16"), "an HTML page (“é”), not an image"),
        (b"BMX is a sport", "plain text, not an image"),
        (b"P1 is a plan", "plain text, not an image"),
        (b"#define a_width 1\n#define a_height 1\nstatic char a_bits[] = {1};", "plain text, not an image"),
        (
            b'<!DOCTYPE html><svg xmlns="http://www.w3.org/2000/svg"><text>503</text></svg>',
            "an HTML page, not an image",
        ),
        (b"%PDF-1.7\n", "a PDF document, not an image; `checks: length` copies any kind of file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript document, not an image; `checks: length` copies any kind of file"),
        (b"PK\x03\x04\x14\0", "a ZIP archive, not an image; `checks: length` copies any kind of file"),
        (
            b"\0\0\0\x18ftypmp42\0\0\0\0",
            "an MP4 video or other media file, not an image; `checks: length` copies any kind of file",
        ),
        (
            b"\x1aE\xdf\xa3\0\0",
            "a WebM or Matroska video, not an image; `checks: length` copies any kind of file",
        ),
        (gzip.compress(b"hello", mtime=0), "gzip-compressed data, not an image"),
        (
            b"\x89\x01\x02\x03\x04\x05\x06\x07\x08",
            (
                "not an image of a known format (first bytes: 89 01 02 03 04 05 06 07); "
                "`checks: length` copies any kind of file"
            ),
        ),
    ],
)
def test_the_sentence_for_what_is_no_image(data: bytes, sentence: str) -> None:
    """The message says what the body is, without control characters and addresses."""
    error = refusal(data)
    assert str(error) == sentence
    assert error.error_class is ErrorClass.NOT_IMAGE
    assert sniff(data) is None


def test_an_image_stored_compressed_is_named() -> None:
    """An image that was stored gzip-compressed is refused, and the message says what is inside."""
    assert (
        str(refusal(gzip.compress(saved("JPEG"), mtime=0))) == "gzip-compressed data (with a JPEG inside), not an image"
    )
    assert "gzip-compressed data, " in str(refusal(gzip.compress(gzip.compress(b"x", mtime=0), mtime=0)))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xd8\xff", "the JPEG ends before its structure is complete"),
        (saved("JPEG")[:-2], "the JPEG ends before its end marker"),
        (b"\xff\xd8\xff\xd9", "the JPEG is damaged: it has no image data"),
        (saved("PNG")[:-12], "the PNG ends before its structure is complete"),
        (saved("PNG")[:-20], "the PNG ends before its end chunk (IEND)"),
        (saved("GIF", "P")[:-1], "the GIF ends before its structure is complete"),
        (saved("WEBP")[:-1], "the WebP ends before the size that its header gives"),
        (SVG.encode()[:-1], "the SVG ends before its closing </svg>"),
        (SVG.encode() + b"<br>", "the SVG is damaged: something follows its closing </svg>"),
        (SVG.encode() + b"<!-- a", "the SVG ends before the end of its last comment"),
        (saved("TIFF")[:-5], "the TIFF ends before the end of its image data"),
        (saved("BMP")[:-1], "the BMP ends before its last row"),
        (saved("AVIF")[:-1], "the AVIF ends before the end of a box"),
        (saved("ICO", size=(32, 32))[:-1], "the ICO ends before the end of a picture"),
        (gzip.compress(SVG.encode(), mtime=0)[:-1], "the SVGZ ends before the end of its gzip stream"),
    ],
)
def test_the_sentence_for_a_damaged_image(data: bytes, sentence: str) -> None:
    """The message for a damaged image names the format and what is missing."""
    error = refusal(data)
    assert str(error) == sentence
    assert (error.error_class is ErrorClass.TRUNCATED) == ("ends before" in sentence)


def test_each_flipped_bit_of_a_png_is_found() -> None:
    """A flipped bit anywhere in a PNG without text chunks is found."""
    data = body("png")
    for bit in range(0, len(data) * 8, 5):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        refusal(bytes(broken))


SIGNATURES = {
    "jpeg": 4, "png": 8, "gif": 6, "webp": 16, "avif": 12, "bmp": 26, "ico": 10, "tiff": 4, "svgz": 3,
}  # fmt: skip


@pytest.mark.parametrize("head", SIGNATURES)
def test_one_formats_signature_before_anothers_body(head: str) -> None:
    """The structure after a signature must be that format's."""
    for tail in SIGNATURES:
        if VALID[head][0] != VALID[tail][0]:
            refusal(body(head)[: SIGNATURES[head]] + body(tail)[SIGNATURES[tail] :])


def avif_of_unknown_length() -> bytes:
    """Returns an AVIF whose last box, its data, extends to the end of the file."""
    data = body("avif")
    at = data.find(b"mdat") - 4
    assert at + int.from_bytes(data[at : at + 4], "big") == len(data)
    return patched(data, at, bytes(4))


def avif_boxes(meta: bytes, data: bytes) -> bytes:
    return box(b"ftyp", b"avif\0\0\0\0avif") + box(b"meta", meta) + box(b"mdat", data)


def avif_with(old: bytes, new: bytes) -> bytes:
    assert old in body("avif")
    return body("avif").replace(old, new)


def tiff_of(*fields: tuple[int, int, int, int]) -> bytes:
    packed = b"".join(struct.pack("<HHII", *field) for field in fields)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + packed + bytes(4)


CUT_WITHOUT_A_SIGN: dict[str, Callable[[], bytes]] = {
    "avif, its data runs to the end": lambda: avif_of_unknown_length()[:-20],
    "avif, empty boxes": lambda: avif_boxes(b"", b""),
    "avif, no place of its picture": lambda: avif_boxes(bytes(9), b"x"),
    "avif, no data": lambda: body("avif")[: body("avif").find(b"mdat") - 4] + box(b"mdat", b""),
    "avif, more places than its box holds": lambda: avif_with(b"iloc\0\0\0\0\x44\0\0\1", b"iloc\0\0\0\0\x44\0\xff\xff"),
    "gif, a picture without data": lambda: b"GIF89a\1\0\1\0\0\0\0\x2c" + bytes(9) + b"\2\0\x3b",
    "ico, zeros behind its directory": lambda: body("cur")[:22] + bytes(len(body("cur"))),
    "ico, a cut png inside": lambda: bombs.ico_with(saved("PNG")[:-20]),
    "bmp, compressed without a size": lambda: patched(patched(bmp_rle(), 34, bytes(4)), 2, bytes(4))[:-5],
    "tiff, fewer lengths than strips": lambda: tiff_of((273, 3, 2, 60_000 << 16 | 8), (279, 4, 1, 8)),
    "jpeg, more blocks than bits": lambda: patched(saved("JPEG"), frame_at(saved("JPEG")) + 5, b"\x40\0\x40\0"),
    "webp, zeros behind its first chunk": lambda: (data := body("webp animated"))[:400] + bytes(len(data) - 400),
    "svg, a page": lambda: b"<!DOCTYPE html>\n" + SVG.encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT_WITHOUT_A_SIGN)
def test_bodies_that_once_passed(name: str) -> None:
    """Bodies with plausible lengths that are not complete images are refused."""
    refusal(CUT_WITHOUT_A_SIGN[name]())


def test_what_those_are_made_of_passes() -> None:
    """The same bodies, complete, pass."""
    assert check_image(avif_of_unknown_length()).name == "AVIF"
    assert check_image(bombs.ico_with(saved("PNG"))).name == "ICO"
    assert check_image(patched(bmp_rle(), 34, bytes(4))).name == "BMP"  # the size of its file is there
    decode_image(avif_of_unknown_length(), check_image(avif_of_unknown_length()))


@pytest.mark.parametrize("name", EXACT)
def test_a_signature_followed_by_zeros(name: str) -> None:
    """A file that was preallocated but not written is refused."""
    refusal(body(name)[:16] + bytes(3000))


def test_bytes_where_segments_should_be() -> None:
    """Fill bytes and junk between a JPEG's segments pass, as in libjpeg."""
    data = saved("JPEG")
    at = data.find(b"\xff\xdb")
    for filler in (b"\xff" * 9, b"\0\0\0", b"junk", b"\xff\0"):
        assert check_image(data[:at] + filler + data[at:]).name == "JPEG"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 30_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\x02" * 8_000_000,
        b"GIF89a\1\0\1\0\0\0\0" + b"\0" * 30_000_000,
        b"GIF89a\1\0\1\0\0\0\0\x21\xfe" + b"\1\1" * 15_000_000,
        b"<svg>" + b"<!---->" * 4_000_000,
        b"<svg></svg><!--" + b"-" * 20_000_000,
        b"<svg " + b"a=''" * 5_000_000,
        b"<svg>" * 6_000_000,
        b"<!--" * 8_000_000,
        b"<!DOCTYPE [" + b"] " * 10_000_000,
        b"P5\n" + b"#\n" * 10_000_000,
        b"RIFF" + struct.pack("<I", 30_000_000 - 8) + b"WEBPVP8X" + bytes(30_000_000 - 16),
        b"\x89PNG\r\n\x1a\n" + saved("PNG")[8:33] + chunk(b"tEXt", b"") * 2_000_000,
        b"\0\0\x01\0\xff\xff" + bytes(3) + bytes(1_100_000),
        b"II*\0\x08\0\0\0" + (b"\x01\0" + b"\x11\x01\x04\0" + struct.pack("<II", 7_000_000, 8) + bytes(4)) * 2_000_000,
        gzip.compress(b"<svg>" + b" " * 80_000_000, 1, mtime=0),
    ],
    ids=lambda data: f"{data[:12]!r}",
)
def test_hostile_bodies_cost_little(data: bytes) -> None:
    """Bodies of millions of small pieces are refused within seconds, because walks are limited."""
    started = time.thread_time()
    refusal(data)
    assert time.thread_time() - started < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        bombs.tiff_of_strips(400_000),
        gzip.compress(b"<svg/>", mtime=0) + bytes(70_000_000),
        gzip.compress(b"<svg/>", mtime=0) + bytes(60_000_000),
    ],
    ids=("TIFF", "SVGZ", "smaller SVGZ"),
)
def test_a_check_takes_little_memory(data: bytes) -> None:
    """Neither the numbers of a gigabyte of offsets nor a copy of the body is kept in memory."""
    tracemalloc.start()
    try:
        with contextlib.suppress(ObjectError):
            check_image(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_directory_that_loops() -> None:
    """A TIFF whose directories point at each other is refused."""
    entry = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 1)
    assert "loop" in str(refusal(b"II*\0\x08\0\0\0" + entry + struct.pack("<I", 8)))


def test_a_decompression_bomb_is_too_large() -> None:
    """More pixels than fit in a gigabyte are refused before decoding; a large size without the data is truncated."""
    assert refusal(png_of(60_000, 60_000, 8, 0, 0, b"\0")).error_class is ErrorClass.TRUNCATED
    bomb = bombs.png(40_000, 30_000, 0, 1)
    assert check_image(bomb).name == "PNG"
    refused = decode_refusal(bomb)
    assert refused.error_class is ErrorClass.TOO_LARGE
    assert "too many pixels to decode (1,200,000,000)" in str(refused)


def test_decode_finds_missing_pixels() -> None:
    """A complete structure with incomplete pixels passes `image` and fails `decode`."""
    whole = zlib.compress(random.Random(3).randbytes(31 * 30))
    header = png_of(30, 30, 8, 0, 0, b"")[:33]
    missing = header + chunk(b"IDAT", whole[: len(whole) // 2]) + chunk(b"IEND", b"")
    assert check_image(missing).name == "PNG"
    assert "its pixels do not decode" in str(decode_refusal(missing))
    bad = png_of(30, 30, 8, 0, 0, b"\x09" * 31 * 30)
    assert decode_refusal(bad).error_class is ErrorClass.NOT_IMAGE
    webp = bytearray(saved("WEBP", lossless=True))
    webp[40:-40] = bytes(len(webp) - 80)
    decode_refusal(bytes(webp))


def test_a_film_clock_that_stands_still() -> None:
    """An AVIF sequence with a time scale of zero, by which Pillow divides, is refused as damaged."""
    data = body("avif animated")
    at = data.find(b"mdhd")
    still = patched(data, at + (24 if data[at + 4] else 16), bytes(4))
    assert "its pixels do not decode" in str(decode_refusal(still))


def test_decode_looks_at_later_frames() -> None:
    """Damage in the second frame of an animation is found."""
    data = bytearray(body("apng"))
    at = data.find(b"fdAT")
    length = struct.unpack_from(">I", data, at - 4)[0]
    data[at + 8 : at + 4 + length] = bytes(length - 4)
    struct.pack_into(">I", data, at + 4 + length, zlib.crc32(data[at : at + 4 + length]))
    assert check_image(bytes(data)).name == "PNG"
    decode_refusal(bytes(data))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>', "it declares entities"),
        ('<!DOCTYPE svg [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><svg/>', "it declares entities"),
        ("<svg><g></svg>", "not well-formed in line 1 (mismatched tag)"),
        ("<svg><a x='1' x='2'/></svg>", "duplicate attribute"),
        ('<?xml version="1.0" encoding="klingon"?><svg/>', "unknown encoding"),
    ],
)
def test_decode_parses_svg(text: str, part: str) -> None:
    """Level `decode` requires that an SVG is well-formed, and expands no entities."""
    assert part in str(decode_refusal(text.encode()))


def test_the_cost_of_a_check() -> None:
    """A 40 KB JPEG is checked in microseconds of processor time, however large its coded data is."""
    data = saved("JPEG", size=(260, 200))
    started = time.thread_time()
    for _ in range(1000):
        check_image(data)
    assert (time.thread_time() - started) / 1000 < 500e-6
