"""Recordings with a wrist video: read, matched, and learned from by projection alone."""

import av
import numpy as np
import pytest
import torch

from wristworld_ros.data.simulation.bag import write_bag
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.correspondence import ExactSource, PairGeometry
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.reconstruction.pose_encoding import encode_pose, fov_from_intrinsics
from wristworld_ros.training.loop import LoopConfig
from wristworld_ros.training.wrist_video import (
    FROZEN,
    WristVideoLosses,
    evaluate_wrist_video,
    freeze_scene,
    predict,
    read_recording,
    sample_of,
    train_wrist_video,
    wrist_video_loss,
)
from wristworld_ros.weights import load_weights, read_config, save_weights

TINY = BackboneConfig(dim=24, pairs=1, heads=2, stem=(16, 16, 16), kept=(0,))
CPU = torch.device("cpu")
SOME = np.arange(2)


class Oracle:
    """Exact pairs of a simulated episode, moment by moment, as a matcher would give them."""

    def __init__(self, episode, anchors=None):
        self.episode, self.next, self.views = episode, 0, anchors

    def __call__(self, wrist, anchors, geometry=None):
        e, t = self.episode, self.next
        self.next += 1
        geometry = PairGeometry(
            torch.tensor(e.wrist_camera.K[None], dtype=torch.float32),
            torch.tensor(e.T_world_wrist[None, t], dtype=torch.float32),
            torch.tensor(np.stack([c.K for c in e.anchor_cameras])[None], dtype=torch.float32),
            torch.tensor(e.T_world_camera[None], dtype=torch.float32),
            torch.from_numpy(e.wrist_depth[None, t]),
            torch.from_numpy(e.anchor_depth[None, :, t]),
        )
        return ExactSource(grid=12)(wrist, anchors, geometry)


@pytest.fixture(scope="module")
def episode():
    return simulate_episode(
        0, "train", wrist_size=(64, 64), anchor_size=(128, 128), n_frames=2, shadows=False
    )


def write_folder(episode, folder):
    """The episode as people record it: one video per camera and nothing else."""
    folder.mkdir()
    for name, frames in (
        ("wrist", episode.wrist_rgb),
        *((f"exterior_{v}", rgb) for v, rgb in enumerate(episode.anchor_rgb)),
    ):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=5, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = *frames.shape[2:0:-1], "yuv420p"
            for rgb in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module")
def folder(episode, tmp_path_factory):
    return write_folder(episode, tmp_path_factory.mktemp("video") / "episode")


@pytest.fixture(scope="module")
def bag(episode, tmp_path_factory):
    return write_bag(episode, tmp_path_factory.mktemp("bag") / "episode.mcap")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Stage1Model(TINY)


@pytest.fixture(scope="module")
def recording(bag, episode):
    return read_recording(bag, Oracle(episode))


def test_a_folder_of_videos_has_pictures_and_pairs_only(folder, episode):
    recording = read_recording(folder, Oracle(episode), wrist_fov=1.0)
    assert recording.anchors.shape == (2, 3, 256, 256, 3)
    assert recording.anchor_K is None and recording.T_world_anchor is None
    assert recording.wrist_size == (64, 64)
    assert recording.wrist_K[1, 1] == pytest.approx(32 / np.tan(0.5))
    # The pictures are twice as large as they were recorded, and so are the pixels of the pairs.
    first = Oracle(episode)(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 3, 128, 128))
    np.testing.assert_allclose(recording.anchor_pixels[0], 2 * first.anchor[0], atol=1e-4)
    np.testing.assert_array_equal(recording.valid[0], first.valid[0])
    error = np.abs(recording.anchors[0, 1, 1::2, 1::2].astype(int) - episode.anchor_rgb[1, 0])
    assert error.mean() < 12  # lossy, but the same view of the same moment


def test_a_bag_also_has_its_calibration(recording, episode):
    np.testing.assert_allclose(recording.T_world_anchor[1], episode.T_world_camera, atol=1e-6)
    np.testing.assert_allclose(recording.wrist_K, episode.wrist_camera.K, atol=1e-4)
    expected = np.diag([2, 2, 1]) @ episode.anchor_cameras[2].K
    np.testing.assert_allclose(recording.anchor_K[0, 2], expected, atol=1e-3)


def test_stride_takes_fewer_moments(bag, episode):
    assert len(read_recording(bag, Oracle(episode), stride=2)) == 1


