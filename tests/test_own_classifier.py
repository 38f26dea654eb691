"""Any torch module as a classifier that can be explained: its own logits, its maps by name, phase that follows its item, and refusals that say what to do."""
from copy import deepcopy
from pathlib import Path
import numpy as np, pytest, torch, torchaudio
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lmac_piq.baselines import GradCAM, IntegratedGradients, LIME, LoudestBins, RandomBins, Saliency, SmoothGrad
from lmac_piq.classifier import Explainable, Representation
from lmac_piq.data import Batch
from lmac_piq.decoder import LightDecoder
from lmac_piq.explanation import Attribution, explain, keep
from lmac_piq.lmac import LMAC
from lmac_piq.metrics import evaluate
from lmac_piq.own_classifier import FRONT_ENDS, Phased, Watched, _device_of, check_explainable, find_layer, from_module, load_module, with_phase
from lmac_piq.spectral import LogMel
from lmac_piq.training import seeded

CLASSES = ["a", "b", "c"]

class Net(nn.Module):
    "Two convolutions and a head on maps"
    def __init__(self, n_classes: int = 3, inputs: int = 1):
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(inputs, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Linear(8, n_classes)
    def forward(self, x: Tensor) -> Tensor: return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))

class WaveNet(nn.Module):
    "Its own spectrogram, decibels, convolutions"
    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(16000, 512, hop_length=160, n_mels=32)
        self.db, self.net = torchaudio.transforms.AmplitudeToDB(top_db=None), Net()
    def forward(self, wave: Tensor) -> Tensor: return self.net(self.db(self.mel(wave))[:, None] / 20)

class Conv1d(nn.Module):
    "Waves, one-dimensional"
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(1, 5, 80, 16), nn.Conv1d(5, 7, 3, 4), nn.Linear(7, 3)
    def forward(self, wave: Tensor) -> Tensor: return self.head(self.two(self.one(wave).relu()).relu().mean(2))

def noise(n: int = 2, samples: int = 8000, seed: int = 0) -> Tensor: return torch.randn(n, samples, generator=torch.Generator().manual_seed(seed))

def made(front_end: str, **more: object) -> Explainable:
    with seeded(0):
        if front_end == "wave": return from_module(WaveNet(), CLASSES, "wave", ["net.conv1", "net.conv2"], **more)
        if front_end == "image": return from_module(Net(inputs=3), CLASSES, "image", ["conv1", "conv2"], channels=3, size=32, **more)
        return from_module(Net(), CLASSES, front_end, ["conv1", "conv2"], add_channel=True, **({"transform": LogMel(40)} if front_end == "mel" else {}), **more)

def some(front_end: str, n: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) if front_end == "image" else noise(n, seed=seed)

# ---- the module's own answer

@pytest.mark.parametrize("samples", [800, 8000, 12345])
def test_a_module_that_reads_waves_gives_its_own_logits(samples: int):
    model, x = made("wave"), noise(3, samples)
    with torch.no_grad(): assert torch.allclose(model(x), model.network.module(x), atol=1e-4)
    assert torch.allclose(model.reads(model.represent(x).values), x, atol=1e-5)

def test_magnitudes_mels_and_pixels_reach_the_module_as_they_are():
    x = noise()
    for front_end in ("magnitude", "mel", "image"):
        model, x = made(front_end), some(front_end)
        values = model.represent(x).values
        read = LogMel(40)(values) if front_end == "mel" else values
        assert torch.equal(model(x), model.network.module(read if front_end == "image" else read[:, None])), front_end

def test_a_transform_reads_the_power_asked_for():
    scale = torchaudio.transforms.MelScale(32, 16000, n_stft=513)
    for power in (1.0, 2.0):
        model = from_module(Net(), CLASSES, "mel", ["conv1"], transform=scale, power=power, add_channel=True)
        values = model.represent(noise()).values
        assert torch.allclose(model.reads(values), scale(values.expm1() ** power), rtol=1e-5)

