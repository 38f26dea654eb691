"Annotators: the right masks for the right images, what they refuse, networks from elsewhere, and fixed masks as explainers."
import json

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lmac_piq.annotation import (ClassConv, FixedMask, GivenMasks, SegmentationNet, annotated, centre_box, from_sam, from_torchvision, full_frame, iou, mean_mask)
from lmac_piq.classifier import ImageAugment, ImageClassifier
from lmac_piq.data import Batch, ImageSet, image_set
from lmac_piq.explanation import Explainer, explain
from lmac_piq.metrics import energy_iou, evaluate
from lmac_piq.training import FitConfig, fit, seeded


def squares(n, seed, size=32):
    "A red and a blue square on grey; the label says which one is meant"
    g = torch.Generator().manual_seed(seed)
    images, masks, labels = 0.5 + 0.05 * torch.randn(n, 3, size, size, generator=g), torch.zeros(n, 2, size, size), torch.randint(2, (n,), generator=g)
    for image, mask in zip(images, masks):
        for c, (channel, top, left) in enumerate(zip((0, 2), torch.randint(size - 10, (2,), generator=g).tolist(), (torch.randint(size // 2 - 9, (2,), generator=g) + torch.tensor([0, size // 2])).tolist())):
            mask[c, top:top + 10, left:left + 8] = 1; image[:, top:top + 10, left:left + 8] = 0.1; image[channel, top:top + 10, left:left + 8] = 0.9
    return Batch(images.clamp(0, 1), label=labels, annotation=masks[torch.arange(n), labels])


@pytest.fixture(scope="module")
def data(): return squares(96, 0)


@pytest.fixture(scope="module")
def net(data):
    with seeded(0): net = SegmentationNet(2, width=8, levels=2)
    def epoch(g): return (Batch(data.x[i], label=data.label[i], annotation=data.annotation[i]) for i in torch.randperm(96, generator=g).split(16))
    fit(net, net.loss, epoch, FitConfig(epochs=8, lr=2e-2, schedule="onecycle", optimizer="adamw", bf16=False), 6, progress=False)
    return net


# Agreement

masks = st.integers(0, 10_000).map(lambda seed: torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(seed)))

@settings(max_examples=50, deadline=None)
@given(a=masks, b=masks, threshold=st.floats(0.05, 0.95))
def test_iou_is_symmetric_bounded_and_one_on_itself(a, b, threshold):
    value = iou(a, b, threshold)
    assert torch.equal(value.nan_to_num(-1), iou(b, a, threshold).nan_to_num(-1)) and ((value >= 0) & (value <= 1) | value.isnan()).all()
    assert ((iou(a, a, threshold) == 1) | (a.flatten(1).amax(1) <= threshold)).all()
    assert torch.equal(value.nan_to_num(-1), iou(a.flip(1), b.flip(1), threshold).nan_to_num(-1))


@settings(max_examples=30, deadline=None)
@given(a=masks, b=masks)
def test_iou_against_sets_and_against_the_metric_of_sound(a, b):
    for value, other, x, y in zip(iou(a, b), energy_iou((a > 0.5).float(), (b > 0.5).float(), torch.ones_like(a)), a, b):
        x, y = ({tuple(i) for i in (m > 0.5).nonzero().tolist()} for m in (x, y))
        assert float(value) == pytest.approx(len(x & y) / len(x | y), abs=1e-6) == pytest.approx(float(other), abs=1e-6)


def test_iou_of_nothing_is_undefined_and_shapes_must_agree():
    assert iou(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)).isnan().all() and iou(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)) == 0
    with pytest.raises(ValueError, match="agree"): iou(torch.zeros(2, 3, 3), torch.zeros(1, 3, 3))


# Batches

def test_annotated_leaves_the_rest_of_the_batch(data):
    batch = Batch(data.x[:3], clean=data.x[:3], label=data.label[:3], annotation=data.annotation[:3], item=torch.arange(3))
    new = annotated(batch, lambda images, labels: torch.full((3, 32, 32), 0.25, dtype=torch.float64))
    assert all(getattr(new, k) is getattr(batch, k) for k in ("x", "clean", "label", "item")) and (new.annotation == 0.25).all() and new.annotation.dtype == torch.float32
    assert annotated(batch) is batch and (batch.annotation == data.annotation[:3]).all()


@pytest.mark.parametrize("masks, message", [(torch.zeros(2, 32, 32), "shape"), (torch.zeros(3, 1, 32, 32), "shape"), (torch.full((3, 32, 32), 1.5), "1.5"),
                                            (torch.full((3, 32, 32), -1.0), "sigmoid"), (torch.full((3, 32, 32), torch.nan), "nan")])
def test_masks_that_are_none_are_refused(data, masks, message):
    with pytest.raises(ValueError, match=message): annotated(Batch(data.x[:3], label=data.label[:3]), lambda images, labels: masks)


def test_what_a_batch_lacks_is_named(data):
    with pytest.raises(ValueError, match="no masks"): annotated(Batch(data.x, label=data.label))
    with pytest.raises(ValueError, match="no labels"): annotated(Batch(data.x), lambda images, labels: images[:, 0])
    with pytest.raises(ValueError, match="annotation"): SegmentationNet(2).loss(Batch(data.x, label=data.label))


def test_a_network_is_asked_in_eval_mode_without_gradients_and_left_as_found(data):
    with seeded(0): net = SegmentationNet(2, width=4)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    made = annotated(data, net.train())
    assert net.training and not made.annotation.requires_grad and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())              # no BatchNorm statistic has moved


