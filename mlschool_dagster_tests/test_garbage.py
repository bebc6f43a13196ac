import subprocess
import sys

LOOKED_THROUGH = """
import atexit, gc
atexit.register(lambda: print(len(gc.get_objects())))
import mlschool_dagster.garbage
"""


def test_a_process_that_ends_looks_for_no_garbage() -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOOKED_THROUGH], check=True, capture_output=True, text=True
    )
    assert int(process.stdout) < 100
