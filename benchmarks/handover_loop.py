"""One rank of a training, started by ``ranks.py``: runs a ``sam-ds`` command as the launcher would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sam_ds.cli.main import main

if __name__ == "__main__":
    settings, result = (Path(argument) for argument in sys.argv[1:])
    code = main(json.loads(settings.read_text())["arguments"])
    if code:
        sys.exit(code)
    result.write_text("{}")
