"""A bag through both stages, without ROS: augmented bag, video, contact sheet, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wristworld_ros.data.augment import AugmentedBagWriter
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames, WristTruth
from wristworld_ros.data.messages import decode_camera_info
from wristworld_ros.errors import BagError, CalibrationError, InvalidInputError
from wristworld_ros.evaluation.baselines import load_mean_image, true_condition
from wristworld_ros.evaluation.report import EpisodeReport
from wristworld_ros.evaluation.robots import robot_of
from wristworld_ros.generation import Generator
from wristworld_ros.generation.doubt import doubt_of
from wristworld_ros.provenance import provenance
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.resources import model_dir
from wristworld_ros.types import AnchorFrame, CameraModel, Doubt, Reconstruction, WristFrame

TRUE_INFO = "/wrist_true/camera_info"
#: Sides of the generated picture are multiples of this, and it has about this many pixels.
SIDE_STEP, PIXELS = 16, 128 * 128
#: Larger known wrist cameras are reduced to about ``PIXELS``.
LARGEST_SIDE = 256
#: Frames that mode ``chunk`` holds in memory together.
CHUNK_MEMORY = 128
MEAN_IMAGE = "mean_wrist.png"


@dataclass(frozen=True)
class RunOptions:
    """How to run a bag.

    Attributes:
        cameras: third-person cameras, all when None.
        pose_source: ``auto``, ``kinematic`` or ``learned``.
        steps, seed, mode: of the generator.
        model: folder of the weights, the shipped ones when None.
        backbone, backbone_weights: a large network for depth and cameras, and its weights' file;
            see ``Reconstructor.from_pretrained``.
        device: for torch.
        backend, strict: what runs the generator's networks (``Dispatcher``).
        wrist_camera_topic: camera_info of the wrist camera to synthesise.
        wrist_fov_y: its vertical field of view [rad], when there is no such topic.
        wrist_size: width and height of the generated picture [px].
        world_frame, wrist_frame: TF frames of the robot's base and of the wrist camera.
        slop_s: largest difference between the stamps of one frame [s].
        use_depth: give measured depth to the reconstruction too.
        instruction: instead of the one in the bag.
        mean_image: PNG with the mean wrist picture of the training data, for a baseline.
        compare: score against ``wrist_true`` where the bag has it.
        lpips: also LPIPS.
        overwrite: replace results in the output folder.
        refuse_below_coverage, refuse_beyond_domain: as of ``generation.doubt``; refused moments
            get no picture.
    """

    cameras: Sequence[str] | None = None
    pose_source: str = "auto"
    steps: int = 1
    seed: int = 0
    mode: str = "stream"
    model: Path | None = None
    backbone: str = "mini"
    backbone_weights: Path | None = None
    device: str = "cpu"
    backend: str = "torch"
    strict: bool = False
    wrist_camera_topic: str = ""
    wrist_fov_y: float | None = None
    wrist_size: tuple[int, int] | None = None
    world_frame: str = "base_link"
    wrist_frame: str = "wrist_camera_optical_frame"
    slop_s: float = 0.02
    use_depth: bool = False
    draw_robot: bool = True
    instruction: str | None = None
    mean_image: Path | None = None
    compare: bool = True
    lpips: bool = True
    overwrite: bool = False
    refuse_below_coverage: float = 0.0
    refuse_beyond_domain: float = 0.0


@dataclass(frozen=True)
class _Result:
    frame: AnchorFrame
    truth: WristTruth | None
    reconstruction: Reconstruction
    wrist: WristFrame | None
    doubt: Doubt | None


def run_bag(path: str | Path, out: str | Path, options: RunOptions) -> EpisodeReport:
    """Run a bag and write ``augmented.mcap``, ``virtual_wrist.mp4``, ``contact_sheet.png`` and
    ``metrics.json`` to ``out``; returns the report.

    Raises:
        BagError: no such bag or camera, results exist, or no frame could be made.
        CalibrationError: a camera_info is impossible, or a kinematic pose was asked for in vain.
        WeightsError: weights are missing or altered.
    """
    path, out = Path(path), Path(out)
    if (out / "augmented.mcap").exists() and not options.overwrite:
        raise BagError(f"{out} has an augmented.mcap already. Choose another folder, or overwrite.")
    with BagReader(path) as bag:
        return _run(bag, out, options)


def _run(bag: BagReader, out: Path, options: RunOptions) -> EpisodeReport:
    source = _frames(bag, options)
    robot = robot_of(source) if options.draw_robot else None
    reconstructor = Reconstructor.from_pretrained(
        options.model,
        pose_source=options.pose_source,
        device=options.device,
        robot=robot,
        backbone=options.backbone,
        backbone_weights=options.backbone_weights,
    )
    generator = Generator.from_pretrained(
        options.model,
        steps=options.steps,
        seed=options.seed,
        mode=options.mode,
        device=options.device,
        backend=options.backend,
        strict=options.strict,
    )
    record = provenance(
        seed=options.seed,
        steps=options.steps,
        mode=options.mode,
        pose_source=options.pose_source,
        model_id=generator.model_id,
        model_sha256={**reconstructor.sha256s, **generator.sha256s},
        bag=bag.path.name,
    )
    results = _generate(source, reconstructor, generator, options)
    first = next(results, None)
    if first is None:
        raise BagError(_why_empty(source))
    camera = first.reconstruction.condition.camera
    note = "calibrated" if first.frame.calibrated else "uncalibrated anchors"
    report = EpisodeReport(
        out,
        bag.path.stem,
        mean_image=_mean_image(options, camera),
        provenance=record,
        with_lpips=options.lpips,
        note=note,
    )
    refused: Counter[str] = Counter()
    doubted: Counter[str] = Counter()
    with (
        report,
        AugmentedBagWriter(
            bag, out / "augmented.mcap", record, overwrite=options.overwrite
        ) as augmented,
        tqdm(total=source.expected, unit="frame", desc=bag.path.stem) as progress,
    ):
        current: _Result | None = first
        while current is not None:
            stamp = current.frame.stamp_ns
            log_time = source.log_time_ns(stamp)
            augmented.add(log_time, current.reconstruction, current.wrist, current.doubt)
            if current.doubt is not None:
                counts = refused if current.doubt.refused else doubted
                counts[current.doubt.cause] += 1
            _report(report, current)
            progress.update()
            current = next(results, None)
    report.save(
        frames={
            "images_in": source.images,
            "frames_in": source.frames,
            "frames_out": report.frames,
            "frames_refused": dict(refused),
            "frames_doubted": dict(doubted),
            "images_dropped": source.drops,
        },
        wrist_camera={
            "K": camera.K.tolist(),
            "width": camera.width,
            "height": camera.height,
        },
        notes=source.notes,
        damage=bag.damage,
    )
    return report


def _why_empty(source: BagFrames) -> str:
    causes = {cause: n for cause, n in source.drops.items() if n}
    return (
        f"bag {source.bag.path}: no frame with all of {', '.join(source.cameras)} could be made of "
        f"{source.images} images; dropped {causes or 'none'}. Allow a larger --slop, or leave out "
        "the camera that has no images. " + " ".join(source.bag.damage)
    ).strip()


# --- frames ---------------------------------------------------------------------------------------


def _frames(bag: BagReader, options: RunOptions) -> BagFrames:
    """The bag's frames; with measured depth when there is any (it also serves a baseline)."""
    named = options.cameras
    has_depth = any(t.endswith("/depth/image_raw") for t in bag.topics)
    return BagFrames(
        bag,
        named,
        slop_s=options.slop_s,
        world_frame=options.world_frame,
        wrist_frame=options.wrist_frame,
        wrist_camera=_known_camera(bag, options),
        instruction=options.instruction,
        use_depth=options.use_depth or has_depth,
    )


