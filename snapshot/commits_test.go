package snapshot_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/spike-ha/spike-ha/snapshot"
)

// It never says that something is younger than it is, and is at most one look too old in its judgement while it has not forgotten anything.
func TestCommits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now, committed := time.Unix(0, 0), uint64(rapid.IntRange(0, 5).Draw(t, "at first"))
		started := now
		c := snapshot.NewCommits(func() uint64 { return committed }, func() time.Time { return now })
		when := map[uint64]time.Time{} // of commits
		steps := rapid.SampledFrom([]int{50, 20000}).Draw(t, "steps")
		seed := rapid.Uint64().Draw(t, "seed")
		first := committed
		for range steps {
			seed = seed*6364136223846793005 + 1442695040888963407
			for range seed >> 62 {
				committed++
				when[committed] = now.Add(time.Duration(seed>>40) % snapshot.LookEvery)
			}
			now = now.Add(snapshot.LookEvery)
			c.Look()
		}
		for index := first; index <= committed; index++ {
			got, want := c.Behind(index), time.Duration(0)
			if index < committed {
				want = now.Sub(when[index+1])
			}
			if got < want || steps == 50 && got > want+snapshot.LookEvery || got > now.Sub(started) {
				t.Fatalf("after %d of %d: %s, it is %s", index, committed, got, want)
			}
			if steps > 50 {
				index += 500
			}
		}
	})
}
