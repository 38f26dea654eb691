"""What the player is given: every sound at one gain, honest numbers, names as text, and the same words in the page as in the widget."""
import base64, html, io, json, math, re
from dataclasses import replace
import numpy as np, pytest, torch
from PIL import Image

from lmac_piq.classifier import AudioClassifier
from lmac_piq.explanation import Attribution, explain
from lmac_piq.listen import Comparison, comparisons, remarks
from lmac_piq.player import TripletPlayer, edge_picture, khz_ticks, page, player_assets, player_data, player_html
from lmac_piq.spectral import Spectrogram

RATE, LSB = 16000, 2**-15
NAMES = ["hum", "</script><script>alert('x')</script>", 'a "quote" & <!-- a_comment', "beep"]

def clip(seconds: float = 0.5, seed: int = 0, explainer: str = "L-MAC", target: int = 0, level: float = 0.2) -> Comparison:
    "Low and high noise, told apart by a mask that knows"
    g = torch.Generator().manual_seed(seed)
    wave = torch.randn(int(seconds * RATE), generator=g); wave = level * wave / wave.abs().max()
    stft = Spectrogram(); values, phase = (x[0] for x in stft(wave[None]))
    mask = torch.zeros_like(values); mask[:100] = 1
    parts = {part: stft.inverse((values * m)[None], phase[None], len(wave))[0] for part, m in dict(kept=mask, removed=1 - mask).items()}
    probs = {part: torch.rand(4, generator=g).softmax(0) for part in ("original", "kept", "removed")}
    return Comparison(explainer, NAMES, target, dict(original=wave) | parts, probs, values, mask, RATE, 186)

def picture(pixels: int = 8) -> Comparison:
    image = torch.rand(3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    mask = (image[0] > 0.5).float()
    return Comparison("PIQ", ["circle", "square"], 1, dict(original=image, kept=mask * image, removed=(1 - mask) * image), {part: torch.tensor([0.3, 0.7]) for part in ("original", "kept", "removed")}, image, mask)

def samples(url: str) -> np.ndarray: return np.frombuffer(base64.b64decode(url.split(",")[1])[44:], "<i2") / 2**15
def pixels(url: str) -> np.ndarray: return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)

@pytest.fixture(scope="module")
def three(): return [clip(), replace(clip(), explainer="saliency"), replace(clip(), explainer="quiet", signals={k: v if k == "original" else 1e-3 * v for k, v in clip().signals.items()})]

@pytest.mark.parametrize("level", [1e-3, 0.2, 5.0])
def test_sounds_are_the_waves_at_one_gain(level):
    c, data = clip(level=level), player_data(clip(level=level))
    gain = 10 ** (data["gain_db"] / 20)
    assert gain == pytest.approx(c.gain, rel=1e-3)
    for track in data["tracks"]: assert np.abs(samples(track["wav"]) - c.gain * c.signals[track["name"]].numpy()).max() <= LSB

def test_several_methods_share_the_gain_of_the_loudest(three):
    loud = replace(three[0], explainer="loud", signals=three[0].signals | dict(kept=3 * three[0].signals["original"]))
    tracks = {t["name"]: samples(t["wav"]) for t in player_data([*three, loud])["tracks"]}
    assert max(np.abs(s).max() for s in tracks.values()) == np.abs(tracks["kept: loud"]).max() == pytest.approx(0.9, abs=LSB)
    assert np.abs(tracks["kept: loud"] - 3 * tracks["original"]).max() <= 3 * LSB
    assert np.abs(tracks["kept: quiet"] - 1e-3 * tracks["kept: L-MAC"]).max() <= 2 * LSB       # a whisper stays a whisper

def test_what_does_not_belong_together_is_refused(three):
    for wrong, reason in (([], "at least one"), ([three[0], three[0]], "same name"), ([three[0], clip(seed=1, explainer="other")], "different clips")):
        with pytest.raises(ValueError, match=reason): player_data(wrong)
    two = player_data([three[0], replace(three[0], target=3)])       # one method, two classes
    assert two["title"] == "hum, beep" and [t["method"] for t in two["tracks"][1:]] == 2 * ["L-MAC for hum"] + 2 * ["L-MAC for beep"]

def test_each_track_tells_what_the_classifier_says_of_it():
    c = clip(target=3); data = player_data(c)
    for track in data["tracks"]:
        p = c.probs[track["name"]]; best = p.argsort(descending=True)[:3].tolist()
        assert [k["name"] for k in track["top"]] == [NAMES[k].replace("_", " ") for k in best + [3] * (3 not in best)]
        assert all(k["p"] == pytest.approx(float(p[NAMES.index("beep")]), abs=1e-6) for k in track["top"] if k["target"]) and sum(k["target"] for k in track["top"]) == 1
    assert data["note"] == remarks(c) and "the classifier's answer is" in data["note"][0]

@pytest.mark.parametrize("kept, level, said", [(0.0, 0.2, "silence"), (1.0, 0.2, "100 % of the energy, 0.0 dB"), (1.0, 0.0, "silence")])
def test_dead_cases_are_named(kept, level, said):
    c = clip(level=level); c = replace(c, mask=torch.full_like(c.mask, kept), signals=c.signals | dict(kept=kept * c.signals["original"]))
    data = player_data(c); track = data["tracks"][1]
    assert track["detail"] == said and track["silent"] == (said == "silence") and data["note"] == remarks(c) != []
    json.dumps(data, allow_nan=False)

