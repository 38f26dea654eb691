"""A report says what its table holds: means, paired intervals, directions, counts, the same bytes each time."""
import json, re, xml.etree.ElementTree as ET
from html.parser import HTMLParser
import numpy as np, pandas as pd, pytest, torch
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from lmac_piq.classifier import AudioClassifier
from lmac_piq.data import ESC50, image_set
from lmac_piq.evidence import by_origin
from lmac_piq.experiment import esc50_clips, publish
from lmac_piq.explanation import Attribution, explain
from lmac_piq.metrics import METRICS
from scipy.stats import kendalltau

from lmac_piq import report
from lmac_piq.report import (CARD, agreement_figure, caption, curve_figure, difference_table, forest_figure, index_page, localisation_figure, loss_figure,
                             main_table, metric_card, panel_figure, randomisation_figure, rank_agreement, rank_table, reported, roar_figure, save_table, show, sweep_figure,
                             table_html, tally, verdicts, wins)
from lmac_piq.stats import compare, holm, paired_difference, paired_test
from lmac_piq.style import BOUNDS, LOOKS, look, save_figure

N = 40

def rows(method: str, metric: str, values: np.ndarray, **cell) -> pd.DataFrame:
    "Tidy rows of one method and metric; any column of the schema can be given"
    columns = dict(run_id="r", preset="p", protocol="corrected", dataset="scenes", condition="clean", split="test", form="soft", seed=0, item=np.arange(len(values))) | cell
    return pd.DataFrame(dict(columns, method=method, metric=metric, value=values))

def table(**shift: float) -> pd.DataFrame:
    "AI and AD of methods that differ from a common base by a constant and a little noise"
    rng = np.random.default_rng(0)
    base = rng.uniform(20, 80, N)
    return pd.concat([rows(m.replace("_", " "), metric, base + s + rng.normal(size=N)) for m, s in shift.items() for metric in ("AI", "AD")], ignore_index=True)

@pytest.fixture(scope="module")
def frame() -> pd.DataFrame: return table(ours=5, saliency=0, loudest_bins=5, all_ones=30)

# ---- the tables

def test_means_are_those_of_the_items(frame):
    made = main_table(frame, "ours").set_index("method")
    assert list(made.index) == ["ours", "saliency", "loudest bins", "all ones"]  # the reference first, the nulls last
    for metric in ("AI", "AD"):
        expected = frame[frame["metric"] == metric].groupby("method")["value"].mean()
        assert np.allclose(made[metric], expected[made.index]) and (made[f"{metric} low"] < made[metric]).all() and (made[metric] < made[f"{metric} high"]).all()
    assert (made["items"] == N).all() and (made["seeds"] == 1).all() and (made["AI undefined"] == 0).all()

def test_differences_are_paired_and_from_the_reference(frame):
    d = difference_table(frame, "ours").set_index(["metric", "method"])
    wide = frame.pivot_table(index="item", columns=["metric", "method"], values="value")
    for (metric, method), r in d.iterrows():
        expected = paired_difference(wide[metric]["ours"], wide[metric][method])
        assert np.allclose([r["difference"], r["low"], r["high"]], [expected[k] for k in ("mean", "low", "high")]) and r["n"] == N

def test_what_is_better_depends_on_the_metric(frame):
    favours = difference_table(frame, "ours").set_index(["metric", "method"])["favours"]
    assert favours["AI", "saliency"] == "ours" and favours["AD", "saliency"] == "saliency"  # 5 higher: good for AI, bad for AD
    assert favours["AI", "loudest bins"] == "" == favours["AD", "loudest bins"]

def test_best_needs_a_lead_over_everyone_but_the_bounds(frame):
    made = main_table(frame, "ours").set_index("method")
    assert not made["AI best"].any()          # ours and the loudest bins are level; all ones lead, but are a bound
    assert list(made.index[made["AD best"]]) == ["saliency"]
    alone = main_table(frame[frame["method"] != "loudest bins"], "ours").set_index("method")
    assert list(alone.index[alone["AI best"]]) == ["ours"]

def test_order_of_the_rows_does_not_matter(frame):
    shuffled = frame.sample(frac=1, random_state=0)
    for make in (main_table, difference_table): pd.testing.assert_frame_equal(make(frame, "ours"), make(shuffled, "ours"))

