"""The explorer without a browser: what was chosen, what follows, and that a view never says anything else."""
import json, math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from torch import Tensor

from lmac_piq.audio import save_wave
from lmac_piq.classifier import AudioClassifier
from lmac_piq.codebook import Codebook
from lmac_piq.codes import code_view
from lmac_piq.explanation import Attribution, Explainer, explain
from lmac_piq.explorer import STOPS, Explorer, Layer, bin_ranks
from lmac_piq.metrics import same_values, topk_mask
from lmac_piq.piq import PIQ, LightInterpreter, PIQTask
from lmac_piq.style import spoken
from lmac_piq.training import seeded

EVIL = "<img src=x onerror=alert(1)> \"q\" 'a' </script>"
NAMES = ["dog_bark", EVIL, "sea"]

class Drawn:
    "An explainer whose mask is a formula of spectrogram and class, and that counts how often it was asked"
    fixed_frames = None
    def __init__(self, name: str = "drawn", class_conditional: bool = True, wrong: Callable[[Tensor], Tensor] = lambda mask: mask): self.name, self.class_conditional, self.wrong, self.asked = name, class_conditional, wrong, 0
    def attribute(self, model, rep, out, target):
        self.asked += 1
        bins = torch.linspace(0, 6, rep.values.shape[1])[:, None] + torch.arange(rep.values.shape[2]) / 40
        return Attribution(self.wrong((0.5 + 0.5 * torch.sin(bins + target[0])).expand_as(rep.values).clone()))

@pytest.fixture(scope="module")
def model() -> AudioClassifier:
    with seeded(0): return AudioClassifier(NAMES, width=0.0625).eval()

def noise(seconds: float, seed: int = 0, level: float = 0.2) -> Tensor: return level * torch.randn(round(16000 * seconds), generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)

@pytest.fixture
def explorer(model, tmp_path) -> Explorer: return Explorer(model, {"drawn": Drawn(), "blind": Drawn("blind", False)}, {"a": noise(1.0), "b": noise(0.6, 1)}, folder=tmp_path/"kept")

class Counted:
    "Counts the passes of a classifier"
    def __init__(self, model, monkeypatch):
        self.passes = self.representations = 0
        classify, represent = model.classify, model.represent
        def counting(values): self.passes += 1; return classify(values)
        def representing(*a, **k): self.representations += 1; return represent(*a, **k)
        monkeypatch.setattr(model, "classify", counting, raising=False); monkeypatch.setattr(model, "represent", representing, raising=False)

# ---- turning

@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.75])
def test_strength_is_an_exponent_of_the_mask(explorer, model, strength):
    explorer.set_strength(strength)
    e, x = explorer.explanation(), explain(model, Drawn(), explorer.wave)
    assert torch.equal(e.mask, x.mask**strength) and e.explainer_name == f"drawn, strength {strength:g}"
    magnitude = (1 + x.rep.values.expm1())**(x.mask**strength) - 1
    expected = model.stft.synthesis(torch.polar(magnitude, x.rep.phase), x.rep.length)/x.rep.gain
    assert torch.allclose(e.kept(), expected, atol=1e-5)
    if strength == 0: assert torch.allclose(e.kept()[0], explorer.wave, atol=1e-4) and e.removed().abs().max() < 1e-6

@pytest.mark.parametrize("area", [0.001, 0.1, 1.0])
def test_threshold_keeps_the_best_share_of_the_bins(explorer, area):
    explorer.set_area(area)
    layer, mask = explorer.layer("drawn"), explorer.explanation().mask
    assert torch.equal(mask, topk_mask(layer.ranking, max(1, round(area*layer.ranking.numel()))))

@pytest.mark.parametrize("seconds", [1.0, 0.25])    # the shorter one is padded: its padding belongs to no mask
@pytest.mark.parametrize("null", ["random", "loudest", "constant"])
def test_a_null_has_the_area_and_the_values_of_the_mask(model, null, seconds):
    explorer = Explorer(model, Drawn(), {"a": noise(seconds)})
    frames, turns = int(explorer.first.rep.valid[0]), [explorer.set_strength]*3 + [explorer.set_area]*2
    for turn, x in zip(turns, (0.5, 1.0, 3.1, 0.02, 0.4)):
        turn(x); explorer.set_null(); own = explorer.explanation().mask; explorer.set_null(null); moved = explorer.explanation().mask
        assert moved[..., frames:].abs().sum() == 0 == own[..., frames:].abs().sum()
        assert float(moved.mean()) == pytest.approx(float(own.mean()), rel=1e-5) and not torch.equal(moved, own)
        if null == "constant": assert moved[..., :frames].amin() == moved[..., :frames].amax()
        else: assert torch.allclose(moved.flatten().sort().values, own.flatten().sort().values, rtol=0, atol=1e-6)      # a power has other last bits in another place
    if null == "loudest":
        explorer.set_strength(1.0)
        values = explorer.first.rep.values[..., :frames]
        assert torch.equal(explorer.explanation().mask[..., :frames], same_values(explorer.layer("drawn").mask, values))    # as the metrics lay it

