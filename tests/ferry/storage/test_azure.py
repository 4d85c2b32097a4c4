"""Azure Blob Storage where Azurite does otherwise than the service, where answers are lost, and what errors mean.

What Azurite does as the service is in tests/stores/test_azure.py.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from ferry.core import TAGS, TIER, in_ascii
from ferry.core.body import Spooled, small_body
from ferry.core.errors import Fatal, ObjectError, Refused, UserError
from ferry.core.memory_budget import MIB
from ferry.core.records import Again, Confirmed, ErrorClass
from ferry.storage.azure import Authority, AzureContainer, Sas, SharedKey
from ferry.storage.azure.attributes import attribute_headers, attributes_of
from ferry.storage.azure.documents import Block, date_of, md5_of
from ferry.storage.azure.errors import azure_error, meaning
from ferry.storage.azure.preflight import refusal
from ferry.storage.confirmation import Comparison, ReadBackPolicy, compare_digests, confirm
from ferry.storage.errors import Meaning
from ferry.storage.object_info import ObjectInfo, Sent
from ferry.storage.provider import CannotCopy, Digests, Part, TooLargeAtOnce
from tests.servers.odd_azure import Answer, OddAzure, error

Test = Callable[[AzureContainer], Awaitable[None]]
BODY = small_body(b"abc")
DIGESTS = Digests(BODY.md5, BODY.sha256)
ETAG = {"ETag": '"0x1"'}


def in_base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()


MD5 = {"Content-MD5": in_base64(BODY.md5)}
OTHER_MD5 = {"Content-MD5": in_base64(hashlib.md5(b"other").hexdigest())}


def in_container(server: OddAzure, test: Test, authority: Authority | None = None) -> None:
    async def go() -> None:
        container = AzureContainer("account", "box", authority or Authority(), endpoint_url=server.url)
        try:
            await test(container)
        finally:
            await container.close()

    asyncio.run(go())


def put(container: AzureContainer, *, create: bool = False) -> Awaitable[Sent]:
    return container.put("k", b"abc", DIGESTS, {}, create=create)


# --- errors

ROWS = [
    (429, "", Meaning.BUSY),
    (503, "ServerBusy", Meaning.BUSY),
    (301, "", Meaning.ELSEWHERE),
    (507, "", Meaning.FULL),
    (403, "AccountQuotaExceeded", Meaning.FULL),
    (403, "AuthenticationFailed", Meaning.CREDENTIALS),
    (403, "AccountIsDisabled", Meaning.CREDENTIALS),
    (401, "InvalidAuthenticationInfo", Meaning.CREDENTIALS),
    (401, "NoAuthenticationInformation", Meaning.CREDENTIALS),
    (409, "PublicAccessNotPermitted", Meaning.CREDENTIALS),
    (403, "KeyBasedAuthenticationNotPermitted", Meaning.CREDENTIALS),
    (403, "AuthorizationFailure", Meaning.REFUSED),
    (403, "AuthorizationPermissionMismatch", Meaning.REFUSED),
    (403, "", Meaning.REFUSED),
    (401, "", Meaning.REFUSED),
    (409, "BlobImmutableDueToPolicy", Meaning.REFUSED),
    (409, "BlobArchived", Meaning.REFUSED),
    (409, "SnapshotsPresent", Meaning.REFUSED),
    (412, "LeaseIdMissing", Meaning.REFUSED),
    (404, "ContainerNotFound", Meaning.NO_BUCKET),
    (409, "ContainerBeingDeleted", Meaning.NO_BUCKET),
    (404, "BlobNotFound", Meaning.NO_OBJECT),
    (404, "", Meaning.OTHER),
    (409, "BlobAlreadyExists", Meaning.OTHER),
    (412, "ConditionNotMet", Meaning.OTHER),
    (400, "Md5Mismatch", Meaning.OTHER),
    (500, "InternalError", Meaning.OTHER),
]


@pytest.mark.parametrize(("status", "code", "means"), ROWS)
def test_what_a_response_means(status: int, code: str, means: Meaning) -> None:
    """The table in azure/errors.py."""
    assert meaning(status, code) is means


@pytest.mark.parametrize(
    ("status", "code", "destination", "source"),
    [
        (503, "ServerBusy", ErrorClass.RATE_LIMITED, ErrorClass.RATE_LIMITED),
        (507, "", Fatal, ErrorClass.STORE_ERROR),
        (403, "AuthenticationFailed", Fatal, ErrorClass.FORBIDDEN),
        (403, "AuthorizationFailure", Refused, ErrorClass.FORBIDDEN),
        (404, "ContainerNotFound", Fatal, ErrorClass.NOT_FOUND),
        (404, "BlobNotFound", ErrorClass.NOT_FOUND, ErrorClass.NOT_FOUND),
        (404, "", ErrorClass.STORE_ERROR, ErrorClass.NOT_FOUND),
        (400, "InvalidBlobTier", ErrorClass.CLIENT_ERROR, ErrorClass.STORE_ERROR),
        (400, "InvalidMetadata", ErrorClass.CLIENT_ERROR, ErrorClass.STORE_ERROR),
        (400, "MetadataTooLarge", ErrorClass.CLIENT_ERROR, ErrorClass.STORE_ERROR),
        (400, "InvalidResourceName", ErrorClass.BAD_KEY, ErrorClass.STORE_ERROR),
        (409, "BlobArchived", Refused, ErrorClass.FORBIDDEN),
        (412, "ConditionNotMet", ErrorClass.STORE_ERROR, ErrorClass.STORE_ERROR),
    ],
)
def test_what_an_error_becomes(status: int, code: str, destination: object, source: object) -> None:
    """On either side: the class of a row's failure, or the error that ends the run."""
    for side, expected in (("destination", destination), ("source", source)):
        found = azure_error(status, {"x-ms-error-code": code}, side)
        assert (found.error_class if isinstance(found, ObjectError) else type(found)) is expected
        assert f"HTTP {status}" in str(found) or expected is ErrorClass.NOT_FOUND


