package fsm_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/spike-ha/spike-ha/fsm"
	"github.com/spike-ha/spike-ha/fsm/fsmpb"
)

// TestReadersBesideApply reads, marshals and snapshots views while entries are
// applied; meant for the race detector, which sees a node or record written
// after it was shared. Every view must stay what it was when it was taken.
func TestReadersBesideApply(t *testing.T) {
	t.Parallel()
	const secrets, entries = 200, 150
	m := founded(t, &fsmpb.Settings{WindowEntries: 64, MaxVersions: 3})
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				v := m.View()
				first, count := snapshot(t, v), 0
				for s := range v.Secrets() {
					got, ok := v.Secret(fsm.Token(s.Token))
					if !ok || got != s {
						t.Error("a view lost a secret")
					}
					if _, err := proto.Marshal(s); err != nil {
						t.Error(err)
					}
					count++
				}
				if count != v.SecretCount() || !bytes.Equal(first, snapshot(t, v)) {
					t.Error("a view changed")
				}
				n := fsm.New(fsm.Options{})
				if err := n.Restore(bytes.NewReader(first)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range entries {
		var entry [][]byte
		for j := range 20 {
			name := fmt.Sprint("secret ", (i*37+j*11)%secrets)
			s := secret(m, name)
			c := put(name, s.GetRevision(), fsm.NextVersion(s), "value")
			switch {
			case s != nil && (i+j)%5 == 0:
				c = purge(name, s.Revision)
			case s != nil && (i+j)%3 == 0:
				c = del(name, s.Revision)
			}
			c.WriteId = &fsmpb.WriteID{Id: token(fmt.Sprint(i, j))[:16], Index: m.View().Index()}
			entry = append(entry, encode(t, c))
		}
		for _, r := range apply(t, m, m.View().Index()+1, entry...) {
			want(t, r, fsmpb.Code_OK)
		}
	}
	close(done)
	readers.Wait()
}

// TestObserve registers while entries are applied: the view that is returned
// and the deltas that follow must have no gap and no overlap.
func TestObserve(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	started, stop := make(chan struct{}), make(chan struct{})
	var applying sync.WaitGroup
	applying.Go(func() {
		for i := uint64(2); ; i++ {
			if _, err := m.Apply(i, 1, [][]byte{}); err != nil {
				t.Error(err)
			}
			if i == 10 {
				close(started)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	<-started
	for range 100 {
		var last uint64
		var mu sync.Mutex
		enough := make(chan struct{})
		mu.Lock()
		n := 0
		v, cancel := m.Observe(changed(func(d fsm.Delta) {
			mu.Lock()
			defer mu.Unlock()
			if d.View.Index() != last+1 {
				t.Errorf("delta %d after %d", d.View.Index(), last)
			}
			last = d.View.Index()
			if n++; n == 3 {
				close(enough)
			}
		}))
		last = v.Index()
		mu.Unlock()
		<-enough
		cancel()
	}
	close(stop)
	applying.Wait()
}

func TestDeltaListsEachRecordOnce(t *testing.T) {
	t.Parallel()
	m, a, _, p := ready(t)
	var got fsm.Delta
	_, stop := m.Observe(changed(func(d fsm.Delta) { got = d }))
	oldA := secret(m, "a")
	rev := m.View().PolicyRevision()
	if p != rev {
		t.Fatal(p, rev)
	}
	last := rev // revisions of this entry follow on it
	apply(t, m, 100,
		encode(t, put("new", 0, 1, "x")),
		encode(t, put("a", a, 3, "x")),
		encode(t, put("a", last+2, 4, "y")),
		encode(t, put("brief", 0, 1, "x")), // comes and goes
		encode(t, purge("brief", last+4)),
		encode(t, delPolicy("p", p)),
		encode(t, putPolicy("p", 0, "again")),
		encode(t, setSeal(true, 0)))
	if len(got.Secrets) != 2 || got.Secrets[0].Token != fsm.Token(token("new")) || got.Secrets[0].Old != nil ||
		got.Secrets[0].New != secret(m, "new") || got.Secrets[1].Old != oldA || got.Secrets[1].New != secret(m, "a") ||
		got.Secrets[1].New.Current != 4 {
		t.Fatal(got.Secrets)
	}
	if len(got.Policies) != 1 || string(got.Policies[0].Old.Body) != "body" || string(got.Policies[0].New.Body) != "again" {
		t.Fatal(got.Policies)
	}
	if !got.Seal || got.Reset || got.View != m.View() {
		t.Fatal(got)
	}
	// The acts are all there, in order.
	var acts []string
	for _, a := range got.Acts {
		acts = append(acts, fmt.Sprint(a.Kind, " ", a.Versions))
		if a.Kind == fsm.ActPurge && !bytes.Equal(a.Secret.Token, token("brief")) {
			t.Error(a)
		}
	}
	if want := []string{"1 [1]", "1 [3]", "1 [4]", "1 [1]", "5 []"}; !slices.Equal(acts, want) {
		t.Fatal(acts)
	}
	stop()
	got = fsm.Delta{}
	apply(t, m, 101, encode(t, setSeal(false, 1)))
	if got.View != nil {
		t.Fatal("told after stop")
	}
}

func TestViewsRangeInTokenOrder(t *testing.T) {
	t.Parallel()
	m := founded(t, nil)
	for i := range 300 {
		want(t, do(t, m, put(fmt.Sprint("s", i), 0, 1, "x")), fsmpb.Code_OK)
		want(t, do(t, m, putPolicy(fmt.Sprint("p", i), 0, "x")), fsmpb.Code_OK)
	}
	// Tokens that share their first eight bytes are told apart too.
	var close [3][]byte
	for i := range close {
		close[i] = append(bytes.Repeat([]byte{5}, 31), byte(i))
		c := put("x", 0, 1, fmt.Sprint("close ", i))
		c.GetPutSecret().Token = close[i]
		want(t, do(t, m, c), fsmpb.Code_OK)
	}
	for i, k := range close {
		if s, ok := m.View().Secret(fsm.Token(k)); !ok || string(s.Versions[0].Value) != fmt.Sprint("close ", i) {
			t.Fatal(i, s)
		}
	}
	if _, ok := m.View().Secret(fsm.Token(append(bytes.Repeat([]byte{5}, 31), 9))); ok {
		t.Fatal("found what is not there")
	}
	var tokens, policies [][]byte
	for s := range m.View().Secrets() {
		tokens = append(tokens, s.Token)
	}
	for p := range m.View().Policies() {
		policies = append(policies, p.Token)
	}
	if len(tokens) != 303 || !slices.IsSortedFunc(tokens, bytes.Compare) ||
		len(policies) != 300 || !slices.IsSortedFunc(policies, bytes.Compare) {
		t.Fatal(len(tokens), len(policies))
	}
	for range m.View().Secrets() {
		break // an early end is fine
	}
}
