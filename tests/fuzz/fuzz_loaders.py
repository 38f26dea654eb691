"""Coverage-guided fuzzing of everything that reads files of others: `make fuzz SECONDS=60`. Whatever the bytes, a loader returns something valid or says why not; anything else stops the run and leaves the input in runs/fuzz."""
import shutil, sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["lmac_piq.audio", "lmac_piq.data", "lmac_piq.classifier", "soundfile", "PIL", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"]):
    import numpy as np, torch
    from hostile_files import idx, make_images, make_model, npy, picture, riff, sounds
    from lmac_piq.audio import AudioError, load_wave
    from lmac_piq.classifier import AudioClassifier
    from lmac_piq.data import ESC50_COLUMNS, DataError, esc50_table, image_set, read_idx

ROOT = Path(__file__).resolve().parents[2]/"runs/fuzz"
for name in ("images", "model"): shutil.rmtree(ROOT/name, ignore_errors=True)
MODEL = {file.name: file.read_bytes() for file in make_model(ROOT/"model").iterdir()}
TABLE = ",".join(ESC50_COLUMNS) + "\n" + "".join(f"{f}-{f}{c}-A-{c}.wav,{f},{c},{'cd'[c]},False,{f}{c},A\n" for f in range(1, 6) for c in range(2))
make_images(ROOT/"images")


def sound(content: bytes) -> None:
    (ROOT/"sound").write_bytes(content)
    wave = load_wave(ROOT/"sound", max_samples=2**22)
    assert wave.dtype == torch.float32 and wave.ndim == 1 and len(wave) and wave.isfinite().all()


def image(name: str, file: str) -> Callable[[bytes], None]:
    "A reader of one file of one set"
    def read(content: bytes) -> None:
        path = ROOT/"images"/name/file
        good = path.read_bytes()
        path.write_bytes(content)
        try: assert not image_set(name, "test", path.parents[len(Path(file).parts) - 1]).faults()
        finally: path.write_bytes(good)
    return read


def table(content: bytes) -> None:
    (ROOT/"esc50.csv").write_bytes(content)
    assert len(esc50_table(ROOT)) > 0


def model(name: str) -> Callable[[bytes], None]:
    "A reader of one of the two files of a saved model"
    def read(content: bytes) -> None:
        for file, good in MODEL.items(): (ROOT/"model"/file).write_bytes(content if file == name else good)
        assert all(w.isfinite().all() for w in AudioClassifier.from_pretrained(ROOT/"model").state_dict().values())
    return read


READERS = [sound, image("quickdraw", "test_images.npy"), image("quickdraw", "test_labels.npy"), image("quickdraw", "classes.txt"), image("mnist", "t10k-labels-idx1-ubyte.gz"), image("ccp_crops", "test/0.png"),
           image("ccp_crops", "test/0.jpg"), image("ccp_crops", "crops.csv"), table, model("config.json"), model("model.safetensors"), read_idx]


def one(data: bytes) -> None:
    "The first byte chooses the reader: every other one is for sounds, whose formats are many"
    if not data: return
    kind = data[0] >> 1
    reader = sound if data[0] & 1 else READERS[kind % len(READERS)]
    try: reader(data[1:])
    except (AudioError, DataError, ValueError, FileNotFoundError) as error:
        own = isinstance(error, (AudioError, DataError)) or str(ROOT) in str(error)
        if not own: raise RuntimeError(f"not our words: {error!r}") from error


def seeds() -> Path:
    "A corpus of valid files, each with the byte that chooses its reader"
    corpus = ROOT/"corpus"      # grows from run to run
    corpus.mkdir(exist_ok=True)
    noise = {name: content[:6000] for name, content in sounds().items()} | {"riff": riff()}
    for name, content in noise.items(): (corpus/name).write_bytes(b"\1" + content)
    others = [npy(np.zeros((2, 3, 3), np.uint8)), npy(np.arange(2)), b"a\nb", b"", picture("1", "PNG", (8, 8)), picture(size=(8, 8)), (ROOT/"images/ccp_crops/crops.csv").read_bytes(), TABLE.encode(), MODEL["config.json"],
              MODEL["model.safetensors"], idx(np.zeros((2, 3, 3), np.uint8))]
    for k, content in enumerate(others, 1): (corpus/f"other{k}").write_bytes(bytes([2*k]) + content)
    return corpus


if __name__ == "__main__":
    atheris.Setup([*sys.argv, f"-artifact_prefix={ROOT}/", "-timeout=20", "-rss_limit_mb=4096", "-max_len=20000", "-print_final_stats=1", "-verbosity=0", str(seeds())], one)
    atheris.Fuzz()
