# shellcheck shell=bash disable=SC2154 # root is of launch.sh
# ./launch.sh tpu: creates or reuses a TPU slice, copies the current commit, and runs an experiment on all its workers.
# Sourced by launch.sh. The run is detached, so that it survives a lost connection; its log is streamed from worker 0.

tpu_usage="./launch.sh tpu NAME ZONE [--type=v5litepod-8 --spot --queued --version=RUNTIME --retries=100 --delete --dry_run] EXPERIMENT flags"

tpu() {
  slice=${1:-} zone=${2:-} type=v5litepod-8 spot="" queued="" version="" retries=100 delete="" dry=""
  if [[ -z $slice || $slice == -* || -z $zone || $zone == -* ]]; then die "tpu needs the name and the zone of the slice; write $tpu_usage"; fi
  shift 2
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --type=*-[0-9]*) type=${1#*=} ;;
      --version=?*) version=${1#*=} ;;
      --retries=[0-9]*) retries=${1#*=} ;;
      --spot) spot=1 ;;
      --queued) queued=1 ;;
      --delete) delete=1 ;;
      --dry_run) dry=1 ;;
      *) die "unknown flag of tpu: got $1; write $tpu_usage" ;;
    esac
    shift
  done
  if [ -z "$dry" ] && ! command -v gcloud >/dev/null; then die "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"; fi
  if [ $# = 0 ] && [ -n "$delete" ]; then tpu_delete && return; fi
  check_experiment "${1:-}"
  experiment=$1 commit=$(git -C "$root" rev-parse HEAD 2>/dev/null) || die "tpu copies a commit, but $root is not a git checkout"
  if [ -n "$(git -C "$root" status --porcelain)" ]; then say "uncommitted changes are not copied; the slice runs commit ${commit:0:7}"; fi
  case $type in # https://cloud.google.com/tpu/docs/runtimes
    v5lite*) : "${version:=v2-alpha-tpuv5-lite}" ;;
    v5p*) : "${version:=v2-alpha-tpuv5}" ;;
    v6e*) : "${version:=v2-alpha-tpuv6e}" ;;
    *) : "${version:=tpu-ubuntu2204-base}" ;;
  esac
  workdir=$(flag_value workdir "${@:2}")
  if [ -z "$workdir" ]; then workdir=runs/$experiment/$slice-$(date +%Y%m%d-%H%M%S) && set -- "$@" "--workdir=$workdir"; fi
  if [[ $workdir != gs://* ]]; then # a host has at most 8 chips; the number in a type counts chips, or cores before v5e
    if [ "${type##*-}" -gt 8 ]; then die "a $type has several hosts, whose disks are separate; add --workdir=gs://BUCKET/FOLDER"; fi
    say "the results stay on the disk of the slice until the end, and a preemption removes it; --workdir=gs://BUCKET/FOLDER keeps them"
  fi
  folder=tl-${commit:0:12} gcs="" remote_path="export PATH=\$HOME/.local/bin:\$PATH"
  if [[ $* == *gs://* ]]; then gcs=1; fi
  trap 'tpu_stop' INT TERM
  if [ -n "$delete" ]; then trap 'tpu_delete || true' EXIT; fi
  local status tries=0 resume=""
  prepared=""
  while :; do
    status=0
    tpu_slice
    tpu_run "$@" $resume || status=$?
    if [ "$status" != 75 ]; then break; fi
    if [ "$tries" -ge "$retries" ]; then say "preempted $((tries + 1)) times, more than --retries=$retries" && break; fi
    tries=$((tries + 1)) resume=""
    if tpu_has_checkpoint; then resume=--resume; fi
    say "preempted; restart $tries of $retries${resume:+ with $resume}"
  done
  tpu_bring_back || say "the results could not be copied from $workdir"
  if [ -z "$delete" ]; then say "the slice $slice still runs and costs money; ./launch.sh tpu $slice $zone --delete removes it"; fi
  exit "$status"
}

tpu_run() { # prepares the slice, runs the experiment to its end, and returns its status: 75 after a preemption
  if [ -z "$prepared" ]; then tpu_prepare || { tpu_is_ready && die "could not install on $slice; see the message above"; return 75; }; fi
  tpu_start "$@" || { tpu_is_ready && die "could not start on $slice; see the message above"; return 75; }
  tpu_follow
}

tpu_is_ready() { [[ $(tpu_state) == READY* ]]; }

emit() { # runs a command, or prints it with --dry_run
  if [ -n "$dry" ]; then quoted "$@"; else "$@"; fi
}

on_workers() { # on_workers all|0 SCRIPT: runs a script of the shell on workers
  emit gcloud compute tpus tpu-vm ssh "$slice" --zone="$zone" --worker="$1" --command="$2"
}

tpu_state() { # READY, PREEMPTED, ...; nothing if there is no such slice
  gcloud compute tpus tpu-vm list --zone="$zone" --format='value(name.basename(),state,acceleratorType)' |
    awk -v name="$slice" '$1 == name { print $2, $3 }'
}

tpu_queue_state() {
  gcloud compute tpus queued-resources list --zone="$zone" --format='value(name.basename(),state.state)' |
    awk -v name="$slice" '$1 == name { print $2 }'
}

tpu_delete() { # deletes the request in the queue and the slice, whichever exist
  if [ -n "$dry" ]; then
    if [ -n "$queued" ]; then set -- queue; fi
  elif [ -n "$(tpu_queue_state)" ]; then
    set -- queue
  elif [ -z "$(tpu_state)" ]; then
    say "there is no slice $slice in $zone" && return
  fi
  say "deleting the slice $slice"
  if [ "${1:-}" = queue ]; then
    emit gcloud compute tpus queued-resources delete "$slice" --zone="$zone" --force --quiet
  else
    emit gcloud compute tpus tpu-vm delete "$slice" --zone="$zone" --quiet
  fi
}

tpu_create() { # a request that waits in a queue, or a slice at once; without capacity, tries again after a minute
  local message
  if [ -n "$queued" ]; then
    set -- queued-resources create "$slice" --node-id="$slice" --runtime-version="$version"
  else
    set -- tpu-vm create "$slice" --version="$version"
  fi
  set -- gcloud compute tpus "$@" --zone="$zone" --accelerator-type="$type" ${spot:+--spot}
  if [ -n "$dry" ]; then emit "$@" && return; fi
  say "creating the slice $slice, a $type"
  prepared=""
  while ! message=$("$@" 2>&1); do
    case $message in
      *[Qq]uota*) die "$message" ;;
      *"no more capacity"* | *"nsufficient capacity"* | *RESOURCE_EXHAUSTED* | *"currently unavailable"*) ;;
      *) die "$message" ;;
    esac
    if [ -n "$(tpu_state)" ]; then return; fi # tpu_slice judges what is there
    say "$zone has no $type to spare; trying again in 60 s"
    sleep 60
  done
}

