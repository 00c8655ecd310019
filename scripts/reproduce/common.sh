# Sourced by the scripts of this folder: their options, and chains of commands that are listed or carried out.
#
# Options, in this order: [--list] [--scale full|short|smoke] [OUT] [data flags]
#   --list    prints every command and ends
#   OUT       folder of everything (runs/<name of the script> when not given)
# Environment: JOBS chains run at once (1), each on THREADS threads (1).
#
# A command that has ended well is remembered in OUT/finished and skipped from then on. What every command prints goes to
# OUT/logs; one that fails ends its chain, and the script's status is 1 when the other chains have ended.
set -euo pipefail

list= scale=full
while :; do
  case ${1:-} in
    --list) list=yes && shift ;;
    --scale) scale=${2:?--scale takes full, short or smoke} && shift 2 ;;
    *) break ;;
  esac
done
name=$(basename "$0" .sh)
out=runs/$name
if [[ $# -gt 0 && $1 != --* ]]; then out=$1 && shift; fi
out=$(realpath -m "$out")
data=("$@")
[ $# -gt 0 ] || data=(--dataset CIFAR10)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
threads=${THREADS:-1}
# Pieces of an evaluation continue only under the code that made them; a finished one is finished under any.
state=$out/state/$(git describe --always --exclude='*' --dirty 2>/dev/null || echo unknown)

if [ -z "$list" ]; then
  python=$(bash scripts/setup.sh)
  mkdir -p "$out/finished" "$out/logs"
  rm -f "$out/failed"
  trap 'kill $(jobs -p) 2>/dev/null || :; wait; exit 130' INT TERM
fi

# The words of a command in one line, quoted where a shell needs it.
line() {
  local words
  printf -v words '%q ' "$@"
  echo "${words% }"
}

# chain LINE...: carry out the commands of a run one after another, beside other chains.
chain() {
  if [ -n "$list" ]; then
    printf 'python %s\n' "$@"
    return
  fi
  while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-1}" ]; do wait -n || :; done
  (
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    for command in "$@"; do once "$command" || exit 1; done
  ) &
}

once() {
  local key log
  key=$(cksum <<<"${1/"$state"/}" | tr ' ' -)
  log=$out/logs/$key.txt
  [ ! -e "$out/finished/$key" ] || return 0
  echo "$(date +%H:%M:%S) python $1"
  eval "\"\$python\" $1" >"$log" 2>&1 &
  child=$!
  if wait "$child"; then
    echo "$1" >"$out/finished/$key"
  else
    echo "$log: $(tail -n 1 "$log")" | tee -a "$out/failed" >&2
    return 1
  fi
}

# Wait for all chains; end here where one has failed.
settle() {
  [ -z "$list" ] || return 0
  wait
  [ ! -e "$out/failed" ] || { echo "failed: see the lines above; the same command again goes on" >&2 && exit 1; }
}

# The data set's name among the data flags, which is that of a folder of every run.
dataset() {
  local word before=
  for word in "${data[@]}"; do
    [ "$before" != --dataset ] || { echo "$word" && return; }
    before=$word
  done
  echo CIFAR10
}
