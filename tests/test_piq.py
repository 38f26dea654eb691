"PIQ against hand-written formulas, on images and sound of any size, and from end to end."
import json
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lmac_piq.bottleneck import frozen_outputs
from lmac_piq.classifier import AudioClassifier, Explainable, ImageClassifier, Output, accuracy, image_loss, recalibrate
from lmac_piq.codebook import Codebook
from lmac_piq.data import Batch
from lmac_piq.decoder import ImageDecoder
from lmac_piq.experiment import Clips
from lmac_piq.explanation import Explainer, baseline_values, explain, keep
from lmac_piq.lmac import LMAC
from lmac_piq.piq import PIQ, DigitBlock, DigitInterpreter, LightInterpreter, PIQTask, PublishedInterpreter, Upsample, code_patches, count_codes, gain_mask, make_interpreter, speechbrain_piq, strong_bins
from lmac_piq.training import FitConfig, fit, seeded

few = settings(max_examples=12, deadline=None)
NAMES = ["dog", "rain", "bell"]


def noise(*shape: int, seed: int = 0) -> Tensor: return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
def image_model(channels: int = 3, size: int = 32, baseline: str | None = None) -> ImageClassifier:
    with seeded(0): return ImageClassifier(NAMES, "resnet", channels, size, baseline, width=0.125).eval()
def image_piq(task: PIQTask = PIQTask("values"), channels: int = 3, shared: int = 2, **book) -> PIQ:
    with seeded(1): return PIQ(LightInterpreter(16, 8, channels if task.output == "values" else 1, doublings=2), Codebook(14, 8, 3, shared, **book), task).eval()

@pytest.fixture(scope="module")
def seeing() -> ImageClassifier: return image_model()

@pytest.fixture(scope="module")
def hearing() -> AudioClassifier:
    with seeded(0): return AudioClassifier(NAMES, 0.03125, network="conv2d", pool=4).eval()

def sound_piq(task: PIQTask = PIQTask(), shared: int = 0) -> PIQ:
    with seeded(2): return PIQ(LightInterpreter(8, 8, doublings=2), Codebook(15, 8, 3, shared), task).eval()

def of_their_class(piq: PIQ, e) -> bool:
    "Whether every code is a row of the explained class, or a shared one."
    owner = piq.codebook.classes[e.attribution.extras["codes"]]
    return bool(((owner == e.target[:, None, None]) | (owner == -1)).all())


# What every explanation is, whatever the size

@few
@given(size=st.integers(28, 45), channels=st.sampled_from([1, 3]), output=st.sampled_from(["mask", "values"]), protocol=st.sampled_from(["default", "published"]),
       baseline=st.sampled_from(["zero", "mean", "blur"]), shared=st.integers(0, 3), seed=st.integers(0, 99))
def test_images_of_any_size(size, channels, output, protocol, baseline, shared, seed):
    model, piq, x = image_model(channels, size, baseline), image_piq(PIQTask(output, protocol=protocol), channels, shared), noise(2, channels, size, size, seed=seed)
    e = explain(model, piq, x)
    assert isinstance(piq, Explainer) and e.mask.shape == (2, size, size) and 0 <= e.mask.min() and e.mask.max() <= 1
    assert e.attribution.values.shape == x.shape and 0 <= e.attribution.values.min() and e.attribution.values.max() <= 1
    assert of_their_class(piq, e) and e.attribution.extras["codes"].dtype == torch.long and e.kept().shape == x.shape
    again = explain(model, piq, x)
    assert torch.equal(again.mask, e.mask) and torch.equal(again.attribution.values, e.attribution.values)


@few
@given(n=st.integers(1, 12000), output=st.sampled_from(["mask", "values"]), protocol=st.sampled_from(["default", "published"]), shared=st.integers(0, 3), seed=st.integers(0, 99))
def test_sound_of_any_length(n, output, protocol, shared, seed):
    with seeded(0): model = AudioClassifier(NAMES, 0.03125, network="conv2d", pool=4).eval()
    piq, x = sound_piq(PIQTask(output, protocol=protocol), shared), noise(2, n, seed=seed) - 0.5
    e = explain(model, piq, x)
    assert e.mask.shape == e.rep.values.shape == e.attribution.values.shape and 0 <= e.mask.min() and e.mask.max() <= 1
    assert e.attribution.values.min() >= 0 and e.attribution.values.isfinite().all() and of_their_class(piq, e)
    assert e.kept().shape == e.removed().shape == x.shape and model.render(e.rep, e.attribution.values).shape == x.shape      # as long as the sound
    assert torch.equal(explain(model, piq, x).mask, e.mask)


