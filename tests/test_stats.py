"Stats against literal formulas, scipy and simulation."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as ss

from lmac_piq.metrics import summarise
from lmac_piq.stats import (Interval, bootstrap_ci, cell_columns, compare, decidable, holm, over_seeds, paired_difference, paired_test,
                            probability_of_superiority, rank_biserial, seed_spread)

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
    assert np.isclose(paired_test(a, b), ss.wilcoxon(a - b, zero_method="pratt", method="asymptotic").pvalue)
    assert abs(paired_test(a, b, method="permutation") - ss.ttest_rel(a, b).pvalue) < 0.02
    assert paired_test(a, a) == 1 and np.isnan(paired_test([1.0], [0.0]))
    groups = np.repeat(np.arange(20), 2)
    assert np.isclose(paired_test(a, b, groups), ss.wilcoxon((a - b).reshape(20, 2).mean(1), zero_method="pratt", method="asymptotic").pvalue)
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


def test_what_items_were_cut_from_is_drawn_whole_unless_told_otherwise():
    "A table that names origins is resampled by them: every item twice says no more than once"
    once = tidy().assign(origin=lambda t: t["item"])
    twice = pd.concat([once, once.assign(item=once["item"] + 1000)])
    for make in (lambda t, **kw: compare(t, n=300, **kw).drop(columns=["n", "unpaired"]), lambda t, **kw: summarise(t, n=300, **kw).drop(columns="n")):
        pd.testing.assert_frame_equal(make(twice), make(once))
        own = make(twice, cluster="item"); assert ((own["high"] - own["low"]) < 0.85 * (make(once)["high"] - make(once)["low"])).all()


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


def test_rank_biserial_equals_the_literal_sum_and_the_statistic_of_the_test():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=40) + 0.3, rng.normal(size=40)
    d = a - b
    ranks = [sum(abs(x) <= abs(y) for x in d) for y in d]                            # no ties
    assert np.isclose(rank_biserial(a, b), sum(r * np.sign(x) for r, x in zip(ranks, d)) / sum(ranks))
    larger = ss.wilcoxon(d, alternative="greater").statistic                         # sum of the positive ranks
    assert np.isclose(rank_biserial(a, b), 2 * larger / sum(ranks) - 1)
    assert rank_biserial([1.0], [0.0]) == 1 and rank_biserial([2, 2], [2, 2]) == 0 and np.isnan(rank_biserial([np.nan], [0.0]))
    groups = np.repeat(np.arange(20), 2)
    assert np.isclose(rank_biserial(a, b, groups), rank_biserial(d.reshape(20, 2).mean(1), np.zeros(20)))


def test_every_row_of_compare_is_what_the_single_functions_say():
    rng, clips = np.random.default_rng(6), 30
    frame = pd.DataFrame([(m, i, f"clip {i // 2}", k, rng.normal() + (m == "b")) for m in ("lmac", "a", "b", "c") for i in range(2 * clips) for k in ("FF", "AD")],
                         columns=["method", "item", "clip", "metric", "value"])
    frame.loc[rng.random(len(frame)) < 0.1, "value"] = np.nan
    frame = frame[~((frame["method"] == "c") & (frame["item"] % 7 == 0))]
    for method in ("percentile", "bca"):
        table = compare(frame, cluster="clip", method=method, n=300)
        for _, r in table.iterrows():
            one = frame[frame["metric"] == r["metric"]].pivot(index=["item", "clip"], columns="method", values="value")
            pair = one[[r["method"], "lmac"]].dropna()
            args = pair[r["method"]], pair["lmac"], pair.index.get_level_values("clip")
            d = paired_difference(*args, method=method, n=300)
            assert np.allclose([r["difference"], r["low"], r["high"]], [d["mean"], d["low"], d["high"]]) and r["n"] == len(pair)
            assert np.isclose(r["p"], paired_test(*args)) and np.isclose(r["superiority"], probability_of_superiority(*args)) and np.isclose(r["rank_biserial"], rank_biserial(*args))
            assert r["unpaired"] == (9 if r["method"] == "c" else 0) and r["n"] + r["undefined"] + r["unpaired"] == 60
    small = frame.astype({"method": "category", "metric": "category", "clip": "category"})
    assert np.allclose(compare(small, cluster="clip", method="bca", n=300).select_dtypes("number"), table.select_dtypes("number"))
    assert np.isclose(compare(frame, cluster="clip", test="permutation", n=100)["p"].iloc[-1], paired_test(*args, method="permutation"))


