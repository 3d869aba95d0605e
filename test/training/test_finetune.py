"""The station model: geometry, training, confidence, and the verb on a simulated station."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.placing import place_recording, read_station
from wristworld_ros.calibration.recordings import read_recording
from wristworld_ros.cli.main import main
from wristworld_ros.data.simulation.bag import write_bag
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.errors import CalibrationError, InvalidInputError, WeightsError
from wristworld_ros.evaluation.station import evaluate_station, nearest_frames, station_sheet
from wristworld_ros.generation.detail import RIGHT
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.generation.station import (
    FAR_M,
    StationConfig,
    StationModel,
    load_station,
    save_station,
    station_input,
    station_pictures,
)
from wristworld_ros.generation.station_episode import make_episode, output_camera
from wristworld_ros.reconstruction.calibration_file import PlacedCamera, StationCalibration
from wristworld_ros.training.finetune import (
    FinetuneConfig,
    fit_trust,
    prepare,
    similarity,
    station_loss,
    varied,
)
from wristworld_ros.training.loop import LoopConfig, train

SIZE = (48, 48)
STILL = FinetuneConfig(shift_m=0, turn_deg=0, colour=0, view_colour=0, drop_view=0)


@pytest.fixture(scope="module")
def simulated():
    return simulate_episode(
        0, "train", wrist_size=(64, 64), anchor_size=(96, 96), n_anchors=2, n_frames=10,
        shadows=False,
    )  # fmt: skip


def calibration_of(e):
    cameras = {
        n: PlacedCamera(c, T)
        for n, c, T in zip(e.anchor_names, e.anchor_cameras, e.T_world_camera, strict=True)
    }
    return StationCalibration(e.T_hand_wrist, e.wrist_camera, cameras)


@pytest.fixture(scope="module")
def episode(simulated):
    e = simulated
    views = dict(zip(e.anchor_names, e.anchor_rgb, strict=True))
    closed = 1 - e.gripper_width / e.gripper_width.max()
    return make_episode("one", views, calibration_of(e), e.T_world_wrist, closed, e.wrist_rgb, SIZE)


def part(episode, frames, name):
    """Some moments of an episode, as one of its own."""
    return replace(
        episode, name=name, views=episode.views[:, frames], gripper=episode.gripper[frames],
        T_base_wrist=episode.T_base_wrist[frames], wrist=episode.wrist[frames],
    )  # fmt: skip


def network(simulated, **sizes):
    torch.manual_seed(0)
    model = StationModel(StationConfig(*SIZE, **{"widths": (16, 24, 32, 40), **sizes}))
    model.fit_wrist(output_camera(simulated.wrist_camera, *SIZE))
    return model


def test_planes_are_looked_up_where_the_rays_cut_them(simulated, episode):
    """Pictures whose colours are their own pixels' places tell where they were looked up."""
    model = network(simulated, heights=(0.0, 0.1))
    H, W = episode.views.shape[2:4]
    v, u = np.mgrid[:H, :W] + 0.5
    places = torch.from_numpy(np.stack([u / W, v / H, 0 * u])).float()
    x = station_input(episode, np.array([4]))
    x = x._replace(views=places.expand(1, 2, 3, H, W))
    colour, shown, feature = model.look_up(x, torch.zeros(2, 1, H, W))
    assert colour.shape == (1, 2, 2, 3, 48, 48) and feature.shape == (1, 2, 2, 1, 48, 48)
    checked = 0
    for row, column in ((5, 40), (24, 24), (40, 10), (30, 33)):
        ray = model.rays[row, column].double().numpy()
        T = episode.T_base_wrist[4]
        way = T[:3, :3] @ ray
        for plane, height in enumerate((0.0, 0.1)):
            far = (height - T[2, 3]) / way[2]
            if not 0.03 < far < FAR_M:
                continue
            place = T[:3, 3] + far * way
            for view in range(2):
                seen = episode.T_view_base[view] @ [*place, 1]
                pixel = episode.K[view] @ (seen[:3] / seen[2])
                inside = seen[2] > 0.02 and (pixel[:2] > 0).all() and (pixel[:2] < [W, H]).all()
                assert shown[0, plane, view, 0, row, column] == inside
                if (pixel[:2] > 1).all() and (pixel[:2] < [W - 1, H - 1]).all():
                    found = colour[0, plane, view, :2, row, column].numpy() * [W, H]
                    np.testing.assert_allclose(found, pixel[:2], atol=0.01)
                    checked += 1
    assert checked >= 6