def test_why_credentials_are_refused() -> None:
    """A SAS that has ended and a wrong clock are told; otherwise the credentials themselves are to be checked."""
    now = datetime.now(UTC)

    def text(code: str, date: datetime, ends_at: datetime | None = None) -> str:
        headers = {"x-ms-error-code": code, "Date": format_datetime(date, usegmt=True)}
        return str(azure_error(403, headers, "destination", ends_at))

    assert "credentials have expired" in text("AuthenticationFailed", now, now - timedelta(seconds=1))
    assert "credentials have expired" in text("AuthorizationFailure", now, now - timedelta(seconds=1))
    assert "this machine's clock is wrong" in text("AuthenticationFailed", now - timedelta(minutes=16))
    assert "refuses the credentials" in text("AuthenticationFailed", now, now + timedelta(hours=1))
    assert "refuses the credentials" in text("AuthorizationFailure", now - timedelta(minutes=16))


def test_only_the_code_of_an_error_is_repeated() -> None:
    """Its text, a SAS and a key are in no message."""
    sas = Sas("?sv=2020-12-06&sp=rlw&sig=canary-secret")
    with OddAzure(error(400, "OutOfRangeQueryParameterValue"), error(400, "canary-secret")) as server:

        async def test(container: AzureContainer) -> None:
            for code in (" (OutOfRangeQueryParameterValue)", ""):  # a code is a word
                with pytest.raises(ObjectError) as caught:
                    await put(container)
                assert str(caught.value) == f"the destination answered HTTP 400{code}"

        in_container(server, test, sas)
        assert server.asked[0].target.endswith("/box/k?sv=2020-12-06&sp=rlw&sig=canary-secret")
    assert "canary" not in repr(sas) + repr(SharedKey("account", "Y2FuYXJ5"))


