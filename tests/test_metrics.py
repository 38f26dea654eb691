"Metrics against Quantus, scikit-learn and literal formulas; masks by their properties; evaluate by its contract."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score

import lmac_piq.metrics as metrics
from lmac_piq.classifier import Explainable, Output, Representation
from lmac_piq.data import Batch
from lmac_piq.explanation import Attribution
from lmac_piq.metrics import (FORMS, METRICS, average_drop, average_drop_published, average_gain, average_increase, average_precision, complexity,
                              energy_iou, evaluate, faithfulness, faithfulness_curve, fidelity_in, insertion_deletion, mask_mean, same_values, si_sdr,
                              si_sdr_improvement, sparseness, summarise, topk_mask)
from lmac_piq.spectral import Spectrogram

seeds = st.integers(0, 10_000)


def random(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- probabilities

def tables(n=1000, classes=7, seed=0):
    "p, o, q [n, C] and a target that is not always the winner."
    g = torch.Generator().manual_seed(seed)
    p, o, q = (3 * torch.randn(3, n, classes, generator=g)).softmax(-1)
    return p, o, q, torch.randint(classes, (n,), generator=g)


def test_probability_metrics_equal_the_formulas_item_by_item():
    p, o, q, c = tables()
    for i in range(len(p)):
        pc, oc, qc, one = p[i, c[i]].item(), o[i, c[i]].item(), q[i, c[i]].item(), slice(i, i + 1)
        assert average_increase(p[one], o[one], c[one]).item() == 100 * (oc > pc)
        assert np.isclose(average_drop(p[one], o[one], c[one]).item(), 100 * max(0, pc - oc) / pc, atol=1e-4)
        assert np.isclose(average_gain(p[one], o[one], c[one]).item(), 100 * max(0, oc - pc) / (1 - pc), atol=1e-3)
        assert np.isclose(faithfulness(p[one], q[one], c[one]).item(), pc - qc, atol=1e-6)
        assert fidelity_in(o[one], c[one]).item() == (np.argmax(o[i].tolist()) == c[i].item())
        e, f = np.exp(p[i].double().numpy()), np.exp(o[i].double().numpy())
        twice, kept = e[c[i]] / e.sum(), f[c[i]] / f.sum()
        assert np.isclose(average_drop_published(p[one], o[one], c[one]).item(), 100 * max(0, twice - kept) / twice, atol=1e-3)


@given(seeds, st.integers(2, 60), st.floats(0.01, 50))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_for_flat_and_for_saturated_classifiers(seed, classes, sharpness):
    g = torch.Generator().manual_seed(seed)
    p, o, q = (sharpness * torch.randn(3, 50, classes, generator=g)).softmax(-1)
    c = torch.randint(classes, (50,), generator=g)
    for name, values in metrics.probability_metrics(p, o, q, c).items():
        assert values.isfinite().all() and (values >= METRICS[name].low - 1e-4).all() and (values <= METRICS[name].high + 1e-4).all(), name
    assert (average_drop_published(p, o, c) <= 63.2121).all()
    same = metrics.probability_metrics(p, p, q, c)
    assert all((same[m] == 0).all() for m in ("AI", "AD", "AD_published", "AG"))


def test_certain_and_impossible_classes_are_defined_and_nan_stays_nan():
    certain, other, c = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.3, 0.7]]), torch.tensor([0])
    assert average_gain(certain, other, c) == 0 and average_drop(certain.flip(1), other, c) == 0
    broken = metrics.probability_metrics(certain, other * torch.nan, other * torch.nan, c)
    assert all(v.isnan().all() for v in broken.values())


def test_what_is_rounding_for_average_increase_is_no_gain():
    p = 1 - torch.tensor([6e-8, 5e-7, 9e-7, 4e-6, 0.5, 0.5])
    p, o, c = torch.stack([p, 1 - p], 1), torch.tensor([[1.0, 0.0]] * 4 + [[0.5 + 5e-7, 0.5 - 5e-7], [0.5 + 2e-6, 0.5 - 2e-6]]), torch.zeros(6, dtype=torch.long)
    gain = average_gain(p, o, c)
    assert (p[:3, 0] < 1).all() and gain[[0, 1, 2, 4]].eq(0).all() and gain[3] == 100 and gain[5].isclose(torch.tensor(4e-4), rtol=0.05)
    assert ((gain > 0) == (average_increase(p, o, c) == 100)).all()


# ---- masks

@pytest.fixture(scope="module")
def mask_batch():
    soft = random(4, 60, 50)
    return torch.cat([soft, torch.sigmoid(12 * (soft - 0.8)), (soft > 0.7).float()])


