"Stats against literal formulas, scipy and simulation."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as ss

from lmac_piq.stats import (Interval, bootstrap_ci, cell_columns, compare, holm, over_seeds, paired_difference, paired_test,
                            probability_of_superiority, seed_spread)

finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


def literal_bootstrap(values, groups, n, seed):
    "The cluster bootstrap written out, one resample after another."
    rng, names = np.random.default_rng(seed), np.unique(groups)
    picked = rng.integers(len(names), size=(n, len(names)))
    return [np.concatenate([values[groups == names[g]] for g in row]).mean() for row in picked]


def test_cluster_bootstrap_equals_the_literal_one():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60), rng.integers(12, size=60)
    ours = bootstrap_ci(values, groups, n=300, seed=4)
    assert np.allclose(ours, [values.mean(), *np.quantile(literal_bootstrap(values, groups, 300, 4), [0.025, 0.975])])


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal"])
def test_intervals_agree_with_scipy(method, draw):
    rng = np.random.default_rng(1)
    x = getattr(rng, draw)(size=80)
    ours = bootstrap_ci(x, n=20_000, method=method, level=0.9)
    theirs = ss.bootstrap((x,), np.mean, n_resamples=20_000, method=method, confidence_level=0.9, rng=rng).confidence_interval
    assert np.allclose(ours[1:], theirs, atol=0.03 * (theirs.high - theirs.low))


def test_coverage_by_clip_and_by_row():
    clips, by_clip, by_row = np.repeat(np.arange(80), 2), 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.normal(size=80), 2) + 0.3 * rng.normal(size=160)
        _, low, high = bootstrap_ci(x, clips, n=1000)
        by_clip += low <= 0 <= high
        _, low, high = bootstrap_ci(x, n=1000)
        by_row += low <= 0 <= high
    assert 0.91 < by_clip / 400 < 0.98 and by_row / 400 < 0.89


@given(st.lists(finite, min_size=2, max_size=30), st.floats(0.1, 10), finite)
@settings(max_examples=50, deadline=None)
def test_interval_contains_its_mean_and_follows_shift_and_scale(values, scale, shift):
    x = np.array(values)
    ci, moved = bootstrap_ci(x, n=200), bootstrap_ci(scale * x + shift, n=200)
    assert ci.low <= ci.mean + 1e-9 and ci.mean <= ci.high + 1e-9 or np.ptp(x) > 0
    assert np.allclose(moved, scale * np.array(ci) + shift, atol=1e-6)


def test_undefined_values_are_left_out_and_degenerate_cases_defined():
    x = [1.0, np.nan, 2.0, 4.0, np.nan]
    assert bootstrap_ci(x, [0, 0, 1, 2, 3]) == bootstrap_ci([1.0, 2.0, 4.0])
    assert np.isnan(bootstrap_ci([])).all() and np.isnan(bootstrap_ci([np.nan])).all()
    one = bootstrap_ci([2.0, 4.0], ["a", "a"])
    assert one.mean == 3 and np.isnan(one.low) and np.isnan(one.high)
    for method in ("percentile", "bca"): assert bootstrap_ci([7.0] * 4, method=method) == Interval(7, 7, 7)


@pytest.mark.parametrize("bad", [dict(level=0), dict(level=95), dict(method="t"), dict(groups=[1])])
def test_bad_requests_are_refused(bad):
    with pytest.raises(ValueError): bootstrap_ci([1.0, 2.0], **bad)


def test_paired_difference_beats_separate_intervals_and_counts():
    rng = np.random.default_rng(2)
    easy = rng.normal(size=100)
    a, b = easy + 0.1 + 0.1 * rng.normal(size=100), easy
    a[3] = b[7] = np.nan
    d = paired_difference(a, b)
    assert d["low"] > 0 and (d["n"], d["undefined"]) == (98, 2)
    assert bootstrap_ci(a).low < bootstrap_ci(b).high
    back = paired_difference(b, a)
    assert np.allclose([back["mean"], back["low"], back["high"]], [-d["mean"], -d["high"], -d["low"]])
    with pytest.raises(ValueError): paired_difference([1, 2], [1])


