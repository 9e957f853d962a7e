"""What the errors of torch and CUDA mean: memory that did not suffice, or a GPU that this process cannot use any more.

Neither has a kind of its own in every version of torch and in every library under it, so texts decide too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from expand.errors import DeviceFault

WAY_OUT = ("look at nvidia-smi and the system's log, take another GPU (CUDA_VISIBLE_DEVICES=1), or use "
           "--device cpu")
"""What helps where a GPU fails again and again."""

NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
             "could not create a primitive", "could not create a memory object", "could not execute a primitive",
             "unable to find an engine")
"""What errors without a kind of their own say. The three of oneDNN ("could not ...") and cuDNN's engines may have other
reasons too: a smaller batch is then tried in vain, down to a single clip."""
MAYBE_NO_MEMORY = ("CUDNN_STATUS_NOT_INITIALIZED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""What CUDA's libraries say where there is no memory for their own, and where the GPU failed."""
FAULT = re.compile(
    r"CUDA (driver )?error|Triton Error \[CUDA\]|device-side assert|illegal memory access|uncorrectable ECC|"
    r"unspecified launch failure|CU(DNN|BLAS)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR)|"
    r"Offset increment outside graph capture|stream is capturing|captures_underway", re.IGNORECASE)
"""What is said where a process's CUDA context is beyond use, or may be: after an illegal access every further call
fails, a library's included, and a recording that failed can leave torch in the midst of it."""


def lacks_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice: Python's, torch's, oneDNN's, or that of a library of CUDA."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in (*NO_MEMORY, *MAYBE_NO_MEMORY))


def is_device_fault(error: BaseException) -> bool:
    """Whether `error` says that this process cannot use its GPU any more, so that only another one can go on. Where it
    may be a lack of memory as well (`MAYBE_NO_MEMORY`), smaller batches are to be tried first."""
    if not isinstance(error, RuntimeError):
        return False
    if lacks_memory(error) and not any(words in str(error) for words in MAYBE_NO_MEMORY):
        return False
    return type(error).__name__ == "AcceleratorError" or FAULT.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """What `error` says, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextmanager
def faults_explained() -> Iterator[None]:
    """Raises `DeviceFault` in place of torch's own error where the GPU is beyond use for this process."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_fault(error):
            raise
        raise DeviceFault(f"the GPU failed ({first_line(error)})",
                          fix=f"start it again; where it fails again, {WAY_OUT}") from error
