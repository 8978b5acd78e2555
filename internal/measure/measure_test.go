package measure

import (
	"sync"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h Histogram
	for _, d := range []time.Duration{-1, 0, Bounds[0], Bounds[0] + 1, Bounds[len(Bounds)-1], time.Hour} {
		h.Observe(d)
	}
	d := h.Read()
	last := len(Bounds)
	if d.Counts[0] != 3 || d.Counts[1] != 1 || d.Counts[last-1] != 1 || d.Counts[last] != 1 || d.Count() != 6 {
		t.Errorf("%+v", d)
	}
	if want := 2*Bounds[0] + 1 + Bounds[last-1] + time.Hour; d.Sum != want {
		t.Errorf("sum %v, want %v", d.Sum, want)
	}
	for i := range Bounds[1:] {
		if Bounds[i] >= Bounds[i+1] {
			t.Errorf("bounds %v and %v", Bounds[i], Bounds[i+1])
		}
	}
}

func TestHistogramTogether(t *testing.T) {
	var h Histogram
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 1000 {
				h.Observe(time.Millisecond)
				h.Read()
			}
		})
	}
	wait.Wait()
	if d := h.Read(); d.Count() != 4000 || d.Sum != 4*time.Second {
		t.Errorf("%d, %v", d.Count(), d.Sum)
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
