"""Recordings of any length: the same samples streamed as at once, windows that join without a seam, one memory for all lengths, and clear words for bad files."""
import json, math, subprocess, sys
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.audio import AudioError, load_wave, resample
from lmac_piq.classifier import AudioClassifier
from lmac_piq.explanation import Attribution, explain
from lmac_piq.recording import (TRACKS, Layout, Stitch, choose_targets, clock, cut_windows, explain_recording, fade, load_comparison, load_recording, make_layout, mean_logits,
                                pick_windows, read_blocks, recording_headline, recording_html, recording_remarks, resample_blocks, ribbon, stream_wave, windows_at)
from lmac_piq.training import seeded

RATE, HOP, STEP = 16000, 186, 2**-15
NAMES = ["siren", "<script>alert('x')</script>", "NA", 'a "quote" & more', "sea_waves"]

class Given:
    "Masks made by a function of the values"
    fixed_frames = None
    def __init__(self, mask, conditional: bool = True, name: str = "given"): self.mask, self.class_conditional, self.name = mask, conditional, name
    def attribute(self, model, rep, out, target): return Attribution(self.mask(rep.values))

constant = lambda share: Given(lambda v: torch.full_like(v, share))
loud = Given(lambda v: (v > v.flatten(1).mean(1)[:, None, None]).float(), conditional=False, name="loud")
sigmoid = Given(lambda v: (v - 1).sigmoid())

def noise(seconds: float, seed: int = 0, peak: float = 0.3) -> torch.Tensor:
    x = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return peak * x / x.abs().max()

def write(path: Path, wave: torch.Tensor, rate: int = RATE, **kind) -> Path:
    with sf.SoundFile(path, "w", rate, 1 if wave.ndim == 1 else wave.shape[1], **kind) as file:
        for block in wave.split(4096): file.write(block.numpy())      # libsndfile's Vorbis encoder takes small blocks only
    return path

def made(level: str) -> AudioClassifier:
    with seeded(0): return AudioClassifier(NAMES, width=0.05, level=level).eval()

@pytest.fixture(scope="module")
def model(): return made("peak")

@pytest.fixture(scope="module")
def unlevelled(): return made("none")

def run(model, explainer, path, folder, **how):
    return explain_recording(model, explainer, path, folder, **(dict(seconds=1.0, progress=False) | how))

# ---- reading

@pytest.mark.parametrize("name, kind", [("a.wav", {}), ("a.flac", {}), ("a.ogg", {}), ("a.mp3", {}), ("a.aiff", {}), ("a.wav", dict(subtype="FLOAT")), ("a.wav", dict(format="RF64"))], ids=lambda v: str(v))
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_is_the_file(tmp_path, name, kind, channels):
    wave = noise(1.3) if channels == 1 else torch.stack([noise(1.3), noise(1.3, 1)], 1)
    path = write(tmp_path / name, wave, 22050, **kind)
    blocks = list(read_blocks(path, 0.11))
    assert len(blocks) > 5 and torch.equal(torch.cat(blocks), load_wave(path, 22050))
    streamed = torch.cat(list(stream_wave(path, RATE, 0.11)))
    assert streamed.shape == (whole := load_wave(path, RATE)).shape and torch.allclose(streamed, whole, atol=1e-6)

