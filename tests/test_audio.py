"Reading, writing and mixing of waves: properties over many inputs, and files damaged on purpose."
import os, struct

import numpy as np, pytest, soundfile as sf, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.audio import (AudioError, fit_length, load_wave, mix_at_snr, mix_unit_norm, normalise_max, resample,
                            rms, save_wave, shared_gain, snr_db)

property_test = settings(max_examples=50, deadline=None, derandomize=True)
RATE, FORMATS = 44100, ("wav", "flac", "ogg", "mp3")


def hiss(*shape, seed=0, scale=0.1):
    return scale*torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sine(hz, seconds, rate):
    return torch.sin(2*np.pi*hz*torch.arange(int(seconds*rate), dtype=torch.float64)/rate).float()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    "One second of stereo noise in every format; path and bytes by suffix."
    folder, x = tmp_path_factory.mktemp("sounds"), hiss(RATE, 2).numpy()
    for suffix in FORMATS: sf.write(folder/f"a.{suffix}", x, RATE)
    sf.write(folder/"a.aiff", x, RATE)
    return {s: folder/f"a.{s}" for s in (*FORMATS, "aiff")}


def test_a_long_mp3_is_not_garbled_between_blocks(tmp_path):
    tone = sine(400, 14, RATE)[:, None].expand(-1, 2).numpy()*0.3
    with sf.SoundFile(tmp_path/"a.mp3", "w", RATE, 2) as file:
        for i in range(0, len(tone), 4096): file.write(tone[i:i+4096])
    at_once = torch.from_numpy(sf.read(tmp_path/"a.mp3", dtype="float32", always_2d=True)[0].mean(1))
    assert len(at_once) > 2**19 and torch.equal(load_wave(tmp_path/"a.mp3", RATE), at_once)


# --- mixing ------------------------------------------------------------------------------------------------------

@property_test
@given(seed=st.integers(0, 10**6), db=st.lists(st.floats(-40, 60), min_size=1, max_size=5), level=st.floats(-60, 20),
       noise_level=st.floats(-60, 20), length=st.integers(2, 4000))
def test_snr_is_achieved_per_item(seed, db, level, noise_level, length):
    wave, noise = (10**(l/20)*hiss(len(db), length, seed=s, scale=1).double() for l, s in ((level, seed), (noise_level, seed+1)))
    mixture = mix_at_snr(wave, noise, torch.tensor(db))
    assert mixture.shape == wave.shape
    assert (snr_db(wave, mixture - wave) - torch.tensor(db)).abs().max() < 1e-3


@property_test
@given(seed=st.integers(0, 10**6), db=st.floats(-20, 40))
def test_snr_in_float32_and_for_one_wave(seed, db):
    wave, noise = hiss(2000, seed=seed), hiss(2000, seed=seed+1)
    mixture = mix_at_snr(wave, noise, db)
    assert mixture.dtype == torch.float32
    assert abs(snr_db(wave, mixture - wave) - db) < 1e-3


def test_batch_of_one_equals_its_row():
    wave, noise, db = hiss(3, 500), hiss(3, 500, seed=1), torch.tensor([0., 5., 10.])
    batch = mix_at_snr(wave, noise, db)
    for i in range(3): assert torch.equal(mix_at_snr(wave[i:i+1], noise[i:i+1], db[i:i+1])[0], batch[i])


@pytest.mark.parametrize("mix", [lambda w, n: mix_at_snr(w, n, 0.0), mix_unit_norm])
@pytest.mark.parametrize("wave, noise, word", [(torch.zeros(9), torch.ones(9), "wave"), (torch.ones(9), torch.zeros(9), "noise"),
                                               (torch.full((9,), torch.nan), torch.ones(9), "wave"), (torch.ones(9), torch.ones(8), "fit_length")])
def test_silence_and_unequal_lengths_are_refused(mix, wave, noise, word):
    with pytest.raises(ValueError, match=word): mix(wave, noise)


@pytest.mark.parametrize("db", [-float("inf"), float("nan")])
def test_impossible_snr_is_refused(db):
    with pytest.raises(ValueError, match="snr_db"): mix_at_snr(torch.ones(9), torch.ones(9), db)


@pytest.mark.parametrize("gains, db", [((0.8, 0.2), 12.0412), ((1, 0.5), 6.0206), ((1, 1), 0)])
def test_published_mixture_in_decibels(gains, db):
    w, n = hiss(2, 4000), hiss(2, 4000, seed=1)
    y = mix_unit_norm(w, n, gains)
    assert torch.allclose(y.amax(-1), torch.ones(2))
    a, b = gains[0]*w/w.norm(dim=-1, keepdim=True), gains[1]*n/n.norm(dim=-1, keepdim=True)
    assert torch.allclose(y, (a+b)/(a+b).amax(-1, keepdim=True), atol=1e-6)
    assert (snr_db(a, b) - db).abs().max() < 1e-3


