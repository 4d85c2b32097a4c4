"""Values of XML documents with many small elements, cut out of their text.

A page of a listing has thousands of objects with up to 22 elements, of which a few are needed. A tree of elements takes
twice the time, a third of it in Python's garbage collector (`python -m benchmarks.providers`).
"""

from __future__ import annotations

import re
from xml.parsers import expat

_ENTITY = re.compile(r"&(?:#x([0-9A-Fa-f]+)|#([0-9]+)|(amp|lt|gt|quot|apos));")
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def plain_text(body: bytes, root: str) -> str:
    """Returns the text of a document in which each `<` is that of a tag, behind the declaration.

    Raises ValueError for one with a DTD, comments, CDATA or processing instructions, for one that is not well-formed,
    and for another name of the root element. A DTD's entities are not expanded.
    """
    parser = expat.ParserCreate()

    def first(name: str, _: object) -> None:
        parser.StartElementHandler = None
        if name != root:
            raise ValueError

    parser.StartElementHandler = first
    parser.StartDoctypeDeclHandler = parser.CommentHandler = _refuse
    parser.StartCdataSectionHandler = parser.ProcessingInstructionHandler = _refuse
    try:
        parser.Parse(body, True)
    except expat.ExpatError as exc:
        raise ValueError from exc
    return body.decode("utf-8-sig")


def _refuse(*_: object) -> None:
    raise ValueError


def value_of(text: str, tag: str) -> str:
    """Returns the text of the first element with this tag (`<Key>`), or "" if there is none or it is empty."""
    value = text.partition(tag)[2].partition("<")[0]
    return _ENTITY.sub(_character, value) if "&" in value else value


def _character(entity: re.Match[str]) -> str:
    hexadecimal, decimal, name = entity.groups()
    return chr(int(hexadecimal, 16) if hexadecimal else int(decimal)) if name is None else _NAMED[name]
