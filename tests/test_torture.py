"""Killed at random points, the pipeline loses nothing: rerun, it ends with what an undisturbed run makes. One kill per stage here; `make torture` makes fifty and more (TORTURE=9 kills per stage)."""
import hashlib, http.server, json, multiprocessing, os, random, signal, sqlite3, threading, time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf
from torture import victim

KILLS, PATIENCE = int(os.environ.get("TORTURE", "1")), 240          # per stage; seconds that any single run may take
STAGES = ("train", "evaluate", "export", "cache", "download", "answer")


# Each victim is a process forked from one that has already imported the slow libraries
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["lmac_piq.all"])

@dataclass
class Stage:
    process: multiprocessing.Process
    told: Connection

    def said(self) -> list[str]:
        "Everything from here to its end"
        heard = []
        try:
            while self.told.poll(PATIENCE): heard.append(self.told.recv())
        except EOFError: pass
        self.process.join(PATIENCE)
        return heard


def start(stage: str, folder: Path, argument: str = "") -> Stage:
    "The stage in a process of its own, waited for until its imports are done"
    told, tell = FRESH.Pipe(duplex=False)
    process = FRESH.Process(target=victim.begin, args=(stage, folder, argument, tell)); process.start(); tell.close()
    begun = Stage(process, told)
    first = told.recv() if told.poll(PATIENCE) else f"nothing was heard of it for {PATIENCE} s"
    if first != "ready": process.kill(); raise RuntimeError(f"{stage} did not begin: {first}")
    return begun


def finish(stage: Stage) -> list[str]:
    "Wait for the end, bounded; what it said"
    said = stage.said()
    assert stage.process.exitcode == 0, "\n".join(said)[-3000:]
    return said


def kill(stage: Stage, seconds: float) -> tuple[bool, list[str]]:
    "SIGKILL after some seconds; whether it was still running, and what it had said"
    time.sleep(seconds)
    running = stage.process.is_alive()
    if running: os.killpg(stage.process.pid, signal.SIGKILL)
    return running, stage.said()


def made(folder: Path) -> dict[str, str]:
    "Digest of everything a stage left that does not say when or how fast it was made"
    def content(path: Path) -> bytes:
        if path.name == "log.csv": return pd.read_csv(path).drop(columns="seconds").to_csv().encode()
        if path.suffix == ".parquet": return pd.read_parquet(path).to_csv(index=False).encode()
        if path.name == "manifest.json":
            facts = json.loads(path.read_text())
            return json.dumps({k: v for k, v in facts.items() if k not in ("wall_seconds", "training_seconds", "finished", "code")}, sort_keys=True).encode()
        return path.read_bytes()
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith((".lock", "checkpoint.pt", "-wal", "-shm")) and ".sqlite" not in p.name]
    return {str(p.relative_to(folder)): hashlib.sha256(content(p)).hexdigest() for p in files}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    "A server of one file, a piece at a time, that can go on from the middle; its address and the file's digest"
    body = random.Random(0).randbytes(400_000)
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(body) - begin))
            if "Range" in self.headers: self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            try:
                for k in range(begin, len(body), 8000): self.wfile.write(body[k:k + 8000]); time.sleep(0.02)
            except OSError: pass          # the client was killed
        def log_message(self, *_): pass
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow); http_server.daemon_threads = True
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_port}/file.bin {hashlib.sha256(body).hexdigest()}"
    http_server.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, float]:
    "An undisturbed training, and how long it took after its imports"
    folder = tmp_path_factory.mktemp("trained")
    process = start("train", folder); begin = time.monotonic(); finish(process)
    return folder, time.monotonic() - begin


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    "Many small files"
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for k in range(300): sf.write(folder/f"{k:03d}.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_points_nothing_is_lost(stage, tmp_path, trained, server, sounds, record_property):
    argument = dict(evaluate=str(trained[0]), export=str(trained[0]), cache=str(sounds), download=server).get(stage, "")
    if stage == "train": whole, seconds = trained
    else:
        whole = tmp_path/"whole"; whole.mkdir()
        process = start(stage, whole, argument); begin = time.monotonic(); finish(process); seconds = time.monotonic() - begin
    draw, broken, folder, said = random.Random(os.environ.get("TORTURE_SEED", stage)), 0, tmp_path/"killed", []
    folder.mkdir()
    for _ in range(4 * KILLS):                            # a run that ended before its kill does not count
        if broken == KILLS: break
        running, heard = kill(start(stage, folder, argument), draw.uniform(0, seconds))
        broken += running; said += heard
        if not running:                                   # finished: begin again elsewhere
            assert made(folder) == made(whole); folder = tmp_path/f"killed-{_}"; folder.mkdir(); said = []
    said += finish(start(stage, folder, argument))
    assert made(folder) == made(whole) and (made(whole) or stage == "answer")
    if stage == "answer": answers_are_all_there(folder/"answers.sqlite", whole/"answers.sqlite", said)
    left = [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".part"))]
    record_property("kills", broken); print(f"{stage}: {broken} kills, 0 lost; left behind: {left or 'nothing'}")
    assert broken >= min(1, KILLS), "the stage was never caught at work"


def answers_are_all_there(killed: Path, whole: Path, said: list[str]) -> None:
    "Every answer that was acknowledged is stored, once, and the table equals the undisturbed one"
    rows = [sqlite3.connect(path).execute("select code, trial, condition, value from answer order by 1, 2, 3").fetchall() for path in (killed, whole)]
    stored = {line.removeprefix("stored ") for line in said if line.startswith("stored ")}
    assert stored <= {row[1] for row in rows[0]} and rows[0] == rows[1] and len(rows[0]) == 80
