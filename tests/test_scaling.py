"""`rlhf bench scaling`: the line, the picture, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import rlhf

from launch.cli import app
from launch.scaling import Fit
from rlhf.analysis.scaling_picture import draw_scaling
from rlhf.errors import ConfigError


def test_a_line_is_found_and_its_exponent() -> None:
    xs = [100.0, 200.0, 400.0, 1600.0]
    fit = Fit.through(xs, [0.5 + 0.01 * x for x in xs])
    assert (fit.fixed, fit.slope) == (pytest.approx(0.5), pytest.approx(0.01))
    assert fit.worst < 1e-9 and fit.exponent < 1
    assert Fit.through(xs, [0.01 * x for x in xs]).exponent == pytest.approx(1)
    assert Fit.through(xs, [1e-4 * x**2 for x in xs]).exponent == pytest.approx(2)
    assert Fit.through(xs, [1e-4 * x**2 for x in xs]).worst > 0.3  # a line it is not


def test_small_points_count_as_much_as_large_ones() -> None:
    assert Fit.through([1.0, 2.0, 1000.0], [1.1, 2.0, 1000.0]).worst < 0.06


def result() -> dict[str, Any]:
    points = [
        {
            "value": value,
            "tokens": 100 * value,
            "operations": 1e9 * value,
            "seconds": 0.1 * value,
            "phases": {"generation": 0.02 * value, "scoring": 0.03 * value, "training": 0.05 * value},
        }
        for value in (8, 16, 64)
    ]
    fit = {"fixed": 0.0, "slope": 1e-3, "worst": 0.0, "exponent": 1.0}
    over = {"fixed": 0.0, "slope": 1e-10, "worst": 0.0, "exponent": 1.0}
    sweeps = {
        "batch": {"points": points, "fit": fit, "axis": "tokens"},
        "response_length": {"points": points, "fit": fit, "axis": "tokens"},
        "size": {"points": points, "fit": over, "axis": "operations"},
    }
    return {"sweeps": sweeps}


def width(picture: Path) -> int:
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        return opened.size[0]


def test_the_picture_has_a_panel_for_each(tmp_path: Path) -> None:
    draw_scaling(result(), tmp_path / "all.png")
    draw_scaling({"sweeps": {"batch": result()["sweeps"]["batch"]}}, tmp_path / "one.png")
    assert width(tmp_path / "all.png") == pytest.approx(3 * width(tmp_path / "one.png"), abs=3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batches", "8", "wants two values"),
        ("--batches", "8,8", "each once"),
        ("--batches", "8,x", "whole numbers"),
        ("--lengths", "0,8", "whole numbers from 1"),
        ("--sizes", "2M,3M", "--size=3M: not known"),
        ("--dtype", "float16", "--dtype=float16: not known"),
        ("--output", "nowhere/picture.png", "its folder is not there"),
    ],
)
def test_wrong_options_are_one_line(option: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app(["bench", "scaling", option, value], standalone_mode=False)


@pytest.mark.services
@pytest.mark.soak
def test_each_load_is_measured_once(tmp_path: Path) -> None:
    small = ["--size", "2M", "--batch", "4", "--micro", "2", "--response-length", "8", "--updates", "1"]
    sweeps = ["--batches", "4,16", "--lengths", "8,32", "--sizes", "2M,15M"]
    done = rlhf("bench", "scaling", *small, *sweeps, "--json", "-o", "here.png", folder=tmp_path, seconds=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sweeps"]["batch"]["points"][0] == {**found["sweeps"]["size"]["points"][0], "value": 4}
    for sweep in found["sweeps"].values():
        first, last = sweep["points"]
        assert last["seconds"] > first["seconds"] and last["operations"] > first["operations"]
        assert sum(first["phases"].values()) == pytest.approx(first["seconds"], rel=0.1)
    assert width(tmp_path / "here.png") > 1000
