package cli

import (
	"testing"
	"time"
)

func TestBarLine(t *testing.T) {
	for want, c := range map[string]struct {
		done, total int64
		took        time.Duration
	}{
		"[..............................]   0 %  0.0 MiB, 0 MiB/s ":   {0, 1 << 20, 0},
		"[###############...............]  50 %  5.0 MiB, 10 MiB/s ":  {5 << 20, 10 << 20, time.Second / 2},
		"[##############################] 100 %  10.0 MiB, 10 MiB/s ": {10 << 20, 10 << 20, time.Second},
		"[##############################] 100 %  0.0 MiB, 0 MiB/s ":   {0, 0, time.Second},
		"[##############################] 100 %  2.0 MiB, 2 MiB/s ":   {2 << 20, 1 << 20, time.Second}, // it grew meanwhile
	} {
		if got := barLine(c.done, c.total, c.took); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
