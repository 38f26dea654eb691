"""Overlap: pairs, mixing laws, agreements against NumPy and scikit-image, and margins whose value is known."""
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure
from skimage.metrics import peak_signal_noise_ratio

from lmac_piq.audio import snr_db
from lmac_piq.classifier import AudioClassifier, Explainable, ImageClassifier, Output, Representation
from lmac_piq.data import Batch, ImageSet
from lmac_piq.explanation import Attribution, explain
from lmac_piq.overlap import (AGREEMENTS, LAWS, QUANTITIES, ClassMean, Mixture, Pairs, class_means, correlation, heard_table, image_pairs, image_stems, ink_iou, make_pairs, mix_images,
                              mix_sounds, output_of, overlap_differences, overlap_figure, overlap_panel, overlap_rows, overlap_table, pair_items, psnr, sound_stems)
from lmac_piq.training import seeded

SIZE, CLASSES = 32, ["up", "down", "left", "right"]

# ---- a world where everything is known: a bright quarter per class, and a classifier that names the brightest quarter

def quarters(n: int, seed: int = 0) -> Batch:
    "Images whose class is the quarter that holds a pattern; no two classes share a pixel"
    g, label = torch.Generator().manual_seed(seed), torch.arange(n) % 4
    x, half = torch.zeros(n, 1, SIZE, SIZE), SIZE//2
    for image, c in zip(x, label.tolist()): image[0, half*(c//2):half*(c//2 + 1), half*(c % 2):half*(c % 2 + 1)] = 0.4 + 0.6*torch.rand(half, half, generator=g)
    return Batch(x, label=label)

class Brightest(Explainable):
    "Names the brightest quarter, and has no weights to learn"
    def __init__(self, n: int = 4):
        super().__init__()
        self.classes, self.baseline, self.none, self.passes = CLASSES[:n], "zero", torch.nn.Parameter(torch.zeros(1)), 0
    def represent(self, x, lengths=None, phase=True): return Representation(x)
    def render(self, rep, values=None): return rep.values if values is None else values
    def classify(self, values):
        self.passes += 1
        return Output(torch.nn.functional.adaptive_avg_pool2d(values, 2).flatten(1)[:, :len(self.classes)]*50, [values])

class Quarter:
    "Keeps the quarter of the explained class: the other source is gone, the own one whole"
    name, class_conditional, fixed_frames = "quarter", True, None
    def attribute(self, model, rep, out, target):
        mask, half = torch.zeros(len(target), SIZE, SIZE), SIZE//2
        for m, c in zip(mask, target.tolist()): m[half*(c//2):half*(c//2 + 1), half*(c % 2):half*(c % 2 + 1)] = 1
        return Attribution(mask)

class Shows:
    "Shows what a function makes of the values"
    class_conditional, fixed_frames = True, None
    def __init__(self, function, name="shows"): self.function, self.name = function, name
    def attribute(self, model, rep, out, target): return Attribution(torch.ones_like(rep.values[:, 0] if rep.values.ndim == 4 else rep.values), values=self.function(rep.values))

@pytest.fixture(scope="module")
def pairs() -> Pairs:
    items = quarters(40)
    return make_pairs(items.x, items.label, 24, seed=3)

@pytest.fixture(scope="module")
def rows(pairs) -> pd.DataFrame: return overlap_rows(Brightest(), [Quarter(), Mixture()], pairs, [0.4, 0.5, 0.8])

# ---- pairs

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(1, 60), st.integers(0, 99))
def test_pairs_are_of_two_classes_and_balanced(classes: int, n: int, seed: int):
    labels = torch.randperm(classes*4, generator=torch.Generator().manual_seed(seed)) % classes
    at = pair_items(labels, n, torch.Generator().manual_seed(seed))
    assert at.shape == (n, 2) and (labels[at[:, 0]] != labels[at[:, 1]]).all()
    for side in labels[at].T:
        count = side.bincount(minlength=classes)
        assert count.max() - count.min() <= 1
    assert torch.equal(at, pair_items(labels, n, torch.Generator().manual_seed(seed)))
    used = at.flatten().bincount(minlength=len(labels))
    for c in range(classes): assert used[labels == c].max() - used[labels == c].min() <= 1 + (n % classes > 0)

def test_every_ordered_pair_of_classes_comes_up_before_any_again():
    labels = torch.arange(20) % 5
    at = labels[pair_items(labels, 20, torch.Generator().manual_seed(1))]
    assert len({tuple(p) for p in at.tolist()}) == 20

def test_pairs_need_two_classes_and_whole_labels():
    for bad in (torch.zeros(4, dtype=torch.long), torch.zeros(4), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="two classes|whole numbers"): pair_items(bad, 2, torch.Generator())
    with pytest.raises(ValueError, match="at least one pair"): pair_items(torch.arange(4), 0, torch.Generator())

def test_pairs_from_tensors_batches_and_image_sets_are_the_same(pairs):
    items = quarters(40)
    images = ImageSet("quarters", "test", (items.x*255).round().byte().numpy(), items.label, CLASSES)
    class Set:
        def __len__(self): return 40
        def __getitem__(self, i): return Batch(items.x[i])
    again, from_set = make_pairs(Set(), items.label, 24, seed=3), image_pairs(images, 24, seed=3)
    assert torch.equal(again.x0, pairs.x0) and torch.equal(from_set.item1, pairs.item1) and (from_set.x1 - pairs.x1).abs().max() < 1/255
    assert torch.equal(pairs.x0, items.x[pairs.item0]) and torch.equal(pairs.label1, items.label[pairs.item1])
    assert torch.equal(pairs.swapped.swapped.x0, pairs.x0) and torch.equal(pairs.swapped.label0, pairs.label1) and len(pairs[[0, 5]]) == 2
    with pytest.raises(ValueError, match="39 labels for 40"): make_pairs(items.x, items.label[:39], 4)

def test_pairs_of_one_class_or_two_sizes_are_refused(pairs):
    rest = pairs.label0, pairs.label1, pairs.item0, pairs.item1
    with pytest.raises(ValueError, match="of one size"): Pairs(pairs.x0, pairs.x1[..., 1:], *rest)
    with pytest.raises(ValueError, match="pair 0 is of one class"): Pairs(pairs.x0, pairs.x1, rest[0], rest[0], *rest[2:])

# ---- mixing

shares = st.floats(0, 1, width=32)

@settings(max_examples=60, deadline=None)
@given(shares, st.sampled_from(list(LAWS)), st.integers(0, 999))
def test_images_mix_within_bounds_and_mirror(s: float, law: str, seed: int):
    x0, x1 = torch.rand(2, 3, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    x = mix_images(x0, x1, s, law)
    a, b = image_stems(x0, x1, s, law)
    assert x.min() >= 0 and x.max() <= 1 and torch.equal(x, (a + b).clamp(0, 1)) and (a <= x0).all() and (b <= x1).all()
    assert torch.allclose(x, mix_images(x1, x0, 1 - s, law), atol=1e-6)
    assert torch.equal(mix_images(x0, x1, 1.0, law), x0) and torch.equal(mix_images(x0, x1, 0.0, law), x1)
    assert torch.allclose(x, mix_images(x0, x1, torch.full((3,), s), law))
    if law == "bright": assert torch.equal(a, x0) or torch.equal(b, x1)             # the stronger is as bright as alone

def test_both_published_mixtures_are_among_the_laws():
    x0, x1 = torch.rand(2, 3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mix_images(x0, x1), (x0 + x1).clamp(0, 1))
    assert torch.allclose(mix_images(x0, x1, 0.2, "convex"), (0.2*x0 + 0.8*x1).clamp(0, 1))
    assert torch.allclose(image_stems(x0, x1, 0.8)[1], 0.4*x1)

@pytest.mark.parametrize("bad", [dict(share=-0.1), dict(share=1.01), dict(share=float("nan")), dict(share=torch.tensor([0.5, 2.0])), dict(law="sum")])
def test_shares_and_laws_outside_are_refused(bad: dict):
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match="share is|unknown law"): mix_images(x, x, **bad)

@settings(max_examples=40, deadline=None)
@given(st.floats(-40, 40), st.floats(0.01, 3), st.integers(0, 999))
def test_sounds_mix_at_their_ratio_and_mirror(db: float, gain: float, seed: int):
    x0, x1 = torch.randn(2, 2, 400, generator=torch.Generator().manual_seed(seed)).mul(torch.tensor([1.0, gain])[:, None, None])
    s0, s1 = sound_stems(x0, x1, db)
    assert torch.allclose(snr_db(s0, s1), torch.full((2,), float(db)), atol=1e-2)
    assert torch.allclose(mix_sounds(x0, x1, db), s0 + s1) and torch.allclose(mix_sounds(x1, x0, -db), s0 + s1, atol=1e-5)
    louder = torch.maximum(s0.norm(dim=1), s1.norm(dim=1))
    assert torch.allclose(louder, torch.minimum(x0.norm(dim=1), x1.norm(dim=1)), rtol=1e-4)

def test_sounds_may_have_a_ratio_each_and_silence_has_none():
    x0, x1 = torch.randn(2, 3, 400, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(snr_db(*sound_stems(x0, x1, torch.tensor([0., 5., -5.]))), torch.tensor([0., 5., -5.]), atol=1e-3)
    with pytest.raises(ValueError, match="silent"): mix_sounds(x0, 0*x1)
    with pytest.raises(ValueError, match="finite"): mix_sounds(x0, x1, float("inf"))

# ---- agreements

def test_agreements_are_those_of_numpy_and_scikit_image():
    a, b = torch.rand(2, 6, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    assert np.allclose(correlation(a, b), [np.corrcoef(p.flatten(), q.flatten())[0, 1] for p, q in zip(a.numpy(), b.numpy())])
    assert np.allclose(psnr(a, b), [peak_signal_noise_ratio(q, p, data_range=1) for p, q in zip(a.numpy(), b.numpy())])
    ink = lambda v: v.numpy().mean(1) > 0.5
    assert np.allclose(ink_iou(a, b, 0.5), [(p & q).sum()/(p | q).sum() for p, q in zip(ink(a), ink(b))])

def test_agreements_at_their_ends():
    a = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.2
    nan = a.clone(); nan[1, 0, 0, 0] = float("nan")
    assert psnr(a, a).tolist() == [100, 100] and torch.allclose(correlation(a, 1 - a), -torch.ones(2).double()) and ink_iou(a, a).tolist() == [1, 1]
    assert correlation(a, torch.ones_like(a)).isnan().all() and correlation(torch.full_like(a, 0.1), a).isnan().all() and ink_iou(a, 0*a).isnan().all() and ink_iou(0*a, a).tolist() == [0, 0]
    for agreement in (correlation, psnr, ink_iou): assert agreement(nan, a).isnan().tolist() == [False, True]
    assert all(m.better == 1 and m.low < m.high for m in AGREEMENTS.values())

@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 5), st.floats(-2, 2), st.integers(0, 99))
def test_correlation_forgives_gain_and_offset(gain: float, offset: float, seed: int):
    a, b = torch.rand(2, 2, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(correlation(gain*a + offset, b), correlation(a, b), atol=1e-9) and (correlation(a, b).abs() <= 1).all()

# ---- margins that are known

def test_perfect_separation_has_the_largest_margin(rows):
    apart = rows[(rows.method == "quarter") & rows.heard]
    cell = apart.set_index("metric")
    assert np.allclose(cell.loc[["correlation", "IoU"], "own"], 1) and (cell.loc["PSNR", "own"] == 100).all() and (cell.loc["IoU", "other"] == 0).all()
    assert (cell.loc["correlation", "margin"] > 1).all() and (apart.margin > 0).all()              # the other quarter is dark where the own is bright

def test_the_mixture_itself_belongs_to_both(rows):
    equal = rows[(rows.method == "mixture itself") & (rows.ratio == 0.5)].set_index("metric")
    assert (equal.loc["correlation", "margin"].abs() < 0.15).all() and np.allclose(equal.loc["IoU", "margin"], 0) and np.allclose(equal.loc["IoU", "own"], 0.5)
    told = rows[(rows.metric == "correlation") & rows.heard].pivot(index=["item", "ratio"], columns="method", values="margin")
    assert (told["quarter"] > told["mixture itself"]).all()

def test_swapping_the_sources_mirrors_everything(pairs, rows):
    mirrored = overlap_rows(Brightest(), [Quarter(), Mixture()], pairs.swapped, [0.6, 0.5, 0.2])
    for column in ("own", "other", "margin", "p"): assert np.allclose(mirrored[column], rows[column], atol=1e-4, equal_nan=True)
    assert np.allclose(mirrored["agree0"], rows["agree1"], atol=1e-4) and (mirrored["source"] == 1 - rows["source"]).all()
    assert (mirrored["first"] == rows["second"]).all() and (mirrored["item1"] == rows["item0"]).all() and (mirrored["predicted"] == rows["predicted"]).all()

def test_the_heard_source_follows_the_share(rows):
    heard = heard_table(rows)
    assert heard.columns.tolist() == ["ratio", "first", "second", "neither", "n"] and (heard.n == 24).all()
    assert heard.set_index("ratio").loc[0.8].tolist() == [1, 0, 0, 24] and heard.set_index("ratio").loc[0.4, "second"] > 0.5 and (heard.neither == 0).all()

def test_what_was_not_heard_stays_and_is_counted(pairs):
    class Third(Brightest):
        "Names a class that is in no pair, on every third mixture"
        def classify(self, values):
            out = super().classify(values)
            out.logits[::3] = -100*torch.nn.functional.adaptive_avg_pool2d(values, 2).flatten(1)[::3].sign()
            return out
    table = overlap_rows(Third(), [Quarter(), Mixture()], pairs, [0.5], batch_size=100)
    lost = table[~table.heard]
    assert len(table) == 24*2*3 and lost["item"].nunique() == 8 and (lost["source"] == -1).all() and lost[list(QUANTITIES)].isna().all(axis=None) and (lost.agree0 != lost.agree1).any()
    assert table.loc[table.heard, "margin"].notna().all() and (lost["predicted"] != lost["first"]).all() and (lost["predicted"] != lost["second"]).all()
    means = overlap_table(table)
    assert (means.unheard == 8).all() and (means.undefined == 8).all() and (means.n == 16).all() and heard_table(table).neither.item() == 8/24
    d = overlap_differences(table, "mixture itself", test=None)
    assert (d.n == 16).all() and (d.undefined == 8).all()

def test_a_source_without_gain_is_undefined_and_not_dropped(pairs):
    table = overlap_rows(Brightest(), [Mixture()], pairs, [1.0])
    cell = table.set_index("metric")
    assert (table.source == 0).all() and np.allclose(cell.loc["correlation", "own"], 1) and cell.loc[["correlation", "IoU"], "margin"].isna().all() and cell.loc["PSNR", "margin"].notna().all()
    assert overlap_table(table).query("metric == 'IoU' and quantity == 'margin'")[["n", "undefined", "unheard"]].values.tolist() == [[0, 24, 0]]

def test_an_output_that_is_not_finite_or_constant_is_undefined(pairs):
    table = overlap_rows(Brightest(), [Shows(lambda v: v*float("nan"), "nan"), Shows(lambda v: 0*v, "black")], pairs, [0.5])
    cell = table.set_index(["method", "metric"])
    assert cell.loc["nan", "margin"].isna().all() and cell.loc[("black", "correlation"), "margin"].isna().all() and (cell.loc[("black", "IoU"), "margin"] == 0).all()

def test_the_classifier_runs_once_per_mixture_and_the_input_comes_back(pairs):
    model = Brightest(); model.train()
    overlap_rows(model, [Quarter(), Mixture(), Shows(lambda v: v)], pairs, [0.5, 0.8], batch_size=10)
    assert model.passes == 2*3 and model.training and model.none.requires_grad
    e = explain(model, Mixture(), pairs.x0)
    assert torch.equal(output_of(e), pairs.x0) and torch.equal(output_of(e.by(Shows(lambda v: 3*v - 1))), (3*pairs.x0 - 1).clamp(0, 1))
    with pytest.raises(ValueError, match="the two must agree"): output_of(e.by(Shows(lambda v: v[..., 1:])))

@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_do_not_matter_and_draws_are_seeded(pairs, rows, batch_size: int):
    again = overlap_rows(Brightest(), [Quarter(), Mixture()], pairs, [0.4, 0.5, 0.8], batch_size=batch_size)
    again = again.merge(rows, on=["item", "ratio", "method", "metric"], suffixes=("", "_all"))
    assert len(again) == len(rows) and np.allclose(again.margin, again.margin_all, equal_nan=True)
    noisy = [overlap_rows(Brightest(), [Shows(torch.rand_like)], pairs, [0.5], seed=s) for s in (0, 0, 1)]
    assert noisy[0].equals(noisy[1]) and not noisy[0].equals(noisy[2])

# ---- the nulls

def test_class_means_are_means(pairs):
    items, model = quarters(40), Brightest()
    means = class_means(model, items.x, items.label, batch_size=7)
    assert torch.allclose(means, torch.stack([items.x[items.label == c].mean(0) for c in range(4)]), atol=1e-6) and torch.allclose(class_means(model, items.x), means)
    null = overlap_rows(model, [ClassMean(means, "mean")], pairs, [0.5]).set_index("metric")
    assert (null.loc["IoU", "margin"] == 1).all() and (null.loc["correlation", "margin"] > 1).all() and (null.loc["PSNR", "own"] < 40).all()
    e = explain(model, ClassMean(means), pairs.x0)
    assert torch.allclose(e.kept_values, torch.minimum(means[e.target], pairs.x0), atol=1e-5) and e.mask.shape == (24, SIZE, SIZE) and ClassMean(means).fixed_frames == SIZE
    with pytest.raises(ValueError, match="'right' among"): class_means(model, items.x[items.label < 3], items.label[items.label < 3])
    with pytest.raises(ValueError, match="as of class_means"): ClassMean(means[0, 0])
    with pytest.raises(ValueError, match="take them with this model"): explain(model, ClassMean(torch.zeros(4, 2, SIZE, SIZE)), pairs.x0)

# ---- tables and figures

def test_the_table_is_the_mean_of_the_rows(rows):
    table = overlap_table(rows, n=200)
    assert table.columns.tolist() == ["method", "ratio", "metric", "quantity", "mean", "low", "high", "n", "undefined", "unheard"] and len(table) == 2*3*3*3
    wide = table.set_index(["method", "ratio", "metric", "quantity"])["mean"]
    direct = rows.groupby(["method", "ratio", "metric"])[list(QUANTITIES)].mean().stack()
    assert np.allclose(wide.loc[direct.index], direct) and (table.low <= table["mean"] + 1e-9).all() and (table["mean"] <= table.high + 1e-9).all()
    d = overlap_differences(rows, "mixture itself", "own", n=200)
    assert set(d.method) == {"quarter"} and (d.query("metric == 'correlation'").difference > 0).all() and d.query("metric == 'correlation'").clear.all()
    with pytest.raises(ValueError, match="choose from own"): overlap_differences(rows, "mixture itself", "value")
    with pytest.raises(ValueError, match="no method"): overlap_differences(rows, "PIQ")

def test_seeds_are_averaged_and_data_sets_kept_apart(rows):
    seeds = pd.concat([rows.assign(seed=s, margin=rows.margin + s) for s in (0, 1)])
    one, two = (overlap_table(r, n=100).query("quantity == 'margin'") for r in (rows, seeds))
    assert np.allclose(two["mean"], one["mean"] + 0.5) and (two.n == one.n).all() and (two.unheard == one.unheard).all()
    sets = pd.concat([rows.assign(dataset=s) for s in "ab"])
    assert len(overlap_table(sets, n=100)) == 2*len(overlap_table(rows, n=100)) and heard_table(sets).n.tolist() == [24]*6
    with pytest.raises(ValueError, match="differ in"): overlap_figure(sets)

def test_figure_and_panel_have_their_parts(pairs, rows):
    figure = overlap_figure(rows, n=100)
    assert isinstance(figure, Figure) and [a.get_title() for a in figure.axes] == ["correlation", "PSNR", "IoU"] and "(dB)" in figure.axes[1].get_ylabel() and len(figure.legends) == 1
    assert all(a.get_xlabel() == "share of the first source" for a in figure.axes)
    panel = overlap_panel(Brightest(), [Quarter(), Mixture()], pairs[:2], 0.8)
    titles = [a.get_title() for a in panel.axes]
    assert len(titles) == 10 and titles[0].startswith(f"first\n{CLASSES[pairs.label0[0]]}, p ") and titles[3].startswith("quarter\n") and titles[4].startswith("mixture itself\n")

@pytest.mark.parametrize("bad, says", [(dict(ratios=[]), "at least one"), (dict(explainers=[]), "at least one"), (dict(ratios=[0.5, 0.5]), "twice"), (dict(ratios=[2.0]), "share is"),
                                       (dict(explainers=[Mixture(), Mixture()]), "several explainers"), (dict(law="loud"), "unknown law"), (dict(model=Brightest(2)), "different sets")])
def test_what_cannot_be_run_is_refused(pairs, bad: dict, says: str):
    with pytest.raises(ValueError, match=says): overlap_rows(**(dict(model=Brightest(), explainers=[Mixture()], pairs=pairs, ratios=[0.5]) | bad))

# ---- real classifiers, and sound

def test_colour_images_of_a_real_classifier():
    with seeded(0): model = ImageClassifier(CLASSES, "resnet", channels=3, size=32, width=0.25).eval()
    x = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    table = overlap_rows(model, [Mixture(), ClassMean(class_means(model, x, torch.arange(12) % 4))], make_pairs(x, torch.arange(12) % 4, 8), [0.5])
    assert len(table) == 8*2*3 and table.loc[table.heard & (table.metric != "IoU"), "margin"].notna().all()

@pytest.fixture(scope="module")
def tones() -> Pairs:
    "Two tones of different pitch and level in noise"
    t = torch.arange(8000)/16000
    x = torch.stack([a*torch.sin(2*np.pi*hz*t) for hz, a in ((300, 0.1), (1000, 0.4), (3000, 0.02))]*4) + 1e-4*torch.randn(12, 8000, generator=torch.Generator().manual_seed(0))
    return make_pairs(x, torch.arange(12) % 3, 6)

@pytest.fixture(scope="module")
def hears() -> AudioClassifier:
    with seeded(0): return AudioClassifier(["low", "mid", "high"], width=0.03).eval()

class First:
    "The mixture without what the second tone brings, told by the largest bins"
    name, class_conditional, fixed_frames = "one tone", True, None
    def __init__(self, values): self.values = values
    def attribute(self, model, rep, out, target): return Attribution(torch.ones_like(rep.values), values=self.values)

def test_sound_margins_know_the_level_of_the_mixture(hears, tones):
    table = overlap_rows(hears, [Mixture()], tones, [-10.0, 0.0, 10.0]).set_index(["metric", "ratio"])
    for db in (-10.0, 0.0, 10.0):
        assert np.allclose(table.loc[("SI-SDR", db), "agree0"], db, atol=0.3) and np.allclose(table.loc[("SI-SDR", db), "agree1"], -db, atol=0.3)
    assert (table.loc[("correlation", 10.0), "agree0"] > table.loc[("correlation", 10.0), "agree1"]).all() and (table.ratio_unit == "dB").all()

def test_a_source_is_represented_at_its_gain_in_the_mixture(hears, tones):
    s0, s1 = sound_stems(tones.x0, tones.x1, 20.0)
    rep = hears.represent(s0 + s1)
    at_gain = hears.stft(rep.gain[:, None]*s1)[0]
    table = overlap_rows(hears, [First(at_gain)], tones, [20.0]).set_index("metric")
    assert np.allclose(table.loc["correlation", "agree1"], 1, atol=1e-4) and (table.loc["correlation", "agree0"] < 0.99).all()
    assert (table.loc["SI-SDR", "agree1"] > table.loc["SI-SDR", "agree0"]).all()

def test_sound_panel_nulls_and_silence(hears, tones):
    means = class_means(hears, torch.cat([tones.x0, tones.x1]), torch.cat([tones.label0, tones.label1]))
    figure = overlap_panel(hears, [ClassMean(means), Mixture()], tones[:1], 0.0)
    assert len(figure.axes) == 5 and figure.axes[0].get_ylabel() == "frequency (kHz)" and figure.axes[1].get_xlabel() == "time (s)"
    silent = overlap_rows(hears, [Shows(lambda v: 0*v, "silence")], tones, [0.0])
    assert silent[["agree0", "agree1"]].isna().all(axis=None) and len(silent) == 12
    rows = overlap_rows(hears, [ClassMean(means), Mixture()], tones, [0.0, 6.0])
    assert overlap_figure(rows, n=100).axes[0].get_xlabel().endswith("(dB)")
