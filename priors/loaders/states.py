"""Which tensors of a checkpoint are the network's, averaged ones first; every one accounted for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recon.priors.errors import CheckpointError

State = dict[str, Tensor]

_NETWORK = {"model", "net", "network", "state", "dict", "params", "weights", "unet", "score",
            "denoiser", "module", "diffusion"}
_ASIDE = {"optimizer", "optimizers", "optim", "opt", "scheduler", "schedulers", "sched", "scaler",
          "lr", "rng", "step", "steps", "epoch", "epochs", "iteration", "iter", "config", "args",
          "hyper", "hparams", "loss", "losses", "version", "callbacks", "loops", "decay", "amp"}
# what networks keep beside their parameters, which no average holds
_BUFFER = re.compile(r"(.*\.)?(sigmas|freqs|phases|resample_filter|u|running_mean|running_var|"
                     r"num_batches_tracked|betas|\w*alphas\w*|all_modules\.0\.W)")
# how modules that keep a network as ``model`` name its average, and what they count beside it
_AVERAGES = ("ema_model.", "ema_model.module.", "ema.module.", "ema.", "model_ema.module.",
             "model_ema.")
_COUNTED = re.compile(r"(.*\.)?(n_averaged|num_updates|decay|step|initted)")


def choose(name: str, found: Any, entry: str | None = None) -> State:
    """The network's tensors in what a file holds; averaged ones wherever there are any.

    Knows plain state dicts; dicts of a network, its average and training states, under the usual
    names; lists whose first is the network and whose last is its average (NCSNv2); averages by
    name, by order of parameters (score_sde) and as a copy of the network (ema-pytorch).
    ``entry`` names the entry to use where the names are others.
    """
    if entry is not None:
        if not isinstance(found, Mapping) or entry not in found:
            raise CheckpointError(f"{name} has no entry {entry!r}: it holds {_names(found)}")
        return _tensors(name, found[entry])
    if isinstance(found, Sequence) and not isinstance(found, str):
        parts = [part for part in found if _is_state(part)]
        if len(parts) not in (1, 2) or parts[0] is not found[0]:
            raise CheckpointError(f"{name} holds {_names(found)}: want tensors by name, or a list "
                                  "of a network's tensors, training states and their average")
        raw = _tensors(name, parts[0])
        return raw if len(parts) == 1 else _averaged(name, raw, parts[1])
    if _is_state(found):
        return _tensors(name, found)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{name} holds {_names(found)}: want tensors by name")
    averages, networks, unknown = _sorted_entries(found)
    if unknown:
        raise CheckpointError(f"{name} holds {', '.join(map(repr, unknown))} of unknown meaning "
                              f"among {_names(found)}: say which entry is the network, averaged if "
                              f"it was, with entry={unknown[0]!r}")
    if len(networks) > 1 or len(averages) > 1 or not (networks or averages):
        raise CheckpointError(f"{name} holds {_names(found)}: want one network and at most one "
                              "average of it; say which entry to use with entry=")
    whole = _tensors(name, found[networks[0]]) if networks else {}
    return _averaged(name, whole, found[averages[0]]) if averages else whole


def _sorted_entries(found: Mapping[Any, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names of averages, of networks, and of what may be either."""
    averages, networks, unknown = [], [], []
    for key, value in found.items():
        words = set(re.split(r"[^a-z0-9]+", str(key).lower()))
        if words & _ASIDE or not _holds_tensors(value):
            continue
        if "ema" in words or "averaged" in words:
            averages.append(str(key))
        elif words <= _NETWORK:
            networks.append(str(key))
        else:
            unknown.append(str(key))
    return averages, networks, unknown


def _averaged(name: str, raw: State, average: Any) -> State:
    if isinstance(average, Mapping):
        inner = [k for k in ("shadow_params", "shadow", "module", "state_dict", "model", "params")
                 if _holds_tensors(average.get(k))]
        if inner:
            average = average[inner[0]]
    if isinstance(average, Sequence):
        return _by_order(name, raw, average)
    shadow = _tensors(name, average)
    copies = {k.removeprefix("ema_model."): v for k, v in shadow.items()
              if k.startswith("ema_model.")}
    shadow = copies or shadow
    if not raw:
        return shadow
    strange = [k for k in shadow if k not in raw]
    left = [k for k in raw if k not in shadow and not _BUFFER.fullmatch(k)]
    if strange or left:
        raise CheckpointError(
            f"{name}: the average and the network differ in {len(strange) + len(left)} tensors, "
            f"first {(strange + left)[0]}: say which entry to use with entry=")
    return raw | shadow


