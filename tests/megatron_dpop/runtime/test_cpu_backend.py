"""What the CPU backend answers in place of a GPU; each test runs in a rank, where it is installed."""

from pathlib import Path

from tests.distributed import run_ranks


def _places_cuda_tensors_on_the_cpu() -> dict:
    import torch

    made = torch.ones(2, device="cuda")
    return {
        "made": made.device.type,
        "ordinal": torch.zeros(1, device=0).device.type,
        "current": torch.empty(1, device=torch.cuda.current_device()).device.type,
        "moved": made.cuda().to("cuda:0").device.type,
        "kept_values": made.cuda().tolist(),
        "type": made.type(),
        "is_typed": isinstance(made, torch.cuda.FloatTensor),
        "is_other_type": isinstance(made, torch.cuda.HalfTensor),
        "available": torch.cuda.is_available(),
        "memory_bytes": torch.cuda.max_memory_allocated(),
    }


def _streams_and_events_do_nothing() -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _random_states_are_the_cpus() -> bool:
    import torch

    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state)
    return torch.equal(torch.rand(3), first)


def _is_installed_once() -> bool:
    import torch

    from megatron_dpop.runtime import cpu_backend

    before = torch.cuda.current_device
    cpu_backend.install()
    return cpu_backend.installed() and torch.cuda.current_device is before


def test_tensors_asked_for_on_a_gpu_are_made_on_the_cpu() -> None:
    (answer,) = run_ranks(_places_cuda_tensors_on_the_cpu, 1)
    assert answer == {
        "made": "cpu",
        "ordinal": "cpu",
        "current": "cpu",
        "moved": "cpu",
        "kept_values": [1.0, 1.0],
        "type": "torch.cuda.FloatTensor",
        "is_typed": True,
        "is_other_type": False,
        "available": False,
        "memory_bytes": 0,
    }


def test_streams_events_and_random_states_work() -> None:
    assert run_ranks(_streams_and_events_do_nothing, 1)[0] >= 0
    assert run_ranks(_random_states_are_the_cpus, 1) == [True]
    assert run_ranks(_is_installed_once, 1) == [True]


def _gpu_packages_found(folder: str) -> list[str]:
    import importlib
    import sys

    from megatron_dpop.runtime.cpu_backend import GPU_PACKAGES

    sys.path.insert(0, folder)
    found = []
    for name in GPU_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    return found


def test_packages_of_gpu_kernels_are_as_if_not_installed(tmp_path: Path) -> None:
    for name in ("transformer_engine", "apex", "amp_C"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert run_ranks(_gpu_packages_found, 1, str(tmp_path)) == [[]]


def _collectives_in_place() -> dict:
    import torch
    import torch.distributed as dist

    whole = torch.arange(6.0) + 10 * dist.get_rank()
    part = whole[: 6 // dist.get_world_size()] if dist.get_world_size() == 1 else torch.empty(3)
    dist.reduce_scatter_tensor(part, whole)
    gathered = torch.empty(6)
    dist.all_gather_into_tensor(gathered, part)
    return {"gathered": gathered.tolist()}


def test_collectives_keep_their_meaning_for_one_rank_and_for_two() -> None:
    (alone,) = run_ranks(_collectives_in_place, 1)
    assert alone["gathered"] == [0, 1, 2, 3, 4, 5]
    for answer in run_ranks(_collectives_in_place, 2):
        assert answer["gathered"] == [10, 12, 14, 16, 18, 20]
