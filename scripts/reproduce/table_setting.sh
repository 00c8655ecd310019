# Sourced by the scripts of published tables: rows, each a run and its evaluation, then ours beside the paper's figures.
#
#   --scale full    the paper's setting: data set, networks, each method's own training (--recipe paper), all test images
#   --scale short   for an evening of a GPU: 10 epochs on 10,000 images, cosine; AutoAttack on 500 of 1,000 test images;
#                   a published teacher is replaced by a ResNet-18 that AT trains here
#   --scale smoke   shows that everything runs: small_resnet, one epoch on 96 embedded digits
#
# SEEDS (42) may name several. TEACHER, of the scripts with a published teacher, names its file where it lies elsewhere.
# Evaluations count as the papers' codes do (--judge last). Figures of a row lie in OUT/figures/ROW.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SEEDS=${SEEDS:-42} TEACHER=${TEACHER:-}

# on DATASET: what the rows below are about.
on() {
  dataset=$1 about=$1 train=main.py evaluate=main_eval.py
  [ "$dataset" != Tiny_Image ] || train=main_tiny.py evaluate=main_eval_tinyimagenet.py
  training=(--recipe paper) testing=()
  case $scale in
    full) ;;
    short)
      training+=(--epochs 10 --lr_schedule cosine --limit_train 10000 --limit_test 1000 --IAD_begin 3)
      testing=(--limit_test 1000 --limit_aa 500)
      ;;
    smoke)
      dataset=Digits train=main.py evaluate=main_eval.py
      training+=(--image_size 16 --epochs 1 --limit_train 96 --limit_test 20 --bs 32 --num_steps 2 --no_teacher_check)
      testing=(--image_size 16 --limit_test 20 --attacks clean,fgsm,pgd,pgd_trades,cw)
      ;;
    *) echo "--scale $scale: is none of full, short, smoke" >&2 && exit 2 ;;
  esac
  training+=("${data[@]}" --threads "$threads" --resume --root_path "$out/runs")
  testing+=("${data[@]}" --threads "$threads" --judge last --no-pictures --state "$state")
}

# as MODEL: the student of the rows below.
as() {
  student=$1
  [ "$scale" != smoke ] || student=small_resnet
}

# row ROW METHOD [flags]: train the student by a method with each seed, and evaluate its best checkpoint. All tables are
# at 8/255, also where a method's own training has 0.031.
row() {
  local of=() seed run
  ! distils "$2" || of=("${teacher[@]}")
  ! distils_twice "$2" || of+=("${second[@]}")
  for seed in $SEEDS; do
    run=$out/runs/$dataset/$(run_folder "$2" "$student" "${of[1]:--}" 8 "$seed" "$1")
    chain "$(line "$train" --dataset "$dataset" --model "$student" --method "$2" --epsilon 8 --step_size 2 \
      "${training[@]}" "${of[@]}" --seed "$seed" --desc_str "$1" "${@:3}")" \
      "$(figures "$1" "$run/best_PGD10_acc_model.pth")"
  done
}

# figures ROW FILE [flags]: the evaluation of a checkpoint.
figures() {
  line "$evaluate" --dataset "$dataset" --model_path "$2" --out "$out/figures/$1" "${testing[@]}" "${@:3}"
}

# train_teacher ROW METHOD MODEL: a robust teacher of the rows below, trained here, and itself a row.
train_teacher() {
  local model student
  as "$3" && model=$student
  SEEDS=42 row "$1" "$2"
  teacher=(--teacher_model "$model"
    --teacher_path "$out/runs/$dataset/$(run_folder "$2" "$model" - 8 42 "$1")/best_PGD10_acc_model.pth")
  settle
}

# train_second MODEL: the standard teacher of AKD2 and IAD-II.
train_second() {
  local model student
  as "$1" && model=$student
  chain "$(line "$train" --dataset "$dataset" --model "$model" --method Natural "${training[@]}" --desc_str standard)"
  second=(--std_teacher_model "$model"
    --std_teacher_path "$out/runs/$dataset/$(run_folder Natural "$model" - 8 42 standard)/best_clean_acc_model.pth")
  settle
}

# published_teacher NAME PLACE HOW: a teacher that others have trained; at a smaller scale a ResNet-18 trained here.
published_teacher() {
  if [ "$scale" != full ]; then
    train_teacher "teacher_$about" AT resnet18
    return
  fi
  [ -n "$list" ] || [ -e "${TEACHER:-$2}" ] || { echo "${TEACHER:-$2}: no teacher there. $3" >&2 && exit 2; }
  [ -z "$list" ] || echo "# teacher $1: ${TEACHER:-$2}. $3"
  teacher=(--teacher_model "$1" --teacher_path "$(realpath -m "${TEACHER:-$2}")")
}

# Ours beside the paper's.
beside() { tell "$(line scripts/reproduce/beside.py "$name" "$out/figures" --scale "$scale")"; }
