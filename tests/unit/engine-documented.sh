#!/bin/bash
# SPDX-License-Identifier: MIT
# Every option and command that --help of dsv4d-engine and dsv4-eval names is in the manual, and the other way round.
set -u
top=${top_srcdir:-$(dirname "$0")/../..}
build=${top_builddir:-$top/build}
bad=0

long_options() {
    grep -oE -- '--[a-z][a-z-]*' | sort -u
}

# same WHAT HELP MANUAL
same() {
    [ -n "$2" ] || { echo "$1: --help names none"; exit 99; }
    diff <(echo "$2") <(echo "$3") || { echo "$1: --help (<) and the manual (>) differ"; bad=1; }
}

same "dsv4d-engine" "$("$build/dsv4d-engine" --help | long_options)" \
    "$(sed -n '/^.SH OPTIONS/,/^.SH "EXIT/p' "$top/man/dsv4d-engine.8" | sed 's/\\-/-/g' | long_options)"

page=$top/man/dsv4-eval.1
commands=$("$build/dsv4-eval" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | sort)
same "commands of dsv4-eval" "$commands" "$(sed -n '/^.Sh DESCRIPTION/,/^.Sh OPTIONS/s/^.It Cm \([a-z]*\)$/\1/p' "$page" | sort)"
help=$(for c in '' $commands; do "$build/dsv4-eval" $c --help; done | long_options)
same "options of dsv4-eval" "$help" \
    "$(sed -n '/^.Sh OPTIONS/,/^.Sh EXIT/p' "$page" | grep '^\.It' | sed 's/Fl -/--/g' | long_options)"

[ $bad = 0 ] && echo "the engine's pages agree with --help"
exit $bad
