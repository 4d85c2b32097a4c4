"""Object stores: put, get, head, list, delete, copy and multipart uploads for buckets and directories."""

from ferry.storage.confirmation import Confirmation
from ferry.storage.credentials import Access
from ferry.storage.errors import ConditionUnsupported
from ferry.storage.factory import open_store
from ferry.storage.local_files import FoldedName, Folder
from ferry.storage.object_info import ObjectInfo, md5_of_etag, same_etag
from ferry.storage.preflight import bucket_setting, run_preflight
from ferry.storage.s3 import CannotCopy
from ferry.storage.s3_control import BucketControl
from ferry.storage.store import AlreadyThere, Store, is_odd

__all__ = [
    "Access",
    "AlreadyThere",
    "BucketControl",
    "CannotCopy",
    "ConditionUnsupported",
    "Confirmation",
    "FoldedName",
    "Folder",
    "ObjectInfo",
    "Store",
    "bucket_setting",
    "is_odd",
    "md5_of_etag",
    "open_store",
    "run_preflight",
    "same_etag",
]
