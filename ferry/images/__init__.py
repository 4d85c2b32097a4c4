"""Checks that a body is a complete image of the format that its signature says."""

from ferry.images.check import check_image, is_quick, kind_of_type, lesser_check, level_of, sniff
from ferry.images.decode import decode_image
from ferry.images.diagnose import describe
from ferry.images.web import Kind

__all__ = [
    "Kind",
    "check_image",
    "decode_image",
    "describe",
    "is_quick",
    "kind_of_type",
    "lesser_check",
    "level_of",
    "sniff",
]
