"""Google Cloud Storage's JSON API in memory, where emulators do otherwise than its documentation, and its misbehaviour.

Opaque ETags, generations as conditions of everything, resumable uploads in units of 256 KiB, copies in several
requests, and tokens that end. What arrived is to be looked at directly: ``objects``, ``asked``.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.servers.loopback import Answer, LoopbackServer

UNIT = 256 * 1024  # resumable uploads: all bytes but the last ones
Operation = Literal["insert", "begin", "part", "abort", "list", "get", "media", "rewrite", "delete", "token"]


def error(status: int, reason: str, message: str, headers: Mapping[str, str] = {}) -> Answer:
    """An error document (JSON API: "HTTP status and error codes")."""
    listed = [{"message": message, "domain": "global", "reason": reason}]
    body = json.dumps({"error": {"code": status, "message": message, "errors": listed}}).encode()
    return Answer(status, {"Content-Type": "application/json", **headers}, body)


@dataclass
class Fault:
    """What goes wrong with ``times`` requests of an operation, after ``after`` others of it.

    With an ``answer`` the request does nothing and is answered so. ``lost``: it is carried out, and the connection is
    reset in place of the answer. ``cut``: the answer ends in the middle.
    """

    operation: Operation
    answer: Answer | None = None
    lost: bool = False
    cut: bool = False
    times: int = 1
    after: int = 0


@dataclass
class Stored:
    data: bytes
    resource: dict[str, Any]


@dataclass
class _Session:
    bucket: str
    resource: dict[str, Any]
    condition: str | None
    size: int
    data: bytearray = field(default_factory=bytearray)
    done: dict[str, Any] | None = None


@dataclass(frozen=True)
class Asked:
    operation: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class OddGcs(LoopbackServer):
    """Start it with ``with``.

    ``composite``: objects have no md5Hash, as composite ones. ``page_keys`` to a page. ``takes``: bytes that it keeps
    of one part at most. ``rewrites``: bytes that one request copies at most. ``tokens``: those that are accepted; None:
    every request is. Each token of ``/token`` is added, and ends after ``life_s`` seconds, by what the answer says.
    """

    def __init__(
        self,
        *,
        composite: bool = False,
        page_keys: int = 1000,
        takes: int = 1 << 40,
        rewrites: int = 1 << 40,
        faults: Iterable[Fault] = (),
    ) -> None:
        super().__init__()
        self.composite, self.page_keys, self.takes, self.rewrites = composite, page_keys, takes, rewrites
        self.faults = list(faults)
        self.objects: dict[str, dict[str, Stored]] = {"b": {}}
        self.sessions: dict[str, _Session] = {}
        self.asked: list[Asked] = []
        self.tokens: set[str] | None = None
        self.life_s = 3600
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def count(self, operation: Operation) -> int:
        return sum(one.operation == operation for one in self.asked)

    # --- requests

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        operation, work = self._work(method, parts.path, query, headers, body)
        with self._lock:
            self.asked.append(Asked(operation, target, headers, body))
            fault = next((one for one in self.faults if one.operation == operation and one.times > 0), None)
            if fault is not None and fault.after > 0:
                fault.after, fault = fault.after - 1, None
            if fault is not None:
                fault.times -= 1
                if fault.answer is not None:
                    return fault.answer
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if operation != "token" and self.tokens is not None and token not in self.tokens:
                return error(401, "authError", "Invalid Credentials")
            answer: Answer = work()
            return answer if fault is None else replace(answer, lost=fault.lost, cut=fault.cut)

    def _work(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[str, Any]:
        if "upload_id" in query:
            if method == "DELETE":
                return "abort", lambda: self._abort(query["upload_id"])
            return "part", lambda: self._part(query["upload_id"], headers, body)
        found = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)
        if found and query.get("uploadType") == "multipart":
            return "insert", lambda: self._insert(found[1], query, headers, body)
        if found:
            return "begin", lambda: self._begin(found[1], query, headers, body)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", path):
            source, copy = (found[1], unquote(found[2])), (found[3], unquote(found[4]))
            return "rewrite", lambda: self._rewrite(source, copy, query)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", path):
            bucket, key = found[1], unquote(found[2])
            if method == "DELETE":
                return "delete", lambda: self._delete(bucket, key)
            return ("media" if "alt" in query else "get"), lambda: self._get(bucket, key, query, headers)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            return "list", lambda: self._list(found[1], query)
        return "token", lambda: self._token(path)

    def _token(self, path: str) -> Answer:
        token = f"canarytoken-{next(self._numbers)}"
        if self.tokens is not None:
            self.tokens.add(token)
        said = {"access_token": token, "expires_in": self.life_s, "token_type": "Bearer"}
        if path.endswith(":generateAccessToken"):
            said = {"accessToken": token, "expireTime": "2099-01-01T00:00:00Z"}
        if path.endswith("/sts"):
            said["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        return _json(said)

    # --- objects

    def _missing(self, bucket: str, key: str) -> Answer | None:
        if bucket not in self.objects:
            return error(404, "notFound", "The specified bucket does not exist.")
        if key not in self.objects[bucket]:
            return error(404, "notFound", f"No such object: {bucket}/{key}")
        return None

    def _unmet(self, bucket: str, key: str, wanted: str | None) -> bool:
        """Whether a condition on the generation (0: no object) does not hold."""
        stored = self.objects[bucket].get(key)
        return wanted is not None and wanted != (stored.resource["generation"] if stored else "0")

    def _store(self, bucket: str, resource: dict[str, Any], data: bytes) -> Answer:
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        if resource.get("md5Hash", md5) != md5:
            return error(400, "invalid", f"Provided MD5 hash does not match {md5}: canary-secret")
        number = next(self._numbers)
        etag = base64.b64encode(f"opaque{number}".encode()).decode()
        found = {
            **resource,
            "md5Hash": md5,
            "crc32c": base64.b64encode(hashlib.sha256(data).digest()[:4]).decode(),  # any number of these bytes
            "generation": str(1_700_000_000_000_000 + number),
            "etag": etag,
            "size": str(len(data)),
            "updated": "2026-12-01T06:00:00.123Z",
            "storageClass": resource.get("storageClass", "STANDARD"),
        }
        if self.composite:
            del found["md5Hash"]
        self.objects[bucket][resource["name"]] = Stored(data, found)
        return _json(found)

    def _insert(self, bucket: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
        boundary = headers["content-type"].partition("boundary=")[2].encode()
        _, first, second, end = body.split(b"--" + boundary)
        assert end == b"--\r\n", end
        resource = json.loads(first.partition(b"\r\n\r\n")[2])
        data = second.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        if bucket not in self.objects:
            return error(404, "notFound", "The specified bucket does not exist.")
        if self._unmet(bucket, resource["name"], query.get("ifGenerationMatch")):
            return error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        return self._store(bucket, resource, data)

    def _get(self, bucket: str, key: str, query: dict[str, str], headers: dict[str, str]) -> Answer:
        if missing := self._missing(bucket, key):
            return missing
        stored = self.objects[bucket][key]
        if self._unmet(bucket, key, query.get("ifGenerationMatch")):
            return error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        if "alt" not in query:
            return _json(stored.resource)
        start = int(headers.get("range", "bytes=0-")[6:-1])
        said = {"X-Goog-Generation": stored.resource["generation"], "ETag": stored.resource["etag"]}
        return Answer(206 if start else 200, said, stored.data[start:])

    def _delete(self, bucket: str, key: str) -> Answer:
        if missing := self._missing(bucket, key):
            return missing
        del self.objects[bucket][key]
        return Answer(204)

    def _list(self, bucket: str, query: dict[str, str]) -> Answer:
        if bucket not in self.objects:
            return error(404, "notFound", "The specified bucket does not exist.")
        first = max(query.get("startOffset", ""), base64.b64decode(query.get("pageToken", "")).decode(), key=str.encode)
        keys = [key for key in sorted(self.objects[bucket], key=str.encode) if key.encode() >= first.encode()]
        keys = [key for key in keys if key.startswith(query.get("prefix", ""))]
        page: dict[str, Any] = {"kind": "storage#objects"}
        if keys:
            page["items"] = [self.objects[bucket][key].resource for key in keys[: self.page_keys]]
        if len(keys) > self.page_keys:
            page["nextPageToken"] = base64.b64encode(keys[self.page_keys].encode()).decode()
        return _json(page)

    def _rewrite(self, source: tuple[str, str], key: tuple[str, str], query: dict[str, str]) -> Answer:
        if missing := self._missing(*source):
            return missing
        if self._unmet(*source, query.get("ifSourceGenerationMatch")):
            return error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        stored = self.objects[source[0]][source[1]]
        written = min(int(query.get("rewriteToken", "0")) + self.rewrites, len(stored.data))
        said = {"kind": "storage#rewriteResponse", "totalBytesRewritten": str(written)}
        if written < len(stored.data):
            return _json({**said, "done": False, "rewriteToken": str(written)})
        resource = {name: value for name, value in stored.resource.items() if name in ("contentType", "metadata")}
        done = self._store(key[0], {**resource, "name": key[1]}, stored.data)
        return _json({**said, "done": True, "resource": json.loads(done.body)})

    # --- resumable uploads

    def _begin(self, bucket: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
        if bucket not in self.objects:
            return error(404, "notFound", "The specified bucket does not exist.")
        resource, condition = json.loads(body), query.get("ifGenerationMatch")
        if self._unmet(bucket, resource["name"], condition):
            return error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        upload = f"session-{next(self._numbers)}"
        self.sessions[upload] = _Session(bucket, resource, condition, int(headers["x-upload-content-length"]))
        # the host is another one, as with a private endpoint
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={quote(resource['name'])}&upload_id={upload}"
        return Answer(200, headers={"Location": f"https://storage.googleapis.com{path}"})

    def _part(self, upload: str, headers: dict[str, str], body: bytes) -> Answer:
        session = self.sessions.get(upload)
        if session is None:
            return error(404, "notFound", "Not Found")
        if session.done is not None:
            return _json(session.done)
        asked = re.fullmatch(r"bytes (?:\*|([0-9]+)-([0-9]+))/([0-9]+)", headers["content-range"])
        assert asked is not None
        assert int(asked[3]) == session.size
        if asked[1] is not None:
            start = int(asked[1])
            assert len(body) == int(asked[2]) - start + 1
            if start > len(session.data):
                return error(503, "backendError", "a gap")
            new = body[len(session.data) - start :][: self.takes]  # what it has already, it ignores
            whole = len(session.data) + len(new) == session.size
            session.data += new if whole else new[: len(new) // UNIT * UNIT]
        if len(session.data) < session.size:
            has = {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
            return Answer(308, headers=has)
        if self._unmet(session.bucket, session.resource["name"], session.condition):
            return error(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        said = headers.get("x-goog-hash", "").removeprefix("md5=")
        resource = {**session.resource, "md5Hash": said} if said else session.resource
        stored = self._store(session.bucket, resource, bytes(session.data))
        if stored.status == 200:
            session.done = json.loads(stored.body)
        return stored

    def _abort(self, upload: str) -> Answer:
        return Answer(499) if self.sessions.pop(upload, None) else error(404, "notFound", "Not Found")


def _json(found: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(found).encode())
