"""The numbers in print are as printed: counts, ranges, sums, and what one table says of another."""
import re
import numpy as np, pandas as pd, pytest
from lmac_piq.experiment import REPORT, project_root
from lmac_piq.published import SAME, SETTINGS, STATUS, corrected, coverage, order_agreement, our_name, published, published_tables, beside_published
from lmac_piq.report import save_table, table_html
from lmac_piq.style import LOOKS

METRICS = ["AI", "AD", "AG", "FF", "Fid-In", "SPS", "COMP"]
COUNTS = {"accuracy": 11, "focalnet": 8, "in_domain": 91, "listening_recordings": 45, "listening_test": 10, "mixtures": 91, "mos": 6, "parkinson": 42,
          "readme_mixtures": 43, "speech": 35, "training_time": 6, "white_noise": 35}
SUMS = {  # of each column, typed from the sources
    "in_domain": [261.25, 130.3, 106.46, 2.25, 4.38, 6.51, 84.7],
    "mixtures": [288.37, 259.46, 117.84, 2.92, 5.38, 10.76, 135.99],
    "white_noise": [235.62, 38.32, 103.88, 1.5, 3.25, 39.95, 49.9],
    "speech": [238.51, 44.72, 88.54, 1.78, 3.68, 4.31, 50.61],
    "readme_mixtures": [256.98, 68.79, 133.0, 2.12, 4.09, 4.66, 63.73],
    "parkinson": [445.34, 13.99, 376.81, 0.031, 494.09, 4.18, 70.8],
}
DOUBLED = {  # the in-domain table times two, as typed by hand
    "Saliency": [0, 31.58, 0, .10, .14, .78, 10.96], "SmoothGrad": [0, 31.42, 0, .06, .10, .84, 10.64], "IG": [.5, 30.9, .02, .14, .26, .86, 10.22],
    "GradCAM": [17, 20.22, 2.94, .34, .66, .68, 11.28], "Guided GradCAM": [0, 31.22, 0, .10, .12, .88, 10.24], "Guided Backprop": [0, 31.32, 0, .10, .12, .78, 10.94],
    "L2I, RT=0.2": [3.26, 25.56, .84, .22, .30, .50, 11.0], "SHAP": [0, 31.58, 0, .10, .12, .86, 10.48], "L-MAC": [72.5, 2.3, 47, .40, .84, .94, 9.42],
    "L-MAC, FT, λg=4": [64.74, 3.96, 37.48, .42, .82, .86, 10.4],
}

def wide(table: str, value: str = "value") -> pd.DataFrame:
    "Rows and columns as printed"
    t = published(table).assign(doubled=lambda t: corrected(t))
    return t.pivot(index="row", columns="column", values=value).loc[t["row"].unique(), t["column"].unique()]

def test_every_table_has_its_numbers():
    assert {t: len(published(t)) for t in published_tables()} == COUNTS
    for name in COUNTS:
        t = published(name)
        assert (t["table"] == name).all() and t["value"].notna().all() and (t[["row", "column", "source"]] != "").all().all() and not t.duplicated(["row", "column", "source"]).any()
        assert (t["low"].isna() == t["high"].isna()).all() and not ((t["value"] < t["low"]) | (t["value"] > t["high"])).any()
    with pytest.raises(ValueError, match="choose from accuracy"): published("nothing")

@pytest.mark.parametrize("table", SUMS)
def test_columns_add_up(table):
    t = published(table)
    assert list(t["column"].unique()) == METRICS
    assert np.allclose(t.groupby("column", sort=False)["value"].sum(), SUMS[table], atol=1e-9)

