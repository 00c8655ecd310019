"""Export a checkpoint: python scripts/export.py --model_path CHECKPOINT --name Name2026Word --out DIR

DIR gets the files of RobustBench and those of the Hugging Face Hub. Both are loaded back and must return the
checkpoint's logits on random images before any file is put into DIR.
"""

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

import torch
from safetensors import SafetensorError

from engine.choices import CHOICES
from engine.export.formats import export_hub, export_robustbench
from engine.export.robustbench import RESULTS, ExportConfig, read
from utils.cli import run_command
from utils.errors import UserError
from utils.files import PARTIAL, require_writable
from utils.flags import parse
from utils.log import logger
from utils.seed import seed_everything

# Of the largest logit. The same weights in another order of operations differ by the rounding of float32 through some
# seventy layers, about 1e-5; another weight or normalization changes the first digits.
TOLERANCE = 1e-4


def export(config: ExportConfig) -> None:
    """Write the checkpoint in both formats; a failure before :func:`_move` changes no file of ``--out``.

    Raises UserError for bad input and RuntimeError if a format returns other logits.
    """
    for name in ("model_path", "name", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name}: required; see --help")
    if not re.fullmatch(r"\w[\w.-]{0,199}", config.name, re.ASCII):
        raise UserError(f"--name {config.name}: may have only letters, digits, _, - and ., for example Name2026Word")
    seed_everything(0)  # unused stages that are missing from the file are initialized equally in every export
    published, out = read(config), Path(config.out)
    images = torch.rand(4, 3, published.image_size, published.image_size)
    with torch.no_grad():
        expected = published.network(images)
    if not expected.isfinite().all():
        raise UserError(f"{config.model_path}: its logits are nan or inf on random images: the file is damaged")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as folder:
            for write in (export_hub, export_robustbench):
                with torch.no_grad():
                    difference = (write(published, config, Path(folder))(images) - expected).abs().max()
                if not difference <= TOLERANCE * expected.abs().max():
                    raise RuntimeError(f"{write.__name__}: returns other logits; nothing was written")
            _move(Path(folder), out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--out {out}: cannot be written to ({reason}); choose another folder, or export again"
        ) from error
    logger.info("loaded back with the logits of %s", config.model_path)
    if missing := [title for title in RESULTS if title not in published.results]:
        flags = " --data_root DIR" * (published.dataset == "Folder") + f" --model {config.model}" * bool(config.model)
        command = f"python main_eval.py --dataset {published.dataset}{flags} --model_path {config.model_path}"
        message = "no result for %s; evaluate, then export again: %s --attacks clean,aa"
        logger.info(message, " and ".join(missing), command)


def _move(folder: Path, out: Path) -> None:
    """Move all files of ``folder`` into ``out``, one by one; raises OSError, before the first for a blocked path."""
    targets = {file: out / file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()}
    for target in targets.values():
        require_writable(target.parent)
        if target.is_dir():
            raise UserError(f"--out {out}: {target} is a folder, not a file; choose another folder")
    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        logger.info("%s", target)


if __name__ == "__main__":
    run_command(lambda: export(parse(ExportConfig, description=__doc__, choices=CHOICES).config))
