"""Sets in COCO's and in ADE20K's layout, made as the benchmark of the fine-tunes makes them."""

from __future__ import annotations

import sys

from tests.contracts.source import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # benchmarks are scripts

from downstream_sets import CATEGORY, make_class_maps, make_coco, pictures_of

__all__ = ["CATEGORY", "make_class_maps", "make_coco", "pictures_of"]
