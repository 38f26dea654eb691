"A listening study: equal loudness, balanced orders, answers that survive a killed process, and simulated ratings that stay simulated."
import base64, io, json, math, multiprocessing, os, re, signal, sqlite3, time
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf, torch, yaml
from hypothesis import given, settings, strategies as st
from scipy import stats as ss

from lmac_piq.stats import holm
from lmac_piq.study import (ANCHOR, REFERENCE, SCREENING, Answers, Session, StudyWidget, analyse_study, check_code, friedman, is_simulated, latin_square, loudness, low_anchor, make_design,
                            make_trials, match_loudness, methods_only, pairwise, preferences, published_means, published_study, rating_means, recordings_figure, save_app, save_webmushra, screen,
                            simulated_raters, stimulus, study_figure, to_webmushra, trials_from_folder, whose)

RATE, NASTY = 16000, '<script>alert("x")</script> & \'q\''
METHODS = ("m1", "m2", NASTY)

def noise(seed: int = 0, peak: float = 0.3, seconds: float = 0.5) -> torch.Tensor:
    x = torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return peak * x / x.abs().max()

def trials(items: int = 5, kind: str = "mushra", part: str = "new") -> list:
    return [t for k in range(items) for t in make_trials(f"{NASTY} {k}", part, noise(k), {m: noise(100 + 10 * k + i, 0.02 * 4**i) for i, m in enumerate(METHODS)}, RATE, kind)]

@pytest.fixture(scope="module")
def design(): return make_design(trials() + trials(2, "ab", "pairs"), seed=3, title=f"Title {NASTY}", question=f"Question {NASTY}")

def fill(session: Session, letter: str = "A") -> None:
    if session.current.trial.kind == "ab": session.choose(letter)
    else: [session.rate(name, 10 * k) for k, name in enumerate(session.sounds)]

# ---- loudness

@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.floats(-45, 0))
def test_all_sounds_are_equally_loud_and_none_clips(peaks, wanted):
    matched, reached = match_loudness([stimulus(f"m{k}", noise(k, peak), RATE) for k, peak in enumerate(peaks)], wanted)
    assert reached <= wanted and all(s.sound.abs().max() <= 0.99 + 1e-6 for s in matched)
    assert all(loudness(s.sound, RATE) == pytest.approx(reached, abs=0.05) for s in matched)
    assert reached == pytest.approx(wanted) or max(s.sound.abs().max().item() for s in matched) == pytest.approx(0.99, abs=1e-5)

def test_a_lowered_target_is_said(design):
    loud = make_design(trials(1), lufs=-3)
    assert loud.lufs < -3 and "would clip" in loud.note and "would clip" not in make_design(trials(1), lufs=-40).note
    assert np.allclose(loud.gains().played_lufs, loud.lufs) and len(loud.gains()) == 5

@pytest.mark.parametrize("wave", [torch.zeros(RATE), noise()[:100], torch.full((RATE,), math.nan), noise()[None]])
def test_what_has_no_loudness_is_refused(wave):
    with pytest.raises(ValueError): stimulus("m", wave, RATE)

def test_anchor_passes_below_and_stops_above():
    t = torch.arange(RATE, dtype=torch.float64) / RATE
    level = lambda f: low_anchor(torch.sin(2 * torch.pi * f * t), RATE)[2000:-2000].square().mean().sqrt().item()
    assert level(1000) == pytest.approx(0.5**0.5, abs=1e-3) and level(3500) == pytest.approx(0.5**0.5 / 2, abs=0.01) and level(6000) < 1e-3
    with pytest.raises(ValueError, match="cutoff"): low_anchor(noise(), 6000)

# ---- trials and orders

def test_trials_refuse_what_cannot_be_compared():
    with pytest.raises(ValueError, match="length"): make_trials("x", "p", noise(), {"m": noise(1)[:-1]}, RATE)
    with pytest.raises(ValueError, match="kind"): make_trials("x", "p", noise(), {"m": noise(1)}, RATE, "abx")
    with pytest.raises(ValueError, match="too few"): make_trials("x", "p", noise(), {"m": noise(1)}, RATE, "ab")
    with pytest.raises(ValueError, match="no two alike"): make_design(trials(1) + trials(1))
    with pytest.raises(ValueError, match="at least one"): make_design([])

