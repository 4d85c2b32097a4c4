"""A store on a small disk: `python -m tests.faults.small_store FOLDER`, inside `unshare --mount`.

Prints where it is as a line of JSON. `grow` on standard input makes the disk larger; anything else ends it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from demo.s3 import S3Server
from tests.faults.small_disk import mount

SIZE_MB = 40


def main(folder: Path) -> None:
    mount(folder, f"size={SIZE_MB}m")
    with S3Server(folder) as server:
        server.make_bucket("small")
        keys = [server.access_key, server.secret_key]
        print(json.dumps({"endpoint_url": server.endpoint_url, "keys": keys}), flush=True)
        while sys.stdin.readline() == "grow\n":
            mount(folder, f"remount,size={SIZE_MB * 5}m")
            print("grown", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
