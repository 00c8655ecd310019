"""A checkpoint in the forms that others take: for RobustBench, for the Hugging Face Hub, and as a program.

python scripts/export.py --model_path CHECKPOINT --name Name2026Word --out DIR

Each form is loaded back and must give the logits of the checkpoint, on random images, before anything is put into DIR.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from engine.choices import CHOICES
from engine.export.formats import FORMATS, Entry
from engine.export.published import TITLES, read
from utils.cli import run_command
from utils.errors import UserError
from utils.files import require_writable
from utils.flags import flag, parse
from utils.log import logger
from utils.names import canonical
from utils.seed import seed_everything

CHECKED_IMAGES = 4
# Of the largest logit. The same weights in the same order of operations differ by nothing, in another order by the
# rounding of float32 through some seventy layers, about 1e-5; another weight or normalisation changes the first digits.
TOLERANCE = 1e-4

RUN, PAPER = "export", "paper (fields of RobustBench's model_info)"


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and where to."""

    model_path: str = flag("", "checkpoint of any kind that main_eval.py reads", group=RUN)
    name: str = flag(
        "", "public name, RobustBench's pattern: first author, year, first word of the title: Name2026Word", group=RUN
    )
    out: str = flag("", "folder of the export; a folder for each network", group=RUN)
    dataset: str | None = flag(
        None, "data set it was trained on (what the checkpoint says, else CIFAR10, when not given)", group=RUN
    )
    model: str | None = flag(
        None,
        "network of the checkpoint; needed only where neither the file nor its keys and shapes tell",
        group=RUN,
    )
    format: tuple[str, ...] = flag((), "some of: robustbench hub torch_export (all when not given)", group=RUN)

    title: str = flag("", "title", group=PAPER)
    authors: str = flag("", "authors, separated by commas", group=PAPER)
    venue: str = flag("", "venue and year: ICML 2026, or arXiv, May 2026", group=PAPER)
    link: str = flag("", "address", group=PAPER)
    reported: str = flag("", "robust accuracy that it reports, in percent", group=PAPER)


def export(config: ExportConfig) -> None:
    """Write the checkpoint in every form asked for. What fails before the last step changes no file of ``--out``.

    The last step renames the finished files one after another: each is there whole, but an interruption between two
    leaves some of them new and others as they were. Raises UserError for whatever the user can mend, RuntimeError where
    a form gives other logits than the checkpoint.
    """
    _require_words(config)
    forms = [canonical(word, FORMATS, {}, "--format") for word in config.format] or list(FORMATS)
    seed_everything(0)  # stages that no forward uses may be absent from the file: the same export every time
    published = read(config.model_path, config.model, config.dataset)
    entry = Entry(config.name, config.title, config.authors, config.venue, config.link, config.reported)
    shape = CHECKED_IMAGES, 3, published.image_size, published.image_size
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    _require_finite(config, published.network, images)
    out = Path(config.out)
    with _staging(out) as staged:
        for form in forms:
            try:
                FORMATS[form].write(published, entry, Path(staged))
            except OSError as error:
                raise _unwritable(out, error) from error
            _require_same_logits(published.network, FORMATS[form].load(published, entry, Path(staged)), images, form)
        for place in _put_in_place(Path(staged), out):
            logger.info("%s", place)
    logger.info("loaded back with the logits of %s: %s", config.model_path, ", ".join(forms))
    if missing := [title for title in TITLES if title not in published.figures.kept]:
        command = _evaluation(config, published.dataset)
        logger.info("no figure for %s; this makes them: %s", " and ".join(missing), command)


def _require_words(config: ExportConfig) -> None:
    for name in ("model_path", "name", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name}: needed; --help says what it names")
    if not re.fullmatch(r"\w[\w.-]{0,199}", config.name, re.ASCII):
        raise UserError(
            f"--name {config.name}: names files: letters, digits, _, - and . only, for example Name2026Word"
        )


def _require_finite(config: ExportConfig, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        if not network(images).isfinite().all():
            raise UserError(f"{config.model_path}: its logits are nan or inf on random images: the file is damaged")


def _require_same_logits(network: nn.Module, loaded: Callable[[Tensor], Tensor], images: Tensor, form: str) -> None:
    for batch in (images, images[:1]):  # of another size than a program was traced with
        with torch.no_grad():
            expected, found = network(batch), loaded(batch)
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            raise RuntimeError(f"{form}: loaded back, it gives other logits than the checkpoint; nothing was written")


def _staging(out: Path) -> tempfile.TemporaryDirectory:
    """A folder inside ``out`` that goes when it is left: whatever fails in between leaves nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=out, prefix=".partial-")
    except OSError as error:
        raise _unwritable(out, error) from error


def _put_in_place(staged: Path, out: Path) -> list[Path]:
    places = {file: out / file.relative_to(staged) for file in sorted(staged.rglob("*")) if file.is_file()}
    for place in places.values():
        _require_free(out, place)
    for done, (file, place) in enumerate(places.items()):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)  # whole and flushed since it was staged
        except OSError as error:
            raise UserError(
                f"--out {out}: {place} cannot be put in place ({error.strerror}); {done} of {len(places)} files are, "
                "the others are as they were: export again"
            ) from error
    return list(places.values())


def _require_free(out: Path, place: Path) -> None:
    try:
        require_writable(place.parent)
    except OSError as error:
        raise UserError(
            f"--out {out}: nothing can be put into {place.parent} ({error.strerror}); name another folder"
        ) from error
    if place.is_dir():
        raise UserError(f"--out {out}: {place} is a folder, and a file of the export goes there; name another folder")


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"--out {out}: cannot be written to ({error.strerror}); name another folder")


def _evaluation(config: ExportConfig, dataset: str) -> str:
    """The command that makes the figures."""
    script = "main_eval_tinyimagenet.py" if dataset == "Tiny_Image" else "main_eval.py"
    data = " --data_root DIR" * (dataset == "Folder")
    model = f" --model {config.model}" * bool(config.model)
    return (
        f"python {script} --dataset {dataset}{data}{model} --model_path {config.model_path} "
        "--attacks clean,aa (then export again)"
    )


if __name__ == "__main__":
    run_command(lambda: export(parse(ExportConfig, description=__doc__, choices=CHOICES).config))
