"Images: the four sets in their layouts, shape images, their classifiers, and an explanation from end to end."
import gzip, io, lzma, os

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn

from lmac_piq.classifier import (ImageAugment, ImageClassifier, MNISTNet, ResidualBlock, ResNet, accuracy, augment_images, image_loss)
from lmac_piq.data import DATA_ENV, SPLITS, DataError, ImageSet, batches, image_set, part_of, read_idx
from lmac_piq.explanation import Attribution, drop, explain, keep
from lmac_piq.scenes import SHAPES, ShapeImages, draw_shape, make_shapes
from lmac_piq.training import FitConfig, fit, seeded


# Small copies of the four layouts

def idx(array: np.ndarray) -> bytes: return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def drawings(n, seed): return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)


def make_idx(root, train="train30k", pack=lzma.compress, suffix=".xz"):
    root.mkdir(parents=True)
    for prefix, n in ((train, 80), ("t10k", 20)):
        images, labels = drawings(n, n)
        (root/f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (root/f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


def make_quickdraw(root):
    root.mkdir(parents=True)
    for part, n in (("train", 80), ("test", 20)):
        images, labels = drawings(n, n)
        (root/f"{part}_images.npy.xz").write_bytes(lzma.compress(npy(images)))
        (root/f"{part}_labels.npy").write_bytes(npy(labels))
    (root/"classes.txt").write_text("\n".join(["alarm clock", *(f"thing {i}" for i in range(9))]) + "\n")


def make_crops(root, n=60):
    "Crops with a bright rectangle, three from each photo, and the rectangle as mask"
    rng, rows = np.random.default_rng(0), []
    for part in ("train", "test"): (root/part).mkdir(parents=True)
    for i in range(n):
        part, mask = "train" if i < n - 12 else "test", np.zeros((96, 96), bool)
        top, left = rng.integers(0, 50, 2)
        mask[top:top + 40, left:left + 30] = True
        image = np.where(mask[..., None], 220, rng.integers(0, 60, (96, 96, 3))).astype(np.uint8)
        Image.fromarray(image).save(root/f"{part}/{i}.jpg", quality=88)
        Image.fromarray(mask).save(root/f"{part}/{i}.png")
        rows.append(dict(file=f"{part}/{i}.jpg", mask=f"{part}/{i}.png", split=part, label=["skirt", "bag", "pants", "shoes"][i % 4], photo=f"{i//3:04d}"))
    pd.DataFrame(rows).to_csv(root/"crops.csv", index=False)


MAKERS = dict(mnist=make_idx, fashion_mnist=make_idx, quickdraw=make_quickdraw, ccp_crops=make_crops)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name, make in MAKERS.items(): make(root/name)
    return root


@pytest.fixture
def crops(tmp_path):
    make_crops(tmp_path/"ccp_crops", 24)
    return tmp_path/"ccp_crops"


# Loading

@pytest.mark.parametrize("name", MAKERS)
def test_parts_of_every_set(packs, monkeypatch, name):
    monkeypatch.setenv(DATA_ENV, str(packs))
    sets = {split: image_set(name, split) for split in SPLITS}
    groups = {split: set(s.groups.tolist()) for split, s in sets.items()}
    assert groups["train"] == groups["annotator"] | groups["interpreter"]
    assert not groups["annotator"] & groups["interpreter"] and not groups["valid"] & groups["train"]
    assert len(sets["train"]) + len(sets["valid"]) == (48 if name == "ccp_crops" else 80)
    assert len({s.digest for s in sets.values()}) == 5 and sets["train"].digest == image_set(name).digest
    for s in sets.values():
        assert s.classes == sets["test"].classes and s.faults() == [] and len(s) > 0
        assert (s.masks is None) == (name != "ccp_crops")


def test_a_photo_is_in_one_part(packs):
    parts = {split: set(image_set("ccp_crops", split, packs/"ccp_crops").groups) for split in ("annotator", "interpreter", "valid", "test")}
    for a in parts:
        for b in parts: assert a == b or not parts[a] & parts[b]
    assert all((np.unique(image_set("ccp_crops", split, packs/"ccp_crops").groups, return_counts=True)[1] == 3).all() for split in parts)


def test_pixels_and_labels_are_those_of_the_files(packs):
    images, labels = drawings(20, 20)
    for name in ("mnist", "fashion_mnist", "quickdraw"):
        b = image_set(name, "test", packs/name)[:]
        assert torch.equal(b.x, torch.from_numpy(images)[:, None].float()/255) and b.label.tolist() == labels.tolist() and b.annotation is None
    train = image_set("mnist", "train", packs/"mnist")
    images, labels = drawings(80, 80)
    b = train[[0, 3]]
    assert np.array_equal(train.pixels[:, 0], images[train.groups]) and torch.equal(b.label, torch.from_numpy(labels[train.groups[[0, 3]]]).long())
    assert image_set("quickdraw", "test", packs/"quickdraw").classes[0] == "alarm clock"


@pytest.mark.parametrize("train,pack,suffix", [("train", bytes, ""), ("train", gzip.compress, ".gz"), ("train30k", lzma.compress, ".xz")])
def test_every_packing_of_idx_is_the_same_set(packs, tmp_path, train, pack, suffix):
    make_idx(tmp_path/"mnist", train, pack, suffix)
    assert image_set("mnist", "train", tmp_path/"mnist").digest == image_set("mnist", "train", packs/"mnist").digest


def test_masks_lie_on_their_objects(packs):
    crops = image_set("ccp_crops", "train", packs/"ccp_crops")
    b = crops.batch(range(len(crops)))
    grey = b.x.mean(1)
    assert b.annotation.shape == (len(crops), 96, 96) and set(b.annotation.unique().tolist()) == {0., 1.}
    assert ((grey > .5).float() == b.annotation).float().mean() > .99
    assert crops.classes == ["bag", "pants", "shoes", "skirt"]


def test_batches_cover_a_set_once(packs):
    s = image_set("mnist", "test", packs/"mnist")
    seen = torch.cat([s.batch(i).item for i in batches(len(s), 6, torch.Generator().manual_seed(0))])
    assert sorted(seen.tolist()) == list(range(20)) and s[3].x.shape == (1, 1, 28, 28) and s[-1].item.tolist() == [19]
    with pytest.raises(IndexError): s[20]
    assert all(s.targets[s.class_items("7")] == 7)


def test_part_does_not_depend_on_how_much_there_is():
    assert [part_of("mnist", i) for i in (0, 1, 2, 29999)] == [part_of("mnist", np.int64(i)) for i in (0, 1, 2, 29999)]
    assert part_of("mnist", 0) in SPLITS and len({part_of("mnist", i) for i in range(40)}) == 3


def test_missing_set_names_places_and_licence(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ENV, str(tmp_path))
    for name, words in dict(mnist="yann.lecun.com", fashion_mnist="MIT", quickdraw="CC BY 4.0", ccp_crops="clothing-co-parsing").items():
        with pytest.raises(DataError, match=words) as error: image_set(name)
        assert DATA_ENV in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("change,words", [
    (lambda t: t.assign(photo="0001"), "photo 0001 lies in train and test"),
    (lambda t: t.drop(columns="mask"), r"columns \['mask'\] are missing"),
    (lambda t: t.assign(split="dev"), "split 'dev'"),
    (lambda t: t.assign(file="train/none.jpg"), "none.jpg: missing"),
])
def test_wrong_tables_are_refused(crops, change, words):
    change(pd.read_csv(crops/"crops.csv", dtype=str)).to_csv(crops/"crops.csv", index=False)
    with pytest.raises(DataError, match=words): image_set("ccp_crops", "test", crops)


def test_wrong_files_are_refused(crops, packs, tmp_path):
    Image.new("1", (90, 96)).save(crops/"test/23.png")
    with pytest.raises(DataError, match="different sizes"): image_set("ccp_crops", "test", crops)
    (crops/"test/23.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="23.png: not a picture"): image_set("ccp_crops", "test", crops)
    make_idx(tmp_path/"cut", suffix="", pack=lambda content: content[:-5])
    with pytest.raises(DataError, match="are announced"): image_set("mnist", "test", tmp_path/"cut")
    make_idx(tmp_path/"broken", pack=lambda content: lzma.compress(content)[:-9])
    with pytest.raises(DataError, match="damaged"): image_set("mnist", "test", tmp_path/"broken")
    (tmp_path/"broken/SHA256SUMS").write_text("0"*64 + "  ./t10k-images-idx3-ubyte.xz\n")
    with pytest.raises(DataError, match="SHA256SUMS lists"): image_set("mnist", "test", tmp_path/"broken")
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: missing"): image_set("mnist", "test", packs/"quickdraw")
    with pytest.raises(DataError, match="unsigned bytes"): read_idx(b"\0\0\x0d\1\0\0\0\1abcd")


def test_wrong_names_are_refused(packs):
    with pytest.raises(ValueError, match="unknown image set 'cifar'.*mnist"): image_set("cifar")
    with pytest.raises(ValueError, match="unknown split 'dev'.*valid"): image_set("mnist", "dev", packs/"mnist")


@pytest.mark.parametrize("change,words", [
    (dict(pixels=np.zeros((4, 1, 28, 28))), "float64"), (dict(pixels=np.zeros((4, 28, 28), np.uint8)), "uint8 \\[4, 28, 28\\]"),
    (dict(pixels=np.zeros((4, 2, 28, 28), np.uint8)), "1 or 3"), (dict(targets=[0, 1, 2, -1]), "label -1"), (dict(targets=[0, 1]), "2 labels for 4"),
    (dict(classes=["a", "a", "b"]), "repeat"), (dict(masks=np.zeros((4, 28, 28))), "masks are float64"), (dict(groups=[1]), "1 groups"),
])
def test_inconsistent_arrays_are_refused(change, words):
    whole = dict(pixels=np.zeros((4, 1, 28, 28), np.uint8), targets=[0, 1, 2, 0], classes=["a", "b", "c"])
    ImageSet("toy", "test", **whole)
    with pytest.raises(DataError, match=words): ImageSet("toy", "test", **whole | change)


# The real sets

SIZES = dict(mnist=(30000, 10000, 10), fashion_mnist=(30000, 10000, 10), quickdraw=(30000, 5000, 10), ccp_crops=(711, 155, 4))


@pytest.mark.parametrize("name", SIZES)
def test_real_set(real_data, name):
    real_data(name)
    train, test = (image_set(name, split) for split in ("train", "test"))
    assert len(train) > .87*SIZES[name][0] and len(test) == SIZES[name][1] and len(test.classes) == SIZES[name][2]
    assert set(train.targets.tolist()) == set(test.targets.tolist()) == set(range(len(test.classes)))
    b = test[[0, 1, -1]]
    assert 0 <= b.x.min() < .2 and .8 < b.x.max() <= 1
    if test.masks is None: return
    assert not set(test.groups) & set(train.groups)
    table = pd.read_csv(real_data(name)/"crops.csv").query("split == 'test'")
    assert np.allclose(test.masks.mean((1, 2)), table.mask_fraction, atol=1e-4) and [test.classes[t] for t in test.targets] == table.label.tolist()


# Shape images

@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(SHAPES), st.floats(.03, .13), st.floats(0, 6.3), st.sampled_from([28, 48, 96]))
def test_shapes_cover_the_area_asked_for(name, area, angle, size):
    cover = draw_shape(name, size, (.5, .5), area, angle)
    assert 0 <= cover.min() and cover.max() <= 1 and abs(cover.mean() - area) < .01


@pytest.mark.parametrize("size", [28, 48, 96])
@pytest.mark.parametrize("two", [True, False, "equal"])
def test_shape_images(size, two):
    state = torch.random.get_rng_state()
    items = ShapeImages(12, size, seed=2, two_shapes=two)
    assert torch.equal(torch.random.get_rng_state(), state)
    for i, item in enumerate(items):
        again = ShapeImages(40, size, seed=2, two_shapes=two)[i]
        assert torch.equal(item.image, again.image) and torch.equal(item.mask, again.mask) and item.label == i % 6 == again.label
        assert item.image.shape == (3, size, size) and item.image.dtype == torch.float32 and 0 <= item.image.min() and item.image.max() <= 1
        assert set(item.mask.unique().tolist()) == {0., 1.} and (item.mask*item.distractor_mask).sum() == 0
        edges = torch.cat([m for mask in (item.mask, item.distractor_mask) for m in (mask[0], mask[-1], mask[:, 0], mask[:, -1])])
        assert edges.mean() < .05                                       # shapes lie within the image
        ratio = item.distractor_mask.sum()/item.mask.sum()
        assert {True: .15 < ratio < .6, False: ratio == 0, "equal": .65 < ratio < 1.5}[two]
        assert item.distractor_label == -1 if two is False else item.distractor_label not in (-1, item.label)
    assert not torch.equal(items[0].image, ShapeImages(12, size, seed=3, two_shapes=two)[0].image)


def test_plain_ground_is_plain():
    rough = lambda clutter: torch.stack([i.image[:, i.mask + i.distractor_mask == 0].std(1).mean() for i in ShapeImages(12, seed=1, clutter=clutter)]).mean()
    assert rough(False) < .07 < .12 < rough(True)


def test_shape_masks_align_with_the_image():
    "Inside the mask the image has one colour, up to texture and noise; a mask moved by a third of the image has not"
    within = lambda image, mask: torch.stack([c[mask == 1].std() for c in image]).mean()
    items = [ShapeImages(60, seed=4)[i] for i in range(60)]
    here, there = (torch.stack([within(i.image, i.mask.roll(shift, 1)) for i in items]) for shift in (0, 16))
    assert here.max() < .12 and (here < there).float().mean() > .85 and there.mean() > 2*here.mean()


def test_wrong_shapes_are_refused():
    g = torch.Generator()
    for bad, words in [(lambda: make_shapes(6, g), "0 to 5"), (lambda: make_shapes(1, g, distractor=1), "both are 'square'"), (lambda: make_shapes(0, g, size=16), "28 x 28"),
                       (lambda: ShapeImages(3, two_shapes="three"), "two_shapes"), (lambda: draw_shape("heart", 48), "'heart'.*star")]:
        with pytest.raises(ValueError, match=words): bad()
    with pytest.raises(IndexError): ShapeImages(3)[3]


def test_shapes_travel_as_an_image_set():
    items = ShapeImages(6, seed=1)
    images, masks = items.stack("image", "mask")
    s = ImageSet("shapes", "train", (255*images).round().byte(), items.labels(), SHAPES, masks.bool())
    b = s[:]
    assert (b.x - images).abs().max() < .002 + 1e-6 and torch.equal(b.annotation, masks) and b.label.tolist() == list(range(6))


# Classifiers

@pytest.fixture(scope="module")
def photos():
    with seeded(0): return ImageClassifier(SHAPES, "resnet", channels=3, size=48, width=.5).eval()


def test_published_network_against_a_literal_one():
    "The network as its code would be written down, with log-softmax, on the same weights"
    with seeded(0): net = MNISTNet().eval()
    layers = nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), nn.MaxPool2d(2), net.conv3, nn.ReLU(), net.conv4, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                           net.fc1, nn.ReLU(), net.fc2, nn.LogSoftmax(1))
    x = torch.rand(5, 1, 28, 28)
    logits, (_, h0, h1) = net(x)
    assert torch.allclose(layers(x), logits.log_softmax(1), atol=1e-6) and torch.allclose(layers[:6](x), h0) and torch.allclose(layers[:10](x), h1)
    assert h1.shape == (5, 128, 4, 4) and sum(p.numel() for p in net.parameters()) == 393_162