@settings(max_examples=40, deadline=None)
@given(rates=st.sampled_from([(8000, 16000), (11025, 16000), (16000, 22050), (22050, 16000), (44100, 16000), (48000, 16000), (96000, 16000), (16000, 44100), (7, 6), (6, 7), (1, 5), (5, 1), (12345, 16000)]),
       length=st.integers(1, 30000), cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_resampling_has_no_seams(rates, length, cuts, seed):
    x = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    sizes, left = [], length
    while left > 0: sizes.append(min(left, cuts[len(sizes) % len(cuts)])); left -= sizes[-1]
    at_once, streamed = resample(x, *rates), torch.cat(list(resample_blocks(x.split(sizes), *rates)))
    assert streamed.shape == at_once.shape and torch.allclose(streamed, at_once, atol=2e-5)

DAMAGED = {"cut.wav": 0.5, "cut.flac": 0.5, "cut.ogg": 0.6, "cut.mp3": 0.5, "cut.aiff": 0.5}

@pytest.mark.parametrize("name", DAMAGED)
def test_a_truncated_file_is_refused_and_leaves_nothing(model, tmp_path, name):
    path = write(tmp_path / name, noise(4))
    data = path.read_bytes(); path.write_bytes(data[:int(DAMAGED[name] * len(data))])
    try: load_wave(path)
    except AudioError: pass
    else: pytest.skip("libsndfile reads this container without noticing")
    with pytest.raises(AudioError, match="truncated|damaged|undecodable"): run(model, sigmoid, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()

@pytest.mark.parametrize("what, word", [("missing.wav", "no such file"), ("folder", "directory"), ("empty.wav", "empty"), ("text.wav", "undecodable"), ("nan.wav", "non-finite"), ("none.wav", "no samples")])
def test_bad_files_are_named(model, tmp_path, what, word):
    (tmp_path / "folder").mkdir(); (tmp_path / "empty.wav").touch(); (tmp_path / "text.wav").write_text("hello" * 99)
    bad = noise(3); bad[40000] = math.nan; write(tmp_path / "nan.wav", bad, subtype="FLOAT"); write(tmp_path / "none.wav", bad[:0])
    with pytest.raises(AudioError, match=word) as error: run(model, sigmoid, tmp_path / what, tmp_path / "out")
    assert what in str(error.value) and not (tmp_path / "out").exists()
    if what == "nan.wav": assert "0 s and 3 s" in str(error.value)

# ---- cutting and joining

@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 6000), size=st.integers(20, 900), share=st.floats(0, 0.9), hop=st.integers(1, 9), block=st.integers(1, 2000))
def test_windows_cover_everything_on_one_grid(length, size, share, hop, block):
    step = max(1, round((1 - share) * size / hop)) * hop
    if step > size: step = size // hop * hop
    x = torch.arange(float(length))
    found = list(cut_windows(x.split(block), size, step, hop))
    starts, ends = [s for s, _ in found], [s + len(w) for s, w in found]
    assert all(torch.equal(w, x[s:s + len(w)]) for s, w in found) and starts[0] == 0 and ends[-1] == length and all(s % hop == 0 for s in starts)
    assert all(len(w) == size for _, w in found[:-1]) and len(found[-1][1]) < size + hop and all(0 < b - a <= step for a, b in zip(starts, starts[1:]))
    assert len(found) == 1 or len(found[-1][1]) >= size

@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 5000), size=st.integers(20, 900), share=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_the_fades_sum_to_one(length, size, share, seed):
    step = max(1, round((1 - share) * size))
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(seed))
    stitch, out, biggest = Stitch(2, size - step), [], 0
    for start, _ in cut_windows([x[0]], size, step):
        n = min(size, length - start); out.append(stitch.add(start, x[:, start:start + n])); biggest = max(biggest, stitch.sum.shape[1])
    joined = torch.cat([*out, stitch.take()], 1)
    assert joined.shape == x.shape and torch.allclose(joined, x, atol=1e-5) and biggest <= 2 * size
    assert (fade(size, size - step) > 0).all()

def test_windows_out_of_order_are_refused():
    stitch = Stitch(1, 10); stitch.add(0, torch.zeros(1, 50)); stitch.add(25, torch.zeros(1, 50))
    with pytest.raises(ValueError, match="in order"): stitch.add(0, torch.zeros(1, 50))
    with pytest.raises(ValueError, match="gap"): stitch.add(100, torch.zeros(1, 50))

# ---- what holds