def test_undefined_is_counted_and_shown():
    frame = table(ours=5, saliency=0, all_zeros=0)
    frame.loc[(frame["method"] == "saliency") & (frame["metric"] == "AD") & (frame["item"] < 3), "value"] = np.nan
    frame.loc[(frame["method"] == "all zeros") & (frame["metric"] == "AI"), "value"] = np.nan
    made, d = main_table(frame, "ours").set_index("method"), difference_table(frame, "ours").set_index(["metric", "method"])
    assert made.loc["saliency", "AD undefined"] == 3 == d.loc[("AD", "saliency"), "undefined"] and made.loc["saliency", "items"] == N
    assert np.isnan(made.loc["all zeros", "AI"]) and made.loc["all zeros", "AI undefined"] == N and d.loc[("AI", "all zeros"), "favours"] == ""
    for text in (table_html(made.reset_index()), table_html(d.reset_index())): assert "3 undefined" in text and f"{N} undefined" in text and "nan" not in text

def test_seeds_are_averaged_within_the_item():
    base = np.random.default_rng(0).uniform(20, 60, N)
    frame = pd.concat([rows("ours", "AI", base + 10 * s, seed=s) for s in (0, 1, 2)] + [rows("other", "AI", base)])
    made, d = main_table(frame, "ours").set_index("method"), difference_table(frame, "ours").iloc[0]
    assert made.loc["ours", "seeds"] == 3 and made.loc["ours", "AI seed sd"] == pytest.approx(10) and np.isnan(made.loc["other", "AI seed sd"])
    assert d["difference"] == pytest.approx(10) and d["n"] == N and "3 of ours; 1 of every other method" in caption(frame, "ours")[0]

def test_each_protocol_and_form_has_its_metrics():
    values = np.linspace(0, 1, N)
    frame = pd.concat([rows(m, metric, values, protocol=p, form=f) for m in ("ours", "other") for metric in ("AD", "AD_published", "SPS", "p_c", "AI")
                       for p, f in (("published", "soft"), ("corrected", "soft"), ("corrected", "topk"))])
    shown = {(p, f): set(part["metric"]) for (p, f), part in reported(frame).groupby(["protocol", "form"])}
    assert shown == {("published", "soft"): {"AD_published", "SPS", "AI", "p_c"}, ("corrected", "soft"): {"AD", "SPS", "AI", "p_c"}, ("corrected", "topk"): {"AD", "AI"}}
    sections = table_html(main_table(frame, "ours")).split("<h4>")[1:]
    assert len(sections) == 2 and "AD (published)" in sections[0] and "AD (published)" not in sections[1].split("</table>")[0]

@pytest.mark.parametrize("items", [0, 1])
def test_a_table_of_one_clip_decides_nothing(items):
    frame = pd.concat([rows("ours", "AI", np.array([50.0])), rows("loudest bins", "AI", np.array([20.0]))])
    if not items:
        with pytest.raises(ValueError, match="card"): main_table(frame[:0], "ours")
    else:
        d, made = difference_table(frame, "ours"), main_table(frame, "ours")
        assert list(d["favours"]) == [""] and not made["AI best"].any() and "not decided on AI" in verdicts(d)[0] and "nan" not in table_html(d) + table_html(made)

@pytest.mark.parametrize("change, reason", [(lambda f: f.drop(columns="protocol"), "no column"), (lambda f: pd.concat([f, f.assign(preset="q")]), "mixes presets"),
                                            (lambda f: f.assign(metric="made up"), "card"), (lambda f: pd.concat([f, f]), "several values")])
def test_a_table_that_cannot_be_reported_is_refused(frame, change, reason):
    with pytest.raises(ValueError, match=reason): main_table(change(frame), "ours")

def test_an_absent_reference_is_named(frame):
    with pytest.raises(ValueError, match="nobody"): difference_table(frame, "nobody")

def test_the_card_knows_every_metric_it_shows():
    card = metric_card()
    assert set(card.index) == set(CARD) <= set(METRICS) and set(card["better"]) == {"higher", "lower", "neither"}
    with pytest.raises(ValueError, match="corrected"): metric_card("mine")

# ---- the sentences

