# Sourced by the scripts of this folder: their options, and chains of commands that are listed or carried out.
#
# Options, in this order: [--list] [--scale full|short|smoke] [OUT] [data flags]
#   --list    prints every command and ends
#   --scale   of the scripts of published tables: see table_setting.sh
#   OUT       folder of everything (runs/<name of the script> when not given)
#   data flags  of main.py, such as --data_root DIR; a path in them counts from the repository's folder
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
repository=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
out=$(realpath -m --relative-base="$repository" "$out") # what is kept in it can then be moved and shown
data=("$@")
cd "$repository"
threads=${THREADS:-1}
state=$out/state

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
  words=${words//\\,/,} # no shell needs these
  echo "${words% }"
}

# chain LINE...: carry out the commands of a run one after another, beside other chains; fills chained with its process.
chain() {
  chained=
  if [ -n "$list" ]; then
    printf 'python %s\n' "$@"
    return
  fi
  while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-1}" ]; do wait -n || :; done
  (
    trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    for command in "$@"; do once "$command" || exit 1; done
  ) &
  chained=$!
}

# Pieces of an evaluation continue only under the code that made them, so each revision has a folder; a finished
# evaluation is finished under any.
once() {
  local key log revision place
  key=$(cksum <<<"$1" | tr ' ' -)
  revision=$(git describe --always --exclude='*' --dirty 2>/dev/null || echo unknown)
  log=$out/logs/$key.txt
  [ ! -e "$out/finished/$key" ] || return 0
  echo "$(date +%H:%M:%S) python $1"
  printf -v place %q "$state" # as it stands in the line
  eval "exec \"\$python\" ${1/"$place"/"$place/$revision"}" >"$log" 2>&1 &
  child=$!
  if wait "$child"; then
    echo "$1" >"$out/finished/$key"
  else
    echo "$log: $(tail -n 1 "$log")" | tee -a "$out/failed" >&2
    return 1
  fi
}

# settle [PROCESS...]: wait for these chains, for all when none is named; where any has failed, end here after all.
settle() {
  [ -z "$list" ] || return 0
  wait "$@" || : # it is known from OUT/failed
  [ -e "$out/failed" ] || return 0
  wait || :
  echo "failed: see the lines above; the same command again goes on" >&2
  exit 1
}

# Whether a method distils from a teacher.
distils() { case $1 in Natural | AT | TRADES | MART) return 1 ;; esac }

# Whether a method distils from a second, standard teacher too.
distils_twice() { case $1 in AKD2 | IAD-II) ;; *) return 1 ;; esac }

# run_folder METHOD MODEL TEACHER EPSILON SEED WORD: where a run lies below its data set's folder.
run_folder() {
  local folder=$1/$2
  ! distils "$1" || folder+=_from_$3
  [ "$1" = Natural ] || folder+=_eps$4
  echo "${folder}_seed$5${6:+_$6}"
}

# tell LINE: the last command of a script, which prints its table.
tell() {
  settle
  if [ -n "$list" ]; then echo "python $1"; else eval "\"\$python\" $1"; fi
}
