"""The steps of docs/how-to/cutover.md on two real nginx servers, while visitors ask for every object."""

from __future__ import annotations

import http.client
import re
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from demo.images import make_image
from tests.flows.project import ROOT, Ended, Project
from tests.support.proxies import find, missing
from tests.support.websites import Content, Visitors, Website

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find("nginx") is None, reason=missing("nginx"))]

PAGE = ROOT / "docs" / "how-to" / "cutover.md"
PLAIN, THUMBS = 560, 10
PAGE_NOT_IMAGE = "/products/sorry.jpg"  # a page where the list has an image: its row fails
NOT_FOUND = ["/gone.jpg", "/thumb?id=404", "/thumb"]
# Addresses of objects that the ledger has, in spellings that its rows do not have
SPELLINGS = [
    "/products/0/%700100.jpg", "/odd%20names/%c3%bcber.jpg", "/products/1/../0/p0100.jpg", "/products//0/p0100.jpg?v=2",
    "/thumb?id=3&v=2",
]  # fmt: skip
# Names that a map may get wrong: nginx's own characters, encodings, twins
ODD = [
    "with space.jpg", "100%.jpg", "50%25.jpg", "a+b.jpg", "it's.jpg", 'in "quotes".jpg', "semi;colon.jpg", "comma,.jpg",
    "dollar$uri.jpg", "{curly}.jpg", "[square].jpg", "(round).jpg", "back\\slash.jpg", "hash#1.jpg", "what?.jpg",
    "a&b=c.jpg", "tilde~.jpg", "~^regex.*$.jpg", "*.star.jpg", "at@.jpg", "Twin.jpg", "twin.jpg", "TWIN.JPG",
    "über.jpg", "u\u0308ber.jpg", "日本語.png", "🚢.jpg", "default.jpg", "include.jpg", "volatile.jpg",
]  # fmt: skip
# What `ferry missing` finds in the access log. It does not resolve dot segments and double slashes.
ABSENT = {
    ("unlisted", "/no%20row.jpg"), ("unlisted", "/thumb"), ("unlisted", "/products/1/../0/p0100.jpg"),
    ("unlisted", "/products//0/p0100.jpg"), ("not_image", PAGE_NOT_IMAGE), ("other", "/robots.txt"),
    ("gone", "/gone.jpg"), ("gone", "/thumb"),
}  # fmt: skip