def test_sentences_speak_for_the_winner(frame):
    said = wins(frame, "ours")
    assert re.fullmatch(r"ours beats saliency on AI \(soft\): \+(\d\.\d) \[\d\.\d, \d\.\d\] %(, p<.001)?", said[0])
    assert re.fullmatch(r"saliency beats ours on AD \(soft\): −\d\.\d \[−\d\.\d, −\d\.\d\] %(, p<.001)?", said[1])
    assert [s.split(" between")[0] for s in said[2:4]] == ["not decided"] * 2
    assert len(said) == 5 and not any("all ones beats" in s for s in said) and said[-1] == tally(difference_table(frame, "ours"))
    unsure = wins(difference_table(frame, "ours").assign(p_holm=0.2))
    assert unsure[0].startswith("ours is ahead of saliency on AI") and unsure[1].startswith("saliency is ahead of ours") and not any("beats" in s for s in unsure)
    assert "Of 4 comparisons" in said[-1] and "wins 1 and loses 1; 2 are not decided" in said[-1] and "about 0.2" in said[-1]

def test_sentences_name_what_varies_and_nothing_else(frame):
    both = pd.concat([frame, frame.assign(condition="noise 0 dB")])
    assert all(s.startswith(("clean: ", "noise 0 dB: ")) for s in wins(both, "ours")[:-1]) and not any("scenes" in s for s in wins(both, "ours"))
    assert verdicts(difference_table(frame, "ours")) == ["ours against loudest bins is not decided on AI and AD."]

def test_caption_follows_the_frame(frame):
    right = rows("ours", "correct", (np.arange(N) < 30).astype(float))
    text = " ".join(caption(pd.concat([frame, right]), "ours"))
    assert f"{N} items" in text and "75.0 % (scenes, test, clean)" in text and "preset p" in text and "1 of each method" in text
    text = " ".join(caption(pd.concat([frame, right]).query("item < 10"), "ours"))
    assert "10 items" in text and "100.0 %" in text

# ---- many comparisons

@pytest.fixture
def tested(monkeypatch):
    "A comparison with a p-value per pair, whatever the module of statistics adds by itself"
    def with_p(frame, reference, by, cluster, **kw):
        d = compare(frame, reference, by, cluster, **kw)
        wide = frame.pivot_table(index="item", columns=["metric", "method"], values="value")
        return d.assign(p=[paired_test(wide[r["metric"]][r["method"]], wide[r["metric"]][reference]) for r in d.to_dict("records")]).drop(columns="p_holm", errors="ignore")
    monkeypatch.setattr(report, "compare", with_p)

def test_tests_are_adjusted_for_their_number_without_the_bounds(tested, frame):
    d = difference_table(frame, "ours")
    counted = ~d["method"].isin(BOUNDS)
    assert np.allclose(d.loc[counted, "p_holm"], holm(d.loc[counted, "p"])) and d.loc[~counted, "p_holm"].isna().all() and counted.sum() == 4
    assert "Holm" in tally(d) and "for 4 tests 1 of the wins and 1 of the losses remain" in tally(d)
    said = wins(d)
    assert said[0].endswith(", p<.001") and "p=" in said[2] and "p<.001" in table_html(d).replace("&lt;", "<") and "▲ +" in table_html(d) and "*<small>" in table_html(d)
    assert verdicts(d, "saliency") == ["ours against saliency is better on AI*; worse on AD*.", "* also after Holm's adjustment."]

def test_effect_is_the_share_of_clips_on_which_the_reference_is_better():
    base = np.arange(10.0)
    frame = pd.concat([rows(m, metric, base + s * (np.arange(10) < 8)) for m, s in (("ours", 1), ("other", 0)) for metric in ("AI", "AD")])
    share = difference_table(frame, "ours").set_index("metric")["superiority"]
    assert share["AI"] == pytest.approx(0.9) and share["AD"] == pytest.approx(0.1)

def test_a_decided_interval_that_the_test_does_not_confirm_has_no_star(tested, monkeypatch, frame):
    monkeypatch.setattr(report, "holm", lambda p: np.ones(len(p)))
    d = difference_table(frame, "ours")
    assert "0 of the wins and 0 of the losses remain" in tally(d) and "*<small>" not in table_html(d) and "▲ +" in table_html(d) and "*" not in verdicts(d, "saliency")[0]

