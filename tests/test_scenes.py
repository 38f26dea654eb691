"Synthetic scenes: determinism, levels, times, and what the true masks must satisfy."
import math

import pytest, torch
from hypothesis import given, settings, strategies as st

from lmac_piq.audio import snr_db
from lmac_piq.scenes import CLASSES, Scenes, event, make_scene, truth_masks
from lmac_piq.spectral import Spectrogram, kept

spectrogram = Spectrogram()
property_test = settings(max_examples=15, deadline=None, derandomize=True)


def seeded(seed): return torch.Generator().manual_seed(seed)


def si_sdr(estimate, reference):
    projection = (estimate*reference).sum()/reference.square().sum()*reference
    return snr_db(projection, estimate - projection)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0, 5.0])
def test_events_are_finite_scaled_and_deterministic(name, seconds):
    for seed in range(3):
        x = event(name, seconds, seeded(seed))
        assert x.shape == (round(16000*seconds),) and x.dtype == torch.float32
        assert x.isfinite().all() and x.abs().max() == 1 and x[0] == x[-1] == 0
        assert torch.equal(x, event(name, seconds, seeded(seed)))


def test_unknown_class_and_too_short_event_are_refused():
    with pytest.raises(ValueError, match="cow.*siren"): event("cow", 1.0, seeded(0))
    with pytest.raises(ValueError, match="0.05"): event("bell", 0.05, seeded(0))


def test_drawing_a_scene_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    Scenes(1)[0]
    assert torch.equal(state, torch.random.get_rng_state())


@property_test
@given(seed=st.integers(0, 10**6), label=st.integers(0, 9), step=st.integers(1, 9), d=st.floats(-5, 20), n=st.floats(-5, 30), c=st.floats(-10, 20))
def test_stated_snrs_are_met_and_stems_add_up(seed, label, step, d, n, c):
    scene = make_scene(label, seeded(seed), 0.5, (label + step) % 10, distractor_snr_db=d, noise_snr_db=n, clutter_snr_db=c)
    for stem, db in ((scene.distractor, d), (scene.background, n), (scene.clutter, c)): assert abs(snr_db(scene.target, stem) - db) < 1e-3
    assert (scene.distractor_snr_db, scene.noise_snr_db, scene.clutter_snr_db) == (d, n, c)
    assert torch.equal(scene.mixture, scene.target + scene.distractor + scene.noise) and scene.mixture.abs().max() <= 1
    for which in ("target", "distractor"): assert torch.allclose(scene.stem(which) + scene.rest(which), scene.mixture, atol=1e-6)


@property_test
@given(seed=st.integers(0, 10**6), label=st.integers(0, 9), apart=st.booleans())
def test_events_lie_within_their_spans(seed, label, apart):
    scene = make_scene(label, seeded(seed), 1.0, (label + 1) % 10, apart=apart)
    for stem, (onset, end) in ((scene.target, scene.span), (scene.distractor, scene.distractor_span)):
        a, b = round(16000*onset), round(16000*end)
        assert 0 <= a < b <= 16000 and stem[:a].abs().sum() == stem[b:].abs().sum() == 0 and stem[a:b].abs().sum() > 0
    if apart:
        (a, b), (c, d) = sorted([scene.span, scene.distractor_span])
        assert b - c < 0.2801 and c - a > 0.3        # 0.6 + 0.4 x 0.1 - 0.4 x 0.9, and a rounded sample


def test_nothing_is_exactly_nothing():
    scene = make_scene(0, seeded(0), noise_snr_db=math.inf, clutter_snr_db=math.inf)
    assert scene.distractor_label == -1 and torch.equal(scene.mixture, scene.target)
    assert "siren" in repr(scene)


@pytest.mark.parametrize("bad, word", [(dict(label=10), "0 to 9"), (dict(label=-1), "0 to 9"), (dict(label=1, distractor=1), "another class"), (dict(label=1, distractor=12), "0 to 9"),
                                       (dict(label=0, seconds=0.2), "0.25"), (dict(label=0, seconds=math.nan), "0.25"), (dict(label=0, clutter_snr_db=math.nan), "snr_db")])
def test_impossible_scenes_are_refused(bad, word):
    with pytest.raises(ValueError, match=word): make_scene(generator=seeded(0), **bad)