def test_folder_becomes_trials(tmp_path):
    for name in ("reference", "a", "b", "anchor"):
        (tmp_path / "part" / "dog").mkdir(parents=True, exist_ok=True)
        sf.write(tmp_path / "part" / "dog" / f"{name}.wav", noise(len(name)).numpy(), RATE)
    (trial,) = trials_from_folder(tmp_path)
    assert (trial.part, trial.item) == ("part", "dog") and {s.condition for s in trial.stimuli} == {REFERENCE, ANCHOR, "a", "b"}
    assert len(trials_from_folder(tmp_path, kind="ab")) == 1
    with pytest.raises(ValueError, match="reference.wav"): trials_from_folder(tmp_path / "part" / "dog" / "none")

@given(st.integers(1, 12))
def test_latin_square(n):
    square = np.array(latin_square(n))
    assert all(sorted(line) == list(range(n)) for line in [*square, *square.T])
    if n % 2 == 0: assert len({pair for row in square for pair in zip(row, row[1:])}) == n * (n - 1)

def test_orders_are_balanced_and_follow_from_seed_and_code(design):
    names = lambda d, code: [(p.trial.name, tuple(s.condition for s in p.stimuli)) for p in d.order(code)]
    assert names(design, "P01") == names(make_design(trials() + trials(2, "ab", "pairs"), seed=3), "P01") != names(make_design(trials() + trials(2, "ab", "pairs"), seed=4), "P01")
    seen = Counter((p.trial.name, k, s.condition) for n in range(10) for p in design.order(f"P{n:02d}") for k, s in enumerate(p.stimuli))
    assert set(seen[key] for key in seen if "/mushra" in key[0]) == {2} and set(seen[key] for key in seen if "/ab/" in key[0]) == {5}
    assert Counter(p.trial.name for p in design.order("Q77")) == Counter(t.name for t in design.trials)

@pytest.mark.parametrize("code", ["Anna", "a@b.org", "p01", "P1", "P01 ", "P01\n", "ABCD01", "", None, 7])
def test_only_codes_are_taken(code):
    with pytest.raises(ValueError, match="no names"): check_code(code)

# ---- the store

def test_answers_are_checked_and_replaced(tmp_path, design):
    store, name = Answers(tmp_path / "a.sqlite", design), design.trials[0].name
    pair = next(t for t in design.trials if t.kind == "ab")
    for values in ({"m1": -1}, {"m1": math.inf}, {"nobody": 1}):
        with pytest.raises(ValueError): store.record("P01", name, values)
    for values in ({"m1": 100}, {"m1": 70, "m2": 30}):
        with pytest.raises(ValueError, match="A/B"): store.record("P01", pair.name, values)
    with pytest.raises(ValueError, match="no trial"): store.record("P01", "none", {"m1": 1})
    with pytest.raises(ValueError, match="no names"): store.record("anna@x.org", name, {"m1": 1})
    assert store.frame().empty
    store.record("P01", name, {"m1": 1}); store.record("P01", name, {"m1": 2})
    assert store.frame()[["rater", "value", "complete", "simulated"]].to_dict("records") == [dict(rater="P01", value=2.0, complete=False, simulated=False)]

def test_another_study_and_another_file_are_refused(tmp_path, design):
    Answers(tmp_path / "a.sqlite", design).close()
    with pytest.raises(ValueError, match="another study"): Answers(tmp_path / "a.sqlite", make_design(trials(1)))
    (tmp_path / "text").write_text("no database at all, only text that is long enough to be read as one" * 20)
    with pytest.raises(ValueError, match="not a usable store"): Answers(tmp_path / "text", design)
    sqlite3.connect(tmp_path / "other.sqlite").executescript("create table t (x)")
    with pytest.raises(ValueError, match="not a store"): Answers(tmp_path / "other.sqlite", design)
    with pytest.raises(FileNotFoundError): Answers(tmp_path / "none.sqlite")
    db = sqlite3.connect(tmp_path / "a.sqlite"); db.execute("pragma user_version = 99"); db.close()
    with pytest.raises(ValueError, match="newer"): Answers(tmp_path / "a.sqlite", design)

