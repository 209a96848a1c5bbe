"""The search for metrics: a regular expression that comes with an address, from anywhere."""

from __future__ import annotations

import re

_LONGEST_PATTERN, LONGEST_NAME, _MOST_REPEATS = 100, 100, 3
_REPEATED_GROUP = re.compile(r"\)[*+{]")


def checked_pattern(pattern: str) -> re.Pattern[str]:
    """``pattern`` as a regular expression that cannot take long.

    A search runs inside the server, and its pattern may come with an address from anywhere: repeats of repeats, which
    can take for ever, are not accepted.

    Raises:
        ValueError: what is wrong with it, and what is accepted.
    """
    found = f"the search for metrics is {pattern[:_LONGEST_PATTERN]!r}"
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"{found}, and longer; at most {_LONGEST_PATTERN} characters are accepted.")
    plain = re.sub(r"\\.", "", pattern)
    if _REPEATED_GROUP.search(plain) or len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS:
        raise ValueError(
            f"{found}; at most {_MOST_REPEATS} repeats (*, + or {{) are accepted, none of them of a group. Write for "
            "example loss|grad.*norm"
        )
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{found}, which is no regular expression ({error}). Write for example loss|grad.*norm"
        ) from None
