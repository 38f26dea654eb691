"""The companion site says what its table says: links lead to the clips that were averaged, sounds are the samples, nothing is left out silently."""
import base64, html, io, json, re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np, pandas as pd, pytest, soundfile as sf, torch

from companion_site import HOSTILE, N, exhibit, small_site
from lmac_piq import companion
from lmac_piq.companion import (FAILURES, Ask, Exhibit, build_site, by_method, compared, disagreement, ends_of, esc50_credits, failure_counts, failures, heard_again, is_demo,
                                picks, same_clips, site_weight, watched)
from lmac_piq.data import esc50_table
from lmac_piq.evidence import Condition, condition_clips
from lmac_piq.experiment import get_plan, load_sets
from lmac_piq.listen import wav_bytes

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT/"paper_figures/results/demo"

def rows(values: dict[str, list[float]], metric: str = "AD", form: str = "topk") -> pd.DataFrame:
    "A table with a list of values per method"
    parts = [pd.DataFrame(dict(item=range(len(v)), method=m, metric=metric, form=form, value=np.array(v, dtype=float), predicted=0)) for m, v in values.items()]
    return pd.concat(parts, ignore_index=True)

def store(folder: Path) -> dict[str, object]:
    "What all scripts of a site put into the page's store"
    found = {}
    for path in folder.rglob("*/*.js"):
        key, value = re.fullmatch(r'\(window\.companion \?\?= \{\}\)\[(".+?")\] = (.*);\n', path.read_text(encoding="utf8"), re.S).groups()
        found[json.loads(key)] = json.loads(value)
        assert path == folder/json.loads(key), "a script stores its value under its own path"
    return found

@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, companion.Built]:
    folder = tmp_path_factory.mktemp("companion")/"site"
    return folder, small_site(folder)

# ---- what is chosen

def test_an_end_that_ties_takes_a_clip_that_is_heard():
    table = rows(dict(a=[0, 50, 0, 100], b=[5, 5, 5, 5]), form="soft")
    assert ends_of(table, ["AD"]) == {(0, "a", "soft"), (3, "a", "soft"), (0, "b", "soft")}
    assert ends_of(table, ["AD"], {(2, "a", "soft"), (1, "b", "soft")}) == {(2, "a", "soft"), (3, "a", "soft"), (1, "b", "soft")}

def test_the_same_clips_are_those_that_all_methods_have():
    table = pd.concat([rows(dict(quick=[1] * 9)), rows(dict(slow=[1] * 9)).query("item % 4 == 0")])
    assert same_clips(table, 2) == [0, 8] and same_clips(table, 9) == [0, 4, 8]

def test_disagreement_is_the_spread_of_ad_over_ranking_methods():
    table = pd.concat([rows({"a": [0, 10, 0], "b": [100, 10, 50], "loudest bins": [70, 90, 20]}), rows(dict(slow=[40, 40, 40])).query("item < 2")])
    found = disagreement(table)
    assert compared(table) == ["a", "b"], "nulls and methods without all clips do not vote"
    assert found.index.tolist() == [0, 2, 1] and found["spread"].tolist() == [50, 25, 0]
    assert found.loc[0, ["best", "best AD", "worst", "worst AD"]].tolist() == ["a", 0, "b", 100]
    assert disagreement(rows(dict(a=[1, 2]))).empty, "one method cannot disagree"

def test_failures_are_what_they_say():
    table = pd.concat([rows(dict(a=v), metric, "soft") for metric, v in {"p_c": [.9, .5, .7, .6], "correct": [1, 0, 0, 1], "Fid-In": [0, 1, 1, np.nan], "AD": [95, 90, 0, np.nan], "FF": [.1, 0, -.2, .3], "mask_mean": [.5, .001, .95, .01]}.items()]
                      + [rows({"a": [30, 20, 10, np.nan], "loudest bins": [20, 20, 20, 5]})])
    found = failures(table)
    of = lambda kind: found[(found["kind"] == kind) & (found["method"] == "a")]["item"].tolist()
    assert {kind: of(kind) for kind in FAILURES} == dict(wrong=[2, 1], lost=[0], dropped=[0], idle=[2, 1], empty=[1], full=[2], beaten=[0]), "the worst first, limits as stated, undefined values fail nothing"

