# shellcheck shell=bash disable=SC2154 # root is of launch.sh
# ./launch.sh slurm: submits an experiment to SLURM, one task per GPU. Sourced by launch.sh.

slurm_usage="./launch.sh slurm [--nodes=1 --gpus=1 --time=24:00:00 --requeue --dry_run, and options of sbatch] EXPERIMENT flags"

slurm() {
  local nodes=1 gpus=1 requeue="" dry="" cells="" options=() script
  options=(--time=24:00:00)
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --nodes=[1-9]*) nodes=${1#*=} ;;
      --gpus=[0-9]*) gpus=${1#*=} ;;
      --dry_run) dry=1 ;;
      --cells=?*) cells=${1#*=} ;; # of sweep: the command of task N of an array is line N of this file
      --requeue) requeue=1 && options+=("$1") ;;
      --nodes=* | --gpus=*) die "expected a number: got $1; write $slurm_usage" ;;
      --[a-z]*=?*) options+=("$1") ;; # the last one of several counts
      *) die "slurm takes options as --name=value: got $1; write $slurm_usage" ;;
    esac
    shift
  done
  check_experiment "${1:-}"
  script=$(slurm_script "$@")
  if [ -n "$dry" ]; then
    printf "sbatch <<'JOB'\n%s\nJOB\n" "$script"
  else
    if ! command -v sbatch >/dev/null; then die "sbatch is not installed; run this on the login node of a SLURM cluster"; fi
    mkdir -p runs/slurm
    sbatch <<<"$script"
  fi
}

# shellcheck disable=SC2016 # the variables are of the job
slurm_script() { # the job. Tasks share all GPUs of their node: JAX takes one for each task.
  local workdir
  workdir=$(flag_value workdir "${@:2}")
  printf '%s\n' '#!/usr/bin/env bash'
  printf '#SBATCH %s\n' --job-name="tl-$1" --nodes="$nodes" --ntasks-per-node="$((gpus > 0 ? gpus : 1))" \
    --signal=TERM@300 --open-mode=append --output=runs/slurm/%x-%j.txt "${options[@]}"
  if [ "$gpus" -gt 0 ]; then printf '#SBATCH %s\n' --gpus-per-node="$gpus"; fi
  printf '%s\n' 'set -uo pipefail' 'trap : TERM # SLURM signals the tasks; this script waits for them' \
    "launch=$(quoted "$root/launch.sh")" "command=($(quoted "$@"))"
  if [ -n "$cells" ]; then
    printf '%s\n' "eval \"command=(\$(sed -n \"\${SLURM_ARRAY_TASK_ID}p\" $(quoted "$cells")))\"" 'workdir=${command[${#command[@]}-1]#--workdir=}'
  elif [ -n "$workdir" ]; then
    printf '%s\n' "workdir=$(quoted "$workdir")"
  else
    printf '%s\n' "workdir=runs/$1/slurm-\$SLURM_JOB_ID" 'command+=("--workdir=$workdir")'
  fi
  printf '%s\n' 'if compgen -G "$workdir/checkpoints/*/*" >/dev/null; then command+=(--resume); fi' '"$launch" install || exit 1'
  if [ "$gpus" -gt 0 ]; then
    printf '%s\n' "found=\$(srun --ntasks=$nodes --ntasks-per-node=1 nvidia-smi -L | grep -c '^GPU')" \
      "if [ \"\$found\" != $((nodes * gpus)) ]; then echo \"found \$found GPUs, expected $((nodes * gpus)); check --gpus and the partition\" >&2; exit 1; fi"
  fi
  printf '%s\n' 'srun "$launch" "${command[@]}"' 'status=$?'
  if [ -n "$requeue" ]; then
    printf '%s\n' '# 75: preempted or out of time. SLURM counts the restarts.' \
      'if [ "$status" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then scontrol requeue "$SLURM_JOB_ID" && sleep 60; fi'
  fi
  printf '%s\n' 'exit "$status"'
}
