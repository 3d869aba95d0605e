"""The gallery: chosen by rule, complete, small, and the page says what the pictures are."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from wristworld_ros.cli.main import main
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.failure import Diagnosis
from wristworld_ros.evaluation.gallery import (
    RESULTS,
    Clip,
    Moment,
    chosen_clips,
    chosen_failures,
    gallery_page,
    make_clips,
    strip,
    write_gallery,
)

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"left_out": 0.75, "colour": 0.25}


def clip(seed: int, *psnr: float, geometry: str = "robot") -> Clip:
    rng = np.random.default_rng(seed)
    panels = {
        name: rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        for name in ("anchor", "condition map", "generated", "confidence", "true")
    }
    found = Diagnosis("left_out", SHARES, 0.7)
    moments = []
    for i, p in enumerate(psnr):
        shown = {**panels, "generated": panels["generated"] // (1 + i)}  # an animation that moves
        moments.append(Moment(shown, p, p - 1, 0.5, 0.8, (1.0, 0.5), found))
    return Clip(seed, geometry, "lift it", tuple(moments))


CLIPS = [clip(1, 20, 22), clip(2, 15, 27), clip(3, 18, 18), clip(4, 25, 26)]


def test_clips_are_chosen_by_their_mean():
    chosen = chosen_clips(CLIPS)
    assert {rank: c.seed for rank, c in chosen.items()} == {"best": 4, "median": 1, "worst": 3}
    with pytest.raises(InvalidInputError, match="2 clips; .* at least 3"):
        chosen_clips(CLIPS[:2])


def test_failures_are_the_worst_frames_one_of_an_episode():
    more = [*CLIPS, clip(2, 14, 30, geometry="calibrated")]
    failures = [(c.seed, c.geometry, i) for c, i in chosen_failures(more, 3)]
    assert failures == [(2, "calibrated", 0), (3, "robot", 0), (1, "robot", 0)]


def test_a_strip_shows_all_panels():
    picture = strip(CLIPS[0].moments[0])
    assert picture.shape[1] > 5 * 128 and picture.shape[0] > 128
    assert strip(CLIPS[0].moments[0], head=False).shape[0] < picture.shape[0]
    titled = strip(CLIPS[0].moments[0], title="best: 1")
    assert (titled != picture)[:, :134].any() and (titled == picture)[:, 134:].all()


def test_a_gallery_is_written_anew_with_its_page(tmp_path):
    (tmp_path / "old.webp").touch()
    command = {"command": "wristworld gallery --seeds 1:5"}
    document = write_gallery(CLIPS, tmp_path, command)
    assert json.loads((tmp_path / RESULTS).read_text()) == document
    files = {p.name for p in tmp_path.glob("*.webp")}
    assert files == {
        "robot.webp", "robot_best.webp", "robot_median.webp", "robot_worst.webp",
        *(f"failure_{i}.webp" for i in range(1, 5)),
    }  # fmt: skip
    with PILImage.open(tmp_path / "robot_best.webp") as animation:
        assert animation.n_frames == 2
    page = gallery_page(document, "pictures")
    assert all(f"(pictures/{name})" in page for name in files)
    assert "wristworld gallery --seeds 1:5" in page
    assert "**Worst** of 4: episode 3, “lift it”, 18.0 dB (inpainted splat 17.0)" in page
    assert "did not trust its depth there and left it out (75% of the squared error).**" in page
    assert "Other causes: colour 25%" in page


def test_clips_come_from_the_middle_of_the_episode():
    [made] = make_clips("val", [100_000], ["kinematic"], length=1)
    assert (made.seed, made.geometry, len(made.moments)) == (100_000, "kinematic", 1)
    moment = made.moments[0]
    assert moment.psnr > 12 and moment.pose_error[0] < 0.01 and 0 < moment.coverage < 1
    assert sum(moment.diagnosis.shares.values()) == pytest.approx(1)
    assert list(moment.panels)[1:] == ["condition map", "generated", "confidence", "true"]


def test_what_makes_no_gallery_is_refused(tmp_path, capsys):
    for words in (["--seeds", "200000:200002"], ["--length", "0"]):
        assert main(["gallery", "--out", str(tmp_path), *words]) == 2
        assert "at least 3 episodes, and a clip one frame" in capsys.readouterr().err


def test_the_gallery_in_docs_is_whole_and_small():
    folder = ROOT / "docs" / "gallery"
    document = json.loads((folder / RESULTS).read_text())
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert page == gallery_page(document, "gallery"), document["provenance"]["command"]
    named = {f"{g}_{rank}.webp" for g in document["clips"] for rank in ("best", "median", "worst")}
    named |= {f"{g}.webp" for g in document["clips"]} | {f["file"] for f in document["failures"]}
    assert named == {p.name for p in folder.glob("*.webp")}
    assert sum(p.stat().st_size for p in folder.iterdir()) < 3e6
