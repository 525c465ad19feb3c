#!/usr/bin/env bash
# Installs TinyGo 0.39.0 into PREFIX; then PREFIX/bin/tinygo. About three minutes; nothing to do where it is there.
#
#   tools/tinygo.sh PREFIX
#
# The source comes from the Go module proxy, LLVM and the wasm libraries come prebuilt from Debian (12 or later), so
# nothing but TinyGo itself is compiled. Exit codes: 2 wrong usage, 3 this machine lacks what is needed.
set -euo pipefail

version=0.39.0 # exactly this one: guest_sdk relies on what its runtime does
source_sum=h1:neR3OwQxjQo9FTIz28T6AWnir1Yde5H4ZFPkx6haznE=
go_version=go1.25.5 # the newest line that TinyGo 0.39 accepts; `go` fetches it by itself
llvm=19
packages=(
    "llvm-$llvm-dev" "libclang-$llvm-dev" "clang-$llvm" "lld-$llvm" "libclang-rt-$llvm-dev-wasm32"
    wasi-libc binaryen g++
)

lacking() {
    printf 'tinygo.sh: %s\n' "$*" >&2
    exit 3
}

if [ $# -ne 1 ]; then
    echo 'usage: tools/tinygo.sh PREFIX' >&2
    exit 2
fi
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
tinygo=$prefix/bin/tinygo

if [ -x "$tinygo" ] && "$tinygo" version 2>/dev/null | grep -q "^tinygo version $version "; then
    echo "TinyGo $version is in $prefix already"
    exit 0
fi

# 1. Debian's packages.

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = 'install ok installed' ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || lacking "needs Debian's packages ${missing[*]}, and this system has no apt-get"
    [ "$(id -u)" -eq 0 ] || lacking "needs root to install ${missing[*]}; or let root install them first"
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
    # Lists that are absent, as in a container, or too old for what the mirror still has: fetch them, once.
    if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || ! "${install[@]}" >/dev/null; then
        apt-get update -qq
        "${install[@]}" >/dev/null || lacking "apt-get cannot install ${missing[*]}: Debian 12 or later has them"
    fi
fi

# 2. The Go release that TinyGo works with, and TinyGo's source. Both are checked against Go's checksum database; the
#    source's sum is pinned here besides.

command -v go >/dev/null || lacking 'needs go, 1.21 or later'
cd "$prefix" # outside of any Go module
export GOTOOLCHAIN=$go_version GOWORK=off GOFLAGS=-buildvcs=false
go_root=$(go env GOROOT) || lacking "go cannot fetch $go_version: is it 1.21 or later, and its proxy reachable?"
download=$(go mod download -json "github.com/tinygo-org/tinygo@v$version") || lacking 'go cannot fetch the source of TinyGo'
source_dir=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$download")
if ! grep -qF "\"Sum\": \"$source_sum\"" <<<"$download"; then
    echo "tinygo.sh: the source of TinyGo $version is not the one that was pinned" >&2
    exit 1
fi

# 3. Build. bin/tinygo is written last, so an installation that was interrupted is not taken for a whole one.

rm -rf "$prefix/root" "$prefix/cache" "$tinygo"
mkdir -p "$prefix/bin"
cp -r "$source_dir" "$prefix/root"
chmod -R u+w "$prefix/root"
(cd "$prefix/root" && go build -tags "llvm$llvm" -o "$prefix/bin/tinygo.real" .)
# The module archive lacks TinyGo's git submodules. net/http is one of them: an empty folder lets all else build.
mkdir -p "$prefix/root/src/net/http"

# wasi-libc and compiler-rt are others. TinyGo builds a library only if its cache lacks it: give it Debian's.
target=wasm32-unknown-wasi-generic
libc=$prefix/cache/tinygo/wasi-libc-$target
builtins=$prefix/cache/tinygo/compiler-rt-$target
mkdir -p "$libc" "$builtins"
cp -r /usr/include/wasm32-wasi "$libc/include"
cp /usr/lib/wasm32-wasi/libc.a "$libc/lib.a"
cp "/usr/lib/llvm-$llvm/lib/clang/$llvm/lib/wasi/libclang_rt.builtins-wasm32.a" "$builtins/lib.a"

cat >"$tinygo.new" <<EOF
#!/bin/sh
export TINYGOROOT='$prefix/root' XDG_CACHE_HOME='$prefix/cache' GOTOOLCHAIN=local GOROOT='$go_root'
export PATH='$go_root/bin:/usr/lib/llvm-$llvm/bin':"\$PATH"
exec '$prefix/bin/tinygo.real' "\$@"
EOF
chmod +x "$tinygo.new"
mv "$tinygo.new" "$tinygo"
"$tinygo" version
