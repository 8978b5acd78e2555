package api_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/api"
)

// Who sends one request waits for one of each line at most, however long
// another's line is.
func TestFairness(t *testing.T) {
	t.Parallel()
	l := api.NewLine(2, 2, 100, 100)
	for range 52 {
		if _, ok := l.Request("greedy"); !ok {
			t.Fatal("refused")
		}
	}
	modest, ok := l.Request("modest")
	if !ok || modest == nil {
		t.Fatal("there was no line")
	}
	l.Leave("greedy") // to the one who waits longest
	l.Leave("greedy")
	select {
	case <-modest:
	default:
		t.Fatal("the second place went to who had one before")
	}
	if running, waiting := l.Load(); running != 2 || waiting != 49 {
		t.Fatalf("%d run, %d wait", running, waiting)
	}
}

// Whatever comes and goes: no bound is passed, no place stays free that somebody
// waits for, and each identity is served in its own order.
func TestAdmission(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all, each := rapid.IntRange(1, 5).Draw(t, "all"), rapid.IntRange(1, 3).Draw(t, "each")
		most, ofEach := rapid.IntRange(0, 8).Draw(t, "waiting"), rapid.IntRange(0, 4).Draw(t, "of each")
		l := api.NewLine(all, each, most, ofEach)
		running, lines := map[string]int{}, map[string][]<-chan struct{}{}
		settle := func() {
			for who, line := range lines {
				for len(line) > 0 {
					select {
					case <-line[0]:
						running[who]++
						line = line[1:]
						continue
					default:
					}
					break
				}
				for _, later := range line {
					select {
					case <-later:
						t.Fatalf("%s was served out of its order", who)
					default:
					}
				}
				lines[who] = line
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			who := fmt.Sprint("caller ", rapid.IntRange(1, 4).Draw(t, "who"))
			_, waiting := l.Load()
			if running[who] > 0 && rapid.Bool().Draw(t, "leaves") {
				running[who]--
				if rapid.Bool().Draw(t, "at once") { // it was granted to a request that is gone
					gone, cancel := context.WithCancel(context.Background())
					cancel()
					if l.Keep(gone, who) || !l.Keep(context.Background(), who) {
						t.Fatal("the place of a request that is gone was kept, or that of another was not")
					}
				} else {
					l.Leave(who)
				}
			} else if n := len(lines[who]); n > 0 && rapid.Bool().Draw(t, "gives up") {
				i := rapid.IntRange(0, n-1).Draw(t, "which")
				if !l.GiveUp(who, lines[who][i]) || l.GiveUp(who, lines[who][i]) {
					t.Fatal("it cannot be given up, or twice")
				}
				lines[who] = slices.Delete(slices.Clone(lines[who]), i, i+1)
			} else if granted, ok := l.Request(who); granted != nil {
				lines[who] = append(lines[who], granted)
			} else if ok {
				running[who]++
			} else if waiting < most && len(lines[who]) < ofEach {
				t.Fatalf("%s was refused", who)
			}
			settle()
			total, waits := 0, 0
			for who, n := range running {
				if total += n; n > each {
					t.Fatalf("%s runs %d", who, n)
				}
			}
			known, turns := 0, 0
			for i := range 4 {
				who := fmt.Sprint("caller ", i+1)
				if running[who] > 0 || len(lines[who]) > 0 {
					known++
				}
				if len(lines[who]) > 0 {
					turns++
				}
			}
			if k, n := l.Lines(); k != known || n != turns {
				t.Fatalf("it knows %d identities, %d of which wait; there are %d and %d", k, n, known, turns)
			}
			for who, line := range lines {
				waits += len(line)
				if len(line) > ofEach {
					t.Fatalf("%d of %s wait", len(line), who)
				}
				if len(line) > 0 && running[who] < each && total < all {
					t.Fatalf("%s waits beside a free place", who)
				}
			}
			gotRunning, gotWaiting := l.Load()
			if total > all || waits > most || gotRunning != total || gotWaiting != waits {
				t.Fatalf("%d run and %d wait; it counts %d and %d", total, waits, gotRunning, gotWaiting)
			}
		}
	})
}
