"""Writing mp4 videos whose pictures keep their stamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import Image, check_image

if TYPE_CHECKING:
    from typing_extensions import Self

#: Time base of the pictures: milliseconds.
_BASE = Fraction(1, 1000)


class VideoWriter:
    """H.264 video (MPEG-4 where that is not built in); complete, or not there under its name.

    Args:
        path: ``.mp4`` file; replaced when it exists.
        quality: constant rate factor of H.264, smaller is better.
    """

    def __init__(self, path: str | Path, quality: int = 18) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._quality = quality
        self._container: av.container.OutputContainer | None = None
        self._stream: av.video.stream.VideoStream | None = None
        self._size = (0, 0)
        self._first = 0
        self._last = -1

    def add(self, image: Image, stamp_ns: int) -> None:
        """Append a picture; all have one size, and stamps grow.

        Raises:
            InvalidInputError: another size than before.
        """
        check_image(image, "video frame")
        # yuv420p needs even sides
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        size = (image.shape[1], image.shape[0])
        if self._stream is None:
            self._open(size)
            self._first = stamp_ns
        if size != self._size:
            raise InvalidInputError(f"video of {self._size} px got a picture of {size} px.")
        assert self._stream is not None and self._container is not None
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.time_base = _BASE
        self._last = frame.pts = max(round((stamp_ns - self._first) / 1e6), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def _open(self, size: tuple[int, int]) -> None:
        self._size = size
        self._container = av.open(str(self._partial), "w", format="mp4")
        has_h264 = "libx264" in av.codecs_available
        self._stream = self._container.add_stream("libx264" if has_h264 else "mpeg4", rate=30)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _BASE
        if has_h264:
            self._stream.options = {"crf": str(self._quality), "preset": "veryfast"}
        else:
            self._stream.bit_rate = 8_000_000

    def close(self) -> None:
        """Finish the file; without any picture there is none."""
        if self._container is None or self._stream is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        self._partial.replace(self.path)

    def abort(self) -> None:
        """Close without finishing; nothing stays."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
