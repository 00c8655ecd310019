#!/usr/bin/env bash
# Train every combination of data sets, methods, networks and seeds; --help says how.
set -uo pipefail

usage() {
  cat <<'END'
Train every combination of data sets, methods, networks and seeds:
  bash scripts/sweep.sh [options] [-- flags of main.py and main_tiny.py]

  --datasets "A B"   data sets [CIFAR10]; Tiny_Image goes to main_tiny.py
  --methods "A B"    training methods [AT]
  --models "A B"     students [resnet18]
  --seeds "1 2"      seeds [42]
  --root_path DIR    folder of all runs [tuned_models]
  --jobs N           runs at a time [1, with --gpus one for each GPU]
  --gpus "0 1"       GPUs to share out: each run gets one of them, as --gpu_id
  --eval "FLAGS"     evaluate each finished run: main_eval.py with these flags
  --list             print every run as one command, then end
  --only I           the I-th run of that list alone, counted from 0

What is finished is skipped, what was interrupted continues, and a run that fails does not stop the others. The output
of each run goes to a file of its own in DIR/logs/. SIGINT and SIGTERM reach the runs as SIGTERM, SIGUSR1 as itself;
the sweep waits until they have saved and starts no others. PYTHON names the interpreter [that of the activated
environment, conda's base not counted, else of .venv beside scripts/, else python]. Names and flags of all runs and of
--eval are checked before the first begins.

Exit status: 0 all is finished, 1 a run failed, 2 bad input. Where something is left to do and nothing failed: 130 and
143 after SIGINT and SIGTERM, 129 after SIGHUP, 75 otherwise; the same command continues.
END
}

fail() {
  echo "error: $*" >&2
  exit 2
}

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ "$home" -ef . ]; then place=''; else place=$home/; fi
python=${PYTHON:-}
activated=${VIRTUAL_ENV:-}
[ "${CONDA_DEFAULT_ENV:-base}" = base ] || activated=${activated:-${CONDA_PREFIX:-}}  # as setup.sh has it
if [ -z "$python$activated" ] && [ -x "${place}.venv/bin/python" ]; then
  python=${place}.venv/bin/python
fi
python=${python:-python}
datasets=(CIFAR10) methods=(AT) models=(resnet18) seeds=(42)
root=tuned_models jobs='' gpus=() evaluation=() list='' only='' extra=()

# split FLAG TEXT: fills words with the words of TEXT.
split() {
  read -r -d '' -a words <<<"$2"
  [ ${#words[@]} -gt 0 ] || fail "$1: names nothing; see --help"
}

# names FLAG TEXT: fills words with names, each given once.
names() {
  split "$1" "$2"
  local word twice
  for word in "${words[@]}"; do
    case $word in -*) fail "$1 $word: starts like a flag; give the names as one word, as in $1 \"A B\"" ;; esac
  done
  twice=$(printf '%s\n' "${words[@]}" | tr '[:upper:]' '[:lower:]' | sort | uniq -d)  # case does not matter in names
  [ -z "$twice" ] || fail "$1: names ${twice%%$'\n'*} twice"
}

# numbers FLAG TEXT: the same with whole numbers.
numbers() {
  names "$1" "$2"
  local word
  for word in "${words[@]}"; do
    case $word in *[!0-9]* | ??????????*) fail "$1 $word: not a whole number below a thousand million" ;; esac
  done
}

# number FLAG TEXT: fills words with one whole number.
number() {
  numbers "$1" "$2"
  [ ${#words[@]} -eq 1 ] || fail "$1 $2: one number is needed"
  words=($((10#${words[0]})))
}

# folder FLAG TEXT: fills root.
folder() {
  case $2 in '' | -*) fail "$1 $2: not the name of a folder" ;; esac
  root=$2
}

read_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && exit ;;
      --list) list=yes && shift && continue ;;
      --) extra=("${@:2}") && return ;;
      --datasets | --methods | --models | --seeds | --root_path | --jobs | --gpus | --eval | --only) ;;
      *) fail "$1: no option of a sweep (--help lists them); flags of main.py go after --" ;;
    esac
    [ $# -gt 1 ] || fail "$1: needs a value; see --help"
    case $1 in
      --datasets) names "$1" "$2" && datasets=("${words[@]}") ;;
      --methods) names "$1" "$2" && methods=("${words[@]}") ;;
      --models) names "$1" "$2" && models=("${words[@]}") ;;
      --seeds) numbers "$1" "$2" && seeds=("${words[@]}") ;;
      --gpus) numbers "$1" "$2" && gpus=("${words[@]}") ;;
      --eval) split "$1" "$2" && evaluation=("${words[@]}") ;;
      --root_path) folder "$1" "$2" ;;
      --jobs) number "$1" "$2" && jobs=${words[0]} ;;
      --only) number "$1" "$2" && only=${words[0]} ;;
    esac
    shift 2
  done
}

