"""What a listener gets: the same sounds at one gain, honest numbers and pictures, and files that hold what was heard."""
import io, json, math
import numpy as np, pytest, soundfile as sf, torch
from PIL import Image

from lmac_piq.classifier import AudioClassifier, Explainable, Output, Representation
from lmac_piq.explanation import Attribution, explain
from lmac_piq.listen import audio_player, comparisons, energy_ratio, percent, png_bytes, relative_db, remarks, spectrogram_picture, summary, wav_bytes, what_is_left
from lmac_piq.player import player_html

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
def heard(item):
    "The samples of the three sounds as they are played"
    c = comparisons(item)[0]
    return {part: sf.read(io.BytesIO(wav_bytes(wave, c.sample_rate, c.gain)))[0] for part, wave in c.signals.items()}

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

def test_three_sounds_share_one_gain(item, heard):
    waves = dict(original=item.x[0], kept=item.kept()[0], removed=item.removed()[0])
    c = comparisons(item)[0]
    assert max(np.abs(w).max() for w in heard.values()) == pytest.approx(0.9, abs=LSB)
    for part, wave in waves.items(): assert np.abs(heard[part] - c.gain * wave.numpy()).max() <= LSB

def test_energies_are_those_of_the_rendered_waves(item, heard):
    c, record = comparisons(item)[0], summary(comparisons(item)[0])
    for part in ("kept", "removed"):
        share = (heard[part]**2).sum() / (heard["original"]**2).sum()
        assert c.energy(part) == pytest.approx(share, rel=1e-3) and record["energy"][part] == pytest.approx(share, rel=1e-3)
        assert record["level_db"][part] == pytest.approx(10 * math.log10(share), abs=0.01)
        assert what_is_left(c, part).startswith(percent(c.energy(part)))
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
    with pytest.raises(ValueError, match=r"2 items.*e\[0\]"): player_html(batch)

# ---- words

def test_a_label_is_escaped():
    assert 'aria-label="&quot;a&quot; &lt;b&gt;"' in audio_player(sound(), label='"a" <b>')

@pytest.mark.parametrize("value, scale, remark, kept", [(0.0, 1, "nothing kept: silence", "silence"), (1.0, 1, "everything kept", "100 %"),
                                                        (0.5, 1, "constant mask of 0.50", "dB"), (0.5, 0, "silent clip", "silence")])
def test_dead_cases_are_named(model, value, scale, remark, kept):
    e = explain(model, Drawn(torch.full((1, 513, 44), value)), scale * sound())
    c = comparisons(e)[0]
    assert any(remark in found for found in remarks(c)) and kept in what_is_left(c, "kept")
    json.dumps(summary(c), allow_nan=False)

def test_an_ordinary_case_has_no_remark(model): assert remarks(comparisons(explain(model, Drawn(soft(44)), sound()))[0]) == []

def test_another_class_than_the_winner_is_announced(model):
    e = explain(model, Drawn(soft(44)), sound())
    loser = int(e.p[0].argmin())
    assert "the classifier's answer is" in remarks(comparisons(explain(model, Drawn(soft(44)), sound(), target=loser))[0])[0]

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
    assert what_is_left(comparisons(e)[0], "kept") == f"{percent((image[0, 0] > 0.5).float().mean().item())} of the area"
    e.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["explanation.json", "kept.png", "mask.safetensors", "original.png", "removed.png"]
    assert np.abs(np.asarray(Image.open(tmp_path/"original.png")) / 255 - image[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6

# ---- files

def test_saved_files_are_what_was_played(item, heard, tmp_path):
    item.save(tmp_path/"deep"/"folder")
    record = json.loads((tmp_path/"deep"/"folder"/"explanation.json").read_text(encoding="utf8"))
    c = comparisons(item)[0]
    assert record["gain"] == pytest.approx(c.gain) and record["target"] == "dog" and record["seconds"] == 0.5 and record["sample_rate"] == RATE
    assert set(record["probabilities"]["kept"]) == set(NAMES)
    for part, read in heard.items():
        saved, rate = sf.read(tmp_path/"deep"/"folder"/f"{part}.wav")
        assert rate == RATE and np.array_equal(saved, read)
    assert sorted(p.suffix for p in (tmp_path/"deep"/"folder").iterdir()) == [".json", ".png", ".png", ".safetensors", ".wav", ".wav", ".wav"]