def test_tests_and_superiority():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=40) + 0.4, rng.normal(size=40)
    assert np.isclose(paired_test(a, b), ss.wilcoxon(a - b, zero_method="pratt").pvalue)
    assert abs(paired_test(a, b, method="permutation") - ss.ttest_rel(a, b).pvalue) < 0.02
    assert paired_test(a, a) == 1 and np.isnan(paired_test([1.0], [0.0]))
    groups = np.repeat(np.arange(20), 2)
    assert np.isclose(paired_test(a, b, groups), ss.wilcoxon((a - b).reshape(20, 2).mean(1), zero_method="pratt").pvalue)
    assert probability_of_superiority(a, a) == 0.5 and probability_of_superiority(a + 9, b) == 1 and np.isnan(probability_of_superiority([], []))
    with pytest.raises(ValueError): paired_test(a, b, method="t")


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_the_literal_procedure(p):
    literal = [max([min(1, q * sum(r >= q if j >= i else False for j, r in enumerate(sorted(p)))) for i, q in enumerate(sorted(p)) if q <= x])
               for x in p]
    assert np.allclose(holm(p), literal)


def tidy(seed=0, clips=60):
    rng = np.random.default_rng(seed)
    level = rng.normal(size=clips)
    rows = [(m, s, i, f, "FF", level[i] + shift + 0.1 * rng.normal())
            for m, shift, seeds in (("lmac", 0.0, 3), ("random", -0.5, 1)) for s in range(seeds) for i in range(clips) for f in ("soft", "topk")]
    return pd.DataFrame(rows, columns=["method", "seed", "item", "form", "metric", "value"])


def test_compare_averages_seeds_pairs_items_and_counts():
    frame = tidy()
    table = compare(frame)
    assert list(table["form"]) == ["soft", "topk"] and set(table["method"]) == {"random"} and table["clear"].all()
    soft = frame[frame["form"] == "soft"]
    per = {m: g.groupby("item")["value"].mean() for m, g in soft.groupby("method")}
    expected = paired_difference(per["random"].values, per["lmac"].values)
    row = table.iloc[0]
    assert np.isclose(row["difference"], expected["mean"]) and np.isclose(row["low"], expected["low"]) and row["n"] == 60 and row["undefined"] == 0
    hole = frame.copy()
    hole.loc[(hole["method"] == "lmac") & (hole["seed"] == 1) & (hole["item"] == 5), "value"] = np.nan
    assert (compare(hole)["undefined"] == 1).all() and (compare(hole)["n"] == 59).all()
    assert np.isclose(compare(frame.sample(frac=1, random_state=0)).set_index("form").loc["soft", "difference"], row["difference"])


def test_compare_clusters_by_clip_and_survives_cells_without_reference():
    frame = tidy()
    frame["clip"] = frame["item"] // 2
    assert compare(frame, cluster="clip").iloc[0]["n"] == 60
    part = frame[~((frame["method"] == "lmac") & (frame["form"] == "topk"))]
    row = compare(part).set_index("form").loc["topk"]
    assert row["n"] == 0 and row["unpaired"] == 60 and np.isnan(row["difference"]) and not row["clear"]
    with pytest.raises(ValueError, match="piq"): compare(frame, reference="piq")
    with pytest.raises(ValueError, match="several values"): over_seeds(frame, ["metric"])
    with pytest.raises(ValueError, match="clop"): over_seeds(frame, cell_columns(frame), cluster="clop")


def test_seed_spread():
    table = seed_spread(tidy()).set_index(["form", "method"])
    means = tidy().query("method == 'lmac' and form == 'soft'").groupby("seed")["value"].mean()
    row = table.loc[("soft", "lmac")]
    assert np.allclose(row[["seeds", "mean", "sd", "lowest", "highest"]].astype(float), [3, means.mean(), means.std(), means.min(), means.max()])
