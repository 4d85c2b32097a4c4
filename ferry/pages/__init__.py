"""HTML pages in one file each, for people who have no Ferry: the frame, the styles, and macros for what they show."""

from ferry.pages.environment import CLIPPED, render

__all__ = ["CLIPPED", "render"]
