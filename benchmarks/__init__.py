"""`make bench`: Ferry and other tools for the same work, on real servers, in one run.

These are not tests: pytest collects nothing here, and CI does not depend on the results.
"""
