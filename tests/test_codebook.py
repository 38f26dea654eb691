"The class-partitioned codebook against SpeechBrain, vector-quantize-pytorch and literal re-implementations."
import copy, warnings

import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from lmac_piq.codebook import Codebook, candidate_rows, code_usage, row_classes, speechbrain_codebook
from lmac_piq.training import FitConfig, fit, save_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from speechbrain.lobes.models.PIQ import VectorQuantization, VectorQuantizedPSI_Audio, VQEmbedding, get_irrelevant_regions

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)

def drawn(seed: int, *shape: int) -> Tensor: return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def labels(seed: int, n: int, classes: int) -> Tensor: return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))

def spread(vq: Codebook, seed: int = 0) -> Codebook:
    "The same codebook with rows of the size of the maps."
    vq.rows.data = drawn(seed + 1, *vq.rows.shape)
    return vq

@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    "Rows, classes, shared rows."
    classes, shared = draw(st.integers(1, 9)), draw(st.integers(0, 4))
    return draw(st.integers(classes + shared, 40)), classes, shared

# ---- the partition

@pytest.mark.parametrize("n_rows, n_classes, fewest, most", [(1024, 50, 20, 21), (1024, 10, 102, 103), (128, 10, 12, 13)])
@pytest.mark.parametrize("shared", [0, 5])
def test_row_classes_are_speechbrains(n_rows: int, n_classes: int, fewest: int, most: int, shared: int):
    theirs = get_irrelevant_regions(torch.arange(n_classes), n_rows, n_classes, N_shared=shared, stage="VALID")
    ours = row_classes(n_rows, n_classes, shared)
    assert torch.equal((ours != torch.arange(n_classes)[:, None]) & (ours != -1), theirs)
    if not shared: assert {fewest, most} == set(ours[ours >= 0].bincount().tolist())

def test_twenty_and_twenty_one_rows():
    size = row_classes(1024, 50).bincount()
    assert (size == 21).sum() == 24 and (size == 20).sum() == 26 and size[:6].tolist() == [21, 20, 21, 20, 21, 20]
    line = np.linspace(-0.5, 49.49, 1024)                                                # the formula once more, in double precision
    assert np.array_equal(np.rint(line).astype(int), row_classes(1024, 50).numpy())

@few
@given(sizes())
def test_partition_is_contiguous_and_leaves_no_class_out(size: tuple[int, int, int]):
    n_rows, n_classes, shared = size
    classes = row_classes(*size)
    own = classes[:n_rows - shared]
    assert len(classes) == n_rows and (classes[n_rows - shared:] == -1).all()
    assert set(own.tolist()) == set(range(n_classes)) and (own.diff() >= 0).all()
    for c, row in enumerate(candidate_rows(classes)):
        assert row[row >= 0].tolist() == [k for k, owner in enumerate(classes.tolist()) if owner in (c, -1)]

def test_too_few_rows_and_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="n_rows must be at least 55"): Codebook(54, 4, 50, shared=5)
    with pytest.raises(ValueError, match="at least 0"): row_classes(10, 2, -1)
    for name, value in dict(update="adam", protocol="paper", init="kmeans", decay=1.5, restart=-0.1, dim=0).items():
        with pytest.raises(ValueError, match=name): Codebook(**{name: value})

