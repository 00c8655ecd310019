"""Compare AutoAttack with its authors' code, image by image: python scripts/compare_autoattack.py FOLDER

FOLDER is a clone of the authors' repository (the folder that contains the package autoattack). Both attack the same
images in the same batches from the same seed. Exit status 1 means that an image differs.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from attacks.suite import PROTOCOLS, Setting
from data import TEST_SUBSET_SEED, Batches, load, subset
from engine import load_model
from engine.accuracy import predict
from engine.device import choose_device, set_tf32
from engine.evaluation.attack import run_attack
from utils.cli import run_command
from utils.errors import UserError
from utils.flags import parser_for
from utils.log import logger

EPSILON, SEED, BATCH_SIZE = 8 / 255, 42, 100
INCLUDED = "models/pretrained/small_resnet_cifar10"


def compare(argv: list[str]) -> None:
    """Attack with both codes, log the number of equal results and both times, exit with status 1 if any differs.

    Raises UserError if a flag is invalid or FOLDER contains no package ``autoattack``.
    """
    parser = parser_for(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="clone of the authors' repository")
    parser.add_argument("--data_root", metavar="DIR", help="folder of CIFAR-10; default: datasets/")
    parser.add_argument("--limit", type=int, default=100, help="number of test images; default: 100")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
    options = parser.parse_args(argv)
    if not Path(options.folder, "autoattack", "__init__.py").is_file():
        raise UserError(f"{options.folder}: no package autoattack in it; give a clone of the authors' repository")
    if options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    import pyautoattack  # noqa: F401  (without it both sides would run the clone)

    sys.path.insert(0, options.folder)
    from autoattack import AutoAttack

    device = choose_device(options.device, 0)
    set_tf32(False)
    network = load_model(INCLUDED).to(device).requires_grad_(False)
    images = subset(load("CIFAR10", options.data_root).test, options.limit, TEST_SUBSET_SEED)
    batches = Batches(images, BATCH_SIZE, device=device)
    attack = PROTOCOLS["paper"](Setting(EPSILON, SEED))["aa"]
    start = time.monotonic()
    ours = run_attack(network, batches, predict(network, batches), attack, seed=SEED).predicted == images.labels
    middle, equal = time.monotonic(), 0
    theirs = AutoAttack(network, norm="Linf", eps=EPSILON, seed=SEED, verbose=False, device=device)
    for (x, y), robust in zip(batches, ours.split(BATCH_SIZE), strict=True):
        x_adv = theirs.run_standard_evaluation(x, y, bs=len(x))
        equal += int(((network(x_adv).argmax(1) == y).cpu() == robust).sum())
    times = middle - start, time.monotonic() - middle
    logger.info("%d of %d images equal; ours took %.0f s, the authors' %.0f s", equal, len(ours), *times)
    sys.exit(int(equal < len(ours)))


if __name__ == "__main__":
    run_command(lambda: compare(sys.argv[1:]))
