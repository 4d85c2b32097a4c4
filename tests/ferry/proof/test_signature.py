"""Signatures by ssh-keygen and minisign, which verify them, and refuse them once a byte has changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ferry.core.errors import UserError
from ferry.proof.signature import sign, signer_for

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen: install openssh-client")
needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign: `make signers` installs it")


def ssh_key(folder: Path, passphrase: str = "") -> Path:
    key = folder / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "mover@example", "-f", str(key)]
    subprocess.run(command, check=True)
    return key


@needs_ssh
def test_ssh(tmp_path: Path) -> None:
    """`ssh-keygen -Y verify` accepts it for its signer, and not for another file."""
    key, signed = ssh_key(tmp_path), tmp_path / "tagmanifest-sha256.txt"
    signed.write_text("one\n")
    signature = sign(signer_for(key), signed)
    assert signature.name == "tagmanifest-sha256.txt.sig"
    (tmp_path / "signers").write_text(f"mover@example {(tmp_path / 'key.pub').read_text()}")
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        "signers",
        "-I",
        "mover@example",
        "-n",
        "ferry-proof",
        "-s",
        str(signature),
    ]
    assert subprocess.run(verify, cwd=tmp_path, input=b"one\n").returncode == 0
    assert subprocess.run(verify, cwd=tmp_path, input=b"One\n").returncode != 0


@needs_minisign
def test_minisign(tmp_path: Path) -> None:
    """`minisign -V` accepts it, and not for another file."""
    key, public, signed = tmp_path / "key", tmp_path / "key.pub", tmp_path / "tagmanifest-sha256.txt"
    subprocess.run(["minisign", "-G", "-W", "-p", str(public), "-s", str(key)], check=True, stdout=subprocess.DEVNULL)
    signed.write_text("one\n")
    signature = sign(signer_for(key), signed)
    assert signature.name == "tagmanifest-sha256.txt.minisig"
    verify = ["minisign", "-V", "-p", str(public), "-m", str(signed)]
    assert subprocess.run(verify).returncode == 0
    signed.write_text("One\n")
    assert subprocess.run(verify).returncode != 0


def test_keys_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a file of another kind, and a missing program are named."""
    with pytest.raises(UserError, match="No such file or directory"):
        signer_for(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="neither a key of ssh"):
        signer_for(tmp_path / "text")
    (tmp_path / "key").write_text("untrusted comment: minisign encrypted secret key\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="the program minisign is not installed"):
        signer_for(tmp_path / "key")


@needs_ssh
def test_a_signature_that_fails(tmp_path: Path) -> None:
    """The program's reason is in the sentence; an older signature does not stay."""
    key, signed = tmp_path / "key", tmp_path / "signed"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nbroken\n")
    key.chmod(0o600)
    signed.write_text("one\n")
    (tmp_path / "signed.sig").write_text("old")
    with pytest.raises(UserError, match="ssh-keygen failed: "):
        sign(signer_for(key), signed)
    assert not (tmp_path / "signed.sig").exists()