def steps() -> dict[str, list[list[str]]]:
    """The lines of the page's blocks for a shell, by heading."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: [
            [line.strip() for line in block.strip().splitlines()]
            for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        ]
        for section in sections
    }


def nginx_files() -> Iterator[tuple[str, str]]:
    """The page's files of nginx: the name below /etc/nginx, which is the first line, and the text."""
    yield from re.findall(r"```nginx\n *# /etc/nginx/(\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def address(name: str) -> str:
    """Returns a path as browsers send it: they encode a part of what could be."""
    return "/" + quote(name, safe="/;,:@&=+$!~*'()[]")


class Story:
    """A shop that moves: its old site with uploads by PUT, its list of products, its new site, and the operators."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self.old_root, self.new_root = folder / "old" / "root", folder / "new" / "root"
        for root in (self.old_root, self.new_root):
            root.mkdir(parents=True)
        nginx = folder / "old" / "nginx"
        self.old = Website(
            nginx,
            f"""root {self.old_root}; include {nginx}/cutover/*.conf;
            location = /thumb {{ try_files /thumbs/$arg_id.jpg =404; }}
            location / {{ dav_methods PUT; create_full_put_path on; dav_access all:r; }}""",
        )
        self.new = Website(folder / "new" / "nginx", f"root {self.new_root};")
        self.allowed: dict[str, frozenset[Content]] = {}  # what a visitor may get for each target, at the moment
        self.keys: dict[str, str] = {}  # target -> key, of the rows of the list
        self.left = steps()

    def publish(self, target: str, key: str, body: bytes, *, listed: bool = True) -> None:
        """Put a file at the old site. If it is ``listed``, the list of products has its address."""
        path = self.old_root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        self.allowed[target] = frozenset({Content.of(body)})
        if listed:
            self.keys[target] = key

    def upload(self, target: str, key: str, body: bytes) -> int:
        """Upload an object through the old site. Returns the status."""
        before, after = self.allowed.get(target), Content.of(body)
        if before is not None:
            self.allowed[target] = before | {after}
        status = ask(self.old.port, target, "PUT", body).status
        if status in (201, 204):
            self.allowed[target] = frozenset({after})
            self.keys[target] = key
        elif before is not None:
            self.allowed[target] = before
        return status

    def write_list(self) -> None:
        """Export the list of products, as it is now."""
        site = f"http://127.0.0.1:{self.old.port}"
        rows = [{"sku": f"s{n}", "url": site + target, "key": key} for n, (target, key) in enumerate(self.keys.items())]
        self.project.manifest(rows)

    def write_nginx_files(self) -> None:
        for name, text in nginx_files():
            path = self.old.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def write_jobs(self) -> None:
        """Write the three jobs of the page."""
        private = {"allow_private_addresses": ["127.0.0.1"]}
        mine = {
            "destination": f"file://{self.new_root}/img/",
            "source": private,
            "failure_budget": None,
            "retries": None,
        }
        self.project.job(**mine, public_url=f"http://127.0.0.1:{self.old.port}/{{key}}")
        (self.project.folder / "job.yaml").rename(self.project.folder / "old-addresses.yaml")
        self.project.job(**mine, public_url=f"http://127.0.0.1:{self.new.port}/img/{{key}}")
        back = {
            "name": f"{self.project.name}-back", "manifest": f"file://{self.new_root}/img/",
            "destination": f"file://{self.old_root}/", "mode": "delta",
        }  # fmt: skip
        (self.project.folder / "back.yaml").write_text(yaml.safe_dump(back))

    def routes(self, of_objects: tuple[int, ...], port: int) -> dict[str, set[tuple[tuple[int, ...], int]]]:
        """Returns how each target is answered: an object of the ledger so, all else by the old site."""
        other = {"/robots.txt", "/no%20row.jpg", PAGE_NOT_IMAGE, "/thumb?id=3&v=2"}
        return {
            target: {((404,), self.old.port)} if target in NOT_FOUND
            else {((200,), self.old.port)} if target in other
            else {(of_objects, port)}
            for target in self.allowed
        }  # fmt: skip

    def absent(self, ended: Ended) -> set[tuple[str, str]]:
        """Returns what `ferry missing` says of addresses that visitors asked for: the reason, and the path."""
        line = rf"^ +[0-9,]+  (\S+)  http://127.0.0.1:{self.old.port}([^\s?]+)"
        found = re.findall(line, ended.expect(0).stdout, re.MULTILINE)
        return {(why, path) for why, path in found if path in {target.partition("?")[0] for target in self.allowed}}

    def do(self, heading: str) -> list[Ended]:
        """Do what the page says in the next block under a heading. Returns how its `ferry` commands ended."""
        ended = []
        for line in self.left[heading].pop(0):
            here = line.replace("/var/log/nginx/access.log", str(self.old.log))
            if line.startswith("ferry "):
                ended.append(self.project.ferry(*shlex.split(here)[1:]))
            else:
                self.old.shell(here, self.project.folder)
        return ended


def ask(port: int, target: str, method: str = "GET", body: bytes | None = None) -> Content:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return Content.of(answer.read(), answer.status)


def cache_control(port: int, target: str) -> str | None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("HEAD", target)
        return connection.getresponse().getheader("Cache-Control")


@pytest.fixture
def story(project: Project, tmp_path: Path) -> Iterator[Story]:
    """600 objects with rows, other spellings of their addresses, and what the ledger will not have."""
    made = Story(project, tmp_path)
    for n in range(PLAIN):
        name = f"products/{n % 20}/p{n:04d}.jpg"
        made.publish(address(name), name, make_image("jpeg", n, 40, 30))
    for n, name in enumerate(ODD):
        body = make_image("png" if name.endswith("png") else "jpeg", 10_000 + n, 40, 30)
        made.publish(address(f"odd names/{name}"), f"odd names/{name}", body)
    for n in range(THUMBS):
        made.publish(f"/thumb?id={n}", f"thumbs/{n}.jpg", make_image("jpeg", 20_000 + n, 20, 15))
    made.publish(PAGE_NOT_IMAGE, "products/sorry.jpg", b"<html>Out of stock</html>")
    made.publish("/robots.txt", "robots.txt", b"User-agent: *", listed=False)
    made.publish("/no%20row.jpg", "no row.jpg", make_image("jpeg", 30_000, 20, 15), listed=False)
    with made.old, made.new:
        for target in (*NOT_FOUND, *SPELLINGS):
            made.allowed[target] = frozenset({ask(made.old.port, target)})
        yield made


def test_a_cutover(story: Story) -> None:
    """No visitor gets a 404, another body or an error for an object of the ledger, at any moment of a cutover.

    After the switch each of these objects comes by a redirect from the new site, after the rollback from the old one.
    What the ledger does not have is answered as before. Each command of the page is run. `pytest -s` prints figures.
    """
    project, old, new = story.project, story.old, story.new
    story.write_jobs()
    story.write_list()
    with Visitors(old.port, story.allowed) as visitors:
        visitors.wait_for(story.allowed)  # the access log has every address
        run, failures = story.do("Preparation")
        assert "600 copied, 1 failed" in run.expect(0).text
        assert "not_image" in failures.expect(0).text
        (absent,) = story.do("Preparation")
        assert story.absent(absent) == ABSENT
        for _ in range(2):
            story.do("Preparation")
        story.write_nginx_files()
        (exported,) = story.do("Preparation")
        assert "wrote 600 rows" in exported.expect(0).text
        for n in range(15):
            name = f"new/ü {n}%.jpg"
            assert story.upload(address(name), name, make_image("jpeg", 40_000 + n, 40, 30)) == 201
        for n in range(10):
            name = f"products/{n}/p{n:04d}.jpg"
            assert story.upload(address(name), name, make_image("jpeg", 50_000 + n, 44, 33)) == 204

        story.do("Freeze")
        assert story.upload("/late.jpg", "late.jpg", b"refused") == 503
        story.write_list()
        visitors.phase = "frozen"
        first, second, _ = story.do("Last delta run")
        assert "new: 15; changed: 10" in first.expect(0).text
        assert "new: 0; changed: 0" in second.expect(0).text
        for ended in [*story.do("Check"), *story.do("Proof")]:
            ended.expect(0)
        assert {"proof", "report.html"} <= {path.name for path in project.folder.iterdir()}
        visitors.wait_for(story.allowed)

        visitors.phase = ""
        story.do("Switch")
        visitors.phase = "share"
        visitors.wait_for(story.allowed)
        visitors.phase = ""
        story.do("Switch")
        visitors.phase = "switched"
        new_addresses, old_addresses = story.do("Public verification")
        assert "redirect" not in new_addresses.expect(0).stdout
        redirects = re.search(r"after a redirect: ([0-9]+)$", old_addresses.expect(0).stdout, re.MULTILINE)
        assert redirects
        assert 200 - THUMBS <= int(redirects[1]) <= 200  # a thumbnail's key is not its old address
        (absent,) = story.do("Watch")
        assert story.absent(absent) == ABSENT
        visitors.wait_for(story.allowed)
        visitors.phase = ""
        story.do("Permanent redirects")
        assert [cache_control(old.port, target) for target in ("/thumb?id=1", "/robots.txt")] == ["max-age=86400", None]
        visitors.phase = "permanent"
        visitors.wait_for(story.allowed)

        project.ferry("run", "back.yaml").expect(0)
        image = make_image("jpeg", 60_000, 40, 30)
        replaced = address("products/2/p0102.jpg")
        story.allowed[replaced] |= {Content.of(image)}
        for name in ("uploaded later.jpg", "products/2/p0102.jpg"):  # uploads to the new store
            (story.new_root / "part").write_bytes(image)
            (story.new_root / "part").rename(story.new_root / "img" / name)
        visitors.phase = ""
        story.do("Rollback")
        visitors.phase = "rolled back"
        (back,) = story.do("Rollback")
        assert "2 copied" in back.expect(0).text
        assert {ask(old.port, target) for target in ("/uploaded%20later.jpg", replaced)} == {Content.of(image)}
        visitors.wait_for(story.allowed)
        (absent,) = story.do("End")
        assert story.absent(absent) == ABSENT
    assert not visitors.wrong()
    assert visitors.routes("frozen") == story.routes((200,), old.port)
    assert 0 < visitors.share(new.port, "share") < 0.5
    assert visitors.routes("switched") == story.routes((302, 200), new.port)
    assert visitors.routes("permanent") == story.routes((301, 200), new.port)
    assert visitors.routes("rolled back") == story.routes((200,), old.port)
    assert story.upload("/late.jpg", "late.jpg", image) == 201
    assert not [heading for heading, blocks in story.left.items() if blocks]
    reloads = ", ".join(f"{took_s:.2f} s" for took_s in old.reloads_s)
    print(f"{len(story.keys) - 2} objects at the switch; each reload of the old site, under load: {reloads}")
    print(visitors.figures())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("/p3.jpg {new}/p3.jpg;", None),
        ("", "route"),  # the map lacks an object
        ("/p3.jpg {new}/p33.jpg;", "answer"),  # it leads to an address without an object
        ("/p3.jpg {new}/p4.jpg;", "answer"),  # it leads to another object
        ("/p3.jpg http://127.0.0.1:1/p3.jpg;", "error"),  # it leads to a host that does not answer
    ],
)
def test_visitors_notice(line: str, wrong: str | None, tmp_path: Path) -> None:
    """What the story asserts fails for each mistake in a map."""
    names = [f"p{n}.jpg" for n in range(10)]
    roots = [tmp_path / "old" / "root", tmp_path / "new" / "root"]
    for root in roots:
        root.mkdir(parents=True)
        for n, name in enumerate(names):
            (root / name).write_bytes(make_image("jpeg", n, 20, 15))
    nginx = tmp_path / "old" / "nginx"
    old = Website(nginx, f"root {roots[0]}; include {nginx}/cutover/*.conf;")
    new = Website(tmp_path / "new" / "nginx", f"root {roots[1]};")
    allowed = {f"/{name}": frozenset({Content.of((roots[0] / name).read_bytes())}) for name in names}
    site = f"http://127.0.0.1:{new.port}"
    others = "".join(f"/{name} {site}/{name};" for name in names if name != "p3.jpg")
    with old, new, Visitors(old.port, allowed) as visitors:
        (nginx / "conf.d" / "map.conf").write_text(f"map $uri $to {{ {others} {line.format(new=site)} }}")
        (nginx / "cutover").mkdir()
        (nginx / "cutover" / "switch.conf").write_text("if ($to) { return 302 $to; }")
        old.shell("nginx -s reload", tmp_path)
        visitors.phase = "switched"
        visitors.wait_for(allowed)
    found = {
        "error": bool(visitors.errors),
        "answer": any(not answer.right for answer in visitors.answers),
        "route": visitors.routes("switched") != {target: {((302, 200), new.port)} for target in allowed},
    }
    assert [name for name in found if found[name]][:1] == ([wrong] if wrong else [])
