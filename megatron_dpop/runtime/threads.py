"""Keeps OpenMP's threads on a CPU to the thread that trains."""

import ctypes
import sys
from pathlib import Path

import torch


def reserve_threads() -> None:
    """Makes the calling thread the only one whose tensor operations use several OpenMP threads.

    GNU's OpenMP gives each thread that runs a parallel operation a team of its own, and counts them together: once
    there are more than processors, waiting threads no longer spin but sleep, and every operation of a step begins and
    ends with a wake-up. One large copy in a thread of gloo was enough for that, and cost a step on two cores a sixth.
    `torch.set_num_threads` sets the number for threads that are yet to start; OpenMP and MKL know the caller's own.
    """
    threads = torch.get_num_threads()
    if threads == 1 or sys.platform != "linux" or not torch.backends.openmp.is_available():
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    torch.set_num_threads(1)
    library.omp_set_num_threads(threads)
    if torch.backends.mkl.is_available():
        library.MKL_Set_Num_Threads_Local(threads)
