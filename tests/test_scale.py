"Beyond one machine: the declared resources, two profiles of Snakemake, and training by two processes that makes the steps of one."
import json, os, re, shutil, subprocess, sys
from collections import Counter
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file

from lmac_piq.experiment import PRESETS
from lmac_piq.scale import NEEDS, Machine, bill, breaks_first, need_of, needs, train_command, train_unit
from lmac_piq.training import bf16_pays, share_batch

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command: str, **env: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=ENV | env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


# ---- what jobs ask for

def test_every_preset_has_needs_that_a_scheduler_can_read():
    assert set(NEEDS) == set(PRESETS)
    for kinds in NEEDS.values():
        assert set(kinds) == {"train", "evidence", "piq", "piq_sound", "draw"} and all(n.gpu in (0, 1) and n.threads >= 1 and n.mem_mb >= 1000 and n.runtime >= 10 for n in kinds.values())
        assert kinds["draw"].gpu == 0 and kinds["draw"].runtime <= kinds["train"].runtime
    with pytest.raises(ValueError, match="laptop"): need_of("laptop", "evaluate")
    asked = needs("paper", "train_lmac")
    assert [asked["runtime"](None, k) for k in (1, 2, 3)] == [1440, 2880, 4320]


def test_a_rule_of_the_graph_that_trains_or_explains_is_not_taken_for_one_that_draws():
    "Rules that had all cores before they had resources are the ones with `train` or `evidence` needs"
    text = (ROOT/"paper_figures/Snakefile").read_text()
    rules = set(re.findall(r"^rule (\w+):", text, re.M)) - {"everything"}
    assert need_of("cpu", "train_piq").threads == 1 < need_of("cpu", "train_piq", sound=True).threads     # images two beside one another, sounds on both cores
    assert {r for r in rules if need_of("paper", r).gpu} == {r for r in rules if r.startswith("train_")} | {"evaluate", "evaluate_piq", "own_classifier", "table_decoders"}
    assert text.count("resources: **needs(PRESET,") == text.count("    shell:") == text.count("threads: need_of(PRESET,") + text.count("threads: as_for(")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> list[dict]:
    "What `snakemake --profile profiles/slurm -n` would submit, with no SLURM on the machine"
    said = run("snakemake", "--profile", "profiles/slurm", "-n", "--config", "preset=tiny", "device=cpu", LMAC_PIQ_RUNS=str(tmp_path_factory.mktemp("dry"))).stdout
    found = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", said, re.M)
    return [dict(rule=rule) | dict(re.findall(r"(\w+)=(\d+)\b", text)) for rule, text in found]


def test_a_dry_run_for_slurm_gives_the_whole_graph_with_its_resources(jobs):
    count = Counter(j["rule"] for j in jobs)
    assert count["train_classifier"] == count["train_lmac"] == count["evaluate"] == count["index"] == 1 and count["train_tuned"] == count["train_piq"] == 2
    assert set(count) >= {"train_l2i", "train_conditional", "figure_roar", "table_published", "companion", "listening_study"} and len(jobs) == 40
    for j in jobs:
        if j["rule"] == "everything": continue
        need = need_of("tiny", j["rule"])
        assert (int(j["mem_mb"]), int(j["runtime"]), int(j["gpu"])) == (need.mem_mb, need.runtime, need.gpu), j


def test_the_slurm_executor_turns_our_resources_into_sbatch_options():
    from types import SimpleNamespace
    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string"); utils = pytest.importorskip("snakemake_executor_plugin_slurm.utils")
    class Resources(dict): __getattr__ = dict.__getitem__
    def options(rule: str) -> str:
        need = need_of("paper", rule)
        job = SimpleNamespace(resources=Resources(gpu=need.gpu, mem_mb=need.mem_mb, runtime=need.runtime), threads=need.threads, is_group=lambda: False)
        return submit.get_submit_command(job, dict(run_uuid="u", slurm_logfile="log", comment_str="c", account="", partition="", workdir=".")) + utils.set_gres_string(job)
    assert "--mem 64000" in options("train_lmac") and "-t 1440" in options("train_lmac") and "--gpus=1" in options("train_lmac")
    assert "--gpus" not in options("figure_area") and "--mem 16000" in options("figure_area")


# ---- several processes

