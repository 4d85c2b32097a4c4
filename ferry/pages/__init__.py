"""HTML pages in one file each, for people who have no Ferry: the frame, the styles, and macros for what they show."""

from ferry.pages.environment import CLIPPED, percent, render

__all__ = ["CLIPPED", "percent", "render"]
