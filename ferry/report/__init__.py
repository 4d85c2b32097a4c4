"""The report of a job, for the people who sign a migration off: one HTML file that needs nothing else."""

from ferry.report.page import DRAWN_ROWS, REPORT, make_report, report_name, write_report

__all__ = ["DRAWN_ROWS", "REPORT", "make_report", "report_name", "write_report"]