# Masks at hand

@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 95), min_size=1, max_size=8))
def test_given_masks_are_found_in_any_order(rows):
    data = squares(96, 0)
    assert torch.equal(GivenMasks(data.x, data.annotation, data.label)(data.x[rows], data.label[rows]), data.annotation[rows])


def test_the_same_image_has_a_mask_per_label(data):
    given = GivenMasks(torch.cat([data.x[:1]] * 2), torch.stack([torch.zeros(32, 32), torch.ones(32, 32)]), torch.tensor([0, 1]))
    assert given(data.x[:1], torch.tensor([0])).max() == 0 and given(data.x[:1], torch.tensor([1])).min() == 1
    with pytest.raises(ValueError, match="image 1 "): given(torch.cat([data.x[:1]] * 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="augmented"): given(data.x[:1].flip(-1), torch.tensor([0]))


def test_masks_of_an_image_set(data):
    images = ImageSet("squares", "train", (255 * data.x).round().byte().numpy(), data.label, ["red", "blue"], data.annotation.numpy() > 0.5)
    assert torch.equal(annotated(Batch(images[[7, 2]].x, label=data.label[[7, 2]]), GivenMasks.of(images)).annotation, data.annotation[[7, 2]])
    with pytest.raises(ValueError, match="no masks"): GivenMasks.of(ImageSet("bare", "train", images.pixels, data.label, ["red", "blue"]))
    with pytest.raises(ValueError, match="one of each"): GivenMasks(data.x, data.annotation[:3], data.label)


# The segmentation network

def test_it_learns_the_object_of_the_label(net):
    unseen = squares(40, 1); made = annotated(unseen, net).annotation; other = net(unseen.x, 1 - unseen.label)
    assert iou(made, unseen.annotation).mean() > 0.7 and iou(other, unseen.annotation).mean() < 0.1


@pytest.mark.parametrize("channels, size, levels", [(1, (28, 28), 3), (3, (96, 96), 3), (3, (33, 47), 2), (1, (4, 9), 1), (3, (16, 16), 3)])
def test_masks_have_the_size_of_the_images(channels, size, levels):
    with seeded(0): net = SegmentationNet(3, channels, 4, levels).eval()
    masks = net(torch.rand(2, channels, *size), torch.tensor([0, 2]))
    assert masks.shape == (2, *size) and 0 < masks.min() and masks.max() < 1


def test_each_image_is_marked_by_itself(net, data):
    whole = net(data.x[:6], data.label[:6])
    assert torch.allclose(net(data.x[4:5], data.label[4:5])[0], whole[4], atol=1e-5)


def test_the_loss_by_hand(data):
    few = Batch(data.x[:4], label=data.label[:4], annotation=data.annotation[:4])
    with seeded(0): net = SegmentationNet(2, width=4).eval()
    terms, p = net.loss(few), net(few.x, few.label).detach().double(); t = few.annotation.double()
    assert terms["cross_entropy"].item() == pytest.approx(float(-(t * p.log() + (1 - t) * (1 - p).log()).mean()), abs=1e-5)
    assert terms["dice"].item() == pytest.approx(float((1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)).mean()), abs=1e-5)


def test_augmentation_moves_image_and_mask_together():
    "A bright square is its own mask; so it stays, wherever it is moved"
    x = torch.zeros(16, 1, 32, 32); x[:, :, 6:18, 9:20] = 1; seen = {}
    net = SegmentationNet(1, 1, 4)
    def spy(images, labels): seen["x"] = images; return 40 * (images[:, 0] > 0.5) - 20.0
    net.logits = spy
    with seeded(3): terms = net.loss(Batch(x, label=torch.zeros(16, dtype=torch.long), annotation=x[:, 0]), ImageAugment(shift=0.1, colour=0.0))
    assert sum(terms.values()) < 1e-3 and not torch.allclose(seen["x"], x, atol=0.1)


