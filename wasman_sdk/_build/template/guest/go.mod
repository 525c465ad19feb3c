module PROJECT

go 1.25

require wasman.dev/guest v0.0.0