WORKER = '''
import hashlib, json, os, sys, torch
from pathlib import Path
from torch import nn
import torch.distributed as dist
from lmac_piq.training import FitConfig, fit, from_every_rank, process_ranks, seeded

class Points:
    def __init__(self, x): self.x = x
    def to(self, device): return self

def points(generator, sizes=(16, 7, 1, 16, 9)):          # 7 of 2 ranks are 3 and 4; 1 is fewer than there are ranks
    for n in sizes: yield Points(torch.randn(n, 2, generator=generator))

def train(folder=None, dropout=0.0, norm=False, draw=False, **kw):
    torch.manual_seed(process_ranks()[0])                 # the ranks begin with different weights, and end with the same
    middle = nn.BatchNorm1d(32) if norm else nn.Identity()
    if process_ranks()[0] == 0: torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 1))
    seen = []
    def check(m): seen.append(process_ranks()[0]); return {"size": float(sum(p.detach().square().sum() for p in m.parameters()))}
    def loss(b): return {"mse": (net(b.x) - b.x.prod(1, keepdim=True)).square().mean(), "l2": 1e-4 * net[0].weight.square().sum()}
    log = fit(net, loss, (lambda g: points(g, (16, 8, 16, 7, 9))) if norm else points, FitConfig(epochs=4, lr=0.02, schedule="onecycle", bf16=False, ema=0.5, clip=1.0, monitor="size"), 5, check, folder, progress=False, **kw)
    digest = hashlib.sha256(b"".join(p.detach().contiguous().numpy().tobytes() for p in net.state_dict().values())).hexdigest()
    return dict(log=log.drop(columns="seconds", errors="ignore").to_dict("list"), finished=log.attrs["finished"], digests=from_every_rank(digest), checked=from_every_rank(len(seen)), weights=[p.detach().tolist() for p in net.parameters()])

dist.init_process_group("gloo")
try:
    folder = Path(sys.argv[1]); out = dict(ranks=process_ranks()[1], plain=train(folder / "plain"), dropout=train(dropout=0.2), norm=train(norm=True))
    pieces = 1; cut = train(folder / "cut", dropout=0.2, budget=0.0)
    while not cut["finished"] and pieces < 50: cut, pieces = train(folder / "cut", dropout=0.2, budget=0.0), pieces + 1
    out |= dict(cut=cut, pieces=pieces)
    if process_ranks()[0] == 0: (folder / "out.json").write_text(json.dumps(out))
finally: dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, dict]:
    "The worker by one process and by two, under torchrun"
    out = {}
    for n in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{n}"); (folder/"worker.py").write_text(WORKER)
        run("torch.distributed.run", "--standalone", "--nproc-per-node", str(n), str(folder/"worker.py"), str(folder))
        out[n] = json.loads((folder/"out.json").read_text()) | dict(files=sorted(p.name for p in (folder/"plain").iterdir()))
    return out


def test_two_processes_have_the_loss_curve_and_the_weights_of_one(trained):
    one, two = trained[1]["plain"], trained[2]["plain"]
    assert (trained[1]["ranks"], trained[2]["ranks"]) == (1, 2)
    for term in ("mse", "l2", "valid_size", "lr"): np.testing.assert_allclose(two["log"][term], one["log"][term], rtol=1e-5)
    for a, b in zip(one["weights"], two["weights"]): np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert len(set(one["log"]["mse"])) == len(set(one["log"]["lr"])) == 4


def test_ranks_agree_to_the_last_bit(trained):
    for name in ("plain", "dropout", "norm", "cut"): assert len(set(trained[2][name]["digests"])) == 1 and len(trained[2][name]["digests"]) == 2, name


def test_only_the_first_rank_validates_and_writes(trained):
    assert trained[2]["plain"]["checked"] == [4, 0]
    assert trained[2]["files"] == trained[1]["files"] and not [f for f in trained[2]["files"] if f.endswith(".tmp")]


def test_a_run_cut_by_its_budget_goes_on_to_the_same_weights_on_every_rank(trained):
    "Dropout is drawn by each rank for its clips: its states are in the checkpoint too"
    for n in (1, 2):
        t = trained[n]
        assert t["pieces"] > 4 and t["cut"]["log"] == t["dropout"]["log"] and t["cut"]["digests"] == t["dropout"]["digests"], n
    assert trained[1]["dropout"]["log"]["mse"] != trained[2]["dropout"]["log"]["mse"]


@pytest.fixture(scope="module")
def lmacs(tmp_path_factory) -> dict[int, Path]:
    "The tiny L-MAC on scenes by the command, alone and with two processes, on one classifier"
    runs = {n: tmp_path_factory.mktemp(f"lmac{n}") for n in (1, 2)}
    with pytest.MonkeyPatch.context() as m:
        m.setenv("LMAC_PIQ_RUNS", str(runs[1])); torch.set_num_threads(1); train_unit("tiny", "scenes-classifier", "cpu", progress=False)
        with pytest.raises(FileNotFoundError, match="scenes-lmac-0"): train_unit("tiny", "scenes-tuned-4-0.6", "cpu")
        assert train_unit("tiny", "scenes-classifier", "cpu") is None
        (runs[2]/"tiny").mkdir(); shutil.copytree(runs[1]/"tiny/scenes", runs[2]/"tiny/scenes")
        assert train_command(["scenes-lmac-0", "--preset", "tiny", "--device", "cpu"]) == 0
    said = run("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lmac_piq.scale", "scenes-lmac-0", "--preset", "tiny", "--device", "cpu", LMAC_PIQ_RUNS=str(runs[2])).stdout
    assert said.count("scenes-lmac-0 is finished") == 1 and "(2 processes" in said
    return {n: folder/"tiny/scenes/lmac-0" for n, folder in runs.items()}


def test_an_lmac_on_scenes_by_two_processes(lmacs):
    one, two = (pd.read_csv(lmacs[n]/"fit/log.csv") for n in (1, 2))
    near = 2e-2 if bf16_pays(torch.device("cpu")) else 1e-4                   # where it pays, products have 8 bits
    for term in ("kept", "removed", "area"): np.testing.assert_allclose(two[term], one[term], rtol=near)
    a, b = (load_file(lmacs[n]/"model.safetensors") for n in (1, 2))
    assert a.keys() == b.keys() and max(float((a[k] - b[k]).abs().max()) for k in a) < near
    assert sorted(p.relative_to(lmacs[1]) for p in lmacs[1].rglob("*")) == sorted(p.relative_to(lmacs[2]) for p in lmacs[2].rglob("*"))
    assert json.loads((lmacs[1]/"manifest.json").read_text())["classifier"] == json.loads((lmacs[2]/"manifest.json").read_text())["classifier"]


def test_submitted_jobs_run_in_processes_of_their_own_and_make_the_same(tmp_path, lmacs):
    "Two jobs, the second waiting for the first, through the executor for any cluster; compared with the same stages called directly"
    target = tmp_path/"tiny/scenes/lmac-0/manifest.json"
    said = run("snakemake", "--profile", "profiles/local-cluster", "--set-threads", "train_classifier=1", "train_lmac=1", "--config", "preset=tiny", "device=cpu", "--", str(target), LMAC_PIQ_RUNS=str(tmp_path))
    ids = re.findall(r"Submitted job \d+ with external jobid '(\d+)'", said.stdout + said.stderr)
    assert len(set(ids)) == 2 and str(os.getpid()) not in ids
    for name in ("classifier", "lmac-0"):
        there, here = (load_file(root/name/"model.safetensors") for root in (target.parents[1], lmacs[1].parent))
        for k, v in here.items(): torch.testing.assert_close(there[k], v, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n, ranks", [(1, 1), (1, 4), (3, 4), (4, 4), (16, 3), (17, 5)])
def test_shares_cover_a_batch_once_with_weights_that_give_its_mean(n, ranks):
    batch = type("B", (), {})(); batch.x, batch.label, batch.clean = torch.randn(n, 5), torch.arange(n), None
    shares = [share_batch(batch, r, ranks) for r in range(ranks)]
    assert sum(w for _, w in shares) == pytest.approx(1) and all(len(b.x) == len(b.label) > 0 and b.clean is None for b, _ in shares)
    torch.testing.assert_close(sum(w * b.x.mean(0) for b, w in shares), batch.x.mean(0))
    if n >= ranks: assert torch.cat([b.label for b, _ in shares]).tolist() == list(range(n))


# ---- arithmetic

COSTS = pd.DataFrame([("classifier", 3e9, 1e6, 1e6), ("L-MAC", 6e9, 2e6, 1e5), ("one pass", 1e9, 0.0, 1e6)], columns=["stage", "operations", "kept", "parameters"]).set_index("stage")
HOST, ROWS = dict(decode=0.01, batch=1e-3, compressed=1e5, decoded=3e5, spectrogram=1e6), dict(methods=2, rows=10.0, row=100.0)


def test_a_bill_that_can_be_checked_by_hand():
    plan, machine = PRESETS["tiny"]["scenes"], Machine(peak=1e12, reached=0.5, cores=2)
    table = bill(plan, 1000, machine, COSTS, HOST, ROWS, epochs=(4, 2), forms=1)
    decode, classifier, lmac, evaluation = table.itertuples()
    assert decode.hours * 3600 == pytest.approx(1000 * 0.01 / 2) and decode.disk_gb == pytest.approx(0.4)
    assert classifier.card_hours * 3600 == pytest.approx(4 * 1000 * 3e9 / 5e11) and classifier.host_hours * 3600 == pytest.approx(4.0)
    assert lmac.hours == pytest.approx(lmac.card_hours + lmac.host_hours) and lmac.card_gb * 1e9 == pytest.approx(16e5 + 4e6 + 16 * 2e6)
    assert evaluation.memory_gb * 1e9 == pytest.approx(1000 * 2 * 10 * 100) and evaluation.card_hours * 3600 == pytest.approx(1000 * 5 * 1e9 / 5e11)


def test_what_breaks_first_is_what_is_asked_for_most():
    plan = PRESETS["tiny"]["scenes"]
    assert "disk" in breaks_first(plan, 10**6, Machine(disk=1e6), COSTS, HOST | dict(spectrogram=1.0), ROWS).what[0]
    assert "frame" in breaks_first(plan, 10**6, Machine(memory=1e9, disk=1e18, limit=1e9), COSTS, HOST | dict(decoded=1.0, batch=1e-12), ROWS).what[0]
    assert "classifier, in one job" in breaks_first(plan, 10**6, Machine(memory=1e18, disk=1e18, limit=1e-6), COSTS, HOST, ROWS).what[0]
