"""What a checkpoint does not say, kept beside it once for every command: ``NAME.json``."""

import json
from pathlib import Path
from typing import Any

from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, ends
from recon.priors.parameterisation import Flow, Schedule, VarianceExploding, VariancePreserving

_WORDS: dict[str, tuple[type, ...]] = {
    "value_range": (list, str), "is_complex": (bool,), "channels": (int,), "schedule": (list, str),
    "predicts": (str,), "sigma_data": (int, float), "head_channels": (int,),
    "attention_order": (str,), "entry": (str,)}


def completed(path: Path, said: Declared, entry: str | None) -> tuple[Declared, str | None]:
    """The caller's words, and where there are none those of ``checkpoint.pt.json``.

    Of a folder it is ``recon.json`` inside. ``schedule`` there is ``"linear"``, ``"flow"`` or
    ``[sigma_min, sigma_max]`` of variance-exploding noise.
    """
    kept = path / "recon.json" if path.is_dir() else path.with_name(path.name + ".json")
    if not kept.is_file():
        return said, entry
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{kept.name} is no JSON ({error}): mend or remove it") from error
    odd = [k for k in found if k not in _WORDS or not isinstance(found[k], _WORDS[k])
           ] if isinstance(found, dict) else ["all of it"]
    if odd:
        raise CheckpointError(f"{kept.name}: {odd[0]} is not understood: want some of "
                              f"{', '.join(_WORDS)}, as recon.priors.load takes them")
    words: dict[str, Any] = dict(found)
    try:
        words["value_range"] = ends(words.get("value_range"))
    except ValueError as error:
        raise CheckpointError(f"{kept.name}: {error}") from None
    if "schedule" in words:
        words["schedule"] = _schedule(kept.name, words["schedule"])
    entry = entry if entry is not None else words.pop("entry", None)
    words.pop("entry", None)
    unsaid = {k: v for k, v in words.items() if getattr(said, k) in (None, False)}
    return said._replace(**unsaid), entry


def _schedule(name: str, text: Any) -> Schedule:
    if text == "linear":
        return VariancePreserving.linear()
    if text == "flow":
        return Flow()
    try:
        low, high = (float(v) for v in text)
        if not 0 < low < high:
            raise ValueError
    except (TypeError, ValueError):
        raise CheckpointError(f"{name}: schedule wants linear, flow or [sigma_min, sigma_max], got "
                              f"{text!r}") from None
    return VarianceExploding(low, high)
