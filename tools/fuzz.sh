#!/bin/bash
# Runs fuzz targets, each for some time, one at a time, and prints what came of it.
#
# Usage: tools/fuzz.sh [--seconds N] [TARGET...]
#
# Without targets all of them run; without --seconds each runs for 60. An input that breaks a target
# is kept in fuzz/regressions/TARGET, where tests/corpus.rs replays it from then on: commit it together
# with the repair. What libFuzzer finds interesting is kept in fuzz/corpus, which is not committed, and
# is where the next run begins. Exit code 1 when anything broke.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=60
targets=()
while (($#)); do
    case $1 in
        --seconds) seconds=${2:?--seconds needs a number}; shift ;;
        -*) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2 ;;
        *) targets+=("$1") ;;
    esac
    shift
done
if ((${#targets[@]} == 0)); then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The longest input that can reach everything a target looks at.
longest() {
    case $1 in
        config) echo 2048 ;;
        luks1_header) echo 640 ;;
        luks2_header) echo 40000 ;;
        luks2_json) echo 12289 ;;
        nbd_handshake) echo 20000 ;;
        nbd_transmission) echo 4096 ;;
        recovery_key) echo 256 ;;
        sealed_engine) echo 240 ;;
        sealed_header) echo 8193 ;;
        sealed_journal) echo 1024 ;;
        sealed_page) echo 1024 ;;
        sealed_superblock) echo 512 ;;
        *) echo "tools/fuzz.sh: there is no target $1" >&2; return 1 ;;
    esac
}
for target in "${targets[@]}"; do longest "$target" >/dev/null; done

# cargo-fuzz and the sanitizer are made for nightly; the stable compiler does the same when it is told to.
export RUSTC_BOOTSTRAP=1
export LSAN_OPTIONS=suppressions=$PWD/fuzz/leaks.supp:print_suppressions=0
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
for target in "${targets[@]}"; do cargo fuzz build "$target"; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
broken=0
printf '%-18s %12s %8s %9s %9s %9s  %s\n' target executions exec/s coverage features peak_MiB result
for target in "${targets[@]}"; do
    log=$logs/$target
    mkdir -p "fuzz/corpus/$target" "fuzz/regressions/$target"
    result=ok
    # A new crash's name is a hash, so that what was there before stays.
    cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" "fuzz/regressions/$target" -- \
        -max_total_time="$seconds" -max_len="$(longest "$target")" -timeout=10 -rss_limit_mb=2048 \
        -dict="fuzz/dictionaries/$target.dict" -artifact_prefix="fuzz/regressions/$target/" \
        -print_final_stats=1 >"$log" 2>&1 || result=BROKEN
    stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
    last() { grep -o "$1: [0-9]*" "$log" | tail -1 | cut -d' ' -f2; }
    printf '%-18s %12s %8s %9s %9s %9s  %s\n' "$target" "$(stat number_of_executed_units)" \
        "$(stat average_exec_per_sec)" "$(last cov)" "$(last ft)" "$(stat peak_rss_mb)" "$result"
    if [[ $result != ok ]]; then
        broken=1
        grep -E -A1 'panicked at|^SUMMARY|ERROR: |Test unit written' "$log" >&2 || tail -20 "$log" >&2
    fi
done
exit "$broken"