def test_training_learns_the_station_and_confidence_is_fitted(simulated, episode, tmp_path):
    seen, unseen = part(episode, np.arange(0, 10, 2), "seen"), part(episode, [1, 5, 7], "unseen")
    model = network(simulated)
    prepare(model, [seen])
    before = evaluate_station([station_pictures(model, seen)], [seen], [seen])["all"]
    loop = LoopConfig(steps=40, batch_size=4, learning_rate=3e-3, warmup=5, ema=0.9, seed=0)
    compute = station_loss([seen], 4, STILL, LPIPS())
    model.load_state_dict(train(model, compute, tmp_path / "work", loop).state)
    made = station_pictures(model, seen)
    after = evaluate_station([made], [seen], [seen])["all"]
    assert after["station"]["psnr"] > before["station"]["psnr"] + 3
    assert after["station"]["psnr"] > after["mean_image"]["psnr"] + 1
    assert after["station"]["lpips"] < after["mean_image"]["lpips"]
    assert after["nearest_frame"]["psnr"] > 60  # the frame itself

    model.trust.copy_(torch.tensor(fit_trust(model, [unseen])))
    pictures, stated = station_pictures(model, unseen)
    off = np.abs(np.stack(pictures).astype(float) - unseen.wrist).mean(3) / 255
    assert stated.mean() == pytest.approx((off < RIGHT).mean(), abs=0.03)

    save_station(tmp_path / "station", model, {})
    again, trust = station_pictures(load_station(tmp_path / "station"), unseen)
    np.testing.assert_array_equal(np.stack(again), np.stack(pictures))
    np.testing.assert_allclose(trust, stated, atol=1e-6)
    weights = tmp_path / "station" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError):
        load_station(tmp_path / "station")
    sheet = station_sheet([made], [seen], rows=2)
    assert sheet.shape == (2 * 48, 5 * 48, 3)


def test_the_hands_pictures_are_means_by_gripper(simulated, episode):
    ends = part(episode, [0, 1, 2, 3], "ends")
    ends = replace(ends, gripper=np.array([0.0, 0.0, 1.0, 1.0]))
    model = network(simulated)
    prepare(model, [ends])
    for row, frames in enumerate(([0, 1], [2, 3])):
        expected = ends.wrist[frames].astype(float).mean(0) / 255
        np.testing.assert_allclose(model.still[row, :3].permute(1, 2, 0), expected, atol=1e-5)
    prepare(model, [replace(ends, gripper=np.zeros(4))])
    assert torch.equal(model.still[0], model.still[1])


def test_variation_changes_light_alike_and_drops_views(episode):
    x = station_input(episode, np.arange(6))
    x = x._replace(views=torch.full_like(x.views, 0.5))
    truth = torch.full((6, 3, 48, 48), 0.5)
    light = replace(STILL, colour=0.08)
    changed, target = varied(x, truth, light, torch.Generator().manual_seed(0))
    expected = target[:, None, :, :1, :1].expand_as(changed.views)
    torch.testing.assert_close(changed.views, expected)
    assert target.std() > 0.01
    assert torch.equal(changed.T_base_wrist, x.T_base_wrist)
    changed, target = varied(x, truth, replace(STILL, drop_view=1), torch.Generator())
    black = (changed.views == 0).all(-1).all(-1).all(-1)
    assert black.sum(1).tolist() == [1] * 6 and torch.equal(target, truth)
    moved, _ = varied(x, truth, replace(STILL, shift_m=0.01), torch.Generator().manual_seed(1))
    shift = (moved.T_base_wrist - x.T_base_wrist)[:, :3, 3].norm(dim=1)
    assert 0.003 < shift.mean() < 0.04


def test_similarity_is_the_metric(episode):
    from wristworld_ros.evaluation.metrics import ssim

    pair = torch.from_numpy(episode.wrist[:2]).permute(0, 3, 1, 2).float() / 255
    value = similarity(pair[:1], pair[1:])
    assert float(value) == pytest.approx(ssim(episode.wrist[0], episode.wrist[1]), abs=0.02)
    assert float(similarity(pair, pair)) == pytest.approx(1)


def test_the_nearest_training_frame(episode):
    training = part(episode, np.arange(0, 10, 3), "training")
    near = nearest_frames(part(episode, [6, 0], "asked"), [training])
    np.testing.assert_array_equal(near, training.wrist[[2, 0]])


