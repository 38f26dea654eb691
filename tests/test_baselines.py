"Methods from outside against literal re-implementations; the same in every batch, chunk and failure."
import subprocess, sys
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from captum import attr
from torch import nn

from lmac_piq.baselines import (LIME, ActivationNorm, GradCAM, GradientSHAP, GuidedBackprop, GuidedGradCAM, IntegratedGradients, Saliency,
                                SmoothGrad, clip_seed, deepest_layer, few_pass_methods, many_pass_methods, max_normalise, segment_grid, stretch)
from lmac_piq.classifier import AudioClassifier, Explainable, Output, Representation
from lmac_piq.explanation import Explainer, explain, keep
from lmac_piq.scenes import Scenes
from lmac_piq.training import seeded

def methods(protocol="corrected"): return few_pass_methods(protocol) + many_pass_methods(protocol, steps=5, samples=12)
every = pytest.mark.parametrize("method", methods() + [m for m in methods("published") if hasattr(m, "protocol")],
                                ids=lambda m: f"{m.name} {getattr(m, 'protocol', '')}".strip())

@pytest.fixture(scope="module")
def waves(): return Scenes(16, seconds=0.5, seed=5).waves()

@pytest.fixture(scope="module")
def model(waves):
    "A CNN14 with random weights, but BatchNorm statistics of real input: without them its logits hardly depend on the input"
    with seeded(0): model = AudioClassifier(["a", "b", "c"], width=0.0625)
    with seeded(0), torch.no_grad(): [model.train()(waves) for _ in range(20)]         # dropout draws, so it is seeded
    return model.eval()

class Pictures(Explainable):
    "A small classifier of images; reads its mean where nothing is shown"
    baseline, classes = "mean", ["a", "b"]
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()), nn.Linear(6, 2)
    def represent(self, x, lengths=None, phase=True): return Representation(x)
    def classify(self, values):
        shallow = self.one(values); deep = self.two(shallow)
        return Output(self.head(deep.mean((2, 3))), [shallow, deep])
    def render(self, rep, values=None): return rep.values if values is None else values

@pytest.fixture(scope="module")
def pictures():
    with seeded(1): return Pictures().eval(), torch.rand(3, 3, 12, 10)

def close(a, b, tolerance=1e-5): return (a - b).abs().max() <= tolerance * b.abs().max()

