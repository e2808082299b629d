"""Packaging of crate_mm. The configs are next to the package in a clone, and inside the package in a wheel."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(line.split('"')[1] for line in (HERE / "crate_mm/__init__.py").open() if line.startswith("__version__"))
EXPORT = ["onnxscript>=0.5", "onnxruntime>=1.20"]  # to write ONNX files, and to run them
TIMM = ["timm>=1.0.15"]
HUB = ["huggingface_hub>=0.34"]  # download from hf:// addresses, and push models
TEXT = ["tokenizers>=0.20", "tiktoken>=0.8"]  # tokenizers other than bytes
COCO = ["pycocotools>=2.0.8"]  # object masks and average precision
COMPLETION = ["shtab>=1.13"]  # completion scripts for bash, zsh and fish
DOCS = ["sphinx>=9", "docutils>=0.22", "myst-nb>=1.4", "furo>=2025.12"]  # the documentation site
DOCS = [f'{name}; python_version >= "3.11"' for name in DOCS]  # required by Sphinx 9
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "mypy>=1.13",  # to check the types of public names
    "setuptools>=70.1",  # to build the wheel that a test installs
    "webdataset>=1.0",  # to read packed images
    "pandas>=2",  # for measures as a DataFrame
    "nbclient>=0.10",  # to run the notebook
    "ipykernel>=6",  # kernel of the notebook
    *EXPORT,
    *TIMM,
    *HUB,
    *TEXT,
    *COCO,
    *COMPLETION,
    *DOCS,
    "selenium>=4.20",  # to open reports in a browser; needs Chromium and its driver
]

setup(
    name="crate_mm",
    version=VERSION,
    description="CRATE, the white-box transformer, to train, evaluate and look into",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="The crate_mm authors",
    license="MIT",
    keywords=["CRATE", "white-box transformer", "sparse rate reduction", "interpretability", "PyTorch", "MMEngine"],
    project_urls={"Paper": "https://arxiv.org/abs/2306.01129"},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    entry_points={"console_scripts": ["crate-mm = crate_mm.__main__:main"]},
    packages=[*find_packages(include=["crate_mm", "crate_mm.*"]), "crate_mm.configs"],
    package_dir={"crate_mm.configs": "configs"},
    package_data={
        "crate_mm": ["py.typed", "weights/*"],
        "crate_mm.configs": ["**/*.py"],
        "crate_mm.extras.report": ["assets/*"],
    },
    install_requires=[
        "torch>=2.6",  # in earlier releases, weights_only can still run code of a file (CVE-2025-32434)
        "torchvision>=0.21",
        "mmengine>=0.10.7",
        "lion-pytorch>=0.2.2",
        "einops>=0.8",
        "fvcore>=0.1.5.post20221221",
        "scikit-learn>=1.3",  # for Digits; installs SciPy, for Flowers102 labels and graph cuts
        "simplejpeg>=1.8",
        "safetensors>=0.4.3",
        "matplotlib>=3.7",
        "tensorboard>=2.14",
        "rich>=13",
    ],
    extras_require={
        "export": EXPORT,
        "timm": TIMM,
        "hub": HUB,
        "text": TEXT,
        "coco": COCO,
        "completion": COMPLETION,
        "all": [*EXPORT, *TIMM, *HUB, *TEXT, *COCO, *COMPLETION],
        "docs": [*DOCS, *HUB, *TIMM],
        "test": TEST,
        "dev": [*TEST, "ruff>=0.9", "pre-commit"],
    },
)
