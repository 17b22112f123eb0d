"""The documents agree with the data and the code: numbers, links, commands, examples."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import functools
import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import flags

import tl
from tests import toys
from tl import attacks, cli, explain
from tl.attacks import norms
from tl.data import augment
from tl.pages import remeasured
from tl.reporting import documents, results
from tl.training import adversarial, recipes, regularizers, rules
from tl.visualize import grid, images, specs
from tl.weights import zoo

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "tl").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
RESULTS = ROOT / "experiments" / "results"
CLAIMS = results.load(RESULTS)


def claim(**changes: Any) -> results.Claim:
    """A small claim that is correct."""
    return {
        "name": "fast",
        "group": "Speed",
        "claim": "It is fast.",
        "command": "./launch.sh bench --arch=vgg16",
        "commit": "abcdef1",
        "date": "2026-11-28",
        "machine": "1 CPU core",
        "n": 10,
        "value": 50.0,
        "unit": "%",
        "interval": [40, 60],
        "path": ["test", "top1"],
        **changes,
    }


# ---- numbers are data ----


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_complete_and_its_file_is_formatted(name: str) -> None:
    file = RESULTS / f"{name}.json"

    assert not results.check(name, CLAIMS[name])
    assert file.read_text(encoding="utf-8") == results.dumps(CLAIMS[name])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"interval": [60, 70]}, "interval"),
        ({"value": float("nan")}, "finite"),
        ({"value": "50"}, "wrong type"),
        ({"commit": "main"}, "commit"),
        ({"date": "28 November"}, "date"),
        ({"name": "slow"}, "name"),
        ({"command": "make bench"}, "command"),
        ({"published": {"value": 1.0}}, "source"),
        ({"comment": "reached"}, "unknown key"),
        ({"also": [{"value": 1.0}]}, "missing key what"),
    ],
)
def test_a_wrong_claim_is_reported(changes: dict[str, Any], problem: str) -> None:
    assert problem in " ".join(results.check("fast", claim(**changes)))


def test_the_generated_documents_agree_with_the_data() -> None:
    for file, text in documents.generate(ROOT, CLAIMS, zoo.blocks()).items():
        current = file.read_text(encoding="utf-8")
        assert current == text, f"{file.name} is out of date; run ./launch.sh rerun --tables"


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match="'predict_imagenet'"):
        results.find(CLAIMS, "predict_imagenets")


def test_a_new_run_is_compared_with_the_claim_and_updates_it() -> None:
    old = claim(also=[{"what": "loss", "value": 0.5, "unit": "nats", "path": ["test", "nll"]}])
    new_run = {"test": {"top1": 0.625, "top1_ci95": [0.5, 0.75], "nll": 0.25}}
    new_origin = {"commit": "1234567", "date": "2026-12-01", "machine": "1 TPU"}

    comparison = results.compare(old, new_run, new_origin)
    updated = results.updated(old, new_run, new_origin)

    assert [v["value"] for v in comparison["before"]["values"]] == [50.0, 0.5]
    assert [v["value"] for v in comparison["after"]["values"]] == [62.5, 0.25]
    assert "50.0 % (40 to 60), now 62.5 % (50.0 to 75.0)" in results.lines(comparison)[1]
    assert updated["interval"] == [50.0, 75.0] and updated["also"][0]["value"] == 0.25
    assert updated["commit"] == "1234567" and not results.check("fast", updated)
    assert remeasured.page(json.loads(json.dumps(comparison)), ROOT).sections


def test_a_mean_over_seeds_has_its_spread_and_its_interval() -> None:
    new_run = {"seeds": {"top1": [0.5, 0.7], "mean": 0.6, "std": 0.1414, "ci95": [0.1, 0.9]}}
    old = claim(path=["seeds", "mean"], spread=3.0)
    updated = results.updated(old, new_run, {"commit": "1234567", "date": "2026-12-01"})
    assert (updated["value"], updated["spread"], updated["interval"]) == (60, 14.14, [10, 90])


def test_a_missing_path_in_a_new_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="top1"):
        results.compare(claim(), {"test": {}}, {"commit": "", "date": "", "machine": ""})


def test_a_path_selects_items_and_combines_lists() -> None:
    result = {"rows": [{"arch": "a", "error": 1.0}, {"arch": "b", "error": 3.0}]}

    assert results.read(result, ["rows", {"arch": "b"}, "error"]) == 3.0
    assert results.read(result, ["rows", 0, "error"]) == 1.0
    assert results.read(result, ["rows", "max", "error"]) == 3.0
    assert results.read(result, ["rows", "mean", "error"]) == 2.0


def test_the_parity_claim_is_the_maximum_over_pairs_that_exist() -> None:
    pairs = {f"{n}, {source}" for n in tl.names() for source in tl.backbones.get(n).sources}
    measured = {row["what"]: row["value"] for row in CLAIMS["parity"]["also"]}

    assert set(measured) <= pairs
    assert CLAIMS["parity"]["n"] == len(measured)
    assert CLAIMS["parity"]["value"] == max(measured.values())


def test_placeholders_of_a_command_must_have_values() -> None:
    data = claim(command="./launch.sh predict --images=DATA/dogs --model=DIR")

    assert results.arguments(data, {"DATA": "/d", "DIR": "m"})[1:] == [
        "--images=/d/dogs",
        "--model=m",
    ]
    with pytest.raises(ValueError, match="DIR"):
        results.arguments(data, {"DATA": "/d"})


def test_the_readme_has_ten_results() -> None:
    assert sorted(c["readme"] for c in CLAIMS.values() if "readme" in c) == list(range(1, 11))
    assert all("path" in c for c in CLAIMS.values() if "readme" in c)


LAUNCHER = """#!/bin/sh
for word; do case $word in --workdir=*) folder=${word#--workdir=} ;; esac; done
mkdir -p "$folder"
echo '{"test": {"top1": 0.55, "top1_ci95": [0.5, 0.6]}}' > "$folder/result.json"
echo '{"name": "bench", "device": {"platform": "cpu"},
  "versions": {"python": "3.11", "jax": "0.10"}, "host": {"cpus": 2},
  "git_commit": "0123456789", "started": "2026-12-01T10:00"}' \
  > "$folder/config.json"
