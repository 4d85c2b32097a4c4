"""`python -m tests.stores.table`: runs the contract suite and prints what each server did, as a Markdown table."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from tests.stores.test_contract import SERVERS


class Answers:
    """Collects what the tests told, by question and server. A plugin of pytest."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and (told := dict(report.user_properties)):
            server = str(told.pop("server"))
            for question, answer in told.items():
                self.found.setdefault(question, {})[server] = str(answer)

    def markdown(self) -> str:
        """Returns the table: a line for each question, a column for each server that ran."""
        names = [each.name for each in SERVERS if any(each.name in answers for answers in self.found.values())]
        lines = [["", *names], ["---"] * (len(names) + 1)]
        lines += [[question, *(answers.get(name, "") for name in names)] for question, answers in self.found.items()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    answers = Answers()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(["-n", "0", str(Path(__file__).with_name("test_contract.py"))], plugins=[answers])
    print(answers.markdown())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
