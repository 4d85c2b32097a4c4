"""An S3 server in memory that misbehaves: one switch a fault, seeded, so that the same seed fails the same requests.

Three kinds of switches: what sort of store it is (:class:`OddS3`'s arguments), what goes wrong with single requests
(:class:`Fault`), and what its listings hide (:attr:`OddS3.hidden`). It checks no signature and holds no more than fits
into memory. What arrived is to be looked at directly: ``objects``, ``requests`` and ``log``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import random
import re
import threading
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

from aiohttp import web

Etags = Literal["md5", "upper", "kms", "opaque", "none"]
Conditions = Literal["kept", "ignored", "501", "no create", "no replace", "never equal", "bare"]
Copies = Literal["whole", "without attributes", "altered"]
Listings = Literal["whole", "no token", "error page", "ends early", "starts at it", "in a circle", "numbered"]
What = Literal["status", "reset", "lost answer", "silence", "alter", "halve", "error in 200", "redirect", "slow"]


@dataclass(slots=True)
class Fault:
    """What goes wrong with some requests of the named operations (S3 API: `PutObject`, `ListObjectsV2`, ...).

    | what | the request |
    |---|---|
    | status | is answered with ``status`` and ``code``, and does nothing |
    | reset | does nothing; its connection is reset |
    | lost answer | is carried out; its connection is reset in place of the answer |
    | silence | does nothing and is never answered |
    | alter | is carried out with one byte of its body changed, and the ETag is that of the changed body |
    | halve | its answer says the whole length and ends in the middle (GetObject) |
    | error in 200 | is answered with an <Error> under 200, and does nothing |
    | redirect | is answered with 307 to ``location`` |
    | slow | is carried out after ``delay_s`` seconds |

    ``after`` requests of these operations pass first, then each fails with ``probability``, ``times`` of them at most.
    ``key``: only keys that match this regular expression. ``header``: only requests that have it.
    """

    what: What
    operations: tuple[str, ...]
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    status: int = 503
    code: str = "SlowDown"
    location: str = ""
    delay_s: float = 0.0
    key: str = ""
    header: str = ""
    seen: int = 0
    struck: int = 0

    def strikes(self, operation: str, key: str, headers: Container[str], seeded: random.Random) -> bool:
        if operation not in self.operations or (self.key and not re.search(self.key, key)):
            return False
        if self.header and self.header not in headers:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.struck >= self.times):
            return False
        if self.probability < 1.0 and seeded.random() >= self.probability:
            return False
        self.struck += 1
        return True


@dataclass(slots=True)
class Stored:
    data: bytes
    etag: str
    headers: dict[str, str]
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True)
class _Upload:
    bucket: str
    key: str
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


_KEPT = re.compile(
    r"(?i)(x-amz-meta-.*|content-type|cache-control|content-disposition|content-encoding|content-language|expires"
    r"|x-amz-tagging|x-amz-storage-class|x-amz-website-redirect-location|x-amz-server-side-encryption.*)"
)
_NOT_COPIED = re.compile(r"(?i)x-amz-(storage-class|website-redirect-location|server-side-encryption.*)")  # S3 API
_QUIET_S = 3600.0


class OddS3:
    """Start it with ``with``. Buckets are made by :meth:`make_bucket` or a PUT, as on any other S3."""

    def __init__(
        self,
        *,
        etags: Etags = "md5",
        checksums: bool | int = False,
        conditions: Conditions = "kept",
        copies: Copies = "whole",
        listings: Listings = "whole",
        delete_many: bool = True,
        page_keys: int = 1000,
        delay_s: float = 0.0,
        seed: int = 0,
        faults: Iterable[Fault] = (),
    ) -> None:
        """``etags``: MD5s in lower or upper case, MD5-like ones that are none (SSE-KMS), opaque ones, or none at all.

        ``checksums``: x-amz-checksum-sha256 is kept and answered, as by AWS; a number is the status that an upload with
        one is refused with. ``listings`` from their second
        page on: whole; IsTruncated without a token; an <Error> under 200; a first page that says it is the last;
        start-after that lists its key, too; a last page whose token leads back to the first; or tokens that count
        pages, of which the third says it is the last.
        ``conditions``: kept, ignored, answered with 501, or one of them ignored: If-None-Match ("no create") or
        If-Match ("no replace"), which may also hold for no ETag at all ("never equal"), or for none in quotes ("bare").
        ``copies`` by the server: as they should be, without the object's attributes, or with one byte changed.
        ``delete_many``: without it DeleteObjects is answered with 501.
        """
        self.etags = etags
        self.checksums = checksums
        self.conditions = conditions
        self.copies = copies
        self.listings = listings
        self._numbered: dict[str, str] = {}  # tokens that count pages: the last key of each
        self.delete_many = delete_many
        self.page_keys = page_keys
        self.delay_s = delay_s
        self.faults = list(faults)
        self.objects: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, _Upload] = {}
        self.shows_tags = True  # whether an answer says how many tags an object has; Amazon needs a right for it
        self.forgets: set[str] = set()  # headers, in lower case, that it takes and does not keep
        self.hidden: set[str] = set()  # keys that no listing shows, as a stale one would
        self.requests: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()  # by operation: how many requests it had under way at most
        self._under_way: Counter[str] = Counter()
        self.log: list[tuple[str, str, int]] = []  # operation, key, status (0: no answer)
        self.region = "us-east-1"
        self.access_key, self.secret_key = "odd", "odd-secret"
        self.endpoint_url = ""
        self._seeded = random.Random(seed)
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="odd-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(30):
            raise RuntimeError("the server did not start within 30 s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._quit.set)
        self._thread.join(30)

    def make_bucket(self, name: str) -> None:
        self.objects.setdefault(name, {})

    def put(self, bucket: str, key: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Puts an object there as another client would have."""
        self.make_bucket(bucket)
        self.objects[bucket][key] = Stored(data, self._etag(data), dict(headers or {}))

    def stored(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Everything in a bucket by key, whatever its listings say."""
        return {key: each.data for key, each in self.objects.get(bucket, {}).items() if key.startswith(prefix)}

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._quit = asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self._started.set()
        await self._quit.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, raw_query = request.raw_path.partition("?")
        bucket, _, raw_key = path.lstrip("/").partition("/")
        key = unquote(raw_key)
        query = dict(_pairs(raw_query))
        operation = _operation(request, key, query)
        self.requests[operation] += 1
        self._under_way[operation] += 1
        self.at_once[operation] = max(self.at_once[operation], self._under_way[operation])
        try:
            return await self._answer_one(request, operation, bucket, key, query)
        finally:
            self._under_way[operation] -= 1

    async def _answer_one(
        self, request: web.BaseRequest, operation: str, bucket: str, key: str, query: Mapping[str, str]
    ) -> web.StreamResponse:
        body = await request.content.read()  # request.read() has a limit
        fault = next(
            (each for each in self.faults if each.strikes(operation, key, request.headers, self._seeded)), None
        )
        what = fault.what if fault is not None else None
        await asyncio.sleep(self.delay_s + (fault.delay_s if fault is not None else 0.0))
        if what == "silence":
            self.log.append((operation, key, 0))
            await asyncio.sleep(_QUIET_S)
        if what == "alter" and body:
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        if what in ("silence", "reset"):
            response: web.StreamResponse = web.Response(status=503)
        elif what == "status":
            assert fault is not None
            response = _error(fault.status, fault.code)
        elif what == "error in 200":
            response = _error(200, "InternalError")
        elif what == "redirect":
            assert fault is not None
            response = _error(307, "TemporaryRedirect", {"Location": fault.location + request.raw_path})
        else:
            response = self._carry_out(operation, bucket, key, query, request.headers, body)
        gone = what in ("reset", "lost answer")
        self.log.append((operation, key, 0 if gone else response.status))
        if gone and request.transport is not None:
            request.transport.abort()
        if what == "halve" and isinstance(response, web.Response) and isinstance(response.body, bytes):
            return await _halved(request, response)
        return response

    def _carry_out(
        self, operation: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> web.Response:
        if operation == "CreateBucket":
            self.make_bucket(bucket)
            return web.Response()
        if bucket not in self.objects:
            return _error(404, "NoSuchBucket")
        objects = self.objects[bucket]
        match operation:
            case "HeadBucket":
                return web.Response()
            case "PutObject":
                return self._put(objects, key, headers, body)
            case "GetObjectTagging":
                tags = parse_qsl(objects[key].headers.get("x-amz-tagging", ""), keep_blank_values=True)
                each = [f"<Tag><Key>{escape(n)}</Key><Value>{escape(v)}</Value></Tag>" for n, v in tags]
                return _xml("Tagging", f"<TagSet>{''.join(each)}</TagSet>")
            case "CopyObject":
                return self._copy(objects, key, headers)
            case "GetObject" | "HeadObject":
                return self._get(objects, key, headers, head=operation == "HeadObject")
            case "DeleteObject":
                if (refused := self._refused(objects.get(key), headers)) is not None:
                    return refused
                objects.pop(key, None)
                return web.Response(status=204)
            case "DeleteObjects":
                return self._delete_many(objects, body)
            case "ListObjectsV2":
                return self._list(bucket, objects, query)
            case _:
                return self._multipart(operation, bucket, objects, key, query, headers, body)

    def _refused(self, there: Stored | None, headers: Mapping[str, str]) -> web.Response | None:
        """The answer where a condition does not hold (RFC 9110 section 13), or is not known here."""
        if self.conditions == "ignored" or not ("If-None-Match" in headers or "If-Match" in headers):
            return None
        if self.conditions == "501":
            return _error(501, "NotImplemented")
        if headers.get("If-None-Match") == "*" and there is not None and self.conditions != "no create":
            return _error(412, "PreconditionFailed")
        if (wanted := headers.get("If-Match")) is not None and self.conditions != "no replace":
            if there is None:
                return _error(404, "NoSuchKey")
            unequal = self.conditions == "never equal" or (self.conditions == "bare" and wanted.startswith('"'))
            if wanted != "*" and (unequal or wanted.strip('"') != there.etag.strip('"')):
                return _error(412, "PreconditionFailed")
        return None

    def _kept(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {n: value for n, value in headers.items() if _KEPT.fullmatch(n) and n.lower() not in self.forgets}

    def _put(self, objects: dict[str, Stored], key: str, headers: Mapping[str, str], body: bytes) -> web.Response:
        if (refused := self._refused(objects.get(key), headers)) is not None:
            return refused
        kept = self._kept(headers)
        answer: dict[str, str] = {}
        sent = headers.get("x-amz-checksum-sha256")
        if sent is not None and self.checksums not in (True, False):
            return _error(int(self.checksums), "NotImplemented")
        if self.checksums and sent is not None:
            answer["x-amz-checksum-sha256"] = kept["x-amz-checksum-sha256"] = _sha256(body)
        stored = objects[key] = Stored(body, self._etag(body), kept)
        return web.Response(headers={**answer, **_etag_header(stored.etag)})

    def _copy(self, objects: dict[str, Stored], key: str, headers: Mapping[str, str]) -> web.Response:
        bucket, _, source_key = unquote(headers["x-amz-copy-source"]).lstrip("/").partition("/")
        source = self.objects.get(bucket, {}).get(source_key)
        if source is None:
            return _error(404, "NoSuchKey")
        wanted = headers.get("x-amz-copy-source-if-match")
        if self.conditions != "ignored" and wanted is not None and wanted.strip('"') != source.etag.strip('"'):
            return _error(412, "PreconditionFailed")
        data = source.data if self.copies != "altered" else bytes([source.data[0] ^ 1]) + source.data[1:]
        kept = {name: value for name, value in source.headers.items() if not _NOT_COPIED.fullmatch(name)}
        kept = {} if self.copies == "without attributes" else kept
        kept |= {name: value for name, value in headers.items() if _NOT_COPIED.fullmatch(name)}
        stored = objects[key] = Stored(data, self._etag(data), kept)
        etag = f"<ETag>&quot;{stored.etag}&quot;</ETag>" if stored.etag else ""
        return _xml("CopyObjectResult", f"{etag}<LastModified>{_iso(stored.modified)}</LastModified>")

    def _get(self, objects: dict[str, Stored], key: str, headers: Mapping[str, str], *, head: bool) -> web.Response:
        stored = objects.get(key)
        if stored is None:
            return web.Response(status=404) if head else _error(404, "NoSuchKey")
        wanted = headers.get("If-Match", stored.etag).strip('"')
        if wanted != stored.etag and self.conditions != "ignored":
            return web.Response(status=412) if head else _error(412, "PreconditionFailed")
        hidden = ("x-amz-checksum", "x-amz-tagging")
        shown = {
            **{name: value for name, value in stored.headers.items() if not name.startswith(hidden)},
            **_etag_header(stored.etag),
            "Last-Modified": format_datetime(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if self.shows_tags and (tags := stored.headers.get("x-amz-tagging")):
            shown["x-amz-tagging-count"] = str(tags.count("="))
        if headers.get("x-amz-checksum-mode", "").upper() == "ENABLED" and "x-amz-checksum-sha256" in stored.headers:
            shown["x-amz-checksum-sha256"] = stored.headers["x-amz-checksum-sha256"]
        data, status = stored.data, 200
        if (ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))) is not None:
            first, last = int(ranged[1]), min(int(ranged[2] or len(data) - 1), len(data) - 1)
            shown["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if head:
            return web.Response(status=status, headers={**shown, "Content-Length": str(len(data))})
        return web.Response(status=status, headers=shown, body=data)

    def _delete_many(self, objects: dict[str, Stored], body: bytes) -> web.Response:
        if not self.delete_many:
            return _error(501, "NotImplemented")
        keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
        for key in keys:
            objects.pop(_unescaped(key), None)
        return _xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys))

    def _list(self, bucket: str, objects: dict[str, Stored], query: Mapping[str, str]) -> web.Response:
        prefix = query.get("prefix", "")
        given = query.get("continuation-token", "")
        after = self._numbered.get(given, given) or query.get("start-after") or ""
        most = min(int(query.get("max-keys", self.page_keys)), self.page_keys)
        names = sorted(key for key in objects if key.startswith(prefix) and key not in self.hidden)
        left = [key for key in names if key.encode() > after.encode()]
        if self.listings == "starts at it" and query.get("start-after") in names:
            left.insert(0, query["start-after"])
        page, cut = left[:most], len(left) > most
        later = bool(after)
        if later and self.listings == "error page":
            return _error(200, "InternalError")
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if cut else ""
        if not later and self.listings == "ends early":
            token, cut = "", False
        if self.listings == "no token":
            token = ""
        if self.listings == "in a circle" and not cut:
            token, cut = f"<NextContinuationToken>{escape(names[0])}</NextContinuationToken>", True
        if self.listings == "numbered" and cut:  # the third page of each listing says that it is the last
            number, cut = str(int(given or 0) + 1), given != "2"
            token = f"<NextContinuationToken>{number}</NextContinuationToken>" if cut else ""
            self._numbered[number] = page[-1]
        as_url = query.get("encoding-type") == "url"
        shown = [quote(key, safe="/") if as_url else escape(key) for key in page]
        contents = "".join(
            f"<Contents><Key>{name}</Key><LastModified>{_iso(objects[key].modified)}</LastModified>"
            + (f"<ETag>&quot;{objects[key].etag}&quot;</ETag>" if objects[key].etag else "")
            + f"<Size>{len(objects[key].data)}</Size>"
            + f"<StorageClass>{objects[key].headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass></Contents>"
            for name, key in zip(shown, page, strict=True)
        )
        encoding = "<EncodingType>url</EncodingType>" if as_url else ""
        if "start-after" in query:  # not encoded: as Ceph RGW 16 and moto have it
            encoding += f"<StartAfter>{escape(query['start-after'])}</StartAfter>"
        return _xml(
            "ListBucketResult",
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys>{encoding}<IsTruncated>{str(cut).lower()}</IsTruncated>{token}{contents}",
        )

    def _multipart(
        self,
        operation: str,
        bucket: str,
        objects: dict[str, Stored],
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> web.Response:
        if operation == "CreateMultipartUpload":
            upload_id = f"upload-{next(self._numbers)}"
            kept = self._kept(headers)
            self.uploads[upload_id] = _Upload(bucket, key, kept)
            return _xml(
                "InitiateMultipartUploadResult",
                f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>",
            )
        if operation == "ListMultipartUploads":
            begun = "".join(
                f"<Upload><Key>{escape(each.key)}</Key><UploadId>{upload_id}</UploadId></Upload>"
                for upload_id, each in self.uploads.items()
                if each.bucket == bucket and each.key.startswith(query.get("prefix", ""))
            )
            return _xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{begun}")
        upload = self.uploads.get(query.get("uploadId", ""))
        if upload is None:
            return _error(404, "NoSuchUpload")
        if operation == "UploadPart":
            if not 1 <= int(query["partNumber"]) <= 10_000:  # S3 API, multipart upload limits
                return _error(400, "InvalidArgument")
            upload.parts[int(query["partNumber"])] = body
            return web.Response(headers=_etag_header(self._etag(body)))
        if operation == "ListParts":
            parts = "".join(
                f"<Part><PartNumber>{number}</PartNumber><Size>{len(data)}</Size>"
                + (f"<ETag>&quot;{etag}&quot;</ETag></Part>" if (etag := self._etag(data)) else "</Part>")
                for number, data in sorted(upload.parts.items())
            )
            return _xml("ListPartsResult", f"<IsTruncated>false</IsTruncated>{parts}")
        if operation == "AbortMultipartUpload":
            del self.uploads[query["uploadId"]]
            return web.Response(status=204)
        if (refused := self._refused(objects.get(key), headers)) is not None:
            return refused
        del self.uploads[query["uploadId"]]
        bodies = [data for _, data in sorted(upload.parts.items())]
        stored = objects[key] = Stored(b"".join(bodies), self._etag_of_parts(bodies), upload.headers)
        etag = f"<ETag>&quot;{stored.etag}&quot;</ETag>" if stored.etag else ""
        return _xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key>{etag}")

    def _etag(self, data: bytes) -> str:
        digest = hashlib.md5(data).hexdigest()
        match self.etags:
            case "md5":
                return digest
            case "upper":
                return digest.upper()
            case "kms":
                return hashlib.md5(b"sealed" + data).hexdigest()
            case "opaque":
                return f"v{next(self._numbers)}-{digest[:12]}"
            case "none":
                return ""

    def _etag_of_parts(self, parts: list[bytes]) -> str:
        whole = self._etag(b"".join(hashlib.md5(part).digest() for part in parts))
        return whole if self.etags in ("opaque", "none") else f"{whole}-{len(parts)}"


def _pairs(raw_query: str) -> Iterable[tuple[str, str]]:
    for pair in filter(None, raw_query.split("&")):
        name, _, value = pair.partition("=")
        yield unquote(name), unquote(value.replace("+", " "))


def _operation(request: web.BaseRequest, key: str, query: Mapping[str, str]) -> str:
    method = request.method
    if not key:
        if method == "GET" and "uploads" in query:
            return "ListMultipartUploads"
        if method == "POST" and "delete" in query:
            return "DeleteObjects"
        return {"GET": "ListObjectsV2", "HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(method, method)
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if "uploadId" in query:
        return {"PUT": "UploadPart", "DELETE": "AbortMultipartUpload", "GET": "ListParts"}.get(method, method)
    if method == "PUT" and "x-amz-copy-source" in request.headers:
        return "CopyObject"
    if "tagging" in query:
        return f"{method.title()}ObjectTagging"
    return {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, method)


async def _halved(request: web.BaseRequest, whole: web.Response) -> web.StreamResponse:
    assert isinstance(whole.body, bytes)
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = len(whole.body)
    await response.prepare(request)
    await response.write(whole.body[: len(whole.body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _xml(name: str, content: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</{name}>'
    return web.Response(body=text.encode(), content_type="application/xml")


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>odd</Message></Error>'
    return web.Response(status=status, body=text.encode(), content_type="application/xml", headers=headers)


def _etag_header(etag: str) -> dict[str, str]:
    return {"ETag": f'"{etag}"'} if etag else {}


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _unescaped(text: str) -> str:
    return (
        text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", '"')
        .replace("&apos;", "'")
        .replace("&amp;", "&")
    )
