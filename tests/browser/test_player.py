"""The player where it is used: in a page opened from a folder, in JupyterLab with a kernel and without one, trusted and not."""
import json, os, re, subprocess, sys
from dataclasses import replace
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from conftest import run_all

from lmac_piq.listen import Comparison
from lmac_piq.player import _STATIC, player_assets, player_data, player_html, player_page

RATE, LSB, FADE = 16000, 2**-15, 0.005
EVIL = "<img src=x onerror=\"document.title='hit'\"></script><script>document.title='hit'</script>"

# One clip, as source: the tests use it and the notebooks they write make it again. Two tones of 16 kHz / n, so that every sample tells where it is
CLIP = '''import math, torch
from lmac_piq.listen import Comparison
from lmac_piq.player import TripletPlayer, player_html
from lmac_piq.spectral import Spectrogram
t = torch.arange(24000) / 16000
low, high = 0.1 * t + 0.1 * torch.sin(2 * math.pi * 300 * t), 0.2 * torch.sin(2 * math.pi * 2000 * t) * (t > 0.7)
values = Spectrogram()((low + high)[None])[0][0]
mask = torch.zeros_like(values); mask[:40] = 1
probs = {part: torch.tensor(p) for part, p in dict(original=[0.6, 0.3, 0.1], kept=[0.9, 0.05, 0.05], removed=[0.1, 0.8, 0.1]).items()}
c = Comparison("L-MAC", ["hum", "beep", "wind"], 0, dict(original=low + high, kept=low, removed=high), probs, values, mask, 16000, 186)
'''
made = {}; exec(CLIP, made); c: Comparison = made["c"]

