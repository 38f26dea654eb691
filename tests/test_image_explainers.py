"L-MAC, the nulls and the outside methods on images: shapes, areas, and `evaluate` from end to end with true object masks."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.baselines import Everything, GradCAM, IntegratedGradients, LoudestBins, Nothing, RandomBins, mask_plane, nulls
from lmac_piq.classifier import AudioClassifier, ImageClassifier
from lmac_piq.data import Batch, ImageSet
from lmac_piq.decoder import ImageDecoder, LightDecoder, make_decoder
from lmac_piq.explanation import Attribution, baseline_values, explain
from lmac_piq.lmac import LMAC, FineTuning, LMACWeights, mean_area, total_variation
from lmac_piq.metrics import FORMS, evaluate, faithfulness_curve, insertion_deletion
from lmac_piq.scenes import SHAPES, ShapeImages
from lmac_piq.training import FitConfig, fit, seeded


@pytest.fixture(scope="module")
def shapes(): return ShapeImages(8, 32, seed=3)


@pytest.fixture(scope="module")
def model():
    with seeded(0): return ImageClassifier(list(SHAPES), "resnet", 3, 32, width=0.25).eval()


@pytest.fixture(scope="module")
def lmac(model):
    with seeded(1): return LMAC(ImageDecoder(model.network.channels, width=8)).eval()


class Given:
    "The masks it was made with, in the order of the images"
    name, class_conditional, fixed_frames = "given", True, None
    def __init__(self, masks): self.masks = masks
    def attribute(self, model, rep, out, target): return Attribution(self.masks[:len(rep.values)])


# The decoder

@pytest.mark.parametrize("network, channels, size", [("mnistnet", 1, 28), ("resnet", 3, 28), ("resnet", 3, 96), ("resnet", 1, 45)])
def test_masks_have_the_size_of_the_image(network, channels, size):
    with seeded(0): model = ImageClassifier(["a", "b"], network, channels, size).eval()
    with seeded(1): lmac = LMAC(ImageDecoder(model.network.channels, 8, inputs=channels))
    e = explain(model, lmac, torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert e.mask.shape == (2, size, size) and 0 < e.mask.min() and e.mask.max() < 1 and e.kept().shape == e.x.shape


@pytest.mark.parametrize("n_classes", [0, 3])
def test_an_image_decoder_comes_back_from_its_configuration(n_classes):
    decoder = ImageDecoder([4, 8], 8, n_classes, inputs=1)
    again = make_decoder(decoder.config)
    assert type(again) is ImageDecoder and again.config == decoder.config and [p.shape for p in again.parameters()] == [p.shape for p in decoder.parameters()]


def test_each_image_is_drawn_by_itself_and_sees_its_pixels(model, lmac, shapes):
    images = shapes.images(); whole = explain(model, lmac, images).mask
    assert torch.allclose(explain(model, lmac, images[3:4]).mask[0], whole[3], atol=1e-5)
    features = model.classify(images).features
    other = images.clone(); other[:, :, 5, 6] = 1 - other[:, :, 5, 6]           # same maps, another pixel
    changed = (lmac.decoder(features, images) - lmac.decoder(features, other)).abs()
    assert (changed[:, 5, 6] > 0).all()


def test_a_decoder_refuses_what_it_was_not_made_for(model, shapes):
    images = shapes.images(); features = model.classify(images).features
    grey, conditional = ImageDecoder(model.network.channels, 8, inputs=1), ImageDecoder(model.network.channels, 8, n_classes=2)
    with pytest.raises(ValueError, match="inputs"): grey(features, images)
    with pytest.raises(ValueError, match="inputs"): grey(features, images[:, 0])
    with pytest.raises(ValueError, match="target"): conditional(features, images)


def test_what_the_decoders_share_kept_the_names_of_saved_weights():
    names = {name.split(".")[0] for name in LightDecoder([4, 8], 8).state_dict()}
    assert names == {"project", "mixes", "top", "mix", "out"} == {name.split(".")[0] for name in ImageDecoder([4, 8], 8).state_dict()}


# L-MAC's loss

def test_the_loss_on_images_worked_out_by_hand(model, shapes):
    images = shapes.images()
    with seeded(1): lmac = LMAC(ImageDecoder(model.network.channels, 8), LMACWeights(tv=0.5))
    terms = lmac.loss(model, Batch(images, annotation=shapes.masks()))
    e = explain(model, lmac, images); logs = lambda p: p.gather(1, e.target[:, None]).log().mean()
    assert torch.allclose(terms["kept"], -4 * logs(e.p_kept), atol=1e-4) and torch.allclose(terms["removed"], 0.2 * logs(e.p_removed), atol=1e-4)
    assert torch.allclose(terms["area"], 6.4 * e.mask.mean(), atol=1e-5)
    across, down = (e.mask[:, 1:] - e.mask[:, :-1]) ** 2, (e.mask[:, :, 1:] - e.mask[:, :, :-1]) ** 2
    assert torch.allclose(terms["tv"], 0.5 * (across.sum() + down.sum()) / 16, rtol=1e-4)
    sum(terms.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lmac.parameters()) and all(p.grad is None for p in model.parameters())


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), b=st.integers(1, 3), seed=st.integers(0, 99))
def test_area_and_variation_of_any_plane(h, w, b, seed):
    mask = torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed))
    assert torch.isclose(mean_area(mask, torch.zeros(b)), mask.mean()) and mean_area(mask, torch.ones(b)) == 0
    assert torch.isclose(total_variation(mask), total_variation(mask.transpose(1, 2)), atol=1e-6)
    assert total_variation(mask) >= 0 and total_variation(torch.ones(b, h, w)) == 0