def test_it_is_called_as_a_method_of_explainable():
    assert isinstance(Explainable.from_module(Net(), CLASSES, "magnitude", ["conv1"], add_channel=True), Explainable)

# ---- maps

@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_maps_are_those_of_the_named_layers_and_hooks_are_gone(front_end: str):
    model, x = made(front_end), some(front_end)
    out = model.classify(model.represent(x).values)
    assert [f.shape[1] for f in out.features] == model.network.channels == [6, 8] and all(f.ndim == 4 for f in out.features)
    assert not any(m._forward_hooks for m in model.modules())
    inner = find_layer(model.network.module, "net.conv2" if front_end == "wave" else "conv2")
    assert torch.allclose(inner(out.features[0].relu()), out.features[1], atol=1e-5)

def test_maps_without_frequency_get_an_axis_of_one():
    model = from_module(Conv1d(), CLASSES, "wave", ["one", "two"], add_channel=True)
    assert [tuple(f.shape[1:3]) for f in model.classify(model.represent(noise()).values).features] == [(5, 1), (7, 1)]

def test_hooks_go_even_when_the_module_fails():
    model = made("magnitude")
    with pytest.raises(RuntimeError): model.network.module(torch.zeros(1, 2, 3, 4)[0, 0, 0])
    with pytest.raises(Exception): model.network(torch.zeros(2, 3))
    assert not any(m._forward_hooks for m in model.modules())

# ---- phase

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 3))
def test_phase_follows_its_item_through_any_order(order: list[int], parts: int):
    values, phase = torch.rand(4, 3, 5), torch.arange(4.0)[:, None, None].expand(4, 3, 5)
    v = with_phase(values, Representation(values, phase, 800))
    picked = torch.cat(torch.cat([v, 0.5 * v])[torch.tensor(order)].chunk(parts))
    assert picked.phase[:, 0, 0].tolist() == [float(i) for i in order] and picked.length == 800
    assert torch.equal(torch.Tensor(picked), values[torch.tensor(order)])

@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.integers(2, 30))
def test_an_item_is_answered_alike_in_any_batch(order: list[int], hundreds: int):
    model, x = made("wave"), noise(4, 100 * hundreds + 700)
    values, mask = model.represent(x).values, torch.rand(4, 513, model.stft.frames(x.shape[1]))
    with torch.no_grad():
        alone = torch.cat([model.classify(keep(model, values[i:i + 1], mask[i:i + 1])).logits for i in order])
        both = model.classify(torch.cat([keep(model, values[order], mask[order]), values])).logits
    assert torch.allclose(both[:4], alone, atol=1e-4) and torch.allclose(both[4:], model(x), atol=1e-4)

def test_values_without_a_phase_are_refused_and_given_one():
    model = made("wave"); rep = model.represent(noise())
    for lost in (torch.rand(rep.values.shape), rep.values.sort(0).values, rep.values * rep.values.flip(0), torch.cat([rep.values, torch.rand(rep.values.shape)])):
        with pytest.raises(ValueError, match="with_phase"): model.classify(lost)
    assert torch.equal(model.classify(with_phase(torch.Tensor(rep.values), rep)).logits, model.classify(rep.values).logits)

def test_two_batches_do_not_mix():
    model = made("wave"); a, b = model.represent(noise(2, seed=1)), model.represent(noise(2, seed=2))
    alone = model.classify(a.values).logits
    model.represent(noise(3, 4000, seed=3))
    assert torch.equal(model.classify(a.values).logits, alone) and not isinstance(a.values + b.values, Phased) and not isinstance(torch.where(a.values > 1, a.values, b.values), Phased)

