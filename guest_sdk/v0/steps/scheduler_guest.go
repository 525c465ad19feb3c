//go:build tinygo && wasip1 && !scheduler.none

package steps

// A scheduler keeps goroutines' stacks, and who is running, in memory: entered anew it would find both half-way. So a
// guest of steps is built with -scheduler=none, and any other build stops here.
const _ int = "wasman.dev/guest/v0/steps needs tinygo build -scheduler=none"