def _known_camera(bag: BagReader, options: RunOptions) -> CameraModel | None:
    """Intrinsics of the wrist camera, from options or the bag; None when nothing says."""
    if options.wrist_fov_y is not None:
        width, height = options.wrist_size or _default_size(bag)
        return CameraModel.from_fov(options.wrist_fov_y, width, height)
    topic = options.wrist_camera_topic or (TRUE_INFO if TRUE_INFO in bag.topics else "")
    if not topic:
        return None
    if bag.msgtype(topic) != "sensor_msgs/msg/CameraInfo":
        raise BagError(f"'{topic}' is a {bag.msgtype(topic)}, not a camera_info topic.")
    for message in bag.messages([topic]):
        camera = decode_camera_info(message.decode(), topic)
        if camera is None:
            raise CalibrationError(
                f"{topic}: K is all zero, the wrist camera is not calibrated. Give --wrist-fov."
            )
        return camera.resized(*(options.wrist_size or _model_size(camera.width, camera.height)))
    raise BagError(f"topic '{topic}' has no message. Give --wrist-fov instead.")


def _model_size(width: int, height: int) -> tuple[int, int]:
    """Size to generate for a wrist camera: its own if the model takes it, else about ``PIXELS``."""
    fits = width % SIDE_STEP == 0 and height % SIDE_STEP == 0
    if fits and max(width, height) <= LARGEST_SIDE:
        return width, height
    scale = (PIXELS / (width * height)) ** 0.5 / SIDE_STEP
    return (
        max(1, round(width * scale)) * SIDE_STEP,
        max(1, round(height * scale)) * SIDE_STEP,
    )


