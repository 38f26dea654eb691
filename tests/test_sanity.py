"""Sanity checks: what is re-initialised and what is not, similarities against SciPy and scikit-image, and ROAR's equal removal."""
from types import SimpleNamespace
import numpy as np
import pytest, torch
from scipy.stats import spearmanr
from torch import nn

from lmac_piq.baselines import Everything, LoudestBins, RandomBins, Saliency
from lmac_piq.classifier import AudioClassifier, Output, Representation
from lmac_piq.data import Batch
from lmac_piq.decoder import LightDecoder
from lmac_piq.explanation import Attribution, explain
from lmac_piq.lmac import LMAC, model_fingerprint
from lmac_piq.metrics import topk_mask
from lmac_piq.report import randomisation_figure
from lmac_piq.sanity import (Removals, against_random, cascade, cascade_steps, randomisation, randomise, ranks, roar, roar_arm, roar_masks, spearman,
                             spectrograms, ssim, transplanted)
from lmac_piq.stats import over_seeds
from lmac_piq.training import seeded

FRAMES = 44

@pytest.fixture(scope="module")
def model() -> AudioClassifier:
    with seeded(0): model = AudioClassifier(["a", "b", "c"], width=0.03)
    for module in model.modules():                                     # statistics and scales as of a trained network, not those of a new one
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.fill_(0.1); module.running_var.fill_(0.5); module.weight.data.fill_(1.2); module.bias.data.fill_(0.05)
    return model.eval()

@pytest.fixture(scope="module")
def lmac(model: AudioClassifier) -> LMAC:
    with seeded(1): lmac = LMAC(LightDecoder(model.network.channels, width=8))
    lmac.fingerprint = model.fingerprint()
    return lmac.eval()

@pytest.fixture(scope="module")
def waves() -> torch.Tensor:
    return torch.randn(7, 8000, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 1, 8000)

class Clips:
    def __init__(self, x: torch.Tensor): self.x, self.label = x, torch.arange(len(x)) % 3
    def __len__(self) -> int: return len(self.x)
    def __getitem__(self, i) -> Batch: i = torch.as_tensor(i); return Batch(self.x[i], label=self.label[i], item=100 + i)

class Blind:
    "Looks at the input only."
    name, class_conditional, fixed_frames = "blind", True, None
    def attribute(self, model, rep, out, target): return Attribution(rep.values / rep.values.amax((1, 2), keepdim=True))

class Asked:
    "Remembers the targets it was asked for."
    fixed_frames = None
    def __init__(self, class_conditional: bool): self.class_conditional, self.name, self.asked = class_conditional, f"asked {class_conditional}", []
    def attribute(self, model, rep, out, target): self.asked.append((model, target, out.logits.argmax(1))); return Attribution(rep.values)

def changed(a: nn.Module, b: nn.Module) -> set[str]:
    other = b.state_dict()
    return {name for name, value in a.state_dict().items() if not torch.equal(value, other[name])}

# ---- parameters

@pytest.mark.parametrize("protocol", ["corrected", "published"])
@pytest.mark.parametrize("layer", ["network.head", "network.blocks.3", "network.bn0"])
def test_only_the_named_layer_changes(model, layer: str, protocol: str):
    before, modes = model.fingerprint(), [m.training for m in model.modules()]
    twin = randomise(model, [layer], protocol=protocol)
    names = {name for name in model.state_dict() if name.startswith(layer + ".") and "num_batches" not in name}
    expected = names if protocol == "corrected" else {n for n in names if model.state_dict()[n].ndim >= 2 or n == "network.head.bias"}
    assert changed(model, twin) == expected
    assert model.fingerprint() == before and [m.training for m in model.modules()] == modes == [m.training for m in twin.modules()]
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}

def test_statistics_are_those_of_the_clips(model, waves):
    values = model.represent(waves).values
    modes, layers = [m.training for m in model.modules()], cascade(model)
    twin = randomise(model, layers, values=values)
    assert [m.training for m in twin.modules()] == modes and all(p.requires_grad for p in twin.parameters())
    seen = []
    hook = twin.network.blocks[2].bn1.register_forward_hook(lambda m, args, out: seen.append((args[0], m.momentum)))
    with torch.no_grad(): twin.classify(values)
    hook.remove()
    x, momentum = seen[0]; norm = twin.network.blocks[2].bn1
    assert momentum == model.network.blocks[2].bn1.momentum
    # the statistics are unbiased, normalisation in training mode is biased: equal to the share 1 / n upstream
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), rtol=0.02, atol=1e-3) and torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=0.02)
    untouched = randomise(model, ["network.head"], values=values)
    assert changed(model, untouched) == {"network.head.weight", "network.head.bias"}

