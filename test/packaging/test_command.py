"""The command ``wristworld``: dispatch, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from wristworld_ros import __version__
from wristworld_ros.cli import main as command
from wristworld_ros.errors import WristWorldError

VERB = """
from wristworld_ros.errors import InvalidInputError
HELP = "a verb of the tests"
def add_arguments(parser):
    parser.add_argument("--do", default="nothing")
def run(args):
    if args.do == "fail":
        raise InvalidInputError("size 0 x 0 px; need at least 1 x 1")
    if args.do == "interrupt":
        raise KeyboardInterrupt
    if args.do == "import":
        import a_package_that_nobody_has
    return 7 if args.do == "seven" else 0
"""


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """A verb of its own, called `try`."""
    (tmp_path / "verb_of_the_tests.py").write_text(VERB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(command.VERBS, "try", "verb_of_the_tests")
    yield "try"
    sys.modules.pop("verb_of_the_tests", None)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_verb(arguments, capsys) -> None:
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in command.VERBS)


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from wristworld_ros.cli.main import main; main(['--help']);"
        "print([n for n in ('torch', 'numpy', 'mujoco', 'rclpy') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", command.VERBS.values())
def test_every_verb_has_the_three_parts(module) -> None:
    assert find_spec(module) is not None
    verb = import_module(module)
    assert command.verb_help(module) == verb.HELP != ""
    assert callable(verb.add_arguments) and callable(verb.run)


def test_version(capsys) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"wristworld {__version__}\n"


def test_unknown_verb_names_the_known_ones(capsys) -> None:
    assert command.main(["dmeo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no verb 'dmeo'")
    assert "demo, simulate, import" in error


def test_the_exit_code_is_that_of_the_verb(verb) -> None:
    assert command.main([verb]) == 0
    assert command.main([verb, "--do", "seven"]) == 7


def test_expected_errors_are_one_line(verb, capsys) -> None:
    assert command.main([verb, "--do", "fail"]) == 2
    assert capsys.readouterr().err == "error: size 0 x 0 px; need at least 1 x 1\n"


def test_expected_errors_show_their_trace_when_asked(verb, monkeypatch) -> None:
    monkeypatch.setenv("WRISTWORLD_TRACEBACK", "1")
    with pytest.raises(WristWorldError, match="0 x 0 px"):
        command.main([verb, "--do", "fail"])


def test_interrupt(verb) -> None:
    assert command.main([verb, "--do", "interrupt"]) == 130


def test_a_missing_package_is_named_with_its_cure(verb, capsys) -> None:
    assert command.main([verb, "--do", "import"]) == 2
    error = capsys.readouterr().err
    assert "needs the Python package 'a_package_that_nobody_has'. Install it" in error


def test_wrong_options_exit_2(verb, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([verb, "--no-such-option"])
    assert stop.value.code == 2
    assert "usage: wristworld try" in capsys.readouterr().err


def test_info_reports_this_installation(capsys) -> None:
    import numpy

    assert command.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["wristworld_ros"] == __version__
    assert report["libraries"]["numpy"] == numpy.__version__
    assert "torch" in report["backends"]
    assert report["ros"]["messages built"] == (find_spec("wristworld_ros.msg") is not None)


def test_info_finds_altered_weights(tmp_path, monkeypatch, capsys) -> None:
    import torch

    from wristworld_ros.weights import save_weights

    monkeypatch.setenv("WRISTWORLD_MODELS", str(tmp_path))
    save_weights(tmp_path / "tiny" / "part", torch.nn.Linear(4, 4), {"size": 4})
    assert command.main(["info", "--json", "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["tiny"]["part"]["intact"] is True
    path = tmp_path / "tiny" / "part" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert command.main(["info", "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "intact" in line][-1] == ["intact", "no"]
