#!/usr/bin/env python3
"""What scancel is to SLURM: end the jobs of these ids, with all they have started."""
import os, signal, sys

for job in sys.argv[1:]:
    try: os.killpg(int(job), signal.SIGTERM)
    except ProcessLookupError: pass       # it has ended by itself