def test_reproducible_by_seed_and_nested(model):
    steps = cascade_steps(model); names = list(steps)
    state = torch.random.get_rng_state()
    a, b, c = (randomise(model, steps[names[2]], seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not changed(a, b) and changed(a, c)
    deeper = randomise(model, steps[names[4]])
    assert all(n.startswith((names[3] + ".", names[4] + ".")) for n in changed(a, deeper))

def test_published_values(model):
    twin = randomise(model, cascade_steps(model, "published")["all"], protocol="published")
    weight = twin.network.blocks[1].conv2.weight; limit = (6 / (9 * (weight.shape[0] + weight.shape[1]))) ** 0.5
    assert 0.9 * limit < weight.abs().max() <= limit and (twin.network.head.bias == 0.01).all()
    assert (twin.network.blocks[1].bn1.running_mean == 0.1).all() and (twin.network.blocks[1].bn1.weight == 1.2).all()

def test_refusals(model):
    for bad in (lambda: randomise(model, ["nothing"]), lambda: randomise(model, [], protocol="other"), lambda: cascade_steps(model, "other")):
        with pytest.raises(ValueError, match="choose|has"): bad()
    class Scale(nn.Module):
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="reset_parameters"): randomise(nn.Sequential(nn.Linear(2, 2), Scale()), ["1"])

def test_a_remembered_fingerprint_is_not_copied(model, lmac):
    model_fingerprint(model)
    twin = randomise(model, ["network.head"])
    assert model_fingerprint(twin) == twin.fingerprint() != model_fingerprint(model)

# ---- similarities

@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3); a = torch.rand(4, 33, 41, generator=g)
    b = 0.7 * a + 0.3 * torch.rand(a.shape, generator=g)
    b[1] = (b[1] > 0.5).float(); a[2] = (a[2] * 4).round(); b[3] = -a[3]
    return a, b

def test_ssim_is_scikit_images(pairs):
    metrics = pytest.importorskip("skimage.metrics")
    for x, y in (pairs, pairs[::-1]):
        want = [metrics.structural_similarity(n.double().numpy(), o.double().numpy(), data_range=float(n.max() - n.min())) for n, o in zip(x, y)]
        assert np.allclose(ssim(x, y), want, atol=1e-10)

def test_spearman_is_scipys(pairs):
    want = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(*pairs)]
    assert np.allclose(spearman(*pairs), want, atol=1e-12) and abs(want[3] + 1) < 1e-12
    assert np.allclose(spearman(pairs[0], pairs[0]), 1) and np.allclose(ssim(pairs[0], pairs[0]), 1)

def test_ranks_with_ties_signs_and_zeros():
    from scipy.stats import rankdata
    x = np.random.default_rng(0).integers(-5, 5, 1000).astype(np.float32); x[::7] *= 1e-30; x[::11] = -0.0
    assert np.array_equal(ranks(x), rankdata(x))

def test_constant_masks_are_undefined():
    flat, ramp = torch.zeros(1, 8, 9), torch.arange(72.0).view(1, 8, 9)
    for a, b in ((flat, ramp), (ramp, flat), (flat, flat)): assert ssim(a, b).isnan().all() and spearman(a, b).isnan().all()
    with pytest.raises(ValueError, match="window"): ssim(ramp[:, :5], ramp[:, :5])

# ---- randomisation

def test_an_explainer_that_ignores_the_model_stays_at_one(model, lmac, waves):
    rows = randomisation(model, [Blind(), LoudestBins(lmac), lmac, Everything()], waves, calibration=4)
    assert set(rows.method) == {"blind", "loudest bins", "L-MAC", "all ones"} and len(rows) == 8 * 4 * 7 * 2
    fixed = rows[rows.method.isin(["blind", "loudest bins"])]
    assert np.allclose(fixed.value, 1) and (fixed.variant == "").all()
    assert rows[rows.method == "all ones"].value.isna().all()            # constant: undefined and counted
    assert (rows[rows.method == "L-MAC"].variant == "kept").all() and rows[(rows.method == "L-MAC") & (rows.metric == "spearman")].value.min() < 0.99

