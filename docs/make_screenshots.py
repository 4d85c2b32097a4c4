"""Takes the pictures of docs/images/: real runs on the demo's servers, seen in Prefect's UI by a headless Chromium.

.venv/bin/python docs/make_screenshots.py        (or `make screenshots`; as root it installs Chromium where it misses)
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from browser import Browser, NoBrowser, find_chromium  # noqa: E402

from demo.images import make_image  # noqa: E402
from demo.library import Library, build_library  # noqa: E402
from demo.origin import Origin  # noqa: E402
from demo.prefect_api import ask  # noqa: E402
from demo.s3 import S3Server  # noqa: E402
from flows.server.home import quiet_environment  # noqa: E402
from flows.server.local import LocalServer  # noqa: E402

IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150_000
NAME, BUCKET = "products", "new-bucket"
SLOW_S = 0.5  # the origin's answer, so that there is a run to look at
WITHIN_S = 120.0
REPLACED, ADDED, REMOVED = 25, 12, 8  # rows of the delta run


@dataclasses.dataclass
class Scene:
    """Servers, a folder with a job, and a browser."""

    folder: Path
    prefect: LocalServer
    origin: Origin
    browser: Browser
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=self.folder, env=self.environment, stdout=log, stderr=log
        )

    def command(self, *arguments: str, cwd: Path | None = None) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=cwd or self.folder, env=self.environment, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return ask(self.prefect.url, path, body or {})

    def artifact(self, what: str) -> dict[str, Any]:
        """The newest artifact with that key."""
        asked = {"artifacts": {"key": {"any_": [f"{NAME}-{what}"]}}, "sort": "CREATED_DESC", "limit": 1}
        found: dict[str, Any] = until(lambda: (self.api("artifacts/filter", asked) or [None])[0])
        return found

    def newest_run(self) -> dict[str, Any]:
        found: dict[str, Any] = until(
            lambda: (self.api("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1}) or [None])[0]
        )
        return found

    def show(self, path: str, shows: str, **size: int) -> None:
        self.browser.open(f"{self.prefect.url}/{path}", shows, **size)

    def picture(self, name: str, height: int | None = None) -> None:
        target = IMAGES / f"{name}.png"
        self.browser.picture(target, height=height)
        size = target.stat().st_size
        print(f"docs/images/{name}.png  {size:,} bytes", flush=True)
        if size > MOST_BYTES:
            raise SystemExit(f"{target} has more than {MOST_BYTES:,} bytes: show less of the page")


def until(look: Callable[[], Any]) -> Any:
    """Returns the first true answer. Ends the program when there is none in time."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.1)
    raise SystemExit(f"waited for {WITHIN_S:.0f} s in vain: see `log` in the scene's folder")


def write_job(folder: Path, s3: S3Server, **more: Any) -> None:
    job = {
        "name": NAME, "manifest": "products.csv",
        "destination": {"uri": f"s3://{BUCKET}/products/", "endpoint_url": s3.endpoint_url},
        "source": {"allow_private_addresses": ["127.0.0.1"]}, "failure_budget": "5%", "chunk_rows": 100,
        "state": f"s3://{BUCKET}/state/{NAME}", "concurrency": 32,
        "retries": {"backoff_s": 0.2, "max_backoff_s": 5, "chunk_delay_s": 1, "passes": 0}, **more,
    }  # fmt: skip
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))


def run_page(scene: Scene) -> None:
    """A run while it is running, and after its end."""
    scene.origin.latency_s = SLOW_S
    process = scene.start("flows", "run", "job.yaml")
    run = scene.newest_run()
    page = f"runs/flow-run/{run['id']}"
    progress_page(scene, 1, 10)
    scene.show(page, "Artifacts", height=860)
    scene.browser.click("Artifacts")
    scene.browser.wait("-progress")
    scene.picture("run-on")
    progress_page(scene, 2, 60)
    if process.wait():
        raise SystemExit((scene.folder / "log").read_text())
    scene.artifact("chunks")
    scene.show(page, "24 Task runs", height=860)
    scene.browser.click("Logs")
    time.sleep(3)  # the graph
    scene.picture("run-over")
    scene.show(f"artifacts/artifact/{scene.artifact('summary')['id']}", "planned", height=1060)
    scene.picture("summary")
    for what in ("failures", "chunks"):
        scene.show(f"artifacts/artifact/{scene.artifact(what)['id']}", "Items", height=760)
        scene.picture(what)
    notes = [a for a in scene.api("artifacts/filter", {"artifacts": {"type": {"any_": ["markdown"]}}}) if not a["key"]]
    scene.show(f"artifacts/artifact/{notes[0]['id']}", "The file with all rows of the chunk")
    scene.picture("chunk-note", 460)