@pytest.mark.parametrize("table", SUMS)
def test_values_are_possible(table):
    t = published(table)
    t = t[~t["remark"].str.contains("sic")]
    top = {"AI": 100, "AD": 63.3, "AG": 100, "FF": 1, "Fid-In": 100 if table == "parkinson" else 1, "SPS": 1, "COMP": 12.52 if table == "parkinson" else np.log(425 * 513)}
    assert (t["value"] >= 0).all() and (t["value"] <= t["column"].map(top)).all()
    if table != "parkinson": assert t.loc[t["column"] == "AD", "remark"].str.contains("softmax taken twice").all()

def test_what_cannot_be_is_marked():
    said = {(t, r["row"], r["column"]) for t in SUMS for r in published(t).to_dict("records") if "sic" in r["remark"]}
    assert said == {("mixtures", "GradCAM", "Fid-In"), ("white_noise", "L2I@0.2", "SPS"), ("readme_mixtures", "L2I", "Fid-In")}
    suspect = published("white_noise").query("remark.str.contains('suspect')")
    assert set(suspect["row"]) == {"L2I@0.2"} and len(suspect) == 7

def test_halved_rows_are_doubled_and_no_others():
    t, doubled = published("in_domain"), wide("in_domain", "doubled")
    assert list(doubled.index[:10]) == list(DOUBLED) and np.allclose(doubled[:10], list(DOUBLED.values()), atol=1e-9)
    assert (doubled[10:] == wide("in_domain")[10:]).all().all() and all(i.startswith("LMAC-TD") for i in doubled.index[10:])
    assert all((corrected(published(n)) == published(n)["value"]).all() for n in COUNTS if n != "in_domain")

def test_shapes_of_masks_are_halved_in_domain():
    "Sparseness and complexity of these two do not depend on the contamination: half of it in the in-domain table shows that all of it was halved"
    ours, other = wide("in_domain"), wide("mixtures")
    for method in ("IG", "Guided GradCAM"):
        assert np.allclose(2 * ours.loc[method, ["SPS", "COMP"]].astype(float), other.loc[method, ["SPS", "COMP"]].astype(float), atol=0.011)

def test_listening_test_is_the_mean_of_its_recordings():
    each, parts = published("listening_recordings"), published("listening_test")
    each["part"] = each["column"].str.split().str[0]
    means = each.groupby(["part", "row"])["value"].mean()
    for r in parts.to_dict("records"): assert means[r["column"], r["row"]] == pytest.approx(r["value"], abs=0.15)

def test_sources_are_public():
    for name in COUNTS: assert published(name)["source"].str.match(r"arXiv \d{4}\.\d{5}|speechbrain/speechbrain|fpaissan/speechbrain@|github |huggingface |public webMUSHRA").all()

# ---- beside ours

N = 30

def ours(**skill: float) -> pd.DataFrame:
    "AI, AD and FF under both protocols, on noisy and clean clips"
    rng, parts = np.random.default_rng(0), []
    for protocol, condition, split in (("published", "noise", "fold 4"), ("corrected", "noise", "fold 5"), ("corrected", "clean", "fold 5")):
        for method, level in skill.items():
            for metric in ("AI", "AD_published" if protocol == "published" else "AD", "FF"):
                parts.append(pd.DataFrame(dict(preset="cpu", protocol=protocol, dataset="esc50", split=split, condition=condition, form="soft", method=method.replace("_", " "), seed=0, item=np.arange(N),
                                               metric=metric, value=level + rng.normal(size=N))))
    return pd.concat(parts, ignore_index=True)

def test_every_published_method_has_its_counterpart():
    assert {our_name(r, p) for t in SETTINGS for r in published(t)["row"] for p in ("published", "corrected")} - {""} <= set(LOOKS) and set(SAME.values()) <= set(LOOKS)
    assert our_name("L2I, RT=0.2", "published") == "L2I (random theta)" and our_name("L2I, RT=0.2", "corrected") == "L2I"

