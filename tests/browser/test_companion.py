"""The companion site as people open it: from a folder, on a desk and on a phone, to a cell, its clips and their sounds."""
import base64, io, re
from pathlib import Path
import numpy as np, pytest, soundfile as sf

from companion_site import HOSTILE, N, small_site

@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("companion")/"site"
    small_site(folder); return folder

def fits(page) -> bool: return page.evaluate("document.documentElement.scrollWidth <= innerWidth")

def play(page, card) -> None:
    "Press play and see the audio's own clock and the shown one go on"
    card.get_by_role("button", name="Play").click()
    page.wait_for_function("[...globalThis.lmacPiqContexts.values()].some(c => c.currentTime > 0.1 && c.state === 'running')")
    page.wait_for_function("parseFloat(document.querySelector('.lmac-player .play.playing')?.closest('.lmac-player').querySelector('.clock').textContent) > 0.05")

@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_from_the_front_page_to_the_sounds_behind_a_number(site, open_page, width, dark):
    page = open_page(site/"index.html", width, 900, dark)
    assert fits(page) and page.get_by_role("heading", level=1).inner_text() == "What a classifier listened to"
    page.get_by_role("link", name="Scenes: clean").click()
    cell = page.locator("table").first.locator("tr", has=page.get_by_role("rowheader", name="L-MAC", exact=True)).locator("td").nth(1)
    mean = float(re.match(r"[\d.]+", cell.inner_text())[0])
    assert fits(page)
    cell.get_by_role("link").click()
    page.get_by_role("heading", name="AD of L-MAC").wait_for()
    assert page.url.endswith("scenes-clean-clips.html#L-MAC/AD/soft") and fits(page)
    values = [float(v.removesuffix("\u00a0%")) for v in page.locator("td.value").all_inner_texts()]
    assert len(values) == N and values == sorted(values) and abs(np.mean(values) - mean) < 0.06, "best first, and their mean is the number that was pressed"
    best = page.locator(".end").first
    assert best.get_by_role("heading", level=2).inner_text().startswith(f"Best: {values[0]:.1f}")
    play(page, best)
    best.get_by_role("button", name="Kept").click()
    assert best.get_by_role("button", name="Kept").get_attribute("aria-pressed") == "true" and fits(page)
    page.go_back(); page.locator("table").first.wait_for()
    assert page.url.endswith("scenes-clean.html")

def test_the_browser_plays_the_packed_samples(site, open_page):
    page = open_page(f"{(site/'scenes-clean-clips.html').as_uri()}#L-MAC/AD/soft")
    page.locator(".lmac-player").first.wait_for()
    pairs = page.evaluate("""async () => { const found = [];
        for (const [path, script] of Object.entries(window.companion)) if (script.tracks) (await script.ready).forEach((t, k) => found.push([script.tracks[k].wav, t.wav]));
        return found; }""")
    assert len(pairs) >= 3
    for packed, played in pairs:
        a, b = (sf.read(io.BytesIO(base64.b64decode(url.split(",")[1])), dtype="int16") for url in (packed, played))
        assert a[1] == b[1] == 16000 and np.array_equal(a[0], b[0])

def test_a_cell_is_chosen_with_the_keyboard_and_another_from_the_lists(site, open_page):
    page = open_page(site/"scenes-clean.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "skip to content"
    page.locator('a[href$="#saliency/FF/topk"]').focus(); page.keyboard.press("Enter")
    page.get_by_role("heading", name="FF of saliency").wait_for()
    page.get_by_role("combobox", name="method").select_option("loudest bins")
    page.get_by_role("heading", name="FF of loudest bins").wait_for()
    page.get_by_role("combobox", name="order").select_option("up")
    page.wait_for_function("location.hash.endsWith('/up')")
    page.wait_for_function("document.querySelector('.end h2').textContent.startsWith('Worst')")
    values = [float(v.replace("−", "-")) for v in page.locator("td.value").all_inner_texts()]
    assert values == sorted(values) and page.evaluate("document.activeElement.tagName") == "H1"
    page.go_back(); page.wait_for_function("document.querySelector('.end h2').textContent.startsWith('Best')")

def test_methods_beside_each_other_on_one_clip(site, open_page):
    page = open_page(site/"scenes-clean.html")
    card = page.locator(".clip").first
    card.scroll_into_view_if_needed()
    card.locator(".lmac-player").wait_for()
    methods = card.get_by_role("list", name="methods").get_by_role("button")
    assert methods.count() == 6 and card.locator(".track").count() == 3
    methods.filter(has_text="GradCAM").click()
    card.get_by_text("explained by GradCAM").wait_for()
    card.get_by_role("checkbox").check()
    methods.filter(has_text="loudest bins").click()
    card.get_by_text("explained by GradCAM and loudest bins").wait_for()
    assert card.locator(".track").count() == 5 and card.locator("li [aria-pressed=true]").count() == 2
    play(page, card)

def test_a_clip_of_the_list_opens_in_its_place(site, open_page):
    page = open_page(f"{(site/'scenes-clean-clips.html').as_uri()}#L-MAC/AD/soft", 390)
    hear = page.get_by_role("button", name=re.compile("^hear ")).first
    hear.focus(); page.keyboard.press("Enter")       # a click would miss while the cards above are still growing
    page.locator("tr.opened .lmac-player").wait_for()
    assert hear.get_attribute("aria-expanded") == "true" and fits(page)
    hear.focus(); page.keyboard.press("Enter")
    assert page.locator("tr.opened").count() == 0

@pytest.mark.parametrize("name", ["failures", "disagreements", "scenes-clean"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_loads_what_it_shows(site, open_page, name, width):
    page = open_page(site/f"{name}.html", width)
    page.locator(".clip").first.scroll_into_view_if_needed()
    page.locator(".clip .lmac-player").first.wait_for()
    assert fits(page) and page.locator("[role=alert]").count() == 0

def test_names_are_shown_as_text(site, open_page):
    page = open_page(f"{(site/'scenes-clean-clips.html').as_uri()}#L-MAC/correct/soft")
    page.locator("td.value").first.wait_for()
    assert HOSTILE in page.locator("main").inner_text() and page.locator('img[src="x"]').count() == 0

def test_an_address_that_is_not_of_this_site_shows_a_cell_all_the_same(site, open_page):
    page = open_page(f"{(site/'scenes-clean-clips.html').as_uri()}#%3Cb%3E/constructor/__proto__")
    page.get_by_role("heading", name="AD of L-MAC").wait_for()
    assert page.locator("td.value").count() == N