def test_normalise_max_is_signed_and_safe():
    assert normalise_max(torch.tensor([-4., 2.])).tolist() == [-2, 1]
    for unchanged in (torch.zeros(3), -torch.ones(3)): assert torch.equal(normalise_max(unchanged), unchanged)


def test_levels_of_silence_are_defined():
    one, none = torch.ones(4), torch.zeros(4)
    assert rms(none) == 0 and rms(one) == 1
    assert snr_db(one, none) == torch.inf and snr_db(none, one) == -torch.inf and snr_db(none, none).isnan()


@property_test
@given(levels=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=4))
def test_shared_gain_keeps_ratios_and_reaches_the_peak(levels):
    waves = [torch.tensor([-v, v/2]) for v in levels]
    gain = shared_gain(*waves, peak=0.5)
    assert max((gain*w).abs().max() for w in waves) == pytest.approx(0.5, rel=1e-5)


def test_shared_gain_edges():
    assert shared_gain(torch.zeros(3)) == 1.0 and shared_gain(torch.zeros(0), torch.ones(2)) == 0.9
    for bad in ((), (torch.tensor([torch.nan]),), (torch.tensor([torch.inf]),)):
        with pytest.raises(ValueError): shared_gain(*bad)


# --- length and rate ---------------------------------------------------------------------------------------------

@property_test
@given(shape=st.sampled_from([(), (1,), (3,), (2, 2)]), n=st.integers(0, 50), length=st.integers(0, 80))
def test_fit_length_crops_or_pads_the_end(shape, n, length):
    wave = torch.rand(*shape, n, generator=torch.Generator().manual_seed(n))
    out = fit_length(wave, length)
    assert out.shape == (*shape, length)
    assert torch.equal(out[..., :n], wave[..., :length]) and (out[..., n:] == 0).all()


def test_negative_length_is_refused():
    with pytest.raises(ValueError, match="-1"): fit_length(torch.ones(3), -1)


@pytest.mark.parametrize("orig, new", [(44100, 16000), (48000, 16000), (8000, 16000), (22050, 16000), (16000, 44100)])
@pytest.mark.parametrize("hz", [110, 1000, 2500])
def test_resampled_sine_is_the_sampled_sine(orig, new, hz):
    got, want = resample(sine(hz, 1, orig), orig, new), sine(hz, 1, new)
    assert got.shape == want.shape
    assert (got - want)[new//50:-new//50].abs().max() < 1e-2   # the default filter ripples by 0.8 % at 0.6 of the Nyquist frequency


def test_resample_removes_what_would_alias():
    assert resample(sine(13000, 1, RATE), RATE, 16000)[300:-300].abs().max() < 1e-2


def test_resample_equals_torchaudio_and_refuses_bad_rates():
    from torchaudio.transforms import Resample
    x = hiss(2, 3000)
    assert torch.equal(resample(x, RATE, 16000), Resample(RATE, 16000)(x))
    with pytest.raises(ValueError, match="0"): resample(x, 0, 16000)


# --- files -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read_as_mono_16k(sounds, suffix):
    wave = load_wave(sounds[suffix])
    assert wave.shape == (16000,) and wave.dtype == torch.float32
    want = resample(hiss(RATE, 2).mean(1), RATE, 16000)
    assert snr_db(want, wave - want) > (60 if suffix in ("wav", "flac") else 3)   # the others are lossy


@pytest.mark.parametrize("suffix, part", [(s, p) for s in (*FORMATS, "aiff") for p in (0.999, 0.9, 0.5, 0.1)
                                          if (s, p) != ("mp3", 0.999)])   # there, less than one MP3 frame is missing
def test_truncated_files_are_refused(sounds, tmp_path, suffix, part):
    data = sounds[suffix].read_bytes()
    path = tmp_path/f"cut.{suffix}"
    path.write_bytes(data[:int(part*len(data))])
    with pytest.raises(AudioError, match="truncated|undecodable") as e: load_wave(path)
    assert e.value.path == path and str(path) in str(e.value)


@property_test
@given(cut=st.integers(1, 2000), suffix=st.sampled_from(["wav", "ogg", "flac"]))
def test_any_cut_is_noticed(sounds, tmp_path_factory, cut, suffix):
    data = sounds[suffix].read_bytes()
    path = tmp_path_factory.getbasetemp()/f"any.{suffix}"
    path.write_bytes(data[:-cut])
    with pytest.raises(AudioError): load_wave(path)


@pytest.mark.parametrize("suffix", (*FORMATS, "aiff"))
def test_a_cut_header_is_refused(sounds, tmp_path, suffix):
    path = tmp_path/f"head.{suffix}"
    for n in (1, 4, 11, 30):
        path.write_bytes(sounds[suffix].read_bytes()[:n])
        with pytest.raises(AudioError): load_wave(path)


def test_an_open_ended_wav_is_read(sounds, tmp_path):
    "Writers into a pipe leave placeholders instead of lengths: no promise is broken."
    wav = bytearray(sounds["wav"].read_bytes())
    at = wav.index(b"data") + 4
    wav[4:8] = wav[at:at+4] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path/"pipe.wav").write_bytes(wav)
    assert load_wave(tmp_path/"pipe.wav").shape == (16000,)


