# ruff: noqa: E501 (Markdown tables are one line a row)
"""Generator of docs/reference/job.md from the job model: `python docs/make_job_md.py`. A test fails if the page is outdated."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, WithJsonSchema
from pydantic_core import PydanticUndefined

from ferry.images.check import KINDS, level_of
from ferry.job.base import Model, key_docstrings
from ferry.job.model import Job
from ferry.job.templates import DEFERRED_FIELDS, SOURCE_FIELDS, Template, default_key, finish_key, source_field
from ferry.job.units import UNLIMITED_BYTES
from ferry.manifest.columns import AMBIGUOUS_NAMES, USUAL_NAMES

HEAD = """\
# Job reference

<!-- Generated from ferry/job/model.py by docs/make_job_md.py. Edit those files. -->

A job is the configuration of one migration: a YAML file for `ferry run`, the parameter `job` of the flow `migrate`, or
the form in Prefect's UI. An unknown key is an error that names the nearest known key. Three keys are required:

```yaml
name: product-images
manifest: products.csv
destination: s3://new-bucket/products/
```

An example with more keys:

```yaml
name: product-images
manifest: products.csv.gz
columns:
  id: article
source:
  url: https://img.old.example/{article}.jpg
  user_agent: "product-images migration, ops@shop.example"
  headers:
    Authorization: env:OLD_TOKEN
destination:
  uri: s3://new-bucket/products/
  region: eu-central-1
  credentials: profile:new
  cache_control: public, max-age=31536000
key: "{article}/{source.name}"
checks: image
on_existing: skip-same
failure_budget: 0.5%
```

Relative paths start at the job file's directory, in a deployment at the project's root.
"""

EQUAL_BYTES = """\
## Equal bytes

With `dedupe: true`, bytes that Ferry has stored for one row are not transferred again for others:

| the row | what Ferry does | saved |
|---|---|---|
| has a SHA-256 or MD5 in the manifest that a stored object of this job has | the server copies that object to the row's key | download and upload |
| turns out to have the bytes of a stored object when it is downloaded | the server copies that object to the row's key | upload |
| has the key of such an object: `{sha256}.{ext}`, or `{md5}.jpg` with a column `md5` | one object for all these rows; the others are `unchanged` | as above |

Each row keeps its own outcome, digests and line in the map. `copy_of` in the [ledger](state.md) names the key whose
object it got. The run's last line and `ferry status` say how many bytes that saved. Without `dedupe` rows whose keys are
equal before the download are key collisions. With it they share the key if the manifest has one digest for all of them.

**What is found.** Equal digests in the manifest, however far apart its rows are, and in objects of earlier runs. Ferry
puts rows with one digest into one chunk, mostly, and the others wait until the first is stored. Bytes that turn out
equal are found among the last 50,000 objects that a process has stored.

**What is not found**, and transferred as without `dedupe`:

- An object in a bucket is downloaded, since a listing does not have its metadata. It spares the upload only if its
  metadata is equal, too.
- An object of an earlier run counts if the present settings wrote it, with `checks: image` or `decode`, and no recheck
  of a delta run has found it unchanged since. It does not count for keys with `{sha256}` or `{ext}`.
- A row to be repaired after `ferry verify`, and a row whose first try failed at the destination.

**Copies by the server.** A copy is made only of the version that Ferry wrote (by its ETag, and after a minute also by
its date, since attributes may change alone), and counts only if the store's answer shows the MD5 of the bytes. So there are none where ETags are not MD5s (SSE-KMS), over 5 GiB, and under
`on_existing: skip` and `fail`, since a copy would replace an object that appears meanwhile. At its start each process
copies a small object `.ferry-trial-...` of its own and deletes both. Without the right to delete, each process of each
run leaves these two objects below `destination.uri`, and says nothing of it. If that copy lacks attributes, or after
eight failed copies in a row, the process copies nothing more. In a directory Ferry reads the stored file and writes
another one, so only the download is saved; files are never linked.

**Trust.** Ferry believes the manifest's digests: the source of such a row is not asked, and a missing one is not
noticed. MD5s can be forged. If the rows come from people who do not trust each other, list SHA-256s.
"""

TAIL = """\
## Secrets

A job must not hold secrets. Addresses in a job are refused if they contain a user name, a password or a signature.

