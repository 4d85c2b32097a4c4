"""Signatures by existing tools with a key of the user's: ssh-keygen and minisign."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from ferry.core import UserError

NAMESPACE = "ferry-proof"  # of `ssh-keygen -Y`: a signature made for another purpose does not count
KEY_BYTES = 1 << 16


class Signer(NamedTuple):
    """A tool and a key file."""

    tool: str
    key: Path

    def command(self, path: Path) -> list[str]:
        """Returns the command that signs a file."""
        if self.tool == "minisign":
            return ["minisign", "-S", "-s", str(self.key), "-m", str(path)]
        return ["ssh-keygen", "-Y", "sign", "-f", str(self.key), "-n", NAMESPACE, str(path)]

    def signature(self, path: Path) -> Path:
        """Returns the path of the file's signature."""
        return path.with_name(path.name + (".minisig" if self.tool == "minisign" else ".sig"))


def signer_for(key: Path) -> Signer:
    """Returns the signer of a key file, by its first bytes. Raises UserError if the key or the tool cannot be used.

    | the file begins with | tool |
    |---|---|
    | `-----BEGIN OPENSSH PRIVATE KEY-----` or another PEM key | ssh-keygen |
    | `ssh-ed25519 `, `ecdsa-`, `sk-`: a public key, whose private key ssh-agent holds | ssh-keygen |
    | `untrusted comment:` | minisign |
    """
    try:
        with key.open("rb") as file:
            start = file.read(KEY_BYTES)
    except OSError as exc:
        raise UserError(f"--sign {key}: {exc.strerror}. Name the file of a private key of ssh or minisign") from None
    if start.startswith(b"untrusted comment:"):
        tool = "minisign"
    elif start.startswith((b"-----BEGIN ", b"ssh-", b"ecdsa-", b"sk-")):
        tool = "ssh-keygen"
    else:
        raise UserError(
            f"--sign {key}: it is neither a key of ssh (`ssh-keygen -t ed25519 -f KEYFILE`) nor of minisign "
            "(`minisign -G -s KEYFILE`)"
        )
    if shutil.which(tool) is None:
        package = {"minisign": "minisign", "ssh-keygen": "openssh-client"}[tool]
        raise UserError(f"--sign {key}: the program {tool} is not installed; Debian has it in the package {package}")
    return Signer(tool, key.absolute())


def sign(signer: Signer, path: Path) -> Path:
    """Signs a file and returns the path of its signature. The tool asks for a passphrase. Raises UserError."""
    target = signer.signature(path)
    target.unlink(missing_ok=True)
    # minisign asks for the passphrase on its standard output; that of `ferry prove --json` is a document
    done = subprocess.run(signer.command(path), stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode or not target.is_file():
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--sign {signer.key}: {signer.tool} failed: {why}")
    return target