def test_what_does_not_fit_is_refused(simulated, episode):
    e, model = simulated, network(simulated)
    views = dict(zip(e.anchor_names, e.anchor_rgb, strict=True))
    known = calibration_of(e)
    with pytest.raises(InvalidInputError, match=r"gripper of shape \(10,\) from 0 to 2"):
        make_episode("bad", views, known, e.T_world_wrist, np.linspace(0, 2, 10), None, SIZE)
    unknown = StationCalibration(known.mount, known.wrist_camera, {})
    with pytest.raises(CalibrationError, match="not in the calibration.*wristworld calibrate"):
        make_episode("bad", views, unknown, e.T_world_wrist, None, None, SIZE)
    with pytest.raises(InvalidInputError, match="size 50 x 48 px: sides must be multiples of 8"):
        output_camera(e.wrist_camera, 50, 48)
    with pytest.raises(InvalidInputError, match="wrist camera of 64 x 64 px for a model of 48"):
        model.fit_wrist(e.wrist_camera)
    with pytest.raises(InvalidInputError, match="no wrist pictures"):
        prepare(model, [replace(episode, wrist=None)])
    one = replace(episode, name="two", views=episode.views[:1])
    with pytest.raises(InvalidInputError, match="two has 1 fixed cameras, one 2"):
        prepare(model, [episode, one])
    with pytest.raises(InvalidInputError, match="1 fixed cameras for a station model of 2"):
        model(station_input(one, np.arange(2)))


@pytest.fixture(scope="module")
def station(simulated, tmp_path_factory):
    """Three bags of one station, and what `calibrate --json` would say of it."""
    folder = tmp_path_factory.mktemp("station")
    bags = [write_bag(simulated, folder / f"{n}.mcap") for n in ("a", "b", "c")]

    def entry(camera, T, **more):
        turn = Rotation.from_matrix(T[:3, :3]).as_rotvec()
        pose = {"rotation_vector_rad": turn.tolist(), "translation_m": T[:3, 3].tolist()}
        return {"K": camera.K.tolist(), "D": [], "latency_s": 0.0, "poses": [pose], **more}

    e, places = simulated, {"a": 0, "b": 0}
    document = {
        "wrist": entry(e.wrist_camera, e.T_hand_wrist),
        "fixed": {
            n: entry(c, T, place=places)
            for n, c, T in zip(e.anchor_names, e.anchor_cameras, e.T_world_camera, strict=True)
        },
    }
    path = folder / "station.json"
    path.write_text(json.dumps(document))
    return folder, bags, path


def test_cameras_are_placed_in_old_and_new_recordings(simulated, station):
    _, bags, path = station
    document = read_station(path)
    recordings = [read_recording(b) for b in bags]
    for recording, how in zip(recordings[::2], ("as calibrated", "as in a"), strict=True):
        calibration, poses, said = place_recording(document, recording, recordings[:2], (64, 64))
        assert how in said
        for name, T in zip(simulated.anchor_names, simulated.T_world_camera, strict=True):
            np.testing.assert_allclose(calibration.cameras[name].T_base_camera, T, atol=1e-6)
        np.testing.assert_allclose(poses, simulated.T_world_wrist, atol=1e-5)


def test_the_verb(station, tmp_path, capsys):
    _, bags, path = station
    arguments = [
        "finetune", bags[0], bags[1], "--hold-out", bags[2], "--calibration", path, "--size", "48",
        "--steps", "3", "--batch-size", "2", "--work", tmp_path / "work", "--out", tmp_path / "out",
        "--json", tmp_path / "scores.json", "--picture", tmp_path / "sheet.png",
    ]  # fmt: skip
    arguments = [str(a) for a in arguments]
    assert main(arguments) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["trained_on"] == ["a", "b"] and scores["frames"] == {"c": 10}
    assert scores["all"]["nearest_frame"]["psnr"] > 60
    assert 3 < scores["all"]["station"]["psnr"] < 40
    assert load_station(tmp_path / "out").config.width == 48
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    capsys.readouterr()
    assert main([*arguments[:3], "--hold-out", str(bags[0]), *arguments[5:]]) == 2
    assert "not unique" in capsys.readouterr().err
    missing = [str(path) + "x" if a == str(path) else a for a in arguments]
    assert main(missing) == 2
    assert "cannot be read" in capsys.readouterr().err
