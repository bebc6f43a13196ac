"""Environments of peers: each is installed in its own, once, below ``benchmarks/.environments``."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / ".environments"


def python_with(name: str, *requirements: str, constrained: bool = True) -> Path:
    """The Python of the peer `name`, in whose environment `requirements` are installed.

    Args:
        name: of the peer and of its folder.
        requirements: as pip takes them.
        constrained: whether packages that this project pins have its versions there, too.
    """
    constraints = ROOT / "constraints.txt"
    pins = ["--constraint", str(constraints)] if constrained else []
    wanted = "\n".join([sys.version, *requirements, *pins, constraints.read_text()])
    wanted = hashlib.sha256(wanted.encode()).hexdigest()
    environment = FOLDER / name
    python, marker = environment / "bin" / "python", environment / "installed"
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {name} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *pins, *requirements], check=True)
        marker.write_text(wanted)
    return python