def test_no_star_where_ranks_speak_for_the_other_side():
    d = np.r_[np.full(35, -1.0), np.full(5, 60.0)] + np.linspace(0, 0.1, N)                 # most clips a little worse, a few much better
    frame = pd.concat([rows("ours", "AI", 20 + d), rows("other", "AI", np.full(N, 20.0))])
    t = difference_table(frame, "ours")
    if "rank_biserial" not in t: pytest.skip("no rank-biserial correlation")
    assert t["favours"][0] == "ours" and t["rank_biserial"][0] < 0 and t["p_holm"][0] < 0.05 and "*<small>" not in table_html(t) and "0 of the wins" in tally(t)

# ---- many methods and conditions

def test_methods_on_fewer_items_are_counted_and_paired_on_what_they_share():
    rng = np.random.default_rng(1)
    base = rng.uniform(20, 60, N)
    frame = pd.concat([rows("ours", "AI", base + 5 + rng.normal(size=N)), rows("saliency", "AI", base), rows("LIME", "AI", base[:10] + 1, item=np.arange(10))])
    made, d = main_table(frame, "ours").set_index("method"), difference_table(frame, "ours").set_index("method")
    assert made.loc["LIME", "items"] == 10 and made.loc["ours", "AI best"] and d.loc["LIME", "n"] == 10 and d.loc["LIME", "unpaired"] == N - 10
    assert f"{N} items, 10 for LIME" in caption(frame, "ours")[0] and "<small>10 items</small>" in table_html(made.reset_index())

def test_levels_set_groups_apart_only_where_there_are_several():
    values = np.linspace(0, 50, N)
    frame = pd.concat([rows(m, "AI", values + s, condition=c, snr_db=level) for m in ("ours", "other") for s, (c, level) in enumerate((("clean", np.nan), ("mixture", 6.0), ("mixture", -6.0)))])
    made = main_table(frame, "ours")
    assert made[["condition", "snr_db"]].drop_duplicates().values.tolist()[1:] == [["mixture", -6.0], ["mixture", 6.0]] and len(made) == 6 and made["AI"].notna().all()
    assert "mixture, −6 dB" in table_html(made) and "clean · soft" in table_html(made) and len(difference_table(frame, "ours")) == 3 and "nan" not in table_html(difference_table(frame, "ours"))
    assert "snr_db" not in main_table(frame[frame["snr_db"] != 6], "ours")
    assert any(s.startswith("mixture, −6 dB: ") for s in wins(frame, "ours"))

def test_conditions_come_in_the_order_of_the_experiment():
    frame = pd.concat([rows("ours", "AI", np.arange(N), condition=c) for c in ("speech", "clean", "white noise", "mixture", "noise")])
    assert list(main_table(frame, "ours")["condition"]) == ["clean", "noise", "mixture", "white noise", "speech"]

def test_categories_give_the_same_table(frame):
    small = frame.astype({c: "category" for c in ("method", "metric", "form", "condition", "protocol", "dataset", "split")})
    for make in (main_table, difference_table): pd.testing.assert_frame_equal(make(frame, "ours"), make(small, "ours"), check_dtype=False, check_categorical=False)

def test_no_two_methods_look_alike():
    assert len({(l.colour, l.marker) for l in LOOKS.values()}) == len(LOOKS) and len({look(f"unheard of {k}") for k in range(20)}) > 5

# ---- ranks

def scored(**skill: tuple[float, float]) -> pd.DataFrame:
    "AP and AD of methods"
    rng = np.random.default_rng(2)
    return pd.concat([rows(m.replace("_", " "), metric, v + rng.normal(size=N)) for m, pair in skill.items() for metric, v in zip(("ap", "AD"), pair)])