def _default_size(bag: BagReader) -> tuple[int, int]:
    """128 x 128, or the aspect of the true wrist picture at as many pixels."""
    from wristworld_ros.data.messages import decode_compressed_image, decode_image

    for suffix, decode in (("", decode_image), ("/compressed", decode_compressed_image)):
        topic = f"/wrist_true/image_raw{suffix}"
        if topic in bag.topics:
            for message in bag.messages([topic]):
                height, width = decode(message.decode(), topic).shape[:2]
                return _model_size(width, height)
    return _model_size(128, 128)


# --- both stages ----------------------------------------------------------------------------------


def _generate(
    source: BagFrames, reconstructor: Reconstructor, generator: Generator, options: RunOptions
) -> Iterator[_Result]:
    waiting: list[_Result] = []
    for frame, truth in source.with_truth():
        given = _without_depth(frame) if not options.use_depth else frame
        if frame.wrist_camera is None and reconstructor.wrist_camera is None:
            _fix_camera(reconstructor, given, source.bag, options)
        reconstruction = reconstructor(given)
        found = doubt_of(
            reconstruction,
            refuse_below_coverage=options.refuse_below_coverage,
            refuse_beyond_domain=options.refuse_beyond_domain,
        )
        result = _Result(frame, truth if options.compare else None, reconstruction, None, found)
        if options.mode == "stream":
            if found is None or not found.refused:
                wrist = generator(reconstruction.condition, given)
                result = replace(result, wrist=wrist)
            yield result
            continue
        waiting.append(result)
        if len(waiting) == CHUNK_MEMORY:
            yield from _chunk(waiting, generator)
            waiting = []
    if waiting:
        yield from _chunk(waiting, generator)


def _chunk(waiting: list[_Result], generator: Generator) -> Iterator[_Result]:
    good = [r for r in waiting if r.doubt is None or not r.doubt.refused]
    conditions = [r.reconstruction.condition for r in good]
    views = iter(generator.chunk(conditions, [r.frame for r in good]))
    for result in waiting:
        refused = result.doubt is not None and result.doubt.refused
        yield result if refused else replace(result, wrist=next(views))


def _fix_camera(
    reconstructor: Reconstructor, frame: AnchorFrame, bag: BagReader, options: RunOptions
) -> None:
    """Estimate the wrist camera's field of view once: a camera does not change between frames."""
    estimated = reconstructor(frame).estimate.camera
    size = options.wrist_size or _default_size(bag)
    reconstructor.wrist_camera = CameraModel.from_fov(estimated.fov[1], *size)


def _without_depth(frame: AnchorFrame) -> AnchorFrame:
    return replace(frame, views=tuple(replace(v, depth=None) for v in frame.views))


def _report(report: EpisodeReport, result: _Result) -> None:
    reconstruction, truth, frame = result.reconstruction, result.truth, result.frame
    if result.wrist is None:
        return
    same_world = reconstruction.world_frame == frame.world_frame and frame.calibrated
    true_map = None
    if truth is not None and truth.T_world_camera is not None and same_world:
        camera = truth.camera or result.wrist.camera
        size = result.wrist.camera.width, result.wrist.camera.height
        true_map = true_condition(frame, truth.T_world_camera, camera.resized(*size))
    latency = {f"stage1_{k}": v for k, v in reconstruction.latency.items()}
    latency.update({f"stage2_{k}": v for k, v in result.wrist.latency.items()})
    report.add(
        frame,
        reconstruction.condition,
        result.wrist.image,
        result.wrist.confidence,
        T_world_wrist=reconstruction.estimate.T_world_wrist if same_world else None,
        source=reconstruction.estimate.source,
        truth=truth,
        true_map=true_map,
        latency=latency,
        score=result.wrist.score,
        domain_distance=reconstruction.estimate.domain_distance,
    )


def _mean_image(options: RunOptions, camera: CameraModel) -> Any:
    """The mean wrist picture that was asked for, or the one beside the weights, or None."""
    path = options.mean_image
    if path is None:
        path = (options.model or model_dir("mini")) / MEAN_IMAGE
        if not path.exists():
            return None
    try:
        return load_mean_image(path, camera.width, camera.height)
    except InvalidInputError as error:
        raise InvalidInputError(f"--mean-image: {error}") from error
