"""The description of the graph, which the launch file and ``wristworld up`` share."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from wristworld_ros.cli.main import main
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.nodes.graph import ARGUMENTS, NODES, build_graph
from wristworld_ros.nodes.process import PROFILE_VARIABLES, dds_environment


def test_defaults_start_both_nodes_with_the_shipped_file() -> None:
    specs = build_graph()
    assert [s.full_name for s in specs] == ["/reconstruction_node", "/generation_node"]
    for spec in specs:
        assert spec.params_file.name == "virtual_wrist.yaml"
        assert spec.parameters == {"use_sim_time": False}
        command = spec.command()
        assert command[:3] == [sys.executable, "-m", f"wristworld_ros.nodes.{spec.executable}"]
        assert command[3] == "--ros-args"


def test_arguments_reach_the_nodes_that_have_the_parameter() -> None:
    first, second = build_graph(
        {
            "cameras": "front, side",
            "namespace": "/left/",
            "mode": "chunk",
            "pose_source": "kinematic",
            "use_sim_time": "true",
        },
        {"generation_node": {"seed": 7}},
    )
    assert first.full_name == "/left/reconstruction_node"
    assert first.parameters == {
        "use_sim_time": True, "cameras": ["front", "side"], "pose_source": "kinematic",
    }  # fmt: skip
    assert second.parameters == {
        "use_sim_time": True, "cameras": ["front", "side"], "mode": "chunk", "seed": 7,
    }  # fmt: skip
    text = shlex.join(second.command())
    assert "__ns:=/left" in text and "'cameras:=[front, side]'" in text and "seed:=7" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"camera": "front"}, "unknown argument camera"),
        ({"mode": "fast"}, "need one of stream, chunk"),
        ({"device": "tpu"}, "parameter device is 'tpu'"),
        ({"cameras": "a,a"}, "have to differ"),
        ({"nodes": "policy_node"}, "need some of reconstruction_node, generation_node"),
        ({"use_sim_time": "maybe"}, "need one of true, false"),
        ({"params_file": "/nowhere.yaml"}, "/nowhere.yaml does not exist"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        build_graph(arguments)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("/**/generation_node: {ros__parameters: {steps: 0}}", "steps is 0; need 1 to 100"),
        ("/**/generation_node: {ros__parameters: {step: 1}}", "has no parameter 'step'"),
        ("/**/generation_node: {steps: 1}", "no 'ros__parameters'"),
        ("generation_node: {ros__parameters: {steps: 1}}", "would be ignored"),
        ("/**/generation_node: [", "not valid YAML"),
        ("- 1", "no node names"),
    ],
)
def test_wrong_parameter_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInputError) as caught:
        build_graph({"params_file": str(path), "namespace": "left"})
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_up_prints_what_it_would_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--cameras", "front", "--nodes", "generation_node", "--print"]) == 0
    printed = shlex.split(capsys.readouterr().out)
    assert printed == build_graph({"cameras": "front", "nodes": NODES[1]})[0].command()


def test_up_refuses_wrong_arguments_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("error: parameter device is 'tpu'")


def test_the_dds_profile_is_set_unless_the_user_has_one() -> None:
    found = dds_environment({})
    assert set(found) == set(PROFILE_VARIABLES)
    profile = Path(found[PROFILE_VARIABLES[0]]).read_text()
    assert "<segment_size>33554432</segment_size>" in profile
    assert "127.0.0.1" not in profile and "interfaceWhiteList" not in profile
    for variable in PROFILE_VARIABLES:
        assert dds_environment({variable: "/mine.xml"}) == {}


@pytest.mark.ros
@pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason="no launch_ros here")
def test_the_launch_file_starts_the_same_graph(root: Path) -> None:
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction

    path = root / "launch" / "virtual_wrist.launch.py"
    spec = importlib.util.spec_from_file_location("virtual_wrist_launch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    entities = module.generate_launch_description().entities
    declared = [e for e in entities if isinstance(e, DeclareLaunchArgument)]
    assert [e.name for e in declared] == [a.name for a in ARGUMENTS]
    context = LaunchContext()
    for entity in declared:
        entity.execute(context)
    context.launch_configurations.update(cameras="front,side", namespace="left", mode="chunk")
    (start,) = [e for e in entities if isinstance(e, OpaqueFunction)]
    nodes = start.execute(context)
    assert [n.node_package for n in nodes] == ["wristworld_ros"] * 2
    assert [n.node_executable for n in nodes] == list(NODES)


def test_the_launch_file_holds_no_logic_of_its_own(root: Path) -> None:
    text = (root / "launch" / "virtual_wrist.launch.py").read_text()
    assert "build_graph(" in text and "eval(" not in text
    config = yaml.safe_load((root / "config" / "virtual_wrist.yaml").read_text())
    assert {key.rsplit("/", 1)[-1] for key in config} == set(NODES)
