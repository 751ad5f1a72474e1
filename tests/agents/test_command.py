"""A program of commands: mistakes are one line, presets are files, Ctrl-C is 130."""

import importlib
import sys

import pytest

from fox.agents.command import preset_path, run_program

GREET = """
def greet(name: str, times: int = 1) -> None:
    \"\"\"Say hello.

    Args:
        name: to whom.
        times: how often.
    \"\"\"
    if name == "nobody":
        raise ValueError("there is\\nnobody")
    if name == "ctrl-c":
        raise KeyboardInterrupt
    print(f"hello {name}" * times)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Runs a program that has one command, and the preset `twice`."""
    for folder in ("greeter", "greeter/configs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "greeter" / "greet.py").write_text(GREET)
    (tmp_path / "greeter" / "configs" / "twice.yaml").write_text("times: 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield lambda *arguments: run_program("fox-greet", "greeter", "FRONT\n", ["greet"], arguments)
    for name in [name for name in sys.modules if name.partition(".")[0] == "greeter"]:
        del sys.modules[name]


def refused(capsys, program, *arguments):
    with pytest.raises(SystemExit) as stop:
        program(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_without_a_command_it_prints_the_front_page(program, capsys, arguments):
    program(*arguments)
    assert capsys.readouterr().out == "FRONT\n"


def test_arguments_are_options_and_what_has_no_default_needs_no_name(program, capsys):
    program("greet", "fox", "--times", "2")
    assert capsys.readouterr().out == "hello foxhello fox\n"


def test_a_preset_is_a_file_of_options_that_the_command_line_overrides(program, capsys):
    for given in (["--config", "preset:twice"], ["--config=preset:twice"]):
        program("greet", *given, "fox")
        assert capsys.readouterr().out == "hello foxhello fox\n"
    program("greet", "--config", "preset:twice", "--times", "1", "fox")
    assert capsys.readouterr().out == "hello fox\n"


def test_a_text_that_holds_a_presets_prefix_is_no_preset(program):
    assert preset_path("greeter", "--name=my preset:twice") == "--name=my preset:twice"


def test_mistakes_are_one_line_and_status_2(program, capsys):
    line = refused(capsys, program, "sing")
    assert line == "fox-greet: error: expected one of greet, but got 'sing'"
    line = refused(capsys, program, "greet", "--config", "preset:thrice", "fox")
    assert line == "fox-greet: error: expected a preset among twice, but got 'thrice'"
    assert refused(capsys, program, "greet", "nobody") == "fox-greet: error: there is nobody"
    line = refused(capsys, program, "greet", "fox", "--tims", "2")
    assert line.startswith("fox-greet: error: ")
    assert line.endswith("; see fox-greet greet --help")


def test_ctrl_c_is_status_130(program):
    with pytest.raises(SystemExit) as stop:
        program("greet", "ctrl-c")
    assert stop.value.code == 130


def test_without_arguments_those_of_the_process_are_run(program, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fox-greet", "greet", "fox"])
    run_program("fox-greet", "greeter", "FRONT\n", ["greet"], None)
    assert capsys.readouterr().out == "hello fox\n"
