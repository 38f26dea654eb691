"Conv2dEncoder, the classifier PIQ was published on, and what explains it: published psi, light psi, L2I from end to end."
import pytest, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.classifier import AudioClassifier, Conv2dEncoder, accuracy, classification_loss, dropout, recalibrate, rename_weights, speechbrain_conv2d
from lmac_piq.data import Batch
from lmac_piq.explanation import explain
from lmac_piq.l2i import L2I, ConvPsi, L2IWeights, LightPsi, make_psi, speechbrain_psi_optimized
from lmac_piq.training import FitConfig, fit, seeded

few = settings(max_examples=15, deadline=None)


def tones(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    "Waves [n, 8000] of a low or a high tone in noise, and which."
    g, t = torch.Generator().manual_seed(seed), torch.arange(8000) / 16000
    label = torch.arange(n) % 2
    pitch = torch.where(label == 1, 3000.0, 500.0) * (1 + 0.2 * torch.rand(n, generator=g))
    return torch.sin(2 * torch.pi * pitch[:, None] * t) + 0.05 * torch.randn(n, 8000, generator=g), label


@pytest.fixture(scope="module")
def model() -> AudioClassifier:
    with seeded(0): return AudioClassifier(["low", "high"], 0.03125, network="conv2d", pool=4, dropout=0.0).eval()


# Dropout from bytes

@few
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)), p=st.floats(0.0, 0.9), layout=st.sampled_from(["plain", "channels_last", "transposed", "every second"]))
def test_dropout_drops_its_share_in_any_layout(shape, p, layout):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1
    x = dict(plain=x, channels_last=x.contiguous(memory_format=torch.channels_last), transposed=x.transpose(2, 3)).get(layout, x[..., ::2])
    with seeded(1): y = dropout(x, p)
    share, rounded = (y == 0).float().mean(), round(256 * p) / 256
    assert torch.allclose(y[y != 0], (x / (1 - rounded))[y != 0]) and abs(share - rounded) <= 5 * (rounded * (1 - rounded) / x.numel()) ** 0.5
    assert dropout(x, p, training=False) is x and torch.equal(dropout(x.bfloat16(), 0.0), x.bfloat16()) and not dropout(x, 1.0).any()


# The encoder

@few
@given(f=st.integers(16, 130), t=st.integers(16, 90), scale=st.sampled_from([1.0, 16.0]))
def test_maps_halve_and_logits_stay_within_the_scale(f, t, scale):
    with seeded(0): net = Conv2dEncoder(5, 0.015625, scale=scale).eval()
    with torch.no_grad(): out = net(10 * torch.rand(2, f, t, generator=torch.Generator().manual_seed(f * t)))
    assert [tuple(h.shape[2:]) for h in out.features[:4]] == [(f >> k, t >> k) for k in (1, 2, 3, 4)]
    assert out.features[4].shape == out.features[3].shape and [h.shape[1] for h in out.features] == net.channels
    assert out.logits.abs().max() <= scale * (1 + 1e-5)


