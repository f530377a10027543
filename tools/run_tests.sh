#!/usr/bin/env bash
# Run the tests; the few that failed run once more, alone and one after the other.
#
#   tools/run_tests.sh [pytest options]
#
# Many tests here are about real processes and real time, and two at once can starve each other on a small or
# busy machine. A defect fails alone as well; what passes alone is named as flaky, loudly, and is a defect of
# the test to be mended, but does not hide the result of all others.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/lib.sh

MOST=${MOST_FAILED:-5}
failed=build/failed-tests

mkdir -p build
rm -f "$failed"
.venv/bin/python -m pytest -n "${WORKERS:-3}" --dist loadgroup --failed-to "$failed" "$@" && exit 0
status=$?
# 1 is the only status that means "ran to its end, and some failed".
[ "$status" -eq 1 ] && [ -s "$failed" ] || exit "$status"
mapfile -t again <"$failed"
[ "${#again[@]}" -le "$MOST" ] || exit "$status"
say "once more, alone: ${#again[@]} of the tests"
.venv/bin/python -m pytest -n 0 "$@" "${again[@]}" || exit
say "FLAKY, to be mended: ${again[*]}"