def test_rank_correlation_is_that_of_the_means_with_directions():
    frame = scored(a=(50, 10), b=(40, 20), c=(30, 40), d=(20, 30), e=(10, 50), random_bins=(0, 90), all_ones=(99, 0))
    t = rank_agreement(frame).set_index("methods")
    means = frame[~frame["method"].isin(BOUNDS)].groupby(["metric", "method"])["value"].mean()
    assert t.loc["with nulls", "count"] == 6 and t.loc["without nulls", "count"] == 5 and set(t["clips"]) == {N}
    assert t.loc["with nulls", "kendall"] == pytest.approx(kendalltau(means["ap"], -means["AD"])[0]) == pytest.approx(t.loc["with nulls", "kendall low"])
    assert "agree: AD" in t.attrs["caption"][0] and "not decided: AD" in t.attrs["caption"][1]                # five methods are too few
    ranks = rank_table(frame)
    assert list(ranks["method"]) == ["a", "b", "c", "d", "e", "random bins"] and list(ranks["AD"]) == [1, 2, 4, 3, 5, 6]
    figure = agreement_figure(frame)
    assert figure.axes[0].yaxis_inverted() and len(figure.legends[0].texts) == 6 and "τ 0.87 with nulls" in figure.axes[0].get_title()

def test_ranks_need_truth_and_questions(frame):
    with pytest.raises(ValueError, match="truth"): rank_agreement(frame)
    with pytest.raises(ValueError, match="several values of condition"): rank_agreement(pd.concat([scored(a=(1, 2)), scored(a=(1, 2)).assign(condition="noise")]))

def test_two_methods_have_no_rank_correlation():
    t = rank_agreement(scored(a=(50, 10), b=(40, 20)))
    assert t["kendall"].isna().all() and "undefined: AD" in t.attrs["caption"][0] and "nan" not in table_html(t)

# ---- the pages

class Balanced(HTMLParser):
    "Fails on a tag that is closed out of order"
    def __init__(self): super().__init__(); self.open = []
    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag

def test_saved_tables_are_whole_escaped_and_the_same_each_time(tmp_path, frame):
    frame = frame.assign(method=frame["method"].replace("saliency", "<script>alert('x')</script>"))
    for name, make in (("main", main_table), ("differences", difference_table)):
        made = make(frame, "ours")
        path = save_table(made, tmp_path, name)
        text, csv = path.read_text(), path.with_suffix(".csv").read_bytes()
        check = Balanced(); check.feed(text); assert check.open == []
        assert "<script" not in text and "&lt;script" in text and not re.search(r"https?:|//", text) and show(made).data in text
        again = save_table(make(frame, "ours"), tmp_path, name)
        assert again.read_text() == text and again.with_suffix(".csv").read_bytes() == csv
    assert sorted(p.name for p in tmp_path.iterdir()) == ["differences.csv", "differences.html", "main.csv", "main.html"]
    assert np.allclose(pd.read_csv(tmp_path/"main.csv")["AI"], main_table(frame, "ours")["AI"], rtol=1e-5)

def test_index_links_to_what_is_there(tmp_path, frame):
    save_table(main_table(frame, "ours"), tmp_path/"tables", "main")
    save_figure(forest_figure(difference_table(frame, "ours")), tmp_path/"figures", "forest")
    (tmp_path/"siren").mkdir(); (tmp_path/"siren/index.html").write_text("x")
    text = index_page(tmp_path, "A & B", [("tables/main.html", "<b>"), (tmp_path/"figures/forest.png", ""), ("siren/index.html", "sounds")]).read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', text)
    assert {"tables/main.csv", "figures/forest.svg", "siren/index.html"} < set(links) and all((tmp_path/l).is_file() for l in links if l != "data:,")
    assert "A &amp; B" in text and "&lt;b&gt;" in text and str(tmp_path) not in text and ">siren<" in text
    with pytest.raises(FileNotFoundError, match="none"): index_page(tmp_path, "x", [("none.png", "")])
    with pytest.raises(ValueError, match="outside"): index_page(tmp_path/"tables", "x", [("../figures/forest.png", "")])

# ---- the figures

def test_saved_figures_are_the_same_each_time_and_carry_no_date(tmp_path, frame):
    first, second = (save_figure(forest_figure(difference_table(frame, "ours")), tmp_path/k, "forest", dpi=50) for k in "ab")
    for kind in (".png", ".svg"): assert first.with_suffix(kind).read_bytes() == second.with_suffix(kind).read_bytes()
    svg = first.with_suffix(".svg").read_text()
    ET.fromstring(svg)
    assert "dc:date" not in svg and "AI" in svg and b"Software" not in first.read_bytes() and plt.get_fignums() == []

