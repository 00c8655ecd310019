"""The results of gpu.py: read, shown as a table, and the teacher among them joined to a folder of models/pretrained."""

import hashlib
import json
from pathlib import Path

from models.hub import CONFIG, WEIGHTS, load_folder
from utils.errors import UserError
from utils.files import read_json, write_text
from utils.log import logger
from utils.tables import markdown_table

RESULTS, PARTS = "results.json", ("teacher.1", "teacher.2")
TEACHER, STEP = "teacher", "step"  # a row of the table GPU, and a benchmark
ATTACKS = ("Clean", "FGSM", "PGD-20", "C&W-inf-30", "AutoAttack")
MIN_AUTOATTACK = 40.0  # percent; a weaker teacher is not published
CARD = """# {name}: a robust teacher

`{model}` trained by AT (PGD-10, L-infinity, epsilon 8/255) for {epochs} epochs. Its best epoch was chosen on 1,000
training images that were held out.

{table}

Data: {data}. Hardware: {device}, PyTorch {torch}. Convolutions and matrices are stored in bfloat16, as evaluated.
Images (B, 3, {image_size}, {image_size}) in [0, 1], not normalized; logits (B, {num_classes}) in CIFAR-10's order.

<!-- not run: needs a GPU -->
```bash
{command}
```
"""


def join(source: Path, target: Path) -> None:
    """Join the teacher's weights and write them with their configuration and a model card.

    Raises UserError if the parts are missing or damaged, or if the teacher is too weak.
    """
    kept = read_results(source / RESULTS)
    try:
        teacher, evaluation = (kept["pieces"][key] for key in (TEACHER, f"{TEACHER} evaluation"))
        results = evaluation["results"]["best"]
        content = b"".join((source / part).read_bytes() for part in PARTS)
        robust = results["AutoAttack"]["accuracy"]
    except (KeyError, OSError) as error:
        raise UserError(f"{source}: has no evaluated teacher ({error})") from error
    if hashlib.sha256(content).hexdigest() != teacher["sha256"]:
        raise UserError(f"{source}: the teacher's files are damaged or do not belong to {RESULTS}")
    if robust < MIN_AUTOATTACK:
        raise UserError(f"{source}: AutoAttack accuracy {robust:.2f} % is below {MIN_AUTOATTACK:g} %; not written")
    target.mkdir(parents=True, exist_ok=True)
    (target / WEIGHTS).write_bytes(content)
    write_text(target / CONFIG, json.dumps(teacher["config"], indent=2) + "\n")
    load_folder(target)  # strictly: a missing weight is an error
    lines = [[attack, f"{one['accuracy']:.2f}", one["n"]] for attack, one in results.items()]
    rows = markdown_table(["attack (epsilon 8/255)", "accuracy in %", "test images"], lines)
    values = {**kept["machine"], **teacher["config"], **teacher, "name": target.name, "table": rows}
    write_text(target / "README.md", CARD.format(**values))
    logger.info("%s: AutoAttack %.2f %%", target, robust)


def table(folder: Path) -> str:
    """Return the accuracies and speeds in a folder as Markdown tables. Raises UserError if there are none."""
    accuracies, speeds = [], []
    for kept in map(read_results, sorted(folder.rglob("*.json"))):
        device, data = (kept["machine"].get(key, "-") for key in ("device", "data"))
        for key, piece in kept["pieces"].items():
            for kind, results in piece.get("results", {}).items():
                cells = [f"{results[attack]['accuracy']:.2f}" if attack in results else "-" for attack in ATTACKS]
                accuracies.append([key.removesuffix(" evaluation"), kind, *cells, data, device])
            if measured := piece.get("benchmark"):
                rate, ratio = measured["images_per_second"]["ours"], measured["ratio"]
                peak = measured.get("peak_mib", {}).get("ours", "-")
                speeds.append([key.removeprefix(f"{STEP} "), f"{rate:.0f}", f"{ratio:.2f}", peak, device])
    tables = {
        ("row", "checkpoint", *ATTACKS, "data", "hardware"): accuracies,
        ("training step", "images/s", "ratio to the reference", "peak memory (MiB)", "hardware"): speeds,
    }
    if not accuracies + speeds:
        raise UserError(f"{folder}: has no results of gpu.py; give the folder that --out wrote")
    return "\n\n".join(markdown_table(header, rows) for header, rows in tables.items() if rows)


def read_results(path: Path) -> dict[str, dict]:
    """The results in a file; empty if it does not exist or has other content. Raises UserError if it is damaged."""
    try:
        content = read_json(path) if path.exists() else {}
        content = content if "pieces" in content else {"machine": {}, "pieces": {}}
        return {key: dict(content[key]) for key in ("machine", "pieces")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it or give another folder") from error