def test_ranks_are_a_permutation_and_ties_do_not_lean(model):
    ranks = bin_ranks(torch.zeros(1, 40, 50))
    assert sorted(ranks.flatten().tolist()) == list(range(1, 2001))
    assert abs(float(ranks[:, :20].float().mean()) - 1000.5) < 60 and abs(float(ranks[..., :25].float().mean()) - 1000.5) < 60

# ---- computed once

def test_a_move_asks_neither_the_explainer_nor_the_classifier(explorer, model, monkeypatch):
    explorer.view()
    counted, asked = Counted(model, monkeypatch), explorer.explainers["drawn"].asked
    for strength in STOPS["strength"]: explorer.set_strength(strength)
    assert (counted.passes, counted.representations, explorer.explainers["drawn"].asked) == (0, 0, asked)
    explorer.set_strength(1.01); assert counted.passes == 1 and counted.representations == 0              # between the stops: kept and removed in one pass
    explorer.set_null("random"); assert explorer.explainers["drawn"].asked == asked and counted.representations == 0
    passes = counted.passes; explorer.set_strength(2.0); explorer.set_null(); explorer.set_null("random"); assert counted.passes == passes     # the null's curve too is computed once

def test_a_class_is_asked_for_once(explorer, model, monkeypatch):
    explorer.view()
    counted, asked = Counted(model, monkeypatch), explorer.explainers["drawn"].asked
    other = next(k for k in range(3) if k != explorer.predicted)
    explorer.choose(other); assert explorer.explainers["drawn"].asked == asked + 1 and counted.representations == 0
    explorer.choose(); explorer.choose(other); assert explorer.explainers["drawn"].asked == asked + 1
    explorer.open_item("b"); assert explorer.asked == explorer.predicted and explorer.explainers["drawn"].asked == asked + 2 and counted.representations == 1

def test_the_curve_is_what_the_classifier_says_of_each_position(explorer, model):
    for null in (None, "loudest"):
        table = explorer.curve(null=null)
        for k in (0, 4, 16):
            explorer.null = null; explorer.set_strength(float(STOPS["strength"][k]))
            e = explorer.explanation(); read = e.p_kept, e.p_removed
            e._judged = None
            assert torch.allclose(read[0], e.p_kept, atol=1e-5) and torch.allclose(read[1], e.p_removed, atol=1e-5)
            assert table.kept[k] == pytest.approx(float(e.p_kept[0, explorer.asked]), abs=1e-5) and table.removed[k] == pytest.approx(float(e.p_removed[0, explorer.asked]), abs=1e-5)
    layer = Layer(explain(model, Drawn(), explorer.wave)); whole = layer.curve("area", 17); layer.curves.clear()
    assert torch.allclose(whole, layer.curve("area", 3), atol=1e-5)                                       # however many are computed at once

# ---- classes

def test_why_not_is_answered_by_those_that_look_at_the_class(explorer):
    other = NAMES[next(k for k in range(3) if k != explorer.predicted)]
    explorer.compare("blind"); said = explorer.why_not(other)
    assert explorer.methods == ["drawn", "blind"] and "on the part kept for" in said and said.count("%") == 3
    heard, refused = explorer.heard(); assert list(heard) == ["drawn"] and "does not look at the class" in refused["blind"]
    assert explorer.state()["notes"] == [said, refused["blind"]]
    explorer.set_strength(2.0); assert explorer.state()["notes"][0] == explorer.reply() != said and "strength 2" in explorer.reply()     # the reply moves with the dial
    explorer.set_null("random"); assert explorer.reply() == ""; explorer.set_null()
    explorer.choose(); assert explorer.reply() == "" and list(explorer.heard()[0]) == ["drawn", "blind"]

def test_without_such_a_method_the_reason_is_said(model):
    explorer = Explorer(model, Drawn("blind", False), {"a": noise(1.0)})
    said = explorer.why_not()
    assert "None of the methods here looks at the class (blind)" in said and explorer.target is None and explorer.state()["notes"] == [said]
    assert explorer.why_not(explorer.predicted).endswith("is the classifier's answer.")
    explorer.set_strength(2.0); assert explorer.state()["notes"] == []

