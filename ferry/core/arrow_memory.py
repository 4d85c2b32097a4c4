"""Limits on the memory that Arrow takes beside its data."""

from __future__ import annotations

import importlib.abc
import os
import sys


def limit_arrow_memory(*, with_numpy: bool = False) -> None:
    """Load Arrow with the system's allocator and without NumPy and pandas, which Ferry does not need.

    Saves 40 MB after one small file (99 instead of 139, pyarrow 26), and more with each thread that writes files, since
    Arrow's own allocator keeps a heap for each. pyarrow imports NumPy if it is there, and pandas for its first array,
    to recognise their types. Both can be imported later, but without NumPy Arrow does not convert to its arrays:
    ``with_numpy`` is for a process that may run other code than Ferry's.

    Call it before anything imports pyarrow; does nothing after that.
    """
    if "pyarrow" in sys.modules:
        return
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # read when Arrow is loaded
    hidden = _Hidden({"pandas"} if with_numpy else {"numpy", "pandas"})
    sys.meta_path.insert(0, hidden)
    try:
        import pyarrow as pa
        import pyarrow.parquet

        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(importlib.abc.MetaPathFinder):
    """Has the import of some modules fail, if they are not loaded yet."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname in self._names:
            raise ModuleNotFoundError(f"{fullname} is not needed here", name=fullname)