def test_a_busy_server() -> None:
    """It is asked again no sooner than it says."""
    with OddAzure(error(503, "ServerBusy", **{"Retry-After": "7"})) as server:

        async def test(container: AzureContainer) -> None:
            for request in (put(container), container.copy("k", "box", ObjectInfo("s", 3, '"0x1"', None))):
                with pytest.raises(ObjectError) as caught:
                    await request
                assert (caught.value.error_class, caught.value.retry_after_s) == (ErrorClass.RATE_LIMITED, 7.0)
                assert caught.value.again is Again.NOW
            with pytest.raises(ObjectError):  # the preflight says nothing of a server that is busy
                await container.refusal("p", writing=True)

        in_container(server, test)


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (412, "ConditionNotMet", None),
        (404, "BlobNotFound", None),
        (404, "ContainerNotFound", "does not exist"),
        (403, "AuthenticationFailed", "refuses these credentials (HTTP 403 AuthenticationFailed). Check them"),
        (403, "AccountIsDisabled", "refuses these credentials (HTTP 403 AccountIsDisabled)"),
        (403, "AuthorizationFailure", "refuses to write with these credentials (HTTP 403 AuthorizationFailure). They"),
        (301, "", "answered HTTP 301 to the check"),
    ],
)
def test_what_the_preflight_says(status: int, code: str, text: str | None) -> None:
    """The table in azure/preflight.py."""
    found = refusal(status, code, "write")
    assert found == text or (text is not None and found is not None and found.startswith(text))


@pytest.mark.parametrize(
    ("rights", "attributes", "writing", "lacks"),
    [
        ("rlw", {TAGS: "a=1"}, True, "`t` (write tags). Make one with all of `r`, `l` and, to write, `w`, and for"),
        ("rl", {TAGS: "a=1"}, True, "`w` (write) and `t` (write tags). Make one"),
        ("rlwt", {TAGS: "a=1"}, True, None),
        ("rlw", {"sku": "4"}, True, None),
        ("rl", {TAGS: "a=1"}, False, None),
    ],
)  # fmt: skip
def test_a_sas_without_the_right_to_tags(
    rights: str, attributes: dict[str, str], writing: bool, lacks: str | None
) -> None:
    """A right that the job's attributes need is told before anything moves."""

    async def test(container: AzureContainer) -> None:
        found = await container.refusal("p", writing=writing, attributes=attributes)
        assert (found or "").startswith(f"cannot be used with this SAS, which lacks {lacks}" if lacks else "")
        assert (found is None) is (lacks is None)

    with OddAzure(Answer(200), Answer(200), Answer(412)) as server:
        in_container(server, test, Sas(f"sp={rights}&sig=x"))
        assert {asked.method for asked in server.asked} == (set() if lacks else {"GET", "HEAD", *["PUT"] * writing})


@pytest.mark.parametrize(
    ("attributes", "answer", "text"),
    [
        (
            {TAGS: "a=1"}, error(403, "AuthorizationPermissionMismatch"),
            "tags (HTTP 403 AuthorizationPermissionMismatch). Correct or remove them; tags need `t` in a SAS or the "
            "role Storage Blob Data Owner",
        ),
        ({TIER: "Cold", "sku": "4"}, error(400, "InvalidHeaderValue"),
         "storage_class, metadata.sku (HTTP 400 InvalidHeaderValue). Correct or remove them"),
        ({"sku": "4"}, error(412, "ConditionNotMet"), None),
    ],
)  # fmt: skip
def test_attributes_that_the_container_refuses(attributes: dict[str, str], answer: Answer, text: str | None) -> None:
    """What each blob is to have is tried on a blob that cannot be, after a write without."""

    async def test(container: AzureContainer) -> None:
        found = await container.refusal("p", writing=True, attributes=attributes)
        assert found == (text and f"refuses blobs with the attributes that the job sets: {text}")

    with OddAzure(Answer(200), Answer(200), error(412, "ConditionNotMet"), answer) as server:
        in_container(server, test)
        *_, plain, full = server.asked
        assert (plain.method, full.method) == ("PUT", "PUT")
        assert full.headers.keys() - plain.headers.keys() == attribute_headers(attributes)[0].keys()
        assert full.headers["if-match"] == plain.headers["if-match"] == '"0x0"'


# --- answers that are lost, cut or wrong


