"""Object stores: put, get, head, list, delete, copy and uploads in parts, for buckets and directories."""

from ferry.storage.access import Access, AzureAccess, GoogleAccess, S3Access
from ferry.storage.confirmation import Confirmation
from ferry.storage.control import Control
from ferry.storage.directory import FoldedName, Folder
from ferry.storage.errors import ConditionUnsupported
from ferry.storage.factory import bucket_of, open_control, open_store
from ferry.storage.object_info import ObjectInfo, md5_of_etag, same_etag
from ferry.storage.odd_keys import is_odd
from ferry.storage.preflight import ends_too_early, run_preflight
from ferry.storage.provider import CannotCopy
from ferry.storage.store import AlreadyThere, Store
from ferry.storage.unfinished import Unfinished

__all__ = [
    "Access",
    "AlreadyThere",
    "AzureAccess",
    "CannotCopy",
    "ConditionUnsupported",
    "Confirmation",
    "Control",
    "FoldedName",
    "Folder",
    "GoogleAccess",
    "ObjectInfo",
    "S3Access",
    "Store",
    "Unfinished",
    "bucket_of",
    "ends_too_early",
    "is_odd",
    "md5_of_etag",
    "open_control",
    "open_store",
    "run_preflight",
    "same_etag",
]
