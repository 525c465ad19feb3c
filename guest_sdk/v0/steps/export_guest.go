//go:build tinygo && wasip1

package steps

// The host asks only whether the export is there; 1 is the version of what it means.
//
//export wasman_reentrant
func reentrant() int32 { return 1 }