def test_object_masks_are_not_taken_for_classes(model, shapes):
    with seeded(1): lmac = LMAC(ImageDecoder(model.network.channels, 8, n_classes=len(SHAPES)))
    out = model.classify(shapes.images())
    for annotation in (None, shapes.masks()):
        with seeded(4): target = lmac.pick_target(out, annotation)
        with seeded(4): assert torch.equal(target, lmac.pick_target(out))
    present = torch.zeros(8, len(SHAPES)); present[:, 2] = 1
    assert (lmac.pick_target(out, present) == 2).all()


def test_fine_tuning_is_refused_on_images(model, lmac, shapes):
    with pytest.raises(ValueError, match="images"): lmac.fine_tuned(FineTuning()).loss(model, Batch(shapes.images(), clean=shapes.images()))


def test_training_lowers_the_loss(model, shapes):
    batch = Batch(shapes.images())
    with seeded(1): lmac = LMAC(ImageDecoder(model.network.channels, 8))
    log = fit(lmac, lambda b: lmac.loss(model, b), lambda g: iter([batch] * 4), FitConfig(epochs=3, lr=1e-2, bf16=False), 4, progress=False)
    total = log[["kept", "removed", "area"]].sum(axis=1)
    assert total.iloc[-1] < total.iloc[0]


# The nulls

@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
def test_nulls_of_images_have_the_references_area(baseline, shapes):
    with seeded(0): model = ImageClassifier(list(SHAPES), "resnet", 3, 32, baseline, width=0.25).eval()
    images, reference = shapes.images(), Given(shapes.masks())
    made = {n.name: explain(model, n, images) for n in nulls(reference)}
    area = shapes.masks().sum((1, 2))
    assert all(e.mask.shape == (8, 32, 32) for e in made.values())
    for name in ("random bins", "loudest bins"):
        assert torch.equal(made[name].mask.sum((1, 2)), area.round()) and set(made[name].mask.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(made["constant"].mask, (area / 1024)[:, None, None].expand(8, 32, 32))
    assert torch.allclose(made["all ones"].kept(), images) and torch.allclose(made["all zeros"].kept(), baseline_values(model, images))
    distance, loud = (images - baseline_values(model, images)).abs().mean(1), made["loudest bins"].mask.bool()
    assert all(d[m].min() >= d[~m].max() for d, m in zip(distance, loud))


def test_a_random_mask_does_not_depend_on_the_batch(model, shapes):
    images = shapes.images(); mask = explain(model, RandomBins(Given(torch.full((8, 32, 32), 0.25))), images).mask
    assert torch.equal(explain(model, RandomBins(Given(torch.full((1, 32, 32), 0.25))), images[5:6]).mask[0], mask[5]) and not torch.equal(mask[0], mask[1])


def test_a_plain_image_has_no_loudest_pixel(model):
    flat = torch.full((2, 3, 32, 32), 0.5)
    assert (explain(model, LoudestBins(Given(torch.full((2, 32, 32), 0.5))), flat).mask.sum((1, 2)) == 512).all()      # ties are broken, the area is kept


def test_a_mask_plane_is_a_view_of_one_channel():
    sound, images = torch.rand(2, 5, 7), torch.rand(2, 3, 5, 7)
    assert mask_plane(sound) is sound and torch.equal(mask_plane(images), images[:, 0])


def test_sound_is_as_it_was():
    "Nulls on spectrograms against a literal re-implementation"
    with seeded(0): model = AudioClassifier(["a", "b"], width=0.0625).eval()
    x = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)); half = explain(model, Everything(), x)
    class Third(Given):
        def attribute(self, model, rep, out, target): return Attribution(torch.full_like(rep.values, 1 / 3))
    loud, k = explain(model, LoudestBins(Third(None)), x).mask, round(half.rep.values[0].numel() / 3)
    assert torch.equal(half.mask, torch.ones_like(half.rep.values)) and (loud.flatten(1).sum(1) == k).all() and explain(model, Nothing(), x).mask.shape == half.rep.values.shape
    assert all(v[m.bool()].min() >= v[~m.bool()].max() for v, m in zip(half.rep.values, loud))