def test_a_creation_whose_answer_was_lost() -> None:
    """The request is repeated, and what exists may be ours."""
    with OddAzure(Answer(lost=True), error(409, "BlobAlreadyExists")) as server:

        async def test(container: AzureContainer) -> None:
            sent = await put(container, create=True)
            assert (sent.exists, sent.sent_twice) == (True, True)

        in_container(server, test)
        assert [each.headers["if-none-match"] for each in server.asked] == ["*", "*"]


@pytest.mark.parametrize(("there", "written"), [(b"new", True), (b"another's", False)])
def test_a_state_file_whose_answer_was_lost(there: bytes, written: bool) -> None:
    """It was written if it has these bytes now."""
    with OddAzure(Answer(lost=True), error(412, "ConditionNotMet"), Answer(200, ETAG, there)) as server:

        async def test(container: AzureContainer) -> None:
            assert await container.write_if("k", b"new", '"0x0"') is written

        in_container(server, test)


def test_an_answer_without_a_digest_is_no_proof() -> None:
    """It is read back once the server has shown that it sends digests, and so is one with another digest."""
    with OddAzure(Answer(201, {**ETAG, **MD5}), Answer(201, ETAG), Answer(201, {**ETAG, **OTHER_MD5})) as server:

        async def test(container: AzureContainer) -> None:
            read: list[str] = []
            policy = ReadBackPolicy()
            policy.matches = 100  # so that a size would be enough

            class Store:
                async def head(self, key: str) -> ObjectInfo | None:
                    raise AssertionError

                async def digest(
                    self, key: str, *, max_bytes: int, moved: Callable[[], object]
                ) -> tuple[str, ObjectInfo]:
                    read.append(key)
                    return BODY.sha256, ObjectInfo(key, 3, None, None)

            for method in (Confirmed.DIGEST, Confirmed.READ_BACK, Confirmed.READ_BACK):
                assert (await confirm(Store(), policy, "not one in 20", BODY, await put(container))).method is method
            assert len(read) == 2

        in_container(server, test)


@pytest.mark.parametrize(
    ("sent", "result"),
    [
        (Sent("e", md5=BODY.md5), Comparison.EQUAL),
        (Sent("e", md5=BODY.md5, in_parts=True), Comparison.EQUAL),
        (Sent("e", md5="0" * 32), Comparison.DIFFERENT),
        (Sent(f'"{BODY.md5}"', md5="0" * 32), Comparison.DIFFERENT),
        (Sent("e", in_parts=True), Comparison.DIFFERENT),
        (Sent("e"), Comparison.UNKNOWN),
    ],
)
def test_an_md5_apart_from_the_etag(sent: Sent, result: Comparison) -> None:
    """It decides before any ETag."""
    assert compare_digests(sent, BODY.md5, BODY.sha256) is result


def test_a_block_with_another_digest() -> None:
    """A part is not sent if the answer has the MD5 of other bytes; without one, acceptance is the proof."""
    with OddAzure(Answer(201, OTHER_MD5), Answer(201)) as server:

        async def test(container: AzureContainer) -> None:
            with pytest.raises(ObjectError) as caught:
                await container.put_part("k", "0" * 16, 1, b"abc", DIGESTS, 0)
            assert caught.value.error_class is ErrorClass.UPLOAD_UNCONFIRMED
            assert (await container.put_part("k", "0" * 16, 1, b"abc", DIGESTS, 0)).md5 == BODY.md5

        in_container(server, test)
        assert server.asked[0].headers["content-md5"] == MD5["Content-MD5"]


def test_the_digest_of_a_whole_upload() -> None:
    """Azure keeps the MD5 that it is given, and compares that of the list of blocks; no other reading confirms it."""
    with OddAzure(Answer(201, MD5), Answer(201, ETAG)) as server:

        async def test(container: AzureContainer) -> None:
            body = replace(BODY, data=None, path=Path("/no/such/spool"))
            part = await container.put_part("k", "0" * 16, 1, b"abc", DIGESTS, 0)
            sent = await container.complete("k", "0" * 16, [part], body, {}, create=False)
            assert (await confirm(Unasked(), ReadBackPolicy(), "k", body, sent)).method is Confirmed.DIGEST

        in_container(server, test)
        asked = server.asked[1]
        assert asked.headers["x-ms-blob-content-md5"] == MD5["Content-MD5"]
        assert asked.headers["content-md5"] == in_base64(hashlib.md5(asked.body).hexdigest())


