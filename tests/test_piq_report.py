"""What the PIQ report shows is what was counted: codes in their order, overlaps of known masks, differences with the right sign, sentences that say no more than an interval."""
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from matplotlib import colormaps
from torch import nn

from lmac_piq import piq_report
from lmac_piq.classifier import ImageClassifier
from lmac_piq.codebook import Codebook, code_usage, row_classes
from lmac_piq.data import Batch
from lmac_piq.explanation import Attribution
from lmac_piq.piq import PIQ, PIQTask
from lmac_piq.piq_report import (ablation_table, at_equal_mix, codebook_gallery, concept_figure, concept_table, overlap_tables, overlap_verdicts, rival_panel, usage_figure, usage_table,
                                 usage_verdict)
from lmac_piq.report import save_table, table_html
from lmac_piq.style import LOOKS, NULLS, look
from lmac_piq.stats import bootstrap_ci, holm, paired_difference, paired_test
from lmac_piq.training import seeded

class Flat(nn.Module):
    "An interpreter whose drawing is its code, a number per position"
    dim = 1
    def encode(self, features): return F.adaptive_avg_pool2d(features[-1].mean(1, keepdim=True), 4)
    def decode(self, z, size): return F.interpolate(z, size=size)

class Fixed:
    "The same mask for every image"
    class_conditional, fixed_frames = True, None
    def __init__(self, mask, name="fixed"): self.mask, self.name = mask, name
    def attribute(self, model, rep, out, target): return Attribution(self.mask.expand(len(rep.values), *self.mask.shape))

@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    with seeded(0): return ImageClassifier(["a", "b", "c"]).eval()

@pytest.fixture(scope="module")
def piq() -> PIQ: return PIQ(Flat(), Codebook(12, 1, 3, seed=4), PIQTask(output="mask"))

def images(n=6, labels=None) -> Batch:
    g = torch.Generator().manual_seed(1)
    mask = torch.zeros(n, 28, 28); mask[:, 7:21, 7:21] = 1
    return Batch(torch.rand(n, 1, 28, 28, generator=g), label=torch.tensor(labels if labels else [i % 3 for i in range(n)]), annotation=mask)

# ---- codes

def test_codes_stand_in_order_of_use_and_draw_themselves(model, piq):
    hits = torch.tensor([1, 3, 0, 4, 0, 0, 0, 0, 5, 5, 5, 5])
    axes = codebook_gallery(piq, model, hits, images().x, per_class=4).axes
    assert [ax.get_title() for ax in axes[:4]] == ["50 %", "38 %", "12 %", "dead"] and [ax.get_title() for ax in axes[4:8]] == ["dead"] * 4
    assert [ax.get_ylabel().splitlines() for ax in axes[::4]] == [["a", "3 of 4 used", "8 choices"], ["b", "0 of 4 used", "0 choices"], ["c", "4 of 4 used", "20 choices"]]
    for ax, row in zip(axes, [3, 1, 0]):
        pixels = ax.images[0].get_array()
        assert pixels.shape == (21, 21, 3)                                                       # three of four cells of 7 pixels
        assert np.allclose(pixels, colormaps["viridis"](float(piq.codebook.rows[row].detach().sigmoid()))[:3], atol=1e-6)
    assert [len(ax.lines) for ax in axes] == [int(ax.get_title() == "dead") for ax in axes]     # crossed if and only if dead

@pytest.mark.parametrize("strides, size", [(1, 7), (2, 14), (9, 28), (0.01, 1)])
def test_a_patch_is_so_many_strides_wide(model, piq, strides, size):
    fig = codebook_gallery(piq, model, torch.ones(12), images().x, ["b"], 2, strides=strides)
    assert len(fig.axes) == 2 and fig.axes[0].images[0].get_array().shape == (size, size, 3)

def test_shared_rows_get_a_line_and_few_codes_leave_places_empty(model):
    shared = PIQ(Flat(), Codebook(8, 1, 3, shared=2), PIQTask(output="mask"))
    axes = codebook_gallery(shared, model, torch.ones(8), images().x, per_class=3).axes
    assert axes[9].get_ylabel().startswith("shared\n2 of 2") and [ax.get_visible() for ax in axes] == [True, True, False] * 4

def test_a_gallery_of_many_classes_shows_ten(piq):
    with seeded(0): many = ImageClassifier([f"c{k}" for k in range(25)]).eval()
    wide = PIQ(Flat(), Codebook(50, 1, 25), PIQTask(output="mask"))
    labels = [ax.get_ylabel().split("\n")[0] for ax in codebook_gallery(wide, many, torch.ones(50), images().x, per_class=2).axes[::2]]
    assert len(labels) == 10 and labels[0] == "c0" and labels[-1] == "c24"

