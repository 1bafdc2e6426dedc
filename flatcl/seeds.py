"""Seeds named by what they are for, so that streams of randomness never share one."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """Return a 63-bit seed, the hash of the named parts.

    Two calls agree if and only if their parts agree, so that, say, all methods of a repeat
    share ``derive_seed(seed, "weights")`` while each has its own ``derive_seed(seed, "noise",
    method)``.

    Args:
        *parts: what the seed is for, e.g. the repeat's number and the purpose.

    Returns:
        The seed, ≥ 0 and < 2⁶³.

    Example:
        >>> derive_seed(0, "weights") == derive_seed(0, "weights")
        True
        >>> derive_seed(0, "weights") == derive_seed(0, "order")
        False
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