def take_part(path: Path, design, code: str, said, pause: float = 0.0) -> None:
    "A participant in a process of their own, who says each answer after it was given"
    session = Session(design, Answers(path, design), code)
    while not session.finished:
        shown = session.current
        fill(session)
        session.next()
        said.send(shown.trial.name)
        time.sleep(pause)
    said.send(None)

def begin(path: Path, design, code: str, pause: float = 0.0):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=take_part, args=(path, design, code, theirs, pause), daemon=True)
    process.start(); theirs.close()
    return process, ours

def heard(pipe) -> list[str]:
    found = []
    try:
        while (name := pipe.recv()) is not None: found.append(name)
    except EOFError: pass
    return found

def test_a_killed_process_loses_no_answer_and_two_do_not_mix(tmp_path, design):
    path = tmp_path / "a.sqlite"
    doomed, said = begin(path, design, "P01", pause=0.1)
    other, also = begin(path, design, "P02")
    told = [said.recv(), said.recv(), said.recv()]
    os.kill(doomed.pid, signal.SIGKILL); doomed.join()
    told += heard(said)
    assert doomed.exitcode == -signal.SIGKILL and len(told) < len(design.trials)
    assert len(heard(also)) == len(design.trials); other.join()
    store = Answers(path, design)
    done = [t.name for t in design.trials if store.is_complete("P01", t)]
    assert set(told) <= set(done) and store._all("pragma integrity_check") == [("ok",)]
    order = [p.trial.name for p in design.order("P01")]
    assert set(done) == set(order[:len(done)]) and store.next_trial("P01").trial.name == order[len(done)]
    session = Session(design, store, "P01")
    assert session.index == len(done)
    while not session.finished: fill(session); session.next()
    for code in ("P01", "P02"):                    # each has exactly what the own order of letters gives
        for shown in design.order(code):
            values = [store.answered(code, shown.trial.name)[s.condition] for s in shown.stimuli]
            assert values == ([100, 0] if shown.trial.kind == "ab" else [10 * k for k in range(len(values))])
    assert store.frame().groupby("rater").size().nunique() == 1 and store.next_trial("P01") is None

def test_csv_says_what_the_store_says(tmp_path, design):
    store = Answers(tmp_path / "a.sqlite", design)
    session = Session(design, store, "P01"); fill(session); session.comment(f"={NASTY}\n, ;")
    back = pd.read_csv(store.to_csv(tmp_path / "a.csv"), keep_default_na=False)
    pd.testing.assert_frame_equal(back, store.frame(), check_dtype=False)
    assert back.remark.unique().tolist() == [f"={NASTY}\n, ;"]
    with pytest.raises(ValueError, match="2000"): session.comment("x" * 2001)

# ---- session and view

def test_session_walks_and_refuses(tmp_path, design):
    session = Session(design, Answers(tmp_path / "a.sqlite", design), "P05")
    with pytest.raises(ValueError, match="not answered"): session.next()
    with pytest.raises(IndexError): session.previous()
    at = lambda kind: next(k for k, p in enumerate(session.order) if p.trial.kind == kind)
    session.index = at("mushra")
    with pytest.raises(ValueError, match="rate"): session.choose("A")
    with pytest.raises(ValueError, match="no sound"): session.rate("Z", 3)
    session.rate("A", 0)
    assert session.values()["A"] == 0 and session.missing() == list(session.sounds)[1:]
    session.index = at("ab")
    with pytest.raises(ValueError, match="choose"): session.rate("A", 3)
    session.choose(None); assert set(session.values().values()) == {50}
    session.choose("B"); assert session.values() == {"A": 0, "B": 100}
    with pytest.raises(ValueError, match="no sound"): session.choose("C")
    with pytest.raises(ValueError, match="this design"): Session(make_design(trials(1)), session.answers, "P05")

def told(view: StudyWidget, **message) -> str:
    "What the page hears back"
    said = []
    view.send = lambda content, buffers=None: said.append(content)
    view._asked(view, dict(id="x", **message), [])
    (answer,) = said
    assert answer["id"] == "x"
    return answer["error"]

