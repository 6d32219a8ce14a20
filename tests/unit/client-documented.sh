#!/bin/bash
# SPDX-License-Identifier: MIT
# What libdsv4.so exports, what its symbol map names, what dsv4.h declares and what man/*.3 describe are the same; so
# are the options in --help and in the man pages. Man pages drift first.
set -u
export LC_ALL=C
work=$(mktemp -d) || exit 99
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 99
bad=0

# same WHAT A B: two sorted lists that must be equal and not empty
same() {
    if [ ! -s "$2" ] || ! diff "$2" "$3"; then
        echo "differ: $1 (< $2, > $3)"
        bad=1
    fi
}

nm -D --defined-only "$top_builddir/.libs/libdsv4.so" | sed -n 's/.* T \(dsv4_[a-z_0-9]*\)@.*/\1/p' | sort -u >exported
nm -D --defined-only "$top_builddir/.libs/libdsv4.so" | grep -v ' T dsv4_\| A LIBDSV4_0' >others
sed -n 's/^ *\(dsv4_[a-z_0-9]*\);$/\1/p' "$top_srcdir/client/libdsv4.sym" | sort -u >mapped
sed 's://.*::; s:/\*.*\*/::; /^\/\*/,/\*\/$/d; /DEFINE_CLEANUP/d' "$top_srcdir/client/dsv4.h" |
    grep -oE '\bdsv4_[a-z_0-9]+\(' | tr -d '(' | sort -u >declared
cat "$top_srcdir"/man/*.3 | sed -n 's/^\.B ".* [*]*\(dsv4_[a-z_0-9]*\)(.*/\1/p' | sort >described
sort -u described >described-once
same "symbol map and library" mapped exported
same "header and library" declared exported
same "man pages and library" described-once exported
same "calls described twice" described described-once
if [ -s others ]; then
    echo "exported besides the API:"
    cat others
    bad=1
fi

# options of all verbs; in the pages they are set in bold as \fB\-\-name\fP or \fB\-x\fP
options() {
    program=$1
    shift
    for verb in "$@"; do
        "$top_builddir/$program" $verb --help
    done | grep '^  ' | grep -oE '^ +(-[a-z], )?--[a-z-]+' | grep -oE -e '-[-a-z]+' | sort -u >"$program.help"
    sed 's/\\-/-/g' "$top_srcdir/man/$program.1" | grep '^\\fB-' | grep -oE 'B-[-a-z]+' | sed 's/^B//' | sort -u >"$program.man"
    same "$program --help and $program(1)" "$program.help" "$program.man"
}
options dsv4 "" run chat tokenize models
options dsv4ctl "" status list-models sessions

echo "client-documented: $(wc -l <exported) calls, $(cat ./*.help | wc -l) options"
exit $bad
