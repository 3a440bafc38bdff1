"""The model on which backends are tried."""

from mean_colour import PATH, mean_colour


def test_the_tiny_model_is_the_one_that_its_generator_makes():
    assert PATH.read_bytes() == mean_colour().SerializeToString()