def test_the_page_learns_letters_and_sounds_and_nothing_else(tmp_path, design):
    view, secret = StudyWidget(design, tmp_path / "a.sqlite"), re.compile(r"\bm[12]\b|anchor|new|pairs|<script>alert\(\"x\"\)</script> & 'q' \d")
    assert told(view, do="enter", value="P05") == ""
    for shown in design.order("P05"):
        sounds = {s.pop("name"): s.pop("wav") for s in (dict(s) for s in view.page["sounds"])}
        assert list(sounds) == ["Reference", *"ABCDEFG"[:len(shown.stimuli)]] and not secret.search(json.dumps({**view.page, "sounds": []} | view.given))
        for url, s in zip(sounds.values(), [shown.trial.reference, *shown.stimuli]):        # at the gain of the design, neither clipped nor normalised
            heard, rate = sf.read(io.BytesIO(base64.b64decode(url.split(",")[1])))
            assert rate == RATE and np.abs(heard - s.sound.numpy()).max() < 2**-15
        assert "not answered yet" in told(view, do="next")
        if shown.trial.kind == "ab": assert told(view, do="choose", sound=None) == ""
        else: assert not any(told(view, do="rate", sound=name, value=33) for name in list(sounds)[1:])
        assert told(view, do="comment", value=NASTY) == "" and view.given["remark"] == NASTY
        assert told(view, do="next") == ""
    assert view.page["kind"] == "end" and view.given["done"] == len(design.trials) and set(view.answers.frame().value) == {33, 50}
    assert told(view, do="previous") == "" and view.page["place"] == len(design.trials)

@pytest.mark.parametrize("message", [dict(do="rate", sound="A", value=101), dict(do="rate", sound="A", value="x"), dict(do="rate", sound="A", value=math.nan), dict(do="rate", sound="m1", value=1), dict(do="rate"),
                                     dict(do="choose", sound="A"), dict(do="drop"), dict(do="next"), dict(do="previous"), dict(do="rate", page=7, sound="A", value=1), dict(do="comment", value="a@b.org"), dict()])
def test_what_a_page_should_not_send_is_refused_without_a_name(tmp_path, message):
    view = StudyWidget(make_design(trials(2)), tmp_path / "a.sqlite", "P05")
    error = told(view, **message)
    assert error and not re.search(r"\bm2\b|anchor|script|new", error) and view.answers.frame().empty and view.answers._all("select * from remark") == []

@pytest.mark.parametrize("code", ["SIM01", "anna", "a@b.org", "", None])
def test_the_door_takes_codes_of_people(tmp_path, design, code):
    view = StudyWidget(design, tmp_path / "a.sqlite")
    assert told(view, do="enter", value=code) and view.session is None and view.page["kind"] == "entry"
    assert told(view, do="rate", sound="A", value=1)                                                    # before anyone has entered

def test_a_full_disk_is_said(tmp_path, design):
    view = StudyWidget(design, tmp_path / "a.sqlite", "P05")
    view.answers.db.execute("pragma query_only = on")
    message = dict(do="choose", sound="A") if view.page["kind"] == "ab" else dict(do="rate", sound="A", value=1)
    assert told(view, **message).startswith("NOT stored") and view.given["values"] == {}

def test_a_study_folder_becomes_a_notebook(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="neither"): save_app(tmp_path)
    for kind in ("mushra", "ab"):
        (tmp_path / kind / "p" / "dog").mkdir(parents=True)
        for name in ("reference", "x", "y"): sf.write(tmp_path / kind / "p" / "dog" / f"{name}.wav", noise(len(name) + ord(name[0])).numpy(), RATE)
    code = json.loads(save_app(tmp_path, title=NASTY, seed=4).read_text())["cells"][0]["source"]
    monkeypatch.chdir(tmp_path); names = {}
    *lines, last = code.splitlines()
    exec("\n".join([*lines, f"view = {last}"]), names)
    design = names["view"].design
    assert design.title == NASTY and design.seed == 4 and [t.kind for t in design.trials] == ["mushra", "ab"] and (tmp_path / "answers.sqlite").exists()
    with pytest.raises(TypeError): save_app(tmp_path, colour="red")

# ---- webMUSHRA

