"""Networks in ONNX files, run by onnxruntime; their weights need no layout of ours."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, counted, wrapped
from recon.priors.parameterisation import (
    Flow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    _same,
)
from recon.space import Space

LAYOUT = "an ONNX network"
USES = ("schedule", "predicts")
_KINDS = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32,
          "tensor(double)": torch.float64, "tensor(int32)": torch.int32,
          "tensor(int64)": torch.int64}


def build(path: Path, said: Declared) -> Prior:
    """The prior of a network ``(image, time) -> prediction``, in the units it was trained in.

    It has no gradients: samplers that differentiate through the prior refuse it. It runs on the
    processor.
    """
    name = path.name
    if said.predicts is None or said.schedule is None:
        raise CheckpointError(f"{name} does not say what it predicts at which noise: pass "
                              "predicts='eps', 'score', 'v', 'x0' or 'flow', and schedule=")
    session = _session(path)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    ranks = [len(i.shape) for i in inputs]
    if ranks not in ([4, 1], [4, 0]) or len(outputs[0].shape) != 4:
        raise CheckpointError(f"{name} takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}: "
                              "want images (n, channels, height, width), then one time per item")
    kinds = [_KINDS[i.type] for i in inputs if i.type in _KINDS]
    if len(kinds) < 2 or not kinds[0].is_floating_point:
        raise CheckpointError(f"{name} takes {', '.join(f'{i.name} {i.type}' for i in inputs)}: "
                              "want images of floats, then times of floats or integers")
    if not kinds[1].is_floating_point and not _counts(said.schedule):
        raise CheckpointError(f"{name} is told the time in whole numbers, which those of this "
                              f"{type(said.schedule).__name__} are not: pass a schedule= whose "
                              "time= is the index it was trained with")
    batches = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], int)}
    if batches - {1}:
        raise CheckpointError(f"{name} takes {max(batches)} images at a time: export it for one, "
                              "or for any number (a dynamic first axis)")
    ends = [inputs[0].shape[1], outputs[0].shape[1]]
    channels = next((n for n in (ends[0], said.channels, ends[1]) if isinstance(n, int)), None)
    if channels is None:
        raise CheckpointError(f"{name} does not say how many channels its images have: pass "
                              "channels=")
    made = ends[1] if isinstance(ends[1], int) else channels
    network = _Session(session, kinds, each=ranks[1] == 0 or bool(batches), one_time=ranks[1] == 0)
    prior = wrapped(network, counted(name, channels, made, said), said.predicts, said.schedule,
                    said.max_batch)
    sizes = inputs[0].shape[2:]
    if all(isinstance(size, int) for size in sizes):  # as exported without dynamic axes
        prior.space = Space((channels, *sizes))
    return prior


def _counts(schedule: Schedule) -> bool:
    """Whether its times may be whole numbers: an index, or what a function makes of the level."""
    if isinstance(schedule, VarianceExploding | Flow):
        given = schedule.time if isinstance(schedule, VarianceExploding) else schedule.of_t
        return given is not _same
    return isinstance(schedule, VariancePreserving)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX networks want onnxruntime: install recon[onnx]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of kinds that onnxruntime does not export
        told = _told(error).replace(str(path), path.name)
        raise CheckpointError(f"{path.name} is damaged or no ONNX file ({told}): export it again"
                              ) from error


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


class _Run(torch.autograd.Function):
    """Asking for a gradient is an error, never a zero."""

    @staticmethod
    def forward(ctx: Any, network: "_Session", x: Tensor, time: Tensor) -> Tensor:  # noqa: ARG004
        return network.made(x, time)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004
        raise RuntimeError("this prior is an ONNX network, which has no gradients: use a sampler "
                           "that does not differentiate through it, such as dds, or its weights "
                           "in torch")


class _Session(nn.Module):
    """A session as a network: ``kinds`` are its inputs', ``each`` that it takes one at a time."""

    def __init__(self, session: Any, kinds: list[torch.dtype], *, each: bool,
                 one_time: bool) -> None:
        super().__init__()
        self.session, self.kinds, self.each, self.one_time = session, kinds, each, one_time

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = _Run.apply(self, x, time)
        return out

    def made(self, x: Tensor, time: Tensor) -> Tensor:
        if not self.kinds[1].is_floating_point:
            time = time.round()
        size = 1 if self.each else len(x)
        images = torch.split(x.detach().cpu().to(self.kinds[0]), size)
        times = torch.split(time.detach().cpu().to(self.kinds[1]), size)
        names = [i.name for i in self.session.get_inputs()]
        try:
            out = [self.session.run(None, {names[0]: z.numpy(),
                                           names[1]: (t[0] if self.one_time else t).numpy()})[0]
                   for z, t in zip(images, times, strict=True)]
        except Exception as error:  # of kinds that onnxruntime does not export
            raise ValueError(f"this prior's ONNX network refuses images of {tuple(x.shape)} "
                             f"({_told(error)}): pad or crop them to what it was made for"
                             ) from error
        return torch.from_numpy(np.concatenate(out)).to(x)
