"Listen to Interpret against scikit-learn, SpeechBrain and literal re-implementations."
import copy, dataclasses, json, warnings
from types import SimpleNamespace

import numpy as np, pytest, torch
from sklearn.decomposition import NMF, MiniBatchNMF, non_negative_factorization
from torch import Tensor

from lmac_piq.classifier import AudioClassifier, load_weights
from lmac_piq.decoder import speechbrain_decoder
from lmac_piq.explanation import Explainer, explain
from lmac_piq.l2i import (L2I, L2IWeights, LightPsi, PublishedNMF, PublishedPsi, Theta, component_share, fit_dictionary, l2i_terms, make_psi, sample_frames)
from lmac_piq.training import FitConfig, fit, seeded

FRAMES, K = 87, 6                      # one second
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def waves(n: int, seed: int = 0) -> Tensor:
    g, t = torch.Generator().manual_seed(seed), torch.arange(16000) / 16000
    return torch.sin(2 * torch.pi * (300 + 3000 * torch.rand(n, 1, generator=g)) * t) + 0.1 * torch.randn(n, 16000, generator=g)

@pytest.fixture(scope="module")
def model() -> AudioClassifier:
    with seeded(0): return AudioClassifier(["yes", "no"], width=0.0625).eval()          # two classes

@pytest.fixture(scope="module")
def l2i(model: AudioClassifier) -> L2I:
    with seeded(1): return L2I(LightPsi(model.network.channels, 8, K), torch.rand(513, K), 2, FRAMES).eval()

def low_rank(n: int = 600, bins: int = 40, rank: int = 8, seed: int = 0) -> Tensor:
    "Values [1, bins, n] that are sparse sums of `rank` spectra, and a little more."
    rng = np.random.default_rng(seed)
    x = rng.gamma(0.4, 1, (n, rank)) @ rng.gamma(0.3, 1, (rank, bins)) + 0.01 * rng.random((n, bins))
    return torch.from_numpy(x.T[None].astype(np.float32))

# ---- the dictionary

