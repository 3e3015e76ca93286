"""Whether functions can be compiled here: numba comes months after the newest Python."""

from __future__ import annotations

import logging
from importlib.util import find_spec

# Only that it is there: importing it takes half a second, and what is wrong with a broken one is its own to say.
NUMBA = find_spec("numba") is not None

if not NUMBA:
    logging.getLogger(__name__).warning("numba is not installed: masks are read and drawn several times slower")
