"""Networks in ONNX files, run by onnxruntime; their weights need no layout of ours."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, counted, wrapped

LAYOUT = "an ONNX network"
USES = ("schedule", "predicts")


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
    ends = [inputs[0].shape[1], outputs[0].shape[1]]
    channels = next((n for n in (ends[0], said.channels, ends[1]) if isinstance(n, int)), None)
    if channels is None:
        raise CheckpointError(f"{name} does not say how many channels its images have: pass "
                              "channels=")
    made = ends[1] if isinstance(ends[1], int) else channels
    network = _Session(session, one_time=ranks[1] == 0)
    return wrapped(network, counted(name, channels, made, said), said.predicts, said.schedule,
                   said.max_batch)


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
        told = " ".join(str(error).replace(str(path), path.name).split())[:160]
        raise CheckpointError(f"{path.name} is damaged or no ONNX file ({told}): export it again"
                              ) from error


class _Run(torch.autograd.Function):
    """Asking for a gradient is an error, never a zero."""

    @staticmethod
    def forward(ctx: Any, session: Any, one_time: bool, x: Tensor,  # noqa: ARG004
                time: Tensor) -> Tensor:
        names = [i.name for i in session.get_inputs()]
        kinds = [np.float16 if "float16" in i.type else np.float64 if "double" in i.type else
                 np.int64 if "int64" in i.type else np.float32 for i in session.get_inputs()]
        images, times = x.detach().cpu().numpy(), time.detach().cpu().numpy()
        if kinds[1] == np.int64:
            times = times.round()
        if one_time:
            made = [session.run(None, {names[0]: images[i : i + 1].astype(kinds[0]),
                                       names[1]: np.asarray(times[i], kinds[1])})[0]
                    for i in range(len(images))]
            out = np.concatenate(made)
        else:
            out = session.run(None, {names[0]: images.astype(kinds[0]),
                                     names[1]: times.astype(kinds[1])})[0]
        return torch.from_numpy(out).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004
        raise RuntimeError("this prior is an ONNX network, which has no gradients: use a sampler "
                           "that does not differentiate through it, such as dds, or its weights "
                           "in torch")


class _Session(nn.Module):
    def __init__(self, session: Any, one_time: bool) -> None:
        super().__init__()
        self.session, self.one_time = session, one_time

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = _Run.apply(self.session, self.one_time, x, time)
        return out