def test_webmushra_has_every_sound_and_only_text(tmp_path, design):
    config = yaml.safe_load(save_webmushra(design, tmp_path).read_text())
    assert config == json.loads(to_webmushra(design, format="json")) and "<script" not in to_webmushra(design)
    word, *pages = config["pages"][1]
    assert word == "random" and Counter(p["type"] for p in pages) == {"mushra": 5, "paired_comparison": 6}
    for page, trial in zip(pages, design.trials):
        assert len(page["stimuli"]) == (2 if trial.kind == "ab" else len(trial.stimuli) - 1)  # webMUSHRA hides the reference itself
        for path, s in zip([page["reference"], *page["stimuli"].values()], [trial.reference, *(s for s in trial.stimuli if s.condition != REFERENCE)]):
            written, rate = sf.read(tmp_path / path)
            assert rate == RATE and np.abs(written - s.sound.numpy()).max() < 2**-14

# ---- simulated raters and the analysis

EFFECTS = {"m1": 70, "m2": 50, NASTY: 30}

@pytest.fixture(scope="module")
def simulated(design): return simulated_raters(design, EFFECTS, n=20, seed=5, careless=0.2)

def test_simulated_stays_simulated(tmp_path, design, simulated):
    store = Answers(tmp_path / "s.sqlite", design)
    few = simulated[simulated.rater.isin(["SIM10", "SIM11"])]
    store.store_simulated(few)
    assert store.frame().simulated.all() and is_simulated("SIM01")
    for sql in ("update participant set simulated = 0", "update participant set code = 'P01'", "insert into participant (code, simulated, since) values ('P02', 0, '')"):
        with pytest.raises(sqlite3.Error): store.db.execute(sql)
    with pytest.raises(ValueError, match="codes of people"): store.store_simulated(few.assign(rater="P01"))
    csv = pd.read_csv(store.to_csv(tmp_path / "s.csv"), keep_default_na=False)
    for table in (simulated, csv, csv.assign(simulated=False)):
        found = analyse_study(table)
        assert found.raters == "simulated" and found.title.startswith("SIMULATED")
        assert all((t.raters == "simulated").all() for t in (found.screening, found.means, found.friedman, found.pairs, found.preferences))
        figure = study_figure(found.means)
        assert "SIMULATED" in figure.get_suptitle() and all("SIMULATED" in ax.get_title(loc="left") for ax in figure.axes) and figure.axes[0].get_ylabel().startswith("SIMULATED")
        assert all(bar.get_hatch() for ax in figure.axes for bar in ax.patches)
    with pytest.raises(ValueError, match="mixes"): analyse_study(pd.concat([simulated, simulated.assign(rater="P01", simulated=False)]))
    with pytest.raises(ValueError, match="whose"): analyse_study(simulated.drop(columns="simulated"))
    with pytest.raises(ValueError, match="raters"): study_figure(found.means.drop(columns="raters"))

def people(table: pd.DataFrame) -> pd.DataFrame: return table.assign(rater=table.rater.str.replace("SIM", "P"), simulated=False)

def test_people_are_called_people(simulated):
    found = analyse_study(people(simulated))
    assert whose(people(simulated)) == "people" and "SIMULATED" not in found.title and study_figure(found.means).get_suptitle() == ""

def rated(values: list[float]) -> pd.DataFrame:
    "One rater's hidden references"
    return pd.DataFrame(dict(rater="P01", simulated=False, part="a", item=[str(k) for k in range(len(values))], kind="mushra", condition=REFERENCE, value=values, complete=True))

@pytest.mark.parametrize("missed,n,excluded", [(0, 20, False), (3, 20, False), (4, 20, True), (1, 4, True)])
def test_screening_rule(missed, n, excluded):
    found = screen(rated([89.9] * missed + [90.0] * (n - missed)))
    assert found.excluded.tolist() == [excluded] and found.missed.tolist() == [missed] and "15 %" in SCREENING

def test_screening_leaves_the_careless_out(simulated):
    found = analyse_study(simulated)
    assert set(found.screening.rater[found.screening.excluded]) == {"SIM01", "SIM02", "SIM03", "SIM04"} and found.n == 16 and "4 excluded" in found.title

