"The whole graph of paper notebooks, end to end, on the `tiny` preset; and the refusals of the command."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import soundfile
import torch

ROOT = Path(__file__).parent.parent


def command(*args: str, runs: Path, **env: str) -> subprocess.CompletedProcess:
    "The lmac-piq command with its runs in a folder of the test's; what it started ends with it"
    words = [str(Path(sys.executable).parent / "lmac-piq"), *args]
    with subprocess.Popen(words, cwd=ROOT, env=os.environ | {"LMAC_PIQ_RUNS": str(runs)} | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try: out, err = process.communicate(timeout=2700)
        except BaseException: os.killpg(process.pid, signal.SIGKILL); raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = command("paper", "--preset", "tiny", "--device", "cpu", "--cores", "1", runs=folder)   # the other processor has other tests to run
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_artefact_is_there(runs):
    report = runs / "tiny" / "report"
    for name in ("table_in_domain.csv", "table_in_domain.html", "figure_area.png", "figure_qualitative.png", "audio/index.html", "table_scenes.csv", "table_two_events.csv", "index.html",
                 "table_mixtures.csv", "table_white_noise_speech.html", "table_ablation.csv", "table_published.csv", "table_coverage.csv", "table_defects.html", "table_agreement.csv", "figure_listening_published.svg", "figure_listening_recordings.png", "table_listening_simulated.csv",
                 *(f"{kind}_{name}.{end}" for name in ("shapes", "scenes") for kind, end in (("table_piq", "html"), ("table_overlap", "csv"), ("figure_overlap", "svg"), ("figure_pairs", "png"),
                   ("figure_codebook", "png"), ("figure_usage", "png"), ("figure_examples", "png"))), "table_piq_shapes_ablation.csv", "table_concept_shapes.csv", "figure_concept_shapes.png", "audio-piq-scenes/index.html",
                 "figure_snr.svg", "figure_randomisation.png", "figure_roar.png", "figure_agreement.png"):
        assert (report / name).stat().st_size > 0, name
    rows = pd.read_parquet(runs / "tiny" / "scenes" / "evaluate" / "per_item.parquet")
    assert set(rows.protocol) == {"published", "corrected"} and set(rows.form) == {"soft", "topk", "same_values"} and rows.item.nunique() == 10
    methods = rows.groupby(["protocol", "condition"], observed=True).method.unique().map(set)
    for (protocol, condition), there in methods.items():
        assert {"L-MAC", "L-MAC, FT (λ 4, CCT 0.6)", "L2I", "saliency", "SmoothGrad", "integrated gradients", "guided backprop", "GradCAM", "Guided GradCAM", "GradientSHAP", "LIME", "activation norm",
                "random bins", "loudest bins", "constant", "all ones", "all zeros"} <= there, (protocol, condition)
        assert ("L2I (random theta)" in there) == (protocol == "published")
    assert {"clean", "noise", "mixture", "white noise"} == set(rows.condition)
    manifest = json.loads((runs / "tiny" / "scenes" / "evaluate" / "manifest.json").read_text())
    assert manifest["classifier"] == json.loads((runs / "tiny" / "scenes" / "lmac-0" / "config.json").read_text())["classifier"]


def test_a_second_run_does_nothing_and_a_deleted_figure_is_redone_alone(runs):
    tables = {p: p.stat().st_mtime_ns for p in (runs / "tiny").rglob("*.csv") if p.stem != "table_coverage"}       # which the index makes
    start = time.monotonic()
    again = command("paper", "--preset", "tiny", "--device", "cpu", runs=runs)
    assert again.returncode == 0 and "started" not in again.stdout and time.monotonic() - start < 180
    (runs / "tiny" / "report" / "figure_area.png").unlink()
    redo = command("paper", "--preset", "tiny", "--device", "cpu", runs=runs)
    started = [line for line in redo.stdout.splitlines() if "started" in line]
    assert redo.returncode == 0 and sorted(started) == ["[figure_area] started", "[index] started"]
    assert {p: p.stat().st_mtime_ns for p in tables} == tables


def test_explain_a_file_from_the_command_line(runs, tmp_path):
    wave = torch.randn(12345, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    soundfile.write(tmp_path / "x.wav", wave, 16000)
    done = command("explain", str(tmp_path / "x.wav"), "--model", str(runs / "tiny" / "scenes"), "--target", "siren", "--out", str(tmp_path / "out"), runs=runs)
    assert done.returncode == 0, done.stderr
    assert {"original.wav", "kept.wav", "removed.wav", "mask.png", "explanation.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert soundfile.info(tmp_path / "out" / "kept.wav").frames == 12345
    assert json.loads((tmp_path / "out" / "explanation.json").read_text())["target"] == "siren"


@pytest.mark.parametrize("target, said", [("scenes/classifier/manifest.json", "stopped at a checkpoint"), ("report/table_own_classifier.csv", "stopped before its end")], ids=["pauses", "cannot pause"])
def test_a_budget_ends_the_run(target, said, tmp_path):
    "A stage that can pause leaves a checkpoint; one that cannot is ended at the deadline, and leaves nothing"
    for budget in (25, 40, 60):                                                # a busy machine may not have begun anything in the first one
        program, start = f"import sys; from lmac_piq.experiment import paper, run_folder; sys.exit(paper('smoke', 'cpu', [run_folder('smoke') / '{target}'], budget={budget}))", time.monotonic()
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"LMAC_PIQ_RUNS": str(tmp_path)}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "stopped after" in done.stdout and time.monotonic() - start < budget + 95, done.stdout + done.stderr
        assert not (tmp_path / "smoke" / target).exists()
        if "not begun" not in done.stdout: break
    assert said in done.stdout and (tmp_path / "smoke/scenes/classifier/fit/checkpoint.pt").exists() == (said == "stopped at a checkpoint"), done.stdout


@pytest.mark.parametrize("args, word", [(["paper", "--preset", "laptop"], "laptop"), (["paper", "--preset", "smoke", "--device", "cuda:9"], "cuda:9"),
                                        (["explain", "nowhere.wav", "--model", "nowhere"], "there is no such folder")])
def test_refused_in_one_sentence(args, word, tmp_path):
    done = command(*args, runs=tmp_path)
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_class_and_a_damaged_file_are_refused(runs, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF....")
    soundfile.write(tmp_path / "good.wav", np.full(8000, 0.1), 16000)
    for args, word in ((["explain", str(tmp_path / "bad.wav")], "bad.wav"), (["explain", str(tmp_path / "none.wav")], "none.wav"),
                       (["explain", str(tmp_path / "good.wav"), "--target", "dragon"], "unknown class 'dragon'")):
        done = command(*args, "--model", str(runs / "tiny" / "scenes"), "--out", str(tmp_path / "out"), runs=runs)
        assert done.returncode == 2 and word in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("only, file", [((), "esc50.csv"), (("piq_images",), "train-images-idx3-ubyte")], ids=["all", "images"])
def test_missing_data_is_named_before_anything_starts(only, file, tmp_path):
    done = command("paper", "--preset", "cpu", *only, runs=tmp_path / "runs", LMAC_PIQ_DATA=str(tmp_path))
    assert done.returncode == 2 and "LMAC_PIQ_DATA" in done.stderr and file in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_architecture_is_refused(runs, tmp_path):
    for name in ("classifier", "lmac-0"): shutil.copytree(runs / "tiny" / "scenes" / name, tmp_path / "tiny" / "scenes" / name)
    shutil.copy(runs / "tiny" / "scenes" / "lmac-0" / "model.safetensors", tmp_path / "tiny" / "scenes" / "classifier" / "model.safetensors")
    soundfile.write(tmp_path / "good.wav", np.full(8000, 0.1), 16000)
    done = command("explain", str(tmp_path / "good.wav"), "--model", str(tmp_path / "tiny" / "scenes"), "--out", str(tmp_path / "out"), runs=tmp_path)
    assert done.returncode == 2 and "another architecture" in done.stderr and not (tmp_path / "out").exists()


def test_papermill_refuses_an_unknown_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter presett"):
        papermill.execute_notebook(ROOT / "paper_figures" / "evaluate.ipynb", tmp_path / "out.ipynb", parameters=dict(presett="cpu"), kernel_name="python3", progress_bar=False)
