#!/bin/bash
# SPDX-License-Identifier: MIT
# Compares the front's pages with its code: error codes, operations, limits with their defaults, options.
set -u
top=${top_srcdir:-$(dirname "$0")/../..}
build=${top_builddir:-$top/build}
page=$top/man/dsv4-protocol.7 conf=$top/man/dsv4d.conf.5 daemon=$top/man/dsv4d.8
bad=0

# same WHAT: two lists on the descriptors 3 (code) and 4 (page)
same() {
    if ! diff <(sort -u <&3) <(sort -u <&4) >/tmp/front-documented.$$; then
        echo "$1: the code (<) and the page (>) differ:"
        cat /tmp/front-documented.$$
        bad=1
    fi
    rm -f /tmp/front-documented.$$
}

codes=$(sed -n 's/^ERROR(\([A-Z0-9_]*\),.*/\1/p' "$top/proto/errors.def")
[ "$(wc -l <<<"$codes")" -gt 40 ] || { echo "found no error codes"; exit 99; }
same "error codes" 3<<<"$codes" 4< <(sed -n '/^.SH ERRORS/,/^.SH SEE/s/^\.B \([A-Z0-9_]*\)$/\1/p' "$page")

operations=$(sed -n '/^message ClientMessage/,/^}/s/^    [A-Za-z]* \([a-z_]*\) = .*/\1/p' "$top/proto/dsv4.proto")
[ "$(wc -l <<<"$operations")" -gt 15 ] || { echo "found no operations"; exit 99; }
same "operations" 3<<<"$operations" \
    4< <(sed -n '/^.SH OPERATIONS/,/^.SH ERRORS/p' "$page" | grep -E '^\.BR? [a-z]' | grep -oE '[a-z]+(_[a-z]+)*')

# name and default of each limit; the table writes 10 * S and 64 * M, the page 10s and 64M
limits=$(sed -n 's/^    L("\([A-Za-z]*\)", "\([A-Za-z]*\)", .*, \([^,]*\)),$/\2 \3/p' "$top/daemon/limits.c" |
    sed 's/ \* S$/s/; s/ \* M$/M/; s/INFINITE/infinity/')
[ "$(wc -l <<<"$limits")" -gt 10 ] || { echo "found no limits"; exit 99; }
same "limits" 3<<<"$limits" 4< <(sed -n 's/^\.BR \([A-Za-z]*\)= "" \(.*\)$/\1 \2/p' "$conf" | grep -v ^LogLevel)

for number in 'SCAN_ITEMS_MAX 4096' 'SCAN_DEPTH_MAX 16'; do
    grep -q "#define $number" "$top/proto/scan.h" || { echo "scan.h: not $number, as the page says"; bad=1; }
done
[ $((4 << 20)) = 4194304 ] && grep -q 'FRAME_MAX (4u << 20)' "$top/proto/frame.h" || { echo "FRAME_MAX"; bad=1; }

options=$("$build/dsv4d" --help | grep -o -- '--[a-z][a-z-]*' | sort -u)
[ "$(wc -l <<<"$options")" -gt 10 ] || { echo "dsv4d --help says nothing"; exit 99; }
same "options of dsv4d" 3<<<"$options" \
    4< <(sed -n '/^.SH OPTIONS/,/^.SH EXIT/p' "$daemon" | sed 's/\\-/-/g' | grep '^\.B.* *--' | grep -o -- '--[a-z][a-z-]*')

[ $bad = 0 ] && echo "the front's pages agree with its code"
exit $bad