@pytest.mark.parametrize("make", [lambda: ImageClassifier(list("0123456789")), lambda: ImageClassifier(["a", "b"], channels=3), lambda: ImageClassifier(["a", "b", "c"], "resnet", 3, 96),
                                  lambda: ImageClassifier(["a", "b"], "resnet", 1, 33, "blur", width=.25)])
def test_save_load_and_fingerprint(make, tmp_path):
    with seeded(1): model, other = make().eval(), make()
    x = torch.rand(2, model.channels, model.size, model.size)
    again = ImageClassifier.from_pretrained(model.save_pretrained(tmp_path))
    assert again.fingerprint() == model.fingerprint() != other.fingerprint() and again.config == model.config and again.baseline == model.baseline
    assert torch.allclose(again(x), model(x), atol=1e-5) and again(x).shape == (2, len(model.classes)) and not any("relu" in n for n in model.state_dict())
    sizes = [f.shape[-1] for f in model.classify(x).features]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("x,words", [
    (torch.zeros(1, 1, 48, 48), "grey images of 1 channels for a colour model"), (torch.zeros(1, 3, 48, 47), "48 x 47.*resize"), (torch.zeros(3, 48, 48), r"\(3, 48, 48\)"),
    (torch.full((1, 3, 48, 48), 255.), r"\[255, 255\], expected \[0, 1\]"), (torch.full((1, 3, 48, 48), -.1), "expected"), (torch.zeros(1, 3, 48, 48, dtype=torch.uint8), "uint8"),
    (torch.full((1, 3, 48, 48), torch.nan), "nan"),
])
def test_wrong_images_are_refused(photos, x, words):
    with pytest.raises(ValueError, match=words): photos(x)


