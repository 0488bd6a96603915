"""Memory that is exhausted is told as such, in the words of each library; nothing else is."""

from __future__ import annotations

import errno
import io
import resource
import signal
import sqlite3
import subprocess

import pytest

from ml_experiments.execution.failures import classify
from ml_experiments.execution.hints import SHARED_MEMORY_HINT, Hints
from ml_experiments.execution.worker.death import crash_report, describe_death_in_run
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
    (GPU, "ncclUnhandledCudaError\nLast error:\nFailed to CUDA host alloc 1024 bytes"),
    (GPU, "nvrtc: error: NVRTC_ERROR_OUT_OF_MEMORY"),
    (GPU, "Allocation on device 0 would exceed allowed memory. (out of memory)"),
    (GPU, "Invalid buffer size: 14.44 GB"),
    (GPU, "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    (GPU, "UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    # other libraries on top of CUDA
    (GPU, "Triton Error [CUDA]: out of memory"),
    (GPU, "CUDA failed with error out of memory"),
    (GPU, "Check failed: e == cudaSuccess: CUDA: out of memory"),
    (GPU, "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"),
    (GPU, "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory"),
    (GPU, "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9"),
    (GPU, "[allocate::19] Error Code 1: Cuda Runtime (out of memory)"),
    (GPU, "Error Code 2: OutOfMemory (no further information)"),
    (GPU, "std::bad_alloc: out_of_memory: CUDA error (failed to allocate 8 bytes) at: x.hpp"),
    (GPU, "process 1 failed:\ntorch.OutOfMemoryError: Allocation on device"),
    (HOST, "An error occurred.\n: java.lang.OutOfMemoryError: Java heap space"),
    (OTHER, "the log has 'torch.OutOfMemoryError' in it"),
    (GPU, "std::bad_alloc: out_of_memory: RMM failure at pool: Maximum pool size exceeded"),
    (GPU, "Out of memory error on GPU 0. Cannot allocate 1.500000GB memory on GPU 0"),
    (GPU, "[metal::malloc] Attempting to allocate 40000000000 bytes which is greater than the max"),
    # JAX and TensorFlow
    (GPU, "RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB on device ordinal 0"),
    (GPU, "RESOURCE_EXHAUSTED: Attempting to reserve 12.50G at the bottom of memory."),
    (
        GPU,
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.5G of 15.48G hbm.",
    ),
    (GPU, "INTERNAL: Failed to allocate 4294967296 bytes for new constant"),
    (GPU, "{{function_node __wrapped__AddV2}} failed to allocate memory [Op:AddV2]"),
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
    (HOST, "Task was killed due to the node running low on memory."),
    (HOST, "Out of Memory Error: could not allocate block of size 256.0 KiB (953 MiB used)"),
    (HOST, "alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 40000000000 bytes"),
    (HOST, "traceback : Signal 9 (SIGKILL) received by PID 123"),
    (
        HOST,
        "Original Traceback:\nnumpy._core._exceptions._ArrayMemoryError: Unable to allocate 7 TiB",
    ),
    # other errors, whose texts are alike
    (OTHER, "GPU 3 is out of memory slots of mine"),
    (OTHER, "cudagraph: ran out of memory of the last step"),
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
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ExceptionGroup("of a TaskGroup", [ValueError("x"), MemoryError()]),
        subprocess.CalledProcessError(-9, ["python", "train.py"]),
        subprocess.CalledProcessError(137, "python train.py; exit $?"),
    ],
)
def test_what_python_raises_for_want_of_memory_is_known(error: BaseException) -> None:
    assert classify(error) is HOST


@pytest.mark.parametrize(
    "text",
    [
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine.",
        "Free memory on device (3.2/22.3 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 20.07 GiB).",
        "To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache "
        "is needed, which is larger than the available KV cache memory (5.43 GiB).",
        "The model's max seq len (32768) is larger than the maximum number of tokens that can be "
        "stored in KV cache (14496).",
        "Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to "
        "fit the quantized model.",
    ],
)
def test_a_model_that_does_not_fit_is_told_as_exhausted_memory(text: str) -> None:
    assert classify(ValueError(text)) is GPU


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        OSError("10000000 requested and 2559984 written"),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        sqlite3.OperationalError("database or disk is full"),
        subprocess.CalledProcessError(-signal.SIGXFSZ, ["dd"]),
    ],
)
def test_a_full_disk_and_a_limit_of_files_are_no_bug_of_the_experiment(error: Exception) -> None:
    assert Hints().describe(error, SPEC).kind is ErrorKind.INFRASTRUCTURE
    assert Hints().describe(error, SPEC).hint


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some disk space"),
        (sqlite3.OperationalError("database or disk is full"), "free some disk space"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError("10000000 requested and 2559984 written"), "ulimit -f"),
    ],
)
def test_a_limit_of_files_is_named_where_it_can_be_the_cause(
    error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, resource.RLIM_INFINITY))
    assert hint in Hints().describe(error, SPEC).hint


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
        (-1, "Error out of memory at line 383 in file /csrc/pythonInterface.c\n", GPU),
        (-1, "CUDA out of memory, so a smaller batch is tried\nepoch 2\nepoch 3\n", OTHER),
        (25, "", ErrorKind.INFRASTRUCTURE),
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
    # this process has no limit to raise
    assert bool(error.hint) is (signum in (6, 7, 11) or kind is GPU)


def test_what_c_code_says_before_it_aborts_is_in_the_crash_report() -> None:
    report = "Fatal Python error: Aborted\n"
    said = "CUDA error: out of memory\n  current device: 0, in function alloc\n"
    assert crash_report(io.BytesIO(f"epoch 1\n{said}{report}".encode())) == said + report
    assert crash_report(io.BytesIO(f"epoch 1\nepoch 2\n{report}".encode())) == report
