"""A directory as a store."""

from ferry.storage.directory.directory import Directory, walk
from ferry.storage.directory.files import FoldedName, Folder

__all__ = ["Directory", "FoldedName", "Folder", "walk"]
