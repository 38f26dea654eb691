"""The codes of a class in one item: places, parts that add up, patches, usage, and text that stays text."""
import io, json, math, re
from dataclasses import replace
import numpy as np, pytest, soundfile as sf, torch

from lmac_piq.classifier import AudioClassifier, ImageClassifier
from lmac_piq.codebook import Codebook
from lmac_piq.codes import CodePlayer, CodeView, OneCode, _flac, cell_edges, code_of_bins, code_view, codes_data, codes_html, codes_page
from lmac_piq.explanation import explain
from lmac_piq.piq import PIQ, DigitInterpreter, LightInterpreter, PIQTask, PublishedInterpreter, code_patches, count_codes
from lmac_piq.data import Batch
from lmac_piq.training import seeded

EVIL = "<img src=x onerror=\"document.title='hit'\"></script><script>document.title='hit'</script><!--"
CLASSES = ["low_hum", EVIL, "beep"]

def waves(n: int = 2, seconds: float = 0.9) -> torch.Tensor:
    t = torch.arange(round(16000 * seconds)) / 16000
    return torch.stack([0.1 * torch.sin(2 * math.pi * 300 * (k + 1) * t) + 0.05 * torch.sin(2 * math.pi * 3000 * t) * (t > 0.4) for k in range(n)])

def ear(task: PIQTask = PIQTask(), partition: bool = True, shared: int = 3) -> tuple[AudioClassifier, PIQ]:
    "A classifier and a PIQ at random; rows far apart, so that several fire"
    with seeded(0):
        model = AudioClassifier(CLASSES, 0.0625, network="conv2d", pool=2).eval()
        piq = PIQ(LightInterpreter(16, 8, layer=2, doublings=3), Codebook(21, 8, 3 if partition else 1, shared=shared, partition=partition), task)
    with torch.no_grad():
        z = piq.eval().body.encode(model.classify(model.represent(waves()).values).features).movedim(1, -1).flatten(0, -2)
        piq.codebook.rows.copy_(z[torch.randint(len(z), (21,), generator=torch.Generator().manual_seed(1))] + 0.01 * torch.randn(21, 8, generator=torch.Generator().manual_seed(2)))
    return model, piq

@pytest.fixture(scope="module")
def heard() -> tuple[AudioClassifier, PIQ, CodeView]:
    model, piq = ear()
    return model, piq, code_view(piq, explain(model, piq, waves()[:1], 1), count_codes(piq, model, [Batch(waves())]), "two tones")

def test_places_are_those_of_the_explainer(heard):
    model, piq, v = heard
    codes = explain(model, piq, waves()[:1], 1).attribution.extras["codes"][0]
    assert torch.equal(v.codes, codes) and len(codes.unique()) > 2
    for row in v.rows.tolist(): assert torch.equal(v.places(row), codes == row)
    assert sum(int(v.places(row).sum()) for row in v.rows.tolist()) == codes.numel() == v.table().positions.sum()

@pytest.mark.parametrize("task", [PIQTask(), PIQTask("values"), PIQTask("values", protocol="published")], ids=lambda t: f"{t.output}-{t.protocol}")
@pytest.mark.parametrize("domain", ["log", "linear"])
def test_the_parts_of_all_codes_add_up_to_what_is_kept(task, domain):
    model, piq = ear(task)
    v = code_view(piq, explain(model, piq, waves()[:1], domain=domain))
    assert torch.equal(v.here.masks.sum(0), v.comparison.mask) and ((v.here.masks > 0).sum(0) <= 1).all()
    torch.testing.assert_close(v.here.signals.sum(0), v.comparison.signals["kept"], atol=1e-6, rtol=1e-5)
    assert v.table().kept.sum() == pytest.approx(1, abs=1e-6)

def test_a_part_is_heard_only_where_its_code_fires(heard):
    _, _, v = heard
    x, _ = v.extent()
    for k, row in enumerate(v.rows.tolist()):
        loud = v.here.signals[k].abs() > 1e-7
        columns = v.places(row).any(0).nonzero()[:, 0].tolist()
        if not columns: assert not loud.any(); continue
        when = loud.nonzero()[:, 0] / 16000
        if len(when): assert when.min() >= x[columns[0]] - 0.03 and when.max() <= x[columns[-1] + 1] + 0.03     # a window of the transform to either side

@pytest.mark.parametrize("task", [PIQTask(), PIQTask("values")], ids=lambda t: t.output)
def test_a_patch_is_the_decoded_row(task):
    model, piq = ear(task)
    e = explain(model, piq, waves()[:1]); v = code_view(piq, e)
    torch.testing.assert_close(v.patches, code_patches(piq, v.rows, tuple(v.codes.shape), e.rep.values)[..., :v.comparison.mask.shape[1]])
    alone = e.by(OneCode(piq, int(v.rows[0])))
    torch.testing.assert_close(v.everywhere.signals[0], alone.kept()[0]); torch.testing.assert_close(v.everywhere.probs[0], alone.p_kept[0])

def test_usage_and_dead_codes(heard):
    model, piq, v = heard
    own, shared = v.rows[~v.shared], v.rows[v.shared]
    assert set(own.tolist()) == set((piq.codebook.classes == 1).nonzero()[:, 0].tolist()) and set(shared.tolist()) == {18, 19, 20} and v.shared.tolist() == sorted(v.shared.tolist())
    hits = torch.zeros(21, dtype=torch.long); hits[own[0]], hits[20] = 3, 5
    told = code_view(piq, explain(model, piq, waves()[:1], 1), hits)
    for row in told.rows.tolist():
        fires = bool(told.places(row).any())
        assert told.state(row) == ("here" if fires else "elsewhere" if hits[row] else "dead")
    t = told.table(); assert t.loc[int(own[0]), "share"] == 1 and t.loc[20, "share"] == 1 and t.share.sum() == 2
    dead = [c for c in codes_data(told)["codes"] if c["state"] == "dead"]
    assert all(c["tracks"][0]["sound"] is None and c["tracks"][0]["detail"] == "silence" and c["tracks"][1]["sound"] for c in dead)
    silent = code_view(piq, explain(model, piq, waves()[:1], 1)); assert "dead" not in silent.table().state.tolist()                  # nothing counted, nothing called dead

