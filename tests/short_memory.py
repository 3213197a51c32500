"""A device that runs out of memory where a test wants it to."""

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB."


class ShortMemory(TorchDispatchMode):
    """Memory runs out at one operation of torch, or at any that leaves more bytes than the device has.

    Attributes:
        count: operations so far.
        faults: how often memory ran out.
        live: bytes of the tensors that are alive, as far as operations gave them.
        peak: the most that they were.
    """

    def __init__(self, at=None, most_bytes=10**18):
        super().__init__()
        self.at, self.most_bytes = at, most_bytes
        self.count = self.faults = self.peak = 0
        self._storages = {}

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += 1
        if self.count == self.at:
            self._run_out()
        result = operation(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                self._storages[reference.cdata] = reference, leaf.untyped_storage().nbytes()
        live = self.live
        self.peak = max(self.peak, live)
        if live > self.most_bytes:
            self._run_out()
        return result

    def _run_out(self):
        self.faults += 1
        raise torch.OutOfMemoryError(GPU_TEXT)

    @property
    def live(self):
        self._storages = {key: entry for key, entry in self._storages.items() if not entry[0].expired()}
        return sum(size for _, size in self._storages.values())
