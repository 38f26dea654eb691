"L-MAC for other people's classifiers: sounds with known truth, splits without overlap, the rule of the area, refusals; on scenes, and on spoken digits where they are at hand."
import re, warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lmac_piq.classifier import Explainable
from lmac_piq.data import PACKS, Batch, DataError
from lmac_piq.decoder import ImageDecoder, LightDecoder
from lmac_piq.explanation import explain
from lmac_piq.metrics import evaluate
from lmac_piq.own_classifier import from_module
from lmac_piq.own_lmac import (OWN_PRESETS, TAKES, AreaRule, ConformerClassifier, DecibelClassifier, Items, OwnPlan, OwnSets, Sounds, clutter, fit_lmac, get_own_plan, grid, judge, overlay, own_decoder,
                               own_models, own_sets, path_figure, scene_sounds, spoken_digits, train_module)
from lmac_piq.training import FitConfig, seeded

QUICK = FitConfig(epochs=1, lr=1e-2, bf16=False)
TINY = AreaRule(budget=100.0, most=2, first=1, width=4)

@pytest.fixture(scope="module")
def sets() -> OwnSets: return own_sets("scenes", (24, 8, 10), batch_size=8)

@pytest.fixture(scope="module")
def models(sets: OwnSets) -> dict[str, Explainable]: return own_models(sets)

def same(a: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in a.state_dict().items())

# ---- sounds

@settings(max_examples=15, deadline=None)
@given(low=st.floats(-30, 20), width=st.floats(0, 10), seed=st.integers(0, 99))
def test_sound_and_clutter_add_up_at_the_ratio_asked_for(low: float, width: float, seed: int):
    g = torch.Generator().manual_seed(seed)
    sounds, noise = Sounds(torch.randn(4, 800, generator=g), torch.arange(4), list("abcd"), 8000, np.arange(4)), torch.randn(3, 800, generator=g)
    b = overlay(sounds, [3, 0, 1], noise, g, (low, low + width))
    ratio = 10 * (b.clean.square().sum(1) / (b.x - b.clean).square().sum(1)).log10()
    assert (ratio > low - 0.05).all() and (ratio < low + width + 0.05).all() and torch.allclose(b.x.abs().amax(1), torch.ones(3), atol=1e-5)
    assert b.label.tolist() == b.item.tolist() == [3, 0, 1]
    for clean, wave in zip(b.clean, sounds.waves[[3, 0, 1]]):    # the sound itself, moved and scaled: the same magnitudes of its Fourier transform
        a, c = torch.fft.rfft(clean).abs(), torch.fft.rfft(wave).abs()
        assert torch.allclose(a / a.norm(), c / c.norm(), atol=1e-3)

def test_parts_of_the_scenes_have_nothing_in_common(sets: OwnSets):
    waves = [torch.cat([b.x for b in sets.train(torch.Generator().manual_seed(0))]), sets.valid.x, sets.test.x]
    assert [len(w) for w in waves] == [24, 8, 10] and sets.steps == 3
    cleans = [torch.cat([b.clean for b in sets.train(torch.Generator().manual_seed(0))]), sets.valid.clean, sets.test.clean]
    for part in (waves, cleans):
        spectra = [torch.fft.rfft(w).abs() for w in part]; spectra = [s / s.norm(dim=1, keepdim=True) for s in spectra]
        assert all((a @ b.T).max() < 0.9999 for a, b in ((spectra[0], spectra[1]), (spectra[0], spectra[2]), (spectra[1], spectra[2])))

def test_sets_are_the_same_for_a_seed_and_other_for_another(sets: OwnSets):
    again, other = (own_sets("scenes", (24, 8, 10), 8, seed) for seed in (0, 1))
    assert torch.equal(again.test.x, sets.test.x) and torch.equal(next(again.train(torch.Generator().manual_seed(3))).x, next(sets.train(torch.Generator().manual_seed(3))).x)
    assert not torch.equal(other.test.x, sets.test.x) and sets.test.item.tolist() == list(range(10))
    one, two = (next(sets.train(torch.Generator().manual_seed(k))).x for k in (1, 2))
    assert not torch.equal(one, two)

