"""Every notebook in nbs/ runs from top to bottom; `nbdev_test`, the command, works; what they export and hold is in order."""
import filecmp, io, multiprocessing, os, shutil, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path
import pytest

from lmac_piq.training import bf16_pays

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
CPU_LIMIT = 60 if bf16_pays() else 150  # seconds of one processor: unlike the clock, hardly longer on a busy machine; one that has no bfloat16 takes two to three times as long

# Each notebook gets a process of its own, forked from one that has already imported the slow libraries.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "torchaudio", "pandas", "matplotlib.pyplot", "ipywidgets", "sklearn.linear_model", "sklearn.decomposition", "scipy.stats", "captum.attr", "anywidget", "nbdev.test", "torch._dynamo", "torch.utils.flop_counter"])

def run(path: Path) -> tuple[bool, float, float, str]:
    "Run a notebook with nbdev's own function: passed, seconds, CPU seconds, traceback"
    from nbdev.test import test_nb
    log, start = io.StringIO(), time.perf_counter()
    with redirect_stderr(log): passed, _ = test_nb(path, skip_flags=["notest"], basepath=ROOT)
    return passed, time.perf_counter() - start, time.process_time(), log.getvalue()

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path, record_property):
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool: passed, seconds, cpu, log = pool.submit(run, path).result()
    for name, value in dict(notebook=f"nbs/{path.name}", seconds=seconds, cpu=cpu).items(): record_property(name, value)
    if not passed: pytest.fail(log, pytrace=False)
    assert cpu < CPU_LIMIT, f"{path.name} took {cpu:.0f} s of CPU; the limit is {CPU_LIMIT} s: shrink its examples"

def nbdev(command: str, *args: str, cwd: Path = ROOT) -> str:
    "Run one of nbdev's commands as a user would; its output"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev_export does nothing where it is set
    done = subprocess.run([Path(sys.executable).parent/command, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} {' '.join(args)} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout

@pytest.mark.parametrize("name", ["10_audio", "11_spectral"])
def test_plain_nbdev_test(name: str):
    assert "Success." in nbdev("nbdev_test", "--path", f"nbs/{name}.ipynb")

@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "The notebooks and settings alone, so that nothing in the checkout changes"
    folder = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(ROOT/name, folder)
    for name in ("nbs", "paper_figures"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns(".*", "runs"))
    return folder

def differing(a: Path, b: Path, pattern: str) -> list[str]:
    "Files that are missing from either folder or differ"
    names = {p.relative_to(folder) for folder in (a, b) for p in folder.rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
    return sorted(str(n) for n in names if not ((a/n).exists() and (b/n).exists() and filecmp.cmp(a/n, b/n, shallow=False)))

def test_library_is_what_the_notebooks_export(copy: Path):
    nbdev("nbdev_export", cwd=copy)
    drift = differing(ROOT/"lmac_piq", copy/"lmac_piq", "*.py")
    assert not drift, f"not what the notebooks export: {drift}. Edit the notebook, not the module, then `make export`"

@pytest.mark.parametrize("folder", ["nbs", "paper_figures"])
def test_notebooks_are_clean(copy: Path, folder: str):
    nbdev("nbdev_clean", "--fname", folder, cwd=copy)
    dirty = differing(ROOT/folder, copy/folder, "*.ipynb")
    assert not dirty, f"metadata to clean in {dirty}: `make export` does it"
