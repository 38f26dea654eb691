"""What a listener gets: the same sounds at one gain, honest numbers, escaped names, and a page that needs nothing but a browser."""
import base64, html, io, json, math, re, shutil
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from PIL import Image

from lmac_piq.classifier import AudioClassifier, Explainable, Output, Representation
from lmac_piq.explanation import Attribution, explain
from lmac_piq.listen import (STYLE, audio_player, comparisons, energy_ratio, page, percent, png_bytes, relative_db, remarks,
                             spectrogram_picture, summary, triplet, wav_bytes)

RATE, LSB = 16000, 2**-15
NAMES = ["siren", "<script>alert('x')</script>", "washing_machine", 'quote " and & amp', "dog"]

class Drawn:
    "Hands out the mask it was given"
    class_conditional, fixed_frames = True, None
    def __init__(self, mask: torch.Tensor, name: str = "drawn"): self.mask, self.name = mask, name
    def attribute(self, model, rep, out, target):
        return Attribution(self.mask.expand(len(rep.values), *rep.values.shape[-2:]).clone())

def sound(seconds: float = 0.5, seed: int = 0, peak: float = 0.3) -> torch.Tensor:
    noise = torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return peak * noise / noise.abs().max()

def soft(frames: int, seed: int = 1) -> torch.Tensor: return torch.rand(1, 513, frames, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AudioClassifier(NAMES, width=0.05).eval()

@pytest.fixture(scope="module")
def item(model): return explain(model, Drawn(soft(44)), sound(), target="dog")

@pytest.fixture(scope="module")
def shown(item): return triplet(item)

def played(text: str) -> list[np.ndarray]:
    "The waves inside the audio elements of a page"
    found = re.findall(r'<audio[^>]* src="data:audio/wav;base64,([^"]+)"', text)
    return [sf.read(io.BytesIO(base64.b64decode(data)))[0] for data in found]

# ---- sounds

@pytest.mark.parametrize("gain", [1.0, 0.25, 3.0])
def test_wav_holds_the_wave_at_the_gain_and_nothing_else(gain):
    wave = sound()
    data = wav_bytes(wave, 8000, gain)
    read, rate = sf.read(io.BytesIO(data))
    info = sf.info(io.BytesIO(data))
    assert (rate, info.subtype, info.channels, len(read)) == (8000, "PCM_16", 1, len(wave))
    assert np.abs(read - gain * wave.numpy()).max() <= LSB

def test_quiet_stays_quiet():
    quiet = wav_bytes(1e-2 * sound())
    assert np.abs(sf.read(io.BytesIO(quiet))[0]).max() == pytest.approx(3e-3, abs=LSB)

@pytest.mark.parametrize("wave, gain, reason", [(sound(), 4.0, "clip"), (sound()[None], 1.0, "one wave"), (torch.zeros(0), 1.0, "one wave"),
                                               (torch.tensor([0.0, math.nan]), 1.0, "NaN"), (torch.tensor([math.inf]), 1.0, "infinite")])
def test_what_cannot_be_played_is_refused(wave, gain, reason):
    with pytest.raises(ValueError, match=reason): wav_bytes(wave, gain=gain)

def test_full_scale_plays():
    assert np.abs(sf.read(io.BytesIO(wav_bytes(torch.tensor([1.0, -1.0, 0.0]))))[0]).max() <= 1

def test_three_players_share_one_gain(item, shown):
    waves = dict(original=item.x[0], kept=item.kept()[0], removed=item.removed()[0])
    c, heard = comparisons(item)[0], played(shown)
    assert len(heard) == 3 and max(np.abs(w).max() for w in heard) == pytest.approx(0.9, abs=LSB)
    for read, wave in zip(heard, waves.values()): assert np.abs(read - c.gain * wave.numpy()).max() <= LSB

def test_energies_are_those_of_the_rendered_waves(item, shown):
    original, kept, removed = played(shown)
    c, record = comparisons(item)[0], summary(comparisons(item)[0])
    for part, read in dict(kept=kept, removed=removed).items():
        share = (read**2).sum() / (original**2).sum()
        assert c.energy(part) == pytest.approx(share, rel=1e-3) and record["energy"][part] == pytest.approx(share, rel=1e-3)
        assert record["level_db"][part] == pytest.approx(10 * math.log10(share), abs=0.01)
        assert html.escape(percent(c.energy(part))) in shown
    assert energy_ratio(2 * sound(), sound()) == pytest.approx(4)

def test_padding_is_not_played(model):
    batch = explain(model, Drawn(soft(44)), torch.stack([sound(), sound(seed=1)]))
    batch.rep.valid = torch.tensor([44, 20])
    whole, short = comparisons(batch)
    assert len(whole.signals["kept"]) == 8000 and {len(s) for s in short.signals.values()} == {20 * 186}
    assert short.mask.shape == short.values.shape == (513, 20)

def test_a_batch_gives_what_its_items_give(model):
    batch = explain(model, Drawn(soft(44)), torch.stack([sound(), sound(seed=1)]))
    for whole, alone in zip(comparisons(batch), [comparisons(batch[i])[0] for i in range(2)]):
        assert whole.energy("kept") == pytest.approx(alone.energy("kept"), rel=1e-4)
        torch.testing.assert_close(whole.probs, alone.probs, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"2 items.*e\[0\]"): triplet(batch)

# ---- words

def test_names_are_escaped(model):
    e = explain(model, Drawn(soft(44), name="<b>mine</b>"), sound(), target=1)
    text = triplet(e)
    assert "<script" not in text and "<b>mine" not in text and "&lt;script&gt;" in text
    assert 'aria-label="&quot;a&quot; &lt;b&gt;"' in audio_player(sound(), label='"a" <b>')

def test_names_and_probabilities_of_every_part(item, shown):
    c = comparisons(item)[0]
    for part, p in c.probs.items():
        column = re.search(rf'<div class="part {part}">.*?</div></div></div>', shown)[0]
        names = re.findall(r'<span class="name" title="([^"]*)"', column)
        best = [html.escape(NAMES[k].replace("_", " ")) for k in p.argsort(descending=True)[:3].tolist()]
        assert names == best + ["dog"] * ("dog" not in best) and p.sum() == pytest.approx(1, abs=1e-5)

@pytest.mark.parametrize("value, scale, remark, kept", [(0.0, 1, "nothing kept: silence", "silence"), (1.0, 1, "everything kept", "100 %"),
                                                        (0.5, 1, "constant mask of 0.50", "dB"), (0.5, 0, "silent clip", "silence")])
def test_dead_cases_are_named(model, value, scale, remark, kept):
    e = explain(model, Drawn(torch.full((1, 513, 44), value)), scale * sound())
    c, text = comparisons(e)[0], triplet(e)
    assert any(remark in found for found in remarks(c)) and len(played(text)) == 3
    assert kept in re.search(r'class="part kept">.*?<p>(.*?)</p>', text)[1]
    json.dumps(summary(c), allow_nan=False)

def test_an_ordinary_case_has_no_remark(model): assert remarks(comparisons(explain(model, Drawn(soft(44)), sound()))[0]) == []

def test_another_class_than_the_winner_is_announced(model):
    e = explain(model, Drawn(soft(44)), sound())
    loser = int(e.p[0].argmin())
    assert "the classifier&#x27;s answer is" in triplet(explain(model, Drawn(soft(44)), sound(), target=loser))

# ---- pictures

def test_the_worst_picture_is_small():
    values = torch.rand(513, 431, generator=torch.Generator().manual_seed(0))
    assert len(png_bytes(spectrogram_picture(values, soft(431)[0]))) < 60_000

@pytest.mark.parametrize("scale", ["mel", "linear"])
def test_axes_are_in_seconds_and_kilohertz(scale):
    figure = spectrogram_picture(soft(87)[0], soft(87)[0], scale=scale)
    ax, bar = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == ("time (s)", "frequency (kHz)", "level (dB re loudest bin)")
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (0, 8)

def test_a_tone_is_drawn_at_its_time_and_frequency():
    values = torch.zeros(513, 87); values[256, 40:48] = 3                 # 4 kHz, around 0.5 s
    ax = spectrogram_picture(values, scale="linear").axes[0]
    mesh = ax.collections[0]
    pixels, corners = mesh.get_array(), mesh.get_coordinates()
    row, column = np.unravel_index(pixels.sum(-1).argmax(), pixels.shape[:2])
    (left, low), (right, high) = corners[row, column], corners[row + 1, column + 1]
    assert low < 4 < high and left == pytest.approx(39.5 * 186 / RATE) and right - left == pytest.approx(186 / RATE)

def test_picture_wants_one_item_and_a_known_scale():
    with pytest.raises(ValueError, match="same shape"): spectrogram_picture(soft(87)[0], soft(86)[0])
    with pytest.raises(ValueError, match="one item"): spectrogram_picture(soft(87))
    with pytest.raises(ValueError, match="bark"): spectrogram_picture(soft(87)[0], scale="bark")

def test_levels_are_relative_to_the_loudest_bin():
    db = relative_db(torch.tensor([[1.0, 0.1, 1e-9]]).log1p())
    assert db.tolist()[0] == pytest.approx([0, -20, -70], abs=1e-3)

def test_images_are_shown_as_images(tmp_path):
    class Eye(Explainable):
        classes = ["circle", "square"]
        def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.ones(1))
        def represent(self, x, lengths=None): return Representation(x)
        def classify(self, values): return Output(torch.stack([values.mean((1, 2, 3)), 1 - values.mean((1, 2, 3))], 1) * self.weight, [values])
        def render(self, rep, values=None): return rep.values if values is None else values
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    e = explain(Eye(), Drawn((image[:, 0] > 0.5).float()), image)
    text = triplet(e)
    assert text.count("<img") == 3 and "<audio" not in text and "of the area" in text
    e.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["explanation.json", "kept.png", "mask.safetensors", "original.png", "removed.png"]
    assert np.abs(np.asarray(Image.open(tmp_path/"original.png")) / 255 - image[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6

# ---- files

def test_saved_files_are_what_was_played(item, shown, tmp_path):
    item.save(tmp_path/"deep"/"folder")
    record = json.loads((tmp_path/"deep"/"folder"/"explanation.json").read_text(encoding="utf8"))
    c = comparisons(item)[0]
    assert record["gain"] == pytest.approx(c.gain) and record["target"] == "dog" and record["seconds"] == 0.5 and record["sample_rate"] == RATE
    assert set(record["probabilities"]["kept"]) == set(NAMES)
    for part, read in zip(c.signals, played(shown)):
        saved, rate = sf.read(tmp_path/"deep"/"folder"/f"{part}.wav")
        assert rate == RATE and np.array_equal(saved, read)
    assert sorted(p.suffix for p in (tmp_path/"deep"/"folder").iterdir()) == [".json", ".png", ".png", ".safetensors", ".wav", ".wav", ".wav"]

def test_a_page_that_fails_leaves_the_old_one(item, tmp_path):
    path = page(item, "first", tmp_path/"index.html")
    before = path.read_bytes()
    broken = explain(item.model, Drawn(torch.full((1, 513, 44), math.nan)), sound())
    with pytest.raises(ValueError): page([item, broken], "second", path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["index.html"]

def test_page_wants_a_caption_for_each_item(item, tmp_path):
    with pytest.raises(ValueError, match="1 items and 2 captions"): page(item, "t", tmp_path/"x.html", captions=["a", "b"])
    with pytest.raises(ValueError, match="0 items"): page([], "t", tmp_path/"x.html")

def test_an_explanation_shows_itself(item, shown, model, tmp_path):
    assert item._repr_html_() == shown
    many = explain(model, Drawn(soft(44)), torch.stack([sound(seed=k) for k in range(4)]))
    first = many._repr_html_()
    assert len(played(first)) == 9 and "1 more item:" in first
    assert len(played(many.save_page(tmp_path).read_text(encoding="utf8"))) == 12

def test_nothing_remote_and_no_script(item, shown, tmp_path):
    text = page(item, "t", tmp_path/"x.html").read_text(encoding="utf8")
    assert not re.search(r"<script|https?:|src=\"(?!data:)|url\(|@import", text)
    assert STYLE in text and shown.removeprefix(STYLE) in text

# ---- a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None: pytest.skip("no chromium on the PATH: the page is not opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not opened in a browser")
    with playwright.sync_playwright() as p:
        chrome = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield chrome
        chrome.close()

@pytest.fixture(scope="module")
def two_clips(item, tmp_path_factory):
    longer = explain(item.model, Drawn(soft(87)), sound(1.0))
    return page([item, longer], "Two clips", tmp_path_factory.mktemp("page")/"index.html", captions=["half a second", "one second"])

@pytest.mark.parametrize("width, theme", [(800, "light"), (1400, "dark"), (420, "light")])
def test_page_in_a_browser(browser, two_clips, width, theme):
    view = browser.new_page(viewport=dict(width=width, height=800), color_scheme=theme)
    asked, failed = [], []
    view.on("request", lambda r: asked.append(r.url)); view.on("requestfailed", lambda r: failed.append(r.url))
    view.on("console", lambda m: failed.append(m.text)); view.on("pageerror", lambda error: failed.append(str(error)))
    view.goto(two_clips.as_uri())
    view.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)", timeout=10_000)
    durations = view.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    assert durations == pytest.approx(3 * [0.5] + 3 * [1.0], abs=1e-3)
    assert not failed and [url for url in asked if not url.startswith("data:")] == [two_clips.as_uri()]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    tops = view.evaluate("[...document.querySelectorAll('audio')].slice(0, 3).map(a => a.getBoundingClientRect().top)")
    assert len(set(tops)) == (1 if width >= 800 else 3)      # side by side, or stacked where the screen is narrow
    paper, ink = view.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.lmac-piq')).color]")
    brightness = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert (brightness(paper) > brightness(ink)) == (theme == "light") and abs(brightness(paper) - brightness(ink)) > 400
    view.close()
