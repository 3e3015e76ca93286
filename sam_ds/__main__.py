"""``python -m sam_ds``, and what the DeepSpeed launcher starts with ``--module sam_ds``."""

from __future__ import annotations

import sys

from sam_ds.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
