//go:build !linux

package devcluster

import "syscall"

// attributes keep the terminal's Ctrl-C away from a child. Nothing ends it
// should the supervisor die: its ports then show as taken.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// startTime is not known here; nothing is taken for a process that was left.
func startTime(int) string { return "" }