"""


def test_rerun_measures_a_number_and_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    (folder / "fast.json").write_text(results.dumps(claim()))
    (tmp_path / "launch.sh").write_text(LAUNCHER)
    (tmp_path / "launch.sh").chmod(0o755)
    script = ROOT / "experiments" / "rerun.py"
    words = [f"--results={folder}", f"--workdir={tmp_path / 'run'}", "--write", "fast"]

    process = subprocess.run(
        [sys.executable, "-P", str(script), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert process.returncode == 0, process.stderr
    assert "before 50.0 % (40 to 60), now 55.0 % (50.0 to 60.0)" in process.stdout
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["after"]["values"][0]["value"] == 55.0 and saved["before"]["commit"] == "abcdef1"
    assert results.load(folder)["fast"]["commit"] == "0123456"


# ---- the pages ----


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def column(page: Path, header: str, index: int = 0) -> list[str]:
    """One column of the table whose first header is `header`, without backticks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | ")[index].replace("`", "").strip())
    return rows


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_bytes()

    assert text.count(b"\n") <= 150
    assert len(text) <= 9 * 1024


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_of_a_page_end_by_column_100(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()

    assert not [line for line in lines if len(line) > 100 and line[0] not in "|!"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]

    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]

    assert not missing


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert not [page_id(p) for p in PAGES[1:] if f"({page_id(p)})" not in text]


# ---- commands ----


@functools.cache
def scripts() -> dict[str, str]:
    """Command -> module, as launch.sh finds them."""
    files = sorted((ROOT / "experiments").rglob("*.py"))
    names = {f.stem: f for f in files if '\nif __name__ == "__main__":' in f.read_text()}
    return {
        name: ".".join(file.relative_to(ROOT).with_suffix("").parts) for name, file in names.items()
    }


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """The flags of a command, defined as its last lines define them, and removed again."""
    module = importlib.import_module(scripts()[command])
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    launch = next(c for c in calls if ast.unparse(c.func) in ("cli.launch", "cli.launch_on_folder"))
    before = set(flags.FLAGS)
    cli.define_run_flags()
    for function in launch.args[2:]:
        eval(ast.unparse(function), {"builtins": builtins, **vars(module)})()
    names = set(flags.FLAGS) - before
    for name in names:
        delattr(flags.FLAGS, name)
    return frozenset(names)


def commands(text: str) -> Iterator[list[str]]:
    """The words after `./launch.sh` of each command in a text, in code blocks and in backticks."""
    text = text.replace("\\\n", "")  # a command that continues on the next line
    for line in re.findall(r"`(\./launch\.sh [^`]+)`", text):
        yield shlex.split(line)[1:]
    for line in re.findall(r"^(\./launch\.sh [^#`|\n]+)", text, flags=re.MULTILINE):
        yield shlex.split(line)[1:]


# Command of launch.sh that runs an experiment elsewhere -> its own flags, before the experiment.
# Other flags of slurm are options of sbatch.
LAUNCHERS = {
    "local": {"processes", "restart"},
    "slurm": {"nodes", "gpus", "time", "requeue", "dry_run", "partition", "account", "mem"},
    "tpu": {"type", "spot", "queued", "version", "retries", "delete", "dry_run"},
}


def problems(words: list[str]) -> list[str]:
    """The problems of a command: an unknown name, or flags that the script does not define."""
    name, *arguments = words
    if name == "install":
        return []
    if name in LAUNCHERS:
        arguments = arguments[2:] if name == "tpu" else arguments  # the slice and its zone
        own = list(itertools.takewhile(lambda word: word.startswith("--"), arguments))
        unknown = {re.split("[= ]", word[2:])[0] for word in own} - LAUNCHERS[name]
        return [f"{name} has no flag --{flag}" for flag in unknown] + (
            problems(arguments[len(own) :]) if len(own) < len(arguments) else []
        )
    if name in ("NAME", "test"):
        return []
    if name not in scripts():
        return [f"unknown command {name}"]
    if "--" in arguments:  # sweep: the experiment with its flags
        end = arguments.index("--")
        return problems([name, *arguments[:end]]) + problems(arguments[end + 1 :])
    used = [re.split("[= ]", word[2:])[0] for word in arguments if word.startswith("--")]
    defined = flags_of(name)
    if name == "plan" and arguments[0] in scripts():  # the command that is planned
        defined |= flags_of(arguments[0])
    defined |= {f"no{flag}" for flag in defined} | {"help", "flag"}
    return [f"{name} has no flag --{flag}" for flag in used if flag not in defined]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_of_a_page_exists_with_its_flags(page: Path) -> None:
    written = list(commands(page.read_text(encoding="utf-8")))

    assert not [problem for words in written for problem in problems(words)]


@pytest.mark.parametrize("name", CLAIMS)
def test_the_command_of_a_claim_exists_with_its_flags(name: str) -> None:
    assert not problems(shlex.split(CLAIMS[name]["command"])[1:])


def test_the_page_of_commands_lists_every_command_and_only_its_flags() -> None:
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, flags=re.MULTILINE)
    table = {name: re.findall(r"--(\w+)", cell) for name, cell in rows if name in scripts()}

    assert set(table) == set(scripts()) - {"__main__"}
    assert not [
        p for name, names in table.items() for p in problems([name, *map("--{}".format, names)])
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_flag_in_backticks_is_a_flag_of_some_command(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    defined = set[str]().union(*map(flags_of, scripts()), *LAUNCHERS.values())
    defined |= {"full", "help", "flag"}
    defined |= {f"no{flag}" for flag in defined}

    assert not set(re.findall(r"`--(\w+)[^`]*`", text)) - defined


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_and_every_result_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tl|tests|experiments)/[\w/.]+)`", text)
    names = re.findall(r"\[`(\w+)`\]\([./\w]*RESULTS.md\)", text)

    assert not [
        p
        for p in paths
        if not {"NAME", "FAMILY"} & set(re.split(r"[/.]", p)) and not (ROOT / p).exists()
    ]
    assert not set(names) - set(CLAIMS)


# ---- examples ----


@pytest.mark.full
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "pycon")], ids=page_id)
def test_the_examples_of_a_page_run(page: Path) -> None:
    parser = doctest.DocTestParser()
    examples = parser.get_doctest("\n".join(blocks(page, "pycon")), {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    lines: list[str] = []

    runner.run(examples, out=lines.append)

    assert runner.summarize(verbose=False).failed == 0, "".join(lines)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=page_id)
def test_the_code_of_a_page_uses_names_and_arguments_that_exist(page: Path) -> None:
    assert not list(unresolved("\n".join(blocks(page, "python"))))


def unresolved(source: str) -> Iterator[str]:
    """Attributes of imported modules that do not exist, and arguments that no function takes."""
    tree, scope = ast.parse(source), {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), scope)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Call):
            continue
        try:
            value = eval(ast.unparse(node.func if isinstance(node, ast.Call) else node), scope)
        except AttributeError as error:
            yield f"{ast.unparse(node)}: {error}"
            continue
        except Exception:  # an expression of local variables
            continue
        if isinstance(node, ast.Call) and isinstance(value, types.FunctionType):
            keywords = {k.arg: None for k in node.keywords if k.arg}
            try:
                inspect.signature(value).bind_partial(*node.args, **keywords)
            except TypeError as error:
                yield f"{ast.unparse(node)}: {error}"


@pytest.mark.full  # trains
def test_the_first_example_of_the_readme_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 33 of the packaged images at 48 pixels, with a network that compiles quickly."""
    load = tl.load
    with toys.package_or_skip():
        cells = tl.data.get("elpv")
        clf, variables = load("squeezenet1_1", weights="package")
    few = dataclasses.replace(cells, examples=cells.examples[::80])
    small = lambda name: (clf.with_pixels(size=48), variables)

    monkeypatch.setattr(tl.data, "get", lambda name: few)
    monkeypatch.setattr(tl, "load", small)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))

    exec(blocks(ROOT / "README.md", "python")[0], scope := {})

    assert scope["predictions"].logits.shape[1] == 2
    saved, _ = load(str(tmp_path / "runs" / "cells"))
    assert saved.classes is not None and saved.classes.display(1) == "defective"


# ---- matrices to choose from ----


def test_the_tables_of_explanations_list_every_method_and_check() -> None:
    page = ROOT / "tl/explain/README.md"
    assert column(page, "method") == list(explain.METHODS)
    assert column(page, "test") == list(explain.checks.CHECKS)


VISUALIZE, TRAINING = ROOT / "tl/visualize/README.md", ROOT / "tl/training/README.md"


def test_the_matrix_of_attacks_lists_every_attack_with_its_norms() -> None:
    page = ROOT / "tl/attacks/README.md"
    table = dict(zip(column(page, "attack"), column(page, "attack", 1), strict=True))
    nearest = dict(zip(column(page, "attack"), column(page, "attack", 3), strict=True))

    assert list(table) == list(attacks.ATTACKS)
    for name, make in attacks.ATTACKS.items():
        search = make()
        searches = [search] if isinstance(search, attacks.Search) else list(search)
        works = [n for n in norms.NORMS if all(not s.norms or n in s.norms for s in searches)]
        assert table[name].lower().split(", ") == works, name
        assert nearest[name] == ("yes" if all(s.nearest for s in searches) else "no"), name


def test_the_matrices_of_training_list_every_mode() -> None:
    assert ", ".join(column(TRAINING, "tune")) == ", ".join(rules.TUNE)
    assert column(TRAINING, "recipe") == recipes.names()
    assert column(TRAINING, "penalty") == list(regularizers.PENALTIES)
    assert column(TRAINING, "bn") == list(rules.BN)
    assert column(TRAINING, "adversarial") == list(adversarial.METHODS)


def test_the_matrices_of_ideal_images_list_every_row() -> None:
    forms = [word.partition(":")[0] for word in column(VISUALIZE, "--objective")]

    assert forms == list(specs.KINDS)
    assert set(column(VISUALIZE, "--parameterization")) == set(images.PARAMETERIZATIONS)
    assert set(column(VISUALIZE, "--transforms")) == set(grid.TRANSFORMS)


def test_the_tables_of_data_list_every_row() -> None:
    kinds = [word.partition(":")[0] for word in column(ROOT / "tl/data/README.md", "name")]

    assert set(kinds) == set(tl.data.SETS)
    assert column(ROOT / "tl/data/README.md", "word") == list(augment.AUGMENTATIONS)
