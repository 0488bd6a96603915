"""The name of the package on PyPI that has an imported module."""

from __future__ import annotations

# module -> package, where the names differ
PIP_NAMES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "git": "gitpython",
    "jwt": "pyjwt",
    "mpl_toolkits": "matplotlib",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skopt": "scikit-optimize",
    "umap": "umap-learn",
    "yaml": "PyYAML",
}


def pip_name(module: str) -> str:
    """Return what to `pip install` for an import of `module`."""
    top = module.partition(".")[0]
    return PIP_NAMES.get(top, top)
