//go:build !linux

package process

import "syscall"

// attributes keep the terminal's Ctrl-C away from a child. Nothing ends it
// should the parent die: its ports then show as taken.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// StartTime is not known here; nothing is taken for a process that was left.
func StartTime(int) string { return "" }