# ---- levels

def test_everything_is_heard_at_one_gain_that_never_rises(model):
    explorer = Explorer(model, {"drawn": Drawn(), "other": Drawn("other", wrong=lambda m: m**4)}, {"loud": noise(1.0, 3, 0.3), "soft": noise(1.0, 4, 0.001)})
    for name in explorer.items:
        explorer.open_item(name); gains = []
        for act in (lambda: explorer.set_strength(0.3), lambda: explorer.compare("drawn", "other"), lambda: explorer.set_area(0.02), lambda: explorer.set_null("constant"), lambda: explorer.set_strength(4)):
            act(); heard, _ = explorer.heard()
            assert len({c.gain for c in heard.values()}) == 1 and max(float(c.gain*w.abs().max()) for c in heard.values() for w in c.signals.values()) <= 0.991
            gains.append(explorer.gain)
        assert gains == sorted(gains, reverse=True) and gains[0] <= 0.6/float(explorer.wave.abs().max()) + 1e-9

def test_a_part_that_peaks_higher_lowers_the_gain_for_all(model):
    explorer = Explorer(model, Drawn(), {"a": noise(1.0)}); explorer.gain *= 4; high = explorer.gain
    c = explorer.heard()[0]["drawn"]
    assert c.gain < high and max(float(c.gain*w.abs().max()) for w in c.signals.values()) == pytest.approx(0.99)

# ---- what can go wrong

def files(folder: Path) -> dict[str, str]:
    "Bad files and what is said of them"
    (folder/"text.wav").write_text("no sound"); (folder/"empty.wav").touch()
    save_wave(folder/"silent.wav", torch.zeros(16000)); save_wave(folder/"short.wav", noise(0.05)); save_wave(folder/"long.wav", noise(31))
    sf.write(folder/"nan.wav", np.full(16000, np.nan, dtype="f4"), 16000, subtype="FLOAT")
    return {"text.wav": "undecodable", "empty.wav": "0 bytes", "silent.wav": "silent", "short.wav": "too short: 0.050 s", "long.wav": "too long: 31 s", "nan.wav": "NaN", "gone.wav": "no such file"}

def test_bad_sounds_are_refused_in_words_and_what_was_open_stays(explorer, tmp_path, capfd):
    view = explorer.view(); before = explorer.title, explorer.asked, list(explorer.items)
    for k, (name, words) in enumerate(files(tmp_path).items()):
        with pytest.raises(ValueError, match=words): explorer.open(tmp_path/name)
        view.act(dict(id=f"v-{k}", do="open", value=str(tmp_path/name)))
        assert words in view.panel.state["error"] and view.panel.state["answered"] == f"v-{k}" and view.panel.state["title"] == explorer.title
        if (tmp_path/name).exists():
            view.act(dict(id="u", do="upload", value=EVIL), [(tmp_path/name).read_bytes()])
            assert words in view.panel.state["error"] and str(tmp_path) not in view.panel.state["error"]
    assert (explorer.title, explorer.asked, list(explorer.items)) == before and capfd.readouterr().err == ""
    view.act(dict(id="w", do="turn", value=2.0)); assert view.panel.state["error"] == ""

@pytest.mark.parametrize("message, words", [(dict(do="choose", value=99), "unknown class 99"), (dict(do="method", value="x"), ""), (dict(do="turn", value=-1), "strength -1"), (dict(do="null", value="x"), "no null 'x'"),
                                            (dict(do="item", value="x"), "no item 'x'"), (dict(do="model", value="x"), "no classifier 'x'"), (dict(do="record", value=16000), "too short"), (dict(do="fly"), "KeyError")])
def test_whatever_is_pressed_the_view_answers_and_does_not_raise(explorer, message, words):
    view = explorer.view(); view.act(message | dict(id="7"), [b""])
    assert words in view.panel.state["error"] and view.panel.state["answered"] == "7" and explorer.title == "a"

def test_a_method_that_fails_is_a_refusal_and_the_others_are_heard(model):
    def broken(mask): raise RuntimeError("out of luck")
    fixed = Drawn("fixed"); fixed.fixed_frames = 7
    explorer = Explorer(model, {"drawn": Drawn(), "broken": Drawn("broken", wrong=broken), "nan": Drawn("nan", wrong=lambda m: m*math.nan), "big": Drawn("big", wrong=lambda m: 2*m), "fixed": fixed}, {"a": noise(1.0)})
    view = explorer.view(); explorer.compare(*explorer.explainers)
    heard, refused = explorer.heard()
    assert list(heard) == ["drawn"] and refused["broken"] == "RuntimeError: out of luck" and "NaN" in refused["nan"] and "outside 0 to 1" in refused["big"] and "7 frames" in refused["fixed"]
    assert view.panel.state["notes"] == list(refused.values()) and view.panel.state["error"] == ""
    with pytest.raises(RuntimeError): explorer.explanation("broken")
    explorer.compare("nan"); assert explorer.view().children == (view.panel,) and explorer.heard()[0] == {}
    explorer.compare("drawn"); assert len(view.children) == 2