@pytest.mark.parametrize("network", ["cnn14", "conv2d"])
def test_both_networks_of_sound_and_silence(network):
    with seeded(0): model = AudioClassifier(NAMES, 0.03125, network=network, pool=2 if network == "conv2d" else 1).eval()
    c = model.network.channels[-1]
    with seeded(1): piq = PIQ(LightInterpreter(c, 8, halve=network == "conv2d"), Codebook(9, 8, 3), PIQTask())
    e = explain(model, piq, torch.stack([torch.zeros(9000), noise(9000) - 0.5]))
    assert e.mask.shape == e.rep.values.shape and e.mask.isfinite().all() and e.p_kept.isfinite().all() and of_their_class(piq, e)


@pytest.mark.parametrize("task", [PIQTask("mask"), PIQTask("values"), PIQTask("values", protocol="published")])
def test_item_by_item_is_the_batch(seeing, hearing, task):
    for model, piq, x in ((seeing, image_piq(task), noise(5, 3, 32, 32)), (hearing, sound_piq(task), noise(3, 9000) - 0.5)):
        many = explain(model, piq, x)
        for i in range(len(x)):
            one = explain(model, piq, x[i:i + 1])
            assert torch.equal(one.attribution.extras["codes"][0], many.attribution.extras["codes"][i]) and torch.allclose(one.attribution.values[0], many.attribution.values[i], atol=1e-4)
            assert (one.mask[0] - many.mask[i]).abs().mean() < 1e-4


# Which class

def test_why_not_is_answered_with_the_codes_of_the_class_asked_for(seeing, hearing):
    for model, piq, x in ((seeing, image_piq(), noise(4, 3, 32, 32)), (hearing, sound_piq(), noise(2, 9000) - 0.5)):
        asked = [explain(model, piq, x, name) for name in NAMES]
        for i, e in enumerate(asked): assert e.target.eq(i).all() and of_their_class(piq, e)
        assert not torch.equal(asked[0].mask, asked[1].mask) and not torch.equal(asked[1].mask, asked[2].mask)
        assert torch.equal(explain(model, piq, x).mask[0], asked[int(explain(model, piq, x).target[0])].mask[0])
        each = explain(model, piq, x, torch.arange(len(x)) % 3)
        assert all(torch.allclose(each.mask[i], asked[i % 3].mask[i], atol=1e-5) for i in range(len(x)))
        with pytest.raises(ValueError, match="unknown class 'cat'.*dog, rain, bell"): explain(model, piq, x, "cat")


def test_without_partition_or_codebook_only_the_decision_is_explained(seeing):
    x = noise(2, 3, 32, 32); body = image_piq().body
    for piq in (PIQ(body, Codebook(14, 8, 3, partition=False), PIQTask("values"), "free"), PIQ(body, None, PIQTask("values"), "no codes")):
        e = explain(seeing, piq, x)
        assert not piq.class_conditional and ("codes" in e.attribution.extras) == (piq.codebook is not None)
        with pytest.raises(ValueError, match=f"{piq.name} does not look at the class"): explain(seeing, piq, x, int((e.target[0] + 1) % 3))


def test_shared_rows_serve_every_class(seeing):
    piq = image_piq(shared=2)
    with torch.no_grad(): piq.codebook.rows[:-2] = 1e3                                  # far away: nothing else can be chosen
    e = explain(seeing, piq, noise(3, 3, 32, 32))
    assert (piq.codebook.classes[e.attribution.extras["codes"]] == -1).all()


# What training touches

