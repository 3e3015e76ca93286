"""All of the packaging. ``constraints.txt`` holds the versions that were tested together."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Import name → folder. Packages outside the checkout's root are named here, and nowhere else.
PACKAGE_DIR = {"sam_ds": "sam_ds", "sam_ds_kernels": "kernels/sam_ds_kernels"}


def _version() -> str:
    text = (ROOT / "sam_ds" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    return match[1]


def _packages() -> list[str]:
    return [
        name
        for package, folder in PACKAGE_DIR.items()
        for name in [package, *(f"{package}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    ]


FAST = ["simplejpeg>=1.7"]
KERNELS = ["triton>=3.6,<3.10"]
DOWNSTREAM = ["transformers>=5.0", "scipy>=1.11"]  # the detector's decoder, matcher and losses
TEST = [
    *DOWNSTREAM,  # transformers is a peer too
    "pytest>=8",
    "pytest-xdist>=3.6",
    # Peers that tests and benchmarks compare with; segment-anything is Meta's released code.
    "segment-anything==1.0",
    "hypothesis>=6.100",
]

setup(
    name="sam-ds",
    version=_version(),
    description="Train promptable segmentation foundation models with DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir=PACKAGE_DIR,
    packages=_packages(),
    package_data={"sam_ds_kernels": ["configs/*.json"]},
    install_requires=[
        "torch>=2.6,<2.14",
        "deepspeed==0.19.8",  # pinned: its defaults drift, and some versions had wrong gradients
        "fairscale>=0.4.13",
        "numpy>=1.26",
        "numba>=0.60",
        "pillow>=11",
        "pycocotools>=2.0.7",
        "safetensors>=0.4",
        "fsspec>=2024.2",  # where copies of checkpoints may lie; s3fs, gcsfs, … add their places
        "pydantic>=2",
        "psutil>=5.9",
        "mlflow>=2.15,<3.18",
        "scikit-learn>=1.4",  # the linear probe
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "ninja>=1.11",  # compiles DeepSpeed's ops
        "setuptools>=68",  # torch's extension builder imports it
    ],
    extras_require={
        "fast": FAST,
        "kernels": KERNELS,
        "downstream": DOWNSTREAM,
        "tensorboard": ["tensorboard>=2.15"],
        "test": TEST,
        "dev": [*FAST, *KERNELS, *TEST, "ruff>=0.17,<0.18", "mypy>=2.4,<3", "pre-commit>=3"],
    },
    entry_points={"console_scripts": ["sam-ds = sam_ds.cli.main:main"]},
)