# ---- the site

def test_every_number_leads_to_the_values_it_is_the_mean_of(site):
    folder, built = site
    data, page = store(folder), (folder/f"{built.x.name}.html").read_text(encoding="utf8")
    methods = data[f"data/{built.x.name}.js"]["methods"]
    cells = re.findall(r'<td><a href="([^"#]+)#([^"]+)" title="[^"]*">(?:<b>)?([^<]+)', page)
    assert len(cells) == built.table.filter(like=" undefined").notna().to_numpy().sum() > 50
    for target, place, shown in cells:
        method, metric, form = map(unquote, place.split("/"))
        listed = [v for v in data[f"data/{built.x.name}/{methods.index(method)}.js"][form][metric] if isinstance(v, float | int)]
        assert (folder/target).exists() and (shown == "–" if not listed else abs(np.mean(listed) - float(shown.replace("−", "-"))) < 0.06), (place, shown)

def test_what_is_heard_is_what_was_counted(site):
    _, built = site
    assert set(built.sounds) == picks(built.x, Ask(same=1, disagreements=1, failures=1))
    assert built.differences.notna().all() and built.differences.abs().max() < 0.05

def test_sounds_are_the_samples_at_one_gain(site):
    folder, built = site
    data, voice = store(folder), built.x.voice()
    item = same_clips(built.x.rows, 1)[0]
    wanted = {(m, f) for i, m, f in built.sounds if i == item}
    heard = heard_again(voice, item, wanted)
    gain = min(c.gain for c in heard.values())
    def samples(url): return sf.read(io.BytesIO(base64.b64decode(url.removeprefix("data:audio/flac;base64,"))), dtype="int16")
    def expected(wave): return sf.read(io.BytesIO(wav_bytes(wave, 16000, gain)), dtype="int16")[0]
    [original] = data[f"sound/{built.x.name}/{item}.js"]["tracks"]
    wave, rate = samples(original["wav"])
    assert rate == 16000 and np.array_equal(wave, expected(heard[next(iter(heard))].signals["original"])) and len(heard) > 4
    for (method, form), c in heard.items():
        for track, part in zip(data[f"sound/{built.x.name}/{built.sounds[item, method, form]['file']}.js"]["tracks"], ("kept", "removed")):
            assert track["name"] == part and np.array_equal(samples(track["wav"])[0], expected(c.signals[part])), (method, form, part)
            assert (folder/track["png"]).stat().st_size > 100

def test_the_stated_weight_is_the_weight(site):
    folder, _ = site
    front = (folder/"index.html").read_text(encoding="utf8")
    n, size = site_weight(folder)
    assert re.search(r'id="files">(\d+)<', front)[1] == str(n) and re.search(r'id="weight">([\d.]+) MB', front)[1] == f"{size / 1e6:.1f}"

def test_names_are_text_and_nothing_is_asked_of_others(site):
    folder, built = site
    assert HOSTILE in built.x.classes
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf8")
        assert "<img src=x" not in text and not re.search(r'(?:src|href)="(?:https?:)?//', text), path.name
    script = (folder/"companion.js").read_text(encoding="utf8")
    assert "innerHTML" not in script and "fetch(" not in script and "import(" not in script and not re.search(r"^\s*import ", script, re.M)
    labels = {clip["label"] for clip in store(folder)[f"data/{built.x.name}.js"]["clips"].values()}
    assert HOSTILE in labels, "the name itself is kept, for the page to show as text"

def test_links_within_the_site_lead_somewhere(site):
    folder, _ = site
    for path in folder.glob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', path.read_text(encoding="utf8")): assert (folder/target).exists(), (path.name, target)

def test_failures_are_counted_for_every_method(site):
    folder, built = site
    counts = failure_counts(built)
    page = (folder/"failures.html").read_text(encoding="utf8")
    shown = [int(n) for n in re.findall(r'<td[^>]*><a href="[^"]*">(\d+)</a></td>', page)]
    assert shown == [int(v) for v in counts.to_numpy().ravel() if v == v] and sum(shown) > 0
    assert list(counts.index) == list(built.table["method"].unique()) and counts.loc["all zeros", "empty"] == N
    for f in FAILURES.values(): assert html.escape(f.title) in page and html.escape(f.meaning[1:]) in page

