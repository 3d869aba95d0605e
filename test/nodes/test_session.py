"""A small bag through the real nodes: played, recorded, every frame accounted for; and ``up``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ros_bench import CAMERAS, EPOCH_NS, FAST, HEIGHT, NODES, PATIENCE_S, WIDTH, Bench

from wristworld_ros.data import messages
from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.errors import WristWorldError
from wristworld_ros.evaluation.report import EpisodeReport
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.nodes import live_report
from wristworld_ros.nodes.graph import build_graph
from wristworld_ros.nodes.session import Session, SessionResult, isolated_environment
from wristworld_ros.types import CameraModel

pytestmark = [pytest.mark.ros, pytest.mark.slow]
COUNT, PERIOD_NS = 6, 300_000_000


def write_small_bag(path: Path, camera: CameraModel) -> Path:
    """Two cameras, a still hand and a true wrist camera, at 3.3 Hz."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(30, 220, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    wrist = CameraModel.from_fov(1.2, 64, 48)
    down = [1.0, 0.0, 0.0, 0.0]
    with BagWriter(path) as bag:
        for name in (*CAMERAS, "wrist_true"):
            bag.add_topic(f"/{name}/image_raw", "sensor_msgs/msg/Image", "image")
            bag.add_topic(f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", "image")
        bag.add_topic("/tf", "tf2_msgs/msg/TFMessage", "tf")
        bag.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", "tf_static")
        static = [
            messages.transform_fields(
                from_quaternion([0.5, 0.1 * i, 0.6], down), EPOCH_NS, "base_link", frame
            )
            for i, frame in enumerate(f"{c}_optical_frame" for c in CAMERAS)
        ]
        mount = from_quaternion([0.0, 0.0, 0.05], [0.0, 0.0, 0.0, 1.0])
        static.append(
            messages.transform_fields(mount, EPOCH_NS, "hand", "wrist_camera_optical_frame")
        )
        bag.write("/tf_static", messages.tf_fields(static), EPOCH_NS)
        for i in range(COUNT):
            stamp = EPOCH_NS + i * PERIOD_NS
            hand = from_quaternion([0.5, 0.0, 0.4], down)
            bag.write(
                "/tf",
                messages.tf_fields([messages.transform_fields(hand, stamp, "base_link", "hand")]),
                stamp,
            )
            for name in (*CAMERAS, "wrist_true"):
                frame = "wrist_camera" if name == "wrist_true" else name
                model = wrist if name == "wrist_true" else camera
                image = messages.image_fields(pixels, "rgb8", stamp, f"{frame}_optical_frame")
                info = messages.camera_info_fields(model, stamp, f"{frame}_optical_frame")
                bag.write(f"/{name}/camera_info", info, stamp)
                bag.write(f"/{name}/image_raw", image, stamp)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory, anchor_camera: CameraModel) -> Path:
    return write_small_bag(tmp_path_factory.mktemp("bag") / "small.mcap", anchor_camera)


def session(tmp_path: Path, weights: Path, **parameters: object) -> Session:
    extra = {n: {**FAST, "model_path": str(weights)} for n in NODES}
    extra["reconstruction_node"].update(
        pose_source="kinematic", wrist_camera_info_topic="/wrist_true/camera_info", **parameters
    )
    return Session(
        build_graph({"cameras": ",".join(CAMERAS)}, extra),
        [f"/{c}/image_raw" for c in CAMERAS],
        [f"/{c}/camera_info" for c in CAMERAS],
        tmp_path / "nodes.log",
        say=lambda text: None,
    )


