"""`ferry prove`: verify the destination, and write a proof that can be checked without Ferry."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ferry.core import UserError
from flows.cli import local_run
from flows.cli.output import JsonFlag, print_json
from flows.running import signals
from tasks.job_file import load_job


def prove(
    job_file: Path,
    *,
    out: Annotated[Path | None, Parameter(help="Also write the proof into this folder, which is new or empty.")] = None,
    sign: Annotated[Path | None, Parameter(help="Sign it with this private key of ssh or minisign.")] = None,
    list_: Annotated[
        bool, Parameter(name="--list", negative="", help="Compare ETags and sizes of a listing. No object is read.")
    ] = False,
    sample: Annotated[
        str | None, Parameter(help="Read objects drawn at random: a share such as `1%`, or a count.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Draw the sample with this seed again.")] = None,
    json_: JsonFlag = False,
) -> int:
    """Verify the destination, and write a proof that can be checked without Ferry."""
    with signals.ended_by_the_system():
        from ferry.proof import signer_for
        from ferry.reconcile import check_choice
        from ferry.state import read_plan
        from flows.cli import terminal
        from flows.cli.verify import verify_here

    check_choice(list_, sample, seed)
    signer = signer_for(sign) if sign else None
    target = _new_folder(out) if out else None
    job = load_job(job_file)
    state = local_run.state_to_read(job, job_file)
    if read_plan(state) is None:
        raise UserError(f"{job.name} never ran, so there is nothing to prove; start with `ferry run {job_file}`")
    local_run.refuse_second_run(job)
    code, end, _ = verify_here(job, job_file, as_json=json_, list_only=list_, sample=sample, seed=seed, proof=True)
    from flows import verify as flow

    if flow.made_proof is None:
        if json_:
            print_json({"error": str(end), "exit_code": code})
        terminal.error(str(end))
        return code
    made = flow.made_proof.name
    signature = _deliver(state, made, target, signer)
    if json_:
        print_json(
            {
                "exit_code": code, "ok": code == 0, "message": str(end), "state": f"{state.uri}/{made}",
                "folder": str(out) if out else None, "signature": signature,
            }
        )  # fmt: skip
    else:
        terminal.out.print(terminal.shown(str(end)))
        terminal.out.print(f"proof: {terminal.shown(str(out or f'{state.uri}/{made}'))}")
    return code


def _new_folder(out: Path) -> Path:
    """Returns the folder's absolute path. Raises UserError unless it can be made or is empty."""
    target = out.absolute().resolve()  # now: a Prefect server changes the working directory. A link stays one
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out}: it exists and is not an empty folder; name a new one")
    if not target.parent.is_dir():
        raise UserError(f"--out {out}: the folder {target.parent} does not exist; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: the folder {target.parent} cannot be written to; name another one")
    return target


def _deliver(state: Any, name: str, target: Path | None, signer: Any) -> str | None:
    """Signs the proof, copies it to ``target``, and returns the signature's name.

    The folder appears complete or not at all: it is built beside its place and renamed. Raises UserError.
    """
    from ferry.proof import TAGS, copy_proof, sign

    if target is None and signer is None:
        return None
    with _beside(target) as built:
        copy_proof(state, name, built)
        signature = None
        if signer is not None:
            try:
                signature = sign(signer, built / TAGS)
            except UserError as error:
                raise UserError(f"{error}. The proof is in the state, unsigned: {state.uri}/{name}") from None
            state.write(f"{name}/{signature.name}", signature.read_bytes())
        if target is not None:
            built.chmod(0o755)
            built.replace(target)
    return signature.name if signature else None


@contextlib.contextmanager
def _beside(target: Path | None) -> Iterator[Path]:
    """Yields a new folder beside ``target``, or a temporary one. Raises UserError if the disk refuses."""
    where = target.parent if target else None
    try:
        with tempfile.TemporaryDirectory(prefix=".ferry-proof-", dir=where, ignore_cleanup_errors=True) as name:
            built = Path(name) / "proof"
            built.mkdir()
            yield built
    except OSError as exc:
        raise UserError(f"cannot write the proof: {exc.strerror or exc}. It is in the state") from None