def test_maps_and_labels_that_do_not_fit_are_refused():
    vq, z = Codebook(12, 4, 3), drawn(0, 2, 4, 3, 3)
    for label in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="classes 0 to 2"): vq(z, torch.tensor(label))
    with pytest.raises(ValueError, match="rows of 4 numbers"): vq(drawn(0, 2, 5, 3, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="rows of 4 numbers"): vq(drawn(0, 2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="2 integers"): vq(z, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="2 integers"): vq.nearest(z, torch.tensor([0]))
    with pytest.raises(ValueError, match="needs label"): vq(z)

# ---- the choice

@few
@given(sizes(), seeds, st.sampled_from(["default", "published"]), st.booleans())
def test_the_nearest_allowed_row_and_never_another_classs(size: tuple[int, int, int], seed: int, protocol: str, training: bool):
    vq = spread(Codebook(size[0], 3, *size[1:], protocol=protocol), seed).train(training)
    z, label = drawn(seed, 4, 3, 2, 5), labels(seed, 4, size[1])
    q = vq(z, label)
    distance = torch.cdist(z.movedim(1, -1).double(), vq.rows.double()[None])                       # [B, H, W, K]
    allowed = vq.classes == label[:, None]
    if not (protocol == "published" and training): allowed |= vq.classes == -1
    distance = distance.where(allowed[:, None, None], torch.inf)
    assert allowed.unsqueeze(1).expand(4, 10, -1).gather(2, q.indices.view(4, 10, 1)).all()
    chosen = distance.gather(-1, q.indices[..., None])[..., 0]
    assert torch.allclose(chosen, distance.min(-1).values, atol=1e-5)
    assert torch.equal(q.values, vq.rows[q.indices].movedim(-1, 1)) and q.indices.shape == (4, 2, 5)

@few
@given(seeds)
def test_permuting_the_batch_permutes_the_result(seed: int):
    vq = spread(Codebook(20, 3, 4, shared=2)).eval()
    z, label, order = drawn(seed, 5, 3, 4, 2), labels(seed, 5, 4), torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    q, p = vq(z, label), vq(z[order], label[order])
    assert torch.equal(q.indices[order], p.indices) and torch.equal(q.values[order], p.values)
    assert torch.equal(vq(z[:1], label[:1]).indices, q.indices[:1])

def test_layouts_types_and_autocast_change_nothing():
    vq, label = spread(Codebook(20, 8, 4, shared=2)).eval(), labels(0, 3, 4)
    z = drawn(5, 3, 8, 6, 4)
    q = vq(z, label)
    last = vq(z.to(memory_format=torch.channels_last), label)
    assert torch.equal(last.indices, q.indices) and torch.equal(last.values, q.values) and last.values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(vq(z.flatten(2), label).values, q.values.flatten(2))
    half = z.bfloat16()
    with torch.autocast("cpu", torch.bfloat16): mixed = vq(half, label)
    assert torch.equal(mixed.indices, vq(half.float(), label).indices), "distances are in float32 under autocast"
    assert mixed.values.dtype == torch.bfloat16 and all(v.dtype == torch.float32 for v in mixed.losses.values())

# ---- gradients

@few
@given(seeds, st.sampled_from(["gradient", "ema"]))
def test_straight_through_is_the_identity(seed: int, update: str):
    vq = spread(Codebook(12, 4, 3, shared=1, update=update))
    z, weight = drawn(seed, 2, 4, 3, 3).requires_grad_(), drawn(seed + 1, 2, 4, 3, 3)
    (vq(z, labels(seed, 2, 3)).values * weight).sum().backward()
    assert torch.equal(z.grad, weight) and vq.rows.grad is None, "what follows the codebook sends no gradient to its rows"

def test_rows_learn_from_the_codebook_loss_alone():
    vq, label = spread(Codebook(12, 4, 3, codebook_weight=2.0, commitment_weight=0.25)), torch.tensor([0, 2])
    z = drawn(3, 2, 4, 3, 3).requires_grad_()
    q = vq(z, label)
    of = lambda loss: torch.autograd.grad(loss, (z, vq.rows), retain_graph=True, allow_unused=True)
    to_z, to_rows = of(q.losses["codebook"])
    assert to_z is None
    literal = torch.zeros_like(vq.rows)
    for b, i, j in np.ndindex(2, 3, 3):
        k = q.indices[b, i, j]
        literal[k] += 2.0 * 2 * (vq.rows[k] - z[b, :, i, j]).detach() / z.numel()
    assert torch.allclose(to_rows, literal, atol=1e-6)
    assert not to_rows[vq.classes == 1].any(), "no gradient for a class that is not in the batch"
    to_z, to_rows = of(q.losses["commitment"])
    assert to_rows is None and torch.allclose(to_z, 0.25 * 2 * (z - q.values).detach() / z.numel(), atol=1e-6)

def test_losses_of_a_map_that_sits_on_its_rows_are_zero():
    vq = spread(Codebook(12, 4, 3))
    q = vq(vq.decode(torch.tensor([[0, 1], [8, 9]])), torch.tensor([0, 2]))
    assert q.indices.tolist() == [[0, 1], [8, 9]] and all(v == 0 for v in q.losses.values())

# ---- learning by moving averages

def literal_average(rows: Tensor, z: list[Tensor], chosen: list[Tensor], label: list[Tensor], classes: Tensor, decay: float) -> Tensor:
    "N and m of every row by loops; a row's clock ticks in batches that hold its class."
    rows, N, m = rows.double().clone(), [0.0] * len(rows), [torch.zeros(rows.shape[1], dtype=torch.float64) for _ in rows]
    for x, k, c in zip(z, chosen, label):
        for r in range(len(rows)):
            if classes[r] != -1 and classes[r] not in c: continue
            mine = x.movedim(1, -1)[k == r].double()
            N[r] = decay * N[r] + (1 - decay) * len(mine); m[r] = decay * m[r] + (1 - decay) * mine.sum(0)
            if N[r] > 1e-9: rows[r] = m[r] / N[r]
    return rows

@few
@given(seeds, st.floats(0.05, 0.999), st.integers(0, 3))
def test_moving_averages_are_the_literal_formula(seed: int, decay: float, shared: int):
    vq = spread(Codebook(9, 2, 3, shared=shared, update="ema", decay=decay)); start = vq.rows.clone()
    z, label = [drawn(seed + i, 2, 2, 3, 3) for i in range(6)], [labels(seed + i, 2, 3) for i in range(6)]
    chosen = [vq(*batch).indices for batch in zip(z, label)]
    assert torch.allclose(vq.rows.double(), literal_average(start, z, chosen, label, vq.classes, decay), atol=1e-4)
    assert vq.hits.sum() == 6 * 18 and vq.step == 6

def test_an_absent_class_forgets_nothing():
    vq = spread(Codebook(12, 2, 3, update="ema", restart=0.5))
    vq(drawn(0, 1, 2, 8, 8), torch.tensor([0]))
    before = vq.rows.clone(), vq.count.clone(), vq.sums.clone()
    for i in range(200): vq(drawn(i, 1, 2, 2, 2), torch.tensor([1]))
    mine = vq.classes == 0
    assert all(torch.equal(a[mine], b[mine]) for a, b in zip(before, (vq.rows, vq.count, vq.sums)))

def test_evaluation_changes_no_state():
    vq = Codebook(12, 2, 3, shared=2, update="ema", restart=0.5); vq(drawn(0, 2, 2, 4, 4), torch.tensor([0, 1])); vq.eval()
    before = copy.deepcopy(vq.state_dict())
    vq(drawn(1, 2, 2, 4, 4), torch.tensor([0, 1])); vq.nearest(drawn(1, 2, 2, 4, 4), torch.tensor([0, 1]))
    assert all(torch.equal(before[k], v) for k, v in vq.state_dict().items())

# ---- restarts

@few
@given(seeds, st.integers(0, 3), st.sampled_from(["gradient", "ema"]))
def test_restart_never_crosses_classes(seed: int, shared: int, update: str):
    "Class c lives at 100 c: every row that has left the origin must be near its own class."
    vq, steps = Codebook(14, 2, 3, shared=shared, update=update, restart=0.2, seed=seed), 8
    for i in range(steps):
        label = labels(seed + i, 2, 3)
        vq(100.0 * (1 + label.view(-1, 1, 1)) + drawn(seed + i, 2, 2, 9), label)
    at, own = vq.rows.detach().mean(1), vq.classes >= 0
    restarted = vq.restarts > 0
    assert restarted.any()
    assert ((at[own & restarted] - 100 * (1 + vq.classes[own & restarted])).abs() < 10).all()

def test_restarted_rows_sit_on_different_positions_of_the_batch():
    vq, z = Codebook(40, 2, 2, update="ema", restart=0.1), 5 + drawn(0, 1, 2, 64)
    vq(z, torch.tensor([1]))
    moved = vq.restarts > 0
    assert moved.sum() >= 15 and (vq.classes[moved] == 1).all()
    rows, x = vq.rows[moved], z[0].T
    assert (torch.cdist(rows, x).min(1).values < 1e-5).all() and len(rows.unique(dim=0)) == len(rows)
    assert len(vq(z, torch.tensor([1])).indices.unique()) >= 15, "the batch that restarted them uses them next time"

def test_published_protocol_leaves_shared_rows_alone():
    for update in ("gradient", "ema"):
        vq = Codebook(30, 2, 3, shared=6, protocol="published", update=update, restart=0.5); start = vq.rows.detach().clone()
        for i in range(20): sum(vq(drawn(i, 4, 2, 9).requires_grad_(), labels(i, 4, 3)).losses.values()).backward()
        assert torch.equal(vq.rows[-6:], start[-6:]) and not vq.hits[-6:].any() and (vq.rows.grad is None or not vq.rows.grad[-6:].any())
        assert not torch.equal(vq.rows[:-6], start[:-6])
        vq.rows.data[-6:] = drawn(0, 6, 2)
        assert (vq.eval()(drawn(1, 4, 2, 9), labels(1, 4, 3)).indices >= 24).any(), "in evaluation they are allowed"

def test_same_seed_same_rows_and_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    make = lambda seed=7: Codebook(30, 2, 3, shared=2, update="ema", restart=0.3, seed=seed)
    step = lambda vq, i: vq(drawn(i, 2, 2, 9), labels(i, 2, 3))
    whole, other, part = make(), make(8), make()
    for i in range(6): step(whole, i); step(other, i)
    for i in range(3): step(part, i)
    save_weights(part, tmp_path / "vq.safetensors")
    resumed = make(); resumed.load_state_dict(load_file(tmp_path / "vq.safetensors"))
    for i in range(3, 6): step(resumed, i)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert not torch.equal(whole.rows, other.rows)

def test_it_trains_in_the_common_loop():
    "With averaged weights, bfloat16 and clipping; every class in use at the end, though the rows start in a corner."
    data = [(drawn(i, 8, 4, 6), labels(i, 8, 4)) for i in range(30)]
    class Batch(tuple):
        def to(self, device: torch.device) -> "Batch": return self
    vq = Codebook(24, 4, 4, restart=0.1)
    log = fit(vq, lambda b: vq(*b).losses, lambda g: map(Batch, data), FitConfig(epochs=3, lr=1e-2, ema=0.9, clip=1.0), progress=False)
    assert log.codebook.iloc[-1] < log.codebook.iloc[0] and (vq.usage().fraction >= 0.8).all()

# ---- one class: plain VQ

def plain(dim: int, n_rows: int, **kw) -> VectorQuantize:
    return VectorQuantize(dim=dim, codebook_size=n_rows, accept_image_fmap=True, rotation_trick=False, **kw)

@pytest.mark.parametrize("how", [dict(n_classes=1), dict(n_classes=5, partition=False)])
@pytest.mark.parametrize("seed", range(3))
def test_one_class_is_plain_vq(how: dict, seed: int):
    vq = spread(Codebook(32, 8, commitment_weight=0.25, **how), seed).eval()
    oracle = plain(8, 32, commitment_weight=0.25, learnable_codebook=True, ema_update=False); oracle._codebook.embed.data[0] = vq.rows.data
    z, label = drawn(seed, 3, 8, 5, 4), torch.zeros(3, dtype=torch.long)
    q, (values, indices, _) = vq(z, label), oracle.eval()(z)
    assert torch.equal(q.indices, indices) and torch.allclose(q.values, values, atol=1e-6)
    *_, loss = oracle.train()(z)
    assert torch.isclose(q.losses["commitment"], loss.squeeze(), rtol=1e-5)

def test_moving_averages_are_plain_vqs():
    "Their averages start at (0, rows) instead of (0, 0) and are smoothed; started from the same state they agree."
    vq = spread(Codebook(6, 4, 1, update="ema", decay=0.9))
    oracle = plain(4, 6, decay=0.9, eps=0.0); book = oracle._codebook
    vq.count.fill_(1.0); vq.sums.copy_(vq.rows); book.embed.data[0] = vq.rows.data; book.cluster_size.fill_(1.0); book.embed_avg.data[0] = vq.rows.data
    for i in range(5): z = drawn(i, 2, 4, 6, 6); vq(z, torch.zeros(2, dtype=torch.long)); oracle.train()(z)
    assert torch.allclose(vq.count, book.cluster_size[0], rtol=1e-5) and torch.allclose(vq.rows.data, book.embed[0], atol=1e-5)

# ---- SpeechBrain

@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("partition", [True, False])
def test_speechbrains_choice_values_and_gradients(shared: int, training: bool, partition: bool):
    theirs = VQEmbedding(64, 8, numclasses=7, activate_class_partitioning=partition, shared_keys=shared).train(training)
    theirs.embedding.weight.data = drawn(1, 64, 8)
    vq = Codebook(64, 8, 7, shared, partition, protocol="published").train(training)
    vq.load_state_dict(speechbrain_codebook(theirs.state_dict(), prefix=""), strict=False)
    z, label = drawn(0, 6, 8, 5, 4).requires_grad_(), labels(0, 6, 7)
    q, (values, codes) = vq(z, label), theirs.straight_through(z, label)
    assert torch.equal(q.values, values) and torch.equal(q.values, codes)
    with torch.no_grad():
        indices = VectorQuantization.apply(z.movedim(1, -1).contiguous(), theirs.embedding.weight, label, 7, partition, shared, training)
    assert torch.equal(q.indices, indices)
    loss = F.mse_loss(codes, z.detach()) + F.mse_loss(z, codes.detach())
    assert torch.isclose(sum(q.losses.values()), loss)
    ours = torch.autograd.grad(sum(q.losses.values()) + q.values.square().sum(), (z, vq.rows))
    published = torch.autograd.grad(loss + values.square().sum(), (z, theirs.embedding.weight))
    for a, b in zip(ours, published): assert torch.allclose(a, b, atol=1e-6)

def test_rows_out_of_a_whole_interpreter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = VectorQuantizedPSI_Audio(dim=8, K=100, numclasses=50).eval()
    vq = Codebook(100, 8, 50).eval(); vq.load_state_dict(speechbrain_codebook(theirs.state_dict()), strict=False)
    h, label = drawn(0, 4, 8, 6, 6), labels(0, 4, 50)
    with torch.no_grad(): _, z, codes = theirs(h, label)
    chosen = vq(z, label).values
    error = lambda q: (z.double() - q).square().sum(1)
    assert torch.allclose(error(chosen), error(codes), rtol=1e-5) and (error(chosen) <= error(codes) + 1e-9).all(), "as near as theirs or nearer"
    with pytest.raises(KeyError, match="prefix"): speechbrain_codebook(theirs.state_dict(), prefix="vq.")

def test_initialisation():
    uniform = Codebook(128, 16, 10, 5).rows.detach()
    assert uniform.abs().max() <= 1 / 128 and abs(float(uniform.std()) * 128 - 3 ** -0.5) < 0.02
    numbered = Codebook(128, 16, 10, 5, init="class").rows
    assert torch.allclose(numbered - torch.round(torch.linspace(-0.5, 9.49, 128))[:, None], uniform, atol=1e-6)

# ---- the monitor

@few
@given(sizes(), seeds)
def test_usage_is_the_literal_count(size: tuple[int, int, int], seed: int):
    classes = row_classes(*size)
    hits = labels(seed, size[0], 5).mul(labels(seed + 1, size[0], 2))
    table = code_usage(hits, classes)
    for name, c in [(c, c) for c in range(size[1])] + [("shared", -1)] * (size[2] > 0):
        n = hits[classes == c].double(); row = table.loc[name]; p = n[n > 0] / n.sum()
        assert (row.rows, row.used, row.dead, row.hits) == (len(n), (n > 0).sum(), (n == 0).sum(), n.sum())
        assert np.isclose(row.perplexity, (-(p * p.log()).sum()).exp() if len(p) else np.nan, equal_nan=True)
    assert len(table) == size[1] + (size[2] > 0)

def test_usage_of_a_training_run_is_the_bincount_of_its_indices():
    vq = spread(Codebook(20, 3, 4, shared=2))
    indices = torch.cat([vq(drawn(i, 3, 3, 7), labels(i, 3, 4)).indices.flatten() for i in range(5)])
    assert torch.equal(vq.hits, indices.bincount(minlength=20))
    assert vq.usage(list("abcd")).index.tolist() == ["a", "b", "c", "d", "shared"] and vq.usage().hits.sum() == len(indices)