def progress_page(scene: Scene, number: int, percent: float) -> None:
    """The page of the progress bar, once it shows more than this percent."""
    until(lambda: float(scene.artifact("progress")["data"]) > percent)
    scene.show(f"artifacts/artifact/{scene.artifact('progress')['id']}", r"\d%", width=1000)
    scene.picture(f"progress-{number}", 300)


def delta_run(scene: Scene, library: Library, s3: S3Server) -> None:
    """A delta run: some objects replaced, some rows new, some removed from the manifest, twelve objects repaired."""
    scene.origin.latency_s = 0.0
    rows = [row for row in library.rows if row["url"] in {scene.origin.url("/" + key) for key in library.expected}]
    for number, row in enumerate(rows[:REPLACED]):
        path = row["url"].removeprefix(scene.origin.url(""))
        scene.origin.add(path, make_image("jpeg", 10_000 + number), modified="Wed, 25 Nov 2026 12:00:00 GMT")
    for row in rows[-REMOVED:]:
        library.rows.remove(row)
    for number in range(ADDED):
        url = scene.origin.add(f"/images/new/{number}.jpg", make_image("jpeg", 20_000 + number))
        library.rows.append({"sku": f"NEW-{number}", "url": url})
    library.mend(12)
    library.write_csv(scene.folder / "products.csv")
    write_job(scene.folder, s3, mode="delta", delta={"retry": {"not_found": {"after": "0s", "runs": 7}}})
    before = scene.artifact("summary")["id"]
    scene.command("flows", "run", "job.yaml")
    until(lambda: scene.artifact("summary")["id"] != before)
    scene.show(f"artifacts/artifact/{scene.artifact('summary')['id']}", "this delta run", height=1420)
    scene.picture("delta-run")
    scene.command("flows", "verify", "job.yaml")
    scene.show("runs", f"{NAME} .verify", height=1000)
    scene.picture("runs")


def report(scene: Scene) -> None:
    """The report of the job: light, dark, and on a phone."""
    scene.command("flows", "report", "job.yaml", "--out", "report.html")
    page = (scene.folder / "report.html").as_uri()
    for name, size in (
        ("report", {"width": 1280, "height": 1250}),
        ("report-dark", {"width": 1280, "height": 1250, "scheme": "dark"}),
        ("report-phone", {"width": 390, "height": 1250}),
    ):
        scene.browser.open(page, "Report of a migration", **size)
        if name == "report-dark":
            scene.browser.evaluate("document.getElementById('time').scrollIntoView()")
            time.sleep(0.5)
        scene.picture(name)


def deployment(scene: Scene) -> None:
    """The deployment of prefect.yaml, and the form that starts a run."""
    scene.command("prefect", "work-pool", "create", "ferry", "--type", "process")
    scene.command("prefect", "--no-prompt", "deploy", "--name", "prod", cwd=ROOT)
    found = next(d for d in scene.api("deployments/filter") if d["name"] == "prod")
    scene.show(f"deployments/deployment/{found['id']}/run", "Parameters", height=1500)
    time.sleep(1)
    scene.picture("deployment-form")


def main() -> None:
    try:
        find_chromium()
    except NoBrowser as error:
        raise SystemExit(str(error)) from None
    IMAGES.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ferry-pictures-"))
    scene_folder = folder / "ferry"  # its name stands in the pictures
    scene_folder.mkdir()
    try:
        with LocalServer(folder / "prefect") as prefect, S3Server(folder / "s3") as s3, Origin() as origin:
            s3.make_bucket(BUCKET)
            library = build_library(origin)
            library.write_csv(scene_folder / "products.csv")
            write_job(scene_folder, s3)
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))},
                **quiet_environment(prefect.home), "PREFECT_API_URL": f"{prefect.url}/api",
                "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            with Browser() as browser:
                scene = Scene(scene_folder, prefect, origin, browser, environment)
                run_page(scene)
                delta_run(scene, library, s3)
                report(scene)
                deployment(scene)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