def test_wrong_classifiers_are_refused(tmp_path, photos):
    for bad, words in [(dict(network="vit"), "mnistnet, resnet"), (dict(size=32), "28 x 28"), (dict(network="resnet", size=20), "too small"), (dict(baseline="grey"), "blur")]:
        with pytest.raises(ValueError, match=words): ImageClassifier(["a"], **bad)
    photos.save_pretrained(tmp_path)
    (tmp_path/"config.json").write_text((tmp_path/"config.json").read_text().replace('"ImageClassifier"', '"AudioClassifier"'))
    with pytest.raises(ValueError, match="holds a AudioClassifier, not a ImageClassifier"): ImageClassifier.from_pretrained(tmp_path)


def test_augmentation_repeats_and_stays_in_range():
    x, label = ShapeImages(6, seed=0).images(), torch.arange(6)
    for how in (ImageAugment(), ImageAugment(mixup=.4)):
        with seeded(3): a, soft = augment_images(x, label, 6, how)
        with seeded(3): b, _ = augment_images(x, label, 6, how)
        assert torch.equal(a, b) and a.shape == x.shape and 0 <= a.min() and a.max() <= 1 and torch.allclose(soft.sum(1), torch.ones(6))
        assert not torch.allclose(a, x, atol=.05)
    grey, _ = augment_images(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]), 2, ImageAugment())
    assert grey.shape == (2, 1, 28, 28)