def state(model):
    "All that a method could leave behind"
    hooks = {n: tuple(len(getattr(m, k)) for k in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")) for n, m in model.named_modules()}
    return hooks, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()], sorted(vars(model))

# ---- what all have in common

@every
def test_a_mask_in_the_unit_interval_with_finite_float32_scores(method, model, waves):
    e = explain(model, method, waves[:3])
    assert isinstance(method, Explainer) and e.mask.shape == e.rep.values.shape == e.attribution.scores.shape
    assert e.mask.dtype == e.attribution.scores.dtype == torch.float32 and not e.attribution.scores.requires_grad
    assert e.mask.min() >= 0 and e.mask.max() <= 1 and e.attribution.scores.isfinite().all()

@every
def test_alone_as_in_a_batch_of_sixteen(method, model, waves):
    together = explain(model, method, waves).attribution.scores
    for i in (0, 7, 15): assert close(explain(model, method, waves[i]).attribution.scores[0], together[i], 1e-5), i
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert close(explain(model, method, waves[order]).attribution.scores, together[order], 1e-5)

@every
def test_nothing_stays_behind_after_success_or_failure(method, model, waves):
    model = deepcopy(model).requires_grad_(True).train()           # a copy: a pass in training mode moves BatchNorm's statistics
    next(model.parameters()).requires_grad_(False); model.network.blocks[2].eval()
    before, rng = state(model), torch.get_rng_state()
    explain(model, method, waves[:2])
    assert state(model) == before and torch.equal(torch.get_rng_state(), rng)
    rep, out = model.represent(waves[:2]), model(waves[:2])
    head, calls = model.network.head.forward, []
    def breaks(x):
        calls.append(1)
        raise RuntimeError("no head")
    model.network.head.forward = breaks
    try:
        if method.name != "activation norm":                 # makes no pass, so cannot fail in one
            with pytest.raises(RuntimeError, match="no head"): method.attribute(model, rep, Output(out, []), out.argmax(1))
            assert calls
    finally: del model.network.head.forward
    assert state(model) == before
    model.requires_grad_(True).eval()

@every
def test_a_silent_clip_and_two_classes(method, waves):
    with seeded(2): model = AudioClassifier(["yes", "no"], width=0.0625)
    e = explain(model, method, torch.cat([torch.zeros(1, 8000), waves[:1]]))
    assert e.mask.isfinite().all() and e.mask.min() >= 0 and e.mask.max() <= 1

class Deaf(AudioClassifier):
    "Its logits do not depend on the input, its maps do"
    def classify(self, values):
        out = super().classify(values)
        return Output(0 * out.logits, out.features)

@every
def test_no_gradient_is_a_mask_of_zeros(method, waves):
    with seeded(3): model = Deaf(["yes", "no"], width=0.0625)
    e = explain(model, method, waves[:2])
    if method.name != "activation norm": assert e.mask.abs().max() == 0; return
    with seeded(3): hears = explain(AudioClassifier(["yes", "no"], width=0.0625), method, waves[:2])          # it asks for no gradient: the same maps, the same mask
    assert torch.equal(e.mask, hears.mask) and torch.equal(e.attribution.scores, hears.attribution.scores) and (e.mask.amax((1, 2)) == 1).all() and not torch.equal(*e.attribution.scores)

@every
def test_images(method, pictures):
    model, x = pictures
    e = explain(model, method, x)
    assert e.mask.shape == (3, 12, 10) and e.attribution.scores.isfinite().all()
    assert close(explain(model, method, x[1:2]).attribution.scores[0], e.attribution.scores[1], 1e-5)

@every
def test_bfloat16_passes_rank_alike(method, model, waves):
    full = explain(model, method, waves[:4])
    with torch.autocast("cpu", torch.bfloat16): half = explain(model, method, waves[:4], full.target if method.class_conditional else None)
    assert half.attribution.scores.dtype == torch.float32
    assert F.cosine_similarity(half.attribution.scores.flatten(1), full.attribution.scores.flatten(1)).mean() > 0.9

def test_names_and_protocols():
    assert [m.name for m in few_pass_methods()] == ["saliency", "guided backprop", "GradCAM", "Guided GradCAM", "GradientSHAP", "activation norm"]
    assert [m.name for m in many_pass_methods()] == ["SmoothGrad", "integrated gradients", "LIME"]
    assert {m.protocol for m in methods("published") if hasattr(m, "protocol")} == {"published"}
    for bad in (lambda: few_pass_methods("Published"), lambda: SmoothGrad(steps=0), lambda: LIME(samples=0), lambda: IntegratedGradients(chunk=0)):
        with pytest.raises(ValueError): bad()

def test_max_normalise_is_defined_for_zeros():
    x = torch.rand(3, 5, 7); x[1] = 0
    assert torch.equal(max_normalise(x)[1], x[1]) and torch.allclose(max_normalise(x)[0], x[0] / x[0].max())

def test_clip_seed_reads_images_too():
    x = torch.rand(2, 3, 12, 10)
    assert clip_seed(x[0]) == clip_seed(x[0].clone()) != clip_seed(x[1]) and clip_seed(x[0], 1) != clip_seed(x[0])

# ---- literal re-implementations

def test_saliency_is_the_absolute_gradient(model, waves):
    e = explain(model, Saliency(), waves[:4])
    v = e.rep.values.clone().requires_grad_()
    sum(model.classify(v).logits[i, c] for i, c in enumerate(e.target)).backward()
    model.zero_grad()
    assert close(e.attribution.scores, v.grad.abs(), 1e-5)

def test_guided_backprop_by_hand_on_a_toy(pictures):
    model, x = pictures
    (c1, _), (c2, _), h = model.one, model.two, model.head
    c = explain(model, Saliency(), x).target
    z1 = c1(x); z2 = c2(z1.relu())
    g = h.weight[c][:, :, None, None].expand_as(z2) / z2[0, 0].numel()                     # d logit / d relu(z2)
    g = g.clamp_min(0) * (z2 > 0)
    g = F.conv_transpose2d(g, c2.weight, stride=2, padding=1, output_padding=(1, 1))
    g = g.clamp_min(0) * (z1 > 0)
    g = F.conv_transpose2d(g, c1.weight, padding=1)
    assert close(explain(model, GuidedBackprop(), x).attribution.extras["signed"], g.detach(), 1e-5)

def test_guided_backprop_needs_relu_modules(pictures):
    class Functional(Pictures):
        def __init__(self):
            super().__init__()
            self.one, self.two = self.one[0], self.two[0]
        def classify(self, values): return Output(self.head(self.two(self.one(values).relu()).relu().mean((2, 3))), [])
    with pytest.raises(ValueError, match="no nn.ReLU modules"): explain(Functional(), GuidedBackprop(), pictures[1])

@pytest.mark.parametrize("kind", ["sound", "image"])
@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_gradcam_by_hooks(kind, protocol, model, waves, pictures):
    model, x, layer = (model, waves[:4], model.network.blocks[-1]) if kind == "sound" else (*pictures, pictures[0].two)
    e, kept = explain(model, GradCAM(protocol), x), {}
    hooks = [layer.register_forward_hook(lambda m, i, y: kept.update(a=y)), layer.register_full_backward_hook(lambda m, i, g: kept.update(g=g[0]))]
    model.classify(e.rep.values.clone().requires_grad_()).logits.gather(1, e.target[:, None]).sum().backward()
    for h in hooks: h.remove()
    model.zero_grad()
    cam, size = torch.zeros(len(x), 1, *kept["a"].shape[2:]), e.rep.values.shape[-2:]
    for b in range(len(x)):
        for k in range(kept["a"].shape[1]): cam[b, 0] += kept["g"][b, k].mean() * kept["a"][b, k].detach()
    if protocol == "published": expected = F.interpolate(cam.abs(), size, mode="nearest")[:, 0]
    elif kind == "image": expected = F.interpolate(cam.relu(), size, mode="bilinear", align_corners=False)[:, 0]
    else: expected = stretch(cam.relu(), model, size)
    assert close(e.attribution.scores, expected, 1e-5)

def test_guided_gradcam_published_is_captums(pictures):
    model, x = pictures
    e = explain(model, GuidedGradCAM("published"), x)
    class Plain(nn.Module):
        def __init__(self): super().__init__(); self.model = model
        def forward(self, v): return self.model.classify(v).logits
    with pytest.warns(UserWarning): expected = attr.GuidedGradCam(Plain(), model.two).attribute(x.clone().requires_grad_(), e.target)
    assert close(e.attribution.extras["signed"], expected.detach(), 1e-5)

class Bends(Explainable):
    "Three classes, three bands: logits that bend smoothly with the level of a band"
    baseline, classes = "zero", ["low", "middle", "high"]
    def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.tensor(2.0))
    def represent(self, x, lengths=None, phase=True): return Representation(x)
    def classify(self, values):
        level = values.unflatten(1, (3, -1)).mean((2, 3))
        return Output(torch.tanh(self.scale * level) + level * level.roll(1, 1), [values[:, None]])

