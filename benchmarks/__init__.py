"""`make bench`: Ferry beside the tools that people use for the same work, on real servers, in one run.

No tests: pytest collects nothing here, and no result decides anything in CI.
"""
