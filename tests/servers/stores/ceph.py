"""Ceph's RADOS gateway with a monitor and one storage daemon in memory: S3 as another implementation speaks it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence

from demo.ports import free_ports
from tests.servers.stores.known import Known
from tests.servers.stores.server import START_WITHIN_S, S3StoreServer

APT_LINE = "apt-get update && apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common"
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
KMS_KEY = "testkey-1"  # for SSE-KMS

# Without `crc` the gateway never gets past its authentication at the monitor. The storage daemon takes free ports from
# Ceph's own range (6800 to 7568), so that several can run.
_CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_v1}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
ms mon client mode = crc
ms client mode = crc
ms cluster mode = crc
ms service mode = crc
ms bind msgr2 = true
run dir = {folder}/run
pid file = {folder}/run/$name.pid
admin socket = {folder}/run/$name.asok
log file = {folder}/$name.log
keyring = {folder}/keyring
public network = 127.0.0.0/8
osd op num shards = 2
osd op num threads per shard = 1
[mon.a]
mon data = {folder}/mon.a
[osd.0]
osd data = {folder}/osd.0
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 64
rgw dns name = localhost
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = {kms_key}=YmluCmJvb3N0CmJvb3N0LWJ1aWxkCmNlcGguY29uZgo=
"""


class Ceph(S3StoreServer):
    """The second real S3: keys and their order are kept, signatures and SHA-256s are compared."""

    name = "Ceph RGW"
    known = Known(creates_parts_once=False, if_match="bare", copies_if_equal=False)

    @classmethod
    def missing(cls) -> str | None:
        lacking = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
        return f"{', '.join(lacking)} missing. Run this as root:  {APT_LINE}" if lacking else None

    @classmethod
    def program(cls) -> Sequence[str]:
        return ("radosgw", "-c", "ceph.conf", "-n", "client.rgw", "-f")

    def environment(self) -> dict[str, str]:
        return {"CEPH_CONF": f"{self.folder}/ceph.conf"}

    def prepare(self) -> None:
        """Makes a cluster of one monitor and one storage daemon, starts it and adds the user."""
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        mon_v1, mon_v2 = free_ports(2)
        given = {"fsid": fsid, "mon_v1": mon_v1, "folder": self.folder, "port": self.port, "kms_key": KMS_KEY}
        (self.folder / "ceph.conf").write_text(_CONFIG.format(**given))
        for name in ("run", "osd.0"):
            (self.folder / name).mkdir()
        allow = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        for name in ("mon.", "client.admin", "client.rgw"):
            created = ["--create-keyring"] if name == "mon." else []
            self.call(["ceph-authtool", "keyring", *created, "--gen-key", "-n", name, *allow])
        address = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        self.call(["monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, "monmap"])
        self.call(["ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring"])
        self.launch(["ceph-mon", "-i", "a", "-f"])
        self._once_the_monitor_answers(["ceph", "osd", "new", osd])
        self.call(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "--osd-objectstore", "memstore"])
        self.launch(["ceph-osd", "-i", "0", "-f"])
        self.call(
            ["radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=t", "--display-name=t",
             f"--access-key={self.access_key}", f"--secret-key={self.secret_key}"]
        )  # fmt: skip

    def _once_the_monitor_answers(self, command: Sequence[str]) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.call(command, timeout_s=10.0)
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ceph's monitor did not answer within {START_WITHIN_S:.0f} s:\n{self._log_tail()}")
            time.sleep(0.2)