def test_batches_and_bins_do_not_matter(model, lmac, waves):
    key = ["layer", "method", "item", "metric"]
    many, single = (randomisation(model, [lmac, Saliency()], Clips(waves), layers=["network.blocks.4"], batch_size=b).set_index(key).value.sort_index() for b in (16, 1))
    assert np.allclose(many, single, atol=1e-3, equal_nan=True) and set(many.index.get_level_values("item")) == set(range(100, 107))
    some = randomisation(model, [lmac], Clips(waves), layers=["network.blocks.4"], bins=5000).set_index(key).value
    assert (some - many.loc[some.index]).abs().max() < 0.05

def test_targets(model, waves):
    any_class, own_class = Asked(True), Asked(False)
    randomisation(model, [any_class, own_class], waves, layers=["network.head", "network.blocks.0"])
    original = any_class.asked[0][2]
    assert len(any_class.asked) == 3 and all(torch.equal(target, original) for _, target, _ in any_class.asked)
    assert all(torch.equal(target, predicted) for _, target, predicted in own_class.asked)
    assert any(not torch.equal(target, original) for _, target, _ in own_class.asked)

def test_retrained_and_yardsticks(model, lmac, waves):
    asked = []
    def refit(twin, layer):
        asked.append(layer)
        if layer == "network.blocks.5": return None
        with seeded(5): new = LMAC(LightDecoder(model.network.channels, width=8)).eval()
        new.fingerprint = twin.fingerprint()                              # accepted as it is: it was trained for this classifier
        return new
    rows = randomisation(model, [lmac], waves[:2], layers=["network.head", "network.blocks.5"], refit=refit, others=[lmac])
    assert asked == ["none", "network.head", "network.blocks.5"]
    assert set(zip(rows.depth, rows.variant)) == {(0, "other seed"), (0, "retrained"), (1, "kept"), (1, "retrained"), (2, "kept")}
    assert np.allclose(rows[rows.variant == "other seed"].value, 1)

def test_several_yardsticks_are_averaged_as_seeds(model, lmac, waves):
    def other(seed):
        with seeded(seed): new = LMAC(LightDecoder(model.network.channels, width=8)).eval()
        new.fingerprint = model.fingerprint()
        return new
    others = [other(s) for s in (2, 3, 4)]
    rows = randomisation(model, [lmac, Blind()], waves[:3], seed=7, layers=["network.head"], others=[others[0], Blind(), *others[1:]], batch_size=2)
    yard = rows[rows.variant == "other seed"]
    assert yard.groupby("method").seed.unique().map(sorted).to_dict() == {"L-MAC": [7, 8, 9], "blind": [7]} and rows[rows.depth > 0].seed.eq(7).all()
    alone = [randomisation(model, [lmac], waves[:3], seed=7, layers=[], others=[o], batch_size=2).set_index(["metric", "item"]).value for o in others]
    mean = over_seeds(rows, ["metric", "variant", "layer"]).query("variant == 'other seed' and method == 'L-MAC'").set_index(["metric", "item"]).value
    assert len(mean) == 6 and np.allclose(mean, (sum(alone) / 3)[mean.index])
    assert len(randomisation_figure(rows, n=50).axes) == 2

def test_refused_without_transplanting(model, lmac, waves):
    twin = randomise(model, ["network.head"])
    with pytest.raises(ValueError, match="trained on classifier"): explain(twin, lmac, waves[:1])
    explain(twin, transplanted(lmac, twin, model), waves[:1])
    assert lmac.fingerprint == model.fingerprint()

