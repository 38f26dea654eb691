"""A real browser for what a person sees: headless Chromium, JupyterLab and Voila, each started for real."""
import os, re, shutil, socket, subprocess, sys, time, urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a microphone that beeps, and nobody to ask
HARMLESS = re.compile(r"favicon|ResizeObserver loop|apple-touch-icon|/voila/api/shutdown/|Could not restore the debugger state")  # what says nothing about a page; the last two are Voila's (a page that is left cannot end its kernel) and JupyterLab's (of a kernel that was killed)


def find_chromium(downloaded: str) -> str | None:
    "The browser to drive: CHROMIUM, the first one on the path, or Playwright's own, where that was downloaded"
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", downloaded))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    "One browser for all tests of a worker; without a Chromium they skip and say so"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        path = find_chromium(p.chromium.executable_path)
        if path is None: pytest.skip("no Chromium on the path, so nothing is seen in a browser: install chromium (or set CHROMIUM to one), or `.venv/bin/playwright install chromium`")
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, request) -> Iterator[Callable]:
    "`open_page(url_or_path, width=1280, height=900, dark=False)` is a page; any error on its console or request to another host fails the test"
    contexts, wrong = [], []
    def heard(message) -> None:
        if message.type == "error" and not HARMLESS.search(message.text + str(message.location)): wrong.append(f"{message.text} ({message.location.get('url', '')[:120]})")
    def asked(sent) -> None:
        if not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:|file:|about:", sent.url): wrong.append(f"asked another host: {sent.url[:120]}")
    def opened(address: str | Path, width: int = 1280, height: int = 900, dark: bool = False):
        context = chromium.new_context(viewport=dict(width=width, height=height), color_scheme="dark" if dark else "light", accept_downloads=True)
        contexts.append(context); page = context.new_page(); page.set_default_timeout(90000)   # of a slow machine with other work to do
        page.on("console", heard); page.on("pageerror", lambda error: wrong.append(str(error))); page.on("request", asked)
        page.goto(address.resolve().as_uri() if isinstance(address, Path) else address, timeout=400000)   # Voila runs a notebook before it answers
        return page
    yield opened
    if folder := os.environ.get("SCREENSHOTS"):                                      # to be looked at: what every page showed when its test ended
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        for k, page in enumerate(page for context in contexts for page in context.pages): page.screenshot(path=Path(folder)/f"{request.node.path.stem}-{name}-{k}.png", full_page=True)
    for context in contexts: context.close()
    assert not wrong, f"errors in the browser: {wrong[:5]}"


def free_port() -> int:
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


class Server:
    "A server process with its log, waited for and ended for sure"
    def __init__(self, command: list[str], url: str, folder: Path, seconds: float = 90):
        self.url, self.log = url, folder/f"server-{free_port()}.log"
        env = {**os.environ, "IPYTHONDIR": str(folder/"ipython"), "JUPYTER_CONFIG_DIR": str(folder/"jupyter"), "JUPYTER_DATA_DIR": str(folder/"share"), "JUPYTER_PATH": str(ROOT/"lmac_piq/static/jupyter"), "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log: self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None: raise RuntimeError(f"{command[0]} ended: {self.log.read_text()[-2000:]}")
            try: urllib.request.urlopen(url, timeout=5).read(1); return
            except urllib.error.HTTPError as error:
                if error.code < 500: return
            except OSError: pass
            time.sleep(0.3)
        self.stop(); raise TimeoutError(f"{command[0]} did not answer in {seconds:.0f} s: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process.poll() is not None: return
        os.killpg(self.process.pid, 15)
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: os.killpg(self.process.pid, 9); self.process.wait(10)


@pytest.fixture(scope="module")
def serve(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    "`serve('voila', notebook, folder)` or `serve('lab', None, folder)`: a running server; `.url` is where to go. The folder is the server's own and may be written to"
    servers = []
    def started(kind: str, notebook: str | None, folder: Path) -> Server:
        port, bin = free_port(), Path(sys.executable).parent
        at = f"http://127.0.0.1:{port}"
        if kind == "voila":  # the page itself is made anew at each visit; the static file says that the server is up
            command = [bin/"voila", notebook, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--template=offline", "--show_tracebacks=True", "--VoilaConfiguration.extension_denylist=jupyterlab-jupytext"]
            server = Server([str(c) for c in command], f"{at}/voila/static/voila.js", folder); server.url = at
        else:
            command = [bin/"jupyter", "lab", "--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=t", "--LabApp.news_url=None", "--ServerApp.root_dir=."]
            server = Server([str(c) for c in command], f"{at}/api", folder); server.url = f"{at}/lab/tree/{notebook}?token=t&reset" if notebook else f"{at}/lab?token=t"
        servers.append(server); return server
    yield started
    for server in servers: server.stop()


def scratch(folder: Path, *notebooks: str) -> Path:
    "A folder with copies of notebooks of this project, for a server to work in"
    folder.mkdir(parents=True, exist_ok=True)
    for name in notebooks: shutil.copy(ROOT/name, folder)
    return folder


def run_all(page, seconds: float = 120) -> None:
    "In JupyterLab: wait for the kernel, run every cell, wait until it is idle again"
    page.wait_for_selector("text=/\\| Idle/", timeout=1000 * seconds)
    page.click("text=Run >> nth=0"); page.click("text=Run All Cells >> nth=0")
    page.wait_for_timeout(1500)
    page.wait_for_selector("text=/\\| Idle/", timeout=1000 * seconds)
