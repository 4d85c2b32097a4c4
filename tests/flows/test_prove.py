"""`ferry prove` writes a folder that other tools accept, and nothing where it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from demo.origin import Origin
from tests.flows.project import Project, serve
from tests.support.proofs import bagit, sums

pytestmark = pytest.mark.slow


def test_a_proof_of_a_run(project: Project, origin: Origin) -> None:
    """Into the state and where asked, signed; incomplete once an object is altered; a taken folder is refused."""
    rows, images = serve(origin, 12)
    project.manifest(rows)
    assert "never ran" in project.ferry("prove", "job.yaml", "--out", "proof").expect(2).stderr
    assert not (project.folder / "proof").exists()
    project.ferry("run", "job.yaml").expect(0)
    key, out = project.folder / "key", project.folder / "proof"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    said = project.ferry("prove", "job.yaml", "--out", "proof", "--sign", "key", "--json").expect(0).json
    assert said["message"].startswith("The proof is complete. It is in the state as proofs/")
    assert (said["ok"], said["signature"]) == (True, "tagmanifest-sha256.txt.sig")
    (kept,) = (project.state / "proofs").iterdir()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }
    assert not [path.name for path in project.folder.iterdir() if path.name.startswith(".ferry-proof")]
    bag = shutil.copytree(out, project.folder / "bag")
    for name, body in project.stored().items():
        (bag / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (bag / "data" / name).write_bytes(body)
    assert (bagit(bag), sums(bag), len(images)) == ("", "", 12)

    for arguments, words in (
        (["--out", "proof"], "is not an empty folder"),
        (["--out", "no/such"], "does not exist"),
        (["--sign", "products.csv"], "neither a key of ssh"),
        (["--list", "--sample", "1%"], "cannot be combined with a sample"),
    ):
        assert words in project.ferry("prove", "job.yaml", *arguments).expect(2).stderr
    assert len(list((project.state / "proofs").iterdir())) == 1

    changed = min(project.stored_keys())
    project.client().put_object(Bucket=project.bucket, Key=project.prefix + changed, Body=b"other")
    ended = project.ferry("prove", "job.yaml", "--out", "later").expect(1)
    assert "The proof is incomplete: 1 row pending" in ended.stdout
    told = json.loads((project.folder / "later" / "proof.json").read_text())
    assert (told["verdict"], told["rows"]["pending"], told["verification"]["altered"]) == ("incomplete", 1, 1)
    assert told["origin"]["prefect_flow_run"]


def test_two_keys_with_one_public_address(project: Project, origin: Origin) -> None:
    """A sentence, exit code 2, and no proof."""
    bodies = {f"/{folder}/1.jpg": serve(origin, 2)[1] for folder in "ab"}
    urls = [origin.add(path, next(iter(images.values()))) for path, images in bodies.items()]
    project.manifest([{"url": url} for url in urls])
    project.job(public_url="https://new.example/{key.name}")
    project.ferry("run", "job.yaml").expect(0)
    assert "one address, https://new.example/1.jpg" in project.ferry("prove", "job.yaml").expect(2).text
    assert not (project.state / "proofs").exists()