class _Nothing:
    def __call__(self, wrist, anchors, geometry=None):
        return ExactSource(grid=2)(
            wrist,
            anchors,
            PairGeometry(
                torch.eye(3)[None],
                torch.eye(4)[None],
                torch.eye(3).expand(1, anchors.shape[1], 3, 3),
                torch.eye(4).expand(1, anchors.shape[1], 4, 4),
                torch.zeros(1, *wrist.shape[-2:]),
                torch.zeros(1, anchors.shape[1], *anchors.shape[-2:]),
            ),
        )


def test_recordings_that_teach_nothing_are_refused_with_the_reason(folder, tmp_path):
    with pytest.raises(InvalidInputError, match=r"none of 2 moments.*no point of the wrist"):
        read_recording(folder, _Nothing())
    blind = tmp_path / "blind"
    blind.mkdir()
    (blind / "front.mp4").write_bytes((folder / "exterior_0.mp4").read_bytes())
    with pytest.raises(InvalidInputError, match="no wrist video"):
        read_recording(blind, _Nothing())
    with pytest.raises(BagError, match="does not exist"):
        read_recording(tmp_path / "missing", _Nothing())


def with_wrist(output, T_base_wrist, K):
    """The output with another wrist pose."""
    encoding = encode_pose(T_base_wrist, fov_from_intrinsics(K, 64, 64))
    return type(output)(**{**output.__dict__, "wrist": [encoding], "wrist_pose": encoding})


def true_output(model, recording, episode):
    """The model's output, but with true depth and wrist."""
    sample = sample_of(recording, SOME, CPU)
    with torch.no_grad():
        output = predict(model, sample)
    depth = torch.from_numpy(episode.anchor_depth.transpose(1, 0, 2, 3)[SOME])
    output = type(output)(**{**output.__dict__, "depth": depth})
    T = torch.tensor(episode.T_world_wrist[SOME], dtype=torch.float32)
    return with_wrist(output, T, sample.wrist_K), sample, T


def test_the_loss_is_least_at_the_true_pose(model, recording, episode):
    output, sample, T = true_output(model, recording, episode)
    weights = WristVideoLosses()
    at_truth, figures = wrist_video_loss(output, sample, weights)
    assert figures["pairs"] > 20 and figures["spc_depth"] == 0
    for axis in range(3):
        moved = T.clone()
        moved[:, axis, 3] += 0.02
        loss, _ = wrist_video_loss(with_wrist(output, moved, sample.wrist_K), sample, weights)
        assert loss > 2 * at_truth
    wide = sample.wrist_K * torch.tensor([0.9, 0.9, 1.0])[:, None]
    assert wrist_video_loss(with_wrist(output, T, wide), sample, weights)[0] > at_truth + 0.1


def test_the_scene_stays_and_the_wrist_learns(model, recording):
    freeze_scene(model)
    model.zero_grad()
    sample = sample_of(recording, SOME, CPU)
    wrist_video_loss(predict(model, sample), sample, WristVideoLosses())[0].backward()
    learned = {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert "wrist_head" in learned and not learned & set(FROZEN)
    assert set(FROZEN) < {name for name, _ in model.named_children()}


def test_training_moves_the_wrist_to_where_the_pairs_say(model, recording, episode, tmp_path):
    """From random weights, so that pose and projection are both far off at the start."""
    save_weights(tmp_path / "init", model, model.config_dict())
    loop = LoopConfig(steps=25, batch_size=2, warmup=2, learning_rate=3e-3, ema=0.5)
    scores = train_wrist_video(
        [recording], [recording], tmp_path / "work", tmp_path / "out", loop, tmp_path / "init"
    )
    trained = Stage1Model.from_config(read_config(tmp_path / "out")["config"])
    load_weights(tmp_path / "out", trained)
    assert scores["after"] == pytest.approx(
        evaluate_wrist_video(trained, [recording]), rel=0.1, abs=1.0
    )
    assert wrist_loss(trained, recording) < 0.5 * wrist_loss(model, recording)
    for name, value in trained.state_dict().items():
        if name.split(".")[0] in FROZEN:
            torch.testing.assert_close(value, model.state_dict()[name], atol=0, rtol=2**-7)


@torch.no_grad()
def wrist_loss(model, recording):
    sample = sample_of(recording, SOME, CPU)
    return wrist_video_loss(predict(model.eval(), sample), sample, WristVideoLosses())[0].item()
