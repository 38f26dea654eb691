"""Make or reuse .venv: what settings.ini asks for, installed once, and again only when settings.ini changes."""
import fcntl, hashlib, os, shutil, subprocess, sys, time
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit("lmac_piq needs Python 3.11 or newer, and %s is %d.%d. Name another one: make PYTHON=python3.12 ..."
             % ((sys.executable,) + sys.version_info[:2]))

ROOT = Path(__file__).resolve().parents[1]
VENV, PYTHON, STAMP = ROOT/".venv", ROOT/".venv/bin/python", ROOT/".venv/installed"

USED = "lmac_piq.all, IPython, ipykernel.kernelapp, ipykernel.inprocess, papermill, snakemake.cli, jupyterlab.labapp, nbconvert, nbdev.test, pytest, hypothesis, scipy.stats, sklearn.linear_model, sklearn.decomposition, matplotlib.pyplot, seaborn"

def key() -> str:
    "What the environment depends on: the pins, how they are read, and the folder the editable install points to"
    return hashlib.sha256(b"\0".join([(ROOT/"settings.ini").read_bytes(), (ROOT/"setup.py").read_bytes(), str(ROOT).encode()])).hexdigest()

def works() -> bool:
    "Whether .venv was installed to its end and its interpreter still starts"
    return STAMP.exists() and PYTHON.exists() and subprocess.run([PYTHON, "-c", ""]).returncode == 0

def main() -> None:
    "Bring .venv up to date; an interrupted set-up leaves no stamp and starts afresh"
    with open(ROOT/"settings.ini") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds all done
        if works() and STAMP.read_text() == key(): return
        start = time.time()
        if not works():
            print(f"setup: new environment in {VENV} ({sys.executable}, {sys.version.split()[0]})", flush=True)
            if VENV.exists(): shutil.rmtree(VENV)
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        print("setup: installing what settings.ini asks for (several GB the first time, PyTorch above all)", flush=True)
        STAMP.unlink(missing_ok=True)
        # of 17,000 modules a few thousand are ever imported: they are compiled at their first import, the most used ones now, also where PYTHONDONTWRITEBYTECODE is set
        subprocess.run([PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "-e", ".[dev]"], cwd=ROOT, check=True)
        subprocess.run([PYTHON, "-c", f"import {USED}"], cwd=ROOT, env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}, check=True)
        STAMP.write_text(key())
        print(f"setup: done in {time.time() - start:.0f} s", flush=True)

if __name__ == "__main__":
    try: main()
    except subprocess.CalledProcessError as e: sys.exit(f"setup failed: {' '.join(map(str, e.cmd))} ended with {e.returncode}; what it said stands above")
    except KeyboardInterrupt: sys.exit("setup interrupted; the next make starts it afresh")
