"""Proofs: what is at the destination, in a form that can be checked without Ferry."""

from ferry.proof.bag import TAGS
from ferry.proof.document import Verification
from ferry.proof.objects import Readings
from ferry.proof.signature import Signer, sign, signer_for
from ferry.proof.write import PROOFS, Proof, copy_proof, write_proof

__all__ = [
    "PROOFS",
    "TAGS",
    "Proof",
    "Readings",
    "Signer",
    "Verification",
    "copy_proof",
    "sign",
    "signer_for",
    "write_proof",
]
