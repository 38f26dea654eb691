"SpeechBrain's own modules, randomly initialised, as oracles for front end, classifiers, decoder, interpreter and psi."
import pytest, torch
import torch.nn.functional as F
from lmac_piq.classifier import CNN14, Conv2dEncoder, Output, load_weights, speechbrain_cnn14, speechbrain_conv2d
from lmac_piq.codebook import Codebook
from lmac_piq.l2i import ConvPsi, speechbrain_psi_optimized
from lmac_piq.piq import PIQ, PublishedInterpreter, speechbrain_piq
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


# PIQ's encoder, interpreter and psi: SpeechBrain's run over time x frequency, ours over frequency x time

def unsettled(module: torch.nn.Module) -> torch.nn.Module:
    "The module with its BatchNorms, running statistics included, and its biases off their defaults, in eval mode."
    for m in module.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            for t, low, high in ((m.weight, 0.5, 1.5), (m.bias, -0.5, 0.5), (m.running_mean, -0.5, 0.5), (m.running_var, 0.5, 2.0)): t.data.uniform_(low, high)
        elif getattr(m, "bias", None) is not None: m.bias.data.uniform_(-0.1, 0.1)
    return module.eval()


@pytest.mark.parametrize("width, classes", [(1.0, 50), (0.03125, 7)])
def test_conv2d_gives_speechbrains_features_and_logits(width, classes):
    from speechbrain.lobes.models.ECAPA_TDNN import Classifier
    from speechbrain.lobes.models.PIQ import Conv2dEncoder_v2
    dim = round(256 * width)
    with seeded(3): encoder, head = unsettled(Conv2dEncoder_v2(dim)), unsettled(Classifier(dim, lin_blocks=1, lin_neurons=192, out_neurons=classes))
    ours = Conv2dEncoder(classes, width, scale=1.0).eval()
    load_weights(ours, {k: v for k, v in ours.state_dict().items() if "num_batches" in k} | speechbrain_conv2d(encoder.state_dict(), head.state_dict()), "SpeechBrain")
    x = 3 * torch.rand(2, 513, 431 if width == 1 else 99, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        h = encoder(x.transpose(1, 2))
        logits = head(h.mean((-1, -2))[:, None])[:, 0]          # as the recipe calls it
        out = ours(x)
    assert torch.allclose(out.features[-1].transpose(2, 3), h, atol=1e-4, rtol=1e-4) and h.abs().amax() > 0.5
    assert torch.allclose(out.logits, logits, atol=1e-4) and logits.std() > 1e-2 and out.logits.abs().max() <= 1


def their_indices(psi, z, label):
    "The rows that SpeechBrain's codebook picks for z [B, D, T', F']: [B, T', F']."
    from speechbrain.lobes.models.PIQ import VectorQuantization
    book = psi.codebook
    return VectorQuantization.apply(z.permute(0, 2, 3, 1).contiguous(), book.embedding.weight, label, book.numclasses, book.activate_class_partitioning, book.shared_keys, psi.training)


@pytest.mark.parametrize("dim, K, classes, shared, partition, adapter, reduce, grid", [
    (256, 1024, 50, 0, True, True, True, (26, 32)), (8, 40, 5, 4, True, True, True, (10, 32)), (8, 40, 5, 0, False, True, True, (9, 12)),
    (8, 12, 5, 0, True, True, False, (7, 4)), (8, 12, 5, 2, True, False, False, (7, 4))])
def test_piq_draws_what_speechbrains_draws(dim, K, classes, shared, partition, adapter, reduce, grid):
    "All of the drawing and every code; the published size first"
    from speechbrain.lobes.models.PIQ import VectorQuantizedPSI_Audio
    with seeded(5): theirs = unsettled(VectorQuantizedPSI_Audio(dim, K, classes, partition, shared, adapter, reduce))
    with torch.no_grad(): theirs.codebook.embedding.weight.normal_(generator=torch.Generator().manual_seed(6))
    ours = PIQ(PublishedInterpreter(dim, adapter, reduce), Codebook(K, dim, classes, shared, partition, protocol="published")).eval()
    counters = {k: v for k, v in ours.state_dict().items() if k.startswith("codebook.") and k != "codebook.rows"}
    load_weights(ours, counters | speechbrain_piq(theirs.state_dict()), "SpeechBrain")
    g = torch.Generator().manual_seed(7)
    label = torch.tensor([2, 0, classes - 1][:1 if dim == 256 else 3])
    h = torch.randn(len(label), dim, *grid, generator=g)
    with torch.inference_mode():
        drawn, z, _ = theirs(h, label)                                                  # [B, 1, T', F'], [B, D, T', F']
        indices = their_indices(theirs, z, label)
        stretched, codes = ours.draw(Output(None, [h.mT]), torch.empty(1, drawn.shape[3], drawn.shape[2] + 14), label)
    if dim == 256: assert drawn.shape == (1, 1, 417, 513) and z.shape == (1, 256, 13, 16)
    assert torch.equal(codes.indices.mT, indices) and len(indices.unique()) > 3 and not torch.equal(codes.indices.flatten(1), indices.flatten(1))
    assert torch.allclose(ours.body.encode([h.mT]).mT, z, atol=1e-4)
    assert torch.allclose(stretched[:, 0, :, :-14].mT, drawn[:, 0], atol=1e-4, rtol=1e-4) and drawn.std() > 1e-2
    assert torch.equal(stretched[..., -14:], stretched[..., -15:-14].expand(-1, -1, -1, 14))      # the frames that are never drawn


def test_piq_training_terms_are_speechbrains():
    "Batch statistics, no shared rows, mean squared errors: terms and gradients of the published training step"
    from speechbrain.lobes.models.PIQ import VectorQuantizedPSI_Audio
    with seeded(8): theirs = unsettled(VectorQuantizedPSI_Audio(8, 40, 5, shared_keys=4)).train()
    ours = PIQ(PublishedInterpreter(8), Codebook(40, 8, 5, 4, protocol="published")).train()
    ours.load_state_dict(speechbrain_piq(theirs.state_dict()), strict=False)
    h, label = torch.randn(3, 8, 8, 12, generator=torch.Generator().manual_seed(9)), torch.tensor([0, 4, 2])
    drawn, z, q = theirs(h, label)
    target = (torch.rand(3, *drawn.shape[2:], generator=torch.Generator().manual_seed(10)) > 0.7).float()
    published = dict(reconstruction=-(target * torch.log(drawn[:, 0].sigmoid() + 1e-10) + (1 - target) * torch.log(1 - drawn[:, 0].sigmoid() + 1e-10)).mean(),
                     codebook=F.mse_loss(q, z.detach()), commitment=F.mse_loss(z, q.detach()))
    logits, codes = ours.draw(Output(None, [h.mT]), torch.empty(3, *drawn.shape[:1:-1]), label)
    terms = dict(reconstruction=ours.rec_loss(logits, target.mT)) | codes.losses
    assert set(terms) == set(published) and all(torch.isclose(terms[k], published[k], rtol=1e-4) for k in terms)
    assert (codes.indices < 36).all()                                                   # shared rows are left out in training, as published
    sum(terms.values()).backward(); sum(published.values()).backward()
    grads = speechbrain_piq({k: p.grad for k, p in theirs.named_parameters()})
    for name, p in ours.named_parameters(): assert torch.allclose(p.grad, grads[name], atol=1e-3, rtol=1e-2), name


@pytest.mark.parametrize("dim, adapter, reduce, K", [(32, False, False, 100), (8, True, True, 12), (8, True, False, 12)])
def test_conv_psi_gives_speechbrains_activations(dim, adapter, reduce, K):
    from speechbrain.lobes.models.L2I import PsiOptimized
    with seeded(11): theirs = unsettled(PsiOptimized(dim, K, use_adapter=adapter, adapter_reduce_dim=reduce))
    ours = ConvPsi(dim, K, adapter=adapter, halve=reduce).eval()
    load_weights(ours, speechbrain_psi_optimized(theirs.state_dict()), "SpeechBrain")
    h = torch.randn(1, dim, 26, 32, generator=torch.Generator().manual_seed(12))
    with torch.inference_mode(): reference, _ = theirs(h); mine = ours.draw([h.mT])
    assert reference.shape == (1, 1, 417, K) and torch.allclose(mine.mT, reference[:, 0], atol=1e-4, rtol=1e-4) and reference.std() > 1e-2
