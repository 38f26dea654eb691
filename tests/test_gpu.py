"""On a GPU, where torch sees one: what a processor says, within stated tolerances; batches that are made there; trainings that pause there and go on. Convolutions in full float32: TF32, torch's
default, has ten bits of mantissa, and bfloat16 seven."""
from dataclasses import replace
import numpy as np, pytest, torch
if not torch.cuda.is_available(): pytest.skip("torch sees no GPU", allow_module_level=True)
from lmac_piq.baselines import GradCAM, IntegratedGradients, LIME, LoudestBins, RandomBins, Saliency, SmoothGrad
from lmac_piq.bench import bench_explainer, bench_model
from lmac_piq.bottleneck import get_piq_plan, make_piq
from lmac_piq.classifier import AudioClassifier, ImageClassifier
from lmac_piq.decoder_choice import evaluate_designs, train_design
from lmac_piq.evidence import evaluate_on, spread
from lmac_piq.experiment import Plan, load_sets, paired_batches, train_classifier, train_l2i, train_lmac, training_batches
from lmac_piq.explanation import Recorded, explain
from lmac_piq.training import FitConfig, seeded
from test_determinism import moved

PLAN = Plan(seconds=1.0, train_items=64, test_items=12, width=0.125, decoder_width=8, components=8, classifier=FitConfig(epochs=3, lr=3e-3), lmac=FitConfig(epochs=2, lr=3e-3), l2i=FitConfig(epochs=1, lr=3e-3))


@pytest.fixture(autouse=True)
def full_float32(monkeypatch): monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def waves(n=3, samples=20000): return 0.1 * torch.randn(n, samples, generator=torch.Generator().manual_seed(0))


METHODS = {"light": lambda m: bench_explainer(m, width=8), "published": lambda m: bench_explainer(m, "published", 64), "Saliency": lambda m: Saliency(), "GradCAM": lambda m: GradCAM(),
           "integrated gradients": lambda m: IntegratedGradients(steps=4), "loudest bins": lambda m: LoudestBins(bench_explainer(m, width=8)),
           "SmoothGrad": lambda m: SmoothGrad(steps=3), "LIME": lambda m: LIME(samples=16), "random bins": lambda m: RandomBins(bench_explainer(m, width=8))}
DRAWN = ("SmoothGrad", "LIME", "random bins")    # seeded by the sum of a clip's values, whose last bits differ: other draws

def moved_to(device, *parts):
    "The parts, and what they refer to, on a device."
    for part in (*parts, *(getattr(p, "reference", None) for p in parts)):
        if isinstance(part, torch.nn.Module): part.to(device)
    return parts

