"""What is written without PyTorch, PyTorch reads; what PyTorch writes is read without it."""

import io
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from checkpoint_convert.hf_to_megatron import hf_to_megatron
from checkpoint_convert.tensors.archive import TorchArchive, write_tensor_archive
from checkpoint_convert.tensors.pickles import StoredTensor, row_major
from checkpoint_convert.tensors.stored_zip import StoredZip
from checkpoint_convert.tensors.torch_dtypes import TORCH
from tests.checkpoint_convert.models import save_small


@pytest.mark.parametrize("dtype", TORCH)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 100))
def test_pytorch_reads_what_is_written(dtype: str, shape: list[int], before: int) -> None:
    tensor = torch.randn(shape).to(TORCH[dtype])
    stream = io.BytesIO(bytes(before))
    stream.seek(before)
    data = memoryview(tensor.flatten().view(torch.uint8).numpy())
    assert write_tensor_archive(stream, tuple(shape), dtype, [data[:7], data[7:]]) == zlib.crc32(data)
    loaded = torch.load(io.BytesIO(stream.getvalue()[before:]), weights_only=True)
    assert loaded.dtype is tensor.dtype
    assert torch.equal(loaded, tensor)


def test_a_stored_zip_is_what_zipfile_writes() -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    archive = StoredZip(ours)
    with zipfile.ZipFile(theirs, "w", zipfile.ZIP_STORED) as reference:
        for name, data in (("a/data.pkl", b"pickle"), ("a/data/0", bytes(range(256)) * 9), ("a/empty", b"")):
            reference.writestr(zipfile.ZipInfo(name), data)
            archive.add(name, [data[:5], memoryview(data)[5:]])
    archive.finish()
    assert ours.getvalue() == theirs.getvalue()


def test_what_pytorch_writes_is_read(tmp_path: Path) -> None:
    tensor = torch.arange(30.0).view(5, 6)
    torch.save({"whole": tensor, "part": tensor[2:4], "turned": tensor.t()}, tmp_path / "saved")
    with open(tmp_path / "saved", "rb") as stream:
        archive = TorchArchive(stream.fileno(), tmp_path / "saved")
        part = archive.content["part"]
        assert isinstance(part, StoredTensor)
        assert part.contiguous
        assert not archive.content["turned"].contiguous
        start, num_bytes = archive.elements(part)
        assert num_bytes == 120
        stream.seek(start + 4 * part.offset_elements)
        assert torch.equal(torch.frombuffer(bytearray(stream.read(48)), dtype=torch.float32).view(2, 6), tensor[2:4])


@given(st.lists(st.integers(1, 5), max_size=4))
def test_strides_are_pytorchs(shape: list[int]) -> None:
    assert row_major(tuple(shape)) == torch.empty(shape).stride()


def test_pytorchs_own_reader_reads_the_metadata(tmp_path: Path) -> None:
    small = save_small("qwen3", tmp_path / "hf", torch.bfloat16)
    hf_to_megatron(tmp_path / "hf", tmp_path / "megatron", progress=False)
    metadata = FileSystemReader(tmp_path / "megatron" / "release").read_metadata()
    fc1 = metadata.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"]
    assert fc1.size == torch.Size([4, 192, 64])
    assert fc1.properties.dtype is torch.bfloat16
    keys = metadata.state_dict_metadata
    for module in ("self_attention.linear_qkv", "self_attention.q_layernorm", "mlp.linear_fc2"):
        assert f"decoder.layers.{module}._extra_state/shard_3_4" in keys
    tensors = [entry for entry in keys.values() if hasattr(entry, "size")]
    assert sum(entry.size.numel() for entry in tensors) == sum(t.numel() for t in small.tensors.values())
