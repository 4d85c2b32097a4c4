"""The engine: plan, transfer, ledger. It imports no Prefect and reads no environment."""

import os

__version__ = "0.1.0"

# Read by Arrow when it is loaded. Its own allocator keeps a heap for each thread that ever wrote a file: 50 MB.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