def test_drawing_changes_no_mode(model, piq):
    piq.train(); codebook_gallery(piq, model, torch.ones(12), images().x)
    assert piq.training and piq.codebook.training and piq.codebook.rows.requires_grad and not model.training

def test_unknown_classes_are_refused(model, piq):
    with pytest.raises(ValueError, match="zebra"): codebook_gallery(piq, model, torch.ones(12), images().x, ["zebra"])

# ---- use

def usage(counts: dict[str, list[int]], classes: int = 3, **columns) -> pd.DataFrame:
    "Usage of methods whose rows were chosen so often"
    tables = [code_usage(torch.tensor(n), row_classes(len(n), classes), list("abcdef")[:classes]).reset_index().assign(method=m, seed=0) for m, n in counts.items()]
    return pd.concat(tables, ignore_index=True).assign(**columns)

def test_usage_is_the_mean_over_classes():
    t = usage_table(usage({"PIQ": [5, 5, 5, 0, 0, 0]})).iloc[0]
    assert t["codes"] == 6 and t["codes per class"] == 2 and np.isclose(t["in use (%)"], 50) and t["lowest class (%)"] == 0 and t["classes under 80 %"] == 2 and np.isclose(t["perplexity"], 1.5)

@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=6, max_size=24))
def test_the_mean_lies_between_the_lowest_class_and_all(counts):
    t = usage_table(usage({"PIQ": counts})).iloc[0]
    assert 0 <= t["lowest class (%)"] <= t["in use (%)"] <= 100 and (t["classes under 80 %"] == 0) == (usage({"PIQ": counts})["fraction"] >= 0.8).all()

def test_seeds_are_averaged_and_shared_rows_are_left_out():
    table = pd.concat([usage({"PIQ": [1] * 6}), usage({"PIQ": [1, 0, 1, 1, 1, 1]}, seed=1), pd.DataFrame({"class": ["shared"], "rows": [4], "used": [0], "fraction": [0.0], "hits": [0], "method": "PIQ", "seed": 0})])
    t = usage_table(table).iloc[0]
    assert t["seeds"] == 2 and t["codes"] == 6 and np.isclose(t["in use (%)"], 100 * 11 / 12)
    assert "2 seeds" in usage_verdict(table)[0] and "1 of them fall under 80 %: a (75 %, not for want of items: 0.75 times" in usage_verdict(table)[0]

def test_full_use_and_a_single_pool_have_their_own_sentence():
    assert usage_verdict(usage({"PIQ": [2] * 6}))[0].endswith("None falls under 80 %.")
    assert usage_verdict(usage({"PIQ, no partition": [1, 1, 0, 1]}, 1)) == ["PIQ, no partition: 75.0 % of its 4 codes are in use."]

def test_dots_are_classes(model):
    table = usage({"PIQ": [1, 1, 1, 0, 2, 2], "PIQ, no partition": [1, 0, 1, 1, 1, 1]})
    left, right = usage_figure(table).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["PIQ", "PIQ, no partition"]
    assert np.allclose(left.lines[0].get_xdata(), [100, 50, 100]) and np.allclose(left.lines[1].get_xdata(), 250 / 3) and np.allclose(right.lines[0].get_xdata(), [2, 1, 2])
    assert [t.get_text() for t in left.texts] == ["b", "a"]                                      # the lowest class of each, as it is under 80 %

# ---- concepts

def ious(**levels: float) -> pd.DataFrame:
    rng = np.random.default_rng(3); base = rng.uniform(0.3, 0.6, 40)
    return pd.concat([pd.DataFrame(dict(method=m.replace("_", " "), item=range(40), seed=0, metric="object IoU", value=base + v + 0.05 * rng.normal(size=40))) for m, v in levels.items()])

def test_concepts_are_compared_image_by_image():
    rows = ious(ours=0.2, full_frame=0.0, centre_box=0.19)
    t = concept_table(rows, "ours").set_index("method"); wide = rows.pivot(index="item", columns="method", values="value")
    assert list(t.index) == ["ours", "centre box", "full frame"] and np.isnan(t["ours minus it"]["ours"])
    for m in t.index[1:]:
        expected = paired_difference(wide["ours"], wide[m])
        assert np.allclose(t.loc[m, ["ours minus it", "ours minus it low", "ours minus it high"]].astype(float), [expected[k] for k in ("mean", "low", "high")], atol=2e-3)
    assert np.allclose(t.loc["ours", ["object IoU", "object IoU low", "object IoU high"]].astype(float), bootstrap_ci(wide["ours"]))
    assert np.allclose(t["p (Holm)"][1:], holm([paired_test(wide["ours"], wide[m]) for m in t.index[1:]]))
    said = t.attrs["caption"]
    assert said[1].startswith("ours minus centre box") and said[2].startswith("ours minus full frame") and said[2].endswith("; higher.") and "40 pairs" in said[2]

