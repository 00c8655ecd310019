# Sourced by the scripts that compare on a CPU: two teachers, students and evaluations of small_resnet, one table.
# Each size can be set in the environment, for a first try; ATTACKS names those of the evaluations (all when empty).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SEEDS=${SEEDS:-1 2 3} SCHEDULE=${SCHEDULE:-cosine}
EPOCHS=${EPOCHS:-6} LIMIT_TRAIN=${LIMIT_TRAIN:-7000} IAD_BEGIN=${IAD_BEGIN:-2}
AT_EPOCHS=${AT_EPOCHS:-8} NATURAL_EPOCHS=${NATURAL_EPOCHS:-5} TEACHER_TRAIN=${TEACHER_TRAIN:-50000}
LIMIT_JUDGE=${LIMIT_JUDGE:-1000} LIMIT_TEST=${LIMIT_TEST:-2000} LIMIT_AA=${LIMIT_AA:-500}

[[ " ${data[*]} " == *" --dataset "* ]] || data=(--dataset CIFAR10 "${data[@]}")
dataset=$(sed 's/.*--dataset \([^ ]*\).*/\1/' <<<"${data[*]}") # as --help spells it: it names a folder of every run
setting=(--model small_resnet --limit_test "$LIMIT_JUDGE" --threads "$threads" --resume)
made=$out/teachers/$dataset
robust=$made/$(run_folder AT small_resnet - 8 42 teacher)
standard=$made/$(run_folder Natural small_resnet - 8 42 teacher)
teachers=()

# The robust teacher and the standard one; fills teachers with the processes that make them.
teachers() {
  local common=("${data[@]}" "${setting[@]}" --lr_schedule cosine --bs 64 --limit_train "$TEACHER_TRAIN" --root_path "$out/teachers"
    --desc_str teacher)
  chain "$(line main.py "${common[@]}" --method AT --epochs "$AT_EPOCHS")" "$(evaluation "$robust")"
  teachers=("$chained")
  chain "$(line main.py "${common[@]}" --method Natural --epochs "$NATURAL_EPOCHS")"
  teachers+=("$chained")
}

# student METHOD SEED WORD [flags]: train one and evaluate its best and its last checkpoint; WORD ends its folder's name.
# The first one that distils waits for the teachers, which are not tried again: they were made a moment ago.
student() {
  local method=$1 seed=$2 word=$3 of=()
  if distils "$method"; then
    [ ${#teachers[@]} -eq 0 ] || settle "${teachers[@]}"
    teachers=()
    of=(--teacher_model small_resnet --teacher_path "$robust/best_PGD10_acc_model.pth" --no_teacher_check
      --IAD_begin "$IAD_BEGIN" --log_reliability)
  fi
  ! distils_twice "$method" || of+=(--std_teacher_model small_resnet
    --std_teacher_path "$standard/best_clean_acc_model.pth")
  chain "$(line main.py "${data[@]}" "${setting[@]}" --lr_schedule "$SCHEDULE" --bs 32 --limit_train "$LIMIT_TRAIN" \
    --root_path "$out/students" --epochs "$EPOCHS" --method "$method" --seed "$seed" ${word:+--desc_str "$word"} \
    "${of[@]}" "${@:4}")" \
    "$(evaluation "$out/students/$dataset/$(run_folder "$method" small_resnet small_resnet 8 "$seed" "$word")")"
}

evaluation() {
  line main_eval.py "${data[@]}" --model_path "$1" --limit_test "$LIMIT_TEST" --limit_aa "$LIMIT_AA" \
    ${ATTACKS:+--attacks "$ATTACKS"} --no-pictures --threads "$threads" --state "$state"
}

# The table of everything, in OUT/comparison.
compare() { tell "$(line scripts/compare.py "$out" --out "$out/comparison")"; }
