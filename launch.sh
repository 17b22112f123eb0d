#!/usr/bin/env bash
# Creates .venv, installs the project, and runs an experiment or the tests. See ./launch.sh --help.
# Kept thin: experiments/NAME.py holds the experiment, pyproject.toml lists the dependencies.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=${TL_VENV:-$root/.venv}
stamp=$venv/.installed # written last: the checksum of pyproject.toml and the installed extras
oldest=3.11

say() { printf 'launch: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

scripts() { # every runnable file of experiments/, experiments/benchmarks/ and experiments/lesson/
  grep -lE '^if __name__ == "__main__":' "$root"/experiments/*.py "$root"/experiments/*/*.py 2>/dev/null || true
}

experiments() {
  local file
  scripts | while read -r file; do basename "$file" .py; done
}

script() { # the file of the experiment $1
  local file
  scripts | while read -r file; do
    if [ "$(basename "$file" .py)" = "$1" ]; then echo "$file"; fi
  done | head -n 1
}

usage() {
  printf '%s\n' "usage: ./launch.sh NAME [--flag=value ...]   run experiments/NAME.py; NAME --help lists its flags" \
    "       ./launch.sh test [pytest arguments]   run the test suite; --full adds the slow tests" \
    "       ./launch.sh local --processes=N [--restart=TIMES] NAME [--flag=value ...]   N processes on this machine" \
    "       ./launch.sh slurm [--nodes=N --gpus=N --time=T --requeue --dry_run] NAME ...   on a cluster" \
    "       ./launch.sh tpu SLICE ZONE [--type=T --spot --dry_run] NAME ...   on a TPU slice" "" \
    "Environment: PYTHON=python3.12 chooses the interpreter, TL_VENV=DIR the virtual environment (default .venv)," \
    "JAX_PLATFORMS=cpu keeps JAX on the CPU." "" "Experiments:"
  local name
  for name in $(experiments); do # the first line of the module's docstring
    printf '  %-15s %s\n' "$name" "$(sed -n 's/^r\{0,1\}"""\([^"]*\).*/\1/p' "$(script "$name")" | head -n 1)"
  done
}

nearest() { # the names closest to $1, or all names if there is no Python
  experiments | "${PYTHON:-python3}" -c '
import difflib, sys
names = sys.stdin.read().split() + ["test", "local", "slurm", "tpu"]
print(", ".join(difflib.get_close_matches(sys.argv[1], names, cutoff=0.5) or names))' "$1" 2>/dev/null ||
    experiments | tr '\n' ' '
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() { # PYTHON, or the first common name that is recent enough
  local candidate first=""
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi
  for candidate; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info < (${oldest/./, }))" 2>/dev/null; then
      echo "$candidate"
      return
    fi
    first=${first:-$candidate is $(version "$candidate" || echo "not installed")}
  done
  die "Python $oldest or newer is required, but $first; install it and run PYTHON=/path/to/python3 ./launch.sh ..."
}

accelerator() { # the extra with the JAX build for the accelerator of this machine, if it has one
  if [ "${JAX_PLATFORMS:-}" = cpu ]; then return; fi
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    # CUDA 13 requires driver 580 and compute capability 7.5.
    nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader |
      awk -F', *' 'NR == 1 { print ($1 + 0 >= 580 && $2 + 0 >= 7.5) ? "cuda" : "cuda12" }'
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || { [ -n "${TPU_NAME:-}" ] && compgen -G '/dev/vfio/[0-9]*' >/dev/null; }; then
    echo tpu
  fi
}

right_python() { # whether .venv has an interpreter, of the version of PYTHON if that is set
  [ -x "$venv/bin/python" ] && { [ -z "${PYTHON:-}" ] || [ "$(version "$venv/bin/python")" = "$(version "$PYTHON")" ]; }
}

installer() { command -v uv >/dev/null || "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

make_venv() {
  local python free need=3
  python=$(find_python)
  case $1 in *cuda*) need=10 ;; esac
  free=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1048576))
  if [ "$free" -lt "$need" ]; then
    die "the disk is too full: a new .venv needs $need GB and $root has $free GB free; free some space or move the project"
  fi
  say "creating $venv with Python $(version "$python")"
  rm -rf -- "$venv"
  if command -v uv >/dev/null; then
    uv venv --quiet --python "$(command -v "$python")" "$venv"
  elif ! "$python" -m venv "$venv" >/dev/null; then
    rm -rf -- "$venv"
    die "$python cannot create a virtual environment; install its venv module (Debian: apt install python3-venv) or uv"
  fi
}

pip_lines() { # pip's progress: one updating line on a terminal, a few lines in a log
  local line
  while read -r line; do
    case $line in
      Downloading*MB\)* | "Installing collected"*) if [ ! -t 2 ]; then say "  ${line%%: *}"; fi ;;
      ERROR*) say "$line" ;;
    esac
    if [ -t 2 ]; then printf '\r\033[K%.80s' "$line" >&2; fi
  done
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

