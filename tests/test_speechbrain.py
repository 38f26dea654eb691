"SpeechBrain's own modules, randomly initialised, as oracles for front end, classifier and decoder."
import pytest, torch
from lmac_piq.classifier import CNN14, load_weights, speechbrain_cnn14
from lmac_piq.spectral import Spectrogram, mel_filters
from lmac_piq.training import seeded

pytest.importorskip("speechbrain", reason="speechbrain is not installed")
from speechbrain.lobes.models.Cnn14 import Cnn14


@pytest.fixture(scope="module")
def pair():
    "A SpeechBrain CNN14 with every buffer off its default, and ours carrying its weights."
    with seeded(0):
        theirs = Cnn14(mel_bins=80, emb_dim=2048, return_reps=True).eval()
        for b in theirs.buffers():
            if b.is_floating_point(): b.copy_(b + 0.2 * torch.rand_like(b))
        head = torch.nn.Linear(2048, 50)
    ours = CNN14().eval()
    load_weights(ours, speechbrain_cnn14(theirs.state_dict(), head.state_dict()), "SpeechBrain")
    return theirs, head, ours


def test_logits_and_feature_maps_equal_speechbrains(pair):
    theirs, head, ours = pair
    mel = torch.rand(2, 80, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embedding, reps = theirs(mel.transpose(1, 2))
        out = ours(mel)
        assert torch.allclose(out.logits, head(embedding[:, 0]), atol=1e-4, rtol=1e-4)
        for mine, rep in zip(out.features[::-1], reps):     # theirs: deep to shallow, time before frequency
            assert torch.allclose(mine.transpose(2, 3), rep, atol=1e-4, rtol=1e-4)


def test_mel_filters_equal_speechbrains():
    from speechbrain.processing.features import Filterbank
    bank = Filterbank(n_mels=80, n_fft=1024, sample_rate=16000, f_min=0, f_max=8000, log_mel=False)
    magnitude = torch.rand(1, 7, 513, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bank(magnitude), magnitude @ mel_filters(), atol=1e-4, rtol=1e-4)


def test_spectrogram_equals_speechbrains():
    from speechbrain.processing.features import STFT, spectral_magnitude
    wave = torch.randn(2, 80000, generator=torch.Generator().manual_seed(0))
    stft = STFT(sample_rate=16000, n_fft=1024, hop_length=11.6099, win_length=23.2199)
    theirs = spectral_magnitude(stft(wave), power=0.5).log1p().transpose(1, 2)
    ours, _ = Spectrogram()(wave)
    assert ours.shape == theirs.shape == (2, 513, 431)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_decoder_draws_what_speechbrains_draws(pair):
    from speechbrain.lobes.models.Cnn14 import CNN14PSI_stft
    from lmac_piq.decoder import PublishedDecoder, speechbrain_decoder
    with seeded(1): theirs = CNN14PSI_stft(dim=64).eval()
    ours = PublishedDecoder([8, 16, 32, 64], dim=64).eval()
    load_weights(ours, speechbrain_decoder(theirs.state_dict()), "SpeechBrain")
    g = torch.Generator().manual_seed(2)
    features = [torch.rand(1, c, *s, generator=g) for c, s in zip((8, 16, 32, 64), ((10, 53), (5, 26), (2, 13), (2, 13)))]
    with torch.inference_mode():
        reference = theirs([f.transpose(2, 3) for f in features[::-1]])     # B x 1 x time x frequency
        drawn = ours.draw(features)
    assert drawn.shape == (1, 513, 425)
    assert torch.allclose(drawn, reference.squeeze(1).transpose(1, 2), atol=1e-5)
