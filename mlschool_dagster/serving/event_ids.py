"""Names for what the endpoint answers."""

import os
import time


def new_event_ids(count: int) -> list[str]:
    """`count` new UUIDs of version 7 (RFC 9562): unique everywhere, and in order of time.

    Their order keeps a store's index on them growing at its end only. Those of one call count up
    from a random one (section 6.2, method 2).
    """
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    digits = os.urandom(9).hex()
    prefix = f"{milliseconds[:8]}-{milliseconds[8:]}-7{digits[:3]}-8{digits[3:6]}-"
    # Its highest bit is left for counting.
    first = int(digits[6:], 16) >> 1
    return [f"{prefix}{number:012x}" for number in range(first, first + count)]