def test_one_codebook_for_all_classes_shows_what_fires_and_says_what_is_left_out():
    model, piq = ear(partition=False)
    v = code_view(piq, explain(model, piq, waves()[:1]), torch.arange(21), most=2)
    assert set(v.codes.unique().tolist()) <= set(v.rows.tolist()) and len(v.rows) + v.left_out == 21 and v.left_out
    assert f"{v.left_out} further codes" in codes_data(v)["note"][-1] and codes_data(v)["groups"][0]["title"] == "Codes of all classes"

@pytest.mark.parametrize("training", [False, True])
def test_modes_are_left_as_found(training):
    model, piq = ear(); piq.train(training)
    before = {m: m.training for m in [*piq.modules(), *model.modules()]}
    code_view(piq, explain(model, piq, waves()[:1]))
    assert before == {m: m.training for m in [*piq.modules(), *model.modules()]}

@pytest.mark.parametrize("body,n,size", [(LightInterpreter(4, 8), 7, 61), (PublishedInterpreter(4), 16, 513), (PublishedInterpreter(4, adapter=False), 13, 431), (DigitInterpreter(4), 4, 28)], ids=lambda b: str(b)[:12])
def test_cells_cover_every_bin_once(body, n, size):
    edges = cell_edges(body, n, size)
    assert edges[0] == 0 and edges[-1] == size and (edges.diff() > 0).all() and len(edges) == n + 1
    assert code_of_bins(torch.arange(n)[:, None], [edges, torch.tensor([0, 1])])[:, 0].bincount(minlength=n).equal(edges.diff())

def test_a_short_clip_is_not_padded_with_positions():
    model, piq = ear()
    v = code_view(piq, explain(model, piq, waves(1, 0.3)))
    assert v.comparison.mask.shape[1] == v.edges[1][-1] and v.here.signals.shape[1] == 4800 and v.codes.shape[1] == len(v.edges[1]) - 1
    torch.testing.assert_close(v.here.signals.sum(0), v.comparison.signals["kept"], atol=1e-6, rtol=1e-5)

def test_silence_says_so():
    model, piq = ear()
    data = codes_data(code_view(piq, explain(model, piq, torch.zeros(1, 14400))))
    assert all(t["sound"] is None and t["detail"] == "silence" for c in data["codes"] for t in c["tracks"]) and "silent clip" in data["note"][0] and data["gain_db"] == 0

def test_all_sounds_have_one_gain(heard):
    _, _, v = heard
    loudest = max(float(s.abs().max()) for s in (*v.comparison.signals.values(), v.here.signals, v.everywhere.signals))
    assert v.gain * loudest == pytest.approx(0.9, rel=1e-5)
    import base64
    media = codes_data(v)["media"]
    for k, row in enumerate(v.rows.tolist()):
        for name, part in (("here", v.here), ("everywhere", v.everywhere)):
            if f"{name}-{row}" not in media: assert part.signals[k].abs().max() * v.gain < 2**-15; continue
            back, rate = sf.read(io.BytesIO(base64.b64decode(media[f"{name}-{row}"].split(",")[1])), dtype="float32")
            assert rate == 16000 and np.abs(back - v.gain * part.signals[k].numpy()).max() <= 2**-15

def test_names_are_text_and_the_page_stands_alone(heard, tmp_path):
    _, _, v = heard
    v = replace(v, counted=EVIL, comparison=replace(v.comparison, explainer=EVIL))
    for text in (codes_html(v, assets=False), codes_html(codes_data(v), assets=False)):
        assert text.count("<script") == 1 == text.count("</script") and "<img src=x" not in text and "<!--" not in text
    written = codes_page([v, v], EVIL, tmp_path/"p.html").read_text()
    assert written.count("data-lmac-codes>") == 2 and not re.search(r'(src|href)="(?!data:)', written) and "onerror=\"" not in written
    json.dumps(codes_data(v), allow_nan=False)

def test_images_and_refusals(heard):
    model, piq, v = heard
    with seeded(0): reader, sketch = ImageClassifier(["a", "b"]), PIQ(DigitInterpreter(), Codebook(9, 128, 2, shared=1), PIQTask("values"))
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(3)); seen = code_view(sketch, explain(reader, sketch, x))
    assert torch.equal(seen.here.masks.sum(0), seen.comparison.mask) and codes_data(seen)["sample_rate"] is None and "<audio" not in codes_html(seen, assets=False)
    torch.testing.assert_close(seen.here.signals.sum(0), seen.comparison.signals["kept"])
    player = CodePlayer(v); other = int(v.rows[1])
    assert player.choose(other).row == other and player.show(v).row == other
    for wrong, why in ((lambda: player.choose(0), "choose from"), (lambda: OneCode(piq, -1), "choose 0"), (lambda: code_view(PIQ(piq.body, None), explain(model, piq, waves()[:1])), "no codebook"),
                       (lambda: code_view(piq, explain(model, piq, waves())), "pick one"), (lambda: code_view(piq, explain(model, piq, waves()[:1]), torch.zeros(3)), "count them"), (lambda: codes_page([], "", "x.html"), "at least one")):
        with pytest.raises(ValueError, match=why): wrong()
