"""What sbatch is to SLURM: start a job script in a process group of its own, print the id, and do not wait. Its output goes to .snakemake/local-cluster/."""
import os, subprocess, sys
from pathlib import Path

threads, script = sys.argv[1:]
folder = Path(".snakemake/local-cluster"); folder.mkdir(parents=True, exist_ok=True)
with open(folder / f"{Path(script).name}.log", "wb") as log:
    job = subprocess.Popen(["sh", script], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": threads})
print(job.pid)