def test_items_are_asked_by_position(sets: OwnSets):
    some = Items(sets.test)[np.array([4, 1])]
    assert torch.equal(some.x, sets.test.x[[4, 1]]) and torch.equal(some.clean, sets.test.clean[[4, 1]]) and some.annotation is None and len(Items(sets.test)) == 10

def test_scenes_and_clutter_have_the_shape_asked_for():
    sounds = scene_sounds(5, 3, 0.5)
    assert sounds.waves.shape == (5, 8000) and len(sounds) == 5 and len(sounds.classes) == 10
    assert clutter(3, 0.5, 8000).shape == (3, 4000) and torch.equal(clutter(2, seed=4), clutter(2, seed=4))

# ---- digits

def digits_folder(folder: Path, names: list[str], rate: int = 8000, samples: int = 4000) -> Path:
    (folder/"audio").mkdir()
    for k, name in enumerate(names): soundfile.write(folder/"audio"/f"{name}.flac", 0.1 * np.random.default_rng(k).standard_normal(samples), rate)
    return folder

def test_takes_decide_the_part(tmp_path: Path):
    folder = digits_folder(tmp_path, ["0_ann_0", "1_ann_4", "2_ann_5", "3_bob_7", "4_bob_8", "5_bob_19", "6_bob_20", "notes"])
    assert {part: spoken_digits(part, folder).labels.tolist() for part in TAKES} == dict(train=[4, 5], valid=[2, 3], test=[0, 1])
    assert not set(TAKES["train"]) & set(TAKES["valid"]) and not set(TAKES["test"]) & {*TAKES["train"], *TAKES["valid"]}
    assert spoken_digits("test", folder, 0.25).waves.shape == (2, 2000)

def test_missing_digits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="choose from train, valid, test"): spoken_digits("dev", tmp_path)
    with pytest.raises(DataError, match="takes 0 to 4.*digit"): spoken_digits("test", digits_folder(tmp_path, ["7_ann_9"]))
    monkeypatch.setenv("LMAC_PIQ_DATA", str(tmp_path/"none"))
    with pytest.raises(DataError, match="free-spoken-digit-dataset"): own_sets("digits")
    with pytest.raises(ValueError, match="'scenes' or 'digits'"): own_sets("birds")

def test_a_damaged_recording_is_named(tmp_path: Path):
    folder = digits_folder(tmp_path, ["0_ann_0", "1_ann_1"]); (folder/"audio"/"1_ann_1.flac").write_bytes(b"fLaC" + bytes(40))
    with pytest.raises(Exception, match="1_ann_1.flac"): spoken_digits("test", folder)

def test_real_digits(real_data: Callable[[str], Path]):
    root = real_data("fsdd"); test = spoken_digits("test", root)
    assert test.waves.shape == (300, 8000) and torch.bincount(test.labels).tolist() == [30] * 10 and torch.isfinite(test.waves).all() and (test.waves.abs().amax(1) > 0.01).all()
    assert set(test.items) == set(range(5)) and PACKS["fsdd"].licence.startswith("CC BY-SA")

def test_a_decoder_learns_on_real_digits(real_data: Callable[[str], Path]):
    parts = {part: spoken_digits(part, real_data("fsdd")) for part in ("train", "valid")}; noise = clutter(40, 1.0, 8000)
    few = {part: Sounds(s.waves[s.labels < 3], s.labels[s.labels < 3], s.classes[:3], 8000, s.items[s.labels < 3]) for part, s in parts.items()}
    train = lambda g: (overlay(few["train"], torch.randperm(len(few["train"]), generator=g)[:16], noise, g, (0.0, 6.0)) for _ in range(12))
    valid, test = (overlay(few["valid"], range(k, len(few["valid"]), 2), noise, torch.Generator().manual_seed(k), (0.0, 6.0)) for k in (0, 1))
    with seeded(0): model = from_module(DecibelClassifier(3, 8000), few["train"].classes, "wave", DecibelClassifier.layers, **grid(8000))
    sets = OwnSets(train, 12, valid, replace(test, item=torch.arange(len(test))), few["train"].classes, 8000)
    assert train_module(model, sets, replace(QUICK, epochs=5, schedule="onecycle"))["valid"] > 0.5
    lmac, path = fit_lmac(model, train, 12, valid.x, AreaRule(budget=60.0, most=1, first=4, width=8))
    rows = judge(model, lmac, sets.test, dataset="digits"); ad = rows[(rows.metric == "AD") & (rows.condition == "clutter") & (rows.form == "soft")].groupby("method").value.mean()
    assert ad["L-MAC"] < ad["random bins"] and np.isfinite(ad).all() and 0.01 < path.area[0] < 0.99

