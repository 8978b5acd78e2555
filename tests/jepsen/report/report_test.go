package report

import (
	"html"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/tests/jepsen/history"
)

// The gap of a fault is of its window alone, up to its edges, and of clients alone that ask any peer.
func TestGaps(t *testing.T) {
	t.Parallel()
	r := &Run{Nemesis: "x", Rows: []int{2, 22}, Seed: 7, Terms: [2]uint64{3, 8}, Faults: []Fault{
		{Begin: 10 * time.Second, Recovered: 20 * time.Second},
		{Begin: 30 * time.Second, Recovered: 34 * time.Second},
	}}
	for _, at := range []time.Duration{1, 9, 12, 19, 25, 40} {
		r.Ops = append(r.Ops, history.Op{Peer: history.Anybody, Outcome: history.OK, Return: at * time.Second})
	}
	r.Ops = append(r.Ops, history.Op{Peer: 0, Outcome: history.OK, Return: 15 * time.Second})
	r.Lags = []Lag{{At: 5 * time.Second, Behind: time.Second}, {At: 15 * time.Second, Behind: 3 * time.Second}, {At: 32 * time.Second, Behind: 2 * time.Second}}
	r.Decide()
	if r.Faults[0].RPO != 3*time.Second || r.Faults[1].RPO != 2*time.Second || r.RPO != 3*time.Second {
		t.Errorf("RPOs %v and %v, in all %v", r.Faults[0].RPO, r.Faults[1].RPO, r.RPO)
	}
	if r.Faults[0].Gap != 7*time.Second || r.Faults[1].Gap != 4*time.Second || r.LongestGap != 15*time.Second {
		t.Errorf("gaps %v and %v, in all %v", r.Faults[0].Gap, r.Faults[1].Gap, r.LongestGap)
	}
	if got := Table([]*Run{r}); !strings.HasSuffix(got, "| x | 2 22 | 7 | passed | 2 | 7 | 0 | 0 | 5 | 15.0 s | 3.0 s |\n") {
		t.Error(got)
	}
	page, err := r.page()
	if err != nil || !strings.Contains(string(page), "Elections: 5.") || !strings.Contains(string(page), "<td>7s</td>") {
		t.Errorf("%v: %s", err, page)
	}
	if r.Terms[0] = 0; r.Elections() != "unknown" {
		t.Error(r.Elections())
	}
}

// The page is one file: a drawing, a page with scripts, is whole in it.
func TestPageHoldsDrawings(t *testing.T) {
	t.Parallel()
	drawing := "<!doctype html><title>x</title><script>let a = \"b\" && 'c'</script>"
	r := &Run{Violations: slices.Repeat([]string{"broken"}, 20), Drawings: []Drawing{{Name: "registers", HTML: drawing}}}
	r.Decide()
	page, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), `<iframe srcdoc="`)
	if got, _, _ := strings.Cut(rest, `"></iframe>`); html.UnescapeString(got) != drawing {
		t.Errorf("%q", got)
	}
	if !strings.Contains(string(page), "and 8 more") || strings.Count(string(page), ">broken<") != 20 {
		t.Errorf("%s", page)
	}
}