def _by_order(name: str, raw: State, average: Sequence[Tensor]) -> State:
    parameters = [k for k in raw if not _BUFFER.fullmatch(k)]
    shapes = [tuple(raw[k].shape) for k in parameters]
    if shapes != [tuple(a.shape) for a in average]:
        raise CheckpointError(f"{name}: its average lists {len(average)} tensors for the network's "
                              f"{len(parameters)}, or others: the file is damaged or edited")
    return raw | dict(zip(parameters, average, strict=True))


def _is_state(found: Any) -> bool:
    return (isinstance(found, Mapping) and bool(found)
            and all(isinstance(v, Tensor) for v in found.values())
            and any(v.ndim for v in found.values()))


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(v) for v in value)
    return isinstance(value, Tensor) and value.ndim > 0


def _tensors(name: str, found: Any) -> State:
    """Names without what DataParallel and ``torch.compile`` put before them."""
    if not _is_state(found) or not all(isinstance(k, str) for k in found):
        raise CheckpointError(f"{name} holds {_names(found)}: want tensors by name")
    state = dict(found)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _names(found: Any) -> str:
    if isinstance(found, Mapping):
        names = [repr(k) for k in found]
        return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    if isinstance(found, (list, tuple)):
        return f"a list of {', '.join(type(v).__name__ for v in found[:6])}"
    return f"a {type(found).__name__}"


class Shapes:
    """What a layout is read from: shapes by name, a missing one refused."""

    def __init__(self, name: str, state: State) -> None:
        self.name, self.state = name, state

    def __call__(self, key: str, ndim: int | None = None) -> tuple[int, ...]:
        if key not in self.state:
            raise CheckpointError(f"{self.name} lacks {key}: the file is damaged or edited, or of "
                                  "another layout")
        shape = tuple(self.state[key].shape)
        if ndim is not None and len(shape) != ndim:
            raise CheckpointError(f"{self.name}: {key} wants {ndim} dimensions, got {shape}: the "
                                  "file is damaged or edited, or of another layout")
        return shape

    def __contains__(self, key: str) -> bool:
        return key in self.state


def without(state: State, *names: str) -> State:
    """The state less what the network does not compute with."""
    return {k: v for k, v in state.items() if k not in names}


def under(state: State, prefix: str) -> State:
    """What stands under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def inside(state: State) -> tuple[State, State]:
    """The network that a module keeps as ``model``, averaged where it is, and what is beside it.

    A state of the network alone comes back with nothing beside it. An average of other tensors
    than the network's stays beside it, for the layout to refuse.
    """
    raw = under(state, "model.")
    if not raw:
        return state, {}
    beside = {k: v for k, v in state.items() if not k.startswith("model.")}
    told = {k: v for k, v in beside.items() if not _COUNTED.fullmatch(k)}
    for prefix in _AVERAGES:
        average = under(told, prefix)
        left = raw.keys() - average.keys()
        if average and average.keys() <= raw.keys() and all(map(_BUFFER.fullmatch, left)):
            return raw | average, {k: v for k, v in told.items() if not k.startswith(prefix)}
    # one number is no part of a network, but a level may be its preconditioning's
    return raw, {k: v for k, v in told.items() if v.ndim or "sigma" in k}


def refuse(beside: State, name: str, layout: str) -> None:
    """Raise CheckpointError for tensors that a layout has no use for."""
    if beside:
        raise CheckpointError(f"{name} looks like {layout} but its tensors do not fit: "
                              f"{len(beside)} unexpected, first {next(iter(beside))}: the file is "
                              "damaged or edited, or of another layout")


def fill(network: nn.Module, state: State, name: str, layout: str) -> nn.Module:
    """Put the tensors in, each one accounted for, in single precision; ready to be used."""
    wanted = network.state_dict()
    missing = [k for k in wanted if k not in state]
    extra = [k for k in state if k not in wanted]
    wrong = [k for k, v in wanted.items() if k in state and (
        v.shape != state[k].shape or v.is_floating_point() != state[k].is_floating_point())]
    told = [f"{len(keys)} {what}, first {keys[0]}" for what, keys in
            (("missing", missing), ("unexpected", extra)) if keys]
    if wrong:
        told.append(f"{len(wrong)} of wrong shape or kind, first {wrong[0]} "
                    f"({tuple(state[wrong[0]].shape)} where {tuple(wanted[wrong[0]].shape)} fits)")
    if told:
        raise CheckpointError(f"{name} looks like {layout} but its tensors do not fit: "
                              f"{'; '.join(told)}: the file is damaged or edited, or of another "
                              "layout")
    bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise CheckpointError(f"{name}: {bad[0]} holds NaN or infinity, and so do {len(bad) - 1} "
                              "more: copy the file again, or take an earlier checkpoint")
    # copies, so that nothing stays mapped to a file that may change
    kept = {k: v.to(torch.float32, copy=True) if v.is_floating_point() else v.clone()
            for k, v in state.items()}
    network.load_state_dict(kept, assign=True)
    return network.requires_grad_(False).eval()