def test_sparseness_and_complexity_equal_quantus(mask_batch):
    import quantus
    a = mask_batch.numpy()
    batch = dict(x_batch=a[:, None], y_batch=np.zeros(len(a), int), a_batch=a[:, None].copy(), model=None)
    kw = dict(disable_warnings=True, display_progressbar=False)
    assert np.allclose(sparseness(mask_batch), quantus.Sparseness(**kw)(**batch), atol=1e-6)
    batch["a_batch"] = a[:, None].copy()
    assert np.allclose(complexity(mask_batch), quantus.Complexity(**kw)(**batch), atol=1e-6)


def test_sparseness_and_complexity_at_their_ends():
    n = 50_000
    hot = torch.zeros(1, 100, 500); hot[0, 3, 7] = 0.2
    assert torch.isclose(sparseness(hot), torch.tensor([1 - 1 / n]).double()) and complexity(hot) == 0
    flat = torch.full((1, 100, 500), 0.3)
    assert abs(sparseness(flat)) < 1e-9 and torch.isclose(complexity(flat), torch.tensor([float(n)]).double().log())
    zero = torch.zeros(1, 100, 500)
    assert sparseness(zero).isnan() and complexity(zero).isnan() and mask_mean(zero) == 0


@given(seeds, st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_mask_metrics_ignore_scale_order_and_padding(seed, scale):
    mask = random(2, 9, 11, seed=seed) ** 3
    order = torch.randperm(99, generator=torch.Generator().manual_seed(seed))
    padded = torch.cat([mask, 7 * torch.ones(2, 9, 5)], 2)
    for metric in (sparseness, complexity):
        assert torch.allclose(metric(scale * mask), metric(mask), atol=1e-6)
        assert torch.allclose(metric(mask.flatten(1)[:, order].view_as(mask)), metric(mask), atol=1e-9)
    for metric in (sparseness, complexity, mask_mean): assert torch.allclose(metric(padded, torch.tensor([11, 11])), metric(mask))


@given(seeds, st.integers(1, 12), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_average_precision_equals_sklearn_with_ties(seed, levels, share):
    scores = (random(3, 6, 8, seed=seed) * levels).round() - levels / 2         # many ties, negative ones too
    truth = (random(3, 6, 8, seed=seed + 1) < share).float()
    valid = torch.tensor([8, 5, 1])
    ours = average_precision(scores, truth, valid)
    for i, v in enumerate(valid):
        y, s = truth[i, :, :v].flatten(), scores[i, :, :v].flatten()
        if y.sum() == 0: assert ours[i].isnan()
        else: assert np.isclose(ours[i], average_precision_score(y, s))


def test_average_precision_of_continuous_scores_equals_sklearn():
    scores, truth = torch.randn(2, 40, 50, generator=torch.Generator().manual_seed(0)), (random(2, 40, 50, seed=1) < 0.2).float()
    expected = [average_precision_score(t.flatten(), s.flatten()) for t, s in zip(truth, scores)]
    assert np.allclose(average_precision(scores, truth), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_average_precision_needs_finite_scores_of_valid_bins(bad):
    truth, valid = torch.zeros(4, 3, 6), torch.tensor([6, 6, 6, 4])
    truth[:, 0] = 1
    scores = random(4, 3, 6)
    scores[0] = bad; scores[1, 2, 5] = bad; scores[3, :, 4:] = bad        # everywhere, in one bin, in padding
    assert average_precision(scores, truth, valid).isnan().tolist() == [True, True, False, False]
    assert average_precision(scores[3:], truth[3:], valid[3:]) == average_precision(scores[3:, :, :4], truth[3:, :, :4])

def test_energy_iou_is_the_formula_and_ignores_silent_bins():
    m, t, e = random(2, 5, 6), random(2, 5, 6, seed=1), random(2, 5, 6, seed=2)
    assert torch.allclose(energy_iou(m, t, e), ((e * torch.minimum(m, t)).sum((1, 2)) / (e * torch.maximum(m, t)).sum((1, 2))).double())
    silent = e.clone(); silent[:, :2] = 0
    changed = m.clone(); changed[:, :2] = 1
    assert torch.equal(energy_iou(m, t, silent), energy_iou(changed, t, silent))
    assert energy_iou(0 * m, 0 * t, e).isnan().all()


def test_si_sdr_is_the_formula_and_scale_invariant():
    g = torch.Generator().manual_seed(0)
    s, n = torch.randn(2, 3, 500, generator=g)
    x = s + 0.3 * n
    for i in range(3):
        a = (x[i] @ s[i] / (s[i] @ s[i])) * s[i]
        assert torch.isclose(si_sdr(x, s)[i].float(), 10 * torch.log10((a @ a) / ((x[i] - a) @ (x[i] - a))), atol=1e-4)
    assert torch.allclose(si_sdr(-5 * x, 0.1 * s), si_sdr(x, s), atol=1e-5)
    assert (si_sdr_improvement(x, x, s) == 0).all() and (si_sdr(s, s) == 100).all() and si_sdr(0 * s, s).isnan().all()


# ---- forms

@given(seeds, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_topk_has_the_exact_area_and_the_highest_scores(seed, levels):
    scores = (random(4, 7, 9, seed=seed) * levels).floor() - 1
    valid = torch.tensor([9, 4, 1, 0])
    k = torch.tensor([20, 13, 7, 0])
    mask = topk_mask(scores, k, torch.Generator().manual_seed(seed), valid)
    assert torch.equal(mask.sum((1, 2)).long(), k) and set(mask.unique().tolist()) <= {0.0, 1.0}
    for i, v in enumerate(valid):
        assert mask[i, :, v:].sum() == 0
        kept, left = scores[i, :, :v][mask[i, :, :v] == 1], scores[i, :, :v][mask[i, :, :v] == 0]
        if len(kept) and len(left): assert kept.min() >= left.max()


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_same_values_keeps_the_multiset_and_the_ranking(seed):
    reference, scores, valid = random(2, 6, 8, seed=seed), random(2, 6, 8, seed=seed + 1), torch.tensor([8, 5])
    laid = same_values(reference, scores, torch.Generator().manual_seed(seed), valid)
    for i, v in enumerate(valid):
        assert torch.equal(laid[i, :, :v].flatten().sort().values, reference[i, :, :v].flatten().sort().values)
        assert torch.equal(laid[i, :, :v].flatten().argsort(), scores[i, :, :v].flatten().argsort()) and laid[i, :, v:].sum() == 0
    assert torch.equal(same_values(reference, reference), reference)


def test_ties_are_seeded_fair_and_independent_of_the_batch():
    flat = torch.zeros(5, 20, 30)
    one = topk_mask(flat, 120, torch.Generator().manual_seed(1))
    assert torch.equal(one[:1], topk_mask(flat[:1], 120, torch.Generator().manual_seed(1))) and (one == one[:1]).all()
    assert not torch.equal(one, topk_mask(flat, 120, torch.Generator().manual_seed(2)))
    own = topk_mask(flat, 120, [torch.Generator().manual_seed(i) for i in range(5)])
    assert not torch.equal(own[0], own[1])
    often = torch.stack([topk_mask(flat[:1], 60, torch.Generator().manual_seed(i)) for i in range(300)]).mean(0)
    assert abs(often.mean() - 0.1) < 1e-6 and often.max() < 0.2 and often.min() > 0.02
    signed = torch.tensor([[[0.0, -0.0] * 20]])                                      # -0 is 0: all are equal
    assert topk_mask(signed, 20)[..., ::2].sum() not in (0, 20) and average_precision(signed, signed == 0) == 1
    assert np.isclose(average_precision(signed, (torch.arange(40) % 2).view(1, 1, 40)), 0.5)
    with pytest.raises(ValueError, match="601"): topk_mask(flat, 601)
    with pytest.raises(ValueError, match="finite"): topk_mask(flat * torch.nan, 3)


def test_the_sort_of_other_devices_gives_the_same(monkeypatch, mask_batch):
    truth = (mask_batch > 0.4).float()
    here = [sparseness(mask_batch), average_precision(mask_batch.round(decimals=1), truth), topk_mask(mask_batch.round(decimals=1), 500)]
    monkeypatch.setattr(metrics, "_argsort", lambda x: (x.float() + 0.0).sort(dim=1, stable=True).indices)
    there = [sparseness(mask_batch), average_precision(mask_batch.round(decimals=1), truth), topk_mask(mask_batch.round(decimals=1), 500)]
    assert all(torch.equal(a, b) for a, b in zip(here, there))


def test_sums_and_sorts_of_a_full_plane_are_exact():
    x = random(3, 221_103) ** 4
    assert torch.allclose(metrics._total(x), x.double().sum(1, True), rtol=1e-8)
    a = x.double().sort(1).values
    gini = ((2 * torch.arange(1, a.shape[1] + 1) - a.shape[1] - 1) * a).sum(1) / (a.shape[1] * a.sum(1))
    assert torch.allclose(sparseness(x[:, None]), gini, rtol=1e-8)
    share = a / a.sum(1, True)
    assert torch.allclose(complexity(x[:, None]), torch.special.entr(share).sum(1), rtol=1e-8)
    wild = torch.tensor([[3.0, -0.0, 1e-45, -1e38, 0.0, -1e-45, 7e37, -2.0, 0.0]])
    assert torch.equal(metrics._argsort(wild), (wild + 0.0).sort(dim=1, stable=True).indices)


# ---- evaluate

class Toy(Explainable):
    "Each of three classes hears a third of the spectrum; passes are counted."
    def __init__(self):
        super().__init__()
        self.classes, self.baseline, self.passes = ["low", "mid", "high"], "zero", 0
        self.stft = Spectrogram(16000, n_fft=64, hop=32, win=64)
        self.bands = torch.nn.Parameter(torch.eye(3).repeat_interleave(11, 1))
        self.dropout = torch.nn.Dropout()

    def represent(self, x, lengths=None):
        values, phase = self.stft(torch.nn.functional.pad(x, (0, max(0, 640 - x.shape[1]))))
        return Representation(values, phase, x.shape[1], torch.full((len(x),), x.shape[1] // 32 + 1))

    def classify(self, values):
        self.passes += len(values)
        assert not self.training, "the classifier must be in evaluation mode"
        return Output(self.dropout(torch.einsum("cf,bft->bc", self.bands, values) / 20), [values])

    def render(self, rep, values=None): return self.stft.inverse(rep.values if values is None else values, rep.phase, rep.length)


class Drawn:
    fixed_frames = None
    def __init__(self, draw, name="drawn", class_conditional=True): self.draw, self.name, self.class_conditional = draw, name, class_conditional
    def attribute(self, model, rep, out, target): return Attribution(self.draw(rep.values, model.bands[target][:, :, None]))


best = Drawn(lambda v, band: band.expand_as(v), "best")
loudest = Drawn(lambda v, band: v / v.amax((1, 2), keepdim=True), "loudest")
ones = Drawn(lambda v, band: torch.ones_like(v), "ones")
zeros = Drawn(lambda v, band: torch.zeros_like(v), "zeros")


@pytest.fixture(scope="module")
def waves(): return torch.randn(10, 800, generator=torch.Generator().manual_seed(3)) * 0.3


def wide(frame): return frame.pivot(index=["form", "item"], columns="metric", values="value").sort_index()


def test_passes_are_counted_modes_restored_and_columns_tidy(waves):
    model = Toy().train()
    for form, passes in (("soft", 3), (("soft", "topk"), 5), (FORMS, 7)):
        model.passes = 0
        frame = evaluate(model, best, waves, form=form, reference=loudest, batch_size=4)
        assert model.passes == passes * 10
    model.passes = 0
    faithfulness_curve(model, best, waves, (0.1, 0.5), batch_size=4)
    assert model.passes == 10 * 5 and model.training and model.dropout.training and model.bands.requires_grad
    assert list(frame.columns) == ["item", "form", "target", "predicted", "metric", "value"] and frame["value"].dtype == float
    assert frame["item"].is_monotonic_increasing and set(frame["metric"]) <= set(METRICS) and len(frame) == 10 * 3 * frame["metric"].nunique()


def test_ones_zeros_and_the_best_mask(waves):
    model = Toy()
    one, none, right = (wide(evaluate(model, e, waves)) for e in (ones, zeros, best))
    assert (one[["AI", "AD", "AD_published", "AG", "level_db"]] == 0).all(axis=None) and (one["Fid-In"] == 1).all()
    assert np.allclose(one["energy_kept"], 100) and (one["mask_mean"] == 1).all()
    assert none[["SPS", "COMP", "level_db"]].isna().all(axis=None) and (none["FF"] == 0).all() and (none["mask_mean"] == 0).all()
    assert (right[["AD", "AD_published"]] == 0).all(axis=None) and (right["Fid-In"] == 1).all() and (right["FF"] > one["FF"]).all()
    counted = summarise(evaluate(model, zeros, waves)).set_index("metric")
    assert counted.loc["SPS", "undefined"] == 10 and counted.loc["SPS", "n"] == 0 and np.isnan(counted.loc["SPS", "mean"])
    assert counted.loc["AD", "undefined"] == 0 and counted.loc["AD", "n"] == 10


def test_an_item_does_not_depend_on_its_batch(waves):
    model, order = Toy(), torch.randperm(10, generator=torch.Generator().manual_seed(0))
    flat = Drawn(lambda v, band: torch.full_like(v, 0.3))                            # nothing but ties
    for explainer in (best, loudest, flat):
        class Source:
            def __len__(self): return 10
            def __getitem__(self, at): return Batch(waves[order[at]], item=order[at])
        together = wide(evaluate(model, explainer, waves, form=FORMS, reference=loudest, batch_size=10))
        permuted = wide(evaluate(model, explainer, Source(), form=FORMS, reference=loudest, batch_size=3))
        alone = wide(evaluate(model, explainer, Source(), form=FORMS, reference=loudest, batch_size=1))
        for other in (permuted, alone): assert np.allclose(together, other.loc[together.index], atol=1e-3, equal_nan=True)


def test_equal_items_have_tie_orders_of_their_own(waves):
    flat = Drawn(lambda v, band: torch.full_like(v, 0.3))
    frame = wide(evaluate(Toy(), flat, waves[:1].repeat(6, 1), form=("soft", "topk")))
    assert frame.loc["soft", "FF"].round(4).nunique() == 1 and frame.loc["topk", "FF"].round(4).nunique() == 6
    other = wide(evaluate(Toy(), flat, waves[:1].repeat(6, 1), form="topk", seed=1))
    assert (other.loc["topk", "FF"] != frame.loc["topk", "FF"]).all()


def test_forms_have_the_area_and_values_of_the_reference(waves):
    frames = wide(evaluate(Toy(), best, waves, form=FORMS, reference=loudest))
    reference = wide(evaluate(Toy(), loudest, waves))
    bins = 33 * 26
    assert np.allclose(frames.loc["topk", "mask_mean"] * bins, (reference.loc["soft", "mask_mean"] * bins).round())
    assert np.allclose(frames.loc["same_values"][["SPS", "COMP", "mask_mean"]], reference.loc["soft"][["SPS", "COMP", "mask_mean"]])


def test_padding_is_ignored():
    "640 samples are the shortest that the toy reads; 300 have ten valid frames of 21."
    short = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    in_valid = Drawn(lambda v, band: torch.ones_like(v) * (torch.arange(v.shape[-1]) < 10))
    in_padding = Drawn(lambda v, band: torch.ones_like(v) * (torch.arange(v.shape[-1]) >= 10))
    frame = wide(evaluate(Toy(), in_valid, short))
    assert (frame["mask_mean"] == 1).all() and np.allclose(frame["energy_kept"], 100) and np.allclose(frame["SPS"], 0)
    assert (wide(evaluate(Toy(), in_padding, short))["mask_mean"] == 0).all()
    area = wide(evaluate(Toy(), ones, short, form="topk"))
    assert (area["mask_mean"] == 1).all()


def test_lists_of_waves_of_different_length_give_what_each_gives_alone(waves):
    uneven = [waves[0], waves[1][:700], waves[2], waves[3][:650], waves[4][:700]]
    frame = evaluate(Toy(), best, uneven, form=FORMS, reference=loudest)
    for i, wave in enumerate(uneven):
        alone = evaluate(Toy(), best, wave[None], form="soft")
        assert np.allclose(frame.query(f"item == {i} and form == 'soft'")["value"], alone["value"], atol=1e-4, equal_nan=True)


def test_truth_by_tensors_and_by_batches(waves):
    stems = waves.roll(1, 0) * 0.5
    mixtures, masks = waves + stems, (random(10, 33, 26) < 0.3).float()
    class Source:
        def __len__(self): return 10
        def __getitem__(self, at): return Batch(mixtures[at], clean=stems[at], annotation=masks[at], label=torch.zeros(len(at), dtype=torch.long))
    model = Toy()
    given = wide(evaluate(model, loudest, mixtures, truth=(masks, stems), batch_size=4))
    carried = wide(evaluate(model, loudest, Source(), truth=True, batch_size=4))
    assert np.allclose(given, carried[given.columns], atol=1e-5) and "correct" in carried and {"ap", "iou", "si_sdr_improvement"} <= set(given)
    values, _ = model.stft(mixtures)
    expected = [average_precision_score(m.flatten(), v.flatten()) for m, v in zip(masks, values / values.amax((1, 2), keepdim=True))]
    assert np.allclose(given["ap"], expected, atol=1e-6)
    exact = wide(evaluate(model, ones, mixtures, truth=(None, stems)))
    assert np.allclose(exact["si_sdr_improvement"], 0, atol=1e-3) and "iou" not in exact


def test_targets_by_name_by_item_and_refused(waves):
    model = Toy()
    by_name = evaluate(model, best, waves, target="high")
    assert (by_name["target"] == 2).all() and np.array_equal(by_name["value"], evaluate(model, best, waves, target=[2] * 10)["value"], equal_nan=True)
    blind = Drawn(lambda v, band: torch.ones_like(v), class_conditional=False)
    evaluate(model, blind, waves)
    with pytest.raises(ValueError, match="class-conditional"): evaluate(model, blind, waves, target=torch.arange(10) % 3)
    with pytest.raises(ValueError, match="siren"): evaluate(model, best, waves, target="siren")
    with pytest.raises(ValueError, match="2 classes for 10"): evaluate(model, best, waves, target=[0, 1])
    with pytest.raises(ValueError, match="hard"): evaluate(model, best, waves, form=("soft", "hard"))
    with pytest.raises(ValueError, match="no items"): evaluate(model, best, waves[:0])
    with pytest.raises(ValueError, match="25"): faithfulness_curve(model, best, waves, (25,))


# ---- several methods at once

class Borrower:
    "Keeps the loudest bins, as many as its reference keeps."
    fixed_frames, class_conditional = None, True
    def __init__(self, reference, name): self.reference, self.name = reference, name
    def attribute(self, model, rep, out, target):
        k = self.reference.attribute(model, rep, out, target).mask.flatten(1).sum(1).round().long()
        return Attribution(topk_mask(rep.values, k), scores=rep.values)


class Asked(Drawn):
    "Counts its questions."
    asked = 0
    def attribute(self, *question): self.asked += 1; return super().attribute(*question)


def test_a_list_shares_the_pass_and_gives_each_method_its_own_rows(waves):
    model, lender = Toy(), Asked(lambda v, band: band.expand_as(v) * 0.5, "lender")
    methods = [lender, Borrower(lender, "a"), Borrower(lender, "b"), loudest, zeros]
    forms = {m.name: FORMS for m in methods[:4]} | {"zeros": "soft"}
    together = evaluate(model, methods, waves, form=forms, reference=lender, batch_size=4)
    assert model.passes == (1 + 2 * 13) * 10 and lender.asked == 3, "one pass and one question per batch, two passes per mask"
    assert list(together.columns) == ["method", "item", "form", "target", "predicted", "metric", "value"]
    assert methods[1].reference is lender, "the list is left as it was"
    for m in methods:
        alone = evaluate(model, m, waves, form=forms[m.name], reference=lender, batch_size=4)
        mine = together[together["method"] == m.name].drop(columns="method").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, alone, rtol=1e-9)
    own = evaluate(model, [best, loudest], waves, form="topk")
    for m in (best, loudest): assert np.array_equal(own.loc[own["method"] == m.name, "value"], evaluate(model, m, waves, form="topk")["value"], equal_nan=True)
    assert set(evaluate(model, [best], waves)["method"]) == {"best"} and "method" not in evaluate(model, best, waves)


def test_nulls_and_gradients_in_one_list(waves):
    from lmac_piq.baselines import Saliency, nulls
    lender = Asked(lambda v, band: 0.25 + 0.5 * band.expand_as(v), "lender")
    methods = [Saliency(), lender, *nulls(lender)]
    frame = evaluate(Toy(), methods, waves, form=("soft", "topk"), reference=lender, batch_size=16)
    assert lender.asked == 1 and set(frame["method"]) == {m.name for m in methods}
    area = frame.query("metric == 'mask_mean' and form == 'topk'").groupby("item")["value"]
    assert (area.nunique() == 1).all() and area.size().eq(len(methods)).all()


def test_a_list_is_refused_where_rows_could_not_be_told_apart(waves):
    with pytest.raises(ValueError, match="best"): evaluate(Toy(), [best, Drawn(best.draw, "best")], waves)
    with pytest.raises(ValueError, match="no explainers"): evaluate(Toy(), [], waves)
    with pytest.raises(ValueError, match="loudest"): evaluate(Toy(), [best, loudest], waves, form={"best": FORMS})
    with pytest.raises(ValueError, match="hard"): evaluate(Toy(), [best], waves, form={"best": "hard"})


def test_padding_and_unsorted_masks_in_a_list():
    "A mask that does not follow its scores is sorted for itself; the padding is nobody's."
    short = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    contrary = Drawn(lambda v, band: torch.rand(v.shape, generator=torch.Generator().manual_seed(2)), "contrary")
    contrary.attribute = lambda model, rep, out, target: Attribution(contrary.draw(rep.values, None), scores=rep.values)
    frame = evaluate(Toy(), [ones, contrary], short, form=FORMS, reference=contrary)
    mask = contrary.draw(torch.empty(3, 33, 21), None)
    valid = torch.full((3,), 300 // 32 + 1)
    rows = wide(frame[frame["method"] == "contrary"])
    for form in ("soft", "same_values"):
        for name, metric in {"SPS": sparseness, "COMP": complexity, "mask_mean": mask_mean}.items(): assert np.allclose(rows.loc[form, name], metric(mask, valid))


# ---- insertion and deletion

class Pixels(Explainable):
    "Two classes: the left and the right half of a colour image."
    def __init__(self):
        super().__init__()
        self.classes, self.baseline, self.scale = ["left", "right"], "mean", torch.nn.Parameter(torch.tensor(9.0))
    def represent(self, x, lengths=None): return Representation(x)
    def classify(self, values): return Output(self.scale * values.mean(1).unflatten(2, (2, -1)).mean((1, 3)), [])
    def render(self, rep, values=None): return rep.values if values is None else values


def test_images_go_through_the_same_door():
    images = random(6, 3, 8, 8)
    half = Drawn(lambda v, band: None)
    half.attribute = lambda model, rep, out, target: Attribution((torch.arange(8) // 4 == target[:, None]).float()[:, None].expand(-1, 8, 8))
    truth = torch.zeros(6, 8, 8); truth[..., :4] = 1
    frame = wide(evaluate(Pixels(), half, images, form=FORMS, target="left", truth=(truth, None)))
    assert np.allclose(frame["mask_mean"], 0.5) and np.allclose(frame["iou"], 1) and np.allclose(frame["ap"], 1)
    assert "energy_kept" not in frame and len(frame) == 18


def test_summaries_average_seeds_and_keep_methods_apart(waves):
    frame = evaluate(Toy(), best, waves, form=("soft", "topk"))
    runs = pd.concat([frame.assign(method=m, seed=s, value=frame["value"] + s) for m in ("a", "b") for s in (0, 1)])
    table = summarise(runs).set_index(["method", "form", "metric"])
    alone = summarise(frame).set_index(["form", "metric"])
    assert len(table) == 2 * len(alone) and np.isclose(table.loc[("a", "soft", "FF"), "mean"], alone.loc[("soft", "FF"), "mean"] + 0.5)
    assert table.loc[("a", "soft", "FF"), "n"] == 10 and (alone["low"] <= alone["mean"]).all()


class Linear(Explainable):
    "Two classes over an image of ones: the logit of the first is 4 times the share of its support that is there, the other's is 0."
    def __init__(self, support):
        super().__init__()
        self.classes, self.baseline, self.passes = ["support", "nothing"], "zero", 0
        self.weight = torch.nn.Parameter(support.float())
    def represent(self, x, lengths=None): return Representation(x)
    def classify(self, values):
        self.passes += len(values)
        logit = 4 * (values[:, 0] * self.weight).sum((1, 2)) / self.weight.sum()
        return Output(torch.stack([logit, torch.zeros_like(logit)], 1), [])
    def render(self, rep, values=None): return rep.values if values is None else values


def test_insertion_and_deletion_equal_the_integrals_of_a_linear_classifier():
    support = random(20, 25) < 0.3
    share, images = support.float().mean().item(), torch.ones(3, 1, 20, 25)
    known = Drawn(None, "known"); known.attribute = lambda model, rep, out, target: Attribution(support.float().expand(len(target), -1, -1))
    worst = Drawn(None, "worst"); worst.attribute = lambda model, rep, out, target: Attribution(1 - support.float().expand(len(target), -1, -1))
    model, sigmoid = Linear(support), lambda x: 1 / (1 + np.exp(-x))
    frame = insertion_deletion(model, [known, worst], images, steps=500, batch_size=3)
    assert model.passes == 3 * (2 + 2 * 2 * 499)
    fine = (np.arange(100_000) + 0.5) / 100_000
    there = {"known": np.minimum(fine / share, 1), "worst": np.maximum(0, (fine - (1 - share)) / share)}
    got = frame.groupby(["method", "metric"])["value"].mean()
    for m, inside in there.items():
        assert np.isclose(got[m, "insertion"], sigmoid(4 * inside).mean(), atol=1e-4) and np.isclose(got[m, "deletion"], sigmoid(4 * (1 - inside)).mean(), atol=1e-4)
    coarse = insertion_deletion(model, known, images[:1], steps=(0.5, 0.25, 0.25, 1.0, 0.0)).set_index("metric")["value"]
    grid = np.array([0, 0.25, 0.5, 1])
    there = [min(round(a * 500) / support.sum().item(), 1) for a in grid]
    assert np.isclose(coarse["insertion"], np.trapezoid(sigmoid(4 * np.array(there)), grid)) and np.isclose(coarse["deletion"], np.trapezoid(sigmoid(4 * (1 - np.array(there))), grid))


def test_insertion_and_deletion_by_curve_by_batch_and_by_method(waves):
    model = Toy()
    frame = insertion_deletion(model, [best, loudest, ones], waves, steps=4, curve=True, batch_size=4)
    assert model.passes == 10 * (2 + 3 * 2 * 3) and list(frame.columns) == ["method", "item", "area", "target", "predicted", "metric", "value"]
    assert set(frame["metric"]) == {"p_kept", "p_removed", "insertion", "deletion"} <= set(METRICS) and len(frame) == 10 * 3 * (2 * 5 + 2)
    curve = frame.pivot(index=["method", "item", "metric"], columns="area", values="value")
    for side, area in (("p_kept", "insertion"), ("p_removed", "deletion")):
        points, under = (curve.xs(k, level="metric").loc[list(("best", "loudest", "ones"))] for k in (side, area))
        assert np.allclose(np.trapezoid(points[[0, 0.25, 0.5, 0.75, 1]], dx=0.25), under[np.nan])
    p_c = evaluate(model, best, waves).query("metric == 'p_c'")["value"].to_numpy()
    assert np.allclose(curve.loc["best"].xs("p_kept", level="metric")[1.0], p_c) and np.allclose(curve.loc["best"].xs("p_removed", level="metric")[0.0], p_c)
    inner = faithfulness_curve(model, [best], waves, (0.25, 0.5)).query("metric == 'p_kept'")
    assert np.allclose(inner.pivot(index="item", columns="area", values="value"), curve.loc["best"].xs("p_kept", level="metric")[[0.25, 0.5]])
    class Source:
        def __len__(self): return 10
        def __getitem__(self, at): return Batch(waves[at], item=torch.from_numpy(at))
    for size in (1, 10):
        other = insertion_deletion(model, [best, loudest, ones], Source(), steps=4, curve=True, batch_size=size)
        assert np.allclose(frame["value"], other["value"], atol=1e-5)
    for bad in ((25,), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="shares"): insertion_deletion(model, best, waves, steps=bad)


# ---- what must have a defined outcome

def test_silence_empty_masks_two_classes_and_one_item_are_defined():
    from lmac_piq.baselines import nulls
    model, silence = Toy(), torch.zeros(1, 800)
    methods = [best, *nulls(best), Drawn(lambda v, band: torch.zeros_like(v), "empty")]
    frame = evaluate(model, methods, silence, form=FORMS, reference=best)
    rows = frame.pivot(index=["method", "form"], columns="metric", values="value")
    assert (rows["AI"] == 0).all() and np.allclose(rows[["AD", "AD_published", "AG", "FF"]], 0, atol=1e-4) and rows["Fid-In"].isin([0, 1]).all() and np.allclose(rows["p_c"], 1 / 3)
    assert rows["energy_kept"].between(0, 100.001).all() and (rows["level_db"].isna() == (rows["energy_kept"] == 0)).all()
    empty = [i for i in rows.index if i in {("empty", "soft"), ("all zeros", "soft")}]
    assert rows.loc[empty, ["SPS", "COMP"]].isna().all(axis=None) and (rows.loc[empty, "mask_mean"] == 0).all()
    assert rows.drop(empty)[["SPS", "COMP", "mask_mean"]].notna().all(axis=None)
    assert np.allclose(insertion_deletion(model, methods, silence, steps=3)["value"], 1 / 3)
    table = summarise(frame)
    assert (table["n"] + table["undefined"] == 1).all() and table["low"].isna().all()
    none = evaluate(model, [best, loudest], 0.3 * random(2, 800), form=FORMS, reference=zeros)
    derived = none[none["form"] != "soft"].pivot(index=["method", "form", "item"], columns="metric", values="value")
    assert derived[["SPS", "COMP", "level_db"]].isna().all(axis=None) and np.allclose(derived[["mask_mean", "energy_kept", "FF"]], 0, atol=1e-5)


def test_a_two_class_classifier_has_every_metric():
    images = random(4, 3, 8, 8)
    half = Drawn(None, "half"); half.attribute = lambda model, rep, out, target: Attribution((torch.arange(8) // 4 == target[:, None]).float()[:, None].expand(-1, 8, 8))
    frame = evaluate(Pixels(), [half], images, form=FORMS)
    assert frame["value"].notna().all() and set(frame["target"]) <= {0, 1} and (frame.query("metric == 'AD_published'")["value"] < METRICS["AD_published"].high).all()
    assert insertion_deletion(Pixels(), half, images, steps=4)["value"].between(0, 1).all()


def test_summarise_of_categories_has_no_rows_for_what_is_not_there():
    frame = pd.DataFrame([(m, i, "AI", float(i)) for m in ("a", "b") for i in range(8)], columns=["method", "item", "metric", "value"])
    small = frame.astype({"method": pd.CategoricalDtype(["a", "b", "absent"]), "metric": pd.CategoricalDtype(["AD", "AI"])})
    pd.testing.assert_frame_equal(summarise(small), summarise(frame), check_dtype=False)
