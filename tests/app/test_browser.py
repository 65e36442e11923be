"""The Space in a real browser, as visitors use it: chromium, the stand-in Hub, its sign-in, the bundled demo family.

Screenshots of every page stay in build/screenshots.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import HUB
from tests.hub import Hub, samples

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-first-run", "disable-sync",
    "disable-background-networking", "disable-component-update",
)  # fmt: skip
PATIENCE = 420.0
"""Seconds: machines are slow at times."""


class Page:
    """What a visitor sees and does."""

    def __init__(self, address: str, profile: Path, width: int = 1280) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"user-data-dir={profile}", f"window-size={width},1500"):
            options.add_argument(f"--{flag}")
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        # Headless windows have a least width; what the page sees has not.
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.address = address
        self.open()

    def open(self, query: str = "") -> None:
        self.driver.get(self.address + query)
        self.until(lambda: self.found("#look"))
        # Until the server has said who we are, buttons do nothing yet.
        time.sleep(1.5)

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:.0f} s; the page says: {self.text('body')[:1500]}"
            time.sleep(0.2)

    def found(self, selector: str) -> bool:
        return bool(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
        return self.driver.execute_script(script, selector)

    def shown(self, selector: str) -> bool:
        return any(e.is_displayed() for e in self.driver.find_elements("css selector", selector))

    def press(self, selector: str) -> None:
        self.until(lambda: self.shown(selector))
        self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)

    def tab(self, number: int) -> None:
        names = self.driver.find_elements("css selector", "#steps button[role=tab]")
        next(n for n in names if n.get_attribute("innerText").startswith(f"{number} ")).click()
        time.sleep(0.5)

    def write(self, selector: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.driver.find_element("css selector", selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)
        time.sleep(0.3)

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def close(self) -> None:
        self.driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The Space, served from the checkout."""
    if not (CHROMIUM and DRIVER):
        pytest.fail("These tests need Debian's packages chromium and chromium-driver.")
    home = tmp_path_factory.mktemp("space")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ, "SYSTEM": "spaces", "SPACE_ID": "ns/app", "OPENID_PROVIDER_URL": HUB.endpoint,
        "OAUTH_CLIENT_ID": "app", "OAUTH_CLIENT_SECRET": "secret", "OAUTH_SCOPES": "openid profile",
        "HF_HOME": str(home / "hf"), "HF_PRUNE_RUNS": str(home / "runs"), "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    log = (home / "log").open("w")
    process = subprocess.Popen([sys.executable, ROOT / "space/app.py"], cwd=home, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    end = time.monotonic() + PATIENCE
    while not _answers(url):
        assert process.poll() is None and time.monotonic() < end, (home / "log").read_text()
        time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(30)
    said = (home / "log").read_text()
    # A frame of ours in a traceback; gradio has one of its own where the package `spaces` is not installed.
    assert "hf_ns_secret" not in said and "/hf_prune/" not in said, said[-3000:]
    kept = [p for p in (home / "runs").rglob("*") if p.is_file() and b"hf_ns_secret" in p.read_bytes()]
    assert not kept, "a token was stored"


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def page(address, tmp_path, hub_server: Hub) -> Iterator[Page]:
    opened = Page(address, tmp_path / "profile")
    yield opened
    opened.close()


def few(page: Page, candidates: int, seed: int) -> None:
    """Choose a short search."""
    page.tab(2)
    if not page.shown("#trials input"):
        page.press("#more > button")
    page.until(lambda: page.shown("#trials input"))
    page.write("#trials input", str(candidates))
    page.write("#seed input", str(seed))
    page.press("#repair input")


def test_from_the_pick_to_a_published_model(page, hub_server):
    page.shot("1-model")
    page.press("#login")
    page.until(lambda: "ns" in page.text("#login"))
    page.press("#look")
    page.until(lambda: "remove 4 layers" in page.text("#planned"))
    page.shot("2-size")
    few(page, 64, 0)
    page.press("#start")
    began = time.monotonic()
    page.until(lambda: page.found("#chart img"))
    first_dot = time.monotonic() - began
    page.until(lambda: page.found("#strip .removed"))
    page.shot("3-run")
    # Closed in mid-run and opened again.
    page.driver.switch_to.new_window("tab")
    new = page.driver.current_window_handle
    for handle in page.driver.window_handles:
        if handle != new:
            page.driver.switch_to.window(handle)
            page.driver.close()
    page.driver.switch_to.window(new)
    page.open()
    page.until(lambda: page.text("#status"))
    page.until(lambda: "Done" in page.text("#status"))
    page.shot("4-done")
    page.tab(4)
    page.until(lambda: "Perplexity, all text" in page.text("#numbers"))
    page.shot("5-compare")
    page.press("#ask")
    page.until(lambda: "pruned" in page.text("#said"))
    assert page.text("#said").count("once upon a time") == 2
    page.shot("6-both-say")
    page.tab(5)
    page.until(lambda: "12 of 16 layers" in page.text("#card"))
    page.write("#name textarea, #name input", "ns/small")
    page.press("#push")
    page.until(lambda: f"Published: {hub_server.endpoint}/ns/small" in page.text("#place"))
    page.shot("7-published")
    repo = hub_server.repo("ns/small")
    assert repo.private and {"model.safetensors", "README.md", "blueprint.json"} <= set(repo.at("main").tree)
    # Pictures are base64, in which any four characters may stand.
    text = re.sub(r"base64,[\w+/=]+", "", page.driver.page_source)
    assert not re.findall(rf".{{0,80}}(?:/tmp|{re.escape(sys.prefix)}|{re.escape(str(ROOT))}).{{0,80}}", text)
    print(f"first dot after {first_dot:.1f} s")


def test_a_run_is_cancelled_and_goes_on(page):
    few(page, 400, 1)
    page.press("#start")
    page.until(lambda: page.found("#chart img"))
    page.press("#stop")
    page.until(lambda: "as you asked" in page.text("#status"))
    page.shot("8-stopped")
    page.press("#again")
    # Only a run that has begun its work can be stopped; one that still waits is taken out of the queue.
    page.until(lambda: page.found("#status .bar"))
    page.press("#stop")
    page.until(lambda: "as you asked" in page.text("#status"))


def test_an_example_runs_at_a_click(page):
    page.until(lambda: page.found("#examples button"))
    began = time.monotonic()
    page.press("#examples button")
    page.until(lambda: "Done" in page.text("#status"))
    print(f"the example took {time.monotonic() - began:.1f} s")
    page.until(lambda: "storymath-16l: Fewer layers" in page.text("#mine"))
    page.shot("10-example")
    page.tab(4)
    link = page.driver.find_element("css selector", "#kept a").get_attribute("href")
    with ZipFile(BytesIO(urllib.request.urlopen(link).read())) as packed:
        assert packed.testzip() is None
        assert {"model.safetensors", "README.md"} <= {Path(n).name for n in packed.namelist()}


def test_what_cannot_be_used_is_said_in_a_sentence(page, hub_server):
    hub_server.seed("ns/gated", samples.model(), gated=True)
    for name, words in (("ns/nothing", "does not exist"), ("ns/gated", "is gated"), ("../etc", "no name of a repo")):
        page.write("#base input", name)
        page.press("#look")
        page.until(lambda words=words: words in page.text("#looked"))
    page.shot("9-refused")


def test_a_stranger_sees_no_run_of_others_and_cannot_publish(page):
    page.tab(3)
    assert "No run yet" in page.text("#status") and not page.found("#chart img")
    page.tab(5)
    assert "can be published here" in page.text("#place") and not page.shown("#push")


def test_programs_have_two_tools(address, hub_server):
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    hub_server.seed("ns/model", samples.model(num_hidden_layers=6))

    async def tried():
        async with (
            streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = sorted(t.name for t in (await session.list_tools()).tools)
            plan = next(n for n in names if n.endswith("plan"))
            asked = {"base": "ns/model", "method": "collapse", "ratio": 0.4}
            return names, (await session.call_tool(plan, asked)).content[0].text

    names, said = anyio.run(tried)
    assert names == ["app_compress", "app_plan"]
    assert "layer_parameters" in said and "ns/model@" in said


def test_it_fits_a_phone_and_the_dark(address, tmp_path, hub_server):
    page = Page(address, tmp_path / "phone", width=390)
    try:
        for theme in ("light", "dark"):
            page.open(f"?__theme={theme}")
            page.press("#look")
            page.until(lambda: "remove 4 layers" in page.text("#planned"))
            for number in range(1, 6):
                page.tab(number)
                page.shot(f"phone-{theme}-{number}")
                wide = page.driver.execute_script("return document.documentElement.scrollWidth")
                assert wide <= 390, f"page {number} is {wide} pixels wide"
    finally:
        page.close()