def missed(model, x, steps):
    "How far IG's sum is from the change of the target's logit between silence and input, relative to the largest change"
    e = explain(model, IntegratedGradients(steps), x)
    with torch.no_grad(): change = e.out.logits - model.classify(torch.zeros_like(e.rep.values)).logits
    return (e.attribution.extras["signed"].sum((1, 2)) - change.gather(1, e.target[:, None])[:, 0]).abs() / change.abs().amax(1)

def test_integrated_gradients_are_complete_where_logits_are_smooth():
    x = torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 1, 2, 3]).view(4, 1, 1)
    assert missed(Bends(), x, 50).max() < 1e-4

def test_integrated_gradients_are_complete_on_cnn14(model, waves):
    "Random weights bend sharply near silence, so many steps are needed"
    assert missed(model, waves[:3], 300).max() < 0.1

def test_integrated_gradients_of_images_start_from_the_models_baseline(pictures):
    model, x = pictures
    e = explain(model, IntegratedGradients(300), x)
    nothing = keep(model, x, torch.zeros(3, 12, 10))
    difference = (e.out.logits - model.classify(nothing).logits).gather(1, e.target[:, None])[:, 0].detach()
    assert torch.allclose(e.attribution.extras["signed"].sum((1, 2, 3)), difference, rtol=0.02, atol=1e-4)

def test_smoothgrad_by_hand(model, waves):
    e = explain(model, SmoothGrad(steps=3, chunk=32), waves[:2])
    expected = torch.zeros_like(e.rep.values)
    for i, v in enumerate(e.rep.values):
        g = torch.Generator().manual_seed(clip_seed(v, 0))
        for _ in range(3):
            point = (v + 0.15 * (v.max() - v.min()) * torch.randn(v.shape, generator=g)).clamp_min(0)[None].requires_grad_()
            expected[i] += torch.autograd.grad(model.classify(point).logits[0, e.target[i]], point)[0][0].abs() / 3
    assert close(e.attribution.scores, expected, 1e-5)

