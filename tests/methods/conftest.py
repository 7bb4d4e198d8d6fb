"""All tests of methods run torch with one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only wait for each other in matrices as small as these, and sums may differ with their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
