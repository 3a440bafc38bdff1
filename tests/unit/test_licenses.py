"""Nothing comes in whose licence nobody has looked at."""

import pytest
from licenses import ALLOWED, BEGIN, PAGE, licenses, parts, table


def test_every_package_of_the_locks_has_a_licence_that_is_allowed():
    refused = {name: found for name, found in licenses().items() if not parts(found) <= ALLOWED}
    assert set(refused.values()) <= {"NVIDIA"}, refused


def test_the_page_lists_them_all():
    assert PAGE.read_text().partition(BEGIN)[2] == table(), "run tests/helpers/licenses.py"


@pytest.mark.parametrize("expression", ["GPL-3.0-only", "MIT AND AGPL-3.0-only", "unknown"])
def test_another_licence_would_be_noticed(expression):
    assert not parts(expression) <= ALLOWED