@pytest.mark.parametrize("name", METHODS)
def test_a_method_draws_the_same_masks(name):
    def see(device):
        model = bench_model(0.125, 5); model, made = moved_to(device, model, METHODS[name](model))
        e = explain(model, made, waves())
        assert e.mask.device.type == e.p.device.type == device
        return e.mask.cpu(), e.p_kept.cpu(), e.kept().cpu()
    (mask, p, wave), (mask_gpu, p_gpu, wave_gpu) = see("cpu"), see("cuda")
    far = ((mask - mask_gpu).abs() > 1e-2).float().mean()
    print(f"{name}: {far:.1e} of the bins differ by more than 0.01; p by {(p - p_gpu).abs().max():.1e}; sound by {(wave - wave_gpu).abs().max():.1e}; mean {mask.mean():.6f} and {mask_gpu.mean():.6f}")
    assert (p - p_gpu).abs().max() < 5e-3
    if name not in DRAWN: assert far < 1e-3 and (wave - wave_gpu).abs().flatten().sort().values[:-len(wave.flatten()) // 1000].max() < 1e-3
    if name == "random bins": assert abs(mask.mean() - mask_gpu.mean()) < 1e-5


@pytest.mark.parametrize("bf16", [False, True])
def test_recorded_kernels_say_the_same(bf16):
    "For each shape, after other inputs, and outside the context of precision in which they were recorded; what was returned before stays as it was."
    model = bench_model(0.125, 5); model, lmac = moved_to("cuda", model, bench_explainer(model, width=8)); fast = Recorded(lambda x: explain(model, lmac, x))
    for k, x in enumerate((waves(2), waves(3), 0.3 * waves(2).flip(0), waves(2))):
        x = x.to("cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16): got, plain = fast(x), explain(model, lmac, x)
        if k == 0: first, copy = got, got.mask.clone()
        assert (got.mask - plain.mask).abs().max() < (2e-2 if bf16 else 1e-4) and torch.equal(got.target, plain.target) and torch.allclose(got.kept(), plain.kept(), atol=2e-2 if bf16 else 1e-4)
    assert torch.equal(first.mask, copy) and len(fast.known) == 2


def test_a_table_is_the_same(tmp_path):
    """Every metric and form, with the truth. Of soft masks all but the shares of items that pass a threshold are within 1e-3; in ranked forms the last bit decides which of two bins is kept, so few
    of the values may differ by more."""
    train_classifier(PLAN, tmp_path, "cpu", progress=False)
    def see(device):
        sets, model = load_sets(PLAN), AudioClassifier.from_pretrained(tmp_path); model, lmac = moved_to(device, model, bench_explainer(model, width=8))
        return evaluate_on(replace(PLAN, classifier=replace(PLAN.classifier, bf16=False)), model, [lmac, LoudestBins(lmac)], lmac, sets.test, spread(12, 12), "corrected", 0)
    a, b = see("cpu"), see("cuda"); change = moved(a, b); soft = (a["form"] == "soft") & ~a["metric"].isin(["AI", "Fid-In"])
    print(f"soft: {change[soft].max():.1e} at most; all: {(change > 1e-3).mean():.1e} of the values by more than 1e-3")
    assert change[soft].max() < 1e-3 and (change > 1e-3).mean() < 0.05


def test_batches_are_made_on_the_gpu_as_on_the_processor():
    sets = load_sets(PLAN); there = sets.on(torch.device("cuda"))
    for made in (lambda s: training_batches(s.train, PLAN, s.noise_train, 16, 1.0), lambda s: training_batches(s.train, replace(PLAN, noise_snr_db=None), s.noise_train, 16, 0.5), lambda s: paired_batches(s.train, PLAN)):
        here, far = (list(made(s)(torch.Generator().manual_seed(1))) for s in (sets, there))
        assert len(here) == len(far) == 4
        for a, b in zip(here, far):
            assert b.x.device.type == "cuda" and torch.equal(a.item, b.item) and torch.equal(a.label, b.label) and torch.allclose(a.x, b.x.cpu(), atol=1e-5)
            assert a.clean is None or torch.equal(a.clean, b.clean.cpu())


def test_a_training_pauses_and_goes_on_there(tmp_path):
    "Gradients of interpolation are summed in no fixed order there, so that two trainings end near one another."
    def train(folder, budgets):
        train_classifier(PLAN, folder / "classifier", "cuda", progress=False) if not (folder / "classifier" / "manifest.json").exists() else None
        for budget in budgets: log = train_lmac(PLAN, folder / "classifier", folder / f"lmac-{len(budgets)}", device="cuda", budget=budget, progress=False)
        return log
    whole, cut = train(tmp_path, [float("inf")]), train(tmp_path, [0.0, 0.0, float("inf")])
    assert cut.attrs["finished"] and list(cut["epoch"]) == list(whole["epoch"]) == [0, 1]
    print("kept, whole and cut:", whole["kept"].tolist(), cut["kept"].tolist())
    assert np.allclose(whole["kept"], cut["kept"], rtol=0.1)


def test_designs_and_l2i_are_trained_and_judged_there(tmp_path):
    train_classifier(PLAN, tmp_path / "classifier", "cuda", progress=False); names = ["L-MAC", "published design, dim 64"]
    for name in names: train_design(name, PLAN, tmp_path, device="cuda", progress=False)
    rows = evaluate_designs(PLAN, tmp_path, names, items=12, device="cuda"); there = rows.query("metric == 'p_c'")["value"]
    assert set(rows["method"]) == {*names, "loudest bins", "random bins"} and there.between(0, 1).all() and rows.query("metric == 'iou'")["value"].notna().all()
    assert train_l2i(PLAN, tmp_path / "classifier", tmp_path / "l2i", device="cuda", progress=False).attrs["finished"]


@pytest.mark.parametrize("variant", ["piq", "no-codebook"])
def test_piq_reconstructs_the_same_image(variant):
    plan = get_piq_plan("smoke", "digits")
    def see(device):
        with seeded(0): model = ImageClassifier([str(k) for k in range(10)]).eval()
        x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)); piq = make_piq(plan, model, variant, 0).eval()
        e = explain(model.to(device), piq.to(device), x); return e.attribution.values.cpu()
    a, b = see("cpu"), see("cuda")
    print(f"{variant}: {(a - b).abs().max():.1e}")
    assert (a - b).abs().max() < 1e-3