def test_everything_is_left_as_it_was(model, lmac, waves):
    model.train()
    try:
        randomisation(model, [lmac, Saliency()], waves[:2], layers=["network.blocks.5"])
        assert all(m.training for m in model.modules()) and all(p.requires_grad and p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    finally: model.eval()

# ---- ROAR

@pytest.fixture(scope="module")
def stored(model, waves): return spectrograms(model, Clips(waves))

def test_every_arm_removes_the_same_number(model, lmac, stored):
    fractions, at = (0.0, 0.2, 0.55, 1.0), np.arange(7)
    for method in (lmac, Saliency(), Everything(), RandomBins(Everything()), LoudestBins(Everything())):
        removed = roar_masks(model, method, stored, fractions, batch_size=3)
        for f in fractions: assert (removed.mask(f, at).sum((1, 2)) == round(f * 513 * FRAMES)).all(), (method.name, f)
        assert (removed.mask(0.2, at) <= removed.mask(0.55, at)).all()

def test_the_highest_ranked_go_first(model, stored):
    at = np.arange(7); removed = roar_masks(model, LoudestBins(Everything()), stored, (0.3,))
    values = stored[at].values
    for v, m in zip(values, removed.mask(0.3, at).bool()): assert v[m].min() >= v[~m].max()
    assert torch.equal((values * (1 - removed.mask(0.3, at))).sum((1, 2)) > 0, torch.ones(7, dtype=torch.bool))
    top = topk_mask(Blind().attribute(model, stored[at], None, None).mask, round(0.3 * 513 * FRAMES))
    assert (roar_masks(model, Blind(), stored, (0.3,)).mask(0.3, at) == top).float().mean() > 0.999      # ties may fall otherwise

def test_batch_size_does_not_matter_to_masks(model, stored):
    for method in (RandomBins(Everything()), Everything()):
        a, b = (roar_masks(model, method, stored, (0.2,), batch_size=n).bits[0.2] for n in (1, 16))
        assert np.array_equal(a, b), method.name

def test_padding_is_not_counted(model, waves):
    stored = spectrograms(model, Clips(waves[:, :5000])); removed = roar_masks(model, LoudestBins(Everything()), stored, (0.5,))
    assert stored.values.shape[2] == 32 and (stored.valid == 5000 // 186 + 1).all()
    mask = removed.mask(0.5, np.arange(7))
    assert (mask.sum((1, 2)) == round(0.5 * 513 * 27)).all() and mask[:, :, 27:].sum() == 0

def test_packed_bits_round_trip():
    flags = np.random.default_rng(0).random((5, 513, 43)) < 0.3             # 513 x 43 is not a multiple of 8
    removed = Removals({0.3: np.packbits(flags.reshape(5, -1), axis=1)}, (513, 43))
    assert np.array_equal(removed.mask(0.3, np.array([4, 0])).numpy(), flags[[4, 0]]) and removed.bits[0.3].nbytes == 5 * -(-513 * 43 // 8)

def test_every_arm_trains_on_the_same_clips_from_the_same_start(model, lmac, stored):
    calls = []
    def fit_classifier(start, epoch, seed):
        batches = list(epoch(torch.Generator().manual_seed(seed)))
        calls.append(SimpleNamespace(start=start.fingerprint(), own=start is not model, items=[b.item.tolist() for b in batches], zeros=[(b.x == 0).float().mean() for b in batches]))
        return start.eval()
    before = model.fingerprint()
    rows = roar(model, [lmac], stored, stored, (0.25, 0.5), fit_classifier, seeds=(0, 1), batch_size=3)
    assert len(calls) == 2 + 2 * 2 * 2 and {c.start for c in calls} == {before} and all(c.own for c in calls)
    assert len({str(c.items) for c in calls}) == 2 and model.fingerprint() == before            # one order per seed
    assert set(rows.method) == {"L-MAC", "random bins", "nothing removed"}
    per_cell = rows.groupby(["method", "fraction", "seed", "metric"]).size()
    assert (per_cell == 7).all() and len(per_cell) == 2 * (2 + 2 * 2 * 2)
    assert all(abs(z - f) < 0.01 for c, f in zip(calls, [0, 0, .25, .25, .5, .5] + [.25, .25, .5, .5]) for z in c.zeros)   # removed = silence
    wide = rows.pivot(index=["method", "fraction", "seed", "item"], columns="metric", values="value")
    assert (wide["correct"] == wide["correct before retraining"]).all()                         # this "retraining" did nothing
    table = against_random(rows)
    assert table.n.eq(7).all() and table.fraction.tolist() == [0.25, 0.5] and (table["mean"] == table.accuracy - table.random).all()

def test_refuses_what_cannot_be_ranked(model, stored):
    class Broken(Blind):
        def attribute(self, model, rep, out, target): return Attribution(torch.full_like(rep.values, float("nan")))
    with pytest.raises(ValueError, match="finite"): roar_masks(model, Broken(), stored, (0.2,))
    with pytest.raises(ValueError, match="shares"): roar_masks(model, Blind(), stored, (20,))
    with pytest.raises(ValueError, match="label"): spectrograms(model, torch.zeros(2, 8000))