@pytest.mark.parametrize("samples", [1, 100, 5000, RATE, RATE + HOP - 1])
def test_one_window_is_explain(model, tmp_path, samples):
    wave = noise(2)[:samples]
    path = write(tmp_path / "x.wav", wave, subtype="FLOAT")
    r, e = run(model, sigmoid, path, tmp_path / "out"), explain(model, sigmoid, wave)
    assert len(r.windows) == 1 and r.target == int(e.target) and torch.allclose(r.probs, e.p[0], atol=1e-6)
    for part, want in zip(TRACKS, (wave, e.kept()[0], e.removed()[0])):
        assert torch.allclose(load_wave(tmp_path / "out" / f"{part}.wav"), r.gain * want, atol=STEP)
    row = r.windows.iloc[0]
    assert row.p == pytest.approx(float(e.p[0, r.target]), abs=1e-5) and row.p_kept == pytest.approx(float(e.p_kept[0, r.target]), abs=1e-5) and row.p_removed == pytest.approx(float(e.p_removed[0, r.target]), abs=1e-5)

@settings(max_examples=8, deadline=None)
@given(seconds=st.floats(1.2, 4.0), overlap=st.sampled_from([0.2, 0.5, 0.75]), share=st.floats(0.05, 0.95), domain=st.sampled_from(["log", "linear"]), seed=st.integers(0, 99))
def test_a_constant_mask_joined_is_the_masked_whole(unlevelled, tmp_path_factory, seconds, overlap, share, domain, seed):
    folder = tmp_path_factory.mktemp("constant")
    wave = noise(seconds, seed); path = write(folder / "x.wav", wave, subtype="FLOAT")
    r = run(unlevelled, constant(share), path, folder / "out", overlap=overlap, domain=domain)
    kept, removed = (load_wave(folder / "out" / f"{part}.wav") / r.gain for part in TRACKS[1:])
    whole = explain(unlevelled, constant(share), wave, domain=domain)
    inside = slice(2 * HOP, -2 * HOP)
    assert len(kept) == len(wave) and torch.allclose(kept[inside], whole.kept()[0][inside], atol=2e-4) and torch.allclose(removed[inside], whole.removed()[0][inside], atol=2e-4)
    if domain == "linear": assert torch.allclose(kept + removed, wave, atol=2e-4)

@pytest.mark.parametrize("explainer, domain", [(sigmoid, "linear"), (loud, "log")], ids=["soft on magnitudes", "binary"])
def test_kept_and_removed_add_up(model, tmp_path, explainer, domain):
    path = write(tmp_path / "x.wav", noise(3.3), subtype="FLOAT")
    r = run(model, explainer, path, tmp_path / "out", domain=domain)
    original, kept, removed = (load_wave(tmp_path / "out" / f"{part}.wav") for part in TRACKS)
    assert torch.allclose(kept + removed, original, atol=4 * STEP) and torch.allclose(original, r.gain * noise(3.3), atol=STEP)

def test_each_window_is_what_explain_says_of_it(model, tmp_path):
    wave = noise(2.9); path = write(tmp_path / "x.wav", wave, subtype="FLOAT")
    r = run(model, sigmoid, path, tmp_path / "out", regions=[1.5])
    (i, c), = r.examples.items()
    a, b = round(r.windows.start_s[i] * RATE), round(r.windows.end_s[i] * RATE)
    e = explain(model, sigmoid, wave[a:b], r.target)
    assert torch.allclose(c.signals["kept"], e.kept()[0], atol=1e-5) and c.target == r.target and a % HOP == 0
    assert r.windows.kept_energy[i] == pytest.approx(c.energy("kept"), rel=1e-3)

# ---- which class

def test_the_class_is_that_of_the_mean_logits(model, tmp_path):
    wave = noise(3.1); path = write(tmp_path / "x.wav", wave, subtype="FLOAT")
    r = run(model, sigmoid, path, tmp_path / "out")
    with torch.no_grad(): logits = torch.cat([model(w[None]) for _, w in make_layout(model, sigmoid, 1.0).cut(path)])
    assert len(r.windows) == len(logits) > 4 and torch.allclose(r.probs, logits.mean(0).softmax(0), atol=1e-5) and r.target == r.predicted == int(logits.mean(0).argmax())
    assert set(r.windows.target) == {NAMES[r.target]}

