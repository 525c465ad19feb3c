//go:build !wasip1

package wasman

import "wasman.dev/guest/internal/abi"

func asked() { abi.Host.Asked() }
