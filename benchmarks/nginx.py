"""An nginx with the origin's variants, the S3 server with 50 ms delay, and a sink that accepts everything.

It has its own configuration, on free loopback ports. Root installs it from Debian's packages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from demo.ports import free_ports

PACKAGES = ("nginx-light", "libnginx-mod-http-lua")
MODULES = Path("/usr/lib/nginx/modules")
WORKERS = 2
DELAY_S = 0.05
ALLOWED_PER_S, BURST = 200, 20
SERVERS = ("origin", "slow_origin", "limited", "limited_silent", "slow_s3", "timed_s3", "sink")
READY_S = 10.0
FLUSH_S = 0.2

_CONF = """
{modules}
daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {run}/nginx.pid;
error_log {run}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  log_format bench '$msec $request_time $status $request_method $uri';
  access_log off;
  types {{ image/jpeg jpg; image/tiff tif; text/html html; }}
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_requests 100000000;  # the default closes a connection after 1000
  keepalive_timeout 300s;
  client_max_body_size 0;
  client_body_temp_path {run}/body;
  proxy_temp_path {run}/proxy;
  fastcgi_temp_path {run}/fastcgi;
  uwsgi_temp_path {run}/uwsgi;
  scgi_temp_path {run}/scgi;
  limit_req_zone $server_name zone=loud:64k rate={allowed}r/s;
  limit_req_zone $server_name zone=silent:64k rate={allowed}r/s;
  limit_req_status 429;
  limit_req_log_level info;
  map $status $pause {{ 429 1; default ""; }}
  upstream store {{ server 127.0.0.1:{store}; keepalive 512; keepalive_requests 100000000; }}

  server {{
    listen 127.0.0.1:{origin} backlog=4096;
    access_log {run}/origin.log bench buffer=64k flush={flush};
    location / {{ root {root}; autoindex on; }}
  }}
  server {{
    listen 127.0.0.1:{slow_origin} backlog=4096;
    access_log {run}/slow_origin.log bench buffer=64k flush={flush};
    location / {{ root {root}; autoindex on; access_by_lua_block {{ ngx.sleep({delay}) }} }}
  }}
  server {{
    server_name loud;
    listen 127.0.0.1:{limited} backlog=4096;
    access_log {run}/limited.log bench buffer=64k flush={flush};
    add_header Retry-After $pause always;
    location ~ /$ {{ root {root}; autoindex on; }}  # listings are not limited: a refused one would end the run
    location / {{ root {root}; limit_req zone=loud burst={burst} nodelay; }}
  }}
  server {{
    server_name silent;
    listen 127.0.0.1:{limited_silent} backlog=4096;
    access_log {run}/limited_silent.log bench buffer=64k flush={flush};
    location ~ /$ {{ root {root}; autoindex on; }}  # listings are not limited: a refused one would end the run
    location / {{ root {root}; limit_req zone=silent burst={burst} nodelay; }}
  }}
  server {{
    listen 127.0.0.1:{slow_s3} backlog=4096;
    location / {{
      access_by_lua_block {{ ngx.sleep({delay}) }}
      {proxy}
    }}
  }}
  server {{
    listen 127.0.0.1:{timed_s3} backlog=4096;
    access_log {run}/timed_s3.log bench buffer=64k flush={flush};
    location / {{ {proxy} }}
  }}
{sink_server}
}}
"""

_PROXY = """proxy_pass http://store;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;  # it is signed
      proxy_request_buffering off;
      proxy_buffering on;
      proxy_buffers 16 64k;
      proxy_ignore_client_abort on;"""

# Accepts everything and stores nothing. A client that compares the ETag gets the right one, looked up by the
# key's file name in a table made beforehand, so that the sink spends no time on digests.
_SINK = """
  init_by_lua_block {{
    md5 = {{}}
    for line in io.lines("{table}") do
      local name, digest = line:match("^(%S+)\\t(%x+)")
      md5[name] = digest
    end
  }}
  server {{
    listen 127.0.0.1:{sink} backlog=4096;
    access_log {run}/sink.log bench buffer=64k flush={flush};
    location /state/ {{  # a bucket that is kept
      access_log off;
      {proxy}
    }}
    location / {{
      content_by_lua_block {{
        local method, args = ngx.req.get_method(), ngx.req.get_uri_args()
        ngx.req.discard_body()
        if method == "PUT" then
          local digest = md5[ngx.var.uri:match("([^/]+)$") or ""]
          if digest then ngx.header["ETag"] = '"' .. digest .. '"' end
          ngx.header["Content-Length"] = 0
          return ngx.exit(200)
        elseif method == "POST" and args["uploads"] then
          ngx.header["Content-Type"] = "application/xml"
          ngx.print('<?xml version="1.0" encoding="UTF-8"?><InitiateMultipartUploadResult><Bucket>b</Bucket>'
            .. '<Key>k</Key><UploadId>u</UploadId></InitiateMultipartUploadResult>')
        elseif method == "DELETE" then
          return ngx.exit(204)
        elseif method == "HEAD" then
          if not ngx.var.uri:match("^/[^/]+/?$") then return ngx.exit(404) end  -- the bucket is there, no object is
          return ngx.exit(200)
        elseif method == "GET" and args["location"] then
          ngx.header["Content-Type"] = "application/xml"
          ngx.print('<?xml version="1.0" encoding="UTF-8"?><LocationConstraint/>')
        elseif method == "GET" then
          ngx.header["Content-Type"] = "application/xml"
          ngx.print('<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><Prefix></Prefix>'
            .. '<KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>')
        end
      }}
    }}
  }}
