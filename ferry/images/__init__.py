"""The answer to one question: is this body the image that it claims to be?"""

from ferry.images.check import check_image, is_quick, kind_of_type, lesser_check, level_of, sniff
from ferry.images.decode import decode_image
from ferry.images.web import Kind

__all__ = ["Kind", "check_image", "decode_image", "is_quick", "kind_of_type", "lesser_check", "level_of", "sniff"]
