"""A listening study as its participants meet it, in Voila and in JupyterLab: two at once, a reload, a killed kernel, and nothing in the browser that says which sound is which."""
import os, re, signal
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest, soundfile as sf, torch
from conftest import run_all
from lmac_piq.study import Answers, make_design, save_app, save_webmushra, trials_from_folder

SEED = 8   # P01 and P03 begin with two MUSHRA trials, P02 with the A/B trial
RATE, TITLE = 16000, 'Which is the "dog" <b onclick=alert(1)>?</b> & \'co\''
SECRET = re.compile("zebramethod|yakmethod|secretpart|quaggaclip|okapiclip|narwhalclip", re.I)   # methods, part and recordings: nothing of these may reach a participant


def sound(seed: int, peak: float) -> np.ndarray:
    x = torch.randn(RATE // 2, generator=torch.Generator().manual_seed(seed)).numpy()
    return peak * x / np.abs(x).max()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    "A folder as whoever runs a study makes it: sounds, and the notebook that `save_app` writes"
    folder = tmp_path_factory.mktemp("study")
    for k, place in enumerate(("mushra/secretpart/quaggaclip", "mushra/secretpart/okapiclip", "ab/secretpart/narwhalclip")):
        (folder / place).mkdir(parents=True)
        for i, name in enumerate(("reference", "zebramethod", "yakmethod")): sf.write(folder / place / f"{name}.wav", sound(10 * k + i, 0.1 * 2**i), RATE)
    save_app(folder, title=TITLE, seed=SEED)
    return folder


@pytest.fixture
def store(study) -> Answers:
    "The study's store, opened with its design by another process than those that serve it"
    design = make_design([*trials_from_folder(study / "mushra"), *trials_from_folder(study / "ab", kind="ab")], title=TITLE, seed=SEED)
    answers = Answers(study / "answers.sqlite", design)
    yield answers
    answers.close()


def kernels(server) -> set[int]:
    "The kernels that live; one that was killed is a zombie until its server looks"
    found = psutil.Process(server.process.pid).children(recursive=True)
    return {p.pid for p in found if p.status() != psutil.STATUS_ZOMBIE and any("ipykernel" in word for word in p.cmdline())}


WATCH = """
window.started = []; window.waves = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...at) { started.push(at); waves.push(Array.from(this.buffer.getChannelData(0))); return start.apply(this, at); };
"""   # what the sound card is told: which samples, when, and from where


class Participant:
    "One person at one browser: what they were shown and what they answered"
    def __init__(self, page, address: str, code: str):
        self.page, self.code, self.told, self.seen, self.responses = page, code, {}, [], []
        page.add_init_script(WATCH)
        page.on("websocket", self.listen)
        page.on("response", lambda response: self.responses.append(response))
        page.goto(address)

    def listen(self, socket) -> None:
        for event in ("framereceived", "framesent"): socket.on(event, lambda frame: self.seen.append(frame))

    def read(self) -> None:
        "Keep what came over HTTP so far: a reload throws it away"
        for response in self.responses:
            if re.search("json|html|text/plain", response.headers.get("content-type", "")) and response.ok: self.seen.append(response.text())
        self.responses.clear()

    @property
    def place(self) -> int: return int(re.search(r"trial (\d+) of", self.page.inner_text(".lmac-study header"))[1])

    def begin(self) -> None:
        self.page.get_by_label("Participant code").fill(self.code); self.page.keyboard.press("Enter")
        self.arrived()

    def arrived(self) -> "Participant": self.page.wait_for_selector(".lmac-study .transport", timeout=180_000); return self

    def letters(self) -> list[str]: return [b.get_attribute("data-sound") for b in self.page.query_selector_all(".lmac-study .sound")][1:]

    def rate(self, letter: str, key: str) -> None:
        "With the keyboard alone: the letter goes to the slider, the key moves it"
        self.page.keyboard.press(letter.lower()); self.page.keyboard.press(key)
        self.page.wait_for_selector(f"text=/^{letter}: \\d+ stored$/")
        self.told[self.place, letter] = float(self.page.inner_text(f".row:has([data-sound={letter}]) output"))

    def drag(self, letter: str, to: float) -> None:
        "With the mouse"
        slider = self.page.get_by_label(f"rating of sound {letter}")
        box = slider.bounding_box()
        self.page.mouse.click(box["x"] + to * box["width"], box["y"] + box["height"] / 2)
        self.page.wait_for_selector(f"text=/^{letter}: \\d+ stored$/")
        self.told[self.place, letter] = float(slider.input_value())

    def answer(self, keyboard: bool) -> None:
        "Hear and answer everything on the page"
        self.page.locator(".lmac-study .play").focus()
        if self.page.inner_text(".play") == "Play": self.page.keyboard.press("Space") if keyboard else self.page.click(".play")
        for k, letter in enumerate(self.letters()):
            if self.page.query_selector("[type=radio]"): self.page.keyboard.press(letter.lower())
            elif keyboard: self.rate(letter, ("Home", "PageUp", "ArrowRight", "End")[k])
            else: self.drag(letter, 0.1 + 0.2 * k)
        if (choice := "A" if keyboard else "no difference") and (radio := self.page.query_selector(f"label:has-text('{choice}') >> [type=radio]")):
            radio.focus(); self.page.keyboard.press("Space")
            self.page.wait_for_selector("text=/^stored$/")
            self.told |= {(self.place, letter): {"A": 100.0 * (letter == "A"), "no difference": 50.0}[choice] for letter in "AB"}

    def next(self) -> None:
        place, go = self.place, self.page.locator(".lmac-study .go")
        go.focus(); self.page.keyboard.press("Enter")
        self.page.wait_for_function("place => !document.querySelector('.lmac-study').innerText.includes(`trial ${place} of`)", arg=place)

    def check(self, store: Answers) -> None:
        "Everything that the page called stored is in the store, with its condition, and nothing else"
        order = store.design.order(self.code)
        expected = {(order[place - 1].trial.name, order[place - 1].stimuli[ord(letter) - ord("A")].condition): value for (place, letter), value in self.told.items()}
        assert {(t, c): v for code, t, c, v in store._all("select code, trial, condition, value from answer") if code == self.code} == expected

    def is_blind(self) -> None:
        "Nothing that reached this browser names a condition, a recording or a file; the page itself names no part of the design at all"
        self.read()
        seen = [piece if isinstance(piece, str) else bytes(piece).decode("latin1") for piece in self.seen] + [self.page.content()]
        assert sum("Reference" in piece and "data:audio/wav" in piece for piece in seen) and sum('"rate"' in piece for piece in seen), "what went over the wire was not seen"
        found = {m[0] for piece in seen for m in SECRET.finditer(piece)} | ({"anchor"} if "anchor" in self.page.inner_html(".lmac-study") else set())
        assert not found, f"a participant could read {found}"


def test_two_participants_a_reload_and_a_killed_kernel(study, store, serve, open_page):
    server = serve("voila", "study.ipynb", study)
    one = Participant(open_page("about:blank"), f"{server.url}/?code=P01", "P01").arrived()            # by a link
    first = kernels(server)
    two = Participant(open_page("about:blank", width=390, height=844), server.url, "P02")              # by the code, on a phone
    two.page.wait_for_selector("text=Participant code", timeout=180_000)
    (other,) = kernels(server) - first
    for wrong, why in (("anna@example.org", "no names"), ("SIM01", "simulated")):
        two.page.get_by_label("Participant code").fill(wrong); two.page.keyboard.press("Enter")
        two.page.wait_for_selector(f".said:has-text('{why}')")
    two.begin()
    assert one.page.inner_text("h2") == TITLE and not one.page.query_selector("h2 *") and one.page.query_selector("text=alert(1)")

    assert [p.trial.kind for code in ("P01", "P02") for p in store.design.order(code)] == ["mushra", "mushra", "ab", "ab", "mushra", "mushra"]
    one.page.get_by_label("rating of sound A").focus(); one.page.keyboard.press("ArrowRight")
    two.page.get_by_label("no difference").click()
    for person in (one, two): person.page.wait_for_selector(".said:has-text('Listen to sound')")       # a sound must be heard before it is rated
    assert not store._all("select * from answer")
    one.answer(keyboard=False); two.answer(keyboard=True)
    one.next(); two.next()

    one.read(); one.page.reload(); one.arrived()                                                                   # a reload goes on where it was
    assert one.place == 2 and "code=P01" in one.page.url
    one.page.click(".play"); letters = one.letters()
    for letter in letters[:3]: one.page.click(f"[data-sound={letter}]")
    one.drag(letters[0], 0.9); one.drag(letters[1], 0.3)
    (mine,) = kernels(server) - first - {other}
    os.kill(mine, signal.SIGKILL)                                                                      # in the middle of a page
    one.page.get_by_label(f"rating of sound {letters[2]}").focus(); one.page.keyboard.press("End")
    one.page.wait_for_selector(".lost:has-text('NOT stored')", timeout=180_000)
    two.answer(keyboard=True); two.next()                                                              # the other one notices nothing
    one.read(); one.page.click("text=Reload this page"); one.page.wait_for_selector(".lost", state="hidden", timeout=5000); one.arrived()
    assert one.place == 2 and [one.page.inner_text(f".row:has([data-sound={x}]) output") for x in letters] == [*(f"{one.told[2, x]:.0f}" for x in letters[:2]), "–", "–"]
    one.check(store); two.check(store)

    for person, keyboard in ((one, False), (two, True)):
        while person.page.query_selector(".transport"): person.answer(keyboard); person.next()
        assert "Finished" in person.page.inner_text(".lmac-study") and f"All 3 trials of {person.code}" in person.page.inner_text(".lmac-study")
        assert person.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        person.check(store); person.is_blind()
    assert len(one.told) == len(two.told) == 10 and one.told != two.told

    for name in ("answers.sqlite", "answers.sqlite-wal", "study.ipynb", "mushra/secretpart/quaggaclip/zebramethod.wav"):   # Voila hands out neither the store nor the files
        assert one.page.request.get(f"{server.url}/voila/files/{name}").status in (403, 404) and one.page.request.get(f"{server.url}/{name}").status in (403, 404)
    on_disk = b"".join(path.read_bytes() for path in study.glob("answers.sqlite*"))
    assert b"P01" in on_disk and b"P02" in on_disk and b"anna" not in on_disk and b"example.org" not in on_disk
    assert {c for (t,) in store._all("select name from sqlite_master where type = 'table'") for _, c, *_ in store._all(f"pragma table_info({t})")} == {"one", "digest", "design", "code", "since", "trial", "condition", "value", "at", "text"}

    table = pd.read_csv(store.to_csv(study / "answers.csv"))
    assert len(table) == 20 and table.complete.all() and not table.simulated.any() and table.groupby("rater").size().to_dict() == {"P01": 10, "P02": 10}
    assert "quaggaclip" not in save_webmushra(store.design, study / "webmushra").read_text() and len(list((study / "webmushra").rglob("*.wav"))) == 11


def test_jupyterlab_switches_in_step_and_goes_on_with_a_new_kernel(study, store, serve, open_page):
    store.db.execute("delete from answer")
    server = serve("lab", "study.ipynb", study)
    lab = Participant(open_page("about:blank"), server.url, "P03")
    run_all(lab.page); lab.begin()
    order, cells = store.design.order("P03"), lab.page.locator(".jp-CodeCell").count()
    lab.page.locator(".lmac-study .play").focus(); lab.page.keyboard.press("Space")
    lab.page.wait_for_function("started.length > 0")
    count = len(order[0].stimuli) + 1
    for letter in lab.letters(): lab.page.keyboard.press(letter.lower())                               # JupyterLab would insert cells at A and B
    at = lab.page.evaluate("[started.length, new Set(started.map(String)).size]")
    assert at == [count, 1], "all sounds start once, together; to switch starts nothing"
    for wave, s in zip(lab.page.evaluate("waves"), [order[0].trial.reference, *order[0].stimuli]): assert np.abs(np.array(wave) - s.sound.numpy()).max() < 2**-15
    lab.answer(keyboard=True)
    assert lab.page.locator(".jp-CodeCell").count() == cells and lab.place == 1
    lab.next(); lab.check(store)

    lab.page.click("[data-command='docmanager:save']"); lab.page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
    lab.page.goto(server.url.replace("&reset", "")); lab.arrived()                                     # the kernel still runs: the page comes back as it was
    assert lab.place == 2
    (pid,) = kernels(server)
    os.kill(pid, signal.SIGKILL)
    lab.page.click(".jp-Dialog[aria-label*='died'] .jp-mod-accept", timeout=120_000)                    # JupyterLab says so and starts another
    run_all(lab.page); lab.begin()
    assert lab.place == 2
    lab.check(store)