class Unasked:
    """A store that must not be asked."""

    async def head(self, key: str) -> ObjectInfo | None:
        raise AssertionError

    async def digest(self, key: str, *, max_bytes: int, moved: Callable[[], object]) -> tuple[str, ObjectInfo]:
        raise AssertionError


COPIED = {**ETAG, "x-ms-copy-status": "success"}


@pytest.mark.parametrize(
    "answer",
    [
        Answer(202, {**COPIED, **OTHER_MD5}),
        Answer(202, {**ETAG, "x-ms-copy-status": "pending"}),
        Answer(201, COPIED),
        error(400, "Md5Mismatch"),
        error(403, "CannotVerifyCopySource"),
    ],
)
def test_a_copy_that_is_not_the_source(answer: Answer) -> None:
    """The caller reads and writes the bytes."""
    with OddAzure(answer) as server:

        async def test(container: AzureContainer) -> None:
            with pytest.raises(CannotCopy):
                await container.copy("k", "other", ObjectInfo("s ?", 3, '"0x1"', None, md5=BODY.md5, tier="Cool"))

        in_container(server, test)
        [asked] = server.asked
        assert asked.headers["x-ms-source-content-md5"] == MD5["Content-MD5"]
        assert asked.headers["x-ms-source-if-match"] == '"0x1"'
        assert asked.headers["x-ms-access-tier"] == "Cool"
        assert asked.headers["x-ms-copy-source"] == f"{server.url}/other/s%20%3F"


@pytest.mark.parametrize(
    "given", [{"etag": '"0x1"\r\nx-ms-tags: a=b'}, {"tier": "Hot\nx: y"}, {"etag": ""}, {"etag": "\u00e9"}]
)
def test_a_list_puts_no_lines_into_a_copys_request(given: dict[str, str]) -> None:
    """What is not a word of a header is never sent."""
    with OddAzure(Answer(202, {**COPIED, **MD5})) as server:

        async def test(container: AzureContainer) -> None:
            source = ObjectInfo("s", 3, '"0x1"', None, md5=BODY.md5)
            assert (await container.copy("k", "box", source)).md5 == BODY.md5
            with pytest.raises(CannotCopy):
                await container.copy("k", "box", source._replace(**given))  # type: ignore[arg-type]

        in_container(server, test)
        assert len(server.asked) == 1


def test_a_proxy_with_a_limit_of_its_own() -> None:
    """413 for a spooled body: parts may be accepted."""
    with OddAzure(error(413, "RequestBodyTooLarge")) as server:

        async def test(container: AzureContainer) -> None:
            with pytest.raises(TooLargeAtOnce), Path(__file__).open("rb") as file:
                await container.put("k", Spooled(file.fileno(), 10), DIGESTS, {}, create=False)

        in_container(server, test)


def test_only_a_missing_object_counts_as_deleted() -> None:
    """A missing container, and a refusal, are errors."""
    with OddAzure(
        error(404, "BlobNotFound"), error(404, "ContainerNotFound"), error(409, "SnapshotsPresent")
    ) as server:

        async def test(container: AzureContainer) -> None:
            await container.delete(["k"], "destination")
            with pytest.raises(Fatal, match="the destination container does not exist"):
                await container.delete(["k"], "destination")
            with pytest.raises(Refused, match="HTTP 409 SnapshotsPresent"):
                await container.delete(["k"], "destination")

        in_container(server, test)


# --- listings


def page(blobs: str, marker: str = "<NextMarker />") -> Answer:
    return Answer(200, {}, f"\ufeff<EnumerationResults><Blobs>{blobs}</Blobs>{marker}</EnumerationResults>".encode())


def blob(name: str, more: str = "", *, encoded: bool = False) -> str:
    attribute = ' Encoded="true"' if encoded else ""
    return (
        f"<Blob><Name{attribute}>{name}</Name><Properties><Last-Modified>Tue, 01 Dec 2026 06:07:08 GMT</Last-Modified>"
        f"<Etag>0x1</Etag><Content-Length>3</Content-Length>{more}</Properties></Blob>"
    )


