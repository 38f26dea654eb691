"""The explorer as it is used: in JupyterLab, and alone under Voila from its own notebook. What is heard is read back, and how long it took is measured."""
import json, statistics
from pathlib import Path
import nbformat, numpy as np, pytest, soundfile as sf, torch
from conftest import run_all, scratch

from lmac_piq.audio import save_wave
from lmac_piq.scenes import CLASSES, make_scene

GOAL, NOISY = 150, 5      # ms from a move of the slider to the new sound, on two quiet cores; what a busy machine may take of it
EVIL = "<img src=x onerror=\"document.title='hit'\">"
LIVE = ".widget-vbox .lmac-player"    # the static form, which a saved notebook keeps, stands beside it unseen

# A CNN14 x0.25 and decoders of the size that is trained, on five seconds: weights do not change how long it takes
CELLS = f'''import torch
from lmac_piq.classifier import AudioClassifier
from lmac_piq.decoder import LightDecoder
from lmac_piq.explorer import Explorer
from lmac_piq.lmac import LMAC
from lmac_piq.training import seeded
names = {[*CLASSES, EVIL]!r} + [f"class {{k}}" for k in range(39)]
with seeded(0): model = AudioClassifier(names, width=0.25).eval()
decoder = lambda **more: LightDecoder(model.network.channels, width=48, **more)
with seeded(1): methods = dict(plain=LMAC(decoder(), name="plain").eval(), conditional=LMAC(decoder(n_classes=50), name="conditional").eval())
explorer = Explorer(model, methods, "sounds", folder="kept")''', "explorer"

# In the page: what goes into the audio graph, and how long it took from an event until other sounds are in the player
HOOKS = """live => {
  window.heard = []; window.took = [];
  const copy = AudioBuffer.prototype.copyToChannel;
  AudioBuffer.prototype.copyToChannel = function (wave, ...rest) { window.heard.push(Array.from(wave)); return copy.call(this, wave, ...rest); };
  let begun = null;
  for (const name of ["input", "change", "click"]) document.querySelector(".lmac-explorer").addEventListener(name, () => { begun ??= performance.now(); }, true);
  new MutationObserver(() => { if (begun !== null) window.took.push(performance.now() - begun); begun = null; }).observe(document.querySelector(live), { childList: true });
}"""

def wave() -> torch.Tensor: return make_scene(0, torch.Generator().manual_seed(3), 5.0, 2, 0.0).mixture

@pytest.fixture(scope="module")
def lab(serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    save_wave(folder/"sounds"/"scene.wav", wave()); save_wave(folder/"sounds"/f"z {EVIL[:10]}.wav", 0.5*wave()[16000:48000]); (folder/"text.wav").write_text("no sound")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (*CELLS, "explorer.set_strength(1.5)")])
    nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python"); nbformat.write(nb, folder/"n.ipynb")
    server = serve("lab", "n.ipynb", folder); server.folder = folder; return server

def panel(page): return page.locator(".lmac-explorer")
def button(page, name: str): return panel(page).get_by_role("button", name=name)
def subtitle(page, text: str, seconds: float = 20) -> None: page.wait_for_selector(f"{LIVE} h3:has-text('{text}')", timeout=1000*seconds)
def state(page) -> dict: return page.evaluate(f"document.querySelector('{LIVE}').player.state()")

def played(page) -> dict[str, np.ndarray]:
    "Press play, and read what went into the audio graph: original, kept, removed"
    page.evaluate("window.heard = []"); page.locator(LIVE).get_by_role("button", name="Play").click()
    page.wait_for_function("window.heard.length >= 3"); page.evaluate(f"document.querySelector('{LIVE} button.playing')?.click()")   # a short sound may have ended by itself
    return dict(zip(("original", "kept", "removed"), map(np.array, page.evaluate("window.heard.slice(0, 3)"))))