def test_paths_can_be_kept_from_the_view(model, tmp_path):
    save_wave(tmp_path/"a.wav", noise(0.5)); explorer = Explorer(model, Drawn(), files=False)
    view = explorer.view(); assert view.panel.state["title"] == "" and not view.panel.state["files"] and view.children == (view.panel,)
    view.act(dict(id="1", do="open", value=str(tmp_path/"a.wav"))); assert "switched off" in view.panel.state["error"]
    view.act(dict(id="2", do="upload", value="a.wav"), [memoryview((tmp_path/"a.wav").read_bytes())]); assert view.panel.state["title"] == "a.wav" and len(view.children) == 2

# ---- sources

def test_sounds_come_at_the_rate_of_the_classifier(model, tmp_path):
    with seeded(1): other = AudioClassifier(["x", "y"], width=0.0625, sample_rate=8000).eval()
    tone = 0.3*torch.sin(2*math.pi*440*torch.arange(16000)/16000)
    save_wave(tmp_path/"tone.wav", tone)
    explorer = Explorer(model, Drawn(), {"tensor": tone, "file": tmp_path/"tone.wav", "made": lambda: tone}, name="wide")
    explorer.add_model("narrow", other, Drawn("drawn there"))
    pitch = lambda: float(torch.fft.rfft(explorer.wave*torch.hann_window(len(explorer.wave))).abs().argmax()*explorer.sample_rate/len(explorer.wave))
    for name in ("wide", "narrow"):
        explorer.use(name); assert explorer.methods == list(explorer.explainers)
        for item in explorer.items: explorer.open_item(item); assert pitch() == pytest.approx(440, abs=1) and len(explorer.wave) == explorer.sample_rate == {"wide": 16000, "narrow": 8000}[name]
    explorer.record(torch.sin(2*math.pi*440*torch.arange(44100)/44100), 44100); assert pitch() == pytest.approx(440, abs=1) and explorer.title == "recording 1"
    explorer.use("wide"); assert explorer.title == "recording 1" and pitch() == pytest.approx(440, abs=1)

def test_a_microphone_message_is_its_samples(explorer):
    samples = noise(0.5, 5).numpy()
    explorer.view().act(dict(id="1", do="record", value=16000), [memoryview(samples.tobytes())])
    assert np.array_equal(explorer.wave.numpy(), samples) and explorer.title == "recording 1" and "recording 1" in explorer.view().panel.state["items"]

# ---- text and files

class Elements(HTMLParser):
    def __init__(self, text): super().__init__(); self.seen, self.words = [], ""; self.feed(text)
    def handle_starttag(self, tag, attributes): self.seen.append((tag, dict(attributes)))
    def handle_data(self, data): self.words += data

def test_names_are_text_wherever_they_are_shown(model):
    explorer = Explorer(model, {EVIL: Drawn(EVIL)}, {EVIL: noise(0.5)}); explorer.choose(1)
    page = Elements(explorer.page())
    assert not [a for tag, a in page.seen if tag == "img" and a.get("src") == "x"] and EVIL in page.words
    assert not [a for tag, a in Elements(explorer.view().static().data).seen if a.get("src") == "x"]
    assert json.loads(json.dumps(explorer.state()))["items"] == [EVIL]

def test_an_export_holds_what_was_heard(explorer):
    explorer.compare("drawn", "blind"); explorer.set_area(0.1)
    folder = explorer.export(); assert folder.parent == explorer.folder and folder == explorer.export()       # the same state, the same place
    heard, facts = explorer.heard()[0], json.loads((folder/"explorer.json").read_text())
    for method, c in heard.items():
        for part, wave in c.signals.items():
            read, rate = sf.read(folder/method/f"{part}.wav"); assert rate == 16000 and np.abs(read - explorer.gain*wave.numpy()).max() <= 2**-15
        assert {p.name for p in (folder/method).iterdir()} == {"original.wav", "kept.wav", "removed.wav", "spectrogram.png", "mask.png", "mask.safetensors", "explanation.json"}
    assert (facts["turned"], facts["at"], facts["gain"], list(facts["curves"])) == ("area", 0.1, explorer.gain, ["drawn", "blind"]) and facts["curves"]["drawn"]["area"] == pytest.approx(STOPS["area"].tolist(), abs=1e-6)
    page = Elements((folder/"index.html").read_text()); assert [tag for tag, _ in page.seen].count("audio") == 5 and not [a for _, a in page.seen for k in ("src", "href") if str(a.get(k)).startswith("http")]
    assert explorer.export(explorer.folder/"elsewhere")/"index.html" in list((explorer.folder/"elsewhere").iterdir())