def test_forest_draws_every_interval_in_its_colour(frame):
    d = difference_table(frame, "ours")
    figure = forest_figure(d)
    assert [ax.get_xlabel() for ax in figure.axes] == ["Δ AI (%)", "Δ AD (%)"] and len(figure.legends) == 1
    for ax, metric in zip(figure.axes, ("AI", "AD")):
        part = d[(d["metric"] == metric) & ~d["method"].isin(BOUNDS)]
        ends = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
        assert np.allclose([l.get_xdata() for l in ends], part[["low", "high"]]) and [to_hex(l.get_color()).upper() for l in ends] == [look(m).colour for m in part["method"]]
        assert ax.get_xlim()[0] < min(0, part["low"].min()) and ax.get_xlim()[1] > max(0, part["high"].max())

def test_curve_has_a_line_and_a_band_per_method():
    base = np.linspace(0, 0.5, N)
    curve = pd.concat([rows(m, metric, base + a * s, area=a, condition=c) for m, s in (("L-MAC", 0.5), ("random bins", 0.1)) for metric in ("FF", "p_kept")
                       for a in (0.5, 0.01, 0.1) for c in ("clean", "noise 0 dB")])
    figure = curve_figure(curve)
    assert len(figure.axes) == 4 and all(ax.get_xscale() == "log" and len(ax.collections) == 2 for ax in figure.axes)
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 10, 50]] * 2 and len(figure.legends[0].texts) == 2
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), base.mean() + 0.5 * np.array([0.01, 0.1, 0.5]))
    assert len(curve_figure(curve.query("metric == 'FF' and condition == 'clean'")).axes) == 1
    with pytest.raises(ValueError, match="FF and p_kept"): curve_figure(curve.query("metric == 'FF'").assign(metric="AI"))

def test_sweep_has_a_panel_per_contaminant_and_metric():
    base = np.linspace(0, 50, N)
    frame = pd.concat([rows(m, metric, base + level, condition=c, snr_db=level) for m in ("L-MAC", "random bins", "all ones") for metric in ("AI", "AD") for c in ("speech", "noise") for level in (6.0, -6.0, 0.0)])
    figure = sweep_figure(frame)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["noise", "speech"] and len(figure.axes) == 4 and len(figure.legends[0].texts) == 2
    assert list(figure.axes[0].lines[0].get_xdata()) == [-6, 0, 6] and np.allclose(figure.axes[0].lines[0].get_ydata(), base.mean() + np.array([-6, 0, 6]))
    with pytest.raises(ValueError, match="several values of split"): sweep_figure(pd.concat([frame, frame.assign(split="fold 4")]))
    assert len(sweep_figure(frame.assign(form="topk")).axes) == 4            # the only form there is
    with pytest.raises(ValueError, match="SNR"): sweep_figure(frame.assign(snr_db=np.nan))

