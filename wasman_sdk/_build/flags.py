"""How the compilers are called: one table, for `wasman build` and for the modules that this repository commits.

The builds are the same in every folder, and hold the names of functions, for backtraces.
"""

from __future__ import annotations

__all__ = ["FAST", "GO", "MEDDLING", "NO_DEBUG", "TINYGO", "TINYGO_VERSION"]

TINYGO_VERSION = "0.39.0"  # exactly: guest_sdk relies on what its runtime does
NO_DEBUG = "-no-debug"  # lines and variables are left out, which debuggers would have
FAST = "-opt=2"  # behind the other flags of TinyGo: for guests that compute

# By the form of the guest, which is by the package that it uses: "v1" for wasman.dev/guest, "v0" for its package v0.
TINYGO = {
    # Goroutines are kept in memory between turns, so their stacks are small. The SDK's tools/wasm-opt optimises it.
    "v1": (
        "-target=wasip1",
        "-buildmode=c-shared",  # exports run, besides _initialize
        "-scheduler=asyncify",
        "-stack-size=16KB",
        "-opt=z",
        NO_DEBUG,
        # TinyGo's heap would end with the last page of its data, and a run's first turn would collect more than once.
        "-ldflags=-extldflags=--initial-heap=131072",
    ),
    "v0": (
        "-target=wasip1",
        "-buildmode=c-shared",
        "-scheduler=none",  # re-entrant guests must have none: package steps refuses to build otherwise
        "-stack-size=64KB",
        "-opt=2",
        NO_DEBUG,
    ),
}
_GO = ("-trimpath", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-w -buildid=")
GO = {"v1": _GO, "v0": _GO}

# What of a developer's settings would change a build.
MEDDLING = ("GOROOT", "GOARCH", "GOOS", "GOEXPERIMENT", "GOWASM", "GOTOOLCHAIN", "TINYGOROOT", "WASMOPT")