"""

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def install() -> None:
    """Installs Debian's nginx with Lua as root; as another user prints the command to run, and exits with 2."""
    if program() and (MODULES / "ngx_http_lua_module.so").exists():
        return
    line = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"The origin is nginx with Lua, which is not installed. Run this, then try again:  sudo sh -c '{line}'")
        sys.exit(2)
    print(f"installing {' '.join(PACKAGES)} with apt")
    # its service must not start and take port 80
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["bash", "-c", line], check=True, env=quiet, stdout=subprocess.DEVNULL)


def version() -> str:
    found = program()
    assert found is not None
    return subprocess.run([found, "-v"], capture_output=True, text=True, check=True).stderr.strip().rpartition("/")[2]


def program() -> str | None:
    """Returns the path of nginx, or None."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Nginx:
    """The server. The origin serves ``root``, S3 listens at ``store_port``; the file ``digests`` has name -> MD5."""

    def __init__(self, run: Path, root: Path, store_port: int, digests: Path) -> None:
        self.run = run
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        run.mkdir(parents=True, exist_ok=True)
        flush = f"{int(FLUSH_S * 1000)}ms"
        modules = "\n".join(
            f"load_module {MODULES}/{name};"
            for name in ("ndk_http_module.so", "ngx_http_lua_module.so")
            if (MODULES / name).exists()
        )
        sink = _SINK.format(table=digests, run=run, flush=flush, sink=self.ports["sink"], proxy=_PROXY)
        text = _CONF.format(
            modules=modules, workers=WORKERS, run=run, root=root, store=store_port, delay=DELAY_S, flush=flush,
            allowed=ALLOWED_PER_S, burst=BURST, proxy=_PROXY, sink_server=sink, **self.ports,
        )  # fmt: skip
        if os.geteuid() != 0:
            text = text.replace("user root;\n", "")
        (run / "nginx.conf").write_text(text)

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.ports[server]}"

    def log(self, server: str) -> Path:
        return self.run / f"{server}.log"

    def pin(self, cores: set[int]) -> None:
        """Sets the cores on which its processes may run. They have one thread each."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.sched_setaffinity(pid, cores)

    def __enter__(self) -> Self:
        found = program()
        assert found is not None
        arguments = [
            found,
            "-p",
            str(self.run),
            "-c",
            str(self.run / "nginx.conf"),
            "-e",
            str(self.run / "error.log"),
        ]
        with (self.run / "nginx.out").open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = "".join((self.run / name).read_text() for name in ("nginx.out", "error.log"))
                self.__exit__()
                raise RuntimeError(f"nginx did not start:\n{text}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(self.url("sink"), timeout=1).close()
            return True
        return False
