"""The code player where it is used: in a page opened from a folder, with mouse, keyboard and on a phone, and in JupyterLab."""
import re
import nbformat, numpy as np, pytest, torch
from conftest import run_all

from lmac_piq.classifier import ImageClassifier
from lmac_piq.codebook import Codebook
from lmac_piq.codes import code_view, codes_data, codes_page
from lmac_piq.explanation import explain
from lmac_piq.piq import PIQ, DigitInterpreter, PIQTask
from lmac_piq.training import seeded

EVIL = "<img src=x onerror=\"document.title='hit'\"></script><script>document.title='hit'</script>"
# One clip, as source: the tests use it and the notebook they write makes it again. Row 0 fires in the first quarter, 1 in the second, ...; row 4 is never chosen
CLIP = '''import math, torch
from lmac_piq.classifier import AudioClassifier
from lmac_piq.codebook import Codebook
from lmac_piq.codes import CodePlayer, code_view
from lmac_piq.explanation import explain
from lmac_piq.piq import PIQ, LightInterpreter
from lmac_piq.training import seeded
class Fixed(LightInterpreter):
    "Codes known beforehand: each quarter of the time says its own row"
    def encode(self, features): return torch.eye(8)[:, :4].repeat_interleave(2, 1)[None, :, None].expand(len(features[0]), -1, 6, -1).contiguous()
t = torch.arange(16000) / 16000
x = 0.3 * torch.sin(2 * math.pi * 500 * t) + 0.1 * torch.sin(2 * math.pi * 2500 * t)
with seeded(0): model, piq = AudioClassifier(CLASSES, 0.0625, network="conv2d", pool=2), PIQ(Fixed(16, 8), Codebook(6, 8, 1, partition=False))
piq.codebook.rows.data.copy_(torch.cat([torch.eye(8)[:4], -9 * torch.ones(2, 8)])); piq.codebook.rows.data[5] *= 2
v = code_view(piq, explain(model, piq, x[None]), torch.tensor([5, 4, 3, 2, 0, 1]), "one clip")
'''
made = dict(CLASSES=["hum", EVIL]); exec(CLIP, made); v = made["v"]

@pytest.fixture
def page(open_page, tmp_path):
    def opened(width: int = 1280, **how):
        page = open_page(codes_page(v, "Codes", tmp_path/"codes.html"), width, **how)
        page.wait_for_selector(".lmac-codes .lmac-player .track"); return page
    return opened

ROOT_ = "document.querySelector('.lmac-codes:not(.plain)').codes"
def state(page) -> dict: return page.evaluate(f"{ROOT_}.state()")
def ready(page, row: int) -> None: page.wait_for_function(f"{ROOT_}.state().row === {row}"); page.evaluate(f"{ROOT_}.ready")

def test_a_click_shows_where_a_code_fires_and_plays_it(page):
    page = page()
    for row in (2, 1):
        page.click(f'.code[data-row="{row}"]'); ready(page, row)
        page.wait_for_function(f"{ROOT_}.state().player.playing")
        assert state(page)["player"]["track"] == "here" and 0.25 * row - 0.03 <= state(page)["player"]["time"] <= 1
        box = page.evaluate("(() => { const b = document.querySelector('.places path').getBBox(); return [b.x, b.x + b.width, b.y, b.y + b.height]; })()")
        x, _ = v.extent()
        assert box == pytest.approx([x[2 * row], x[2 * row + 2], 0, 1], abs=1e-3)          # all frequencies, its own quarter
        assert page.locator(f'.code[data-row="{row}"]').get_attribute("aria-pressed") == "true" and page.locator('.code[aria-pressed="true"]').count() == 1
        assert page.locator("dd").first.text_content() == f"12 of 48 positions: {x[2 * row]:.2f}–{x[2 * row + 2]:.2f} s at 0.00–8.00 kHz"
    page.wait_for_selector(".code.now")
    page.click('.code[data-row="1"]'); page.wait_for_function(f"!{ROOT_}.state().player.playing")     # pressed again: it stops

def test_keyboard(page):
    page = page()
    page.locator('.code[tabindex="0"]').focus(); page.keyboard.press("Home")
    rows = [int(r) for r in page.locator(".code").evaluate_all("all => all.map(t => t.dataset.row)")]
    assert rows == v.rows.tolist()
    page.keyboard.press("ArrowRight"); page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.row") == str(rows[2]) and state(page)["row"] != rows[2]        # moving opens nothing
    page.keyboard.press("Enter"); ready(page, rows[2])
    page.keyboard.press("4"); assert state(page)["player"]["track"] == "everywhere"
    page.keyboard.press("End"); assert page.evaluate("document.activeElement.dataset.row") == str(rows[-1])
    label = page.locator(f'.code[data-row="{rows[2]}"]').get_attribute("aria-label")
    assert re.search(rf"code {rows[2]}, fires at 12 of 48 positions, .* of the choices", label) and page.get_by_role("status").first.text_content() == label