def moved(page, keys: list[str]) -> list[float]:
    "Press keys on the slider one by one; ms from each until its sounds are in the player"
    slider = panel(page).get_by_role("slider", name="strength"); slider.focus(); page.evaluate("window.took = []")
    for k, key in enumerate(keys, 1):
        page.keyboard.press(key); page.wait_for_function(f"window.took.length === {k}", timeout=90000)
        page.wait_for_function("!document.querySelector('.lmac-explorer.busy')", timeout=90000)
    return page.evaluate("window.took")

def test_in_jupyterlab(open_page, lab):
    page = open_page(lab.url, height=1400); page.on("dialog", lambda dialog: dialog.accept()); run_all(page)
    subtitle(page, "strength 1.5", 90); page.evaluate(HOOKS, LIVE)                 # a method called in another cell moves the view
    assert state(page)["track"] == "kept" and page.locator(".lmac-player:visible").count() == 1

    # the slider: every stop a new sound, and in time
    button(page, "plain").wait_for(); took = moved(page, ["ArrowRight"]*8)
    subtitle(page, "strength 3.5"); print(f"\nslider: {statistics.median(took):.0f} ms to the new sound (all: {', '.join(f'{t:.0f}' for t in took)})")
    assert statistics.median(took) < NOISY*GOAL
    before = played(page); moved(page, ["Home"]); subtitle(page, "strength 0"); after = played(page)
    assert np.array_equal(before["original"], after["original"]) and np.abs(after["kept"] - after["original"]).max() < 1e-3 < np.abs(before["kept"] - before["original"]).max()

    # a hand that is faster than the kernel: positions in between are left out, the last one is shown
    panel(page).get_by_role("slider", name="strength").focus()
    for _ in range(12): page.keyboard.press("ArrowRight")
    subtitle(page, "strength 3"); page.wait_for_function("!document.querySelector('.lmac-explorer.busy')"); assert panel(page).get_by_role("slider", name="strength").input_value() == "12"

    # another class; a method that cannot answer says so, and why not brings up one that can
    button(page, "conditional").click(); subtitle(page, "plain, conditional"); button(page, "plain").click(); subtitle(page, "explained by conditional")
    page.evaluate("window.took = []")
    for k, index in enumerate(("3", "7", "12", "3"), 1):
        panel(page).get_by_role("combobox", name="class to explain").select_option(index); page.wait_for_function(f"window.took.length === {k}", timeout=90000); page.wait_for_function("!document.querySelector('.lmac-explorer.busy')", timeout=90000)
    took = page.evaluate("window.took"); print(f"class: {statistics.median(took[:3]):.0f} ms to the sound of a new class, {took[3]:.0f} ms back to one that was asked before"); assert statistics.median(took) < NOISY*2*GOAL
    button(page, "plain").click(); panel(page).get_by_text("plain does not look at the class").wait_for()
    button(page, "conditional").click(); page.wait_for_selector(f"{LIVE}", state="detached")
    button(page, "Why not").click(); panel(page).get_by_text("on the part kept for").wait_for(); subtitle(page, "explained by conditional")

    # a null, and the tracks
    button(page, "loudest bins").click(); subtitle(page, "loudest bins in the place of conditional"); button(page, "none").click(); subtitle(page, "explained by conditional")
    page.locator(LIVE).get_by_role("button", name="Removed").click(); assert state(page)["track"] == "removed"

    # what is exported is what is heard: not clipped, not brought to full scale
    button(page, "Export").click(); panel(page).get_by_text("Written to").wait_for()
    heard, (folder,) = played(page), [p.parent for p in lab.folder.glob("kept/*/conditional")]
    gain = json.loads((folder/"explorer.json").read_text())["gain"]; source = sf.read(lab.folder/"sounds"/"scene.wav")[0]
    assert np.abs(heard["original"] - gain*source).max() <= 2**-15 and np.abs(heard["original"]).max() == pytest.approx(0.6, abs=1e-3)
    for part, samples in heard.items(): assert np.array_equal(samples, sf.read(folder/"conditional"/f"{part}.wav")[0]) and np.abs(samples).max() < 1

    # wrong sounds are told in words, names are text, uploads and the microphone are heard
    path = panel(page).get_by_role("textbox"); path.fill("text.wav"); path.press("Enter")
    panel(page).get_by_role("alert").get_by_text("undecodable").wait_for(); assert panel(page).get_by_role("combobox", name="sound").input_value() == "scene.wav"
    panel(page).get_by_label("sound file to upload").set_input_files(dict(name=f"{EVIL}.wav", mimeType="audio/wav", buffer=(lab.folder/"sounds"/"scene.wav").read_bytes()))
    page.wait_for_function(f"document.querySelector('.lmac-explorer select').value === {json.dumps(EVIL + '.wav')}"); assert page.title() != "hit" and page.locator("img[src=x]").count() == 0
    button(page, "Record").click(); page.wait_for_selector("text=/Stop \\((0\\.[6-9]|1)/", timeout=90000); button(page, "Stop").click()
    page.wait_for_function("document.querySelector('.lmac-explorer select').value === 'recording 1'", timeout=90000); assert np.abs(played(page)["original"]).max() == pytest.approx(0.6, abs=0.01)

    # saved and opened again: the notebook holds what was heard, the kernel what was chosen
    page.wait_for_timeout(1500); button(page, "Export").focus(); page.keyboard.press("Control+s"); page.wait_for_function("!document.querySelector('.lm-TabBar-tab.jp-mod-dirty')", timeout=90000)
    saved = "".join(nbformat.read(lab.folder/"n.ipynb", 4).cells[1].outputs[0]["data"]["text/html"]); assert "data-beside" in saved and "recording" not in saved and f"{len(played(page)['original'])/16000:.2f} s at 16 kHz" in saved
    page.reload(); page.wait_for_selector(LIVE, timeout=120000)
    page.wait_for_function("document.querySelector('.lmac-explorer select').value === 'recording 1'"); page.evaluate(HOOKS, LIVE)
    moved(page, ["End"]); subtitle(page, "strength 4")