check_options() {
  local word own=() names=()
  for word in ${extra[@]+"${extra[@]}"}; do  # bash below 4.4 takes an empty array for an unset variable
    case ${word%%=*} in
      --dataset | --method | --model | --seed) own+=("$word") names+=("${word%%=*}s") ;;
      --help | -h) fail "$word after --: trains nothing; python main.py --help" ;;
      --root_path | --gpu_id) fail "$word after --: the sweep sets it; --root_path and --gpus go before --" ;;
    esac
  done
  for word in ${evaluation[@]+"${evaluation[@]}"}; do
    case ${word%%=*} in
      --out) fail "--eval $word: takes the figures from their runs, where the sweep's table reads them; leave it out" ;;
      --model_path) fail "--eval $word: the sweep evaluates its own runs; leave it out" ;;
    esac
  done
  [ ${#own[@]} = 0 ] || fail "${own[*]} after --: the sweep sets it; before --, name it by ${names[*]}"
  [ "$jobs" != 0 ] || fail "--jobs 0: at least one run at a time"
  [ -z "$only" ] || [ "$only" -lt $count ] || fail "--only $only: the runs are numbered 0 to $((count - 1))"
}

# The list: run i is the i-th of dataset x method x model x seed, the seed changing fastest.
list_runs() {
  local dataset method model seed
  for dataset in "${datasets[@]}"; do
    for method in "${methods[@]}"; do
      for model in "${models[@]}"; do
        for seed in "${seeds[@]}"; do
          of_dataset[count]=$dataset of_method[count]=$method of_model[count]=$model of_seed[count]=$seed
          count=$((count + 1))
        done
      done
    done
  done
}

# script_for I main|main_eval: fills script with the entry script of the run's data set.
script_for() {
  case $(tr '[:upper:]' '[:lower:]' <<<"${of_dataset[$1]}"),$2 in
    *tiny*,main) script=${place}main_tiny.py ;;
    *tiny*,main_eval) script=${place}main_eval_tinyimagenet.py ;;
    *) script=$place$2.py ;;
  esac
}

# command_of I: fills line with the words of the I-th run's command.
command_of() {
  script_for "$1" main
  line=("$python" "$script" --dataset "${of_dataset[$1]}" --method "${of_method[$1]}" --model "${of_model[$1]}")
  line+=(--seed "${of_seed[$1]}" --root_path "$root" --resume ${extra[@]+"${extra[@]}"})
}

# evaluation_of I FOLDER: fills line with the words of the command that evaluates the I-th run.
evaluation_of() {
  script_for "$1" main_eval
  line=("$python" "$script" --model_path "$2" "${evaluation[@]}")
}

