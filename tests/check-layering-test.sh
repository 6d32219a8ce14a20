#!/bin/bash
# SPDX-License-Identifier: MIT
# check-layering must fail on each kind of wrong include, and pass without.
set -u
check=${top_srcdir:-$(dirname "$0")/..}/tests/check-layering
work=$(mktemp -d) || exit 99
trap 'rm -rf "$work"' EXIT
failed=0

try() { # want FILE INCLUDE
    rm -rf "$work/t" && mkdir -p "$work/t"/{base,proto,backends/cpu,backends/cuda,engine,daemon,client}
    echo '#include "base/fail.h"' >"$work/t/engine/ok.c"
    echo "#include \"$3\"" >>"$work/t/$2"
    if bash "$check" "$work/t" >/dev/null; then got=pass; else got=fail; fi
    if [ "$got" != "$1" ]; then
        echo "$2 including $3: $got, expected $1"
        failed=1
    fi
}
try fail base/a.c proto/frame.h
try fail proto/a.c engine/kv.h
try fail daemon/a.c engine/kv.h
try fail engine/a.c daemon/conf.h
try fail engine/a.c backends/cpu/cpu.h
try fail backends/cpu/a.c engine/kv.h
try fail backends/cpu/a.c backends/cuda/a.h
try fail client/a.c daemon/conf.h
try pass engine/a.c backends/backend.h
try pass engine/a.c proto/frame.h
try pass daemon/a.c daemon/conf.h
try pass backends/cpu/a.c backends/cpu/cpu.h
try pass client/a.c proto/scan.h
exit $failed