def test_a_flac_without_length_is_refused(sounds, tmp_path):
    flac = bytearray(sounds["flac"].read_bytes())   # STREAMINFO: the total number of samples is its bits 108 to 143
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (tmp_path/"pipe.flac").write_bytes(flac)
    with pytest.raises(AudioError, match="no length"): load_wave(tmp_path/"pipe.flac")


def test_chunks_around_the_samples_are_no_reason_to_refuse(sounds, tmp_path):
    wav = sounds["wav"].read_bytes()
    at = wav.index(b"data")
    path = tmp_path/"tagged.wav"
    path.write_bytes(wav[:at] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + wav[at:] + b"trailing")
    assert load_wave(path).shape == (16000,)


@pytest.mark.parametrize("make, reason", [
    (lambda p: None, "missing"), (lambda p: p.mkdir(), "directory"), (lambda p: p.touch(), "empty"),
    (lambda p: p.write_text("not a sound"), "undecodable"), (lambda p: p.write_bytes(os.urandom(4000)), "undecodable"),
    (lambda p: sf.write(p, np.zeros((0, 2)), RATE), "empty"), (lambda p: sf.write(p, np.ones(99), RATE), "too short"),
    (lambda p: sf.write(p, np.r_[np.ones(9999), np.nan], RATE, subtype="FLOAT"), "non-finite: 1 of 10000"),
    (lambda p: sf.write(p, np.full((9999, 2), np.inf), RATE, subtype="FLOAT"), "non-finite: 9999"),
])
def test_the_reason_is_named(tmp_path, make, reason):
    path = tmp_path/"x.wav"
    make(path)
    with pytest.raises(AudioError, match=reason) as e: load_wave(path, min_seconds=0.1)
    assert str(path) in str(e.value)


def test_raw_files_are_refused(tmp_path):
    (tmp_path/"x.raw").write_bytes(bytes(100))
    with pytest.raises(AudioError, match="undecodable"): load_wave(tmp_path/"x.raw")


def test_silence_is_a_sound(tmp_path):
    assert load_wave(save_wave(tmp_path/"s.wav", torch.zeros(100))).abs().max() == 0


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "new/folder/c.WAV"])
def test_save_and_load(tmp_path, name):
    wave = hiss(1, 3001).clamp(-1, 1)
    assert (load_wave(save_wave(tmp_path/name, wave)) - wave[0]).abs().max() < 2**-15
    assert [p.name for p in (tmp_path/name).parent.iterdir()] == [(tmp_path/name).name]


@pytest.mark.parametrize("name, wave, word", [("a.wav", torch.tensor([1.5, 0]), "clip"), ("a.wav", torch.tensor([torch.nan]), "NaN"), ("a.wav", torch.zeros(0), "shape"),
                                              ("a.wav", torch.zeros(2, 9), "shape"), ("a.mp3", torch.zeros(9), "suffix|mp3"), ("a", torch.zeros(9), "suffix")])
def test_refused_writes_leave_the_old_file(tmp_path, name, wave, word):
    (tmp_path/name).write_text("old")
    with pytest.raises(AudioError, match=word): save_wave(tmp_path/name, wave)
    assert (tmp_path/name).read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, *a, **k): open(path, "w").write("half"); raise OSError("disk full")
    monkeypatch.setattr(sf, "write", fail)
    with pytest.raises(OSError, match="disk full"): save_wave(tmp_path/"a.wav", torch.zeros(9))
    assert not list(tmp_path.iterdir())