| setting | values |
|---|---|
| headers Accept, Accept-Language, Referer, User-Agent | literal text |
| other headers; tokens, keys and passwords of `source.auth` | `env:NAME`, an environment variable, or `secret:BLOCK`, a Prefect Secret block; read where the work runs |
| `network.proxy` | `env:NAME`, an environment variable with the URL of a proxy |
| credentials of buckets | a reference, by the bucket's provider: [below](#credentials-of-buckets) |

Rows of the manifest may contain signed URLs. Ferry stores them only in `plan/` and `chunks/` of the state (mode 0600).

### Credentials of buckets

`source.credentials` holds for all buckets of the source, `destination.credentials` for the destination and a state in a
bucket. So the buckets of a side are of one provider, and at Azure of one account.

| address | `credentials` | without the key |
|---|---|---|
| `s3://bucket/prefix/` | `profile:NAME`, `block:NAME` (a Prefect AwsCredentials block), `anonymous` | boto3's credential chain: environment, profiles, SSO, roles |
| `gs://bucket/prefix/` | `env:NAME` or `secret:BLOCK` (the JSON of a credentials file), `impersonate:ACCOUNT@PROJECT.iam.gserviceaccount.com` (by the credentials that Google finds), `anonymous` | Application Default Credentials: the file of GOOGLE_APPLICATION_CREDENTIALS (also of a workload identity federation), gcloud's, or the machine's service account |
| `az://account/container/prefix/` | `env:NAME` or `secret:BLOCK` (the account's key or a SAS), `anonymous` | AZURE_STORAGE_KEY, else AZURE_STORAGE_SAS_TOKEN (only of AZURE_STORAGE_ACCOUNT, if that is set); else a service principal (AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET); else a workload identity (AZURE_FEDERATED_TOKEN_FILE); else the machine's managed identity (AZURE_CLIENT_ID chooses a user-assigned one) |

[Google and Azure](../how-to/google-and-azure.md) has examples, and the roles that are needed.

### Blocks

Blocks are stored in the Prefect server that the run uses. Without PREFECT_API_URL, `ferry` uses a server of its own in
`.ferry/prefect` beside the job file. Save blocks in its UI (`ferry ui job.yaml`, Blocks) or from the environment:

```sh
ferry block job.yaml aws-credentials/new-store secret/old-token=OLD_TOKEN
```

The job names these blocks `block:new-store` and `secret:old-token`. The first stores the values of AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_DEFAULT_REGION, the second the value of OLD_TOKEN. With
PREFECT_API_URL, or a Prefect profile that sets it, the blocks are saved on that server.

`ferry` does not read `prefect.toml`, `.env` or `pyproject.toml` in the working directory. Prefect's settings come from
the environment or from a profile.

## Locations that Ferry refuses

A row's key could replace a file at the destination. So Ferry refuses these destinations (exit code 2):

- a directory that is or contains the working directory, the job file, the manifest, your home directory, Ferry's code, or
  a file that a variable such as AWS_CONFIG_FILE names
- a directory that is, contains or is inside Prefect's home, or a directory of settings, commands, Python modules or states

A state in a bucket (`state: s3://...`) has the endpoint and credentials of the destination, and so its provider and
Azure account. Ferry refuses a state inside the destination (exit code 2), since a row's key could be that of a state file. It also refuses a state inside a
listed manifest unless `exclude` omits it, since its files would be transferred too.

## Which settings cause objects to be transferred again

| change | effect on the next run |
|---|---|
| `source.url`, `columns`, `key`, `destination.uri`, `destination.endpoint_url` | The run ends with exit code 2 and names the key, since finished rows would have the wrong location. Undo the change, use another `state`, or run with `--replan`. |
| further columns in a list of `columns.source`, `checks`, `on_existing`, `max_bytes`, `destination.cache_control`, `destination.metadata`, `destination.attributes`, `destination.storage_class`, `destination.encryption`, `on_lost_attribute`, `source.headers_for`, names of `source.headers`, `source.auth.type`, `source.auth_for` | Failed and skipped rows are planned again. Copied objects stay. |
| size, digest, ETag or type of a row in the manifest | Pending rows use the new values. Copied objects stay (with `mode: delta` they are rechecked), and so do permanent failures, which `--retry-failed` retries. |
| any other setting | None. Limits, retries, timeouts, budget, credentials and the manifest's location may change between runs. |
"""

EXAMPLE = {"sku": "AB-7", "id": "7", "source": "https://img.old.example/shoes/front.JPG"}
TEMPLATES = [
    "{sku}/{source.name}",
    "{sku|lower}/{source.stem}.{ext}",
    "img/{id:06d}.{source.ext|lower}",
    "{sha256}.{ext}",
]
FIELDS = {
    "source.name": "the last part of the source's path",
    "source.stem": "the same without its extension",
    "source.ext": "the extension of the source's path",
    "source.path": "the source's path without its leading slash",
    "source.host": "the host of the source",
    "sha256": "SHA-256 of the bytes. The key is known only after the download",
    "ext": "the extension of the format that the bytes have. The key is known only after the download",
}

# The formats of each line of the table, by the checks that level `image` and level `decode` make.
FORMATS = {
    ("image", "decode"): ["JPEG", "PNG", "GIF", "WebP", "AVIF", "SVG", "SVGZ", "TIFF", "BMP", "ICO", "CUR"],
    ("image", "image"): ["HEIC", "HEIF"],
    ("length", "decode"): [
        "JPEG 2000", "JPEG 2000 code stream", "PSD", "DDS", "QOI", "ICNS", "PBM", "PGM", "PPM", "PFM",
    ],
    ("length", "length"): ["JPEG XL", "JPEG XR", "PSB", "PAM"],
}  # fmt: skip
LEVELS = {
    "length": "signature and length",
    "image": "structure from the signature to the end",
    "decode": "every pixel of every frame",
}

IMAGE_CHECKS = """\
## Image checks

`checks` sets what Ferry checks of each body before it stores the object. Digests in the manifest are compared at every
level.

| `checks` | check |
|---|---|
| `none` | the response is complete. S3 may copy objects itself |
| `length` | the size in the manifest also matches. Any kind of file is copied |
| `image` | the body is also a complete image, checked as deeply as its format allows |
| `decode` | the pixels also decode, where Ferry has a decoder |

What the last two check depends on the format. Ferry tells it by the first bytes of the body:

| format | `checks: image` | `checks: decode` |
|---|---|---|
FORMATS
| all others, such as TGA, PCX, XBM, EPS, PDF | not accepted: the row fails as `not_image` | the same |

- **Lesser checks.** A row that got a lesser check than `checks` asks for is `copied` or `unchanged` all the same. Its
  `message` in the ledger says which check was made. The run's last line counts such rows ("3 of them checked by length
  or structure alone"), and so do `ferry status` and its `--json` (`lesser_checks`).
- **Bodies without a length.** If the origin sends neither a Content-Length nor chunks, only the structure or the pixels
  show that a body is complete. A body of which Ferry checks only signature and length then fails as `truncated`. A
  size, MD5 or SHA-256 in the manifest counts as a length.
- **Structure** ends at the end marker, where the format has one. Bytes after it are accepted, except in SVG. What no
  structure shows: changed bytes in the coded pixels, and a file of the right length whose last part was never written.
  `decode` finds some of these, a digest in the manifest finds all.
- **Decoding** takes two child processes, with 1 GiB of memory for both together. A body has 30 seconds of processor
  time, and 300 seconds of the clock. An image that needs more fails as `too_large`; `checks: image` accepts it. An SVG
  is parsed as XML. Of a PSD the merged picture is decoded, of CUR and ICNS the largest one.
- **Compressed objects of a bucket** (with a Content-Encoding in their metadata) are stored as they are, and are not
  checked as images.
"""


def type_words(annotation: Any) -> str:
    """Returns the name of a type in YAML terms."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(a) for a in arguments if a is not type(None)))
    if origin is list:
        return f"list of {type_words(arguments[0])}s"
    if origin is dict:
        return "mapping"
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        return type_words(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if isinstance(annotation, type) and hasattr(annotation, "__members__"):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return {str: "text", int: "number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def default_words(name: str, field: Any) -> str:
    """Returns the default value as Markdown, "" if it is empty."""
    if field.is_required():
        return "**required**"
    default = field.default
    if name == "revalidate_after":
        return f"`{default / 86_400:g}d`"
    if default == UNLIMITED_BYTES:
        return "`off`"
    if name == "max_bytes":
        return f"`{default >> 30}GiB`"
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel) or default in ([], {}):
        return ""
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{getattr(default, 'value', default)}`"


def model_of(annotation: Any) -> type[Model] | None:
    """Returns the model of a nested mapping, also where a value may be text or missing instead."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Model) else None
    inner = [model_of(one) for one in get_args(annotation)] if get_origin(annotation) not in (list, dict) else []
    return next(filter(None, inner), None)


def table(model: type[Model], prefix: str = "") -> list[str]:
    """Returns the table of a model's keys, followed by those of its nested models."""
    lines = ["| key | description | type | default |", "|---|---|---|---|"]
    nested: list[str] = []
    texts = key_docstrings(model)
    for name, field in model.model_fields.items():
        text = " ".join(texts.get(name, "").split()).replace("|", "\\|")
        kind = type_words(field.annotation).replace("|", "\\|")
        if any(isinstance(item, WithJsonSchema) for item in field.metadata):  # a number that may have a unit
            kind += " or text"
        lines.append(f"| `{prefix}{name}` | {text} | {kind} | {default_words(name, field)} |")
        inner, place = field.annotation, f"{prefix}{name}"
        if get_origin(inner) is list:
            inner, place = get_args(inner)[0], f"{place}[]"
        if (inner := model_of(inner)) is not None:
            nested += ["", f"## `{place}`", "", (inner.__doc__ or "").strip(), "", *table(inner, f"{place}.")]
    return lines + nested


def column_names() -> list[str]:
    """The names by which Ferry recognises a manifest's columns."""
    rows = [
        f"| `{role}` | {_names(names)} | {_names(AMBIGUOUS_NAMES.get(role, ()))} |"
        for role, names in USUAL_NAMES.items()
    ]
    return [
        "## Column names", "",
        "Columns that `columns` does not name are recognised by these names, without regard to case, spaces, `_` and `-`.",
        "A name of the last column counts only if the manifest's first thousand rows have values of that kind: lengths in",
        "bytes and not shoe sizes, paths of files and not categories. The job's first plan decides, and later manifests are",
        "read in the same way. `ferry plan` prints which columns are read, each with a value, and which are not, with the",
        "reason. `columns: {size: size}` reads a column in any case, `columns: {size: null}` reads none.",
        "", "| role | names | names that also need plausible values |", "|---|---|---|", *rows, "",
    ]  # fmt: skip


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def template_fields() -> list[str]:
    """The fields that a key template may name besides columns."""
    assert FIELDS.keys() == SOURCE_FIELDS | DEFERRED_FIELDS
    return [
        "## Template fields", "",
        "`key` may name any column of the manifest in braces, and these fields. `source.url` may name columns only.",
        "`{{` and `}}` stand for braces. `{id:06d}` writes 7 as 000007, for IDs that lost their zeros in",
        "Excel; `{sku|lower}` and `{sku|upper}` change the case. With `columns.split`, `{n}` is the",
        "number of the address in its cell, from 1. The examples are for the row",
        f"`sku: AB-7, id: 7, url: {EXAMPLE['source']}`.",
        "", "| field | value | example |", "|---|---|---|",
        *(f"| `{{{name}}}` | {text} | `{_example(name)}` |" for name, text in FIELDS.items()), "",
        "| template | key |", "|---|---|", *(f"| `{text}` | `{_key(text)}` |".replace("|lower", "\\|lower") for text in TEMPLATES), "",
    ]  # fmt: skip


def _key(text: str) -> str:
    path = default_key(EXAMPLE["source"])
    fields = {name: source_field(name, EXAMPLE["source"], path) for name in SOURCE_FIELDS}
    return finish_key(Template.parse(text).render({**EXAMPLE, **fields}), "9f86d0…00a08", "jpg")


def _example(name: str) -> str:
    return _key(f"{{{name}}}")


def image_checks() -> str:
    """Returns the section on `checks`. Its formats are those that the code knows."""
    known: dict[tuple[str, str], set[str]] = {}
    for kind in KINDS:
        levels = level_of(kind, decode=False), level_of(kind, decode=True)
        known.setdefault(levels, set()).add(kind.name)
    assert known == {levels: set(names) for levels, names in FORMATS.items()}
    lines = [
        f"| {', '.join(names)} | {LEVELS[image]} | {LEVELS[decode] if decode != image else 'the same'} |"
        for (image, decode), names in FORMATS.items()
    ]
    return IMAGE_CHECKS.replace("FORMATS", "\n".join(lines))


def render() -> str:
    """Returns the whole page."""
    keys = ["## Keys", "", *table(Job), ""]
    return "\n".join([HEAD, *keys, *column_names(), *template_fields(), image_checks(), EQUAL_BYTES, TAIL])


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "job.md").write_text(render())
