"""Images become requests that fit."""

import numpy as np
import pytest
from unreadable import file_in_a_closed_folder, unreadable_paths

from irv2.client.wire import bytes_per_image, split_into_requests, wire_image
from irv2.errors import ImageError, ImageReason
from irv2.v1.classifier_pb2 import ClassifyRequest, Limits


@pytest.mark.parametrize(
    ("shape", "max_message_bytes"),
    [((1, 1, 3), 51), ((1, 1, 3), 1_000), ((150, 90, 3), 82_000), ((600, 700, 3), 2_600_000)],
)
def test_no_request_is_larger_than_a_message_may_be(shape, max_message_bytes):
    limits = Limits(max_message_bytes=max_message_bytes, max_images=64)
    image = np.zeros(shape, np.uint8)
    for source in (image, image.tobytes()):
        for images in split_into_requests([source] * 70, limits):
            sent = [wire_image(each, bytes_per_image(limits)) for each in images]
            request = ClassifyRequest(images=sent, top_k=2**32 - 1)
            assert request.ByteSize() <= max_message_bytes


def test_images_that_cannot_be_read_are_grouped_and_refused_one_by_one(tmp_path):
    limits = Limits(max_message_bytes=2**20, max_images=3)
    unreadable = unreadable_paths(tmp_path)
    with file_in_a_closed_folder() as closed:
        images = [*unreadable, closed]
        requests = list(split_into_requests(images, limits))
        assert [len(request) for request in requests] == [3, 3, 2]
        for image in images:
            with pytest.raises(ImageError) as raised:
                wire_image(image, bytes_per_image(limits))
            assert (raised.value.what, raised.value.reason) == (image, ImageReason.UNREADABLE)