def test_a_dead_code_is_marked_and_silent_here(page):
    page = page()
    dead = page.locator(".code.dead"); assert dead.count() == 1 and dead.get_attribute("data-row") == "4" and "dead: never in one clip" in dead.get_attribute("aria-label") and "dead" in dead.inner_text()
    dead.click(); ready(page, 4)
    assert "silence" in page.locator(".track.here").inner_text() and not state(page)["player"]["playing"] and "nowhere in this clip" in page.locator("dd").first.text_content()
    assert page.locator(".places path").first.get_attribute("d") == ""

def test_samples_read_back_are_the_parts_times_one_gain(page):
    page = page()
    read = """async row => { const codes = document.querySelector('.lmac-codes:not(.plain)').codes, starts = AudioBufferSourceNode.prototype.start, found = [];
      AudioBufferSourceNode.prototype.start = function (...a) { found.push(Array.from(this.buffer.getChannelData(0))); return starts.apply(this, a); };
      await codes.choose(row); codes.player.play(); codes.player.pause(); AudioBufferSourceNode.prototype.start = starts; return found; }"""
    for row in (1, 3):
        k = v.rows.tolist().index(row)
        tracks = page.evaluate(read, row)[-4:]
        for samples, wave in zip(tracks, (v.comparison.signals["original"], v.comparison.signals["kept"], v.here.signals[k], v.everywhere.signals[k])):
            assert len(samples) == len(wave) and np.abs(np.array(samples) - v.gain * wave.numpy()).max() <= 2**-15

def test_the_pointer_says_which_code_and_a_double_click_opens_it(page):
    page = page(); box = page.locator(".picture").bounding_box()
    at = dict(x=box["width"] * 0.85, y=box["height"] / 2)
    page.hover(".picture", position=at); assert page.locator(".hint").text_content().startswith("code 3, 0.7")
    page.dblclick(".picture", position=at); ready(page, 3)

@pytest.mark.parametrize("width,dark", [(390, True), (1280, False)])
def test_fits_and_text_is_text(page, width, dark):
    page = page(width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and page.title() == "Codes" and page.locator("img[src=x]").count() == 0
    assert page.locator(".plain").count() == 0

def test_images(open_page, tmp_path):
    with seeded(0): reader, sketch = ImageClassifier(["a", "b"]), PIQ(DigitInterpreter(), Codebook(9, 128, 2, shared=1), PIQTask("values"))
    seen = code_view(sketch, explain(reader, sketch, torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3))))
    page = open_page(codes_page(seen, "Pixels", tmp_path/"i.html"), 390); page.wait_for_selector("figure.track")
    row = int(seen.rows[-1]); page.click(f'.code[data-row="{row}"]'); ready(page, row)
    assert page.locator("figure.track").count() == 4 and page.evaluate("document.documentElement.scrollWidth") <= 390
    area, image = page.locator(".places").bounding_box(), page.locator("figure.track img").first.bounding_box()
    assert area == pytest.approx(image, abs=1)

def test_without_a_script_everything_is_there(chromium, tmp_path):
    context = chromium.new_context(java_script_enabled=False); page = context.new_page()
    page.goto(codes_page(v, "Codes", tmp_path/"p.html").as_uri())
    sounds = [t["sound"] for c in codes_data(v)["codes"] for t in c["tracks"] if t["sound"]]
    assert page.locator("audio").count() == len(sounds) + 2 and page.locator("li").count() == len(v.rows) and "silence" in page.locator("li", has_text="Code 4").inner_text()
    context.close()

def test_the_widget_in_jupyterlab_goes_both_ways(serve, open_page, tmp_path):
    cells = ["CLASSES = ['hum', 'beep']\n" + CLIP + "player = CodePlayer(v)\nplayer", "import ipywidgets\nsaid = ipywidgets.Label()\nplayer.observe(lambda c: setattr(said, 'value', f'open {c.new}'), 'row')\nplayer.choose(3)\nsaid"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]); nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    (tmp_path/"lab").mkdir(); nbformat.write(nb, tmp_path/"lab"/"n.ipynb")
    page = open_page(serve("lab", "n.ipynb", tmp_path/"lab").url, 1280, 1400); run_all(page)
    live = "section.lmac-codes:visible"
    page.wait_for_selector(f'{live} .code[data-row="3"][aria-pressed="true"]', timeout=90000)
    assert page.locator(live).count() == 1                                                                 # the static form beside it is hidden
    page.click(f'{live} .code[data-row="2"]'); page.wait_for_selector("text=open 2", timeout=90000)
