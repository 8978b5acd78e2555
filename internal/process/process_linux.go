package process

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// attributes keep the terminal's Ctrl-C away from a child, which is the
// parent's to hand on in order, and end it should the parent die.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// StartTime tells one process from a later one with the same number; empty when
// there is none, or when it has ended and only waits to be reaped.
func StartTime(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may hold anything: count from behind it, where
	// the state is field 3 and the start time field 22 (proc(5)).
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}