@pytest.mark.parametrize("images, labels, message", [((2, 1, 32, 32), [0, 1], "shape"), ((2, 3, 32), [0, 1], "shape"), ((2, 3, 8, 32), [0, 1], "16"), ((2, 3, 32, 32), [0], "one each"), ((2, 3, 32, 32), [0, 2], "classes 0 to 1"), ((2, 3, 32, 32), [-1, 0], "classes 0 to 1")])
def test_the_network_refuses_what_it_was_not_made_for(images, labels, message):
    with pytest.raises(ValueError, match=message): SegmentationNet(2, width=4).eval()(torch.rand(images), torch.tensor(labels))


def test_it_comes_back_as_it_was_saved(net, data, tmp_path):
    again = SegmentationNet.from_pretrained(net.save_pretrained(tmp_path / "net"))
    assert torch.allclose(again(data.x, data.label), net(data.x, data.label), atol=1e-5) and not again.training
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "net/config.json").read_text()); (tmp_path / "net/config.json").write_text(json.dumps(config | dict(width=9)))
    with pytest.raises(ValueError, match="another architecture"): SegmentationNet.from_pretrained(tmp_path / "net")
    (tmp_path / "net/config.json").write_text(json.dumps(config | dict(kind="LMAC")))
    with pytest.raises(ValueError, match="LMAC"): SegmentationNet.from_pretrained(tmp_path / "net")
    with pytest.raises(FileNotFoundError): SegmentationNet.from_pretrained(tmp_path / "nowhere")


def test_the_class_conv_is_told_the_class():
    with seeded(0): block = ClassConv(3, 4, 2).eval()
    x = torch.rand(1, 3, 6, 6); block.film.weight.data[1] = block.film.weight.data[0]
    assert torch.equal(block(x, torch.tensor([0])), block(x, torch.tensor([1])))
    block.film.weight.data[1, 4:] += 1
    assert (block(x, torch.tensor([1])) >= block(x, torch.tensor([0]))).all() and not torch.equal(block(x, torch.tensor([0])), block(x, torch.tensor([1])))


# Networks from elsewhere

class Channels(nn.Module):
    "Class k is where channel k of the normalised image is largest; at half the resolution, as such networks are"
    def __init__(self): super().__init__(); self.bn, self.sizes = nn.BatchNorm2d(3), []
    def forward(self, x): self.sizes.append(x.shape[2:]); self.seen = x; return {"out": 100 * nn.functional.avg_pool2d(x, 2), "aux": None}


