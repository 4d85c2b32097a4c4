"""Is this body the image that it claims to be?

:func:`check` is level `image`: signature and structure to the end marker, no pixel decoded, a few
microseconds. :func:`decode` is level `decode`: every pixel. Bytes after the end marker are accepted
everywhere but in SVG: real libraries have padding, second pictures and camera makers' trailers there.

What is accepted, and how deep :func:`check` looks:

| format | to its end | how |
|---|---|---|
| JPEG, MPO | yes | segments to the first scan, then the end marker; later pictures of an MPO are a trailer |
| PNG, APNG | yes | every chunk, the checksum of those with the picture, and whether its pixels can be in them |
| GIF | yes | every block to the trailer |
| WebP | yes | RIFF size, every chunk, the pictures' headers |
| SVG | yes | tags to the end of the root element; not whether it is well-formed; up to 64 MB |
| SVGZ | yes | gzip checksum, then as SVG (serve it with `Content-Encoding: gzip`) |
| AVIF, HEIC, HEIF | yes | boxes; a last box without a length hides a cut |
| JPEG XL | container | boxes; of a bare code stream (FF 0A) only the signature: no cut can be told |
| JPEG 2000 | yes | boxes, tile-parts, end marker |
| TIFF, BigTIFF, DNG, JPEG XR | yes | every directory; all strips and tiles inside the file |
| BMP | yes | rows; compressed without a size: header only |
| ICO, CUR, ICNS | yes | every entry inside the file |
| PSD, PSB | yes | sections and rows; ZIP-compressed: header only |
| QOI | yes | end marker |
| PBM, PGM, PPM, PAM, PFM | raw ones | samples counted; plain ones (P1, P2, P3) only roughly |
| DDS | first surface | later mipmaps are a trailer; DX10 formats: header only |
| SGI, DIB, MSP, SPIDER, BLP | yes | rows, or the table of where they lie |
| TGA | yes | the footer (TGA 2.0); without one it cannot be told from anything else, and is not accepted |
| PCX | yes | packed rows; above 4 MB the header only |
| XBM | yes | all of its source |
| IM | roughly | the least that the size asks for |

Not accepted: formats without a usable signature (Palm, WMF); EPS and PDF, which are documents; scientific
containers (FITS, BUFR, GRIB, HDF5). `checks: length` copies those.

What no structure shows: a JPEG with flipped bits or a hole in its coded data, or one spliced from a cut
copy and a whole one; `decode` finds some of these, a digest in the manifest finds all.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from ferry.core import ErrorClass, ObjectError
from ferry.images import diagnose, isobmff, rare, raster, slices, svg, web
from ferry.images.web import Data, Kind

__all__ = ["KINDS", "Data", "Kind", "check_image", "decode_image", "sniff"]

_JPEG, _PNG, _GIF = Kind("JPEG", "jpg", "image/jpeg"), Kind("PNG", "png", "image/png"), Kind("GIF", "gif", "image/gif")
_TIFF, _JP2 = Kind("TIFF", "tif", "image/tiff"), Kind("JPEG 2000", "jp2", "image/jp2")
_JXL = Kind("JPEG XL", "jxl", "image/jxl")
_SVG, _SVGZ = Kind("SVG", "svg", "image/svg+xml"), Kind("SVGZ", "svgz", "image/svg+xml")
_WEBP, _BMP = Kind("WebP", "webp", "image/webp"), Kind("BMP", "bmp", "image/bmp")

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
    (b"\xff\x4f\xff\x51", Kind("JPEG 2000 code stream", "j2k", "image/j2c")),
    (b"8BPS\0\x01", Kind("PSD", "psd", "image/vnd.adobe.photoshop")),
    (b"8BPS\0\x02", Kind("PSB", "psb", "image/vnd.adobe.photoshop")),
    (b"icns", Kind("ICNS", "icns", "image/icns")),
    (b"DDS ", Kind("DDS", "dds", "image/vnd-ms.dds")),
    (b"qoif", Kind("QOI", "qoi", "image/qoi")),
)
_ICONS = {1: Kind("ICO", "ico", "image/vnd.microsoft.icon"), 2: Kind("CUR", "cur", "image/vnd.microsoft.icon")}
_HEIFS = {
    "AVIF": Kind("AVIF", "avif", "image/avif"),
    "HEIC": Kind("HEIC", "heic", "image/heic"),
    "HEIF": Kind("HEIF", "heif", "image/heif"),
}
_PBM, _PGM = Kind("PBM", "pbm", "image/x-portable-bitmap"), Kind("PGM", "pgm", "image/x-portable-graymap")
_PPM, _PFM = Kind("PPM", "ppm", "image/x-portable-pixmap"), Kind("PFM", "pfm", "image/x-portable-floatmap")
_PAM = Kind("PAM", "pam", "image/x-portable-arbitrarymap")
_PNMS = dict(zip(b"1234567fF", (_PBM, _PGM, _PPM, _PBM, _PGM, _PPM, _PAM, _PFM, _PFM), strict=True))

QUICK_BYTES = 256 * 1024
_QUICK = frozenset({"JPEG", "PNG", "WebP", *_HEIFS})
_RARE = {
    "TGA": Kind("TGA", "tga", "image/x-tga"),
    "PCX": Kind("PCX", "pcx", "image/vnd.zbrush.pcx"),
    "SGI": Kind("SGI", "sgi", "image/x-sgi"),
    "XBM": Kind("XBM", "xbm", "image/x-xbitmap"),
    "BLP": Kind("BLP", "blp", "image/x-blp"),
    "DIB": Kind("DIB", "dib", "image/bmp"),
    "IM": Kind("IM", "im", "image/x-labeye-im"),
    "MSP": Kind("MSP", "msp", "image/x-msp"),
    "SPIDER": Kind("SPIDER", "spider", "image/x-spider"),
}

KINDS: frozenset[Kind] = frozenset(
    {kind for _, kind in _BY_START}
    | set(_RARE.values())
    | {_WEBP, _BMP, _SVG, _SVGZ, *_ICONS.values(), *_HEIFS.values(), *_PNMS.values()}
)


def sniff(data: Data) -> Kind | None:
    """The kind of image that a body begins as, by its signature alone; None for all that is no image."""
    head = data[:32]
    for start, kind in _BY_START:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return _WEBP if head[8:12] == b"WEBP" else None
    if head[4:8] == b"ftyp":
        name = isobmff.heif_name(data)
        return _HEIFS[name] if name else None
    # a TGA file may begin as an icon does, with a count of zero
    if len(head) >= 22 and head[:2] == b"\0\0" and head[2] in _ICONS and head[3] == head[9] == 0 != head[4] + head[5]:
        return _ICONS[head[2]]
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in raster.BMP_HEADERS:
        return _BMP
    if head[:1] == b"P" and len(head) > 3 and head[1] in _PNMS and head[2:3].isspace():
        expected = b"WHDMTE#" if head[1:2] == b"7" else b" \t\r\n#0123456789"
        return _PNMS[head[1]] if head[3] in expected else None
    if head[:2] == b"\x1f\x8b":
        inside = svg.gunzip_head(data)
        return _SVGZ if inside is not None and svg.is_svg(inside) else None
    if head[:1] in b"<\xef\xff\xfe\0 \t\r\n" and svg.is_svg(data):
        return _SVG
    name = rare.rare_name(data)
    return _RARE[name] if name else None


def is_quick(data: Data) -> bool:
    """Whether :func:`check` takes a few milliseconds at most, whatever the body holds.

    | body | quick |
    |---|---|
    | over 256 KiB | no |
    | JPEG, PNG, WebP, AVIF, HEIC, HEIF | yes: each step of the walk moves on by some bytes |
    | not an image by its signature | yes: only its start is looked at |
    | GIF, SVG, SVGZ, TIFF, all others | no: a step may be one byte, unpack, or lead back |
    """
    if len(data) > QUICK_BYTES:
        return False
    kind = sniff(data)
    return kind is None or kind.name in _QUICK


def check_image(data: Data) -> Kind:
    """The kind of a body that is an image from its signature to its end (level `image`).

    Raises ObjectError: ``truncated`` when the structure ends early, ``not_image`` when it is wrong or
    the body is something else, ``too_large`` for a compressed drawing past its limit.
    """
    kind = sniff(data)
    if kind is None:
        _refuse(data)
    try:
        with slices.time_limit(kind.name, slices.CHECK_S):
            _walk(data, kind)
    except (IndexError, struct.error, OverflowError):  # a walk read past the end
        raise web.truncated(kind.name, "its structure is complete") from None
    return kind


def _walk(data: Data, kind: Kind) -> None:
    match kind.name:
        case "JPEG":
            web.jpeg(data)
        case "PNG":
            web.png(data)
        case "WebP":
            web.webp(data)
        case "GIF":
            web.gif(data)
        case "SVG":
            svg.svg(data)
        case "SVGZ":
            svg.svg(svg.gunzip(data))
        case "AVIF" | "HEIC" | "HEIF":
            isobmff.heif(data, kind.name)
        case "JPEG XL":
            isobmff.jxl(data, kind.name)
        case "JPEG 2000":
            isobmff.jp2(data, kind.name)
        case "JPEG 2000 code stream":
            isobmff.j2k(data, kind.name)
        case "TIFF" | "JPEG XR":
            raster.tiff(data, kind.name)
        case "BMP":
            raster.bmp(data)
        case "ICO" | "CUR":
            raster.ico(data, kind.name)
        case "ICNS":
            raster.icns(data)
        case "PSD" | "PSB":
            raster.psd(data)
        case "DDS":
            raster.dds(data)
        case "QOI":
            raster.qoi(data)
        case name if name in _RARE:
            rare.rare(data, name)
        case _:
            raster.pnm(data, kind.name)


def _refuse(data: Data) -> NoReturn:
    """Say what a body without an image's signature is, and what to do when it is wanted all the same."""
    if len(data) == 0:
        raise ObjectError(ErrorClass.NOT_IMAGE, "the body is empty (zero bytes)")
    noun = diagnose.what(data)
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
        f"not an image of a known format (it begins with {start}); `checks: length` copies any kind of file",
    )


def load_decoders() -> None:
    """Loads Pillow, which takes 0.2 s and holds Python's lock for a part of it: not while rows move.

    Only for level `decode`: it costs memory and start-up time that the other levels need not pay.
    """
    import ferry.images.decode  # noqa: F401


def decode_image(data: Data, kind: Kind) -> None:
    """Decode every pixel of every frame of a body that passed :func:`check` (level `decode`). Blocks.

    Raises ObjectError: ``truncated``, ``not_image``, ``too_large``. See :mod:`ferry.images.decode`.
    """
    from ferry.images import decode

    decode.decode(data, kind)