@pytest.fixture(scope="module")
def voila(serve, tmp_path_factory): return serve("voila", "71_explorer.ipynb", scratch(tmp_path_factory.mktemp("voila"), "nbs/71_explorer.ipynb"))

def test_under_voila_from_its_own_notebook(open_page, voila, tmp_path):
    page = open_page(voila.url, width=390, height=1200); page.wait_for_selector(LIVE, timeout=400000)
    page.wait_for_selector("h1 >> text=What did it hear?"); assert page.get_by_text("Something to listen to").count() == 0         # the cells tagged `app`, and nothing else
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(HOOKS, LIVE); subtitle(page, "strength 1"); moved(page, ["ArrowRight"]*2); subtitle(page, "strength 1.5")
    panel(page).get_by_role("combobox", name="class to explain").select_option(label=panel(page).locator("select").nth(1).locator("option").nth(1).inner_text())
    panel(page).get_by_text("L-MAC does not look at the class").wait_for()
    button(page, "Why not").click(); panel(page).get_by_text("on the part kept for").wait_for()
    button(page, "random bins").click(); subtitle(page, "random bins in the place of L-MAC (class-conditional)"); button(page, "saliency").click(); subtitle(page, "(class-conditional), saliency")
    page.locator(LIVE).get_by_role("button", name="Removed").last.click()
    assert state(page)["track"] == "removed: random bins for saliency"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    # the page that is sent to a colleague plays by itself
    with page.expect_download() as download: button(page, "Download").click()
    kept = Path(tmp_path/"sent.html"); download.value.save_as(kept); alone = open_page(kept)
    alone.wait_for_selector(".lmac-player .picture"); alone.locator(".picture").focus(); alone.keyboard.press(" "); alone.keyboard.press("2")
    alone.wait_for_function("document.querySelector('.lmac-player').player.state().time > 0.2"); assert alone.evaluate("document.querySelector('.lmac-player').player.state().track").startswith("kept")
