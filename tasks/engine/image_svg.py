"""SVG at level `decode`: an XML parser that expands nothing, and whose memory and time are bounded by the body.

What is small and becomes large, each refused or left undone: entities; attributes that a DTD gives to every element
(`specified_attributes`); namespaces, whose whole address a parser writes before each name that belongs to them. What is
many, and stays in the parser's tables: names and attributes are counted, depth is bounded.

The parser holds Python's lock for as long as one tag takes, which may be ten seconds. A drawing that is not small is
therefore parsed by a process of its own (decode_process.py).
"""

from __future__ import annotations

from xml.parsers import expat

from tasks.engine import decode_process
from tasks.engine.errors import ObjectError
from tasks.engine.formats import cut, wrong
from tasks.engine.objects import ErrorClass
from tasks.engine.slices import Text, count

PARSE_BYTES = 1024**3  # of memory
MAX_SVG_MARKS = 2_000_000  # `<` and `=`: elements' ends and beginnings, and attributes; up to 200 bytes each
MAX_SVG_DEPTH = 2048  # as libxml2 has it
MAX_SVG_DEFAULTS = 500  # attributes that its DTD declares


def decode_svg(data: Text) -> None:
    """As :func:`parse_svg`; what is not small in another process. Blocks. Raises ObjectError."""
    if decode_process.is_for_a_process("SVG", len(data)):
        decode_process.decode(data, "SVG", PARSE_BYTES)
    else:
        parse_svg(data)


def parse_svg(data: Text) -> None:
    """Well-formed, the root is `svg`, and no entity is declared. Raises ObjectError."""
    if count(data, b"<", MAX_SVG_MARKS) + count(data, b"=", MAX_SVG_MARKS) > MAX_SVG_MARKS:
        raise ObjectError(
            ErrorClass.TOO_LARGE,
            f"an SVG with more than {MAX_SVG_MARKS:,} tags and attributes is not parsed; `checks: image` accepts it",
        )
    parser = expat.ParserCreate()
    parser.specified_attributes = True
    depth = declared = 0
    started = False

    def start(tag: str, _attributes: dict[str, str]) -> None:
        nonlocal started, depth
        depth += 1
        if not started and tag.rpartition(":")[2] != "svg":
            raise wrong("SVG", "its root element is not svg")
        started = True
        if depth > MAX_SVG_DEPTH:
            raise wrong("SVG", f"its elements lie more than {MAX_SVG_DEPTH:,} deep in each other")

    def end(_tag: str) -> None:
        nonlocal depth
        depth -= 1

    def entity(*_declaration: object) -> None:
        raise wrong("SVG", "it declares entities, which are not expanded; `checks: image` accepts it")

    def default(*_declaration: object) -> None:
        nonlocal declared
        declared += 1
        if declared > MAX_SVG_DEFAULTS:
            raise wrong("SVG", f"it declares more than {MAX_SVG_DEFAULTS:,} attributes")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.EntityDeclHandler = entity
    parser.AttlistDeclHandler = default
    try:
        parser.Parse(data, True)
    except expat.ExpatError as exc:
        if exc.code == expat.errors.codes[expat.errors.XML_ERROR_NO_MEMORY]:
            raise MemoryError from None
        if exc.code in _UNFINISHED:
            raise cut("SVG", "its XML is complete") from None
        raise wrong("SVG", f"its XML is not well-formed in line {exc.lineno} ({expat.ErrorString(exc.code)})") from None
    except (LookupError, ValueError):  # raised for an encoding that Python does not know or cannot map
        raise wrong("SVG", "it declares an unknown encoding") from None


_UNFINISHED = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
)