def test_published_smoothgrad_is_one_pass_however_many_steps(model, waves):
    a, b = (explain(model, SmoothGrad(steps=s, protocol="published"), waves[:2]) for s in (1, 50))
    assert torch.equal(a.attribution.scores, b.attribution.scores) and close(a.mask, a.attribution.scores, 1e-6)

def test_gradient_shap_of_silence_is_integrated_gradients_by_chance(model, waves):
    a = explain(model, GradientSHAP(samples=200, noise=0.0), waves[:1]).attribution.extras["signed"]
    b = explain(model, IntegratedGradients(100), waves[:1]).attribution.extras["signed"]
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.95

@pytest.mark.parametrize("kind", [SmoothGrad, GradientSHAP, LIME])
def test_seeds(kind, model, waves):
    a, b, c = (explain(model, kind(8, seed=s), waves[:1]).attribution.scores for s in (0, 0, 1))
    assert torch.equal(a, b) and not close(a, c, 1e-2)

def test_activation_norm_published(model, waves):
    e = explain(model, ActivationNorm(protocol="published"), waves[:12].reshape(2, -1))
    norm = F.interpolate(e.out.features[-1].square().sum(1, keepdim=True).sqrt(), e.mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    for m, s in zip(e.mask, norm): assert (m.bool() == (s >= s.flatten().quantile(0.9))).float().mean() > 0.999

def test_lime_finds_the_one_segment_that_counts(model, waves):
    grid = segment_grid((513, 44), (4, 4), 16000)
    class One(AudioClassifier):
        def classify(self, values): return Output(torch.stack([(values * (grid == 6)).mean((1, 2)) * 50, torch.zeros(len(values))], 1), [])
    with seeded(0): one = One(["a", "b"], width=0.0625)
    e = explain(one, LIME(samples=60, segments=(4, 4)), waves[:2], target=0)
    assert ((e.mask > 0.99) == (grid == 6)).all() and (e.mask[:, grid != 6] < 0.3).all()
    assert (explain(one, LIME(samples=60, segments=(4, 4)), waves[:2], target=1).attribution.scores[:, grid == 6] < 0).all()

@pytest.mark.parametrize("size, segments", [((513, 87), (8, 8)), ((513, 431), (1, 1)), ((513, 34), (20, 50)), ((5, 3), (8, 8))])
def test_segments_cover_every_bin_and_none_is_empty(size, segments):
    for rate in (None, 16000) if size[0] > 8 else (None,):
        grid = segment_grid(size, segments, rate)
        assert grid.shape == size and torch.equal(grid.unique(), torch.arange(min(segments[0], size[0]) * min(segments[1], size[1])))

def test_deepest_layer_and_its_refusal(model, waves, pictures):
    assert deepest_layer(model, model.represent(waves[:1]).values) is model.network.blocks[-1] and deepest_layer(pictures[0], pictures[1]) is pictures[0].two
    class Bare(Pictures):
        def classify(self, values):
            deep = self.two(self.one(values)) + 1
            return Output(self.head(deep.mean((2, 3))), [deep])
    with pytest.raises(ValueError, match="nowhere to hook"): explain(Bare(), GradCAM(), pictures[1])

def test_a_cam_lies_on_the_mel_axis(model):
    halves = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    lower = lambda mode: int((stretch(halves, model, (513, 4), mode)[0, :, 0] > 0.5).sum()) * 15.625
    assert abs(lower("mel") - 1774) < 60 and abs(lower("nearest") - 4000) < 30          # 1774 Hz is the middle of 80 mel bands

def test_relus_are_modules_that_are_used_once(model, waves):
    used = []
    hooks = [m.register_forward_hook(lambda m, *_: used.append(m)) for m in model.modules() if isinstance(m, nn.ReLU)]
    model(waves[:1])
    for h in hooks: h.remove()
    assert len(used) == len(set(used)) == 12

# ---- memory

MEMORY = """
import resource, torch
from lmac_piq.baselines import IntegratedGradients, SmoothGrad
from lmac_piq.classifier import AudioClassifier
from lmac_piq.explanation import explain
model, x = AudioClassifier(["a", "b"], width=0.0625), torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
top = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024     # MiB
for kind in (IntegratedGradients, SmoothGrad):
    explain(model, kind(steps=16, chunk=8), x); few = top()
    explain(model, kind(steps=100, chunk=8), x); print(top() - few)
"""

def test_memory_does_not_grow_with_steps():
    "Two clips at 100 steps in one go would take some hundred MiB more than at 16"
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert all(float(grown) < 60 for grown in done.stdout.split()), done.stdout
