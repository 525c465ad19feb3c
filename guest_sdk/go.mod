module wasman.dev/guest

go 1.25