def test_a_torchvision_model_is_normalised_resized_and_read_by_class():
    x = torch.zeros(2, 3, 32, 32); x[:, 0, :16], x[:, 1, 16:, :16], x[:, 2, 16:, 16:] = 1, 1, 1
    model = Channels().train(); batch = Batch(x, label=torch.tensor([0, 1]))
    red, rest = annotated(batch, from_torchvision(model, [0, [1, 2]])).annotation
    assert red[:14].min() > 0.9 and red[18:].max() < 0.1 and torch.allclose(red + rest, torch.ones(32, 32), atol=1e-5) and model.training
    assert torch.allclose(model.seen[0, :, 0, 0], (torch.tensor([1.0, 0, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))
    assert annotated(batch, from_torchvision(model, [0, 1], 64)).annotation.shape == (2, 32, 32) and model.sizes == [(32, 32), (64, 64)]
    grey = Batch(torch.rand(2, 1, 32, 32), label=torch.tensor([0, 1]))
    assert annotated(grey, from_torchvision(model, [0, 1])).annotation.shape == (2, 32, 32) and model.seen.shape[1] == 3


class Predictor:
    "Segment Anything's interface: remembers what it was shown, marks a box around the point"
    def __init__(self): self.images, self.prompts = [], []
    def set_image(self, image): self.images.append(image)
    def predict(self, **prompt):
        self.prompts.append(prompt); mask = np.zeros(self.images[-1].shape[:2], bool)
        x, y = prompt["point_coords"][0].astype(int); mask[max(0, y - 3):y + 3, max(0, x - 3):x + 3] = True
        return np.stack([~mask, mask, mask & False]), np.array([0.2, 0.8, 0.5]), np.zeros((3, 4, 4))


def test_a_sam_like_predictor_gets_bytes_and_a_prompt_and_its_best_mask_is_taken():
    x, predictor = torch.rand(2, 3, 20, 30), Predictor()
    made = annotated(Batch(x, label=torch.tensor([1, 0])), from_sam(predictor)).annotation
    assert predictor.images[1].dtype == np.uint8 and np.array_equal(predictor.images[1], (255 * x[1]).round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert made.sum((1, 2)).tolist() == [36, 36] and made[:, 7:13, 12:18].min() == 1
    corner = lambda image, label: dict(point_coords=np.array([[25 if label else 3, 3]]), point_labels=np.array([1]), multimask_output=True)
    made = annotated(Batch(x[:, :1], label=torch.tensor([1, 0])), from_sam(predictor, corner)).annotation
    assert made[0, :6, 22:28].min() == 1 and made[1, :6, :6].min() == 1 and predictor.prompts[-1]["multimask_output"] and predictor.images[-1].shape == (20, 30, 3)


# Fixed masks

@settings(max_examples=100, deadline=None)
@given(share=st.floats(0.001, 1.0), h=st.integers(1, 40), w=st.integers(1, 40))
def test_a_centre_box_is_in_the_middle_and_of_the_share(share, h, w):
    mask = centre_box(share, (h, w)); rows, columns = mask.amax(1).nonzero()[:, 0], mask.amax(0).nonzero()[:, 0]
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.sum() == len(rows) * len(columns) >= 1
    for at, n in ((rows, h), (columns, w)): assert at[0] - (n - 1 - at[-1]) in (0, -1) and at[-1] - at[0] == len(at) - 1
    assert abs(float(mask.sum()) - share * h * w) <= max(1, 0.5 * len(rows), 0.5 * len(columns))  # half a column, half a row, or one pixel
    if share == 1: assert mask.min() == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_box_of_no_share_is_refused(share):
    with pytest.raises(ValueError, match="share"): centre_box(share, 8)


def test_the_mean_mask_is_the_mean_of_the_class(data):
    made = mean_mask(data.annotation > 0.5, data.label, 2)
    for c in (0, 1): assert torch.allclose(made[c], sum(m for m, y in zip(data.annotation, data.label) if y == c) / int((data.label == c).sum()))
    with pytest.raises(ValueError, match="class 2"): mean_mask(data.annotation, data.label, 3)


def test_fixed_masks_are_explainers_that_do_not_look(data):
    with seeded(0): model = ImageClassifier(["red", "blue"], "resnet", 3, 32, width=0.25).eval()
    fixed = [FixedMask("full", full_frame(32)), FixedMask("box", centre_box(0.2, 32).expand(2, 32, 32)), FixedMask("mean", mean_mask(data.annotation, data.label, 2))]
    assert all(isinstance(f, Explainer) for f in fixed)
    for target in (0, 1): assert torch.equal(explain(model, fixed[2], data.x[:5], target).mask, fixed[2].masks[target].expand(5, 32, 32))
    assert torch.equal(fixed[1](data.x[:2], data.label[:2]), centre_box(0.2, 32).expand(2, 32, 32)) and fixed[0](data.x[:2], data.label[:2]).shape == (2, 32, 32)
    frame = evaluate(model, fixed, data.x[:8], truth=(data.annotation[:8], None)).pivot_table(index="method", columns="metric", values="value")
    assert np.isclose(frame.loc["full", "iou"], data.annotation[:8].mean()) and frame.loc["full", "mask_mean"] == 1


def test_a_fixed_mask_refuses_other_sizes_and_classes(data):
    with pytest.raises(ValueError, match="pixels"): FixedMask("full", full_frame(16))(data.x, data.label)
    with pytest.raises(ValueError, match="class 2"): FixedMask("two", torch.ones(2, 32, 32))(data.x, data.label + 1)
    assert full_frame((3, 4)).shape == (3, 4) and full_frame(3).min() == 1


# Real photographs

def test_a_network_and_its_nulls_on_photographs(real_data):
    images = image_set("ccp_crops", "annotator", real_data("ccp_crops")); batch = images[::8]
    with seeded(0): net = SegmentationNet(len(images.classes), width=4)
    fit(net, net.loss, lambda g: iter([batch] * 3), FitConfig(epochs=2, lr=1e-2, bf16=False), 3, progress=False)
    mean = FixedMask("mean mask", mean_mask(torch.from_numpy(images.masks), images.targets, len(images.classes)))
    assert annotated(batch, net).annotation.shape == batch.annotation.shape and iou(mean(batch.x, batch.label), batch.annotation).mean() > 0.3
    assert torch.equal(annotated(batch, GivenMasks.of(images)).annotation, batch.annotation)