# From end to end

@pytest.fixture(scope="module")
def table(model, lmac, shapes):
    truth = Given(shapes.masks()); truth.name = "truth"
    methods = [lmac, *nulls(lmac), GradCAM(), IntegratedGradients(5), truth]
    return evaluate(model, methods, shapes.images(), form=FORMS, reference=truth, truth=(shapes.masks(), None), batch_size=8)


def test_every_metric_of_an_image_is_there_and_in_range(table):
    assert set(table.method) == {"L-MAC", "random bins", "loudest bins", "constant", "all ones", "all zeros", "GradCAM", "integrated gradients", "truth"}
    assert {"AI", "AD", "AG", "FF", "Fid-In", "SPS", "COMP", "ap", "iou", "mask_mean"} <= set(table.metric) and not {"energy_kept", "level_db", "si_sdr_improvement"} & set(table.metric)
    assert (table.groupby(["method", "form", "metric"]).size() == 8).all()
    for name in ("ap", "iou", "mask_mean", "Fid-In"): assert table[table.metric == name].value.dropna().between(0, 1).all()


def test_localisation_of_the_true_mask_is_perfect_and_of_the_nulls_what_it_must_be(table, shapes):
    value = table[table.form == "soft"].pivot_table(index="item", columns=["method", "metric"], values="value"); share = shapes.masks().mean((1, 2)).numpy()
    assert np.allclose(value["truth"]["ap"], 1) and np.allclose(value["truth"]["iou"], 1)
    assert np.allclose(value["all ones"]["iou"], share, atol=1e-6) and np.allclose(value["all zeros"]["iou"], 0)
    for name in ("all ones", "all zeros", "constant"): assert np.allclose(value[name]["ap"], share, atol=1e-6)
    binary = table[(table.form == "topk") & (table.metric == "mask_mean")].pivot_table(index="item", columns="method", values="value")
    assert np.allclose(binary.sub(share, axis=0), 0, atol=1e-6)                       # every method at the area of the true masks


def test_a_set_with_masks_is_evaluated_as_it_stands(model, lmac, shapes):
    "An ImageSet is its own source of true masks"
    stored = ImageSet("shapes", "test", (255 * shapes.images()).round().byte().numpy(), shapes.labels(), list(SHAPES), shapes.masks().numpy() > 0.5)
    frame = evaluate(model, [lmac, *nulls(lmac)], stored, truth=True, batch_size=3)
    assert {"ap", "iou", "correct"} <= set(frame.metric) and (frame[frame.metric == "iou"].groupby("method").size() == 8).all()


def test_curves_of_images(model, lmac, shapes):
    images = shapes.images()[:4]; methods = [lmac, RandomBins(lmac), LoudestBins(lmac), GradCAM()]
    areas = faithfulness_curve(model, methods, images, areas=(0.1, 0.5)); under = insertion_deletion(model, methods, images, steps=4)
    assert areas.value.notna().all() and len(areas) == 4 * 4 * 2 * 2 and under.value.between(0, 1).all()
