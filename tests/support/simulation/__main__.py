"""Show a world: python -m simulation SEED JOBS [WORD ...]; with words, only the lines that have one of them."""

from __future__ import annotations

import sys

from simulation.reports import explain
from simulation.world import World

if __name__ == "__main__":
    seed, jobs, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for line in explain(World(seed, jobs=jobs, recorded=True).live(), seed, jobs).splitlines():
        if not words or any(word in line for word in words):
            print(line)