def test_the_gradient_through_the_wave_is_the_gradient():
    model = made("wave"); values = model.represent(noise(1, 2000)).values.detach().requires_grad_()
    grad, = torch.autograd.grad(model.classify(values).logits[0, 0], values)
    direction = torch.randn(values.shape, generator=torch.Generator().manual_seed(4)).sign()
    with torch.no_grad(): up, down = (model.classify(values + e * direction).logits[0, 0] for e in (1e-3, -1e-3))
    assert float((grad * direction).sum()) == pytest.approx(float(up - down) / 2e-3, rel=0.05, abs=1e-3)

# ---- explained like any other

@pytest.mark.parametrize("front_end", FRONT_ENDS[:3])
def test_explainers_nulls_and_metrics_take_it(front_end: str):
    model, x = made(front_end), noise(3)
    with seeded(1): lmac = LMAC(LightDecoder(model.network.channels, width=8))
    sum(lmac.loss(model, Batch(x)).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lmac.parameters())
    e = explain(model, lmac, x)
    assert e.kept().shape == x.shape and torch.allclose(e.kept() + e.removed() * 0, e.kept()) and e.p_kept.shape == (3, 3)
    frame = evaluate(model, [lmac, RandomBins(lmac), LoudestBins(lmac)], x, form=["soft", "topk"])
    assert set(frame.method) == {"L-MAC", "random bins", "loudest bins"} and np.isfinite(frame.query("metric == 'AD'").value).all()

@pytest.mark.parametrize("method", [Saliency(), SmoothGrad(), IntegratedGradients(), GradCAM(), LIME()], ids=lambda m: m.name)
def test_gradient_methods_take_a_module_that_reads_waves(method: object):
    e = explain(made("wave"), method, noise(2, 4000))
    assert e.mask.shape == e.rep.values.shape and torch.isfinite(e.mask).all() and not isinstance(e.mask.sum(), Phased)

class Ones:
    "Keeps everything"
    name, class_conditional, fixed_frames = "ones", True, None
    def attribute(self, model, rep, out, target): return Attribution(torch.ones_like(rep.values))

def test_everything_kept_is_the_input():
    model, x = made("wave"), noise(2, 5000); e = explain(model, Ones(), x)
    assert torch.allclose(e.kept(), x, atol=1e-5) and torch.allclose(e.p_kept, e.p, atol=1e-5)

# ---- refusals

class Once(Net):
    "Changes a weight in its forward"
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad(): self.head.bias.add_(1)
        return super().forward(x)
class Mode(Net):
    "Changes its mode in its forward"
    def forward(self, x: Tensor) -> Tensor: self.conv1.train(); return super().forward(x)
class Frozen(Net):
    "Gives no gradient back"
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad(): return super().forward(x)
class Pair(Net):
    "Returns more than logits"
    def forward(self, x: Tensor) -> tuple: return super().forward(x), None
class Detached(nn.Module):
    "A front end without a gradient"
    def forward(self, x: Tensor) -> Tensor: return torch.from_numpy(x.detach().numpy())
class Flooded(nn.Module):
    "A front end whose gradient is not finite"
    def forward(self, x: Tensor) -> Tensor: return (x * 0).sqrt()

@pytest.mark.parametrize("module, more, words", [
    (Net(), dict(feature_layers=["cnv2"]), "Did you mean 'conv2'"), (Net(), dict(feature_layers=["zzz"]), "Its layers: conv1, conv2, head"), (Net(), dict(feature_layers=[]), "empty"),
    (Net(), dict(feature_layers=["head"]), "not a map"), (Net(5), {}, "3 class names"), (Pair(), {}, "returns a tuple"), (Net(inputs=2), {}, "add_channel"),
    (Once(), {}, "weights or buffers: head.bias"), (Mode(), {}, "mode .*: conv1"), (Frozen(), {}, "network is not differentiable"),
    (Net(), dict(front_end="mel", transform=Detached()), "front end is not differentiable"), (Net(), dict(front_end="mel", transform=Flooded()), "front end .*not finite"),
    (Net(), dict(front_end="mel", transform=torchaudio.transforms.MelScale(32, 16000, n_stft=257)), "n_fft"), (Net(), dict(transform=LogMel()), "takes no transform"),
    (Net(), dict(front_end="mel"), "needs the transform"), (Net(), dict(front_end="ears"), "choose from magnitude")])
