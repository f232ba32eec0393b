"""A disk that has done nothing yet but what it was forced to: what a power failure may leave.

The calls of a run are recorded and played to a model of a file system that promises no more than
POSIX does. A file's content is certain once the file was flushed; until then any part of what was
written since may be there. An entry of a folder, made or removed, is certain once that folder was
flushed; until then each change since may have happened or not, each by itself. A rename is one
change: it leaves the old name and the old file, or the new ones.

Real file systems keep more than that in order, so whatever holds here holds there.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

EXHAUSTIVE: Final = 6
"""Of so many last changes all combinations are tried; of earlier ones some, drawn at random."""
DRAWN: Final = 3

Fate = Literal["kept", "dropped", "cut", "zeroed"]
"""What becomes of writes that were not flushed: the latter half is missing, or is zeros."""
FATES: Final[tuple[Fate, ...]] = ("kept", "dropped", "cut", "zeroed")

Tree = dict[str, bytes | None]
"""Path below the root -> content of a file, or None for a folder."""


class Call(NamedTuple):
    """A call that succeeded, or a line of the journal, under the name `log`."""

    name: str
    args: tuple[Any, ...]
    result: Any


class Recorder:
    """Writes down all calls that succeed, and the journal between them.

    Args:
        root: The root of the disk; paths are written down relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.calls: list[Call] = []
        self._root = root

    def __call__(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        result = call()
        self.calls.append(Call(name, tuple(map(self._plain, args)), result))
        return result

    def log(self, line: str) -> None:
        self.calls.append(Call("log", (line,), None))

    def _plain(self, arg: Any) -> Any:
        if isinstance(arg, str | os.PathLike):
            return os.path.relpath(arg, self._root)
        return bytes(arg) if isinstance(arg, memoryview) else arg


@dataclass(eq=False)
class File:
    """A file: what of it is certain, and what was written."""

    certain: bytes = b""
    written: bytes = b""

    def after(self, fate: Fate) -> bytes:
        """Return what is left of it."""
        if fate == "kept":
            return self.written
        if fate == "dropped":
            return self.certain
        half = self.written[: (len(self.certain) + len(self.written)) // 2]
        return half if fate == "cut" else half.ljust(len(self.written), b"\0")


@dataclass(eq=False)
class Folder:
    """A folder: the entries that are certain."""

    certain: "dict[str, File | Folder]" = field(default_factory=dict)


@dataclass(eq=False)
class Change:
    """What happened to a folder and is not yet certain: names with what they now stand for."""

    folder: Folder
    entries: dict[str, File | Folder | None]


class SimulatedDisk:
    """The model, to which calls are played one by one; empty at first."""

    def __init__(self) -> None:
        self._root = Folder()
        self._open: dict[int, File | Folder] = {}
        self._changes: list[Change] = []
        self._unflushed: list[File] = []

    def play(self, call: Call) -> None:
        """Let a call happen."""
        name, args = call.name, call.args
        if name == "open":
            self._open[call.result] = self._opened(args[0], args[1])
        elif name == "close":
            del self._open[args[0]]
        elif name == "write":
            self._write(self._open[args[0]], args[1][: call.result])
        elif name == "fsync":
            self._flush(self._open[args[0]])
        elif name == "link":
            self._change({args[1]: self._node(args[0])})
        elif name == "rename":
            self._change({args[0]: None, args[1]: self._node(args[0])})
        elif name == "mkdir":
            self._change({args[0]: Folder()})
        elif name in ("unlink", "rmdir"):
            self._change({args[0]: None})
        else:
            assert name in ("utime", "flock", "log"), name

    def killed(self) -> None:
        """Forget what the process that made the calls had open."""
        self._open.clear()

    def visible(self) -> Tree:
        """Return what processes see."""
        return self._tree(frozenset(self._changes), lambda _: "kept")

    def certain(self) -> Tree:
        """Return what has to be there after a power failure now."""
        return self._tree(frozenset(), lambda _: "dropped")

    def after_failures(self, seed: int) -> Iterator[Tree]:
        """Yield what may be there after a power failure now, some of it repeatedly."""
        dice = random.Random(seed)
        fates: list[Callable[[File], Fate]] = [lambda _: "kept"]
        if self._unflushed:
            fates = [lambda _, fate=fate: fate for fate in FATES]  # type: ignore[misc]
        if len(self._unflushed) > 1:
            mixed = {file: dice.choice(FATES) for file in self._unflushed}
            fates.append(mixed.__getitem__)
        for happened in self._combinations(dice):
            for fate in fates:
                yield self._tree(happened, fate)

    def _combinations(self, dice: random.Random) -> Iterator[frozenset[Change]]:
        earlier, last = self._changes[:-EXHAUSTIVE], self._changes[-EXHAUSTIVE:]
        drawn = [[change for change in earlier if dice.random() < 0.5] for _ in range(DRAWN)]
        for before in [[], earlier, *drawn] if earlier else [[]]:
            for chosen in itertools.product((False, True), repeat=len(last)):
                yield frozenset([*before, *itertools.compress(last, chosen)])

    def _tree(self, happened: frozenset[Change], fate: Callable[[File], Fate]) -> Tree:
        tree: Tree = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in self._entries(folder, happened).items():
                if isinstance(node, Folder):
                    tree[prefix + name] = None
                    walk(node, f"{prefix}{name}/")
                else:
                    unsure = node.certain != node.written
                    tree[prefix + name] = node.after(fate(node) if unsure else "kept")

        walk(self._root, "")
        return tree

    def _entries(self, folder: Folder, happened: frozenset[Change]) -> dict[str, File | Folder]:
        entries = dict(folder.certain)
        for change in self._changes:
            if change.folder is not folder or change not in happened:
                continue
            for name, node in change.entries.items():
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        return entries

    def _change(self, nodes: dict[str, File | Folder | None]) -> None:
        (place,) = {Path(path).parent for path in nodes}
        folder = self._node(str(place))
        assert isinstance(folder, Folder)
        named = {Path(path).name: node for path, node in nodes.items()}
        self._changes.append(Change(folder, named))

    def _opened(self, path: str, flags: int) -> File | Folder:
        if flags & os.O_CREAT and not self._exists(path):
            self._change({path: File()})
        return self._node(path)

    def _write(self, file: File | Folder, data: bytes) -> None:
        assert isinstance(file, File)
        file.written += data
        if file not in self._unflushed:
            self._unflushed.append(file)

    def _flush(self, node: File | Folder) -> None:
        if isinstance(node, File):
            node.certain = node.written
            self._unflushed = [file for file in self._unflushed if file is not node]
        else:
            node.certain = self._entries(node, frozenset(self._changes))
            self._changes = [change for change in self._changes if change.folder is not node]

    def _exists(self, path: str) -> bool:
        folder = self._node(str(Path(path).parent))
        assert isinstance(folder, Folder)
        return Path(path).name in self._entries(folder, frozenset(self._changes))

    def _node(self, path: str) -> File | Folder:
        if path.startswith(".."):
            return Folder()  # above the root all is certain
        node: File | Folder = self._root
        for name in Path(path).parts:
            assert isinstance(node, Folder)
            node = self._entries(node, frozenset(self._changes))[name]
        return node


def materialise(tree: Tree, root: Path) -> None:
    """Make real folders and files of what is left."""
    root.mkdir()
    for path, data in tree.items():  # folders come before what is in them
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)