def test_the_head_compares_directions():
    with seeded(0): net = Conv2dEncoder(5, 0.03125, scale=3.0).eval()
    x = torch.rand(2, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(x).logits
        e = net.embed(net.norm(net(x).features[-1].mean((2, 3))))
        assert torch.allclose(before, 3 * torch.nn.functional.normalize(e) @ torch.nn.functional.normalize(net.head).T, atol=1e-5)
        net.head.mul_(torch.tensor([0.1, 1, 10, 100, 7])[:, None])
        assert torch.allclose(net(x).logits, before, atol=1e-5)


def test_pooling_reads_means_of_bins_and_frames(model):
    values = torch.rand(2, 513, 33, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.reads(values)[:, 3, 5], values[:, 12:16, 20:24].mean((1, 2)), atol=1e-6) and model.reads(values).shape == (2, 128, 8)


def test_it_learns_and_a_short_clip_is_padded():
    x, label = tones(32)
    with seeded(0): model = AudioClassifier(["low", "high"], 0.03125, network="conv2d", pool=4, dropout=0.0)
    fit(model, lambda b: classification_loss(model, b), lambda g: iter([Batch(x, label=label)]), FitConfig(epochs=12, lr=1e-2, bf16=False), 1, progress=False)
    recalibrate(model, [Batch(x)]); unseen, label = tones(8, 1)
    assert accuracy(model, [Batch(unseen, label=label)])["accuracy"] == 1.0
    assert model(torch.randn(1, 50)).isfinite().all() and model(torch.zeros(1, 8000)).isfinite().all()


def test_saved_and_loaded(model, tmp_path):
    again = AudioClassifier.from_pretrained(model.save_pretrained(tmp_path)); x = tones(2)[0]
    assert again.pool == 4 and again.network.scale == model.network.scale and torch.allclose(again(x), model(x), atol=1e-5)
    with pytest.raises(ValueError, match="unknown network 'resnet'"): AudioClassifier(["a"], network="resnet")


# The key maps

def test_key_maps_name_what_they_do_not_know():
    with pytest.raises(KeyError, match="Conv2dEncoder_v2"): speechbrain_conv2d({"conv_block1.conv1.weight": torch.zeros(1)}, {})
    with pytest.raises(KeyError, match="lin_blocks=1"): speechbrain_conv2d({}, {"blocks.3.w.weight": torch.zeros(1)})
    with pytest.raises(KeyError, match="PsiOptimized"): speechbrain_psi_optimized({"convt1.weight": torch.zeros(1)})
    kernel = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(rename_weights({"a.w": kernel}, {"a.": "b.0."}, "x")["b.0.w"], kernel.mT)


# Activations

def test_published_psi_draws_the_published_frames_and_repeats_the_last():
    with torch.device("meta"): features, psi = Conv2dEncoder().eval()(torch.zeros(1, 513, 431)).features, ConvPsi()
    assert psi.draw(features).shape == (1, 100, 417) and psi(features, 431).shape == (1, 100, 431)
    with seeded(0): psi = ConvPsi(4, 3, 65).eval()
    features = [torch.rand(2, 4, 4, 2, generator=torch.Generator().manual_seed(0))]
    h, drawn = psi(features, 40), psi.draw(features)
    assert drawn.shape == (2, 3, 33) and torch.equal(h[:, :, :33], drawn) and torch.equal(h[:, :, 33:], drawn[:, :, -1:].expand(-1, -1, 7)) and torch.equal(psi(features, 20), drawn[:, :, :20])
    with pytest.raises(ValueError, match="pool=1"): psi([features[0][:, :, :2]], 40)
    assert make_psi(psi.config).config == psi.config


def test_light_psi_needs_the_heights_of_the_maps(model):
    features = model.classify(model.represent(tones(2)[0]).values).features; heights = [h.shape[2] for h in features]
    with pytest.raises(ValueError, match="heights="): LightPsi(model.network.channels, 4, 3)(features, 44)
    psi = LightPsi(model.network.channels, 4, 3, heights=heights)
    assert psi(features, 44).shape == (2, 3, 44) and make_psi(psi.config).config == psi.config
    old = {k: v for k, v in LightPsi([4] * 6, 4, 3).config.items() if k != "heights"}          # as saved before there was a choice
    assert make_psi(old).config["heights"] == [40, 20, 10, 5, 2, 2]
    with pytest.raises(ValueError): LightPsi([4, 4], 4, 3, heights=[8])


@pytest.mark.parametrize("kind", ["light", "conv"])
def test_l2i_trains_and_attributes_on_the_encoder(kind, tmp_path):
    x, label = tones(8); K = 6
    with seeded(0): model = AudioClassifier(["low", "high"], 0.03125, network="conv2d", pool=4 if kind == "light" else 1).eval()
    rep = model.represent(x); frames = rep.values.shape[2]
    with seeded(1):
        psi = LightPsi(model.network.channels, 8, K, heights=[h.shape[2] for h in model.classify(rep.values).features]) if kind == "light" else ConvPsi(model.network.channels[-1], K)
        l2i = L2I(psi, torch.rand(513, K), 2, frames, L2IWeights(temperature=16.0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    log = fit(l2i, lambda b: l2i.loss(model, b), lambda g: iter([Batch(x)] * 3), FitConfig(epochs=3, lr=3e-3, bf16=False), 3, progress=False)
    assert log.reconstruction.iloc[-1] < log.reconstruction.iloc[0] and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    e = explain(model, l2i.eval(), x)
    assert e.mask.shape == rep.values.shape and 0 <= e.mask.min() and e.mask.max() <= 1 and e.kept().shape == x.shape
    assert e.attribution.extras["activations"].shape == (8, K, frames) and explain(model, l2i, x, target="high").target.eq(1).all()
    again = L2I.from_pretrained(l2i.save_pretrained(tmp_path, model), model)
    assert torch.allclose(explain(model, again, x).attribution.scores, e.attribution.scores, atol=1e-4)
