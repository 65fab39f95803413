"""What holds for every test."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tensors are small: on a shared machine of few cores two threads wait for each other."""
    torch.set_num_threads(1)
