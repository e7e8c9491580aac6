"""Play drawn runs of the world: ``python -m tests.history FIRST LAST``."""

import sys

from tests.history.world import World

if __name__ == "__main__":
    first, last = map(int, sys.argv[1:])
    faults = {seed: found for seed in range(first, last) if (found := World(seed).run())}
    sys.stdout.write(f"{last - first} runs, {len(faults)} with faults {dict(list(faults.items())[:5])}\n")
    sys.exit(bool(faults))