install() { # installs the project, editable, with the given extras and those already installed
  local extra key done_key="" have="" extras
  key="$root $(cksum <"$root/pyproject.toml")"
  if [ -n "${PYTHON:-}" ]; then find_python >/dev/null; fi
  if [ -f "$stamp" ] && right_python; then { read -r done_key && read -r have; } <"$stamp" || true; fi
  extras=$have
  for extra; do
    case ",$extras," in *",$extra,"*) ;; *) extras=${extras:+$extras,}$extra ;; esac
  done
  if [ "$key" = "$done_key" ] && [ "$extras" = "$have" ]; then return; fi
  case ",$extras," in
    *,cuda*,*) ;;
    *)
      extra=$(accelerator)
      case ",$extras," in *",$extra,"*) ;; *) extras=$extras${extra:+,$extra} ;; esac
      ;;
  esac
  if ! { right_python && installer; }; then make_venv "$extras"; fi
  say "installing tl[$extras]; the first time takes a few minutes"
  rm -f "$stamp"
  if command -v uv >/dev/null; then
    uv pip install --python "$venv/bin/python" --editable "${root}[$extras]" ||
      die "uv could not install tl[$extras]; see its message above"
  else
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --editable "${root}[$extras]" 2>&1 |
      tee "$venv/install.log" | pip_lines || die "pip could not install tl[$extras]; see $venv/install.log"
  fi
  printf '%s\n%s\n' "$key" "$extras" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "installed"
}

install_alone() ( # two launches at the same time must not install into the same environment
  if command -v flock >/dev/null; then flock 9; fi
  install "$@" 9<&-
) 9<"$root/pyproject.toml"

peers() { # installs torchvision and timm without dependencies, which would replace the CPU build of torch
  local check='import importlib.util, sys; sys.exit(None in map(importlib.util.find_spec, sys.argv[1:]))'
  if "$venv/bin/python" -c "$check" torch torchvision timm keras; then return; fi
  say "installing torch, torchvision, timm and Keras for comparison; this takes a few minutes"
  if ! { pip_quietly torch==2.13.0 keras && pip_quietly --no-deps torchvision==0.28.0 timm; }; then
    die "pip could not install them"
  fi
}

pip_quietly() {
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$venv/bin/python" "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

check_experiment() {
  if ! experiments | grep -xF -- "$1" >/dev/null; then # grep -q would exit early and break the pipe
    die "there is no experiment '$1'; nearest: $(nearest "$1"); ./launch.sh --help lists all"
  fi
}

prepare() { # checks that the experiment $1 exists, installs what it needs, and sets `command`
  check_experiment "$1"
  local more=()
  if [ "$1" = plan ]; then more=(tpu); fi # the TPU compiler, which needs no TPU
  install_alone offline hub keras "${more[@]}"
  if [ "$1" = parity ]; then peers; fi
  # -P: modules in the user's current folder must not shadow the project's.
  local module
  module=$(script "$1") && module=${module#"$root"/} && module=${module%.py}
  command=("$venv/bin/python" -P -m "${module//\//.}")
}

quoted() { # the words as a shell reads them
  local word line=""
  for word; do
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,~-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

flag_value() { # the value of the flag $1 in the other words
  local flag=--$1 word before="" value=""
  for word in "${@:2}"; do
    case $word in "$flag="*) value=${word#*=} ;; esac
    if [ "$before" = "$flag" ]; then value=$word; fi
    before=$word
  done
  printf '%s\n' "$value"
}

name=${1:-}
case $name in
  "" | -h | --help | help)
    usage
    ;;
  test)
    shift
    more=()
    case " $* " in *" --full "*) more=(tpu) ;; esac # the TPU compiler
    install_alone offline test "${more[@]}"
    cd "$root"
    exec "$venv/bin/python" -m pytest -n 2 --dist=worksteal "$@" # contiguous halves: tests of one file share compiled programs
    ;;
  install) # only installs, with further extras
    install_alone offline hub keras "${@:2}"
    ;;
  tpu | slurm)
    # shellcheck source=launch.d/tpu.sh source-path=SCRIPTDIR
    . "$root/launch.d/$name.sh"
    "$name" "${@:2}"
    ;;
  local)
    shift
    words=("$venv/bin/python" -P -m tl.scale.local)
    while [[ ${1:-} == --* ]]; do words+=("$1") && shift; done
    prepare "${1:-}"
    exec "${words[@]}" "${command[@]}" "${@:2}"
    ;;
  *)
    prepare "$name"
    exec "${command[@]}" "${@:2}"
    ;;
esac