@pytest.mark.parametrize("fidelity", [0.0, 1.0])
@pytest.mark.parametrize("output", ["mask", "values"])
def test_gradients_reach_adapter_and_decoder_but_not_the_classifier(output, fidelity):
    model, piq = image_model(), image_piq(PIQTask(output, fidelity=fidelity)).train()
    model.network.stages[0].train(); next(model.parameters()).requires_grad_(False)
    modes, flags, state = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    terms = piq.loss(model, Batch(noise(4, 3, 32, 32)))
    assert set(terms) == {"reconstruction", "codebook", "commitment"} | ({"fidelity"} if fidelity else set()) and all(t.ndim == 0 and t.isfinite() for t in terms.values())
    sum(terms.values()).backward()
    own = dict(piq.named_parameters())
    for part in ("body.adapter", "body.mix", "body.out", "codebook.rows"): assert any(k.startswith(part) and p.grad is not None and p.grad.abs().max() > 0 for k, p in own.items()), part
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.values()) and all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes and [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())         # running statistics too


def test_the_reconstruction_reaches_the_adapter_through_the_codes_alone():
    "Straight through: the gradient at the codes is the gradient at the map that they replace"
    model, piq = image_model(), image_piq().train()
    out = model.classify(x := noise(2, 3, 32, 32)); seen = {}
    encode = piq.body.encode
    def kept(features): z = encode(features); z.retain_grad(); seen["z"] = z; return z
    piq.body.encode = kept
    logits, codes = piq.draw(out, x, out.logits.argmax(1)); codes.values.retain_grad()
    piq.rec_loss(logits, x).backward()
    assert torch.equal(seen["z"].grad, codes.values.grad) and seen["z"].grad.abs().max() > 0 and piq.codebook.rows.grad is None


def test_explaining_learns_and_counts_nothing(seeing):
    piq = image_piq(restart=0.5, update="ema").train(); state = {k: v.clone() for k, v in piq.state_dict().items()}
    explain(seeing, piq, noise(3, 3, 32, 32)); code_patches(piq, torch.arange(3), (2, 2), noise(1, 3, 32, 32))
    assert piq.training and piq.body.training and all(torch.equal(v, state[k]) for k, v in piq.state_dict().items())


def test_the_codes_of_training_are_those_of_the_prediction_right_or_wrong(seeing):
    piq, x = image_piq(shared=0).train(), noise(6, 3, 32, 32)
    said = seeing(x).argmax(1); piq.loss(seeing, Batch(x, label=(said + 1) % 3))
    hits = torch.zeros(3, dtype=torch.long).index_add_(0, piq.codebook.classes, piq.codebook.hits)
    assert torch.equal(hits, 4 * torch.bincount(said, minlength=3)) and hits.sum() == 6 * 2 * 2


# Targets and terms against formulas

@few
@given(baseline=st.sampled_from(["zero", "mean", "blur"]), seed=st.integers(0, 99))
def test_a_concept_is_the_input_under_its_annotation(baseline, seed):
    model, x, marked = image_model(baseline=baseline), noise(3, 3, 32, 32, seed=seed), (noise(3, 32, 32, seed=seed + 1) > 0.5).float()
    values, mask = image_piq(PIQTask("values", concept=True)), image_piq(PIQTask("mask", concept=True))
    by_hand = marked[:, None] * x + (1 - marked[:, None]) * baseline_values(model, x)
    assert torch.equal(values.target_of(model, x, marked), keep(model, x, marked)) and torch.allclose(keep(model, x, marked), by_hand)
    assert torch.equal(mask.target_of(model, x, marked.bool()), marked)
    plain = image_piq(PIQTask("values"))
    assert torch.equal(plain.target_of(model, x, marked), x)                            # who learns no concept does not see it


def test_a_concept_of_sound(hearing):
    values = 3 * noise(2, 513, 40); marked = (noise(2, 513, 40, seed=1) > 0.5).float()
    assert torch.allclose(sound_piq(PIQTask("values", concept=True)).target_of(hearing, values, marked), values * marked, atol=1e-5)
    with pytest.raises(ValueError, match="batches with `annotation`"): sound_piq(PIQTask(concept=True)).target_of(hearing, values, None)
    with pytest.raises(ValueError, match="one mask per item"): sound_piq(PIQTask(concept=True)).target_of(hearing, values, marked[:, :40])


@few
@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_loud_bins_and_strong_bins_by_hand(share, seed):
    sound, image = 5 * noise(2, 9, 7, seed=seed), noise(2, 3, 9, 7, seed=seed)
    for i in range(2):
        assert torch.equal(sound_piq(PIQTask(share=share)).target_of(None, sound, None)[i], (sound[i] > share * sound[i].max()).float())
        assert torch.equal(strong_bins(sound, share)[i], (sound[i] > share * sound[i].max()).float())
        assert torch.equal(strong_bins(image, share)[i], (image[i].mean(0) > share * image[i].mean(0).max()).float())