def test_silence_has_no_say_unless_there_is_nothing_else():
    logits, silent = torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([True, False])
    assert mean_logits(logits, silent).tolist() == [0.0, 1.0] and mean_logits(logits, torch.tensor([True, True])).tolist() == [2.5, 0.5]

def test_one_class_for_all_or_each_windows_own(model):
    logits, silent = torch.tensor([[2.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0]]), torch.zeros(2, dtype=torch.bool)
    ask = lambda explainer, *how: (lambda t: (t[0].tolist(), t[1]))(choose_targets(model, explainer, logits, silent, *how))
    assert ask(sigmoid) == ([0, 0], 0) and ask(sigmoid, "NA") == ([2, 2], 2) and ask(sigmoid, None, True) == ([0, 1], None)
    assert ask(loud) == ([0, 1], None)                                          # it can do nothing else
    with pytest.raises(ValueError, match="does not look at the class, and 1 of 2 windows"): ask(loud, None, False)
    with pytest.raises(ValueError, match="does not look at the class, and 2 of 2 windows"): ask(loud, "NA")
    with pytest.raises(ValueError, match="leave the target"): ask(sigmoid, "NA", True)
    assert choose_targets(model, loud, logits[:1], silent[:1], "siren")[1] == 0   # all windows agree, so it may

def test_a_target_is_explained_everywhere(model, tmp_path):
    r = run(model, sigmoid, write(tmp_path / "x.wav", noise(2.5)), tmp_path / "out", target="sea_waves")
    assert set(r.windows.target) == {"sea_waves"} and (r.predicted == 4 or "this is about sea waves" in recording_remarks(r)[0])

# ---- unusual recordings

@pytest.mark.parametrize("rate, channels", [(44100, 2), (8000, 1), (48000, 6)])
def test_other_rates_and_channels(model, tmp_path, rate, channels):
    wave = torch.stack([resample(noise(2.2, seed), RATE, rate)[:2 * rate] for seed in range(channels)], 1).clamp(-1, 1)
    r = run(model, sigmoid, path := write(tmp_path / "x.wav", wave, rate), tmp_path / "out")
    assert sf.info(tmp_path / "out/kept.wav").samplerate == RATE and torch.allclose(load_wave(tmp_path / "out/original.wav"), r.gain * load_wave(path), atol=STEP)

def test_silence_is_a_result(model, tmp_path):
    r = run(model, sigmoid, write(tmp_path / "x.wav", torch.zeros(3 * RATE)), tmp_path / "out")
    assert recording_remarks(r) == ["silent recording: there is nothing to hear"] and r.gain == 1 and math.isnan(r.energy("kept")) and not r.examples
    assert all(not load_wave(tmp_path / "out" / f"{part}.wav").any() for part in TRACKS) and r.save_page().exists() and load_recording(tmp_path / "out").windows.kept_energy.isna().all()

def test_half_silent(model, tmp_path):
    wave = torch.cat([noise(2), torch.zeros(3 * RATE)]); r = run(model, sigmoid, write(tmp_path / "x.wav", wave), tmp_path / "out")
    assert any("windows are silent and take no part" in text for text in recording_remarks(r)) and not load_wave(tmp_path / "out/kept.wav")[-2 * RATE:].any()
    assert all(r.windows.end_s[i] < 3.1 for i in r.examples)

def test_a_method_of_fixed_length_sets_the_window(model, tmp_path):
    fixed = Given(lambda v: v.new_full(v.shape, 0.5)); fixed.fixed_frames = 87
    assert make_layout(model, fixed, seconds=9.0) == Layout(RATE, 86 * HOP, 43 * HOP, HOP)
    r = run(model, fixed, write(tmp_path / "x.wav", noise(2.7)), tmp_path / "out"); assert len(r.windows) > 3
    with pytest.raises(ValueError, match="87 frames only"): run(model, fixed, write(tmp_path / "y.wav", noise(0.5)), tmp_path / "out2")