tpu_slice() { # returns when the slice is ready; there is never more than one, because all have the same name
  local state kind
  if [ -n "$dry" ]; then
    emit gcloud compute tpus tpu-vm list --zone="$zone" # if the slice is there, it is used
    tpu_create && return
  fi
  while :; do
    state=$(tpu_state) || die "gcloud could not list the slices of $zone; see its message above"
    kind=${state#* } state=${state%% *}
    case $state in
      READY)
        if [ "$kind" != "$type" ]; then die "$slice is a $kind, expected a $type; give another NAME, or --type=$kind"; fi
        return
        ;;
      PREEMPTED | TERMINATED) tpu_delete ;;
      STOPPED | STOPPING) die "$slice is $state; start it (gcloud compute tpus tpu-vm start $slice --zone=$zone) or add --delete" ;;
      "")
        case ${queued:+$(tpu_queue_state)} in
          "") tpu_create ;;
          FAILED | SUSPEND*) tpu_delete ;;
          *) sleep 30 ;;
        esac
        ;;
      *) sleep 30 ;;
    esac
  done
}

tpu_prepare() { # copies the commit and installs it; TPU VMs have Python 3.10, so uv brings a newer one
  local archive=${TMPDIR:-/tmp}/$folder.tar.gz
  emit git -C "$root" archive --format=tar.gz --prefix="$folder/" --output="$archive" "$commit" &&
    emit gcloud compute tpus tpu-vm scp "$archive" "$slice:" --zone="$zone" --worker=all || return
  say "installing on all workers of $slice; the first time takes a few minutes"
  on_workers all "tar xzf $folder.tar.gz && cd $folder && $remote_path && { command -v uv >/dev/null || pip3 install --quiet --user uv; } && uv python install --quiet 3.12 && TPU_NAME=$slice PYTHON=\$(uv python find 3.12) ./launch.sh install${gcs:+ gcs}" &&
    prepared=1
}

