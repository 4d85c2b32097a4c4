"""`ferry init` and `ferry schema`: job files, and what editors know of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import terminal
from flows.cli.job_file import draft
from flows.cli.output import JsonFlag, print_json


def init(
    path: str = "job.yaml",
    destination: str | None = None,
    *,
    out: Annotated[Path | None, Parameter(help="The job file to write for a manifest. Default: job.yaml.")] = None,
    json_: JsonFlag = False,
) -> int:
    """Write a job file: for a manifest and a destination, or a commented example."""
    if draft.is_manifest(path) != (destination is not None):
        raise UserError(
            f"`{path}` is a manifest, and needs its destination: ferry init {shlex.quote(path)} s3://new-bucket/prefix/"
            if destination is None
            else f"`{path}` is not a manifest: name a file such as products.csv, or a location such as s3://old-bucket/images/"
        )
    file = Path(path) if destination is None else out or Path("job.yaml")
    draft.check_is_new(file)
    text = draft.draft(file, path if destination is not None else None, destination)
    editors = file.parent / draft.SCHEMA_FILE
    try:
        file.write_text(text, encoding="utf-8")
        editors.parent.mkdir(exist_ok=True)
        editors.write_text(json.dumps(draft.schema(), indent=1), encoding="utf-8")
    except OSError as exc:
        raise UserError(f"{exc.filename or file} cannot be written: {exc.strerror}") from None
    if json_:
        print_json({"file": str(file)})
    else:
        terminal.out.print(
            f"wrote {terminal.shown(file)}. Edit it, then run: ferry plan {terminal.shown(shlex.quote(str(file)))}"
        )
    return 0


def schema(*, json_: JsonFlag = False) -> int:
    """Print the JSON schema of job files, for editors and checks."""
    del json_  # it is JSON in any case
    print_json(draft.schema())
    return 0
