"""Small generated images for tests and the demo: cheap, deterministic, different for each seed.

One version of Pillow gives the same bytes for the same format, seed and size; another version may give others. The
mean size is 2 to 11 KB, by format. Each 50th seed gives a larger image of up to 125 KB.
"""

from __future__ import annotations

import io
import random

from PIL import Image

FORMATS = ("jpeg", "png", "webp", "gif", "svg")
EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif", "svg": "svg"}
MIME = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "svg": "image/svg+xml",
}

_GRID = (16, 12)  # random pixels to scale up: a smooth picture from 576 random bytes
_GIF_COLOURS = 16


def make_image(fmt: str, seed: int, width: int | None = None, height: int | None = None) -> bytes:
    """Returns an image of ``width`` x ``height`` pixels; by default, the seed decides the size.

    Raises ValueError if ``fmt`` is not one of FORMATS.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown image format `{fmt}`; known are {', '.join(FORMATS)}")
    scale = (2 if fmt == "png" else 4) * (4 if seed % 50 == 0 else 1)  # a gradient's PNG is six times a JPEG
    width = 40 * scale if width is None else width
    height = 30 * scale if height is None else height
    rng = random.Random(f"{fmt}:{seed}")
    if fmt == "svg":
        return _svg(rng, seed, width, height)
    out = io.BytesIO()
    if fmt == "gif":
        _palette_noise(rng, width, height).save(out, "GIF")
    elif fmt == "jpeg":
        _gradient(rng, width, height).save(out, "JPEG", quality=80)
    elif fmt == "png":
        _gradient(rng, width, height).save(out, "PNG", compress_level=1)
    else:
        _gradient(rng, width, height).save(out, "WEBP", quality=80, method=0)  # method 0 is four times as fast
    return out.getvalue()


def _gradient(rng: random.Random, width: int, height: int) -> Image.Image:
    small = Image.frombytes("RGB", _GRID, rng.randbytes(_GRID[0] * _GRID[1] * 3))
    return small.resize((width, height), Image.Resampling.BILINEAR)


def _palette_noise(rng: random.Random, width: int, height: int) -> Image.Image:
    """Returns coarse noise in 16 random colours. Quantising an RGB picture would cost ten times as much."""
    size = (max(1, width // 2), max(1, height // 2))
    pixels = bytes(b % _GIF_COLOURS for b in rng.randbytes(size[0] * size[1]))
    image = Image.frombytes("P", size, pixels)
    image.putpalette(rng.randbytes(_GIF_COLOURS * 3))
    return image.resize((width, height), Image.Resampling.NEAREST)


def _svg(rng: random.Random, seed: int, width: int, height: int) -> bytes:
    shapes = "\n".join(
        f'  <circle cx="{rng.randrange(width)}" cy="{rng.randrange(height)}" r="{rng.randrange(2, 30)}" '
        f'fill="#{rng.randrange(1 << 24):06x}" fill-opacity="0.{rng.randrange(3, 10)}"/>'
        for _ in range(rng.randrange(20, 60))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"  <title>product {seed}</title>\n{shapes}\n</svg>\n"
    ).encode()
