"""The card of a trained prior: what it was made of, how, and how well it denoises."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import recon
from recon import datasets
from recon.priors.training import CHECKED, Stack, Training
from recon.priors.training.examples import PEAK, WATER


def counts(stacks: Sequence[Stack], subjects: int | None) -> dict[str, Any]:
    """How much was trained on; people are one a file where nothing else is said."""
    return {"subjects": subjects or len(stacks), "files": len(stacks),
            "slices": sum(len(stack.values) for stack in stacks)}


def card_of(training: Training, stacks: Sequence[Stack], others: Sequence[Stack],
            settings: Any, psnr: Sequence[float]) -> dict[str, Any]:
    """What belongs beside the weights, JSON-like. File names, which may be patients', by request.

    What a state of an older version did not keep is None.
    """
    s, in_hu = settings, stacks[0].in_hu
    *before, last = training.parts()
    card: dict[str, Any] = {
        "trained_on": counts(stacks, s.subjects),
        "held_out": {"files": len(others), "slices": sum(len(stack.values) for stack in others)},
        "images": ("complex" if training.recipe.is_complex else "real")
        + (" with a smooth phase made up" if s.phase else ""),
        "units": _units(in_hu, s.window_hu),
        "steps": training.step, "steps_wanted": s.steps,
        "examples": sum((part["step"] - part["since"]) * part["about"]["batch"]
                        for part in (*before, last)),
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "sigma_data": training.sigma_data,
        "settings": {k: v for k, v in s._asdict().items()
                     if k not in ("device", "every", "previews", "workers", "subjects",
                                  "list_files", "unit", "precision", "note")},
        "precision": last.get("precision"),
        "held_out_psnr_db": {f"{sigma:g}": round(p, 2)
                             for sigma, p in zip(CHECKED, psnr, strict=True)},
        "made_with": f"recon {recon.__version__}, torch {torch.__version__}",
    }
    if s.note:
        card["note"] = s.note
    if before:
        card["before"] = [_earlier(part, last, card["trained_on"]) for part in before]
    if s.list_files:
        card["trained_on"]["names"] = [stack.name for stack in stacks]
        card["held_out"]["names"] = [stack.name for stack in others]
        for past, part in zip(card.get("before", []), before, strict=True):
            past["trained_on"]["names"] = list(part["about"]["train"])
    return card


def _earlier(part: dict[str, Any], last: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A part of the steps before a change, as the card tells it."""
    same, record = part["about"]["train"] == last["about"]["train"], part.get("record", {})
    unknown = {"subjects": None, "files": len(part["about"]["train"]), "slices": None}
    return {"since_step": part["since"], "until_step": part["step"], "same_images": same,
            "trained_on": dict(now if same else record.get("trained_on", unknown)),
            **part["recipe"], **part["about"]["look"], "batch": part["about"]["batch"],
            "precision": part.get("precision"),
            **({"window_hu": record["window_hu"]} if "window_hu" in record else {})}


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


def _counted(on: dict[str, Any]) -> str:
    return ", ".join(f"unknown {word}" if on[key] is None else f"{on[key]} {word}" for key, word in
                     [("subjects", "subject(s)"), ("files", "file(s)"), ("slices", "slices")]
                     ).replace(",", ":", 1)


def _since(card: dict[str, Any]) -> str:
    """From which step on, where the images were others before."""
    others = [past["until_step"] for past in card.get("before", []) if not past["same_images"]]
    return f" since step {others[-1]:,}; before, on what is listed below" if others else ""


def _precision(part: dict[str, Any]) -> str:
    return part["precision"] or "precision not kept"


def write_card(path: Path, name: str, card: dict[str, Any]) -> None:
    """The card as a page a person reads, replacing the last one."""
    on, aside, s = card["trained_on"], card["held_out"], card["settings"]
    lines = [f"# {name}", "",
             f"A denoiser of {card['images']} images, `recon.priors.load(\"{name}.safetensors\")`: "
             f"{card['parameters']:,} weights, UNet of widths "
             f"{', '.join(map(str, s['widths']))} with {s['blocks']} blocks a level, EDM "
             "preconditioning.", "",
             f"**Data.** Trained on {_counted(on)}{_since(card)}. Held out: {aside['files']} "
             f"file(s), {aside['slices']} slices."]
    if "names" in on:
        lines += ["", f"Trained on {', '.join(on['names'])}; held out {', '.join(aside['names'])}."]
    if "note" in card:
        lines += ["", card["note"]]
    unfinished = "" if card["steps"] >= card["steps_wanted"] else (
        f" of {card['steps_wanted']:,}: unfinished")
    lines += ["", f"**Units.** {card['units']}.", "",
              f"**Training.** {card['steps']:,} steps{unfinished}, {card['examples']:,} examples, "
              f"{_precision(card)}, {card['made_with']}. Settings:", ""]
    lines += [f"- {key}: {_told(value)}" for key, value in s.items()
              if key not in ("widths", "blocks")]
    for past in card.get("before", []):
        other = {k: v for k, v in past.items() if k in s and _plain(v) != _plain(s[k])}
        images = "the same images" if past["same_images"] else _counted(past["trained_on"])
        if "names" in past["trained_on"] and not past["same_images"]:
            images += f" ({', '.join(past['trained_on']['names'])})"
        lines += ["", f"Until step {past['until_step']:,}: {images}; {_precision(past)}; "
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
