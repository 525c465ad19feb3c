module wasman.dev/samples/subscription

go 1.25

require wasman.dev/guest v0.0.0

replace wasman.dev/guest => ../../../guest_sdk