# ---- classifiers

@pytest.mark.parametrize("name", ["Conformer", "decibels"])
def test_wrapped_classifiers_answer_as_their_modules_do(name: str, models: dict[str, Explainable], sets: OwnSets):
    model, x = models[name], sets.test.x[:3]
    seen = x if name == "decibels" else model.mel(model.represent(x).values)
    with torch.no_grad(): assert torch.allclose(model(x), model.network.module(seen), atol=1e-3)
    assert model(x).shape == (3, 10) and not model.training

@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_the_grid_is_the_same_in_seconds_at_any_rate(rate: int):
    at = grid(rate)
    assert at["n_fft"] >= at["win"] and at["win"] / rate == pytest.approx(0.032, abs=1e-4) and at["hop"] / rate == pytest.approx(0.016, abs=1e-4)
    with seeded(0): model = from_module(DecibelClassifier(3, rate), list("abc"), "wave", DecibelClassifier.layers, **at)
    assert own_decoder(model, 4).config["sample_rate"] == rate

def test_training_changes_the_classifier_and_no_explainer_does(sets: OwnSets, models: dict[str, Explainable]):
    model = own_models(sets, seed=1)["decibels"]; before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = train_module(model, sets, QUICK)
    assert set(scores) == {"valid", "test"} and all(0 <= v <= 1 for v in scores.values()) and not same(model, before)
    before = {k: v.clone() for k, v in model.state_dict().items()}; modes = [m.training for m in model.modules()]
    fit_lmac(model, sets.train, sets.steps, sets.valid.x, TINY)
    assert same(model, before) and [m.training for m in model.modules()] == modes and all(p.requires_grad for p in model.parameters())

# ---- the rule

def test_decoders_fit_what_is_wrapped():
    image = from_module(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)), ["a", "b"], "image", ["0", "2"], channels=3, size=16)
    assert isinstance(own_decoder(image, 4), ImageDecoder) and explain(image, fit_lmac(image, lambda g: iter([Batch(torch.rand(4, 3, 16, 16, generator=g))]), 1, torch.rand(4, 3, 16, 16), TINY)[0], torch.rand(2, 3, 16, 16)).mask.shape == (2, 16, 16)
    with pytest.raises(ValueError, match="from_module"): own_decoder(nn.Linear(2, 2))

@pytest.mark.parametrize("drops, k", [([10, 20, 60], 1), ([10, 60, 5], 0), ([30, 20, 25], 0), ([20, 10, 25], 2)], ids=str)
def test_the_choice_is_the_last_within_the_budget_and_its_weights_are_back(drops: list[float], k: int, sets: OwnSets, models: dict[str, Explainable], monkeypatch: pytest.MonkeyPatch):
    "The drops are told, so that a step lies above the budget for sure; masks and areas are those of the decoders"
    model, told = models["decibels"], iter(drops)
    def evaluated(*args, **kw) -> pd.DataFrame:
        rows = evaluate(*args, **kw); rows.loc[rows.metric == "AD", "value"] = float(next(told)); return rows
    monkeypatch.setattr("lmac_piq.own_lmac.evaluate", evaluated)
    with pytest.warns(UserWarning, match="more than the budget") if drops[k] > 25 else warnings.catch_warnings(action="error", category=UserWarning):
        lmac, path = fit_lmac(model, sets.train, sets.steps, sets.valid.x, AreaRule(budget=25.0, most=3, first=1, width=4))
    tried = next((n for n, drop in enumerate(drops, 1) if drop > 25), 3)
    assert path.AD.tolist() == drops[:tried] and path.weight.tolist() == [8, 16, 32][:tried] and path.chosen.tolist() == [n == k for n in range(tried)]
    assert lmac.weights.area == path.weight[k] and not lmac.training and np.diff(path.area).max(initial=-1) < -0.01, "each step's masks are smaller"
    assert explain(model, lmac, sets.valid.x).mask.mean().item() == pytest.approx(path.area[k], abs=1e-4), "the decoder is the one that was measured"

