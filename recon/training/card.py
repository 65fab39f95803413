"""The card of a trained prior: what it was made of, how, and how well it denoises."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import recon
from recon import datasets
from recon.priors.training import CHECKED, Stack, Training
from recon.priors.training.examples import PEAK, WATER


def card_of(training: Training, stacks: Sequence[Stack], others: Sequence[Stack],
            settings: Any, psnr: Sequence[float]) -> dict[str, Any]:
    """What belongs beside the weights, JSON-like. File names, which may be patients', by request.
    """
    s, in_hu = settings, stacks[0].in_hu
    slices, aside = (sum(len(stack.values) for stack in group) for group in (stacks, others))
    card: dict[str, Any] = {
        "trained_on": {"subjects": s.subjects or len(stacks), "files": len(stacks),
                       "slices": slices},
        "held_out": {"files": len(others), "slices": aside},
        "images": ("complex" if training.recipe.is_complex else "real")
        + (" with a smooth phase made up" if s.phase else ""),
        "units": _units(in_hu, s.window_hu),
        "steps": training.step, "steps_wanted": s.steps, "examples": training.step * s.batch,
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "sigma_data": training.sigma_data,
        "settings": {k: v for k, v in s._asdict().items()
                     if k not in ("device", "every", "previews", "workers", "subjects",
                                  "list_files", "unit", "precision", "note")},
        "precision": str(s.precision).removeprefix("torch."),
        "held_out_psnr_db": {f"{sigma:g}": round(p, 2)
                             for sigma, p in zip(CHECKED, psnr, strict=True)},
        "made_with": f"recon {recon.__version__}, torch {torch.__version__}",
    }
    if s.note:
        card["note"] = s.note
    if training.history:
        card["before"] = [{"until_step": past["step"], **past["recipe"], **past["about"]["look"],
                           "batch": past["about"]["batch"]} for past in training.history]
    if s.list_files:
        card["trained_on"]["names"] = [stack.name for stack in stacks]
        card["held_out"]["names"] = [stack.name for stack in others]
    return card


def _units(in_hu: bool, window: tuple[float, float]) -> str:
    if in_hu:
        return (f"HU cut to {window[0]:g} to {window[1]:g}; u (1 + HU / 1000), with water u drawn "
                f"from {WATER[0]:g} to {WATER[1]:g}: zero is vacuum, and recon.reconstruct finds "
                "the scale")
    return (f"the 99.5 % quantile of a plane's magnitude is drawn from {PEAK[0]:g} to "
            f"{PEAK[1]:g}; recon.reconstruct finds the scale")


def _told(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def write_card(path: Path, name: str, card: dict[str, Any]) -> None:
    """The card as a page a person reads, replacing the last one."""
    on, aside, s = card["trained_on"], card["held_out"], card["settings"]
    lines = [f"# {name}", "",
             f"A denoiser of {card['images']} images, `recon.priors.load(\"{name}.safetensors\")`: "
             f"{card['parameters']:,} weights, UNet of widths "
             f"{', '.join(map(str, s['widths']))} with {s['blocks']} blocks a level, EDM "
             "preconditioning.", "",
             f"**Data.** Trained on {on['subjects']} subject(s): {on['files']} file(s), "
             f"{on['slices']} slices. Held out: {aside['files']} file(s), {aside['slices']} "
             "slices."]
    if "names" in on:
        lines += ["", f"Trained on {', '.join(on['names'])}; held out {', '.join(aside['names'])}."]
    if "note" in card:
        lines += ["", card["note"]]
    unfinished = "" if card["steps"] >= card["steps_wanted"] else (
        f" of {card['steps_wanted']:,}: unfinished")
    lines += ["", f"**Units.** {card['units']}.", "",
              f"**Training.** {card['steps']:,} steps{unfinished}, {card['examples']:,} examples, "
              f"{card['precision']}, {card['made_with']}. Settings:", ""]
    lines += [f"- {key}: {_told(value)}" for key, value in s.items()
              if key not in ("widths", "blocks")]
    for past in card.get("before", []):
        other = {k: v for k, v in past.items() if k in s and _plain(v) != _plain(s[k])}
        lines += ["", f"Until step {past['until_step']:,}, with other images or with "
                  + (", ".join(f"{k} {_told(v)}" for k, v in other.items()) or "the same settings")
                  + "."]
    lines += ["", "**Held-out denoising**, PSNR in dB with peak one, error per real number:", "",
              "| sigma | " + " | ".join(card["held_out_psnr_db"]) + " | mean |",
              "|---" * (len(card["held_out_psnr_db"]) + 2) + "|",
              "| dB | " + " | ".join(f"{p:.2f}" for p in card["held_out_psnr_db"].values())
              + f" | {sum(card['held_out_psnr_db'].values()) / len(CHECKED):.2f} |", "",
              "A prior draws the anatomy it was trained on where data are few. Not for clinical "
              "use.", ""]
    with datasets.replacing(path, overwrite=True) as (part,):
        part.write_text("\n".join(lines))
