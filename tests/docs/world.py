"""The folder that the pages' commands are run in: what they name is there, and small."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import tokenizers
import transformers

from mav.pipeline.base.model import BaseModel
from tests.support.models.tiny import rows, save_base, tiny_base
from tests.support.running.limits import EVENT, PROCESS, SCRIPT, wait_until
from tests.support.running.warm_python import write_program

ROOT: Final = Path(__file__).parents[2]
VOCAB: Final = 2048
OF_ANOTHER_VOCABULARY: Final = "Qwen/Qwen2.5-0.5B-Instruct"
BASES: Final = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-135M",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-7b-chat-hf",
)
"""Ids on the hub that stand for folders of random models here."""

_FROM_HERE: Final = (
    "benchmarks",
    "configs",
    "constraints",
    "examples",
    "pyproject.toml",
    "Makefile",
)
_KEPT: Final = (
    *("HOME", "LANG", "TMPDIR"),
    # As which kind of processor this one is to be taken.
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
)
_SAMPLE: Final = Path("pipeline", "demo", "sample")
_CHAT_TEMPLATE: Final = (
    "{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_PIP: Final = """\
#!/bin/bash
# Installs nothing, but knows which extras there are.
for extra in $(sed -n 's/.*\\[\\(.*\\)\\].*/\\1/p' <<< "$*" | tr , ' '); do
    grep -qE "^$extra = \\[" pyproject.toml || { echo "no extra $extra" >&2; exit 1; }
done
"""
_MAKE: Final = """\
#!/bin/bash
exec /usr/bin/env -u MAKEFLAGS PATH=/usr/bin:/bin make --dry-run "$@" > /dev/null
"""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class World:
    """A folder to run commands in.

    Attributes:
        folder: The folder.
        programs: Folders of `mav` and `python`, and of `pip` and `make`.
    """

    folder: Path
    programs: tuple[Path, ...]

    @property
    def environment(self) -> dict[str, str]:
        """What commands find in their environment."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {
            **kept,
            "PATH": os.pathsep.join([*map(str, self.programs), os.environ["PATH"]]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MAV_TEST_DEFAULTS": '{"extract": {"device": "cpu"}}',
            "no_proxy": "127.0.0.1,localhost",
        }

    def run(self, text: str, **environment: str) -> Ran:
        """Run a script in bash, which stops at the first command that fails."""
        found = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SCRIPT,
        )
        return Ran(code=found.returncode, out=found.stdout, err=found.stderr)

    @contextmanager
    def running(self, text: str, until: str) -> Iterator[None]:
        """Run a script beside the others, once an address answers, until the context is left."""
        log = self.folder / "background.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until(until, process, log)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(EVENT)

    def copy(self, folder: Path) -> "World":
        """Return another folder with the same in it."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return World(folder=folder, programs=self.programs)


def make_world(folder: Path) -> None:
    """Make what every page may name: bases, data, the repository's own folders."""
    for seed, name in enumerate(BASES):
        save_base(small_base(seed), folder / name)
    save_base(tiny_base(), folder / OF_ANOTHER_VOCABULARY)
    for name in _FROM_HERE:
        (folder / name).symlink_to(ROOT / name)
    _copy_sample(folder / _SAMPLE)
    _copy_dataset(folder / "Anthropic" / "hh-rlhf")


def make_programs(folder: Path) -> None:
    """Write the programs that pages name beside `mav` and `python`."""
    for name, text in (("pip", _PIP), ("make", _MAKE)):
        write_program(folder / name, text)


def small_base(seed: int) -> BaseModel:
    """A random model with a vocabulary that suits the shipped pairs, and a chat template."""
    base = tiny_base(seed=seed, vocab_size=VOCAB, max_position_embeddings=2048)
    return BaseModel(model=base.model, tokenizer=_tokenizer())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait_until(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            with opener.open(address, timeout=EVENT):
                return True
        except OSError:
            return False

    wait_until(lambda: process.poll() is not None or answers(), PROCESS)
    if process.poll() is not None:
        raise AssertionError(f"nothing answers at {address}:\n{log.read_text(errors='replace')}")


@cache
def _tokenizer() -> Any:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = sorted((ROOT / "pipeline" / "demo" / "sample").glob("*-train.jsonl"))
    model.train([str(path) for path in sample], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<eos>", bos_token="<bos>"
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _copy_sample(folder: Path) -> None:
    """Write the pairs that are shipped with the beginnings of their answers alone.

    The pages train on them many times, which takes as long as the answers have tokens.
    """
    folder.mkdir(parents=True)
    for file in (ROOT / _SAMPLE).glob("*.jsonl"):
        cut = [
            {name: _cut(text) for name, text in json.loads(line).items()}
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        written = "".join(json.dumps(row) + "\n" for row in cut)
        (folder / file.name).write_text(written, encoding="utf-8")


def _cut(transcript: str) -> str:
    start, mark, answer = transcript.rpartition("\n\nAssistant:")
    return f"{start}{mark} {' '.join(answer.split()[:10])}"


def _copy_dataset(folder: Path) -> None:
    """Write a data set as the hub has it, subsets and splits as folders and files."""
    for file, first, count in (
        ("helpful-base/train", 0, 40),
        ("harmless-base/train", 40, 60),
        ("harmless-base/test", 100, 10),
    ):
        path = folder / f"{file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        written = [json.dumps(row) + "\n" for row in rows(first + count)[first:]]
        path.write_text("".join(written), encoding="utf-8")
