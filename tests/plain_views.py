"""Frames and scaled images in plain NumPy, which share nothing with the package: what its views are compared with."""

import av
import numpy as np


def all_frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def scaled(frame, short):
    """Bilinear by hand, pixel centres at halves, no anti-aliasing."""
    height, width = frame.shape[:2]
    new_h, new_w = (short, int(width / height * short)) if height <= width else (int(height / width * short), short)
    ys = np.clip((np.arange(new_h) + 0.5) * height / new_h - 0.5, 0, height - 1)
    xs = np.clip((np.arange(new_w) + 0.5) * width / new_w - 0.5, 0, width - 1)
    y0, x0 = np.floor(ys).astype(int), np.floor(xs).astype(int)
    y1, x1 = np.minimum(y0 + 1, height - 1), np.minimum(x0 + 1, width - 1)
    fy, fx = (ys - y0)[:, None, None], (xs - x0)[None, :, None]
    picture = frame / 255.0
    top = picture[y0][:, x0] * (1 - fx) + picture[y0][:, x1] * fx
    return top * (1 - fy) + (picture[y1][:, x0] * (1 - fx) + picture[y1][:, x1] * fx) * fy
