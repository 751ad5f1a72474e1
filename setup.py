"""The folder -> package mapping; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

FOLDER = {"fox": "fox", "fox.kernels": "kernels", "fox.train": "train", "fox.eval": "eval"}

setup(
    package_dir=FOLDER,
    packages=[
        name
        for package, folder in FOLDER.items()
        for name in (package, *(f"{package}.{sub}" for sub in find_packages(folder)))
    ],
    package_data={"": ["py.typed", "*.yaml", "*.gb", "*.c", "*.s"]},
)