tpu_start() { # starts the experiment on all workers, detached; its shell outlives SIGTERM, to write the status
  local run
  run="trap : TERM; ./launch.sh $(quoted "$@") >run.log 2>&1; echo \$? >run.status"
  on_workers all "cd $folder && if [ -s run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then echo 'another run is active on this slice' >&2; exit 1; fi && rm -f run.status && $remote_path && export TL_DISTRIBUTED=1 TL_COMMIT=$commit && { setsid nohup bash -c $(quoted "$run") </dev/null >/dev/null 2>&1 & echo \$! >run.pid; }"
}

tpu_follow() { # streams the log of worker 0 and returns the status of the run: 75 after a preemption
  local lines=0 log report codes state
  if [ -n "$dry" ]; then log=/dev/null; else log=$(mktemp); fi
  while :; do
    # shellcheck disable=SC2094 # the count is taken before tee appends
    lines=$(wc -l <"$log")
    on_workers 0 "cd $folder && tail -n +$((lines + 1)) -f --pid=\$(cat run.pid) run.log" | tee -a "$log" &
    wait $! || true
    if report=$(on_workers all "cd $folder && for i in \$(seq 60); do [ -s run.status ] && break; sleep 1; done; code=\$(cat run.status 2>/dev/null || if kill -0 \$(cat run.pid); then echo running; else echo 75; fi); [ \$code = 0 ] || tail -n 3 run.log; echo status \$code"); then
      if [ -n "$dry" ]; then echo "$report" && return; fi
      codes=$(awk '$1 == "status" { print $2 }' <<<"$report")
      if grep -qx 75 <<<"$codes"; then return 75; fi
      if grep -qx running <<<"$codes"; then continue; fi
      if [ -n "$codes" ]; then
        codes=$(sort -n <<<"$codes" | tail -n 1)
        if [ "$codes" != 0 ]; then grep -v '^status' <<<"$report" >&2 || true; fi
        return "$codes"
      fi
    fi
    state=$(tpu_state) || state="READY $type" # a lost connection says nothing about the slice
    if [ "${state%% *}" != READY ]; then return 75; fi
    say "the connection to $slice was lost; connecting again in 10 s"
    sleep 10
  done
}

tpu_has_checkpoint() {
  if [[ $workdir == gs://* ]]; then
    [ -n "$(gcloud storage ls "$workdir/checkpoints/" 2>/dev/null)" ]
  else
    on_workers 0 "ls $folder/$(quoted "$workdir")/checkpoints/*/* >/dev/null" 2>/dev/null
  fi
}

tpu_bring_back() { # copies the results, without checkpoints in a bucket, to the folder of the same name here
  local here=runs/$experiment/${workdir##*/}
  say "copying the results to $here"
  emit mkdir -p "$here"
  if [[ $workdir == gs://* ]]; then
    emit gcloud storage rsync --recursive --exclude='^checkpoints/' "$workdir" "$here"
  else
    emit gcloud compute tpus tpu-vm scp --recurse "$slice:$folder/$workdir/." "$here" --zone="$zone" --worker=0
  fi
}

tpu_stop() { # Ctrl-C: the run saves a checkpoint and stops
  trap - INT TERM
  say "stopping the run on $slice"
  on_workers all "cd $folder && kill -TERM -- -\$(cat run.pid)" || true
  exit 130
}
