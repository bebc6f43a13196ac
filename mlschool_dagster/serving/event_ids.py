"""Names for what the endpoint answers."""

import os
import time


def new_event_ids(count: int) -> list[str]:
    """`count` new UUIDs of version 7 (RFC 9562): unique everywhere, and in order of time.

    Their order keeps a store's index on them growing at its end only.
    """
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    prefix = f"{milliseconds[:8]}-{milliseconds[8:]}-7"
    digits = os.urandom(9 * count).hex()
    return [
        f"{prefix}{digits[i : i + 3]}-8{digits[i + 3 : i + 6]}-{digits[i + 6 : i + 18]}"
        for i in range(0, 18 * count, 18)
    ]
