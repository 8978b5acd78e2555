//go:build !linux

package locked

func private([]byte) {}
