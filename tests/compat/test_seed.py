import random

import numpy as np
import pytest
import torch

import workbench as wb


def test_the_same_seed_draws_the_same():
    def draws():
        wb.set_seed(11)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert draws() == draws()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7", 1 << 32], ids=str)
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*; it must be a whole number from 0 to 4294967295"):
        wb.set_seed(seed)
