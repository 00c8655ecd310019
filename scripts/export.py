"""Export a checkpoint: python scripts/export.py --model_path CHECKPOINT --name Name2026Word --out DIR

DIR gets the files of RobustBench and those of the Hugging Face Hub. Both are loaded back and must return the
checkpoint's logits on random images before any file is put into DIR.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run from its folder

from engine.choices import CHOICES
from engine.export import ExportConfig, export
from utils.cli import run_command
from utils.flags import parse

if __name__ == "__main__":
    run_command(lambda: export(parse(ExportConfig, description=__doc__, choices=CHOICES).config))
