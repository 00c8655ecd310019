"""The folder of a training run: its lock, resume states and checkpoints."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from engine.checkpoint import LAST, STATES, save_checkpoint
from engine.training.loggers import Loggers
from engine.training.results import PLOT, Results
from engine.training.schedule import ANNEALING
from engine.unused_fields import ignored_fields
from methods import WITHOUT_ATTACK, WITHOUT_TEACHER, fields_read
from models.checkpoint_file import decode
from utils.config import TrainConfig
from utils.errors import UserError, first_line
from utils.fields import shown, spelling
from utils.files import FULL, PARTIAL, link, require_writable, write_text
from utils.flags import SKIPPED, read_config
from utils.log import logger

MAX_NAME_BYTES = 200  # file systems allow 255; the files in the folder need the rest
STATE_NAME = "{:04d}-{:06d}.pth"  # finished epochs, finished batches of the next
STATES_KEPT = 2  # the second serves if the newest is damaged
STATE_KEYS = {"net", "optimizer", "epochs", "metrics", "rows", "reliability", "config", "classes", "images", "teachers"}
OTHER_RUN = "--desc_str NAME starts another run"


class RunFolder:
    """``<root_path>/<dataset>/<method>/<name>/`` of one run; :meth:`create` makes it.

    Without ``writes``, as on all ranks but rank 0, nothing is written. Methods raise UserError if a file cannot be
    written; the constructor does if the package of a logger is missing.
    """

    def __init__(self, config: TrainConfig, writes: bool = True):
        self.config, self.writes = config, writes
        teacher = "" if config.method in WITHOUT_TEACHER else f"from_{config.teacher_model}"
        epsilon = "" if config.method in WITHOUT_ATTACK else f"eps{config.epsilon:g}"
        parts = (config.model, teacher, epsilon, f"seed{config.seed}", config.desc_str)
        name = "_".join(filter(None, parts)).replace(os.sep, "-").replace(":", "-")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UserError(f"--desc_str {config.desc_str[:20]}...: makes the folder's name too long; shorten it")
        self.path = Path(config.root_path) / config.dataset / config.method / name
        self.results = Results(self.path)
        self.loggers = Loggers(config)
        self._file_lock = _make_lock(self.path / ".lock")

    def last_state(self) -> dict | None:
        """Return the state to resume from, or None for a new run.

        Raises UserError if the folder cannot be written, if it holds a run and ``--resume`` was not given, if none of
        its states can be read, or if that run had other settings.
        """
        try:
            require_writable(self.path)
        except OSError as error:
            problem = f"cannot be written to ({error.strerror}); choose another folder"
            raise UserError(f"--root_path {self.config.root_path}: {problem}") from error
        self._states_read = self._states()
        if not self._states_read and not (self.path / LAST).exists():
            return None
        if not self.config.resume:
            raise UserError(f"{self.path}: already contains a run; --resume continues it, {OTHER_RUN}")
        if not self._states_read and self._has_one_epoch():
            ran = replace(self.config, **read_config(type(self.config), self.path / "config.json"))
            self._require_same_settings(config_fingerprint(ran))
            logger.info("%s: the run stopped before its first state was saved; it starts again", self.path)
            return None
        state = self._newest_state()
        self._require_same_settings(state["config"])
        return state

    def _has_one_epoch(self) -> bool:
        """Return whether the last checkpoint is of the first epoch: it is written before the state."""
        checkpoint = decode((self.path / LAST).read_bytes(), self.path / LAST)
        return isinstance(checkpoint, dict) and checkpoint.get("epoch") == 0

    def threads(self) -> int | None:
        """Return the CPU threads of the run so far: the rounding depends on them."""
        try:
            return read_config(type(self.config), self.path / "config.json").get("threads")
        except UserError:  # missing or damaged
            return None

    def _require_same_settings(self, old: dict) -> None:
        new = config_fingerprint(self.config)
        if new["milestones"] is None:
            new["milestones"] = old["milestones"]  # more epochs do not move default milestones
        specs = {spec.name: spec for spec in fields(self.config)}
        old = {"epochs": self.config.epochs} | old  # stored only if they affect the result
        old = {key: old.get(key, specs[key].default) for key in new}  # an older version did not have all flags
        changed = [key for key in new if new[key] != old[key] and key not in ignored_fields(self.config)]
        changes = [f"{spelling(specs[key])} {_shown(old[key])} -> {_shown(new[key])}" for key in changed]
        if changes:
            raise UserError(f"--resume: {self.path} has other settings ({', '.join(changes)}); {OTHER_RUN}")

    def require_same_data(self, state: dict, metadata: dict) -> None:
        """Raise UserError if the run of ``state`` had other images, classes or teachers; warn of another precision."""
        for key in ("classes", "images", "teachers"):
            if state[key] != metadata[key]:
                raise UserError(f"--resume: {self.path} was trained with other {key}; {OTHER_RUN}")
        if state.get("arithmetic") != metadata["arithmetic"]:
            old, new = state.get("arithmetic"), metadata["arithmetic"]
            logger.warning("--resume: the run was computed in %s so far and continues in %s", old, new)

    def create(self, state: dict | None, skipped_images: int = 0) -> None:
        """Create and lock the folder to continue from ``state``, and write config.json.

        ``skipped_images`` is the number of images that ``--skip_damaged`` has left out.
        Raises UserError if another process trains there, or did since ``state`` was read.
        """
        with self._writing():
            self._lock()
            if self._states() != self._states_read:
                raise UserError(f"{self.path}: another process has just trained this run; repeat the command")
            for partial in (*self.path.glob(f"{PARTIAL}*"), *(self.path / STATES).glob(f"{PARTIAL}*")):
                with suppress(OSError):  # of another user
                    partial.unlink()  # left by a process that was killed while saving
            for newer in self._states():  # could not be read
                if state is None or _progress(newer) > (state["epochs"], state["metrics"]["batches"]):
                    newer.rename(newer.with_suffix(".bad"))
            content = asdict(self.config)
            if self.config.skip_damaged:
                content[SKIPPED] = skipped_images
            write_text(self.path / "config.json", json.dumps(content, indent=2) + "\n")
        self.loggers.open(self.path, self.results.rows)

    def close(self) -> None:
        """Release the lock."""
        with suppress(OSError):  # the process ends, and with it the lock
            self._file_lock.release()

    def _lock(self) -> None:
        """Create the folder and lock it; refuse links, since the folder may be a download."""
        states = self.path / STATES
        for path in (states, self.path / ".lock"):
            if path.is_symlink():
                raise UserError(f"{path}: is a symbolic link, and the run would write to its target; remove it")
        states.mkdir(parents=True, exist_ok=True)
        try:
            self._file_lock.acquire()
        except Timeout as error:
            raise UserError(f"{self.path}: another run is training there; {OTHER_RUN}") from error
        except (OSError, NotImplementedError) as error:  # for instance a network file system
            logger.warning("WARNING: %s: cannot be locked (%s); do not start a second run there", self.path, error)

    def add_row(self, values: dict, reliability: dict | None) -> None:
        """Append one epoch to the tables, with empty cells for missing values, and send it to the loggers."""
        self.results.add(values, reliability)
        if self.writes:
            with self._writing():
                self.results.write()
        self.loggers.add(self.results.rows[-1])

    def draw(self) -> None:
        """Draw curves.png, and reliability.png with ``--log_reliability``."""
        with self._writing():
            self.results.draw()
        if self.config.log_reliability and not (self.path / PLOT).exists():
            logger.warning("no %s: %s returns no logits of its teacher in a Step", PLOT, self.config.method)

    def save(self, name: str, content: dict, *others: str) -> None:
        """Write a checkpoint, and link the file under the names ``others``."""
        if self.writes:
            with self._writing():
                save_checkpoint(self.path / name, content)
                for other in others:
                    link(self.path / name, self.path / other)

    def save_state(self, content: dict) -> None:
        """Write a resume state and delete old ones; ``content`` has the STATE_KEYS that are not added here."""
        name = STATE_NAME.format(content["epochs"], content["metrics"]["batches"])
        self.save(f"{STATES}/{name}", {**content, **self.results.state(), "config": config_fingerprint(self.config)})
        if self.writes:
            for old in self._states()[STATES_KEPT:]:
                with suppress(OSError):  # NFS: in use
                    old.unlink()

    def last_good(self) -> str:
        """Return a message that names the newest state."""
        states = self._states()
        return f"the last good checkpoint is {states[0]}" if states else "no checkpoint has been saved yet"

    def _states(self) -> list[Path]:
        """Resume states, newest first by the numbers in their names, since clocks may be wrong."""
        return sorted((self.path / STATES).glob("[0-9]*-[0-9]*.pth"), key=_progress, reverse=True)

    def _newest_state(self) -> dict:
        if not self._states_read:
            raise UserError(f"{self.path}: its folder {STATES}/ is empty; {OTHER_RUN}")
        for path in self._states_read:
            try:
                state = decode(path.read_bytes(), path)
                if isinstance(state, dict) and state.keys() >= STATE_KEYS:
                    return state
                raise UserError(f"{path}: not a resume state of this version")
            except (UserError, OSError) as error:
                logger.warning("%s; trying the previous state", error)
        raise UserError(f"{self._states_read[0]}: no state of this run can be read; {OTHER_RUN}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            path = getattr(error, "filename", None) or self.path
            reason = getattr(error, "strerror", None) or first_line(error)
            hint = "free disk space, then --resume" if getattr(error, "errno", None) in FULL else "--resume"
            problem = f"{path}: cannot be written ({reason})"
            raise UserError(f"{problem}; {self.last_good()}; {hint} continues the run") from error


def _make_lock(path: Path) -> FileLock:
    try:  # on file systems without locks, an error rather than a marker file that a killed run leaves behind
        return FileLock(path, timeout=0, fallback_to_soft=False)
    except TypeError:  # older releases have no such fallback
        return FileLock(path, timeout=0)


def config_fingerprint(config: TrainConfig) -> dict:
    """Return the settings that affect the result; the number of epochs only if a schedule depends on it."""
    names = [spec.name for spec in fields(config) if spec.metadata["affects_result"]]
    scheduled = config.lr_schedule in ANNEALING or "epochs" in fields_read(config.method, config)
    values = {name: getattr(config, name) for name in names if name != "epochs" or scheduled}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _progress(state: Path) -> tuple[int, ...]:
    """Return the numbers of finished epochs and batches in the name of a state."""
    return tuple(int(number) for number in state.stem.split("-") if number.isdecimal())


def _shown(value) -> str:
    """Return a value of :func:`config_fingerprint` as on the command line."""
    if value in (None, ""):
        return "not given"
    return shown(tuple(value) if isinstance(value, list) else value)