def test_colour_is_what_is_heard():
    c = clip(); original, kept, removed = (pixels(t["png"]) for t in player_data(c)["tracks"])
    assert original.shape == kept.shape == removed.shape == (150, 44, 3)                        # a column for each frame, up to 420
    grey = lambda p: np.ptp(p, axis=-1) < 12
    edge = 150 - round(150 * np.interp(100 * 8 / 512, *zip(*khz_ticks(RATE))))                      # the row of the mask's upper end
    assert grey(kept)[:edge - 5].mean() > 0.95 > 0.05 > grey(kept)[edge + 8:].mean() and grey(removed)[edge + 8:].mean() > 0.95
    assert grey(original).mean() < 0.05 and len(edge_picture(clip(5.0), clip(5.0).mask)) < 60_000

def test_names_are_text_in_html_and_in_json():
    text = player_html(clip(explainer="<b>mine</b>", target=1), assets=False)
    assert text.count("<script") == text.count("</script") == 1 and "<b>mine" not in text and "<!--" not in text
    inside = json.loads(re.search(r'<script type="application/json">(.*)</script>', text)[1])
    assert inside["title"] == NAMES[1] and inside["subtitle"] == "explained by <b>mine</b>"      # and nothing is lost

def test_nothing_is_stored_twice_and_nothing_is_remote(three):
    text, data = player_html(three), player_data(three)
    assert text.count("data:audio/wav") == len(data["tracks"]) == 7 and all(t["wav"] in text and html.escape(t["detail"]) in text for t in data["tracks"])
    assert not re.search(r"https?:|src=\"(?!data:)|url\(|@import|\bimport\b[^.;\n]*from", text)
    assert text == player_html(data) and text.endswith(player_assets()) and player_html(data, assets=False) + player_assets() == text

def test_the_script_can_stand_in_a_page():
    script = re.search(r'<script type="module">(.*)</script>', player_assets(), re.S)[1]
    assert "</script" not in script and "<!--" not in script and "innerHTML" not in script and len(player_assets()) < 30_000

def test_images_are_pictures_without_sound():
    data, text = player_data(picture()), player_html(picture())
    assert data["picture"] is None and all("wav" not in t and t["image"].startswith("data:image/png") for t in data["tracks"])
    assert "<audio" not in text and text.count("<img") == 3 and "of the area" in data["tracks"][1]["detail"]

def test_the_widget_replaces_what_it_plays(three):
    player = TripletPlayer(three[0])
    player.track, player.loop, player.time = "kept", [0.1, 0.2], 0.15
    assert player.show(three[:2]) is player and player.data == player_data(three[:2]) and (player.track, player.loop, player.time) == ("kept", [0.1, 0.2], 0.15)
    with pytest.raises(ValueError, match="different clips"): player.show([three[0], clip(seed=1, explainer="x")])
    assert player.data == player_data(three[:2])

# ---- explanations and pages

class Drawn:
    "Hands out the mask it was given"
    class_conditional, fixed_frames = True, None
    def __init__(self, mask: torch.Tensor, name: str = "drawn"): self.mask, self.name = mask, name
    def attribute(self, model, rep, out, target): return Attribution(self.mask.expand(rep.values.shape).clone())

def noise(seed: int = 0) -> torch.Tensor: return 0.3 * torch.rand(RATE // 4, generator=torch.Generator().manual_seed(seed)) - 0.15

@pytest.fixture(scope="module")
def item():
    with torch.random.fork_rng():
        torch.manual_seed(0); model = AudioClassifier(NAMES, width=0.05).eval()
    return explain(model, Drawn(torch.rand(1, 513, 1)), noise(), target="hum")

def test_an_explanation_shows_itself(item, tmp_path):
    assert item._repr_html_() == player_html(item) == player_html(comparisons(item)[0]) and TripletPlayer(item).data == player_data(item)
    many = explain(item.model, Drawn(torch.rand(1, 513, 1)), torch.stack([noise(k) for k in range(4)]))
    shown = many._repr_html_()
    assert shown.count("<audio") == 9 and shown.count(player_assets()) == 1 and "1 more item:" in shown
    assert many.save_page(tmp_path).read_text(encoding="utf8").count("<audio") == 12
    with pytest.raises(ValueError, match=r"4 items.*e\[0\]"): player_html(many)

def test_two_methods_in_one_player(item):
    other = item.by(Drawn(torch.rand(1, 513, 1), "other"), target="hum")
    assert [t["name"] for t in player_data([item, other])["tracks"]] == ["original", "kept: drawn", "removed: drawn", "kept: other", "removed: other"]

def test_a_page_stands_alone(item, tmp_path):
    text = page([item, item], "<i>Two</i>", tmp_path/"deep"/"x.html", captions=["a", "<b>"]).read_text(encoding="utf8")
    assert not re.search(r"https?:|src=\"(?!data:)|url\(|@import", text) and text.count(player_assets()) == 1
    assert player_html(item, assets=False) in text and "<b>" not in text.replace("<b>Original", "").replace("<b>Kept", "").replace("<b>Removed", "") and "&lt;i&gt;Two" in text and 'id="item-2"' in text

def test_a_page_that_fails_leaves_the_old_one(item, tmp_path):
    path = page(item, "first", tmp_path/"index.html")
    before = path.read_bytes()
    broken = explain(item.model, Drawn(torch.full((1, 513, 1), math.nan)), noise())
    with pytest.raises(ValueError): page([item, broken], "second", path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["index.html"]

def test_page_wants_a_caption_for_each_item(item, tmp_path):
    with pytest.raises(ValueError, match="1 items and 2 captions"): page(item, "t", tmp_path/"x.html", captions=["a", "b"])
    with pytest.raises(ValueError, match="0 items"): page([], "t", tmp_path/"x.html")
