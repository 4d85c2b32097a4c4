"""Level `image`: checks of signature and structure up to the end marker, in a few microseconds, without decoding.

Bytes after the end marker are accepted except in SVG: real files have padding, second pictures and trailers of camera
makers there.

| format | what is checked |
|---|---|
| JPEG, MPO | segments up to the first scan, then the end marker; later pictures of an MPO are a trailer |
| PNG, APNG | every chunk, the checksum of those with the picture, and whether its pixels fit in them |
| GIF | every block up to the trailer |
| WebP | RIFF size, every chunk, the pictures' headers |
| SVG | tags up to the end of the root element, not whether it is well-formed; up to 64 MB |
| SVGZ | the gzip checksum, then as SVG (serve it with `Content-Encoding: gzip`) |
| AVIF, HEIC, HEIF | boxes; for a single picture also that its data is inside the file |
| TIFF, BigTIFF, DNG | every directory; that all strips and tiles are inside the file |
| BMP | rows, or the size in the header of a compressed one |
| ICO, CUR | every entry: inside the file, and a PNG to its end or a bitmap's header |
| all others below (JPEG XL, JPEG 2000, PSD, ...) | only the signature: level `length` |

Ferry does not accept formats without a signature of their own (TGA, PCX, XBM), EPS and PDF, which are documents, and
scientific containers (FITS, HDF5). `checks: length` copies those.

Not visible in the structure: flipped bits or a gap in coded data; a JPEG joined from a truncated and a complete copy;
a file of the right length whose last part was never written (TIFF, BMP, WebP, AVIF, icons); a truncated TIFF whose
strips have no lengths. Level `decode` finds some of these, a digest in the manifest finds all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Literal, NoReturn

from ferry.core import ErrorClass, ObjectError
from ferry.images import diagnose, isobmff, raster, slices, svg, web
from ferry.images.web import Data, Kind

Level = Literal["length", "image", "decode"]

_JPEG, _PNG = Kind("JPEG", "jpg", "image/jpeg", "JPEG"), Kind("PNG", "png", "image/png", "PNG")
_GIF, _TIFF = Kind("GIF", "gif", "image/gif", "GIF"), Kind("TIFF", "tif", "image/tiff", "TIFF")
_WEBP, _BMP = Kind("WebP", "webp", "image/webp", "WEBP"), Kind("BMP", "bmp", "image/bmp", "BMP")
_SVG, _SVGZ = Kind("SVG", "svg", "image/svg+xml", "SVG"), Kind("SVGZ", "svgz", "image/svg+xml", "SVGZ")
_JXL, _JP2 = Kind("JPEG XL", "jxl", "image/jxl"), Kind("JPEG 2000", "jp2", "image/jp2", "JPEG2000")
_PSD = "image/vnd.adobe.photoshop"
_BY_START: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", _JPEG),
    (b"\x89PNG\r\n\x1a\n", _PNG),
    (b"GIF89a", _GIF),
    (b"GIF87a", _GIF),
    (b"II*\0", _TIFF),
    (b"MM\0*", _TIFF),
    (b"II+\0", _TIFF),
    (b"MM\0+", _TIFF),
    (b"II\xbc\x01", Kind("JPEG XR", "jxr", "image/jxr")),
    (b"\xff\x0a", _JXL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _JP2),
    (b"\xff\x4f\xff\x51", Kind("JPEG 2000 code stream", "j2k", "image/j2c", "JPEG2000")),
    (b"8BPS\0\x01", Kind("PSD", "psd", _PSD, "PSD")),
    (b"8BPS\0\x02", Kind("PSB", "psb", _PSD)),
    # The zeros are the first bytes of a length or a width, which no text has
    (b"icns\0", Kind("ICNS", "icns", "image/icns", "ICNS")),
    (b"DDS \x7c\0\0\0", Kind("DDS", "dds", "image/vnd-ms.dds", "DDS")),
    (b"qoif\0", Kind("QOI", "qoi", "image/qoi", "QOI")),
)
_ICON = "image/vnd.microsoft.icon"
_ICONS = {1: Kind("ICO", "ico", _ICON, "ICO"), 2: Kind("CUR", "cur", _ICON, "CUR")}
_HEIFS = {
    "AVIF": Kind("AVIF", "avif", "image/avif", "AVIF"),
    "HEIC": Kind("HEIC", "heic", "image/heic"),
    "HEIF": Kind("HEIF", "heif", "image/heif"),
}
_PBM = Kind("PBM", "pbm", "image/x-portable-bitmap", "PPM")
_PGM = Kind("PGM", "pgm", "image/x-portable-graymap", "PPM")
_PPM = Kind("PPM", "ppm", "image/x-portable-pixmap", "PPM")
_PFM = Kind("PFM", "pfm", "image/x-portable-floatmap", "PPM")
_PAM = Kind("PAM", "pam", "image/x-portable-arbitrarymap")
_PNMS = dict(zip(b"1234567fF", (_PBM, _PGM, _PPM, _PBM, _PGM, _PPM, _PAM, _PFM, _PFM), strict=True))
# Netpbm's headers are text: all numbers of a header are required
_GAP = rb"(?:\s|#[^\r\n]*+[\r\n])++"
_PNM = re.compile(
    rb"P(?:[14](?:%b\d++){2}|[2356](?:%b\d++){3}|[fF](?:\s++-?[\d.]++){3})\s|P7\n[#WHDMTE]" % (_GAP, _GAP)
)
_PNM_HEADER_BYTES = 4096

KINDS: frozenset[Kind] = frozenset(
    {kind for _, kind in _BY_START} | {_WEBP, _BMP, _SVG, _SVGZ, *_ICONS.values(), *_HEIFS.values(), *_PNMS.values()}
)
_BY_TYPE = {kind.mime: kind for kind in sorted(KINDS, key=lambda kind: kind.decoder, reverse=True)}

_WALKS: dict[str, Callable[[Data], None]] = {
    "JPEG": web.jpeg,
    "PNG": web.png,
    "GIF": web.gif,
    "WebP": web.webp,
    "SVG": svg.svg,
    "SVGZ": svg.svgz,
    "AVIF": isobmff.heif,
    "HEIC": isobmff.heif,
    "HEIF": isobmff.heif,
    "TIFF": raster.tiff,
    "BMP": raster.bmp,
    "ICO": raster.ico,
    "CUR": raster.ico,
}
_SIGNATURE_BYTES = 12  # of the longest one
QUICK_BYTES = 256 * 1024
_QUICK = {kind.name for kind in KINDS if kind.name not in _WALKS} | {"JPEG", "PNG", "WebP", *_HEIFS}


def sniff(data: Data) -> Kind | None:
    """Returns the kind of image that a body's signature says, or None."""
    head = data[:32]
    for start, kind in _BY_START:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return _WEBP if head[8:12] == b"WEBP" else None
    if head[4:8] == b"ftyp":
        name = isobmff.heif_name(data)
        return _HEIFS[name] if name else None
    if head[:2] == b"\0\0":
        return _icon(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in raster.BMP_HEADERS:
        return _BMP
    if head[:1] == b"P" and _PNM.match(data, 0, _PNM_HEADER_BYTES):
        return _PNMS[head[1]]
    if head[:2] == b"\x1f\x8b":
        inside = svg.gunzip_head(data)
        return _SVGZ if inside is not None and svg.is_svg(inside) else None
    if head[:1] in b"<\xef\xff\xfe\0 \t\r\n" and svg.is_svg(data):
        return _SVG
    return None


def _icon(head: bytes) -> Kind | None:
    """Returns the kind by the directory's header and its first entry, whose byte 3 is reserved (Microsoft, ICONDIR)."""
    if len(head) < 22:
        return None
    kind, entries = struct.unpack_from("<HH", head, 2)
    return _ICONS.get(kind) if entries and head[9] == 0 else None


def is_quick(data: Data) -> bool:
    """Returns whether :func:`check_image` takes at most a few milliseconds, for any content.

    | body | quick |
    |---|---|
    | over 256 KiB | no |
    | JPEG, PNG, WebP, AVIF, HEIC, HEIF | yes: each step of the walk advances by several bytes |
    | known only by its signature, or not an image | yes: only its start is read |
    | GIF, SVG, SVGZ, TIFF, BMP, ICO, CUR | no: a step may advance by one byte, decompress, or go back |
    """
    if len(data) > QUICK_BYTES:
        return False
    kind = sniff(data)
    return kind is None or kind.name in _QUICK


def check_image(data: Data) -> Kind:
    """Returns the kind of a body that is an image, checked as deeply as :func:`level_of` says.

    Raises ObjectError: ``truncated`` if the structure ends early, ``not_image`` if it is invalid or the body is not an
    image, ``too_large`` if the check takes too long or an SVG exceeds its limit.
    """
    kind = sniff(data)
    if kind is None:
        _raise_not_image(data)
    if kind.name not in _WALKS:
        if len(data) <= _SIGNATURE_BYTES:
            raise web.truncated(kind.name, "its image data")
        return kind
    try:
        with slices.time_limit(kind.name, slices.CHECK_S):
            _WALKS[kind.name](data)
    except (IndexError, struct.error, OverflowError):  # a walk read past the end
        raise web.truncated(kind.name, "its structure is complete") from None
    return kind


def level_of(kind: Kind, *, decode: bool) -> Level:
    """Returns how deeply a body of this kind is checked, with `checks: decode` (``decode``) or without.

    | kind | `checks: image` | `checks: decode` |
    |---|---|---|
    | structure known, decoder | image | decode |
    | structure known, no decoder (HEIC, HEIF) | image | image |
    | signature known, decoder (JPEG 2000, PSD, ...) | length | decode |
    | signature known, no decoder (JPEG XL, JPEG XR, ...) | length | length |
    """
    if decode and kind.decoder:
        return "decode"
    return "image" if kind.name in _WALKS else "length"


def lesser_check(kind: Kind, *, decode: bool) -> str | None:
    """Returns a sentence that says which check was made, if it is less than the job's level; None otherwise."""
    level = level_of(kind, decode=decode)
    if level == "length":
        return f"only its length was checked: Ferry knows {kind.name} only by its signature"
    if decode and level == "image":
        return f"its structure was checked, its pixels were not: Ferry has no decoder for {kind.name}"
    return None


def kind_of_type(mime: str | None) -> Kind | None:
    """Returns the kind with this media type, or None. Of two, it is the one that is checked less deeply."""
    return _BY_TYPE.get(mime or "")


def _raise_not_image(data: Data) -> NoReturn:
    """Raises the error of a body without an image's signature. It says what the body is, and how to copy it."""
    if len(data) == 0:
        raise ObjectError(ErrorClass.NOT_IMAGE, "the body is empty (zero bytes)")
    noun = diagnose.describe(data)
    if noun.endswith(("document", "archive", "video", "sound", "media file")) and "XML" not in noun:
        raise ObjectError(ErrorClass.NOT_IMAGE, f"{noun}, not an image; `checks: length` copies any kind of file")
    if noun == "gzip-compressed data":
        inside = svg.gunzip_head(data)
        kind = sniff(inside) if inside and inside[:2] != b"\x1f\x8b" else None
        noun += f" (with a {kind.name} inside)" if kind else ""
    if noun:
        raise ObjectError(ErrorClass.NOT_IMAGE, f"{noun}, not an image")
    start = " ".join(f"{byte:02x}" for byte in data[:8])
    raise ObjectError(
        ErrorClass.NOT_IMAGE,
        f"not an image of a known format (first bytes: {start}); `checks: length` copies any kind of file",
    )