@few
@given(seed=st.integers(0, 99))
def test_published_terms_by_hand(seed):
    "Second sigmoid, mean over classes, binary cross-entropy of masks and squared error of softplus"
    logits, x = 4 * noise(3, 3, 9, 9, seed=seed) - 2, noise(3, 3, 9, 9, seed=seed + 1)
    bce = lambda p, t: -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    rec = lambda task, t: image_piq(task).rec_loss(logits, t)
    assert torch.isclose(rec(PIQTask("values", protocol="published"), x), bce(logits.sigmoid().sigmoid(), x), rtol=1e-4)
    assert torch.isclose(rec(PIQTask("values"), x), bce(logits.sigmoid(), x), rtol=1e-4)
    for protocol in ("default", "published"):
        assert torch.isclose(rec(PIQTask("mask", protocol=protocol), x[:, 0].round()), bce(logits[:, 0].sigmoid(), x[:, 0].round()), rtol=1e-4)
        assert torch.isclose(rec(PIQTask("values", protocol=protocol), 3 * x[:, 0]), (F.softplus(logits[:, 0]) - 3 * x[:, 0]).square().mean(), rtol=1e-4)


@pytest.mark.parametrize("protocol", ["default", "published"])
def test_published_masks_are_thresholds_and_ours_gains(seeing, hearing, protocol):
    for model, piq, x in ((seeing, image_piq(PIQTask("values", share=0.6, protocol=protocol)), noise(2, 3, 32, 32)), (hearing, sound_piq(PIQTask("values", share=0.6, protocol=protocol)), noise(2, 9000) - 0.5)):
        e = explain(model, piq, x); gain = gain_mask(model, e.rep.values, e.attribution.values)
        if protocol == "published": assert torch.equal(e.mask, strong_bins(e.attribution.values, 0.6)) and torch.equal(e.attribution.scores, gain) and torch.equal(e.attribution.ranking, gain)
        else: assert torch.equal(e.mask, gain) and e.attribution.scores is None


def test_the_values_of_a_mask_are_what_it_keeps(seeing, hearing):
    for model, piq, x in ((seeing, image_piq(PIQTask("mask")), noise(2, 3, 32, 32)), (hearing, sound_piq(), noise(2, 9000) - 0.5)):
        e = explain(model, piq, x)
        assert torch.allclose(e.attribution.values, e.kept_values) and torch.allclose(e.kept_values, keep(model, e.rep.values, e.mask))


@few
@given(baseline=st.sampled_from(["zero", "mean", "blur"]), seed=st.integers(0, 99))
def test_the_gain_is_the_least_squares_one(baseline, seed):
    "No other gain in [0, 1] brings the kept part nearer to the drawing (but for the small term that keeps the division finite)"
    model, x, drawn = image_model(baseline=baseline), noise(1, 3, 32, 32, seed=seed), noise(1, 3, 32, 32, seed=seed + 1)
    sound, heard = 3 * noise(1, 20, 9, seed=seed), 3 * noise(1, 20, 9, seed=seed + 1)
    for values, wanted in ((x, drawn), (sound, heard)):
        best = gain_mask(model, values, wanted, eps=1e-9)
        error = lambda m: ((keep(model, values, m) - wanted) ** 2).sum(1) if values.ndim == 4 else (m * values - wanted) ** 2
        for other in torch.linspace(0, 1, 11): assert (error(best) <= error(torch.full_like(best, float(other))) + 1e-4).all()
        assert 0 <= gain_mask(model, values, wanted).min() and gain_mask(model, values, wanted).max() <= 1


# Fidelity

class Flat(Explainable):
    "A linear classifier of pixels: its gradients can be written down."
    classes, baseline = NAMES, "zero"
    def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(noise(3 * 8 * 8, 3, seed=5) - 0.5)
    def classify(self, values: Tensor) -> Output: return Output(values.flatten(1) @ self.weight, [values])