def test_another_build_leaves_nothing_of_the_last(tmp_path):
    x = exhibit()
    build_site([replace(x, name="first")], tmp_path/"site", "one", Ask(0, 0, 0, ()))
    build_site([replace(x, name="second")], tmp_path/"site", "two", Ask(0, 0, 0, ()))
    assert not list((tmp_path/"site").rglob("*first*")) and [p.name for p in tmp_path.iterdir()] == ["site"]
    (tmp_path/"mine").mkdir(); (tmp_path/"mine/thesis.tex").write_text("!")
    with pytest.raises(ValueError, match="no companion site"): build_site([x], tmp_path/"mine", "three")
    with pytest.raises(ValueError, match="no table to show: esc50 is gone"): build_site([], tmp_path/"site", "four", missing=["esc50 is gone"])
    assert (tmp_path/"mine/thesis.tex").exists() and (tmp_path/"site/second.html").exists()

def test_a_voice_that_is_gone_leaves_tables_and_lists(tmp_path):
    def gone(): raise FileNotFoundError("the <weights> are gone")
    [built] = build_site([replace(exhibit(), voice=gone)], tmp_path/"site", "no sounds")
    page = (tmp_path/"site/scenes-clean.html").read_text()
    assert built.sounds == {} and "the &lt;weights&gt; are gone" in page and page.count("<table>") == 2
    assert "the &lt;weights&gt; are gone" in (tmp_path/"site/index.html").read_text() and len(store(tmp_path/"site")["data/scenes-clean/0.js"]["soft"]["items"]) == N

# ---- whose sounds they are

def test_every_clip_of_esc50_has_an_author_and_a_licence(real_data):
    root = real_data("esc50")
    credits = esc50_credits(root, esc50_table(root))
    assert len(credits) == 2000 and all(re.fullmatch(r"“.+” by .+", c.text) and c.url.startswith("http") and c.licence.startswith("CC") for c in credits.values())
    assert credits[0].text == "“rose_bark.wav” by nfrae" and credits[0].licence == "CC0"

def test_what_was_mixed_in_is_known():
    sets, seen = load_sets(get_plan("tiny", "scenes")), []
    clips = condition_clips(replace(sets, valid=watched(sets.valid, seen)), Condition("corrected", "test", "mixture"))
    assert len(seen) == len(clips)
    for i, item in enumerate(seen):
        added, other = (clips.read(np.array([i])) - sets.test.read(np.array([i])))[0], sets.valid.read(np.flatnonzero(sets.valid.items == item))[0]
        assert torch.cosine_similarity(added, other, dim=0) > 0.999

def test_the_committed_demo_has_scenes_only():
    if not DEMO.exists(): pytest.skip("no demo is committed")
    record, (n, size) = json.loads((DEMO/"site.json").read_text()), site_weight(DEMO)
    front = (DEMO/"index.html").read_text(encoding="utf8")
    assert record["exhibits"] and set(record["exhibits"]) <= {"scenes-clean", "scenes-mixture", "piq-scenes"} and record["sounds"] > 10
    assert size <= 3.5e6 and f'id="weight">{size / 1e6:.1f} MB' in front and f'id="files">{n}<' in front and "ESC-50" not in front
    assert not any("credits" in clip for key, value in store(DEMO).items() if re.fullmatch(r"data/[^/]+\.js", key) for clip in value["clips"].values())

def test_the_committed_demo_has_the_present_scripts():
    if not DEMO.exists(): pytest.skip("no demo is committed")
    stale = [name for name, text in companion._shared().items() if (DEMO/name).read_text(encoding="utf8") != text]
    assert not stale, f"{stale} of paper_figures/results/demo are not what the package writes: build the demo again, or copy them"

def test_a_demo_takes_no_recording_of_others():
    x = exhibit()
    assert is_demo(x) and not is_demo(replace(x, rows=x.rows.assign(dataset="esc50"))) and not is_demo(replace(x, rows=x.rows.assign(condition="noise")))