def test_randomisation_goes_from_deep_to_shallow():
    frame = pd.concat([pd.DataFrame(dict(layer=f"blocks.{5 - k}" if k else "none", depth=k, method="L-MAC", variant=v, item=range(8), metric=m, value=1 / (k + 1)))
                       for m in ("ssim", "spearman") for v, depths in (("kept", (1, 2, 3)), ("retrained", (1, 3)), ("other seed", (0,))) for k in depths])
    figure = randomisation_figure(frame)
    first = [l for l in figure.axes[0].lines if len(l.get_xdata()) == 3][0]
    assert np.allclose(first.get_ydata(), [1 / 2, 1 / 3, 1 / 4]) and [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["blocks.4", "blocks.3", "blocks.2"]
    assert {l.get_linestyle() for l in figure.axes[0].lines if len(l.get_xdata()) in (2, 3)} >= {"-", "--", ":"}

def test_roar_pairs_with_the_random_arm():
    rng = np.random.default_rng(0)
    right = lambda p: (rng.random(N) < p).astype(float)
    frame = pd.concat([pd.DataFrame(dict(method=m, fraction=f, seed=0, item=range(N), metric="correct", value=right(p))) for m, p in (("L-MAC", .2), ("random bins", .8)) for f in (.2, .8)])
    figure = roar_figure(frame)
    means = frame.groupby(["method", "fraction"])["value"].mean()
    assert np.allclose([l for l in figure.axes[1].lines if len(l.get_xdata()) == 2][0].get_ydata(), 100 * (means["L-MAC"] - means["random bins"]))
    with pytest.raises(ValueError, match="random bins"): roar_figure(frame[frame["method"] == "L-MAC"])

def test_localisation_shows_what_scenes_allow():
    values = np.linspace(0.2, 0.8, N)
    frame = pd.concat([rows(m, metric, values, form=f) for m in ("L-MAC", "random bins", "all zeros") for metric in ("ap", "iou") for f in ("soft", "topk")])
    figure = localisation_figure(frame)
    assert [ax.get_xlabel() for ax in figure.axes] == ["AP", "IoU"] and [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["L-MAC", "random bins"]
    with pytest.raises(ValueError, match="scenes"): localisation_figure(table(ours=1))

class Half:
    "Keeps the low half of the spectrum"
    name, class_conditional, fixed_frames = "half", True, None
    def attribute(self, model, rep, out, target): return Attribution((torch.arange(rep.values.shape[1]) < 256).float()[None, :, None].expand_as(rep.values))

def test_panels_show_the_same_clips():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AudioClassifier(["dog", "sea_waves"], width=0.05).eval()
    x = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    e = explain(model, Half(), x, target="sea_waves")
    figure = panel_figure({"A": e, "B": e}, items=[1])
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert len(figure.axes) == 3 + 2 and titles[0] == f"sea waves, p {e.p[1, 1]:.2f}" and titles[2] == f"B\nkept {e.p_kept[1, 1]:.2f}, removed {e.p_removed[1, 1]:.2f}"
    with pytest.raises(ValueError, match="B explains other"): panel_figure({"A": e, "B": explain(model, Half(), x, target="dog")})
    with pytest.raises(ValueError, match="no explanation"): panel_figure({})

def test_training_curves_skip_epochs_without_a_value():
    log = pd.DataFrame(dict(epoch=[0, 1, 2], seconds=1.0, lr=1e-3, loss=[3.0, 2, 1], valid_AI=[np.nan, 10, np.nan]))
    figure = loss_figure({"a": log, "b": log.drop(columns="valid_AI")})
    assert [ax.get_title() for ax in figure.axes] == ["loss", "AI (validation)"] and list(figure.axes[1].lines[0].get_xdata()) == [2] and len(figure.axes[0].lines) == 2
    with pytest.raises(ValueError, match="no term"): loss_figure({"a": log[["epoch", "lr"]]})

def test_a_method_looks_the_same_everywhere():
    assert look("L-MAC") != look("saliency") and look("something new") == look("something new")

def test_two_events_of_a_scene_are_one_clip(tmp_path):
    "The smallest block (protocol and form), another reference, and items that share a clip"
    rng = np.random.default_rng(0)
    scene = np.repeat(rng.normal(0, 0.1, 20), 2)  # what the two events of a scene share in their difference
    events = dict(clip=np.arange(N) // 2, target=0)
    frame = pd.concat([rows(m, "iou", v, **events) for m, v in (("asked for this event", 0.6 + scene), ("asked for the other event", np.full(N, 0.2)))])
    frame = frame.drop(columns=["condition", "split", "run_id"])
    by_item, by_clip = (difference_table(frame, "asked for this event", cluster=c).iloc[0] for c in ("item", "clip"))
    assert by_clip["difference"] == by_item["difference"] and by_clip["high"] - by_clip["low"] > 1.2 * (by_item["high"] - by_item["low"])
    made = main_table(frame, "asked for this event", cluster="clip")
    text = save_table(made, tmp_path, "two").read_text()
    assert list(made["iou"]) == sorted(made["iou"], reverse=True) and f"soft masks · {N} items" in text and "drawn by clip" in text
    assert look("asked for this event").colour != look("asked for the other event").colour
    assert len(forest_figure(difference_table(frame, "asked for this event", cluster="clip")).axes) == 1

def test_clips_of_one_recording_and_crops_of_one_photograph_are_drawn_together(real_data):
    "The fifth fold of ESC-50 has 310 recordings (counted from its table), the 155 test crops come from 121 photographs; the tables say so"
    fold = pd.read_csv(real_data("esc50") / "esc50.csv").query("fold == 5"); clips = esc50_clips(ESC50(real_data("esc50"), progress=False), 5)
    table = by_origin(pd.DataFrame(dict(item=np.tile(clips.items, 2), method=np.repeat(["L-MAC", "loudest bins"], 400), protocol="corrected", form="soft", metric="FF", value=np.arange(800.0))), clips)
    assert table["origin"].iloc[:400].tolist() == fold["src_file"].tolist() and table["origin"].nunique() == 310
    assert all("310 recordings" in " ".join(t.attrs["caption"]) for t in (main_table(table, n=50), difference_table(table, n=50)))
    crops = image_set("ccp_crops", "test", real_data("ccp_crops"))
    assert by_origin(pd.DataFrame(dict(item=np.arange(155))), crops)["origin"].nunique() == pd.read_csv(real_data("ccp_crops") / "crops.csv").query("split == 'test'")["photo"].nunique() == 121

# ---- what is published

def test_published_are_the_small_results_and_no_photograph(tmp_path, monkeypatch):
    "Exactly these files, with what they hold; manifests are merged, and what an earlier run left stays"
    project, runs = tmp_path/"project", tmp_path/"runs"; target = project/"paper_figures/results/smoke"
    def write(folder, *names: str) -> None:
        for name in names: (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_text(f"{folder.name}: {name}")
    def files(folder) -> dict[str, str]: return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    write(project, "settings.ini", "nbs/any.ipynb"); monkeypatch.chdir(project/"nbs"); monkeypatch.setenv("LMAC_PIQ_RUNS", str(runs))
    run, kept = runs/"smoke", {"report/table_x.csv": "table_x.csv", "report/table_x.html": "table_x.html", "report/figure_x.png": "figure_x.png", "report/figure_x.svg": "figure_x.svg", "report/figure_pairs_esc50.png": "figure_pairs_esc50.png",
        "scenes/evaluate/per_item.parquet": "scenes-per_item.parquet", "piq-mnist/evaluate/per_item.parquet": "piq-mnist-per_item.parquet", "scenes/lmac-1/fit/log.csv": "scenes-lmac-1-log.csv", "piq-mnist/piq-0/fit/log.csv": "piq-mnist-piq-0-log.csv",
        "scenes/designs/l-mac-0/fit/log.csv": "scenes-l-mac-0-log.csv", "scenes/designs/decoders.parquet": "scenes-decoders.parquet"}
    write(run, "report/figure_x.png")
    with pytest.raises(FileNotFoundError, match="run `make paper PRESET=smoke` first"): publish("smoke")
    assert not target.exists()
    write(run, *kept, "report/index.html", "report/audio/index.html", "report/audio/dog.wav", "report/notes.txt", "report/figure_pairs_esc50.svg", "report/figure_examples_mnist.svg", *(f"report/figure_{what}_crops.{kind}" for what in ("pairs", "codebook", "concept", "examples") for kind in ("png", "svg")),
          "scenes/evaluate/parts/a.parquet", "scenes/lmac-1/fit/last.safetensors", "piq-mnist/piq-1/fit/log.csv")
    for stage in ("scenes/classifier", "piq-mnist/piq-0", "scenes/designs/l-mac-0"): write(run, f"{stage}/manifest.json"); (run/stage/"manifest.json").write_text(json.dumps(dict(stage=stage)))
    write(target, "table_x.csv", "table_of_before.csv"); (target/"manifest.json").write_text(json.dumps({"esc50/lmac-0": dict(stage="elsewhere"), "scenes/classifier": dict(stage="before")}))
    before, ran = files(project), files(runs)
    assert publish("smoke") == target
    after = files(project); merged = json.loads(after.pop("paper_figures/results/smoke/manifest.json"))
    assert after == {k: v for k, v in before.items() if not k.endswith("manifest.json")} | {f"paper_figures/results/smoke/{name}": f"smoke: {source}" for source, name in kept.items()}
    assert merged == {"esc50/lmac-0": dict(stage="elsewhere"), "scenes/classifier": dict(stage="scenes/classifier"), "piq-mnist/piq-0": dict(stage="piq-mnist/piq-0"), "scenes/designs/l-mac-0": dict(stage="scenes/designs/l-mac-0")}
    assert files(runs) == ran