def test_a_page_of_the_service() -> None:
    """Names that XML cannot hold are decoded, directories are left out, ETags are quoted as everywhere else."""
    more = f"<Content-MD5>{in_base64(BODY.md5)}</Content-MD5><AccessTier>Cool</AccessTier>"
    blobs = [
        blob("a%01%EF%BF%BEb", more, encoded=True),
        blob("100%25", "<Content-MD5 />"),
        blob("&lt;Blob&gt;&amp;amp;&#x80;&#10;&quot;&apos;"),
        blob("folder", "<ResourceType>directory</ResourceType>"),
        blob("inferred", "<AccessTier>Cool</AccessTier><AccessTierInferred>true</AccessTierInferred>"),
        blob("folder/file", "<ResourceType>file</ResourceType>"),
    ]
    with OddAzure(page("".join(blobs), "<NextMarker>m &amp; n</NextMarker>")) as server:

        async def test(container: AzureContainer) -> None:
            found = await container.page("p q", "source")
            assert [each.key for each in found.objects] == [
                "a\x01\ufffeb",
                "100%25",
                "<Blob>&amp;\x80\n\"'",
                "inferred",
                "folder/file",
            ]
            assert found.objects[3].tier is None
            assert found.token == "m & n"
            at = datetime(2026, 12, 1, 6, 7, 8, tzinfo=UTC)
            first = ObjectInfo("a\x01\ufffeb", 3, '"0x1"', at, md5=BODY.md5, version='"0x1"', tier="Cool")
            assert found.objects[0] == first
            assert found.objects[1].md5 is None
            assert (await container.page("", "source", token="other")).token == "m & n"

        in_container(server, test)
        assert server.asked[0].target == "/account/box?restype=container&comp=list&prefix=p%20q&maxresults=5000"
        assert server.asked[1].target.endswith("&marker=other")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, {}, page(blob("a") * 9).body, cut=True), "the connection to the source failed"),
        (page(blob("a"), ""), "the source's response is not a listing of Azure Blob Storage"),
        (page(blob("a"), "<NextMarker>same</NextMarker>"), "the source's listing does not advance"),
        (page("<Blob><Name>a</Name></Blob>"), "the source's response is not a listing of Azure Blob Storage"),
        (page(blob("a").replace("<Content-Length>3", "<Content-Length>x")), "the source's response is not a listing"),
        (page(blob("")), "the source's response is not a listing"),
        (page(blob("a").replace("<Etag>0x1</Etag>", "")), "the source's response is not a listing"),
        (page(blob("%FF", encoded=True)), "the source's response is not a listing of Azure Blob Storage"),
        (Answer(200, {}, b"<html>"), "the source's response is not a listing"),
        (Answer(200, {}, b"<ListBucketResult/>"), "the source's response is not a listing"),
        (Answer(200, {}, b"<!DOCTYPE x>" + page("").body[3:]), "the source's response is not a listing"),
        (page(blob("a") + "<!-- <Blob> -->"), "the source's response is not a listing"),
        (Answer(200, {}, b"<Other><NextMarker /></Other>"), "the source's response is not a listing"),
        (page("<Blob>" + blob("a")), "the source's response is not a listing"),
    ],
)
def test_a_listing_that_cannot_be_believed(answer: Answer, message: str) -> None:
    """Cut off, without an end, in a circle, or of another kind: an error, and never a shorter listing."""
    with OddAzure(answer) as server:

        async def test(container: AzureContainer) -> None:
            with pytest.raises(ObjectError) as caught:
                await container.page("", "source", token="same")
            assert message in str(caught.value) or caught.value.error_class is ErrorClass.TRUNCATED

        in_container(server, test)


