"""Parameters: one declaration, and everything that follows from it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.nodes.parameters import (
    PARAMETERS,
    GenerationParameters,
    ReconstructionParameters,
    check_value,
    from_mapping,
    parameters_markdown,
    parameters_page,
    parameters_yaml,
)
from wristworld_ros.reconstruction.pretrained_backbone import BACKBONES
from wristworld_ros.reconstruction.reconstructor import POSE_SOURCES
from wristworld_ros.resources import config_file

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_file_is_the_declaration() -> None:
    text = config_file("virtual_wrist.yaml").read_text()
    assert text == parameters_yaml(), "python -m wristworld_ros.nodes.parameters writes it anew"
    document = yaml.safe_load(text)
    for node, cls in PARAMETERS.items():
        values = document[f"/**/{node}"]["ros__parameters"]
        assert from_mapping(cls, values) == cls()
        assert list(values) == [f.name for f in dataclasses.fields(cls)]


@pytest.mark.parametrize("node", PARAMETERS)
def test_every_parameter_is_complete(node: str) -> None:
    cls = PARAMETERS[node]
    hints = get_type_hints(cls)
    table = parameters_markdown(node)
    for field in dataclasses.fields(cls):
        meta = field.metadata
        assert meta["description"].endswith("."), field.name
        assert f"| `{field.name}` |" in table and meta["description"] in table
        assert check_value(cls, field.name, getattr(cls(), field.name)) == getattr(
            cls(), field.name
        )
        if hints[field.name] in (int, float):
            assert meta["limits"], f"{field.name} needs a range"


def test_the_page_is_the_declaration() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text()
    assert page == parameters_page(), "python -m wristworld_ros.nodes.parameters page > the file"


def test_markdown_of_an_unknown_node_names_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="reconstruction_node, generation_node"):
        parameters_markdown("policy_node")


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_outside_the_range_are_refused(value: float) -> None:
    if 0.0 <= value <= 1.0:
        assert check_value(GenerationParameters, "refuse_below_coverage", value) == value
    else:
        with pytest.raises(InvalidInputError, match="refuse_below_coverage"):
            check_value(GenerationParameters, "refuse_below_coverage", value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mode", "fast", "need one of stream, chunk"),
        ("steps", 0, "need 1 to 100"),
        ("steps", 2.5, "need a int"),
        ("steps", True, "need a int"),
        ("cameras", "front", "need a list of str"),
        ("cameras", [], "0 elements; need 1 to 8"),
        ("cameras", ["a", "a"], "have to differ"),
        ("cameras", ["a b"], "has to match"),
        ("cameras", [f"c{i}" for i in range(9)], "9 elements"),
        ("device", "tpu", "has to match"),
        ("sync_slop", math.nan, "finite"),
        ("sync_slop", "1", "need a float"),
        ("stepz", 1, "has no parameter 'stepz'; it has"),
    ],
)
def test_wrong_values_are_refused_with_the_reason(name: str, value: object, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_value(GenerationParameters, name, value)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_whole_numbers_are_numbers() -> None:
    assert check_value(ReconstructionParameters, "wrist_fov_y", 1) == 1.0


def test_pose_sources_are_those_of_the_core() -> None:
    field = {f.name: f for f in dataclasses.fields(ReconstructionParameters)}["pose_source"]
    assert field.metadata["choices"] == POSE_SOURCES


def test_choices_are_those_of_the_reconstructor() -> None:
    fields = {f.name: f.metadata for f in dataclasses.fields(PARAMETERS["reconstruction_node"])}
    assert tuple(fields["backbone"]["choices"]) == BACKBONES
    assert set(fields["pose_source"]["choices"]) == set(POSE_SOURCES)
