"""Whether a run fits its devices, by its own data's lengths, before anything is allocated on them."""

from dpop_base.architectures import Architecture
from dpop_base.errors import UserError
from megatron_dpop.config import Config
from megatron_dpop.data.examples import TokenizedDataset
from megatron_dpop.plan.fits import check_memory
from megatron_dpop.plan.from_config import choice_of, workload_of
from megatron_dpop.plan.hardware import device_like
from megatron_dpop.plan.plan import Setting
from megatron_dpop.plan.workload import Workload


def dataset_workload(config: Config, dataset: TokenizedDataset) -> Workload:
    """A step over this dataset, in means."""
    lengths = dataset.lengths()
    return workload_of(config, lengths.prompt_tokens, lengths.completion_tokens, lengths.common_prefix_tokens)


def check_fits_devices(
    config: Config,
    architecture: Architecture,
    dataset: TokenizedDataset,
    *,
    devices: int,
    device_name: str,
    memory_bytes: int,
) -> None:
    """Raises UserError, with the numbers and the nearest layout that fits, where training would run out of memory.

    `device_name` and `memory_bytes` as CUDA reports them (`torch.cuda.get_device_properties`).
    """
    if devices % config.parallel.model_parallel:
        raise UserError(
            f"parallel: tensor x pipeline x context is {config.parallel.model_parallel}, which does not divide "
            f"{devices} devices; use a multiple of it"
        )
    setting = Setting(architecture, dataset_workload(config, dataset), device_like(device_name, memory_bytes))
    check_memory(setting, choice_of(config, data=devices // config.parallel.model_parallel))
