module wasman.dev/samples/order_saga

go 1.25

require wasman.dev/guest v0.0.0

replace wasman.dev/guest => ../../../guest_sdk