# ---- the view

def slug(name: str) -> str: return dict(zip(NAMES, ("a-dog_bark-area-0.5", "a-img-src-x-onerror-alert-1-q-a-script-area-0.5", "a-sea-area-0.5")))[name]
def kept(explorer) -> set[str]: return {page.parent.name for page in explorer.folder.glob("*/index.html")}

def test_a_view_shows_the_state_and_keeps_the_part_that_is_heard(explorer):
    view, told = explorer.view(), []
    explorer.views.append(lambda: told.append(1))
    assert view.player.track == "kept" and explorer.view() is view
    view.player.track = "removed"; view.act(dict(id="1", do="method", value="blind"))
    assert explorer.methods == ["drawn", "blind"] and view.player.track == "removed: drawn" and len(told) == 1
    view.act(dict(id="2", do="method", value="drawn")); assert view.player.track == "removed"
    view.act(dict(id="3", do="method", value="blind")); assert explorer.methods == ["blind"]                     # the last one stays
    view.act(dict(id="4", do="form", value="area")); view.act(dict(id="5", do="turn", value=0.5)); assert (explorer.form, explorer.at) == ("area", dict(strength=1.0, area=0.5))
    assert {k: v for k, v in view.panel.state.items() if k not in ("error", "answered")} == explorer.state()
    sent = []; view.panel.send = lambda message: sent.append(message); view.act(dict(id="6", do="page")); assert sent[0]["page"] == explorer.page() and sent[0]["name"] == "a.html"
    view.act(dict(id="7", do="export")); assert view.panel.state["notes"] == [f"Written to {explorer.folder/slug(NAMES[explorer.predicted])}"] and kept(explorer) == {slug(NAMES[explorer.predicted])}
    view.act(dict(id="8", do="method", value="drawn")); view.act(dict(id="9", do="method", value="blind"))
    for asked in range(3):                                                                                     # the class that is asked for names the folder
        before = kept(explorer); view.act(dict(id="10", do="choose", value=asked)); assert kept(explorer) == before
        view.act(dict(id="11", do="export")); assert not view.panel.state["error"] and kept(explorer) == before | {slug(NAMES[asked])}
    assert len(kept(explorer)) == 3

def test_the_codes_of_a_piq_stand_under_the_player(monkeypatch):
    with seeded(0): model = AudioClassifier(NAMES, width=0.0625, network="conv2d", pool=2).eval()
    x = model.represent(noise(1.0)[None]).values; channels = [f.shape[1] for f in model.classify(x).features]
    with seeded(1): piq = PIQ(LightInterpreter(channels[2], 16, layer=2, doublings=3), Codebook(13, 16, 3, shared=1), PIQTask("mask")).eval()
    explorer = Explorer(model, {"drawn": Drawn(), "PIQ": piq}, {"a": noise(1.0)}); view = explorer.view(); assert len(view.children) == 2
    explorer.compare("drawn", "PIQ"); assert view.children == (view.panel, view.player, view.codes) and view.codes.data["title"] == spoken(NAMES[explorer.asked])
    looked = []; monkeypatch.setattr("lmac_piq.explorer.code_view", lambda *a: looked.append(a) or code_view(*a))
    explorer.set_strength(2.0); assert not looked and len(view.children) == 3                                    # the dial moves masks, not codes
    other = (explorer.predicted + 1) % 3; explorer.choose(other); assert len(looked) == 1 and int(looked[0][1].target[0]) == other and len(view.children) == 3
    explorer.set_null("random"); assert len(view.children) == 2
    explorer.set_null(); explorer.compare("drawn"); assert view.children == (view.panel, view.player)

def test_what_a_saved_notebook_keeps_follows(explorer, monkeypatch):
    def no_loop() -> None: raise RuntimeError("no running event loop")
    monkeypatch.setattr("lmac_piq.explorer.asyncio.get_running_loop", no_loop)  # a browser test in this process leaves one running
    view, kept = explorer.view(), []
    view.kept = type("Shown", (), dict(update=lambda self, html: kept.append(html.data)))()
    explorer.set_strength(3.0); assert len(kept) == 1 and "strength 3" in kept[0] and f'data-beside="{view.player.beside}"' in kept[0]
