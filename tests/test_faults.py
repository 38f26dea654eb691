"""What goes wrong on real machines, one by one: a full disk, a second run in the same folder, a cut checkpoint, a clock that jumps. A clear error or a repair, stated for each."""
import os, resource, subprocess, sys, time
from pathlib import Path
import pytest, torch
from torch import nn

from lmac_piq.training import CheckpointError, FitConfig, alone, fit, seeded

ROOT, PATIENCE = Path(__file__).resolve().parents[1], 240          # seconds that any process may take


class Points:
    def __init__(self, x): self.x = x
    def to(self, device): return self


def small_fit(folder: Path | None, width: int = 64, epochs: int = 3, **kw):
    with seeded(0): net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1))
    points = lambda g: (Points(torch.randn(16, 2, generator=g)) for _ in range(5))
    log = fit(net, lambda b: {"mse": (net(b.x) - b.x.prod(1, keepdim=True)).square().mean()}, points, FitConfig(epochs=epochs, lr=0.01, bf16=False, ema=0.5), 5, folder=folder, progress=False, **kw)
    return [p.clone() for p in net.state_dict().values()], log

same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path):
    "Files may grow to 20 kB only: as on a full disk, the write fails half way. The checkpoint before it stays whole, and with room again the run goes on to the same weights"
    whole, _ = small_fit(None)
    first, _ = small_fit(tmp_path, budget=0.0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    assert len(before["checkpoint.pt"]) > 4000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)) as said: small_fit(tmp_path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    now = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    assert before.items() <= now.items() and not any(name.endswith(".tmp") for name in now), "a failed write changed or left a file"
    rest, log = small_fit(tmp_path)
    assert log.attrs["finished"] and same(whole, rest), said.value


def test_a_folder_that_is_written_to_is_refused_both_ways(tmp_path):
    "`fit` asks for the lock before it writes, holds it while it trains and gives it back"
    with alone(tmp_path), pytest.raises(CheckpointError, match="being written to by another run"): small_fit(tmp_path)
    assert not {p.name for p in tmp_path.iterdir()} - {".lock"}, "a refused run wrote"
    refused = []
    def at_work(net) -> dict:
        with pytest.raises(CheckpointError, match="being written to by another run"), alone(tmp_path): pass
        refused.append(1); return {}
    weights, log = small_fit(tmp_path, validate=at_work)
    assert len(refused) == len(log) == 3 and log.attrs["finished"] and same(weights, small_fit(None)[0])
    with alone(tmp_path): pass


def test_a_second_process_in_one_folder_is_refused_and_the_first_is_not_hurt(tmp_path):
    "The first waits after each epoch to be told to go on; the second meets it in its second epoch"
    code = f"""import sys; sys.path[:0] = {[str(ROOT), str(ROOT/"tests")]!r}
from pathlib import Path; from test_faults import small_fit
def wait(net): print("at work", flush=True); sys.stdin.readline(); return {{}}
small_fit(Path({str(tmp_path)!r}), validate=wait)"""
    content = lambda: {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "at work\n"
            first.stdin.write("\n"); first.stdin.flush(); assert first.stdout.readline() == "at work\n"
            before = content(); assert "checkpoint.pt" in before
            with pytest.raises(CheckpointError, match="is being written to by another run: wait for it to end, or use another folder"): small_fit(tmp_path)
            assert content() == before, "a refused run wrote"
            first.communicate("\n\n", timeout=PATIENCE); assert first.returncode == 0
        finally: first.kill()
    weights, log = small_fit(tmp_path)
    assert log.attrs["finished"] and same(weights, small_fit(None)[0])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_checkpoint_cut_short_is_refused_by_name(tmp_path, share):
    small_fit(tmp_path, budget=0.0)
    path = tmp_path/"checkpoint.pt"; content = path.read_bytes(); path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(CheckpointError, match="checkpoint.pt.*delete it"): small_fit(tmp_path)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    small_fit(tmp_path, budget=0.0)
    with pytest.raises(CheckpointError, match="does not fit this Sequential"): small_fit(tmp_path, width=65)
    with pytest.raises(CheckpointError, match="epochs=3 there, 4 now"): small_fit(tmp_path, epochs=4)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    "Durations come from the monotonic clock: an hour back or forth neither ends a run nor keeps it going"
    jumps = iter([0, 3600, -7200] * 1000); real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    weights, log = small_fit(tmp_path, budget=60.0)
    assert log.attrs["finished"] and (log.seconds >= 0).all() and (log.seconds < 60).all() and same(weights, small_fit(None)[0])


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = f"import sys, os, signal; from lmac_piq.training import alone\nwith alone({str(tmp_path)!r}): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=PATIENCE).returncode == -9
    with alone(tmp_path): pass
