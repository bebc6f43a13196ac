"""Probes: requests by which whoever deploys tests a version before it takes traffic.

A probe is answered and kept, but is no traffic, and may reach versions that are not released. So
not every client can make one: it must present the key that lies in the endpoint's home folder,
which only the user of the server can read.
"""

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

KEY_FILE = "probe.key"
PROBE_HEADER = "X-Mlschool-Probe-Key"


def probe_key(home: Path) -> str:
    """The key of the endpoint in `home`; it is made if there is none."""
    path = home / KEY_FILE
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Another process may be making one, too: the first that is complete is the key.
        temporary = home / f".{KEY_FILE}.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe())
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
    return path.read_text(encoding="ascii")


def is_probe_key(home: Path, presented: bytes | None) -> bool:
    """Whether `presented` is the key of the endpoint in `home`."""
    if not presented:
        return False
    try:
        key = (home / KEY_FILE).read_bytes()
    except OSError:
        return False
    return bool(key) and hmac.compare_digest(presented, key)