def test_worse_and_undecided_concepts_are_said_to_be():
    said = concept_table(ious(ours=0.0, better=0.2, level=0.0), "ours").attrs["caption"][1:]
    assert [s.rsplit("; ", 1)[1] for s in said] == ["lower.", "undecided."]

def test_an_interval_that_the_adjusted_test_does_not_carry_is_marked():
    assert piq_report._verdict(dict(reference="a", method="b", difference=0.1, low=0.01, high=0.2, n=9, p_holm=0.3)) == "a minus b: +0.100 [+0.010, +0.200], 9 pairs, adjusted p=0.3; higher, but not after adjustment."

def test_two_data_sets_are_no_table():
    rows = ious(ours=0.2, full_frame=0.0)
    with pytest.raises(ValueError, match="several values of dataset"): concept_table(pd.concat([rows.assign(dataset=d) for d in "ab"]), "ours")
    with pytest.raises(ValueError, match="no method"): concept_table(rows)

def test_titles_hold_the_overlap_of_known_masks(model):
    batch = images(); half = batch.annotation[0].clone(); half[:, 14:] = 0
    fig = concept_figure(model, {"half": Fixed(half), "none": Fixed(torch.zeros(28, 28))}, lambda x, target: batch.annotation[:1].expand(len(x), 28, 28), batch, 3)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[1:4] == ["annotation model\nIoU 1.00", "half\nIoU 0.50", "none\nIoU 0.00"] and titles[5:8] == ["IoU 1.00", "IoU 0.50", "IoU 0.00"] and len(titles) == 12
    assert len(concept_figure(model, {"half": Fixed(half)}, None, batch, 1).axes) == 2

def test_an_annotation_model_keeps_its_mode(model):
    class Net(nn.Module):
        def forward(self, x, target): assert not self.training; return x[:, 0]
    net = Net().train(); concept_figure(model, {"all": Fixed(torch.ones(28, 28))}, net, images(), 1)
    assert net.training

@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 25))
def test_items_are_picked_class_by_class(labels, n):
    part = piq_report._pick(Batch(torch.arange(len(labels)).float(), label=torch.tensor(labels)), n)
    counts = torch.stack([(part.label == c).sum() for c in set(labels)]); there = torch.tensor([labels.count(c) for c in set(labels)])
    assert len(part) == min(n, len(labels)) and part.label.tolist() == [labels[int(i)] for i in part.x] and (part.label.diff() >= 0).all() and len(set(part.x.tolist())) == len(part)
    assert all(a >= counts.max() - 1 or a == b for a, b in zip(counts, there))                  # no class gets a second before every class has a first

# ---- ablation

def metric_rows(**levels: float) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(dict(method=m, item=range(20), seed=0, form=f, metric=k, value=v + np.linspace(-1, 1, 20) + (f == "topk"))) for m, v in levels.items() for k in ("FF", "AI", "level_db") for f in ("soft", "topk")], ignore_index=True)

def test_the_ablation_joins_metrics_and_codes():
    rows = metric_rows(**{"PIQ": 2.0, "PIQ, no codebook": 1.0, "PIQ: wide": 3.0})
    t = ablation_table(rows, usage({"PIQ": [1] * 6, "PIQ: wide": [1, 0] * 6})).set_index("method")
    assert list(t.index) == ["PIQ", "PIQ, no codebook", "PIQ: wide"] and np.allclose(t["AI (%)"], [2, 1, 3]) and np.allclose(t["FF"], [2, 1, 3]) and not any("level" in c for c in t)
    assert np.isnan(t["in use (%)"]["PIQ, no codebook"]) and t["in use (%)"]["PIQ: wide"] == 50 and t["codes"]["PIQ: wide"] == 12 and np.allclose(ablation_table(rows, usage({"PIQ": [1] * 6}), "topk")["FF"], [3, 2, 4])
    assert (t["FF low"] < t["FF"]).all() and (t["FF"] < t["FF high"]).all()

def test_the_ablation_counts_what_is_undefined_and_takes_its_own_seeds():
    rows = metric_rows(PIQ=2.0); rows.loc[(rows["metric"] == "FF") & (rows["item"] < 3), "value"] = np.nan
    both = pd.concat([usage({"PIQ": [1] * 6}), usage({"PIQ": [1, 0] * 3}, seed=1)])
    t = ablation_table(rows, both)
    assert t["in use (%)"][0] == 100 and any("3 items of PIQ on FF" in s for s in t.attrs["caption"])
    with pytest.raises(ValueError, match="same_values"): ablation_table(rows, both, "same_values")

# ---- overlap

