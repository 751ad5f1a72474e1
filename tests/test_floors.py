"""The floors of the house: who may import whom, checked in the syntax tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "fox.kernels": ROOT / "kernels",
    "fox.train": ROOT / "train",
    "fox.eval": ROOT / "eval",
    "fox": ROOT / "fox",
}
OPTIONAL = {
    "triton",
    "flash_attn",
    "transformers",
    "lm_eval",
    "matplotlib",
    "rouge_score",
    "zarr",
    "ray",
    "gymnasium",
    "ale_py",
    "pyboy",
    "pyspiel",
    "PIL",
    "wandb",
}
FORBIDDEN = {
    "fox.kernels": ["fox.config", "fox.layers", "fox.model", "fox.cache", "fox.train", "fox.eval"],
    "fox": ["fox.train", "fox.eval", "lightning"],
    "fox.train": ["fox.eval"],
    "fox.eval": ["fox.train"],
}


def imports(file):
    """Every imported module name, with whether it stands at module level."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, node in tree.body


def files():
    return [
        pytest.param(package, file, id=str(file.relative_to(ROOT)))
        for package, folder in SOURCES.items()
        for file in sorted(folder.rglob("*.py"))
    ]


@pytest.mark.parametrize(("package", "file"), files())
def test_no_module_imports_from_a_higher_floor(package, file):
    for name, _ in imports(file):
        for forbidden in FORBIDDEN[package]:
            assert name != forbidden, f"imports {name}"
            assert not name.startswith(f"{forbidden}."), f"imports {name}"


@pytest.mark.parametrize(("package", "file"), files())
def test_nothing_but_agents_imports_agents(package, file):
    if ROOT / "fox" / "agents" not in file.parents:
        assert not any(name.startswith("fox.agents") for name, _ in imports(file))


@pytest.mark.parametrize(("package", "file"), files())
def test_optional_packages_are_imported_where_they_are_used(package, file):
    top = {name.split(".")[0] for name, at_module_level in imports(file) if at_module_level}
    allowed = {"triton"} if ROOT / "kernels" / "flash" in file.parents else set()
    if file == ROOT / "fox" / "hf.py":
        allowed = {"transformers"}
    assert not top & (OPTIONAL - allowed)


def test_importing_fox_is_light():
    heavy = ["lightning", "datasets", "matplotlib", "transformers", "triton", "tensorboard"]
    code = f"import sys, fox; assert not set(sys.modules) & set({heavy}), set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