@few
@given(output=st.sampled_from(["mask", "values"]), protocol=st.sampled_from(["default", "published"]), seed=st.integers(0, 99))
def test_fidelity_and_its_gradient_by_hand(output, protocol, seed):
    "Cross-entropy of the two decisions; its slope at the interpretation is the difference of their probabilities, carried back"
    model, x = Flat(), noise(2, 3, 8, 8, seed=seed)
    drawn = noise(2, *((8, 8) if output == "mask" else (3, 8, 8)), seed=seed + 1).requires_grad_()
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]); scale = 1 / (2 if protocol == "default" else 6)
    shown = drawn[:, None] * x if output == "mask" else drawn
    q = (shown.flatten(1) @ model.weight).softmax(1).detach()
    loss = image_piq(PIQTask(output, protocol=protocol)).fid_loss(model, x, drawn, p)
    assert torch.isclose(loss, -scale * (p * q.log()).sum(), rtol=1e-4)
    back = scale * ((q - p) @ model.weight.detach().T).view(2, 3, 8, 8)
    slope, = torch.autograd.grad(loss, drawn)
    assert torch.allclose(slope, (back * x).sum(1) if output == "mask" else back, atol=1e-5)


def test_fidelity_alone_teaches_the_drawing_what_the_classifier_says():
    model, x = image_model(), noise(6, 3, 32, 32); piq = image_piq(PIQTask("mask", reconstruction=0.0, fidelity=1.0)).train()
    log = fit(piq, lambda b: {"fidelity": piq.loss(model, b)["fidelity"]}, lambda g: iter([Batch(x)] * 3), FitConfig(epochs=4, lr=5e-3, bf16=False), 3, progress=False)
    assert log.fidelity.iloc[-1] < log.fidelity.iloc[0]


# Saved and loaded

def saved(kind: str) -> tuple:
    "(classifier, PIQ, inputs) for each interpreter, and for the one without a codebook."
    with seeded(3):
        if kind == "digit": return ImageClassifier(NAMES).eval(), PIQ(DigitInterpreter(protocol="published"), Codebook(12, 128, 3, 2, update="ema"), PIQTask("values", protocol="published"), "digits").eval(), noise(2, 1, 28, 28)
        if kind == "published": return AudioClassifier(NAMES, 0.03125, network="conv2d").eval(), PIQ(PublishedInterpreter(8), Codebook(12, 8, 3)).eval(), noise(2, 9000) - 0.5
    return (image_model(), image_piq(PIQTask("mask", concept=True)), noise(2, 3, 32, 32)) if kind == "light" else (image_model(), PIQ(image_piq().body, None, PIQTask("values")).eval(), noise(2, 3, 32, 32))


@pytest.mark.parametrize("kind", ["light", "published", "digit", "no codebook"])
def test_an_explainer_comes_back_as_it_was(kind, tmp_path):
    model, piq, x = saved(kind)
    again = PIQ.from_pretrained(piq.save_pretrained(tmp_path, model), model)
    before, after = explain(model, piq, x), explain(model, again, x)
    assert torch.allclose(after.mask, before.mask, atol=1e-5) and torch.allclose(after.attribution.values, before.attribution.values, atol=1e-5)
    assert again.task == piq.task and again.name == piq.name and again.body.config == piq.body.config and again.fingerprint == model.fingerprint() and not again.training
    assert (again.codebook and again.codebook.config) == (piq.codebook and piq.codebook.config) and again.state_dict().keys() == piq.state_dict().keys()
    assert not any(k.startswith("model") for k in json.loads((tmp_path/"config.json").read_text())) and make_interpreter(piq.body.config).config == piq.body.config


