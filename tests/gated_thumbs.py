"""The service of examples/thumbs.py, where images that say so wait at a gate first; see test_thumbs.py."""

from __future__ import annotations

import json
import os

import jobs
from examples import thumbs

MARK = b"\0wait at "
"""Between an image and the latch and the gate that are meant."""

thumbnail = thumbs.thumbnail


def thumbnail_at_gate(image: bytes) -> bytes:
    """Tell the process id and wait, if that is wished for, and make a thumbnail."""
    image, _, places = image.partition(MARK)
    if places:
        jobs.tell_and_wait(*json.loads(places))
    return thumbnail(image)


if __name__ == "__main__":
    thumbs.thumbnail = thumbnail_at_gate
    for name, value in json.loads(os.environ["THUMBS_SETTINGS"]).items():
        setattr(thumbs, name, value)
    thumbs.main()