def test_a_budget_that_nothing_meets_is_said_aloud(sets: OwnSets, models: dict[str, Explainable]):
    with pytest.warns(UserWarning, match="more than the budget of -1 %.*train longer"): lmac, path = fit_lmac(models["decibels"], sets.train, sets.steps, sets.valid.x, replace(TINY, budget=-1.0))
    assert len(path) == 1 and path.chosen.tolist() == [True] and lmac.weights.area == TINY.start

def test_the_choice_never_sees_the_test_clips_and_a_seed_repeats_it(sets: OwnSets, models: dict[str, Explainable]):
    fitted = [fit_lmac(models["decibels"], sets.train, sets.steps, sets.valid.x, replace(TINY, most=1), seed) for seed in (0, 0, 1)]
    states = [l.state_dict() for l, _ in fitted]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0]) and not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    pd.testing.assert_frame_equal(fitted[0][1], fitted[1][1])

# ---- the verdict

@pytest.mark.parametrize("name", ["Conformer", "decibels"])
def test_rows_hold_every_method_condition_form_and_metric(name: str, sets: OwnSets, models: dict[str, Explainable]):
    lmac, _ = fit_lmac(models[name], sets.train, sets.steps, sets.valid.x, TINY)
    rows = judge(models[name], lmac, sets.test, dataset="scenes")
    assert set(rows.method) == {"L-MAC", "random bins", "loudest bins", "constant", "all ones", "all zeros"} and set(rows.condition) == {"clutter", "clean"} and set(rows.form) == {"soft", "topk"}
    assert {"AI", "AD", "AG", "FF", "Fid-In", "SPS", "COMP", "ap", "iou", "si_sdr_improvement"} <= set(rows[rows.condition == "clutter"].metric)
    assert not {"ap", "iou", "si_sdr_improvement"} & set(rows[rows.condition == "clean"].metric), "a sound alone has no truth to be found"
    assert rows.groupby(["condition", "form", "method", "metric"]).item.apply(lambda i: sorted(i) == list(range(10))).all() and (rows.protocol == "corrected").all()
    assert set(rows[rows.form == "topk"].method) == {"L-MAC", "random bins", "loudest bins"}, "the others rank nothing"
    ones = rows[(rows.method == "all ones") & (rows.form == "soft")].groupby("metric").value.mean()
    assert ones["AD"] == pytest.approx(0, abs=0.05) and ones["Fid-In"] == 1
    areas = rows[(rows.metric == "mask_mean") & (rows.form == "topk")].pivot_table(index=["condition", "item"], columns="method", values="value")
    assert len(areas) == 20 and np.allclose(areas["L-MAC"], areas["loudest bins"], atol=1e-6) and np.allclose(areas["L-MAC"], areas["random bins"], atol=1e-6)

def test_figure_draws_every_step_and_fills_the_chosen():
    path = pd.DataFrame(dict(weight=[8.0, 16.0, 32.0], AD=[5.0, 12.0, 40.0], area=[0.4, 0.2, 0.1], chosen=[False, True, False]))
    axes = path_figure({"a": path, "b": path.assign(AD=path.AD / 2)}, 25.0).axes[0]
    drawn, filled = axes.lines[0], axes.lines[1]
    assert np.allclose(drawn.get_xdata(), [40, 20, 10]) and np.allclose(drawn.get_ydata(), path.AD) and np.allclose([*filled.get_xdata(), *filled.get_ydata()], [20, 12])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"] and "32" in {t.get_text() for t in axes.texts} and "budget" in {t.get_text() for t in axes.texts}

def test_plans():
    assert set(OWN_PRESETS) == {"tiny", "smoke", "cpu", "gpu", "paper"} and get_own_plan("smoke").dataset == "scenes" and get_own_plan("paper").rule.first > get_own_plan("cpu").rule.first
    assert all(p.training.keys() == {"Conformer", "decibels"} for p in OWN_PRESETS.values())
    with pytest.raises(ValueError, match="choose from tiny, smoke, cpu, gpu, paper"): get_own_plan("laptop")