def test_analysis_agrees_with_scipy(simulated):
    ratings = simulated[(simulated.kind == "mushra") & ~simulated.condition.isin([REFERENCE, ANCHOR])]
    wide = ratings.pivot_table(index="rater", columns="condition", values="value")
    expected, ours = ss.friedmanchisquare(*wide.to_numpy().T), friedman(simulated).iloc[0]
    assert (ours.chi2, ours.p) == pytest.approx(tuple(expected))
    pairs = pairwise(simulated)
    for row in pairs.itertuples():
        d = wide[row.a] - wide[row.b]
        assert row.difference == pytest.approx(d.mean()) and row.low < row.difference < row.high
        assert row.p == pytest.approx(ss.wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue)
    assert np.allclose(pairs.p_holm, holm(pairs.p))
    means = rating_means(simulated).set_index("condition")["mean"]
    assert means["m1"] == pytest.approx(ratings[ratings.condition == "m1"].value.mean()) and means["m1"] > means["m2"] > means[NASTY]

def test_preferences_by_hand():
    rows = [dict(rater=f"P{r:02d}", simulated=False, part="p", item="i", kind="ab", trial="t", condition=c, value=v, complete=True)
            for r, a in enumerate([100, 100, 50, 0]) for c, v in (("x", a), ("y", 100 - a))]
    (found,) = preferences(pd.DataFrame(rows)).to_dict("records")
    assert (found["a"], found["b"], found["mean"], found["n"], found["raters"]) == ("x", "y", 0.625, 4, "people")

def test_unfinished_trials_and_empty_tables(simulated):
    cut = simulated.assign(complete=~((simulated.rater == "SIM10") & (simulated.item.str.endswith("0"))))
    assert analyse_study(cut).incomplete == cut[~cut.complete].trial.nunique()
    with pytest.raises(ValueError): analyse_study(simulated[:0])
    with pytest.raises(ValueError, match="no rater is left"): analyse_study(rated([10.0]))
    with pytest.raises(ValueError, match="no effect"): simulated_raters(make_design(trials(1)), {"m1": 3})

def test_published_numbers_are_drawn_as_printed():
    folder = Path(__file__).resolve().parents[1] / "paper_figures" / "published"
    votes, mos = (published_means(pd.read_csv(folder / f"{name}.csv")) for name in ("listening_test", "mos"))
    first = votes.iloc[0]
    assert (first.condition, first.part, first["mean"]) == ("L-MAC", "new", 65.1) and first.high - first["mean"] == pytest.approx(1.96 * 20.5 / math.sqrt(60))
    assert (votes.raters == "published").all() and votes.source.str.len().min() > 10
    (ax,) = study_figure(mos).axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(mos["mean"].tolist()) and (mos.iloc[0].low, mos.iloc[0].high) == (44.7, 51.4)

def test_a_published_study_is_replayed_by_simulated_raters():
    numbers = pd.read_csv(Path(__file__).resolve().parents[1] / "paper_figures" / "published" / "listening_recordings.csv")
    trials, effects = published_study(numbers)
    table = simulated_raters(trials, effects, n=200, seed=1, spread=10)
    assert table.simulated.all() and table.rater.str.match("SIM").all() and len(trials) == 9 and len(effects) == len(numbers) == 45
    means = methods_only(table).groupby(["item", "condition"]).value.mean()
    inside = {key: value for key, value in effects.items() if 25 < value < 75}                          # where the ends of the scale do not press
    assert len(inside) > 30 and max(abs(means[key] - value) for key, value in inside.items()) < 4
    drawn = [y for ax in recordings_figure(numbers).axes for line in ax.lines for y in line.get_ydata()]
    assert sorted(drawn) == sorted(numbers.value) and all("published" in ax.get_title(loc="left") for ax in recordings_figure(numbers).axes)

def test_a_figure_says_whose_ratings_each_row_holds(simulated):
    votes = published_means(pd.read_csv(Path(__file__).resolve().parents[1] / "paper_figures" / "published" / "listening_test.csv"))
    figure = study_figure(votes, rating_means(simulated))
    assert [ax.get_ylabel().split()[0] for ax in figure.axes if ax.get_ylabel()] == ["published", "SIMULATED"]
    for bad in ((), (votes[:0],), (pd.concat([votes, rating_means(simulated)]),)):
        with pytest.raises(ValueError): study_figure(*bad)
