"""All single changes to a module's source that a test should notice, in Python and in the SQL that its strings hold.

mutmut and cosmic-ray change Python alone; half of what Ferry decides is SQL.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Change(NamedTuple):
    """Replaces ``source[start:end]``, both in characters."""

    line: int
    start: int
    end: int
    new: str
    what: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]


_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
_SQL = re.compile(r"\b(SELECT|WHERE|JOIN|QUALIFY)\b|\b(IS NULL|IS NOT NULL)\b")
_SQL_CHANGES = [
    (re.compile(r"\bAND\b"), "OR"),
    (re.compile(r"\bOR\b(?! REPLACE)"), "AND"),
    (re.compile(r"\bIS NOT NULL\b"), "IS NULL"),
    (re.compile(r"\bIS NULL\b"), "IS NOT NULL"),
    (re.compile(r"\bANTI JOIN\b"), "SEMI JOIN"),
    (re.compile(r"\bSEMI JOIN\b"), "ANTI JOIN"),
    (re.compile(r"\bNOT IN\b"), "IN"),
    (re.compile(r"(?<!NOT )\bIN \("), "NOT IN ("),
    (re.compile(r"\bDESC\b"), "ASC"),
    (re.compile(r"(?<= )=(?= )"), "<>"),
    (re.compile(r"(?<= )<>(?= )"), "="),
    (re.compile(r"(?<= )<(?= )"), "<="),
    (re.compile(r"(?<= )>(?= )"), ">="),
    (re.compile(r"(?<= )<=(?= )"), "<"),
    (re.compile(r"(?<= )>=(?= )"), ">"),
]
_TOLD = {"tell", "log", "warning", "info", "debug", "print"}  # what people read is not what decides


def changes(source: str) -> list[Change]:
    """Every change, in the order of the source."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found))


class _Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = source.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self.found: list[Change] = []

    def _at(self, line: int, column: int) -> int:
        """ast counts columns in bytes of UTF-8."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _add(self, start: int, end: int, new: str, what: str) -> None:
        line = self._source.count("\n", 0, start) + 1
        self.found.append(Change(line, start, end, new, what))

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str, what: str) -> None:
        start, end = self._span(left)[1], self._span(right)[0]
        if (match := re.search(rf"(?<![\w<>=!]){re.escape(old)}(?![\w<>=])", self._source[start:end])) is not None:
            self._add(start + match.start(), start + match.end(), new, what)

    def _docless(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        body = node.body
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        for each in body:
            self.visit(each)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                self.visit(default)

    def visit_Module(self, node: ast.Module) -> None:
        self._docless(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._docless(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._docless(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._docless(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(*self._span(node), "pass", "no raise")

    def visit_Assert(self, node: ast.Assert) -> None:
        """For mypy."""

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in _TOLD:
                return
            self._add(*self._span(node), "pass", "no call")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if not isinstance(node.test, ast.Compare):
            for new in ("True", "False"):
                self._add(*self._span(node.test), new, f"if {new}")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old, new = _COMPARISONS[type(op)]
            self._between(left, right, old, new, f"{old} -> {new}")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new, f"{old} -> {new}")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _ARITHMETIC:
            old, new = _ARITHMETIC[type(node.op)]
            self._between(node.left, node.right, old, new, f"{old} -> {new}")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start = self._span(node)[0]  # and an operand in parentheses begins after them
            self._add(start, start + len("not"), "", "no not")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(*self._span(node), str(not node.value), f"{node.value} -> {not node.value}")
        elif isinstance(node.value, int | float) and not isinstance(node.value, complex):
            self._add(*self._span(node), repr(node.value + 1), "+ 1")
        elif isinstance(node.value, str):
            self._sql(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._sql(node)

    def _sql(self, node: ast.Constant | ast.JoinedStr) -> None:
        start, end = self._span(node)
        text = self._source[start:end]
        if not _SQL.search(text):
            return
        holes = [match.span() for match in re.finditer(r"\{[^{}]*\}", text)] if isinstance(node, ast.JoinedStr) else []
        for pattern, new in _SQL_CHANGES:
            for match in pattern.finditer(text):
                if not any(low <= match.start() < high for low, high in holes):
                    self._add(start + match.start(), start + match.end(), new, f"SQL: {match[0]} -> {new}")


def shown(source: str, change: Change) -> Iterator[str]:
    """The lines before and after, as a person reads them."""
    before, after = source.splitlines(), change.apply(source).splitlines()
    last = source.count("\n", 0, change.end) + 1
    grown = len(after) - len(before)
    yield from (f"- {line.strip()}" for line in before[change.line - 1 : last])
    yield from (f"+ {line.strip()}" for line in after[change.line - 1 : last + grown])
