"""Memory that is exhausted is told as such, in the words of each library; nothing else is."""

from __future__ import annotations

import errno
import subprocess

import pytest

from ml_experiments.execution.failures import classify
from ml_experiments.execution.hints import SHARED_MEMORY_HINT, Hints
from ml_experiments.execution.worker.death import describe_death_in_run
from ml_experiments.runs.result import ErrorKind
from ml_experiments.runs.spec import RunSpec

GPU, HOST, OTHER = ErrorKind.CUDA_OOM, ErrorKind.HOST_OOM, ErrorKind.EXPERIMENT
SPEC = RunSpec(run_id="r", experiment="job:run", config={}, seed=1, created_at="")

TEXTS = [
    # torch and the CUDA driver
    (GPU, "CUDA out of memory. Tried to allocate 8.13 GiB (GPU 0; 10.76 GiB total capacity)"),
    (GPU, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    (GPU, "CUDA driver error: out of memory"),
    (GPU, "cuda runtime error (2) : out of memory at /pytorch/aten/src/THC/THCStorage.cu:58"),
    (GPU, "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY"),
    (GPU, "cuMemAlloc failed: out of memory"),
    (GPU, "cudaErrorMemoryAllocation: out of memory"),
    (GPU, "HIP out of memory. Tried to allocate 2.00 GiB"),
    (GPU, "MPS backend out of memory (MPS allocated: 8.0 GB)"),
    # the libraries of NVIDIA
    (GPU, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (GPU, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    (GPU, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    (GPU, "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    (GPU, "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    (GPU, "cuFFT error: CUFFT_ALLOC_FAILED"),
    (
        GPU,
        "NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled cuda error, NCCL version 2.18.1\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
        "Cuda failure 'out of memory'",
    ),
    (GPU, "ncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc 6291456 bytes"),
    # JAX and TensorFlow
    (GPU, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes."),
    (GPU, "RESOURCE_EXHAUSTED: Out of memory allocating 20029400304 bytes."),
    (GPU, "Resource exhausted: Out of memory while trying to allocate 24 bytes."),
    (
        GPU,
        "OOM when allocating tensor with shape[16,112,112,147] and type float on "
        "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
    ),
    (
        HOST,
        "OOM when allocating tensor with shape[160000,16000] and type float on "
        "/job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu",
    ),
    # host memory
    (
        HOST,
        "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 132426121216 bytes. Error code 12 (Cannot allocate memory)",
    ),
    (HOST, "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory"),
    (HOST, "std::bad_alloc"),
    (HOST, "DataLoader worker (pid 46794) is killed by signal: Killed. "),
    (HOST, "process 0 terminated with signal SIGKILL"),
    (
        HOST,
        "A worker process managed by the executor was unexpectedly terminated. This could be "
        "caused by a segmentation fault while calling the function or by an excessive memory usage "
        "causing the Operating System to kill the worker.\n\n"
        "The exit codes of the workers are {SIGKILL(-9)}",
    ),
    (
        HOST,
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent last):\n"
        '  File "train.py", line 3, in work\n    x = bytearray(10**14)\nMemoryError\n',
    ),
    # other errors, whose texts are alike
    (OTHER, "DataLoader worker (pid 325) is killed by signal: Segmentation fault. "),
    (OTHER, "DataLoader worker (pid 325) is killed by signal: Terminated. "),
    (OTHER, "DataLoader worker (pid(s) 3216) exited unexpectedly"),
    (OTHER, "process 1 terminated with signal SIGABRT"),
    (OTHER, "The exit codes of the workers are {SIGSEGV(-11)}"),
    (OTHER, "CUDA error: an illegal memory access was encountered"),
    (OTHER, "CUDA error: device-side assert triggered"),
    (OTHER, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    (OTHER, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    (OTHER, "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    (OTHER, "NCCL error: unhandled cuda error\nLast error:\nCuda failure 'invalid argument'"),
    (
        OTHER,
        "<_Rendezvous of RPC that terminated with (StatusCode.RESOURCE_EXHAUSTED, Resource "
        "has been exhausted (e.g check quota).)>",
    ),
    (OTHER, "429 RESOURCE_EXHAUSTED. You exceeded your current quota"),
    (OTHER, "out of resource: shared memory, Required: 131072, Hardware limit: 101376."),
    (OTHER, "libgomp.so.1: cannot allocate memory in static TLS block"),
    (
        OTHER,
        "unable to open shared memory object </torch_5962_408180057>: Too many open files (24)",
    ),
]
SHARED_MEMORY = [
    "DataLoader worker (pid 46794) is killed by signal: Bus error. It is possible that "
    "dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
    "unable to write to file </torch_31911_952036340_6686>: No space left on device (28)",
    "unable to mmap 1024 bytes from file </torch_1_2_3>: Cannot allocate memory (12)",
    "unable to open shared memory object </torch_5962_4081> in read-write mode: No space left on "
    "device (28)",
    "ncclSystemError: System call failed.\nLast error:\nError while creating shared memory segment "
    "/dev/shm/nccl-WU88OE (size 9637888), error: No space left on device (28)",
]


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_a_librarys_words_for_exhausted_memory_are_known(kind: ErrorKind, text: str) -> None:
    error = RuntimeError(text)
    assert classify(error) is kind
    outer = RuntimeError("the step failed")
    outer.__cause__ = error
    assert classify(outer) is kind


@pytest.mark.parametrize("text", SHARED_MEMORY)
def test_full_shared_memory_has_its_own_hint(text: str) -> None:
    described = Hints().describe(RuntimeError(text), SPEC)
    assert (described.kind, described.hint) == (HOST, SHARED_MEMORY_HINT)


def test_a_full_disk_and_full_shared_memory_are_told_apart() -> None:
    memory = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/psm_1")
    disk = OSError(errno.ENOSPC, "No space left on device", "/data/model.bin")
    assert Hints().describe(memory, SPEC).hint == SHARED_MEMORY_HINT
    assert classify(memory) is HOST
    assert classify(disk) is ErrorKind.INFRASTRUCTURE


@pytest.mark.parametrize(
    "error",
    [MemoryError(), MemoryError("std::bad_alloc"), OSError(errno.ENOMEM, "Cannot allocate memory")],
)
def test_what_python_raises_for_want_of_memory_is_known(error: BaseException) -> None:
    assert classify(error) is HOST


@pytest.mark.parametrize("kind", [ValueError, AssertionError, KeyError, TypeError])
def test_an_error_about_a_value_may_quote_any_words(kind: type[Exception]) -> None:
    assert classify(kind("expected 'CUDA out of memory' in the log")) is OTHER


def test_a_command_that_failed_is_not_the_runs_memory() -> None:
    assert classify(subprocess.CalledProcessError(1, ["make"])) is OTHER


@pytest.mark.parametrize(
    ("signum", "tail", "kind"),
    [
        (
            6,
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  "
            "std::bad_alloc\nFatal Python error: Aborted\n",
            HOST,
        ),
        (6, "memory allocation of 137438953472 bytes failed\nFatal Python error: Aborted\n", HOST),
        (
            6,
            "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: "
            "out of memory\nFatal Python error: Aborted\n",
            GPU,
        ),
        (6, "Fatal Python error: Aborted\n", OTHER),
        (11, "Fatal Python error: Segmentation fault\n", OTHER),
        (7, "Fatal Python error: Bus error\n", HOST),
    ],
)
def test_what_a_process_prints_as_it_aborts_tells_which_memory(
    signum: int, tail: str, kind: ErrorKind
) -> None:
    error = describe_death_in_run(-signum, SPEC, tail, Hints())
    assert error.kind is kind
    assert error.traceback == tail
    assert error.hint
