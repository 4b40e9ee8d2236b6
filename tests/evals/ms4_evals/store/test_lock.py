"""One writer per store, whatever happens to it. The other writer is a real process."""

import os
import signal
import subprocess
import sys

import pytest

from ms4_evals.store.lock import exclusive_lock
from ms4_train.errors import EvaluationError, StorageError

HOLDER = """
import sys, time
from pathlib import Path
from ms4_evals.store.lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    path = tmp_path / "new" / "results.sqlite.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EvaluationError, match=f"process {holder.pid}") as caught, exclusive_lock(path):
            pass
        assert str(caught.value).startswith(str(path.with_suffix("")))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with exclusive_lock(path):
        assert path.read_text() == str(os.getpid())


def test_the_lock_ends_with_its_block(tmp_path):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "lock"):
        raise KeyError
    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), exclusive_lock(tmp_path / "file" / "lock"):
        pass