@pytest.mark.parametrize("how, word", [(dict(overlap=1.0), "0 to 0.9"), (dict(seconds=0.01), "shorter than two frames"), (dict(regions=[9.0]), "ends at 2 s"), (dict(target="dog"), "unknown class 'dog'")])
def test_wrong_wishes_are_refused(model, tmp_path, how, word):
    with pytest.raises(ValueError, match=word): run(model, sigmoid, write(tmp_path / "x.wav", noise(2)), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()

def test_a_failure_halfway_changes_nothing_that_was_there(model, tmp_path):
    path = write(tmp_path / "x.wav", noise(6)); run(model, sigmoid, path, tmp_path / "out")
    files = lambda: {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    before = files()
    class Tired(Given):
        def attribute(self, *asked):
            if (tired := getattr(self, "asked", 0)): raise RuntimeError("no more")
            self.asked = tired + 1
            return super().attribute(*asked)
    with pytest.raises(RuntimeError, match="no more"): run(model, Tired(lambda v: torch.ones_like(v)), path, tmp_path / "out")
    assert files() == before and not list((tmp_path / "out").glob(".*"))

def test_nothing_is_clipped_and_the_gain_is_shared(model, tmp_path):
    square = torch.sign(torch.sin(torch.arange(3 * RATE) * 0.05)) * 1.0         # under a mask it overshoots
    r = run(model, Given(lambda v: (torch.arange(v.shape[1]) < 40).float()[None, :, None].expand_as(v).contiguous()), write(tmp_path / "x.wav", square, subtype="FLOAT"), tmp_path / "out")
    original, kept, removed = (load_wave(tmp_path / "out" / f"{part}.wav") for part in TRACKS)
    assert r.gain < 0.9 and max(float(w.abs().max()) for w in (original, kept, removed)) == pytest.approx(0.9, abs=2 * STEP)
    assert torch.allclose(original, r.gain * square, atol=STEP) and torch.allclose(kept + removed, original, atol=4 * STEP)

PEAKS = """
import resource, sys, torch
from lmac_piq.classifier import AudioClassifier
from lmac_piq.decoder import LightDecoder
from lmac_piq.lmac import LMAC
from lmac_piq.recording import explain_recording
model = AudioClassifier(["a", "b"], width=0.05).eval(); lmac = LMAC(LightDecoder(model.network.channels, 8, 2))
for path in sys.argv[1:]:
    explain_recording(model, lmac, path, path + ".out", seconds=1.0, overlap=0.0, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

def test_memory_does_not_grow_with_the_length(tmp_path):
    for name, seconds in (("short.wav", 6), ("long.wav", 90)): write(tmp_path / name, torch.rand(96000, 2).repeat(seconds, 1) - 0.5, 96000)
    whole = 90 * 96000 * 2 * 4 / 2**20
    done = subprocess.run([sys.executable, "-c", PEAKS, tmp_path / "short.wav", tmp_path / "long.wav"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    short, long = map(float, done.stdout.split())
    assert long - short < 0.4 * whole, f"{long - short:.0f} MiB more for 15 times the length; decoded, it would take {whole:.0f}"

# ---- what is written and shown

@pytest.fixture(scope="module")
def odd(model, tmp_path_factory):
    "A recording with awkward names"
    folder = tmp_path_factory.mktemp("odd")
    path = write(folder / "it's <i>\"odd\"\n.flac", noise(4.4))
    return run(model, sigmoid, path, folder / "out & <b>", target="<script>alert('x')</script>")

def test_names_are_text_everywhere(odd):
    page = odd.save_page().read_text(encoding="utf8")
    assert "alert('x')</script>" not in page and "<i>\"odd" not in page and "&lt;script&gt;alert" in page and "https://" not in page
    assert '<audio controls preload="metadata" src="kept.wav"' in page and "out%20%26%20%3Cb%3E/kept.wav" in recording_html(odd, odd.folder.parent)

def test_what_was_saved_can_be_read_back(odd):
    again = load_recording(odd.folder)
    assert again.source == odd.source and again.classes == NAMES and again.target == 1 and again.layout == odd.layout and recording_headline(again) == recording_headline(odd)
    assert again.windows.drop(columns=["kept_energy"]).equals(odd.windows.drop(columns=["kept_energy"]).round(12)) or np.allclose(again.windows.select_dtypes("number"), odd.windows.select_dtypes("number"), atol=1e-6)
    assert list(again.windows.predicted) == list(odd.windows.predicted) and again.examples.keys() == odd.examples.keys() and recording_remarks(again) == recording_remarks(odd)
    record = json.loads((odd.folder / "recording.json").read_text())
    assert record["windows"] == len(odd.windows) and record["probabilities"].keys() == set(NAMES) and record["examples"] == list(odd.examples)

def test_a_class_named_na_is_read_back(model, tmp_path):
    r = run(model, sigmoid, write(tmp_path / "x.wav", noise(2)), tmp_path / "out", target="NA")
    assert set(load_recording(tmp_path / "out").windows.target) == {"NA"} == set(r.windows.target)

def test_images_are_read_back(tmp_path):
    from lmac_piq.classifier import ImageClassifier
    import lmac_piq.listen
    with seeded(0): seer = ImageClassifier(["a", "b"], channels=3, size=32, network="resnet", width=0.25).eval()
    x = torch.rand(1, 3, 32, 32)
    explain(seer, Given(lambda v: torch.rand(v.shape[0], *v.shape[2:])), x).save(tmp_path / "image")
    c = load_comparison(tmp_path / "image")
    assert c.sample_rate is None and torch.allclose(c.signals["original"], x[0], atol=1 / 255) and c.mask.shape == (32, 32)

def test_levels_and_ribbon(odd):
    assert len(odd.levels) == 44 and odd.levels.time_s.iloc[-1] == pytest.approx(4.3) and (odd.levels[list(TRACKS)] >= 0).all().all()
    classes, levels = ribbon(odd).axes[:2]
    assert classes.get_yticklabels()[0].get_text() == NAMES[1][:19] + "…" and levels.get_xlabel() == "time (s)" and levels.get_ylabel() == "level (dB)" and classes.get_xlim() == levels.get_xlim() == (0, odd.seconds)

def test_a_ribbon_of_hours_is_drawn_in_columns(odd):
    import pandas as pd
    from dataclasses import replace
    n = 4000
    windows = pd.concat([odd.windows.iloc[[0]]] * n, ignore_index=True).assign(start_s=np.arange(n) * 2.5, end_s=np.arange(n) * 2.5 + 5)
    levels = pd.DataFrame(dict(time_s=np.arange(100050) / 10, original=1.0, kept=0.5, removed=0.2))
    figure = ribbon(replace(odd, windows=windows, levels=levels))
    assert len(figure.axes[1].patches) < 1300 and figure.axes[1].get_xlabel() == "time (h:min:s)"
    figure.canvas.draw(); assert any(t.get_text().count(":") == 2 for t in figure.axes[1].get_xticklabels())

def test_windows_are_picked_apart_and_of_many_classes():
    spans, p = torch.tensor([[i * 8, i * 8 + 16] for i in range(10)]), torch.tensor([0.9, 0.95, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 0.3, 0.0])
    assert pick_windows(spans, p, torch.tensor([0] * 5 + [1] * 5)) == [1, 5, 7] and pick_windows(spans, torch.zeros(10), torch.zeros(10)) == []
    assert windows_at(spans, [0.0, 1.0, 5.0], 16) == [0, 1, 9] and windows_at(spans, [0.9, 1.1], 16) == [1]

def test_times_are_written_as_people_do():
    assert [clock(s) for s in (0, 59.96, 60, 3599.6, 3600)] == ["0 s", "1:00", "1:00", "1:00:00", "1:00:00"]