# The words of every command to come, as check_commands.py reads them.
every_word() {
  local i
  for i in "${chosen[@]}"; do
    command_of "$i"
    printf '%s\0' ${#line[@]} "${line[@]}"
    [ ${#evaluation[@]} -gt 0 ] || continue
    evaluation_of "$i" "$root"
    printf '%s\0' ${#line[@]} "${line[@]}"
  done
}

quoted() {
  printf '%q' "$1"
  shift
  [ $# -eq 0 ] || printf ' %q' "$@"
  echo
}

# say I TEXT: a line on the I-th run.
say() {
  printf '[%d of %d] %s: %s\n' $(($1 + 1)) $count "$(title_of "$1")" "$2"
}

title_of() {
  echo "${of_dataset[$1]} ${of_method[$1]} ${of_model[$1]} seed ${of_seed[$1]}"
}

# The number stands for the flags after --: sweeps that differ in them may share a root.
log_of() {
  local flags
  flags=$(cksum <<<"${extra[*]-}")
  echo "$root/logs/$(tr ' /:' '___' <<<"$(title_of "$1")")_${flags%% *}.log"
}

# stop STATUS SIGNAL: what a trap does: note how the sweep is to end, pass SIGNAL on. The first one counts, since a job
# that is saving is not to be hit again.
stop() {
  caught=yes
  [ -z "$stopped" ] || return
  stopped=$1 forwarded=$2
  forward
}

forward() {
  local pid
  for pid in ${children[@]+"${children[@]}"}; do kill -s "$forwarded" "$pid" 2>/dev/null; done
}

# await PID: fills status with the exit status of a child, also where a trap cuts the waiting short.
await() {
  local now
  status=127
  while :; do
    caught=
    wait "$1"
    now=$?
    [ $now -eq 127 ] || status=$now  # 127: the wait that was cut short had the status already
    [ -n "$caught" ] || return
  done
}

# attempt LOG WORDS...: carries out a command, its output appended to LOG, and fills status.
attempt() {
  local log=$1
  shift
  { date '+%F %T  ' | tr -d '\n' && quoted "$@"; } >>"$log"
  "$@" >>"$log" 2>&1 </dev/null &
  children=($!)
  [ -z "$stopped" ] || forward  # the signal may have come before its number was known
  await "${children[0]}"
  children=()
}

# work K: the K-th worker takes one run after another that no other has taken.
work() {
  local i gpu=()
  children=() stopped=
  trap 'stop 143 TERM' TERM INT HUP
  trap 'stop 75 USR1' USR1
  [ ${#gpus[@]} -eq 0 ] || gpu=(--gpu_id "${gpus[$1 % ${#gpus[@]}]}")
  for i in "${chosen[@]}"; do
    [ -z "$stopped" ] || return
    mkdir "$scratch/$i" 2>/dev/null || continue
    carry_out "$i" ${gpu[@]+"${gpu[@]}"}
  done
}

# carry_out I [--gpu_id G]: trains, evaluates, and keeps the outcome in one word for the summary.
carry_out() {
  local i=$1 log begin outcome folder
  shift
  log=$(log_of "$i")
  say "$i" "started, log $log"
  touch "$log"
  begin=$(wc -c <"$log")
  command_of "$i"
  attempt "$log" "${line[@]}" "$@"
  tail -c +$((begin + 1)) "$log" >"$scratch/$i/output"
  folder=$(folder_in "$scratch/$i/output")
  echo "$folder" >"$scratch/$i/folder"
  outcome=$(judge $status "$folder" "$scratch/$i/output")
  if [ ${#evaluation[@]} -gt 0 ] && { [ "$outcome" = finished ] || [ "$outcome" = skipped ]; }; then
    evaluate "$i" "$folder" "$log" "$@"
  fi
  echo "$outcome" >"$scratch/$i/outcome"
  say "$i" "$(words_for "$outcome" "$log")"
}

# folder_in OUTPUT: the run's folder, as the training's own lines name it.
folder_in() {
  sed -n -e 's/^\(.*\): all [0-9]* epochs are done$/\1/p' -e 's/^.*, run folder //p' "$1" | tail -n 1
}

# judge STATUS FOLDER OUTPUT: how a training ended. Status 0 is also that of a run which saved and stopped: it is
# finished only where every epoch has its row.
judge() {
  if [ "$1" -eq 0 ] && grep -q ': all [0-9]* epochs are done$' "$3"; then
    echo skipped
  elif [ "$1" -eq 0 ]; then
    if all_rows "$2"; then echo finished; else echo unfinished; fi
  else
    failed_or_stopped "$1"
  fi
}

all_rows() {
  local epochs
  [ -f "$1/config.json" ] && [ -f "$1/results.csv" ] || return
  epochs=$(sed -n 's/^ *"epochs": \([0-9]*\),*$/\1/p' "$1/config.json")
  [ -n "$epochs" ] && [ $(($(wc -l <"$1/results.csv") - 1)) -ge "$epochs" ]
}

# Above 128 a signal ended it, which is no failure where the signal was ours; 130 and 143 say so themselves.
failed_or_stopped() {
  if [ "$1" -eq 130 ] || [ "$1" -eq 143 ] || { [ "$1" -gt 128 ] && [ -n "$stopped" ]; }; then
    echo unfinished
  else
    echo "failed (status $1)"
  fi
}

# evaluate I FOLDER LOG [--gpu_id G]: once for each state of a run and each set of flags; changes the caller's outcome.
evaluate() {
  local log=$3 folder=$2 done_with
  done_with=$(cksum <<<"${evaluation[*]}")
  done_with=${log%.log}_${done_with%% *}.evaluated
  [ ! "$done_with" -nt "$folder/last_epoch_model.pth" ] || return
  if [ -n "$stopped" ]; then
    outcome=unfinished && return
  fi
  evaluation_of "$1" "$folder"
  shift 3
  attempt "$log" "${line[@]}" "$@"
  if [ "$status" -eq 0 ]; then
    touch "$done_with"
  else
    outcome=$(failed_or_stopped "$status")
    outcome=${outcome/failed/evaluation failed}
  fi
}

words_for() {
  case $1 in
    *failed*) echo "$1: $(tail -n 1 "$2") (log $2)" ;;
    unfinished) echo "not finished, the same command continues it (log $2)" ;;
    skipped) echo "finished before" ;;
    *) echo "$1" ;;
  esac
}

# summarize: counts and names what did not finish; fills failures and left.
summarize() {
  local i outcome finished=0 skipped=0
  failures=0 left=0
  echo
  for i in "${chosen[@]}"; do
    outcome=$(cat "$scratch/$i/outcome" 2>/dev/null || echo 'not begun')
    case $outcome in
      finished) finished=$((finished + 1)) && continue ;;
      skipped) skipped=$((skipped + 1)) && continue ;;
      *failed*) failures=$((failures + 1)) ;;
      *) left=$((left + 1)) ;;
    esac
    say "$i" "$(words_for "$outcome" "$(log_of "$i")")"
  done
  echo "runs: $finished finished, $skipped skipped (finished before), $failures failed, $left left to do"
}

# The table of all evaluations of this sweep's runs, those of earlier ones among them.
compare() {
  local i k folder evaluated=() protocol=()
  for i in "${chosen[@]}"; do
    folder=$(cat "$scratch/$i/folder" 2>/dev/null)
    [ -z "$folder" ] || [ -z "$(find "$folder" -name eval.json 2>/dev/null)" ] || evaluated+=("$folder")
  done
  for ((k = 0; k < ${#evaluation[@]}; k++)); do
    case ${evaluation[k]} in
      --protocol) protocol=(--protocol "${evaluation[k + 1]}") ;;
      --protocol=*) protocol=("${evaluation[k]}") ;;
    esac
  done
  if [ ${#evaluated[@]} -gt 0 ]; then
    "$python" "${place}scripts/compare.py" "${evaluated[@]}" --out "$root/comparison" ${protocol[@]+"${protocol[@]}"}
  else
    echo "no table: none of these runs is evaluated yet; --eval \"FLAGS\" does so"
  fi
}

# halt STATUS SIGNAL: what the sweep's own traps do.
halt() {
  [ -n "$stopped" ] || echo "stopping: waiting for the runs to save"
  stop "$@"
}

sweep() {
  local k pid
  children=() stopped=
  trap 'rm -rf "$scratch"' EXIT
  trap 'halt 130 TERM' INT
  trap 'halt 143 TERM' TERM
  trap 'halt 129 TERM' HUP
  trap 'halt 75 USR1' USR1
  set -m  # workers in groups of their own: Ctrl-C comes from here alone, once
  for ((k = 0; k < jobs && k < ${#chosen[@]}; k++)); do
    work $k &
    children+=($!)
  done
  [ -z "$stopped" ] || forward
  for pid in "${children[@]}"; do await "$pid"; done
  summarize
  [ -n "$only" ] || [ -n "$stopped" ] || compare
  [ $failures -eq 0 ] || exit 1
  [ $left -eq 0 ] || exit "${stopped:-75}"
}

count=0 of_dataset=() of_method=() of_model=() of_seed=()
read_options "$@"
list_runs
check_options
chosen=()
for ((i = 0; i < count; i++)); do
  [ -n "$only" ] && [ "$only" -ne $i ] || chosen+=("$i")
done
if [ -n "$list" ]; then
  for i in "${chosen[@]}"; do command_of "$i" && quoted "${line[@]}"; done
  exit
fi
[ ${#gpus[@]} -eq 0 ] || jobs=${jobs:-${#gpus[@]}}
jobs=${jobs:-1}
command -v "$python" >/dev/null || fail "$python: not found; activate the environment, or let PYTHON name one"
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 75' USR1
every_word | "$python" "${place}scripts/check_commands.py" || exit 2
mkdir -p "$root/logs" 2>/dev/null && [ -w "$root/logs" ] || fail "--root_path $root: cannot write there"
scratch=$(mktemp -d) || fail "${TMPDIR:-/tmp}: no room for temporary files"
sweep
