"""Nothing that Ferry reads is code: no pickle, no unsafe YAML, no eval, no shell; state files are data."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tasks import job_file

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("flows", "tasks", "ferry", "demo", "deployments") for path in (ROOT / folder).rglob("*.py")
)

# SVG, whose entities are refused (tests/ferry/images/test_check.py).
# Answers of stores: a document with a DTD is refused before it is read (tests/ferry/storage/test_listings.py,
# test_azure.py).
ALLOWED = {
    "ferry/images/svg.py": {"xml.parsers", "xml.parsers.expat"},
    "ferry/storage/s3/xml.py": {"xml.etree", "xml.etree.ElementTree"},
    "ferry/storage/azure/documents.py": {"xml.etree", "xml.etree.ElementTree"},
    "ferry/storage/xml_text.py": {"xml.parsers", "xml.parsers.expat"},
}
# What turns data into code, or reads formats that can name files, entities or classes.
MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "copyreg",
    "dbm", "xml.etree", "xml.dom", "xml.sax.expatreader", "xml.parsers", "xmlrpc", "lxml", "code", "codeop",
}  # fmt: skip
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all", "pandas.read_pickle", "numpy.load", "torch.load",
    "tempfile.mktemp", "pd.read_pickle", "np.load", "xml.sax.parse", "xml.sax.parseString", "shutil.unpack_archive",
}  # fmt: skip
# `re.compile` is no `compile`; a call is looked at by its whole name.


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def problems(text: str, name: str) -> list[str]:
    """What is forbidden in a source file."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [
            f"{name}:{node.lineno}: imports {module}"  # type: ignore[attr-defined]
            for module in names
            if module not in ALLOWED.get(name, ())
            and any(module == bad or module.startswith(bad + ".") for bad in MODULES)
        ]
    for called, node in calls(tree):
        if called in CALLS:
            found.append(f"{name}:{node.lineno}: {called}()")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "yaml.load" and given.get("Loader") not in ("_Loader", "yaml.SafeLoader", "yaml.CSafeLoader"):
            found.append(f"{name}:{node.lineno}: yaml.load without a safe loader")
        if given.get("shell", "False") != "False":
            found.append(f"{name}:{node.lineno}: a shell")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{name}:{node.lineno}: allow_pickle")
        if "PickleSerializer" in called or "'pickle'" in given.get("result_serializer", ""):
            found.append(f"{name}:{node.lineno}: pickle as a serializer")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_makes_code_of_data(path: Path) -> None:
    """No module of Ferry's imports what unpickles, evaluates, calls a shell, or reads YAML and XML unsafely."""
    assert problems(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import xml.etree.ElementTree as et", "eval('1')", "x = exec(y)",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)", "import yaml\nyaml.load(x)", "subprocess.run(x, shell=True)",
        "import os\nos.system('x')", "np.load(x, allow_pickle=True)", "PickleSerializer()",
        "task(result_serializer='pickle')", "from xml import etree",
    ],
)  # fmt: skip
def test_the_search_finds_them(line: str) -> None:
    """Each kind is found where it is there."""
    assert problems(line, "x.py")


def test_job_files_are_loaded_safely() -> None:
    """The one loader of YAML makes plain values, and no tag of Python's is known to it."""
    assert issubclass(job_file._Loader, yaml.SafeLoader)
    tags = [tag for tag in job_file._Loader.yaml_constructors if tag and "python" in tag]
    assert tags == []
    assert set(job_file._Loader.yaml_constructors) == set(yaml.SafeLoader.yaml_constructors)
    assert not job_file._Loader.yaml_multi_constructors


def test_decoders_see_what_was_sniffed() -> None:
    """Pillow is told the one format that the signature says, and tries no other."""
    text = (ROOT / "ferry" / "images" / "decode_child.py").read_text()
    opens = [node for called, node in calls(ast.parse(text)) if called.endswith("Image.open")]
    assert opens
    for node in opens:
        assert {word.arg: ast.unparse(word.value) for word in node.keywords} == {"formats": "[decoder]"}
    others = [path for path in SOURCES if "ferry" in path.parts and path.name != "decode_child.py"]
    assert not [path for path in others if "Image.open" in path.read_text()]
