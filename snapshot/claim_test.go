package snapshot_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
)

func claimed(incarnation uint64, nonce byte) snapshot.Claimed {
	return snapshot.Claimed{Cluster: cluster, Incarnation: incarnation, Nonce: [32]byte{nonce}, By: "nexus-1", Peers: []string{"nexus-1=a:1", "nexus-2=b:1"}, When: time.Unix(1700000000, 0).UTC()}
}

// Of many who claim one incarnation one has it, and the others hear who. Who has it has it also when asked again.
func TestClaims(t *testing.T) {
	t.Parallel()
	d, err := snapshot.NewDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := snapshot.New(d, "p", "")
	const many = 8
	results := make([]error, many)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = a.Claim(ctx, claimed(7, byte(i))) })
	}
	wg.Wait()
	winner := -1
	for i, err := range results {
		if err == nil {
			if winner >= 0 {
				t.Fatalf("%d and %d have it", winner, i)
			}
			winner = i
		}
	}
	for i, err := range results {
		var other *snapshot.ClaimedError
		if i != winner && (!errors.As(err, &other) || other.By.Nonce != [32]byte{byte(winner)} || !strings.Contains(err.Error(), "nexus-1=a:1,nexus-2=b:1")) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if err := a.Claim(ctx, claimed(7, byte(winner))); err != nil {
		t.Errorf("again: %v", err)
	}
	list := must[[]snapshot.Item](t)(a.List(ctx, cluster))
	item, ok := snapshot.ClaimOf(list, 7)
	if !ok || snapshot.HighestIncarnation(list) != 7 || snapshot.NewestIncarnation(list) != 0 {
		t.Errorf("%+v", list)
	}
	if _, ok := snapshot.ClaimOf(list, 6); ok {
		t.Error("there is a claim of 6")
	}
	_, drop := snapshot.Retain(append(list, item), snapshot.Retention{}, nil)
	if len(drop) != 0 {
		t.Errorf("retention drops %+v", drop)
	}
	if _, err := a.IndexAt(ctx, list, 7, time.Now()); !errors.Is(err, snapshot.ErrNothing) {
		t.Errorf("a claim leads to an index: %v", err)
	}
}

// losing is a bucket whose next Create fails, having stored what it was given or not.
type losing struct {
	*memory
	persists bool
}

func (l losing) Create(ctx context.Context, name string, size int64, body io.ReadSeeker) error {
	if l.persists {
		if err := l.memory.Create(ctx, name, size, body); err != nil {
			return err
		}
	}
	return snapshot.ErrUnavailable
}

// A claim that failed is made again, one that failed and is there all the same is found to be one's own; nobody else takes it meanwhile.
func TestClaimThatFailed(t *testing.T) {
	t.Parallel()
	for _, persists := range []bool{false, true} {
		m := newMemory()
		if err := snapshot.New(losing{m, persists}, "", "").Claim(ctx, claimed(7, 1)); !errors.Is(err, snapshot.ErrUnavailable) {
			t.Fatal(err)
		}
		a := snapshot.New(m, "", "")
		other := a.Claim(ctx, claimed(7, 2))
		if taken := errors.As(other, new(*snapshot.ClaimedError)); taken != persists {
			t.Errorf("persists: %t; another: %v", persists, other)
		}
		mine := a.Claim(ctx, claimed(7, 1))
		if (mine == nil) != persists {
			t.Errorf("persists: %t; again: %v", persists, mine)
		}
	}
}

// What is no claim, or a damaged one, is nobody's.
func TestDamagedClaims(t *testing.T) {
	t.Parallel()
	m := newMemory()
	a := snapshot.New(m, "", "")
	if err := a.Claim(ctx, claimed(7, 1)); err != nil {
		t.Fatal(err)
	}
	item := must[[]snapshot.Item](t)(a.List(ctx, cluster))[0]
	good := m.objects[item.Name]
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		m.objects[item.Name] = bad
		if c, err := a.ReadClaim(ctx, item); err == nil {
			t.Fatalf("byte %d: %+v", i, c)
		}
		if err := a.Claim(ctx, claimed(7, 1)); err == nil {
			t.Fatalf("byte %d: claimed", i)
		}
	}
}

func TestWhereClaimsCanBe(t *testing.T) {
	t.Parallel()
	if err := snapshot.New(newMemory(), "", "").CanClaim(ctx); !errors.Is(err, snapshot.ErrNotExclusive) {
		t.Error(err)
	}
	d, err := snapshot.NewDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshot.New(d, "", "").CanClaim(ctx); err != nil {
		t.Error(err)
	}
}
