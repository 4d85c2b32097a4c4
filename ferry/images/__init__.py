"""Is this body the image that it claims to be? Bytes in, a verdict out."""

from ferry.images.check import check_image, decode_image, is_quick, load_decoders, sniff
from ferry.images.web import Kind

__all__ = ["Kind", "check_image", "decode_image", "is_quick", "load_decoders", "sniff"]
