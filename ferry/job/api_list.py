"""The job's `manifest` as an API: its URL, how its pages follow each other, and what a row has."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from ferry.job.base import Model as _Model
from ferry.job.base import ModelOfTypes
from ferry.job.validators import ADDRESS_SCHEMA, manifest_location, no_secret_in_address

PaginatorType = Literal["single_page", "header_link", "json_link", "cursor", "page_number", "offset"]


def _path(value: str) -> str:
    """Validates a path into a JSON document, such as `data.items` or `images.0.url`."""
    if not re.fullmatch(r"[^\s.$\[\]]+(\.[^\s.$\[\]]+)*", value):
        raise ValueError("a path names keys with dots between them, and entries of lists by number: `data.items.0.url`")
    return value


JsonPath = Annotated[str, AfterValidator(_path)]


class Paginator(ModelOfTypes):
    """How the list's pages follow each other, in the words of dlt's paginators. `total_path` names a number in each page: if the list ends before it is reached, the run ends with exit code 2."""

    _keys = {
        "single_page": ((), ()),
        "header_link": ((), ("links_next_key",)),
        "json_link": (("next_url_path",), ()),
        "cursor": (("cursor_path", "cursor_param"), ()),
        "page_number": ((), ("base_page", "page_param", "total_path")),
        "offset": (("limit",), ("offset", "offset_param", "limit_param", "total_path")),
    }

    type: PaginatorType
    """`single_page`; `header_link` (a Link header has the next page); `json_link` (the page has its URL); `cursor` (the page has a value for the next request); `page_number`; `offset`."""
    links_next_key: str = "next"
    """`header_link`: the `rel` of the next page in the Link header."""
    next_url_path: JsonPath | None = None
    """`json_link`: path to the next page's URL, such as `paging.next`."""
    cursor_path: JsonPath | None = None
    """`cursor`: path to the cursor of the next page, such as `meta.next_cursor`."""
    cursor_param: str | None = None
    """`cursor`: the query parameter that takes the cursor."""
    base_page: Annotated[int, Field(ge=0)] = 0
    """`page_number`: the number of the first page."""
    page_param: str = "page"
    """`page_number`: the query parameter that takes the number. Pages are requested until one is empty, or all of `total_path` are there."""
    limit: Annotated[int | None, Field(ge=1)] = None
    """`offset`: number of entries to request per page."""
    offset: Annotated[int, Field(ge=0)] = 0
    """`offset`: the first offset."""
    offset_param: str = "offset"
    """`offset`: the query parameter that takes the offset. The next offset counts the entries that arrived, since a server may send fewer than `limit`."""
    limit_param: str = "limit"
    """`offset`: the query parameter that takes `limit`."""
    total_path: JsonPath | None = None
    """`page_number`: path to the number of pages. `offset`: path to the number of entries."""


class ApiList(_Model):
    """A list from an API that answers with pages of JSON (docs/how-to/list-from-an-api.md). Paths have dots between keys, and numbers for entries of lists: `data.items`, `images.0.url`."""

    url: Annotated[str, Field(json_schema_extra=ADDRESS_SCHEMA)]
    """URL of the first page, with the parameters that every page has: `https://pim.example/v1/products?per_page=200`."""
    paginator: Paginator
    """How the pages follow each other."""
    data_selector: JsonPath | None = None
    """Path to the list of entries in a page. Default: the page itself is a list."""
    explode: JsonPath | None = None
    """Path to a list in each entry: each of its elements becomes a row. In `fields`, `_` is the element and `_n` its number, from 1."""
    fields: dict[str, JsonPath] = {}
    """Columns of the rows, with the path of each in the entry: `{url: image.href, sku: sku}`. `_` is the entry itself. Default: the entry's keys are the columns."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not re.match(r"https?://[^/\s]", value):
            raise ValueError("the URL of an API begins with `https://` or `http://`")
        return no_secret_in_address(value, "manifest.url")

    @model_validator(mode="after")
    def _rows_of_elements(self) -> ApiList:
        if self.explode and not self.fields:
            raise ValueError("`explode` needs `fields`, such as `fields: {url: _.url, sku: sku}`")
        return self


def _any_of(schema: dict[str, Any]) -> None:
    """Names the choices as Prefect's form does."""
    schema["anyOf"] = schema.pop("oneOf")


TEXT, MAPPING = "(text)", "(mapping)"  # added by pydantic to the path of an error (tasks/job_mistakes.py)
ManifestSetting = Annotated[
    Annotated[
        str,
        AfterValidator(manifest_location),
        Field(json_schema_extra={"title": "Address", **ADDRESS_SCHEMA}),
        Tag(TEXT),
    ]
    | Annotated[ApiList, Tag(MAPPING)],
    Discriminator(lambda given: MAPPING if isinstance(given, dict | ApiList) else TEXT),
    Field(json_schema_extra=_any_of),
]