def test_what_cannot_be_explained_is_refused_with_a_way_out(module: nn.Module, more: dict, words: str):
    module.train()
    with pytest.raises(ValueError, match=words): from_module(module, CLASSES, **dict(front_end="magnitude", feature_layers=["conv1", "conv2"], add_channel=True) | more)
    if not isinstance(module, Mode): assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks for m in module.modules())

def test_a_layer_that_is_not_called_is_named():
    net = Net(); net.spare = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="'spare'.*not called"): from_module(net, CLASSES, "magnitude", ["conv1", "spare"], add_channel=True)

def test_batchnorm_in_train_mode_is_no_change_of_weights():
    net = Net(); net.conv1 = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6))
    model = from_module(net.train(), CLASSES, "magnitude", ["conv1"], add_channel=True); steps = net.conv1[1].num_batches_tracked.clone()
    check_explainable(model, noise()); assert net.conv1[1].num_batches_tracked == steps == 0

# ---- devices

@pytest.mark.parametrize("front_end", ["magnitude", "mel"])
def test_example_and_spectrogram_go_to_where_the_module_is(front_end: str, monkeypatch: pytest.MonkeyPatch):
    "On tensors without content, which know the device they would be on and refuse to be mixed; a gradient without content is not looked at"
    monkeypatch.setattr("lmac_piq.own_classifier._gradient", lambda *given: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"): net = Net()
        model = from_module(net, CLASSES, front_end, ["conv1", "conv2"], add_channel=True, transform=LogMel(40) if front_end == "mel" else None, example=noise())
        assert model.network.channels == [6, 8] and {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}
        with pytest.raises(RuntimeError, match="devices"): net(torch.zeros(1, 1, 513, 87))             # they do refuse

def test_a_module_with_nothing_in_it_is_on_the_processor():
    assert _device_of(nn.Flatten()) == torch.device("cpu") and _device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta") == _device_of(Net().to("meta"))

# ---- folders

@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_saved_and_loaded_around_a_fresh_module(front_end: str, tmp_path: Path):
    model, x = made(front_end), some(front_end); model.save_pretrained(tmp_path)
    with seeded(9): fresh = {"wave": WaveNet, "image": lambda: Net(inputs=3)}.get(front_end, Net)()
    again = load_module(tmp_path, fresh, deepcopy(model.transform))
    assert torch.equal(again(x), model(x)) and again.fingerprint() == model.fingerprint() and again.network.channels == model.network.channels
    next(model.network.module.parameters()).data.add_(1); assert model.fingerprint() != again.fingerprint()

def test_folders_of_something_else_are_refused(tmp_path: Path):
    made("magnitude").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved from module Net"): load_module(tmp_path, WaveNet())
    with pytest.raises(FileNotFoundError): load_module(tmp_path/"none", Net())
    (tmp_path/"config.json").write_text((tmp_path/"config.json").read_text().replace("SoundModule", "LMAC"))
    with pytest.raises(ValueError, match="LMAC"): load_module(tmp_path, Net())
    (tmp_path/"config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"): load_module(tmp_path, Net())

def test_an_explainer_does_not_explain_another_module(tmp_path: Path):
    one, other = made("wave"), made("wave"); next(other.network.module.parameters()).data.add_(1)
    LMAC(LightDecoder(one.network.channels, width=8)).save_pretrained(tmp_path, one)
    assert explain(one, LMAC.from_pretrained(tmp_path, one), noise()).mask.shape[0] == 2
    with pytest.raises(ValueError, match="train an L-MAC"): explain(other, LMAC.from_pretrained(tmp_path), noise())
