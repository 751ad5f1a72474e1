"""Packaging: the wheel, the sdist and the editable install hold the whole package under fox/."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]
FOLDER = {"fox": "fox", "kernels": "fox/kernels", "train": "fox/train", "eval": "fox/eval"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A clean copy of what the repository tracks or would track."""
    copy = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def expected_modules(source):
    return {
        f"{package}/{file.relative_to(source / folder).as_posix()}"
        for folder, package in FOLDER.items()
        for file in (source / folder).rglob("*.py")
    }


def run(*command, cwd):
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "-s", "--no-isolation", "-o", str(out), cwd=source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the sdist, as an installer without a wheel would."""
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    unpacked = next(path for path in out.iterdir() if path.is_dir())
    run(sys.executable, "-m", "build", "-w", "--no-isolation", "-o", str(out), cwd=unpacked)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_outside_fox(source, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {name for name in names if name.endswith(".py")}
    assert modules == expected_modules(source)
    outside = {name for name in names if not name.startswith("fox/") and ".dist-info/" not in name}
    assert not outside


def test_the_wheel_holds_configs_type_marker_and_licence(source, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"fox/train/configs/{f.name}" for f in (source / "train/configs").glob("*.yaml")}
    assert configs
    assert configs | {"fox/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_packages_hold_our_own_game_and_no_other(source, sdist, wheel):
    """A game is known by its suffix, or by the console's maker's logo that most images carry."""
    folder = "fox/agents/realtime/envs/rom"
    with tarfile.open(sdist) as archive, zipfile.ZipFile(wheel) as packed:
        files = {}
        for member in filter(tarfile.TarInfo.isfile, archive):
            name = member.name.partition("/")[2]
            files["sdist", name] = archive.extractfile(member).read()
        files |= {("wheel", name): packed.read(name) for name in packed.namelist()}
    ours = [f"{folder}/{name}" for name in ("catch.gb", "catch.c", "crt0.s", "build.py")]
    for package in ("sdist", "wheel"):
        assert {(package, name) for name in ours} <= set(files)
    image = (source / folder / "catch.gb").read_bytes()
    suffixes = (".gb", ".gbc", ".gba", ".nes", ".sfc", ".smc", ".md", ".bin", ".a26", ".rom")
    for (_, name), content in files.items():
        if name.endswith(suffixes) and not name.endswith("README.md"):
            assert name == f"{folder}/catch.gb"
            assert content == image
        assert bytes.fromhex("ceed6666cc0d000b") not in content


def test_the_wheel_runs_from_a_folder_of_its_own(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", str(site), str(wheel), cwd=tmp_path)
    code = (
        "import fox, fox.kernels, fox.train, fox.eval, torch;"
        f"assert fox.__file__.startswith({str(site)!r}), fox.__file__;"
        "model = fox.FoxForCausalLM(fox.FoxConfig("
        "vocab_size=8, hidden_size=16, num_hidden_layers=1, num_heads=2));"
        "print(model(torch.zeros(1, 3, dtype=torch.int64)).logits.shape)"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, 3, 8])" in result.stdout


def test_an_editable_install_sees_the_four_folders(source, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    # The new environment borrows the dependencies of this one, behind its own packages.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    (Path(site.strip()) / "zz_parent.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, *offline, "--editable", str(source), cwd=tmp_path)
    names = "fox, fox.kernels, fox.train, fox.eval"
    code = f"import {names}; print(*(m.__path__[0] for m in ({names})), sep='\\n')"
    found = run(python, "-c", code, cwd=tmp_path).split()
    assert found == [str(source / folder) for folder in ("fox", "kernels", "train", "eval")]


def test_a_checkout_that_is_not_installed_says_so(source, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(source / "fox", checkout / "fox")
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)];"
        "import fox"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True
    )
    assert "this looks like a checkout that is not installed: run pip install -e ." in result.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_flash_attn_is_never_a_dependency_of_the_plain_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any(re.match("flash|triton", name) for name in project["dependencies"])
    others = {k: v for k, v in project["optional-dependencies"].items() if k != "cuda"}
    assert not any("flash" in name for names in others.values() for name in names)
    assert any(name.startswith("flash-attn") for name in project["optional-dependencies"]["cuda"])