def test_damaged_and_foreign_folders_are_refused(tmp_path, seeing):
    piq = image_piq(); folder = piq.save_pretrained(tmp_path/"piq", seeing)
    with seeded(9): stranger = ImageClassifier(NAMES, "resnet", 3, 32, width=0.125).eval()
    with pytest.raises(ValueError, match="trained on classifier.*train another for it"): PIQ.from_pretrained(folder, stranger)
    with pytest.raises(ValueError, match="trained on classifier"): explain(stranger, PIQ.from_pretrained(folder), noise(1, 3, 32, 32))
    with pytest.raises(FileNotFoundError, match="no config.json"): PIQ.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a LMAC, not a PIQ"): PIQ.from_pretrained(LMAC(ImageDecoder(seeing.network.channels, 4)).save_pretrained(tmp_path/"lmac", seeing))
    with pytest.raises(ValueError, match="not a PIQ"): PIQ.from_pretrained(seeing.save_pretrained(tmp_path/"classifier"))
    config = json.loads((folder/"config.json").read_text())
    change = lambda **new: (folder/"config.json").write_text(json.dumps(config | new))
    change(body=config["body"] | {"dim": 4}, codebook=config["codebook"] | {"dim": 4})
    with pytest.raises(ValueError, match="another architecture"): PIQ.from_pretrained(folder, seeing)
    change(codebook=config["codebook"] | {"dim": 4})
    with pytest.raises(ValueError, match="8 numbers, the codebook's rows 4"): PIQ.from_pretrained(folder, seeing)
    change(body=config["body"] | {"kind": "unet"})
    with pytest.raises(ValueError, match="unknown interpreter kind 'unet'.*digit.*light.*published"): PIQ.from_pretrained(folder, seeing)
    change(task=config["task"] | {"share": 2.0})
    with pytest.raises(ValueError, match="share is 2.0"): PIQ.from_pretrained(folder, seeing)
    (folder/"config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"): PIQ.from_pretrained(folder, seeing)
    change(); (folder/"model.safetensors").write_bytes((folder/"model.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"): PIQ.from_pretrained(folder, seeing)


def test_what_does_not_fit_is_refused(seeing):
    with pytest.raises(ValueError, match="'mask' or 'values'"): PIQTask("picture")
    with pytest.raises(ValueError, match="'default' or 'published'"): PIQTask(protocol="paper")
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"): PIQTask(share=share)
    with pytest.raises(ValueError, match="outputs=3"): explain(seeing, image_piq(PIQTask("values"), channels=1), noise(1, 3, 32, 32))
    with pytest.raises(ValueError, match="use a LightInterpreter"): explain(image_model(1, 28), PIQ(DigitInterpreter(16), Codebook(6, 16, 3), PIQTask("values")), noise(1, 1, 28, 28))
    with pytest.raises(ValueError, match="classes 0 to 1"): explain(seeing, PIQ(image_piq().body, Codebook(14, 8, 2), PIQTask("values")), noise(4, 3, 32, 32), 2)
    with pytest.raises(KeyError, match="VectorQuantizedPSI_Audio"): speechbrain_piq({"conv1.weight": torch.zeros(1)})


# Interpreters

@few
@given(h=st.integers(1, 5), w=st.integers(1, 5), height=st.integers(1, 70), width=st.integers(1, 70), doublings=st.integers(0, 3), halve=st.booleans(), layer=st.sampled_from([0, 1, -1]))
def test_the_light_interpreter_draws_any_size_from_any_map(h, w, height, width, doublings, halve, layer):
    with seeded(0): body = LightInterpreter(6, 8, 2, layer, doublings, halve).eval()
    maps = [noise(2, 6, h + k, w) for k in range(2)]
    z = body.encode(maps); rows = maps[layer].shape[2]
    assert z.shape == (2, 8, (rows + 1) // 2 if halve else rows, (w + 1) // 2 if halve else w) and body.decode(z, (height, width)).shape == (2, 2, height, width)


def test_a_digit_block_rectifies_its_skip_only_as_published():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for protocol, skip in (("default", x), ("published", x.relu())):
        block = DigitBlock(4, protocol).eval(); torch.nn.init.zeros_(block.bn2.weight)   # the branch gives zero
        assert torch.allclose(block(x), skip)


# Looking at codes

def test_codes_are_counted_and_drawn(seeing):
    piq, x = image_piq(), noise(6, 3, 32, 32)
    hits = count_codes(piq, seeing, [Batch(x[:4]), Batch(x[4:])])
    assert torch.equal(hits, explain(seeing, piq, x).attribution.extras["codes"].flatten().bincount(minlength=14)) and hits.sum() == 6 * 4
    patches = code_patches(piq, torch.tensor([0, 5]), (2, 2), x)
    z = piq.codebook.rows[5].detach()[None, :, None, None].expand(1, -1, 2, 2)
    assert patches.shape == (2, 3, 32, 32) and torch.allclose(patches[1:], piq.body.decode(z, (32, 32)).sigmoid(), atol=1e-5)
    assert code_patches(sound_piq(), torch.tensor([1]), (3, 2), noise(1, 513, 20)).shape == (1, 513, 20)


# From end to end

def bars(n: int, seed: int) -> Batch:
    "Images [n, 1, 28, 28] of a lying (class 0) or standing (1) bar at a random place, with their masks."
    g = torch.Generator().manual_seed(seed); label, place, x = torch.arange(n) % 2, torch.randint(3, 22, (n,), generator=g), torch.zeros(n, 28, 28)
    for i in range(n):
        if label[i] == 0: x[i, place[i]:place[i] + 3, 4:24] = 1
        else: x[i, 4:24, place[i]:place[i] + 3] = 1
    return Batch(x[:, None], label=label, annotation=x)


def test_of_two_bars_the_predicted_one_is_drawn():
    "What the class-partitioned codes are for: the bar of the other class is lost on the way"
    train, test = bars(64, 0), bars(16, 1); quick = lambda epochs, lr: FitConfig(epochs=epochs, lr=lr, bf16=False)
    with seeded(0): model = ImageClassifier(["lying", "standing"], "resnet", 1, 28, width=0.25, dropout=0.0)
    fit(model, lambda b: image_loss(model, b), lambda g: iter([train] * 4), quick(4, 1e-2), 4, progress=False); recalibrate(model, [train])
    assert accuracy(model, [test])["accuracy"] == 1.0
    with seeded(1): piq = PIQ(LightInterpreter(8, 16, doublings=2, layer=1), Codebook(32, 16, 2, restart=0.1), PIQTask("values"))
    log = fit(piq, lambda b: piq.loss(model, b), lambda g: iter([train] * 10), quick(8, 1e-2), 10, progress=False)
    assert log.reconstruction.iloc[-1] < 0.5 * log.reconstruction.iloc[0] and of_their_class(piq, explain(model, piq, test.x))
    drawn = explain(model, piq.eval(), (test.x[0::2] + test.x[1::2]).clamp(0, 1)); alone = explain(model, piq, test.x)
    likeness = lambda a, b: torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
    pairs = torch.stack([test.x[0::2, 0], test.x[1::2, 0]])
    said = torch.stack([likeness(v[0], pairs[t, i]) for i, (v, t) in enumerate(zip(drawn.attribution.values, drawn.target))])
    other = torch.stack([likeness(v[0], pairs[1 - t, i]) for i, (v, t) in enumerate(zip(drawn.attribution.values, drawn.target))])
    print(f"alone {likeness(alone.attribution.values, test.x):.2f}, predicted {said.mean():.2f}, other {other.mean():.2f}")
    assert likeness(alone.attribution.values, test.x) > 0.6 and (said > other).float().mean() >= 0.75 and said.mean() > other.mean() + 0.2


# What a frozen classifier said once

def test_known_outputs_are_those_of_the_item_whatever_its_number(hearing: AudioClassifier):
    waves = noise(5, 8000, seed=3)
    clips = Clips(lambda i: waves[i], torch.tensor([0, 1, 2, 0, 1]), NAMES, np.array([40, 7, 12, 3, 9]))
    known, batch = frozen_outputs(hearing, clips, batch_size=2), clips[[3, 0, 4]]
    out, said = known.of(batch), hearing.classify(hearing.represent(batch.x, phase=False).values)
    assert torch.allclose(out.logits, said.logits, atol=1e-4) and torch.allclose(out.features[-1], said.features[-1], atol=1e-4)
    assert len(out.features) == len(said.features) and all(f is None for f in out.features[:-1])
    piq = sound_piq()
    with_and_without = [piq.loss(hearing, batch, o) for o in (out, None)]
    assert all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(*(losses.values() for losses in with_and_without)))
    for other in (8, 41):
        with pytest.raises(ValueError, match=rf"items \[{other}\]"): known.of(Batch(waves[:2], item=torch.tensor([7, other])))


@few
@given(inputs=st.integers(1, 5), outputs=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_doubling_is_a_convolution_of_the_enlarged_grid(inputs, outputs, height, width, seed):
    with seeded(seed): up, x = Upsample(inputs, outputs), torch.randn(2, inputs, height, width, requires_grad=True)
    enlarged = F.relu(up.bn(up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))))
    assert torch.allclose(up(x), enlarged, atol=1e-4)
    gradients = [torch.autograd.grad(y.square().sum(), (up.conv.weight, x)) for y in (up(x), enlarged)]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-2) for a, b in zip(*gradients))