@pytest.mark.parametrize("kind", [True, False, "equal"])
def test_items_depend_on_seed_and_index_alone(kind):
    small, large = Scenes(3, 0.5, seed=5, two_events=kind), Scenes(12, 0.5, seed=5, two_events=kind)
    large[11]
    for i in (2, 0, 1): assert torch.equal(small[i].mixture, large[i].mixture)
    assert torch.equal(small.waves(), large.waves()[:3]) and torch.equal(small.stems(), large.stack("target")[0][:3])
    assert not torch.equal(small.waves(), Scenes(3, 0.5, seed=6, two_events=kind).waves())
    assert len({tuple(w[:2000:100].tolist()) for w in large.waves()}) == 12   # and differ from each other


def test_labels_are_balanced_and_distractors_differ():
    scenes = Scenes(60, 0.5, seed=2)
    items = list(scenes)
    assert torch.equal(scenes.labels(), torch.tensor([s.label for s in items])) and scenes.labels().bincount().tolist() == [6]*10
    assert all(s.distractor_label not in (-1, s.label) for s in items) and len({s.distractor_label for s in items}) == 10
    assert all(3 <= s.distractor_snr_db <= 12 and 5 <= s.noise_snr_db <= 20 and -6 <= s.clutter_snr_db <= 6 for s in items)
    assert sum(s.clutter_snr_db < 0 for s in items) > 15   # louder than the target in many


def test_index_errors_and_unknown_kinds():
    scenes = Scenes(3, 0.5)
    assert torch.equal(scenes[-1].mixture, scenes[2].mixture)
    for i in (3, -4):
        with pytest.raises(IndexError): scenes[i]
    with pytest.raises(ValueError, match="both"): Scenes(3, two_events="both")


@pytest.mark.parametrize("seconds, frames", [(1.0, 87), (5.0, 431)])
def test_masks_have_their_shape_and_range(seconds, frames):
    scene = Scenes(1, seconds, seed=1)[0]
    for domain in ("linear", "log"):
        ratio, binary = truth_masks(scene, spectrogram, domain=domain)
        assert ratio.shape == binary.shape == (513, frames) and 0 <= ratio.min() and ratio.max() <= 1
        assert set(binary.unique().tolist()) == {0., 1.} and 0.005 < binary.mean() < 0.6


@property_test
@given(i=st.integers(0, 10**5), kind=st.sampled_from([True, False, "equal"]))
def test_the_true_mask_separates(i, kind):
    scene = Scenes(10**5 + 1, seed=3, two_events=kind)[i]
    for which in ("target", "distractor") if kind == "equal" else ("target",):
        values, phase = spectrogram(scene.mixture[None])
        waves = {}
        for domain in ("linear", "log"):
            ratio, binary = truth_masks(scene, spectrogram, which, domain)
            waves[domain] = spectrogram.inverse(kept(values, ratio[None], domain), phase, 16000)[0]
        assert (waves["linear"] - waves["log"]).abs().max() < 1e-4   # one sound, two domains
        before = si_sdr(scene.mixture, scene.stem(which))
        assert si_sdr(waves["log"], scene.stem(which)) > before + 3


def test_shares_of_target_and_rest_sum_to_one():
    scene = Scenes(1, seed=4)[0]
    (mine, _), (others, _) = truth_masks(scene, spectrogram), truth_masks((scene.rest(), scene.target), spectrogram)
    assert (mine + others - 1).abs().max() < 1e-5


def test_binary_mask_needs_majority_and_level():
    scene = Scenes(1, seed=4)[0]
    s, r = (spectrogram(w[None])[0][0].expm1() for w in (scene.target, scene.rest()))
    for floor in (-40., -20.):
        want = (s > r) & (s > s.max()*10**(floor/20))
        assert torch.equal(truth_masks(scene, spectrogram, floor_db=floor)[1].bool(), want)


def test_silence_owns_nothing_and_batches_equal_items():
    scene, zero = Scenes(1, seed=4)[0], torch.zeros(16000)
    for pair in ((zero, scene.mixture), (zero, zero)): assert all(m.max() == 0 for m in truth_masks(pair, spectrogram))
    one, batch = truth_masks(scene, spectrogram), truth_masks((torch.stack([scene.target, zero]), torch.stack([scene.rest(), scene.target])), spectrogram)
    assert torch.allclose(batch[0][0], one[0], atol=1e-6) and torch.equal(batch[1][0], one[1]) and batch[0][1].max() == 0


@pytest.mark.parametrize("bad", [dict(domain="dB"), dict(which="noise")])
def test_unknown_choices_of_masks_are_refused(bad):
    with pytest.raises(ValueError): truth_masks(Scenes(1, 0.5)[0], spectrogram, **bad)