def test_dictionary_is_scikit_learns():
    values = low_rank()
    W = fit_dictionary(values.split(100, 2), 8, seed=3, epochs=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = MiniBatchNMF(8, init="nndsvda", batch_size=1024, max_iter=40, max_no_improvement=None, tol=0, random_state=3).fit(values[0].T.numpy()).components_
    np.testing.assert_allclose(W.T, oracle / np.linalg.norm(oracle, axis=1, keepdims=True), rtol=1e-4, atol=1e-6)

def test_dictionary_reconstructs_nearly_as_well_as_full_nmf():
    "Stated tolerance: at most 2 % of the energy missed beyond what scikit-learn's full NMF misses."
    frames = low_rank()[0].T.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        W = fit_dictionary([low_rank()], 8, epochs=100).T.numpy()
        H, _, _ = non_negative_factorization(frames, H=W.copy(), update_H=False, n_components=8, max_iter=500)
        full = NMF(8, init="nndsvda", max_iter=500, random_state=0).fit(frames)
    energy = (frames ** 2).sum()
    missed, best = ((frames - H @ W) ** 2).sum() / energy, full.reconstruction_err_ ** 2 / energy
    assert missed <= best + 0.02, f"missed {missed:.4f} of the energy, full NMF {best:.4f}"

def test_sample_is_uniform_and_knows_nothing_of_batches():
    values = torch.arange(4000.0).view(1, 1, 4000)
    a = sample_frames(values.split(17, 2), 500, seed=1)
    assert torch.equal(a, sample_frames(values.split(1000, 2), 500, seed=1)) and len(a.unique()) == 500
    counts = torch.stack([torch.histc(sample_frames([values], 500, seed=s)[:, 0], 4, 0, 4000) for s in range(40)]).mean(0)
    assert (counts - 125).abs().max() < 6                       # mean of 40 hypergeometric draws: standard deviation 1.4

@pytest.mark.parametrize("values, message", [([], "no batch"), ([torch.zeros(513, 9)], "expected batches"), ([torch.rand(1, 40, 5)], "as many frames")])
def test_dictionary_refusals(values, message):
    with pytest.raises(ValueError, match=message): fit_dictionary(values, 8)

def test_published_nmf_is_speechbrains(model):
    L2Ilobe = pytest.importorskip("speechbrain.lobes.models.L2I", reason="speechbrain is not installed")
    with seeded(2): ours, encoder, decoder = PublishedNMF(components=K), L2Ilobe.NMFEncoder(513, K), L2Ilobe.NMFDecoderAudio(K, 513, device="cpu")
    ours.encoder.load_state_dict({k.removeprefix("convenc."): v for k, v in encoder.state_dict().items()})
    with torch.no_grad(): decoder.W -= 0.03; ours.W.copy_(decoder.W)                     # some entries below zero
    batch = SimpleNamespace(x=waves(2)); values = model.represent(batch.x).values
    with torch.no_grad():
        reference = ((decoder(encoder(values)) - values) ** 2).mean()
        assert torch.allclose(ours.loss(model, batch)["reconstruction"], reference, rtol=1e-4)
    assert torch.equal(ours.dictionary, decoder.return_W()) and 0.05 < ours.W.min() + 0.08

def test_published_nmf_learns(model):
    class Batch(SimpleNamespace):
        def to(self, device): return self
    with seeded(0): nmf = PublishedNMF(components=K)
    log = fit(nmf, lambda b: nmf.loss(model, b), lambda g: iter([Batch(x=waves(2))] * 3), FitConfig(epochs=2, lr=3e-3), 3, progress=False)
    assert log.reconstruction.iloc[-1] < 0.7 * log.reconstruction.iloc[0]

# ---- psi

def test_published_psi_is_speechbrains():
    L2Ilobe = pytest.importorskip("speechbrain.lobes.models.L2I", reason="speechbrain is not installed")
    with seeded(1): theirs = L2Ilobe.CNN14PSI_stft_2d(64, K).eval()
    ours = PublishedPsi([8, 16, 32, 64], 64, K).eval()
    load_weights(ours, speechbrain_decoder(theirs.state_dict()), "SpeechBrain")
    g = torch.Generator().manual_seed(2)
    features = [torch.rand(2, c, *s, generator=g) for c, s in zip((8, 16, 32, 64), ((10, 53), (5, 26), (2, 13), (2, 13)))]
    with torch.inference_mode(): reference, drawn = theirs([f.transpose(2, 3) for f in features[::-1]]), ours(features, 431)
    assert drawn.shape == reference.shape == (2, K, 431) and torch.allclose(drawn, reference, atol=1e-5)

def test_published_theta_is_speechbrains():
    L2Ilobe = pytest.importorskip("speechbrain.lobes.models.L2I", reason="speechbrain is not installed")
    with seeded(1): theirs, h = L2Ilobe.Theta(K, FRAMES, 3), torch.rand(2, K, FRAMES)
    ours = Theta(K, FRAMES, 3)
    load_weights(ours, {"attention.weight": theirs.hard_att.weight, "classify.weight": theirs.classifier[0].weight}, "SpeechBrain")
    assert torch.allclose(ours(h).softmax(1), theirs(h), atol=1e-6)

@pytest.mark.parametrize("psi", [LightPsi([4, 8, 16, 32, 64, 128], 8, K), PublishedPsi([16, 32, 64, 128], 64, K)])
def test_psi_gives_activations_for_any_length(model, psi):
    for n in (8000, 16000, 50000):
        rep = model.represent(waves(2)[:, :1].repeat(1, n)); h = psi(model.classify(rep.values).features, rep.values.shape[2])
        assert h.shape == (2, K, rep.values.shape[2]) and h.min() >= 0
    assert make_psi(psi.config).state_dict().keys() == psi.state_dict().keys()

# ---- the loss

@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_loss_is_the_published_formula(model, l2i, temperature):
    tuned = copy.deepcopy(l2i); tuned.weights = L2IWeights(3.0, 0.5, 2.0, temperature)
    x = waves(3)
    with torch.no_grad():
        terms = tuned.loss(model, SimpleNamespace(x=x))
        values = model.represent(x).values; out = model.classify(values)
        h = tuned.psi(out.features, FRAMES)
        p, q = torch.softmax(out.logits / temperature, 1), torch.softmax(tuned.theta(h), 1)
        fidelity = sum(-p[b, c] * q[b, c].log() for b in range(3) for c in range(2)) / 6
        expected = dict(reconstruction=3.0 * ((torch.einsum("fk,bkt->bft", tuned.dictionary, h) - values) ** 2).mean(), sparsity=0.5 * h.abs().mean(), fidelity=2.0 * fidelity)
    for name, value in expected.items(): assert torch.allclose(terms[name], value, rtol=1e-4), name
    tuned.weights = dataclasses.replace(tuned.weights, protocol="corrected")
    assert torch.allclose(tuned.loss(model, SimpleNamespace(x=x))["fidelity"], 2 * expected["fidelity"], rtol=1e-4)   # two classes

def test_gradients_reach_psi_and_theta_and_nothing_else(model, l2i):
    tuned = copy.deepcopy(l2i).train()
    sum(tuned.loss(model, SimpleNamespace(x=waves(2))).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tuned.parameters())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.training

def test_protocol_is_checked():
    with pytest.raises(ValueError, match="protocol"): L2IWeights(protocol="paper")
    with pytest.raises(dataclasses.FrozenInstanceError): L2IWeights().fidelity = 2

# ---- the mask

def test_share_is_the_literal_formula():
    g = torch.Generator().manual_seed(0)
    W, h, r = torch.rand(7, K, generator=g), torch.rand(2, K, 5, generator=g), torch.rand(2, K, generator=g) * 2 - 1
    for weight in (r, r > 0.2):
        for b in range(2):
            literal = sum(float(weight[b, k]) * torch.outer(W[:, k], h[b, k]) for k in range(K)) / (W @ h[b] + 1e-10)
            assert torch.allclose(component_share(W, h, weight)[b], literal, atol=1e-6)

def test_mask_of_all_none_and_complementary_components(model, l2i):
    x = waves(3)
    attribution = lambda threshold: explain(model, with_threshold(l2i, threshold), x).attribution
    all_, none = attribution(-1.1), attribution(1.0)
    model_says = torch.einsum("fk,bkt->bft", l2i.dictionary, all_.extras["activations"])
    assert torch.allclose(all_.mask[model_says > 1e-4], torch.tensor(1.0), atol=1e-5) and (all_.mask[model_says == 0] == 0).all()
    assert none.mask.abs().max() == 0 and torch.equal(none.scores, all_.scores) and none.scores.abs().max() > 0
    r, h = all_.extras["relevance"], all_.extras["activations"]
    chosen = component_share(l2i.dictionary, h, r > 0.2)
    assert torch.equal(chosen.clamp(0, 1), attribution(0.2).mask) and chosen.min() >= 0 and chosen.max() <= 1 + 1e-5
    assert torch.allclose(chosen + component_share(l2i.dictionary, h, r <= 0.2), all_.mask, atol=1e-5)

def with_threshold(l2i: L2I, threshold: float) -> L2I:
    other = copy.deepcopy(l2i); other.threshold = threshold
    return other

def test_relevance_by_hand(model, l2i):
    x = waves(4); e = explain(model, l2i, x, target="no"); h = e.attribution.extras["activations"]
    for b in range(4):
        z = [float((l2i.theta.attention.weight[0].detach() * h[b, k]).sum()) for k in range(K)]
        r = [float(l2i.theta.classify.weight[1, k].detach()) * z[k] for k in range(K)]
        assert np.allclose(e.attribution.extras["relevance"][b], np.array(r) / max(map(abs, r)), atol=1e-4)
    assert torch.allclose(e.attribution.extras["relevance"].abs().amax(1), torch.ones(4), atol=1e-6)

def test_recovers_the_atoms_that_a_class_is_made_of(model):
    "Known support: theta for class 1 reads component 0 alone, so the mask is component 0's share."
    with seeded(0): known = L2I(LightPsi(model.network.channels, 8, 2), torch.eye(513)[:, [40, 200]], 2, FRAMES)
    with torch.no_grad(): known.theta.classify.weight.copy_(torch.tensor([[0.0, 1], [1, 0]])); known.theta.attention.weight.fill_(1 / FRAMES); known.psi.out.bias.fill_(5.0)
    mask = explain(model, known, waves(2), target=1).mask
    assert torch.allclose(mask[:, 40], torch.ones(2, FRAMES)) and mask.sum(1).allclose(torch.ones(2, FRAMES))

# ---- what every explainer promises

def test_is_an_explainer_for_any_class(model, l2i):
    assert isinstance(l2i, Explainer) and l2i.class_conditional and l2i.fixed_frames == FRAMES
    x = waves(3); a, b = (explain(model, l2i, x, target=c) for c in ("yes", "no"))
    assert not torch.equal(a.attribution.extras["relevance"], b.attribution.extras["relevance"])
    assert a[1].attribution.extras["relevance"].shape == (1, K) and a.mask.shape == a.attribution.scores.shape == a.rep.values.shape

def test_other_lengths_and_other_dictionaries_are_refused(model, l2i):
    for n in (15000, 17000):
        with pytest.raises(ValueError, match="87 frames only"): explain(model, l2i, torch.randn(1, n))
        with pytest.raises(ValueError, match="513 bins x 87 frames only"): l2i.loss(model, SimpleNamespace(x=torch.randn(1, n)))
        rep = model.represent(torch.randn(1, n))
        with pytest.raises(ValueError, match="pad or crop"): l2i.attribute(model, rep, model.classify(rep.values), torch.tensor([0]))
    for W in (torch.rand(513, K + 1), torch.rand(513), -torch.rand(513, K), torch.full((513, K), float("nan"))):
        with pytest.raises(ValueError, match="dictionary"): L2I(l2i.psi, W, 2, FRAMES)
    with pytest.raises(ValueError, match="unknown psi"): make_psi({"kind": "transformer"})

def test_a_batch_of_one_equals_its_row_and_order_does_not_matter(model, l2i):
    x = waves(16); many = explain(model, l2i, x); swapped = explain(model, l2i, x.flip(0))
    assert torch.allclose(many.mask.flip(0), swapped.mask, atol=1e-4) and torch.allclose(many.attribution.scores.flip(0), swapped.attribution.scores, atol=1e-3)
    for i in (0, 7, 15): assert torch.allclose(explain(model, l2i, x[i]).mask[0], many.mask[i], atol=1e-4)

def test_silence_is_defined(model, l2i):
    e = explain(model, l2i, torch.stack([torch.zeros(16000), waves(1)[0]]))
    for t in (e.mask, e.attribution.scores, e.attribution.extras["relevance"], e.p_kept, e.p_removed): assert t.isfinite().all()
    dead = copy.deepcopy(l2i)
    with torch.no_grad(): dead.psi.out.weight.zero_(); dead.psi.out.bias.fill_(-1.0)       # no activation at all
    e = explain(model, dead, waves(2))
    assert e.mask.abs().max() == e.attribution.scores.abs().max() == e.attribution.extras["relevance"].abs().max() == 0

def test_masks_are_full_precision_under_autocast(model, l2i):
    rep = model.represent(waves(2)); out = model.classify(rep.values)
    with torch.autocast("cpu", torch.bfloat16): a = l2i.attribute(model, rep, out, torch.tensor([0, 1]))
    assert all(t.dtype == torch.float32 for t in (a.mask, a.scores, *a.extras.values())) and a.mask.max() <= 1

def test_random_theta_changes_theta_alone(model, l2i):
    other, before = l2i.with_random_theta(5), copy.deepcopy(l2i.state_dict())
    assert other.name == "L2I (random theta)" and other.fixed_frames == FRAMES
    changed = {k for k, v in other.state_dict().items() if not torch.equal(v, l2i.state_dict()[k])}
    assert changed == {"theta.attention.weight", "theta.classify.weight"}
    assert torch.equal(other.theta.classify.weight, l2i.with_random_theta(5).theta.classify.weight)
    assert not torch.equal(other.theta.classify.weight, l2i.with_random_theta(6).theta.classify.weight)
    assert all(torch.equal(v, before[k]) for k, v in l2i.state_dict().items())
    assert other.theta.classify.weight.abs().max() <= K ** -0.5                             # torch's default for a linear layer

# ---- saved and loaded

def test_saved_and_loaded_and_refused(model, l2i, tmp_path):
    l2i.save_pretrained(tmp_path, model)
    again = L2I.from_pretrained(tmp_path, model); x = waves(2)
    assert torch.allclose(explain(model, again, x).mask, explain(model, l2i, x).mask, atol=1e-5)
    assert again.weights == l2i.weights and again.threshold == l2i.threshold and again.name == l2i.name and again.fixed_frames == FRAMES
    assert again.with_random_theta().fingerprint == again.fingerprint == model.fingerprint()
    with seeded(9): stranger = AudioClassifier(["yes", "no"], width=0.0625).eval()
    with pytest.raises(ValueError, match="trained on classifier"): L2I.from_pretrained(tmp_path, stranger)
    with pytest.raises(ValueError, match="train an L2I for it"): explain(stranger, again, x)
    assert L2I.from_pretrained(tmp_path).fingerprint == model.fingerprint()
    config = json.loads((tmp_path/"config.json").read_text())
    (tmp_path/"config.json").write_text(json.dumps(config | {"frames": 431}))
    with pytest.raises(ValueError, match="another architecture"): L2I.from_pretrained(tmp_path, model)
    (tmp_path/"config.json").write_text(json.dumps(config | {"kind": "LMAC"}))
    with pytest.raises(ValueError, match="holds a LMAC"): L2I.from_pretrained(tmp_path, model)
