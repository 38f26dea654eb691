"""The page of a recording in a real browser: one position for its tracks, set on the ribbon; one sound at a time; readable on a phone."""
import re
from pathlib import Path
import pytest, soundfile as sf, torch

from lmac_piq.classifier import AudioClassifier
from lmac_piq.explanation import Attribution
from lmac_piq.recording import explain_recording
from lmac_piq.training import seeded

EVIL = "<img src=x onerror=\"document.title='hit'\">"

class Half:
    "Keeps the lower half"
    name, class_conditional, fixed_frames = "lower half", True, None
    def attribute(self, model, rep, out, target): return Attribution((torch.arange(rep.values.shape[1]) < 256).float()[None, :, None].expand_as(rep.values).contiguous())

@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    "The page of seventy seconds, in a folder with an awkward name"
    folder = tmp_path_factory.mktemp("page") / "a #1 & <b>100%"
    with seeded(0): model = AudioClassifier(["siren", EVIL], width=0.05).eval()
    folder.mkdir(); sf.write(folder / "x.wav", 0.1 * torch.randn(70 * 16000, generator=torch.Generator().manual_seed(0)).numpy(), 16000)
    return explain_recording(model, Half(), folder / "x.wav", folder / "out", target=EVIL, regions=[30.0], overlap=0.0, progress=False).save_page()

times = "[...document.querySelectorAll('.recording audio')].map(a => a.currentTime)"
playing = "[...document.querySelectorAll('.recording audio')].map(a => !a.paused)"

def ready(page) -> None: page.wait_for_function("[...document.querySelectorAll('.recording audio')].every(a => a.readyState >= 1) && document.querySelector('.ribbon.ready')")

def test_a_click_on_the_ribbon_is_a_time(open_page, index):
    page = open_page(index); ready(page)
    assert page.evaluate("document.title") == "x.wav" and page.evaluate("[...document.querySelectorAll('.recording audio')].map(a => Math.round(a.duration))") == [70, 70, 70]
    ribbon = page.locator(".ribbon:visible"); box = ribbon.bounding_box(); left, right = (float(ribbon.get_attribute(f"data-{side}")) for side in ("left", "right"))
    for share in (0.25, 0.9):
        ribbon.click(position=dict(x=box["width"] * (left + share * (right - left)), y=box["height"] / 2))
        assert page.evaluate(times)[0] == pytest.approx(70 * share, abs=0.3) and float(ribbon.get_attribute("aria-valuenow")) == pytest.approx(70 * share, abs=0.4)
    head = page.locator(".ribbon:visible i").bounding_box(); assert head["x"] - box["x"] == pytest.approx(box["width"] * (left + 0.9 * (right - left)), abs=3)

def test_tracks_take_over_from_one_another(open_page, index):
    page = open_page(index); ready(page)
    ribbon = page.locator(".ribbon:visible"); ribbon.focus()
    for _ in range(4): page.keyboard.press("ArrowRight")
    assert page.evaluate(times)[0] == pytest.approx(20, abs=0.1)
    page.keyboard.press("2"); page.wait_for_function(f"{playing}[1]")
    assert page.evaluate(playing) == [False, True, False] and 19.9 < page.evaluate(times)[1] < 22
    page.keyboard.press("3"); page.wait_for_function(f"{playing}[2]")
    assert page.evaluate(playing) == [False, False, True] and 19.9 < page.evaluate(times)[2] < 24
    page.locator(".lmac-player button").filter(has_text=re.compile("")).first.click()          # a clip starts: the recording stops
    page.wait_for_function(f"!{playing}.some(p => p)")
    page.keyboard.press("Escape"); ribbon.focus(); page.keyboard.press("Home"); assert page.evaluate(times)[2] == 0
    page.keyboard.press(" "); page.wait_for_function(f"{playing}[2]"); page.keyboard.press(" "); page.wait_for_function(f"!{playing}[2]")

@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1280, True)])
def test_it_fits_and_names_are_text(open_page, index, width, dark):
    page = open_page(index, width=width, dark=dark); ready(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.locator(".ribbon:visible").count() == 1
    assert page.locator(".ribbon:visible").get_attribute("class").startswith("ribbon narrow" if width == 390 else "ribbon wide") and EVIL in page.locator(".recording").inner_text()
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > sum(map(int, re.findall(r"\d+", paper)[:3]))) == dark

def test_it_plays_without_a_script(chromium, index):
    context = chromium.new_context(java_script_enabled=False); page = context.new_page(); page.goto(index.as_uri())
    assert page.locator(".recording audio").count() == 3 and page.locator(".recording audio[controls]").nth(1).get_attribute("src") == "kept.wav" and page.locator("article audio").count() == 3
    context.close()
