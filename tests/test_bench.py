"Benchmarks: what is counted, how ratios are made, which claims are kept; the plain and the shipped implementation say the same."
import json
import numpy as np, pandas as pd, pytest, torch
import lmac_piq.bench as bench
from lmac_piq.bench import (achieved, bench_explainer, bench_folder, bench_model, ceilings, claim, flops, machine, machine_words, passes, precisions, ratio_figure, ratio_table, save_bench,
                            scaling_table, side_by_side, size_table, taken_on, turns, verdict, working)
from lmac_piq.decoder import LightDecoder
from lmac_piq.metrics import FORMS
from lmac_piq.profiling import in_default_layout, plain_explanation, plain_step, shipped_explanation, where_time_goes
from lmac_piq.training import seeded


def waves(n=2, samples=12000): return 0.1 * torch.randn(n, samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair():
    model = bench_model(0.0625, 5)
    return model, bench_explainer(model, width=8)


GPU = dict(device="cuda", gpu="a GPU", gpu_memory_gb=80.0, cuda="13.0", cudnn=91900, bfloat16=True, tf32_convolutions=True, tf32_products=False)


def contest(folder, name, to, on=None, **seconds):
    "A saved contest of three rounds in which every contestant's time grows by the same factor."
    times = pd.DataFrame([dict(contestant=c.replace("_", " "), round=r, seconds=s * (1 + r)) for r in (1, 2, 3) for c, s in seconds.items()])
    save_bench(folder, name, times, ratio_table(times, to), on=on)


@pytest.mark.parametrize("form, expected", [("soft", 3), (("topk",), 3), (("soft", "topk"), 5), (FORMS, 7)])
def test_an_item_goes_through_the_network_once_and_twice_per_form(pair, form, expected):
    assert passes(*pair, waves(5), form) == expected and not pair[0].network._forward_hooks


def test_rounds_interleave_and_warm_ones_do_not_count():
    order = []
    times = side_by_side({c: lambda c=c: order.append(c) for c in "abc"}, rounds=4, warm=2, seed=3)
    assert len(order) == 18 and all(set(order[3 * r:3 * r + 3]) == set("abc") for r in range(6)) and len({tuple(order[3 * r:3 * r + 3]) for r in range(6)}) > 1
    assert sorted(times["round"].unique()) == [1, 2, 3, 4] and len(times) == 12 and len(side_by_side({"a": lambda: 0}, 2, warm=0)) == 2
    for wrong in (dict(calls={}), dict(calls={"a": print}, rounds=0)):
        with pytest.raises(ValueError, match="at least one round"): side_by_side(**wrong)


def test_a_ratio_is_the_median_within_rounds():
    times = pd.DataFrame([dict(contestant=c, round=r, seconds=s) for c, row in (("a", (1, 10, 100)), ("b", (2, 30, 400))) for r, s in enumerate(row, 1)])
    b = ratio_table(times, "a", items=2).iloc[1]
    assert (b.ratio, b.low, b.high, b.ms_per_clip, b["rounds"]) == (3, 2, 4, 15000, 3) and np.isclose(b.clips_per_s, 2 / 30)
    sized = size_table(times.assign(contestant=times["contestant"].map({"a": "x1, classifier forward", "b": "x1, light"})), 2)
    assert list(sized["classifier"]) == ["CNN14 x1"] * 2 and sized["ratio"].tolist() == [1, 3] and len(ratio_figure(sized).axes[0].get_yticklabels()) == 2


@pytest.mark.parametrize("native", [True, False])
def test_the_verdict_reads_every_claim_and_admits_what_was_not_measured(native, tmp_path):
    assert set(verdict(tmp_path).verdict) == {"not measured"}
    seconds = {"light, fp32": 1.0, "SpeechBrain's modules, fp32": 12.0} | ({"light, bf16": 0.5, "SpeechBrain's modules, bf16": 4.0} if native else {})
    contest(tmp_path, "explain", "light, fp32", machine() | dict(bfloat16=native), **seconds)
    best = "bf16" if native else "fp32"
    contest(tmp_path, "one_pass", f"light, {best}", **{f"light, {best}": 1.25, f"classifier forward, {best}": 1.0})
    contest(tmp_path, "mask_metrics", "ours", ours=1.0, Quantus=9.0)
    said = verdict(tmp_path, passes_per_item=3).verdict.tolist()
    assert said == ["kept", "missed" if native else "not measured", "kept" if native else "missed", "kept", "missed", "kept", "kept"]
    assert (verdict(tmp_path).note.iloc[1] == "") == native and verdict(tmp_path, passes_per_item=4).verdict.tolist()[-2:] == ["kept", "missed"]
    assert claim("x", float("nan"), least=1)["verdict"] == "not measured"


def test_the_verdict_on_a_gpu_is_made_from_its_folder_anywhere(tmp_path):
    contest(tmp_path, "explain", "light, fp32", machine() | GPU, **{"light, fp32": 1.0, "SpeechBrain's modules, fp32": 12.0, "light, bf16": 0.5, "SpeechBrain's modules, bf16": 4.0})
    table = verdict(tmp_path)
    assert table.verdict.tolist()[:3] == ["kept", "missed", "kept"] and "TF32" in table.note[0] and set(table.note[1:]) == {""} and table.claim[3].endswith("bf16")
    on = taken_on(tmp_path)
    assert on["gpu"] == "a GPU" and json.loads((tmp_path/"bench_explain.json").read_text()) == on and "float32 convolutions in TF32" in ratio_figure(ratio_table(side_by_side({"a": int}, 1), "a"), on=on).get_supxlabel()


def test_every_device_has_its_folder_and_its_rounds(tmp_path, monkeypatch):
    monkeypatch.setenv("LMAC_PIQ_RUNS", str(tmp_path))
    assert [bench_folder(d) for d in ("cpu", "cuda", torch.device("cuda", 1))] == [tmp_path/"bench", tmp_path/"bench-cuda", tmp_path/"bench-cuda"]
    assert bench_folder() == tmp_path/"bench" and bench_folder("auto").name == ("bench-cuda" if torch.cuda.is_available() else "bench")
    assert turns("cpu", 1, 0) == dict(rounds=1, warm=0) and turns("cuda", 1) == dict(rounds=5, warm=2) and turns(torch.device("cuda"), 9, 3) == dict(rounds=9, warm=3)


def test_precisions_are_those_of_the_device(monkeypatch):
    monkeypatch.setattr(bench, "bf16_pays", lambda device: torch.device(device).type == "cuda")
    assert precisions() == precisions("cpu") == ("fp32",) and precisions("cuda") == ("fp32", "bf16")


def test_work_is_held_against_the_product_of_its_precision(pair):
    before = torch.backends.cuda.matmul.fp32_precision
    best = ceilings(size=64)
    assert torch.backends.cuda.matmul.fp32_precision == before and best.work.iloc[-1] == "copy" and (best.ms > 0).all()
    made_up = pd.DataFrame([dict(work=f"matrix product, {p}", tflop_s=t) for p, t in (("fp32", 2.0), ("bf16", 8.0))])
    table = achieved({f"{what}, {p}": call for p in ("fp32", "bf16") for what, call in (("product", lambda: torch.ones(50, 40) @ torch.ones(40, 30)),)}, made_up, 2, 1)
    assert np.allclose(table.share * [2.0, 8.0], table.tflop_s) and np.allclose(table.tflop_s * table.ms, 1e-9 * 2 * 50 * 40 * 30) and set(table.batch) == {2}
    assert [*working(*pair[:1], waves(), dim=64, width=8)] == ["classifier forward, fp32", "light, fp32", "published design, fp32", "training step, light, fp32", "training step, published design, fp32"]


def test_figures_say_on_what_they_were_taken():
    times = pd.DataFrame([dict(contestant=c, round=1, seconds=1.0) for c in "ab"])
    assert ratio_figure(ratio_table(times, "a")).get_supxlabel().replace("\n", "; ") == machine_words() and precisions()[0] == "fp32"


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_top_of_the_light_decoder_is_a_convolution_of_the_concatenation(layout):
    "Values and gradients, where its input is joined without a copy"
    with seeded(0): d = LightDecoder([3, 4, 6], 6, n_mels=20, n_fft=64).to(memory_format=layout)
    maps = [torch.randn(2, c, 20 // s, 32 // s, generator=torch.Generator().manual_seed(c)).contiguous(memory_format=layout).requires_grad_() for c, s in ((3, 2), (4, 4), (6, 8))]
    seen = torch.rand(2, 1, 20, 32, generator=torch.Generator().manual_seed(1))
    up = lambda x, size: torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = 0
    for h, project, mix in reversed(list(zip(maps, d.project, d.mixes))): x = mix(project(h) + (up(x, h.shape[2:]) if torch.is_tensor(x) else 0), None)
    reference = d.out(d.mix(torch.nn.functional.gelu(d.top(torch.cat([up(x, seen.shape[2:]), seen], 1))), None))[:, 0]
    drawn = d.draw(maps, seen, None)
    assert torch.allclose(drawn, reference, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), [*maps, d.top.weight], retain_graph=True) for y in (drawn, reference))): assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_the_plain_implementation_says_the_same_with_twice_the_passes(pair):
    plain = [in_default_layout(m) for m in pair]
    for a, b in zip(plain_explanation(*plain, waves()), shipped_explanation(*pair, waves(), bf16=False)): assert torch.allclose(a, b, atol=1e-4)
    seen = []
    hook = pair[0].network.blocks[0].register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    shipped_explanation(*pair, waves(), bf16=False); shipped = sum(seen); plain_explanation(*pair, waves()); hook.remove()
    assert (shipped, sum(seen) - shipped) == (6, 8), "prediction and feature maps share a pass"
    assert np.isfinite(plain_step(*plain, waves())()) and flops(lambda: pair[0](waves())) > 0


def test_a_profile_accounts_for_all_of_the_time():
    a = torch.rand(200, 200)
    table = where_time_goes(lambda: torch.nn.functional.conv2d(a[None, None], a[None, None, :3, :3]) + (a @ a).sort().values[:198, :198])
    assert {"convolution", "matrix product", "sorting"} <= set(table["kind"]) and np.isclose(table["share"].sum(), 1) and table["ms"].is_monotonic_decreasing


def test_growth_is_the_power_of_the_size():
    times = pd.DataFrame([dict(contestant=("n", n), round=r, seconds=3.0 * n**1.5) for n in (1, 4, 16) for r in (1, 2)])
    assert np.allclose(scaling_table(times)["power"].dropna(), 1.5)
