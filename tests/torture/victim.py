"""What is killed: one stage of the pipeline, run in a process of its own by `begin`, which says `ready` when its imports are done."""
import os, traceback
from multiprocessing.connection import Connection
from pathlib import Path
import torch

SAY = print


def plan():
    from lmac_piq.experiment import Plan
    from lmac_piq.training import FitConfig
    return Plan(seconds=0.5, train_items=64, test_items=12, width=0.0625, decoder_width=8, classifier=FitConfig(epochs=6, lr=3e-3, ema=0.9, schedule="onecycle", monitor="accuracy"), lmac=FitConfig(epochs=3, lr=3e-3), seeds=(0,))


def train(folder: Path, argument: str) -> None:
    "A classifier and an L-MAC on it"
    from lmac_piq.experiment import train_classifier, train_lmac
    SAY("ready")
    if not (folder/"classifier"/"manifest.json").exists(): train_classifier(plan(), folder/"classifier", "cpu", progress=False)
    if not (folder/"lmac-0"/"manifest.json").exists(): train_lmac(plan(), folder/"classifier", folder/"lmac-0", 0, False, "cpu", progress=False)


def evaluate(folder: Path, argument: str) -> None:
    "Cells of an evaluation, stored one by one, then the table; `argument` is the folder of trained models"
    import numpy as np, pandas as pd
    from lmac_piq.classifier import AudioClassifier
    from lmac_piq.evidence import evaluate_on, stored, write_table
    from lmac_piq.experiment import load_sets
    from lmac_piq.lmac import LMAC
    from lmac_piq.baselines import nulls
    SAY("ready")
    sets, model = load_sets(plan()), AudioClassifier.from_pretrained(Path(argument)/"classifier")
    reference = LMAC.from_pretrained(Path(argument)/"lmac-0", model)
    cell = lambda k: stored(folder/"parts"/f"{k}.parquet", f"cell {k}", lambda: evaluate_on(plan(), model, [reference, *nulls(reference, k)], reference, sets.test, np.arange(12), "corrected", k))
    write_table(pd.concat([cell(k) for k in range(6)], ignore_index=True), folder/"per_item.parquet")


def export(folder: Path, argument: str) -> None:
    "Explanations saved as sound, pictures and numbers, and the page of all of them"
    from lmac_piq.classifier import AudioClassifier
    from lmac_piq.experiment import load_sets
    from lmac_piq.explanation import explain
    from lmac_piq.lmac import LMAC
    SAY("ready")
    model = AudioClassifier.from_pretrained(Path(argument)/"classifier"); x = load_sets(plan()).test[range(4)].x
    e = explain(model, LMAC.from_pretrained(Path(argument)/"lmac-0", model), x)
    e.save(folder/"items"); e.save_page(folder/"page")


def cache(folder: Path, argument: str) -> None:
    "Decoded waves of many files, in one memory-mapped array; `argument` is the folder of the files"
    from lmac_piq.data import wave_cache
    SAY("ready")
    wave_cache(sorted(Path(argument).glob("*.wav")), "0123456789abcdef", folder, 16000, progress=False)


def download(folder: Path, argument: str) -> None:
    "A file from a slow server, its digest checked; `argument` is `url digest`"
    from lmac_piq.data import download
    url, digest = argument.split()
    SAY("ready")
    download(url, folder/"file.bin", digest, progress=False)


def answer(folder: Path, argument: str) -> None:
    "Answers to a study, each acknowledged when it is stored"
    from lmac_piq.study import Answers
    design = study()
    SAY("ready")
    answers = Answers(folder/"answers.sqlite", design)
    for number, trial in enumerate(design.trials):
        if answers.is_complete("P07", trial): continue
        answers.record("P07", trial.name, {s.condition: 100 * ((number + k) % 2) for k, s in enumerate(trial.stimuli)})
        SAY(f"stored {trial.name}")


def study():
    "40 trials on the same three sounds"
    from lmac_piq.study import REFERENCE, Trial, make_design, stimulus
    g = torch.Generator().manual_seed(0)
    a, b = (stimulus(name, torch.randn(8000, generator=g) * 0.1, 16000) for name in ("one", "two"))
    return make_design([Trial(f"item {k}", "sounds", "ab", stimulus(REFERENCE, a.wave, 16000), (a, b)) for k in range(40)])


def begin(stage: str, folder: Path, argument: str, tell: Connection) -> None:
    "Run a stage and tell what it says, an error too"
    global SAY
    SAY = tell.send
    os.setsid(); torch.set_num_threads(1)
    try: globals()[stage](folder, argument)
    except BaseException: SAY(traceback.format_exc()); raise