@pytest.fixture(scope="module")
def result(bag: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> SessionResult:
    run = session(tmp_path_factory.mktemp("run"), tiny_models)
    return run.run(bag, start_timeout_s=PATIENCE_S, drain_timeout_s=PATIENCE_S)


def test_every_set_of_images_is_accounted_for(result: SessionResult) -> None:
    assert result.drained and set(result.exit_codes.values()) == {0}
    counts = live_report.account(result.frames)
    for node in NODES:
        assert counts[node]["in"] == COUNT
        assert counts[node]["out"] + sum(counts[node]["dropped"].values()) == COUNT
    total = live_report.through_both(counts, *NODES)
    assert total["in"] == COUNT == total["out"] + sum(total["dropped"].values())
    assert total["out"] >= 1


def test_augmented_bag_and_report(bag: Path, result: SessionResult, tmp_path: Path) -> None:
    with BagReader(bag) as source:
        recorded = live_report.only_virtual(
            result.recorded, source.types, "wrist_camera_virtual_optical_frame"
        )
        out = tmp_path / "augmented.mcap"
        live_report.write_augmented(source, out, recorded, result.times, {"seed": "0"})
        originals = [(m.topic, m.log_time_ns, m.sequence, bytes(m.raw)) for m in source.messages()]
        frames = live_report.live_frames(recorded, source.types, "")
        report = EpisodeReport(tmp_path / "report", "small", with_lpips=False)
        with report:
            live = live_report.report_live(report, BagFrames(source), frames, result.times)
        metrics = report.save(live=live)
    with BagReader(out) as augmented:
        kept, generated = [], {}
        for m in augmented.messages():
            if m.connection.metadata.get("wristworld") == "generated":
                generated.setdefault(m.topic, []).append(m)
            else:
                kept.append((m.topic, m.log_time_ns, m.sequence, bytes(m.raw)))
        assert kept == originals
        pictures = live_report.account(result.frames)["generation_node"]["out"]
        assert len(generated["/wrist/image_raw"]) == pictures == len(frames)
        virtual = [t.child_frame_id for m in generated["/tf"] for t in m.decode().transforms]
        assert set(virtual) == {"wrist_camera_virtual_optical_frame"}
        for m in generated["/wrist/image_raw"]:
            stamp = messages.stamp_to_ns(m.decode().header.stamp)
            assert (stamp - EPOCH_NS) % PERIOD_NS == 0
            assert stamp < m.log_time_ns  # it was recorded when it came
        assert augmented.metadata[0][0] == "wristworld_generated"
        assert augmented.metadata[0][1]["seed"] == "0"
    assert metrics["frames_out"] == len(frames)
    assert metrics["pose_error"]["mm"]["max"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < metrics["live"]["latency_s"]["p50"] < PATIENCE_S
    assert (tmp_path / "report" / "virtual_wrist.mp4").stat().st_size > 0


def test_weights_that_are_not_there_end_the_session_with_their_name(
    bag: Path, tmp_path: Path
) -> None:
    run = session(tmp_path, tmp_path / "nowhere")
    with pytest.raises(WristWorldError, match=r"no weights at .*nowhere"):
        run.run(bag, start_timeout_s=PATIENCE_S)


def test_up_starts_nodes_in_a_namespace_and_passes_the_signal_on(
    tiny_models: Path, tmp_path: Path
) -> None:
    params = tmp_path / "p.yaml"
    params.write_text(
        "/**/generation_node:\n  ros__parameters:\n"
        f"    model_path: {tiny_models}\n    diagnostics_period: 0.2\n"
    )
    command = [sys.executable, "-m", "wristworld_ros.cli.main", "up", "--namespace", "left",
               "--nodes", "generation_node", "--params-file", str(params)]  # fmt: skip
    with isolated_environment() as environment:
        process = subprocess.Popen(command, env={**os.environ, **environment})
        bench = Bench(environment)
        try:
            bench.wait(
                "the node active",
                lambda: (
                    (s := bench.statuses.get("left/generation_node: lifecycle"))
                    and s.message == "active"
                ),
            )
            assert ("generation_node", "/left") in bench.node.get_node_names_and_namespaces()
            assert bench.node.count_publishers("/left/wrist/image_raw") == 1
        finally:
            bench.close()
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE_S)
    assert code == 0


def test_a_wrong_parameter_ends_the_process_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wristworld_ros.nodes.generation_node",
               "--ros-args", "-p", "steps:=0"]  # fmt: skip
    with isolated_environment() as environment:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "steps" in errors[0] and "100" in errors[0]
