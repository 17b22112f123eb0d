"""Speed of the loader compared with torchvision's DataLoader; `bench` measures it."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tl import data, pixels
from tl.data.feed import cores
from tl.data.loader import stream
from tl.data.plan import Plan
from tl.evaluation.speed import Workload
from tl.evaluation.timing import Row, compared, rate_row, spent

CHILD = """
import sys, time
from experiments.benchmarks import sources
sources.import_torchvision()
import torch
from torchvision import transforms
from torchvision.datasets.folder import default_loader

prepare = transforms.Compose(
    [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
)

class Files(torch.utils.data.Dataset):  # as ImageFolder reads each of its files
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return prepare(default_loader(self.paths[index])), 0

paths = open(sys.argv[1]).read().splitlines()
loader = torch.utils.data.DataLoader(Files(paths), int(sys.argv[2]), num_workers=int(sys.argv[3]))
for _ in sys.stdin:
    batches = iter(loader)
    first = len(next(batches)[0])
    began = time.perf_counter()
    for batch in batches:
        pass
    print((len(paths) - first) / (time.perf_counter() - began), flush=True)
"""


def speed(spec: str, peers: dict[str, str], work: Workload) -> list[Row]:
    """Images per second after the first batch, from threads and from processes, in turns.

    Args:
      spec: a data set of files; "" for the packaged photographs, repeated.
      peers: compared with "torch" if it is among them.
      work: its batch size, rounds and seed.

    Raises:
      ValueError: too few files, or torchvision fails.
    """
    files = [photo.path for photo in data.photographs()] * 16
    if spec:
        examples = data.get(spec).examples
        files = [e.path for e in examples if isinstance(e.path, Path)]
    b, workers = work.batch_size, cores()
    if len(files) < 4 * b:
        raise ValueError(
            f"`data` has too few files for four batches: got {len(files)}, expected {4 * b} or more"
        )
    transform = functools.partial(pixels.prepare, pixels.TORCHVISION)
    plan = Plan(len(files), b, 1, work.seed)

    def tl_rate(workers: int) -> float:
        with stream(files, transform, plan, workers=workers) as batches:
            next(batches)
            seconds, n = spent(lambda: sum(int(batch.valid.sum()) for batch in batches))
            return n / seconds

    passed: dict[str, list[float]] = {"threads": [], f"{workers} processes": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        child: Any = None
        if "torch" in peers:
            listed = Path(folder) / "files.txt"
            order = np.concatenate([plan.rows(step) for step in range(len(plan))])
            listed.write_text("\n".join(str(files[row].absolute()) for row in order[order >= 0]))
            words = [sys.executable, "-W", "ignore", "-c", CHILD, listed, b, workers]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            child = subprocess.Popen(list(map(str, words)), cwd=Path(__file__).parents[2], **pipes)
            stack.enter_context(child)
        for i in range(work.rounds + 1):  # the first fills the file cache and does not count
            passes = {name: tl_rate(n) for name, n in zip(passed, (0, workers), strict=False)}
            if child is not None:
                print(file=child.stdin, flush=True)
                if not (answer := child.stdout.readline()):
                    raise ValueError("torchvision's loader failed; its message is above")
                passes["torch"] = float(answer)
            for name, rate in passes.items() if i else ():
                passed[name].append(rate)
    theirs = passed.pop("torch")
    version = f"torchvision's DataLoader, {workers} processes" if theirs else None
    row = lambda name: rate_row(f"loader, {name}", "-", passed[name])
    return [compared(row(name), version, theirs) for name in passed]
