"""The servers that the contract of stores is held against; `make stores` installs them (docs/decisions/0050)."""

from tests.servers.stores.azurite import Azurite, AzuriteHttps
from tests.servers.stores.ceph import Ceph
from tests.servers.stores.directory import LocalDirectory
from tests.servers.stores.gcs_servers import FakeGcsServer, GcpStorageEmulator
from tests.servers.stores.known import Known
from tests.servers.stores.s3_servers import MinioGateway, Moto, Rclone, SeaweedFS
from tests.servers.stores.server import StoreServer

__all__ = [
    "Azurite",
    "AzuriteHttps",
    "Ceph",
    "FakeGcsServer",
    "GcpStorageEmulator",
    "Known",
    "LocalDirectory",
    "MinioGateway",
    "Moto",
    "Rclone",
    "SeaweedFS",
    "StoreServer",
]
