package snapshot_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spike-ha/spike-ha/snapshot"
)

func auditHead(incarnation uint64, peer string, first, last uint64) snapshot.Header {
	return snapshot.Header{Cluster: cluster, Incarnation: incarnation, Peer: peer, First: first, Last: last, Created: time.Unix(1700000000, 0).UTC()}
}

func putAudit(a *snapshot.Archive, c snapshot.Cipher, incarnation uint64, peer string, first, last uint64) (snapshot.Item, error) {
	return a.PutAudit(ctx, auditHead(incarnation, peer, first, last), c, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "records %d to %d", first, last)
		return err
	}, nil)
}

func readAudit(a *snapshot.Archive, item snapshot.Item, c snapshot.Cipher) (got string, err error) {
	err = a.ReadAudit(ctx, item, c, func(r io.Reader) error {
		b, err := io.ReadAll(r)
		got = string(b)
		return err
	})
	return got, err
}

// Each peer has a place of its own, in each incarnation, and what lies in another's is not taken for its own. Retention leaves all of it.
func TestAuditObjects(t *testing.T) {
	t.Parallel()
	m := newMemory()
	a := snapshot.New(m, "p", t.TempDir())
	var all []snapshot.Item
	for _, peer := range []string{"nexus-1", "nexus-10", "nexus-2"} {
		for _, incarnation := range []uint64{7, 8} {
			all = append(all, must[snapshot.Item](t)(putAudit(a, box(1), incarnation, peer, 1, 9)), must[snapshot.Item](t)(putAudit(a, box(1), incarnation, peer, 10, 12)))
		}
	}
	list := must[[]snapshot.Item](t)(a.ListAudit(ctx, cluster, 7, "nexus-1"))
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	want := []string{
		"v1/c1050000000000000000000000000000/00000000000000000007/audit/nexus-1/00000000000000000001-00000000000000000009",
		"v1/c1050000000000000000000000000000/00000000000000000007/audit/nexus-1/00000000000000000010-00000000000000000012",
	}
	if !slices.Equal(names, want) || auditHead(7, "nexus-1", 1, 9).AuditName() != want[0] {
		t.Errorf("%q", names)
	}
	if got, err := readAudit(a, list[1], box(1)); err != nil || got != "records 10 to 12" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := putAudit(a, box(1), 7, "nexus-1", 1, 9); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	for _, other := range all {
		if other.Name == want[0] {
			continue
		}
		good := m.objects["p/"+want[0]]
		m.objects["p/"+want[0]] = m.objects["p/"+other.Name]
		if _, err := readAudit(a, list[0], box(1)); !errors.Is(err, snapshot.ErrForeign) {
			t.Errorf("%s in the place of %s: %v", other.Name, want[0], err)
		}
		m.objects["p/"+want[0]] = good
	}
	for _, peer := range []string{"", ".", "..", ".hidden", "a/b", "a b", "ä", strings.Repeat("x", 65)} {
		if _, err := putAudit(a, box(1), 7, peer, 1, 9); !errors.Is(err, snapshot.ErrFormat) {
			t.Errorf("a peer called %q: %v", peer, err)
		}
		if _, err := a.ListAudit(ctx, cluster, 7, peer); !errors.Is(err, snapshot.ErrFormat) {
			t.Errorf("a peer called %q: %v", peer, err)
		}
		if _, ok := snapshot.ParseName(strings.Replace(want[0], "nexus-1", peer, 1)); ok {
			t.Errorf("an object of a peer called %q", peer)
		}
	}
	for _, span := range [][2]uint64{{0, 1}, {2, 1}} {
		if _, err := putAudit(a, box(1), 7, "nexus-1", span[0], span[1]); !errors.Is(err, snapshot.ErrFormat) {
			t.Errorf("%v: %v", span, err)
		}
	}

	newest := putSnapshot(t, a, 9, 10, "")
	list = must[[]snapshot.Item](t)(a.List(ctx, cluster))
	_, drop := snapshot.Retain(list, snapshot.Retention{}, map[string]bool{newest.Name: true})
	for _, i := range drop {
		if i.Kind == snapshot.Audit {
			t.Errorf("retention would take %s", i.Name)
		}
	}
	if _, err := a.Prune(ctx, append(drop, all...)); err != nil {
		t.Fatal(err)
	}
	left := must[[]snapshot.Item](t)(a.List(ctx, cluster))
	for _, i := range all {
		if !slices.ContainsFunc(left, func(l snapshot.Item) bool { return l.Name == i.Name }) {
			t.Errorf("pruning took %s", i.Name)
		}
	}
}

// A store that says that it failed has the object or not; both end with it there, once.
func TestAuditObjectThatFailed(t *testing.T) {
	t.Parallel()
	for _, persists := range []bool{false, true} {
		m := newMemory()
		if _, err := putAudit(snapshot.New(losing{m, persists}, "", t.TempDir()), box(1), 7, "nexus-1", 1, 9); !errors.Is(err, snapshot.ErrUnavailable) {
			t.Fatal(err)
		}
		a := snapshot.New(m, "", t.TempDir())
		item, err := putAudit(a, box(1), 7, "nexus-1", 1, 9)
		if persists != errors.Is(err, snapshot.ErrExists) || !persists && err != nil {
			t.Errorf("again, %v: %v", persists, err)
		}
		if got, err := readAudit(a, item, box(1)); err != nil || got != "records 1 to 9" || len(m.objects) != 1 {
			t.Errorf("%q, %v", got, err)
		}
	}
}