def train(seed=0):
    items = ShapeImages(48, 28, seed=0, two_shapes=False)
    s = ImageSet("shapes", "train", (255*items.images()).round().byte(), items.labels(), SHAPES, items.masks().bool())
    with seeded(seed): model = ImageClassifier(SHAPES, "resnet", 3, 28, width=.25)
    log = fit(model, lambda b: image_loss(model, b, ImageAugment()), lambda g: (s.batch(i) for i in batches(len(s), 16, g)),
              FitConfig(epochs=3, lr=1e-2, bf16=False), validate=lambda m: accuracy(m, [s[:]]), progress=False)
    return model, log


def test_training_runs_and_repeats():
    (a, log), (b, _) = train(), train()
    assert a.fingerprint() == b.fingerprint() and log.cross_entropy.iloc[-1] < log.cross_entropy.iloc[0] and 0 <= log.valid_accuracy.iloc[-1] <= 1


# An explanation from end to end

class Centre:
    "Keeps the middle of the image, whatever the class"
    name, class_conditional, fixed_frames = "centre", False, None

    def attribute(self, model, rep, out, target):
        mask = torch.zeros(len(rep), *rep.values.shape[-2:])
        mask[:, 12:36, 12:36] = 1
        return Attribution(mask)


def test_keep_and_drop_over_every_baseline(photos):
    x = ShapeImages(2, seed=0).images()
    mask = Centre().attribute(photos, photos.represent(x), None, None).mask
    inside, blank = (mask == 1)[:, None].expand_as(x), dict(zero=torch.zeros_like(x), mean=x.mean((2, 3), keepdim=True).expand_as(x))
    for baseline in ("zero", "mean", "blur"):
        model = ImageClassifier(SHAPES, "resnet", 3, 48, baseline)
        kept, removed = keep(model, x, mask), drop(model, x, mask)
        assert torch.equal(kept[inside], x[inside]) and torch.equal(removed[~inside], x[~inside]) and kept.min() >= 0 and kept.max() <= 1 + 1e-6
        if baseline in blank: assert torch.allclose(kept[~inside], blank[baseline][~inside]) and torch.allclose(removed[inside], blank[baseline][inside])
        else: assert kept[0][:, :8].std() < x[0][:, :8].std()


