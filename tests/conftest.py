"""One thread per test process: the machine may be shared, and pytest-xdist runs a process per core."""

import torch

torch.set_num_threads(1)