def document(body: str) -> str: return f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>players</title><style>body{{background:light-dark(#fff,#17171a)}}:root{{color-scheme:light dark}}</style>{body}</html>'

@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    "A page with two players, the second one of two methods"
    path = tmp_path_factory.mktemp("page")/"index.html"
    other = replace(c, explainer="saliency", signals=dict(original=c.signals["original"], kept=c.signals["removed"], removed=c.signals["kept"]), mask=1 - c.mask)
    path.write_text(player_page("players", player_html(c, assets=False) + player_html([c, other], assets=False)), encoding="utf8")
    return path

def state(page, k: int = 0) -> dict: return page.evaluate(f"document.querySelectorAll('.lmac-player')[{k}].player.state()")
def pressed(page, k: int = 0) -> list[str]: return page.locator(".lmac-player").nth(k).get_by_role("button", pressed=True).evaluate_all("all => all.map(b => b.querySelector('b').firstChild.textContent)")

@pytest.fixture
def sound(open_page, tmp_path):
    "A page in which the module's own functions can be called"
    script = (_STATIC/"player.js").read_text(encoding="utf8")
    (tmp_path/"s.html").write_text(document(f'<div id="here"></div><script type="module">{script}\nObject.assign(window, {{decode, start, mount}}); window.ready = true;</script>'), encoding="utf8")
    page = open_page(tmp_path/"s.html"); page.wait_for_function("window.ready")
    return page

# ---- samples

RENDER = """async ([urls, from, loop, switches, seconds]) => {
  const rate = 16000, context = new OfflineAudioContext(1, seconds * rate, rate);
  const run = start(context, urls.map(decode), rate, { at: 0, from, loop, open: 0 });
  for (const [when, track] of switches) context.suspend(when).then(() => { run.open(track); context.resume(); });
  return Array.from((await context.startRendering()).getChannelData(0));
}"""

def test_what_is_played_is_the_wave_times_the_gain(sound):
    for track in player_data(c)["tracks"]:
        read, wave = np.array(sound.evaluate("url => Array.from(decode(url))", track["wav"])), c.gain * c.signals[track["name"]].numpy()
        assert np.abs(read - wave).max() <= LSB and np.abs(read).max() == pytest.approx(np.abs(wave).max(), abs=LSB)
        assert np.array_equal(np.array(sound.evaluate(RENDER, [[track["wav"]], 0, [], [], 1.5])), read)     # through the graph: the very same samples

def test_a_switch_goes_on_at_the_same_sample(sound):
    urls = [t["wav"] for t in player_data(c)["tracks"]]
    a, b, _ = tracks = [np.array(sound.evaluate("url => Array.from(decode(url))", url)) for url in urls]
    at, back, begin = 0.256, 0.512, 0.3                    # blocks of 128 samples, in which an offline context can stop
    out = np.array(sound.evaluate(RENDER, [urls, begin, [], [[at, 1], [back, 0]], 0.75]))
    first, second, n, fade = round(begin * RATE), round(at * RATE), round(back * RATE), round(FADE * RATE)
    heard = lambda track, lo, hi: np.abs(out[lo:hi] - track[first + lo:first + hi]).max()
    assert heard(a, 0, second) == 0 and heard(b, second + fade + 1, n) < 1e-6 and heard(a, n + fade + 1, len(out)) < 1e-6
    assert heard(b, second + fade + 1, n) < heard(np.roll(b, 1), second + fade + 1, n) > 10 * LSB       # one sample off would show
    mix = out[second:second + fade] - b[first + second:][:fade]; step = a[first + second:][:fade] - b[first + second:][:fade]
    assert (np.diff(mix[np.abs(step) > 0.05] / step[np.abs(step) > 0.05]) < 1e-6).all()                 # in between it only ever fades, within 5 ms

def test_a_loop_repeats_its_samples_and_keeps_the_tracks_together(sound):
    urls = [t["wav"] for t in player_data(c)["tracks"]]
    b = np.array(sound.evaluate("url => Array.from(decode(url))", urls[1]))
    out = np.array(sound.evaluate(RENDER, [urls, 0.5, [0.4, 0.7], [[0.256, 1]], 1.0]))
    n = np.arange(len(out)) + 8000; looped = np.where(n < 11200, n, 6400 + (n - 6400) % 4800)
    assert np.abs(out[4096 + 81:] - b[looped][4096 + 81:]).max() < 1e-6 and (looped[4096:] < 11200).all()

# ---- a page in a folder

def test_keys_and_buttons_do_what_they_say(open_page, two):
    page = open_page(two); page.wait_for_selector(".lmac-player .picture")
    assert page.locator(".lmac-player").count() == 2 and page.locator("audio").count() == 0 and page.locator(".plain").count() == 0
    first = page.locator(".lmac-player").first
    slider = first.get_by_role("slider", name="Position in the spectrogram"); slider.focus()
    assert pressed(page) == ["Original"] and state(page) == dict(track="original", time=0, playing=False, loop=[])
    for key, track in (("2", "kept"), ("3", "removed"), ("1", "original"), ("ArrowDown", "kept"), ("ArrowUp", "original"), ("9", "original")):
        page.keyboard.press(key); assert state(page)["track"] == track
    page.keyboard.press("2"); assert first.get_by_role("status").inner_text() == "Kept" and pressed(page) == ["Kept"]
    for key, time in (("ArrowRight", 0.075), ("ArrowRight", 0.15), ("ArrowLeft", 0.075), ("End", 1.5), ("Home", 0)):
        page.keyboard.press(key); assert state(page)["time"] == pytest.approx(time) == pytest.approx(float(slider.get_attribute("aria-valuenow")), abs=0.005)
    page.keyboard.press("ArrowRight"); page.keyboard.press("["); assert state(page)["loop"] == pytest.approx([0.075, 1.5])
    page.keyboard.press("Escape"); assert state(page)["loop"] == []
    first.get_by_role("button", name=re.compile("Removed")).click(); assert state(page)["track"] == "removed"
    page.keyboard.press("Control+2"); assert state(page)["track"] == "removed"                        # the browser's own keys are left alone

def test_playing_goes_on_through_a_switch_and_one_player_plays_at_a_time(open_page, two):
    page = open_page(two); page.wait_for_selector(".lmac-player .picture")
    page.locator(".picture").first.focus(); page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('.lmac-player').player.state().time > 0.2")
    begun, before = page.evaluate("performance.now()"), state(page)
    page.keyboard.press("2")
    after, passed = state(page), (page.evaluate("performance.now()") - begun) / 1000
    assert after["playing"] and after["track"] == "kept" and 0 <= after["time"] - before["time"] <= passed + 0.05
    page.locator(".lmac-player").nth(1).get_by_role("button", name="Play").click()
    assert not state(page)["playing"] and state(page, 1)["playing"] and page.evaluate("lmacPiqContexts.size") == 1
    page.wait_for_function("!document.querySelectorAll('.lmac-player')[1].player.state().playing", timeout=5000)      # it ends by itself
    assert state(page, 1)["time"] == 1.5 and page.locator(".lmac-player").nth(1).get_by_role("button", name="Play").count() == 1

def test_a_region_is_drawn_looped_and_left(open_page, two):
    page = open_page(two); page.wait_for_selector(".lmac-player .picture")
    box = page.locator(".picture").first.bounding_box()
    at = lambda share: (box["x"] + share * box["width"], box["y"] + 60)
    page.mouse.move(*at(0.6)); page.mouse.down(); page.mouse.move(*at(0.5)); page.mouse.move(*at(0.4)); page.mouse.up()
    assert state(page)["loop"] == pytest.approx([0.6, 0.9], abs=0.01) and state(page)["time"] == pytest.approx(0.6, abs=0.01)
    page.keyboard.press(" ")
    times = [page.evaluate("new Promise(done => setTimeout(() => done(document.querySelector('.lmac-player').player.state().time), 90))") for _ in range(8)]
    assert min(times) >= 0.59 and max(times) <= 0.91 and any(b < a for a, b in zip(times, times[1:]))      # round and round
    page.get_by_role("button", name=re.compile("Loop 0.60–0.90 s")).click()
    assert state(page)["loop"] == [] and state(page)["playing"]
    page.keyboard.press(" "); page.mouse.click(*at(0.2)); assert state(page)["time"] == pytest.approx(0.3, abs=0.01)

@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_fits_and_can_be_read(open_page, two, width, dark):
    page = open_page(two, width=width, dark=dark); page.wait_for_selector(".lmac-player .picture")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    brightness = lambda colour: sum(float(v) for v in re.findall(r"[\d.]+", colour)[:3]) / 3
    paper, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.lmac-player')).color]")
    assert (brightness(paper) > 200 > 80 > brightness(ink)) != dark and abs(brightness(paper) - brightness(ink)) > 180
    small = page.evaluate("[...document.querySelectorAll('.lmac-player button')].filter(b => b.offsetParent && b.getBoundingClientRect().height < 24).length")
    cut = page.evaluate("[...document.querySelectorAll('.lmac-player .share, .lmac-player .khz span, .lmac-player .time span')].filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').length")
    assert small == 0 == cut

def test_names_are_shown_as_text(open_page, tmp_path):
    evil = replace(c, explainer=EVIL, classes=[EVIL, 'a "quote"', "<!-- x"], target=1)
    (tmp_path/"e.html").write_text(document(player_html(evil)), encoding="utf8")
    page = open_page(tmp_path/"e.html"); page.wait_for_selector(".lmac-player .picture"); page.wait_for_timeout(200)
    assert page.title() == "players" and page.locator(".lmac-player img[src=x]").count() == 0
    assert EVIL in page.locator("h3").inner_text() and EVIL in page.locator(".name").all_text_contents() and page.locator(".note").count() == 1

def test_images_have_no_sound_controls(open_page, tmp_path):
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    shape = Comparison("PIQ", ["circle", "square"], 0, dict(original=image, kept=image, removed=0 * image), {part: torch.tensor([0.7, 0.3]) for part in ("original", "kept", "removed")}, image, torch.ones(8, 8))
    (tmp_path/"i.html").write_text(document(player_html(shape)), encoding="utf8")
    page = open_page(tmp_path/"i.html"); page.wait_for_selector(".lmac-player:not(.plain)")
    assert page.locator("img").count() == 3 and page.locator("audio, button, [role=slider]").count() == 0 and page.get_by_alt_text("Kept, circle").is_visible()

def test_without_a_script_there_are_plain_sounds(chromium, two):
    context = chromium.new_context(java_script_enabled=False, viewport=dict(width=390, height=800)); page = context.new_page(); page.goto(two.as_uri())
    assert page.locator("audio[controls]").count() == 3 + 5 and page.locator("audio").first.is_visible() and page.get_by_text("trust the notebook").first.is_visible()
    context.close()

def test_data_can_be_replaced_while_it_plays(sound):
    sound.evaluate("data => { window.p = mount(document.getElementById('here'), data); p.select('kept'); p.play(); }", data := player_data(c))
    sound.wait_for_function("p.state().time > 0.2")
    before = sound.evaluate("p.state()"); other = replace(c, signals=c.signals | dict(kept=0.5 * c.signals["kept"]))
    took = sound.evaluate("data => { const begun = performance.now(); p.update(data); return performance.now() - begun; }", player_data(other))
    after = sound.evaluate("p.state()")
    assert after["playing"] and after["track"] == "kept" and before["time"] <= after["time"] < before["time"] + 0.5 and took < 150
    print(f"{len(json.dumps(data)) / 1000:.0f} kB replaced in {took:.0f} ms")
    sound.evaluate("p.destroy()"); assert sound.locator(".lmac-player").count() == 0

# ---- JupyterLab

def written(path: Path, *cells: str) -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in cells])
    nb.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    path.parent.mkdir(parents=True, exist_ok=True); nbformat.write(nb, path); return path

@pytest.fixture(scope="module")
def lab(serve, tmp_path_factory):
    "JupyterLab over three notebooks: one to run, and one that was run and saved, trusted and from a stranger"
    folder = tmp_path_factory.mktemp("lab")
    live = written(folder/"live.ipynb", CLIP, "player = TripletPlayer(c)\nplayer", "from dataclasses import replace\nplayer.show(replace(c, classes=['hum, again', 'beep', 'wind']))\nplayer.loop = [0.2, 0.9]\nNone", "print('track', player.track, 'at', round(player.time, 2))")
    saved = written(folder/"run.ipynb", CLIP, "from IPython.display import HTML\nHTML(player_html(c))", "TripletPlayer(c)")
    env = {**os.environ, "IPYTHONDIR": str(folder/"ipython"), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-m", "nbconvert", "--log-level", "ERROR", "--to", "notebook", "--execute", "--inplace", saved], check=True, env=env, cwd=folder)
    nb = nbformat.read(saved, 4)
    for key in ("kernelspec", "language_info", "widgets"): del nb.metadata[key]                        # as it is committed: no kernel named, no widget's state kept
    for name in ("trusted", "stranger"): nb.metadata["title"] = name; nbformat.write(nb, folder/f"{name}.ipynb")
    subprocess.run([Path(sys.executable).parent/"jupyter", "trust", "trusted.ipynb"], check=True, cwd=folder, env={**os.environ, "JUPYTER_DATA_DIR": str(folder/"share"), "JUPYTER_CONFIG_DIR": str(folder/"jupyter")}, capture_output=True)
    server = serve("lab", live.name, folder); server.folder = folder; return server

@pytest.fixture
def without_kernel(chromium, lab):
    "`without_kernel(name)` opens a notebook in JupyterLab and declines a kernel; a list takes the console's errors"
    contexts = []
    def opened(name: str):
        context = chromium.new_context(viewport=dict(width=1280, height=1500)); contexts.append(context); page = context.new_page(); page.errors = []
        page.on("console", lambda m: m.type == "error" and page.errors.append(m.text)); page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(lab.url.replace("live.ipynb", name))
        page.wait_for_selector(".jp-Dialog >> text=Select Kernel", timeout=120000); page.click(".jp-Dialog >> button:has-text('No Kernel')")
        page.wait_for_selector("text=No Kernel >> nth=0"); return page
    yield opened
    for context in contexts: context.close()

def test_reopened_without_a_kernel_it_still_plays(without_kernel):
    page = without_kernel("trusted.ipynb")
    page.wait_for_selector(".jp-OutputArea >> .picture >> nth=1", timeout=90000)
    static, live = page.locator(".lmac-player").nth(0), page.locator(".lmac-player").nth(1)
    assert static.is_visible() and live.is_visible() and page.locator(".lmac-player").count() == 2
    live.get_by_role("button", name="Play").click(); page.keyboard.press("2")
    page.wait_for_function("document.querySelectorAll('.lmac-player')[1].player.state().time > 0.3")
    assert state(page, 1)["track"] == "kept"
    page.wait_for_timeout(1500)
    assert page.locator("text=Error displaying widget >> visible=true").count() == 0
    assert all("widget model not found" in text for text in page.errors), page.errors       # JupyterLab's own word about the widget that is gone

def test_a_strangers_notebook_shows_plain_sounds(without_kernel):
    page = without_kernel("stranger.ipynb"); page.wait_for_selector(".jp-OutputArea audio", timeout=90000)
    page.wait_for_function("[...document.querySelectorAll('audio')].length === 6 && [...document.querySelectorAll('audio')].every(a => a.duration === 1.5)", timeout=10000)
    assert page.locator("audio[controls]").first.is_visible() and page.locator(".picture").count() == 0 and page.get_by_text("trust the notebook").first.is_visible()
    assert page.evaluate("[...document.querySelectorAll('.jp-OutputArea img')].every(i => i.naturalWidth > 0)") and not page.errors

def test_live_it_is_one_player_that_python_can_steer(open_page, lab):
    page = open_page(lab.url, height=1500); run_all(page)
    page.wait_for_selector(".lmac-player h3:has-text('hum, again') >> visible=true", timeout=90000)
    seen = page.locator(".lmac-player:visible"); assert seen.count() == 1          # the static form stands beside it, unseen
    seen.get_by_role("button", name="Play").click(); page.keyboard.press("3")
    live = "[...document.querySelectorAll('.lmac-player')].find(p => p.offsetParent).player.state()"
    page.wait_for_function(f"{live}.time > 0.3"); assert page.evaluate(live)["loop"] == pytest.approx([0.2, 0.9])
    page.keyboard.press(" "); stopped = page.evaluate(live)
    assert not stopped["playing"] and page.locator(".jp-Notebook .jp-MarkdownCell").count() == 0     # 3 and space are the player's here, not the notebook's
    page.locator(".jp-CodeCell").last.locator(".cm-content").click(); page.keyboard.press("Shift+Enter")
    page.wait_for_selector(f"text=track removed at {round(stopped['time'], 2):g}", timeout=90000)
    page.keyboard.press("Control+s"); page.wait_for_function("!document.querySelector('.jp-Document .jp-mod-dirty, .lm-TabBar-tab.jp-mod-dirty')", timeout=10000)
    saved = (lab.folder/"live.ipynb").read_text(encoding="utf8"); assert "hum, again" in saved and "data-beside" in saved      # what `show` put there is what is saved

def test_the_html_export_plays(chromium, lab, tmp_path):
    from nbconvert import HTMLExporter
    text, _ = HTMLExporter().from_filename(str(lab.folder/"trusted.ipynb")); (tmp_path/"n.html").write_text(text, encoding="utf8")
    context = chromium.new_context(); page = context.new_page(); wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error))); page.route(re.compile("^https?:"), lambda route: route.abort())      # the export's own scripts come from elsewhere
    page.goto((tmp_path/"n.html").as_uri()); page.wait_for_selector(".picture >> nth=1")
    page.locator(".picture").first.focus(); page.keyboard.press(" "); page.keyboard.press("2")
    page.wait_for_function("document.querySelector('.lmac-player').player.state().time > 0.2"); assert state(page)["track"] == "kept" and page.locator(".lmac-player:visible").count() == 2
    context.close(); assert not [w for w in wrong if "MathJax" not in w and "require" not in w]