def test_four_columns_side_by_side(tmp_path):
    rows = ours(saliency=2, GradCAM=20, SmoothGrad=1)
    t = beside_published(rows)
    ai = t[t["metric"] == "AI"].set_index("method")
    assert ai.loc["L-MAC", "published"] == 36.25 and ai.loc["L-MAC", "published corrected"] == 72.5 and np.isnan(ai.loc["L-MAC", "ours published"])
    for protocol, condition in (("published", "noise"), ("corrected", "noise")):
        expected = rows.query("protocol == @protocol and condition == @condition and method == 'GradCAM' and metric == 'AI'")["value"].mean()
        assert ai.loc["GradCAM", f"ours {protocol}"] == pytest.approx(expected) and ai.loc["GradCAM", f"ours {protocol} low"] < expected < ai.loc["GradCAM", f"ours {protocol} high"]
    ad = t[t["metric"] == "AD"].set_index("method")
    assert ad.loc["Saliency", ["ours published", "ours corrected"]].notna().all()           # AD_published beside AD
    order = order_agreement(t).set_index("metric")
    assert order.loc["AI", "methods"] == 3 and np.isnan(order.loc["SPS", "kendall"]) and "classifiers differ" in " ".join(t.attrs["caption"]) and "VGGSound" in " ".join(t.attrs["caption"])
    assert "Kendall" in " ".join(t.attrs["caption"]) and "3 methods" in " ".join(t.attrs["caption"])
    text = save_table(t, tmp_path, "table_published").read_text()
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S) and "halved" in text and list(pd.read_csv(tmp_path/"table_published.csv").columns) == list(t.columns)

def test_clean_clips_stand_in_and_are_named():
    rows = ours(saliency=2)
    t = beside_published(rows[(rows["protocol"] == "published") | (rows["condition"] == "clean")])
    assert "fold 5, clean" in " ".join(t.attrs["caption"]) and t["ours corrected"].notna().any()

def test_one_level_is_chosen():
    rows = ours(saliency=2).query("protocol == 'corrected' and condition == 'noise'").assign(condition="mixture")
    swept = pd.concat([rows.assign(snr_db=s, value=s) for s in (-6.0, 0.0, 6.0, 12.0)])
    t = beside_published(swept, "mixtures")
    assert set(t["ours corrected"].dropna()) == {6.0} and "6 dB" in " ".join(t.attrs["caption"])

def test_the_order_is_that_of_the_means():
    t = beside_published(ours(saliency=2))
    ai = t["metric"] == "AI"
    t.loc[ai, "ours published"] = -t.loc[ai, "published corrected"]
    order = order_agreement(t).set_index("metric")
    assert order.loc["AI", "kendall"] == pytest.approx(-1) and order.loc["AI", "methods"] == ai.sum()

# ---- coverage

def test_coverage_knows_every_item_and_names_what_there_is():
    t = coverage()
    assert set(t["status"]) <= set(STATUS) and not t.duplicated(["source", "item"]).any() and (t[["source", "item", "what", "remark"]] != "").all().all()
    assert {"UrbanSound8K table", "FocalNet and ViT table"} <= set(t.loc[t["status"] == "data not to be had", "item"])
    assert (t.loc[t["status"].str.startswith("regenerated"), "where"] != "").all() and not coverage("nowhere")["there"].any()
    assert f"{len(t)} tables" in t.attrs["caption"][0] and "UrbanSound8K" in table_html(t)

def test_every_artefact_is_found_in_the_report_of_a_finished_run(tmp_path):
    for name in REPORT: (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).touch()
    t = coverage(tmp_path)
    assert (t["there"] == (t["where"] != "")).all(), f"coverage.csv names artefacts that experiment.REPORT does not know: {sorted(set(t.loc[~t['there'], 'where']) - {''})}"

def test_every_artefact_is_among_the_published_results():
    t = coverage(project_root()/"paper_figures/results/cpu")
    assert set(t.loc[~t["there"], "where"]) <= {"", "audio/index"}, "of a page of sounds nothing is published; all else that coverage.csv names has to be there"
