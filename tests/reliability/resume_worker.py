"""One rank of a run that is stopped and gone on with: ``resume_worker.py CONFIG LOG STOP``. For ``test_resume_meshes.py``."""

import sys
from pathlib import Path

from support.resume_runs import rank

if __name__ == "__main__":
    rank(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