def test_the_family_of_tests_is_the_table_unless_it_is_named():
    rng = np.random.default_rng(7)
    frame = pd.DataFrame([(m, i, k, rng.normal() + 0.5 * (m == "a")) for m in ("lmac", "a", "b") for i in range(40) for k in ("FF", "AD", "AI")],
                         columns=["method", "item", "metric", "value"])
    table = compare(frame)
    assert np.allclose(table["p_holm"], holm(table["p"]))
    by_metric, by_method = (compare(frame, family=f) for f in (["metric"], ["method"]))
    for k in ("FF", "AD", "AI"): assert np.allclose(by_metric.loc[by_metric["metric"] == k, "p_holm"], holm(table.loc[table["metric"] == k, "p"]))
    assert (by_metric["p_holm"] <= table["p_holm"]).all() and (by_method["p_holm"] <= table["p_holm"]).all()
    without = compare(frame, test=None)
    assert list(without.columns) == [c for c in table.columns if c not in ("p", "p_holm")]
    with pytest.raises(ValueError, match="condition"): compare(frame, family=["condition"])
    with pytest.raises(ValueError, match="sign"): compare(frame, test="sign")


def test_fewer_than_six_clips_are_never_clear():
    rng = np.random.default_rng(8)
    for clips in (2, 3, 5, 6, 9):
        frame = pd.DataFrame([(m, i, i // 4, k, 1.0 * (m == "a") + 0.1 * rng.random()) for m in ("lmac", "a") for i in range(4 * clips) for k in ("FF", "AD")],
                             columns=["method", "item", "clip", "metric", "value"])
        for method in ("percentile", "bca"):
            table = compare(frame, cluster="clip", method=method, n=200)
            assert (table["low"] > 0).all() and table["clear"].eq(clips >= 6).all() and table["n"].eq(4 * clips).all()
    alike = pd.DataFrame([(m, i, "FF", float(m == "a")) for m in ("lmac", "a") for i in range(7)], columns=["method", "item", "metric", "value"])
    assert compare(alike)["clear"].all() and not compare(alike[alike["item"] < 5])["clear"].any() and not compare(alike, level=0.99)["clear"].any()
    assert compare(alike[alike["item"] < 5], level=0.9)["clear"].all() and not decidable(0) and decidable(100_000)


def test_one_item_or_none_is_a_row_without_interval_or_test():
    one = pd.DataFrame([("lmac", 0, "FF", 0.5), ("a", 0, "FF", 0.75), ("lmac", 0, "SPS", np.nan), ("a", 0, "SPS", 0.2)], columns=["method", "item", "metric", "value"])
    ff, sps = compare(one).set_index("metric").loc[["FF", "SPS"]].to_dict("records")
    assert ff["difference"] == 0.25 and ff["n"] == 1 and ff["superiority"] == 1 and ff["rank_biserial"] == 1 and not ff["clear"]
    assert all(np.isnan(ff[c]) for c in ("low", "high", "p", "p_holm"))
    assert sps["n"] == 0 and sps["undefined"] == 1 and all(np.isnan(sps[c]) for c in ("difference", "superiority", "rank_biserial", "p", "p_holm"))
    alone = compare(one[one["method"] == "lmac"])
    assert len(alone) == 0 and "p_holm" in alone


def test_seed_spread():
    table = seed_spread(tidy()).set_index(["form", "method"])
    means = tidy().query("method == 'lmac' and form == 'soft'").groupby("seed")["value"].mean()
    row = table.loc[("soft", "lmac")]
    assert np.allclose(row[["seeds", "mean", "sd", "lowest", "highest"]].astype(float), [3, means.mean(), means.std(), means.min(), means.max()])