def overlap(unit="share", ratios=(0.2, 0.5), heard=50, **margins: float) -> pd.DataFrame:
    "Rows of pairs whose margins are known"
    rng, frames = np.random.default_rng(5), []
    for ratio in ratios:
        for method, margin in margins.items():
            noise = 0.05 * rng.normal(size=60); source = np.where(np.arange(60) < heard, np.arange(60) % 2, -1)
            own = np.where(source >= 0, 0.5 + margin * (1 + (ratio != ratios[-1])) + noise, np.nan)
            frames.append(pd.DataFrame(dict(item=range(60), seed=0, ratio=ratio, ratio_unit=unit, source=source, heard=source >= 0, method=method.replace("_", " "), metric="correlation", own=own, other=np.where(source >= 0, 0.5, np.nan), margin=own - 0.5)))
    return pd.concat(frames, ignore_index=True)

def test_the_headline_is_at_equal_mix():
    rows = overlap(PIQ=0.2, mixture_itself=0.0); headline, every = overlap_tables(rows)
    t, at = headline.set_index("method"), rows[rows["ratio"] == 0.5].pivot(index="item", columns="method", values="margin")
    assert list(t.index) == ["PIQ", "mixture itself"] and (t["pairs"] == 50).all() and (t["unheard"] == 10).all() and (t["undefined"] == 0).all()
    assert np.isclose(t["margin"]["PIQ"], at["PIQ"].mean()) and np.isclose(t["PIQ minus it"]["mixture itself"], (at["PIQ"] - at["mixture itself"]).mean())
    assert len(every) == 4 and sorted(every["share of the first"].unique()) == [0.2, 0.5] and every["margin"].max() > 0.35

def test_equal_levels_are_zero_decibels():
    rows = overlap("dB", (6.0, 0.0), PIQ=0.2, other=0.1)
    assert set(at_equal_mix(rows)["ratio"]) == {0.0} and "first over second (dB)" in overlap_tables(rows).every
    with pytest.raises(ValueError, match="run the test at 0 too"): at_equal_mix(rows[rows["ratio"] == 6])

@pytest.mark.parametrize("margin, end", [(0.2, "follows the predicted source."), (-0.2, "follows the other source."), (0.0, "undecided: the interval holds zero.")])
def test_the_first_sentence_is_on_the_reference(margin, end):
    said = overlap_verdicts(overlap(PIQ=margin, b=margin, c=margin - 0.2, d=margin + 0.2))
    assert said[0].endswith(end) and "10 more predicted as neither" in said[0] and [s.rsplit("; ")[-1] for s in said[1:]] == ["undecided.", "higher.", "lower."]

def test_what_the_rows_do_not_hold_is_refused():
    for kw, why in ((dict(reference="L2I"), "no method 'L2I'"), (dict(metric="PSNR"), "no rows of 'PSNR'")):
        with pytest.raises(ValueError, match=why): overlap_verdicts(overlap(PIQ=0.1, b=0.0), **kw)

# ---- panels and pages

def test_a_mask_of_ones_keeps_the_probability(model):
    batch = images(); p = model(batch.x).softmax(1)
    axes = rival_panel(model, {"all": Fixed(torch.ones(28, 28)), "none": Fixed(torch.zeros(28, 28))}, batch, 3).axes
    c = int(p[0].argmax())
    assert axes[1].get_title().startswith(f"all\nkept {p[0, c]:.2f}") and axes[2].get_title().endswith(f"removed {p[0, c]:.2f}") and axes[4].get_title().startswith("kept")
    assert np.allclose(axes[1].images[0].get_array()[..., 0], batch.x[0, 0]) and not axes[2].images[0].get_array().any()

def test_tables_are_pages(tmp_path):
    tables = {"usage": usage_table(usage({"PIQ": [1] * 6})), "concept": concept_table(ious(ours=0.2, full_frame=0.0), "ours"), "ablation": ablation_table(metric_rows(PIQ=2.0, b=1.0), usage({"PIQ": [1] * 6})),
              "overlap": overlap_tables(overlap(PIQ=0.2, b=0.0)).headline, "every": overlap_tables(overlap(PIQ=0.2, b=0.0)).every}
    for name, table in tables.items():
        page = save_table(table, tmp_path, name).read_text()
        assert "nan" not in page.lower() and len(pd.read_csv(tmp_path / f"{name}.csv")) == len(table) and "</table>" in table_html(table)
        assert table.attrs["caption"] and (name == "usage" or "<small>[" in page)

def test_every_variant_has_a_look_of_its_own():
    named = [m for m in LOOKS if m.startswith("PIQ")]
    assert len(named) == 10 and len({(look(m).colour, look(m).marker) for m in LOOKS}) == len(LOOKS) and look("PIQ").colour not in {look("GradCAM").colour, look("L-MAC").colour}
    assert look("PIQ: gradient").colour == look("PIQ").colour and {"class mean", "mixture itself", "centre box", "mean mask", "full frame"} < set(NULLS)
