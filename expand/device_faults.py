"""The meaning of errors of torch and CUDA: lack of memory, or a GPU that this process cannot use any more.

Not every version of torch and not every library under it has exception classes for them, so texts decide too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from expand.errors import DeviceFault

WAY_OUT = ("look at nvidia-smi and the system's log, take another GPU (CUDA_VISIBLE_DEVICES=1), or use "
           "--device cpu")
"""The advice for a GPU that fails repeatedly."""

NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
             "could not create a primitive", "could not create a memory object", "could not execute a primitive",
             "unable to find an engine")
"""Texts of errors without a class of their own. The three of oneDNN ("could not ...") and that of cuDNN's engines may
have other reasons too: smaller batches are then tried in vain, down to a single clip."""
MAYBE_NO_MEMORY = ("CUDNN_STATUS_NOT_INITIALIZED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""Texts of CUDA's libraries, both if they lack memory and if the GPU failed."""
FAULT = re.compile(
    r"CUDA (driver )?error|Triton Error \[CUDA\]|device-side assert|illegal memory access|uncorrectable ECC|"
    r"unspecified launch failure|CU(DNN|BLAS)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR|EXECUTION_FAILED|MAPPING_ERROR)|"
    r"Offset increment outside graph capture|stream is capturing|captures_underway", re.IGNORECASE)
"""Texts of errors after which a process's CUDA context is unusable, or may be: after an illegal access every further
call fails, a library's included, and a failed recording can leave torch in the middle of it."""


def lacks_memory(error: BaseException) -> bool:
    """Return True if `error` is a lack of memory: Python's, torch's, oneDNN's, or that of a library of CUDA."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in (*NO_MEMORY, *MAYBE_NO_MEMORY))


def is_device_fault(error: BaseException) -> bool:
    """Return True if, after `error`, this process cannot use its GPU any more, so that another process must resume. For
    errors that may also be a lack of memory (`MAYBE_NO_MEMORY`), callers try smaller batches first."""
    if not isinstance(error, RuntimeError):
        return False
    if lacks_memory(error) and not any(words in str(error) for words in MAYBE_NO_MEMORY):
        return False
    return type(error).__name__ == "AcceleratorError" or FAULT.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or repr(error)).splitlines()[0]


@contextmanager
def faults_explained() -> Iterator[None]:
    """Raise `DeviceFault` in place of torch's own error if this process cannot use the GPU any more."""
    try:
        yield
    except RuntimeError as error:
        if not is_device_fault(error):
            raise
        raise DeviceFault(f"the GPU failed ({first_line(error)})",
                          fix=f"start it again; if it fails again, {WAY_OUT}") from error