def test_a_response_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not an object has a limit."""
    monkeypatch.setattr("ferry.storage.endpoint.MAX_RESPONSE_BYTES", 100)
    with OddAzure(page(blob("a"))) as server:

        async def test(container: AzureContainer) -> None:
            with pytest.raises(ObjectError, match="exceeds 100 bytes"):
                await container.page("", "source")

        in_container(server, test)


# --- attributes, addresses, credentials


def test_attributes_as_headers() -> None:
    """No value ends a line of the request, and a tier is an attribute only if it was set."""
    headers, lost = attribute_headers({"a": "x\r\nx-ms-tags: b=c", "b-c": "1", "d\u00e9": "2", "class": "3", "": "4"})
    assert headers == {"x-ms-meta-a": "x x-ms-tags: b=c", "x-ms-meta-class": "3"}
    assert lost == ("b-c", "d\u00e9", "")
    assert attributes_of({"x-ms-access-tier": "Hot", "x-ms-access-tier-inferred": "true"}) == {}
    assert attributes_of({"x-ms-access-tier": "Cold", "X-Ms-Meta-Sku": "1"}) == {TIER: "Cold", "sku": "1"}
    long = {"a": "\u00e4" * 2900}  # as one word it has the length that `split` counts
    assert attribute_headers(long)[0] == {"x-ms-meta-a": in_ascii(long["a"])}
    assert attributes_of(attribute_headers(long)[0]) == long


def test_credentials_that_cannot_be() -> None:
    """A key that is not base64, and a query that is not a SAS; neither is in the message."""
    for make in (lambda: SharedKey("a", "canary!"), lambda: Sas("?sp=r&canary=1"), lambda: Sas("sig=canary\r\nx: y")):
        with pytest.raises(UserError) as caught:
            make()
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("end", "at"),
    [
        ("2026-12-01T06:00:00Z", datetime(2026, 12, 1, 6, tzinfo=UTC)),
        ("2026-12-01T06%3A00Z", datetime(2026, 12, 1, 6, tzinfo=UTC)),
        ("2026-12-01", datetime(2026, 12, 1, tzinfo=UTC)),
        ("soon", None),
        ("", None),
    ],
)
def test_when_a_sas_ends(end: str, at: datetime | None) -> None:
    assert Sas(f"sig=x&se={end}").ends_at == at


def test_rights_of_a_stored_policy_are_not_known() -> None:
    assert Sas("sig=x&si=policy").lacks({"r": "read"}) == []
    assert Sas("sig=x&sp=c").lacks({"wc": "write"}) == []


def test_numbers_of_headers() -> None:
    assert md5_of(MD5["Content-MD5"]) == BODY.md5
    assert [md5_of(text) for text in (None, "", "AAAA", "no base64", "\u00e9")] == [None] * 5
    assert [date_of(text) for text in (None, "", "Tue, 01 Foo 2026 06:07:08 GMT", "2026")] == [None] * 4


# --- blocks


@pytest.mark.parametrize(
    ("size", "part"),
    [
        (1, 8 * MIB),
        (10_000 * 8 * MIB, 8 * MIB),
        (10_000 * 8 * MIB + 1, 9 * MIB),
        (50_000 * 4_000 * MIB, 4_000 * MIB),
    ],
)
def test_the_size_of_a_part(size: int, part: int) -> None:
    """It grows as everywhere, so that 10,000 parts are enough, until a block has its largest size."""
    assert AzureContainer.part_bytes(_any(), size) == part


def test_a_body_that_azure_cannot_hold() -> None:
    """More than 50,000 blocks of 4,000 MiB are too large, which the row is told."""
    with pytest.raises(ObjectError) as caught:
        AzureContainer.part_bytes(_any(), 50_000 * 4_000 * MIB + 1)
    assert caught.value.error_class is ErrorClass.TOO_LARGE


def _any() -> AzureContainer:
    return AzureContainer.__new__(AzureContainer)


def test_a_part_is_what_the_contract_says() -> None:
    """The ID of a block is within Azure's 64 bytes, and says upload, number and MD5."""
    block = Block("0123456789abcdef", 50_000, "f" * 32)
    assert len(base64.b64decode(block.id)) <= 64
    assert Block.of(block.id) == block
    assert Block.of(base64.b64encode(b"of another client").decode()) is None
    assert Block.of(base64.b64encode(b"0" * 60).decode()) is None
    assert Part(1, 2, block.id).etag == block.id