def test_explanation_of_images(photos):
    x = ShapeImages(4, seed=0).images()
    e = explain(photos, Centre(), x)
    assert e.p.shape == e.p_kept.shape == e.p_removed.shape == (4, 6) and torch.allclose(e.p_kept.sum(1), torch.ones(4))
    assert e.kept().shape == e.removed().shape == x.shape and torch.equal(e.kept()[:, :, 12:36, 12:36], x[:, :, 12:36, 12:36])
    with torch.no_grad(): assert torch.allclose(photos(e.kept()).softmax(1), e.p_kept, atol=1e-5)
    one = e[2]
    assert one.x.shape == (1, 3, 48, 48) and torch.allclose(one.p_kept, e.p_kept[2:3]) and one.mask.shape == (1, 48, 48)
    with pytest.raises(ValueError, match="centre does not look at the class"): explain(photos, Centre(), x, (e.target + 1) % 6)
    with pytest.raises(ValueError, match="colour model"): explain(photos, Centre(), x[:, :1])


@pytest.mark.parametrize("stride", [1, 2])
def test_the_skip_is_a_strided_convolution(stride):
    "With less memory written: a 1x1 convolution of every second pixel is the strided one"
    with seeded(0): block, x = ResidualBlock(3, 8, stride), torch.randn(2, 3, 12, 14)
    convolution, norm = block.skip
    strided = torch.nn.functional.conv2d(x, convolution.weight, stride=stride)
    assert torch.allclose(convolution(x[:, :, ::stride, ::stride]), strided, atol=1e-6) and strided.shape[2:] == (12 // stride, 14 // stride)
    assert torch.allclose(block.eval()(x), torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))) + norm(strided)), atol=1e-5)
